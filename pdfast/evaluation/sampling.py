"""`pdfast sample`: images of a model as PNG files, one .npz, or a grid."""

from pathlib import Path

import torch
from PIL import Image

from pdfast.config.class_names import number_of, shown
from pdfast.config.names import Sampler
from pdfast.console.messages import counted
from pdfast.console.progress import Screen
from pdfast.data.image_grid import grid
from pdfast.distributed import collectives
from pdfast.distributed.settings import kept
from pdfast.distributed.signals import poll
from pdfast.errors import UsageError
from pdfast.models import checkpoint
from pdfast.models.guidance import guided
from pdfast.models.model import Model
from pdfast.storage import files
from pdfast.storage.marked import save_npz, save_png
from pdfast.training.precision import cast_to_precision, set_precision


def sample_to(
    model_dir: Path,
    out: Path,
    *,
    num: int,
    steps: int,
    seed: int,
    label: str | None,
    guidance: float | None,
    sampler: Sampler,
    variance: float,
    device: str,
    threads: int,
    precision: str,
    timeout: float,
    force: bool = False,
) -> None:
    """Sample `num` images and write them to `out`, a folder, an .npz or a .png.

    What is at `out` is refused, or, with `force`, replaced where pdfast wrote it. Raises
    PdfastError with a sentence that names the fix.
    """
    screen = Screen()
    with kept(), collectives.session(device, threads, poll, timeout) as where:
        found = set_precision(precision, where)
        model = collectives.together(lambda: checkpoint.load_model(model_dir, where))
        model = cast_to_precision(model, found)
        if guidance is not None:
            model = guided(model, guidance)
        steps = steps or model.steps
        if not steps:
            raise UsageError(
                f"{model_dir} is a teacher, made for any number of steps: pass --steps"
            )
        _check(model, out, num, seed, label)
        number = None if label is None else number_of(label, model.class_names, model.num_classes)
        collectives.from_first(lambda: files.check_new(out, force))
        labels = None if number is None else torch.full((num,), number, dtype=torch.int64)
        with screen.task(f"sampling, {counted(steps)}", steps * Model.calls_for(num)) as task:

            def on_step() -> None:
                poll("nothing was written")
                task.advance()

            images = model.sample_images(
                num, steps, seed, labels, sampler=sampler, variance=variance, on_step=on_step
            )
        if model.steps not in (0, steps):
            screen.warn(f"{model_dir} was distilled to {counted(model.steps)}, not to {steps}")
        collectives.from_first(lambda: _write(images.cpu(), out, force))
        of = "" if number is None else f", class {shown(number, model.class_names)}"
        screen.say(f"{num} images in {counted(steps)} (seed {seed}{of}): {out}")


def _check(model: Model, out: Path, num: int, seed: int, label: str | None) -> None:
    """Refuse what cannot be sampled, or written."""
    if not 0 <= seed < 2**32:
        raise UsageError("--seed must be in 0 .. 4294967295")
    if num < 1:
        raise UsageError("--num must be at least 1")
    if out.suffix not in ("", ".npz", ".png"):
        raise UsageError(f"--out {out} must be a folder, an .npz or a .png")
    if label is not None and not model.num_classes:
        raise UsageError("this model is unconditional: leave --label out")


def _write(images: torch.Tensor, out: Path, force: bool) -> None:
    """All images are there or none, so that a full disk destroys nothing."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(out, error) from None
    files.check_new(out, force)  # sampling may have taken long
    if out.suffix == ".npz":
        files.write_file(out, lambda stage: save_npz(stage, arr_0=images.numpy()))
    elif out.suffix == ".png":
        sheet = grid(images, max(1, round(len(images) ** 0.5)))
        files.write_file(out, lambda stage: save_png(sheet, stage))
    else:
        files.write_folder(out, lambda stage: _write_each(images, stage), sync=False)  # many files


def _write_each(images: torch.Tensor, folder: Path) -> None:
    for k, image in enumerate(images.numpy()):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        save_png(picture, folder / f"{k:06d}.png")
