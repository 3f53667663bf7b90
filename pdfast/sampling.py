"""`pdfast sample`: images of a model as PNG files, one .npz, or a grid."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pdfast import checkpoint, distributed, numerics
from pdfast.errors import UsageError
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
    sampler: Sampler,
    variance: float,
    device: str,
    threads: int,
    precision: str,
) -> None:
    """Sample `num` images and write them to `out`, a folder, an .npz or a .png."""
    with distributed.session(device, threads, poll) as where:
        found = numerics.set_up(precision, where)
        model = distributed.together(lambda: checkpoint.load_model(model_dir, where))
        model = numerics.lowered(model, found)
        _sample_to(model, model_dir, out, num, steps, seed, label, sampler, variance)


def _sample_to(
    model: Model,
    model_dir: Path,
    out: Path,
    num: int,
    steps: int,
    seed: int,
    label: int | None,
    sampler: Sampler,
    variance: float,
) -> None:
    steps = steps or model.steps
    if not steps:
        raise UsageError(f"{model_dir} is a teacher, made for any number of steps: pass --steps")
    if not 0 <= seed < 2**32:
        raise UsageError("--seed must be in 0 .. 4294967295")
    if num < 1:
        raise UsageError("--num must be at least 1")
    if out.suffix not in ("", ".npz", ".png"):
        raise UsageError(f"--out {out} must be a folder, an .npz or a .png")
    if label is not None and not model.cfg.num_classes:
        raise UsageError("this model is unconditional: leave --label out")
    if label is not None and not 0 <= label < model.cfg.num_classes:
        raise UsageError(f"--label must be in 0 .. {model.cfg.num_classes - 1}")
    labels = None if label is None else torch.full((num,), label, dtype=torch.int64)
    screen = Screen()
    with screen.task(f"sampling, {counted(steps)}", steps * Model.calls_for(num)) as task:

        def on_step() -> None:
            poll("nothing was written")
            task.advance()

        images = model.sample_images(
            num, steps, seed, labels, sampler=sampler, variance=variance, on_step=on_step
        )
    distributed.from_first(lambda: _write(images.cpu(), out))
    screen.say(f"{num} images in {counted(steps)} (seed {seed}): {out}")


def _write(images: torch.Tensor, out: Path) -> None:
    """Every file under another name until it is whole, so that a full disk destroys nothing."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".npz":
            _staged(out, lambda stage: np.savez(stage, images.numpy()))
        elif out.suffix == ".png":
            _staged(out, grid(images, max(1, round(len(images) ** 0.5))).save)
        else:
            out.mkdir(exist_ok=True)
            for k, image in enumerate(images.numpy()):
                picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
                _staged(out / f"{k:06d}.png", picture.save)
    except OSError as error:
        raise checkpoint.cannot_write(out, error) from None


def _staged(path: Path, save: Callable[[Path], object]) -> None:
    stage = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        save(stage)
        stage.replace(path)
    finally:
        stage.unlink(missing_ok=True)
