"""`pdfast sample`: images of a model as PNG files, one .npz, or a grid."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pdfast import checkpoint, distributed, files, numerics
from pdfast.errors import UsageError
from pdfast.guidance import guided
from pdfast.model import Model
from pdfast.plots import counted, grid
from pdfast.progress import Screen
from pdfast.samplers import Sampler
from pdfast.signals import poll


def sample_to(
    model_dir: Path,
    out: Path,
    *,
    num: int,
    steps: int,
    seed: int,
    label: int | None,
    guidance: float | None,
    sampler: Sampler,
    variance: float,
    device: str,
    threads: int,
    precision: str,
    force: bool = False,
) -> None:
    """Sample `num` images and write them to `out`, a folder, an .npz or a .png.

    Raises UsageError if anything is there, unless `force` has images of the same names replaced.
    """
    screen = Screen()
    with distributed.session(device, threads, poll) as where:
        found = numerics.set_up(precision, where)
        model = distributed.together(lambda: checkpoint.load_model(model_dir, where))
        model = numerics.lowered(model, found)
        if guidance is not None:
            model = guided(model, guidance)
        steps = steps or model.steps
        if not steps:
            raise UsageError(
                f"{model_dir} is a teacher, made for any number of steps: pass --steps"
            )
        _check(model, out, num, seed, label)
        distributed.from_first(lambda: _refuse(out, num, force))
        labels = None if label is None else torch.full((num,), label, dtype=torch.int64)
        with screen.task(f"sampling, {counted(steps)}", steps * Model.calls_for(num)) as task:

            def on_step() -> None:
                poll("nothing was written")
                task.advance()

            images = model.sample_images(
                num, steps, seed, labels, sampler=sampler, variance=variance, on_step=on_step
            )
        if model.steps not in (0, steps):
            screen.warn(f"{model_dir} was distilled to {counted(model.steps)}, not to {steps}")
        distributed.from_first(lambda: _write(images.cpu(), out))
        screen.say(f"{num} images in {counted(steps)} (seed {seed}): {out}")


def _check(model: Model, out: Path, num: int, seed: int, label: int | None) -> None:
    """Refuse what cannot be sampled, or written."""
    if not 0 <= seed < 2**32:
        raise UsageError("--seed must be in 0 .. 4294967295")
    if num < 1:
        raise UsageError("--num must be at least 1")
    if out.suffix not in ("", ".npz", ".png"):
        raise UsageError(f"--out {out} must be a folder, an .npz or a .png")
    if label is not None and not model.num_classes:
        raise UsageError("this model is unconditional: leave --label out")
    if label is not None and not 0 <= label < model.num_classes:
        raise UsageError(f"--label must be in 0 .. {model.num_classes - 1}")


def _refuse(out: Path, num: int, force: bool) -> None:
    """Raise UsageError for what is there and not to be replaced.

    That is also a folder with pictures of another set, which would stay among the new ones.
    """
    there = any(out.iterdir()) if out.is_dir() and not out.suffix else os.path.lexists(out)
    if there and not force:
        raise UsageError(
            f"{out} is there already: choose another --out, or pass --force to replace it"
        )
    ours = {_name(k) for k in range(num)}
    others = sorted(path.name for path in out.glob("*.png") if path.name not in ours)
    if others and not out.suffix:
        raise UsageError(
            f"{out} holds pictures that are not of these {num}, {others[0]} first of "
            f"{len(others)}: choose another --out, or remove them"
        )


def _name(k: int) -> str:
    return f"{k:06d}.png"


def _write(images: torch.Tensor, out: Path) -> None:
    """Every file is whole or absent, so that a full disk destroys nothing."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if not out.suffix:
            out.mkdir(exist_ok=True)
    except OSError as error:
        raise files.cannot_write(out, error) from None
    if out.suffix == ".npz":
        files.write_file(out, lambda stage: np.savez(stage, images.numpy()))
    elif out.suffix == ".png":
        files.write_file(out, grid(images, max(1, round(len(images) ** 0.5))).save)
    else:
        for k, image in enumerate(images.numpy()):
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            files.write_file(out / _name(k), picture.save, sync=False)  # they are many
