"""`pdfast sample`: writes samples of a model as PNG files, one .npz, or a grid.

A JSON file beside them records how they were made: model, steps, seed and labels.
"""

import os
from pathlib import Path
from typing import Any

import torch

from pdfast.config.class_names import number_of, shown
from pdfast.config.names import Sampler
from pdfast.console.messages import counted
from pdfast.console.progress import Screen
from pdfast.data.image_grid import grid
from pdfast.distributed import collectives
from pdfast.distributed.settings import kept
from pdfast.distributed.signals import poll
from pdfast.errors import UsageError
from pdfast.models import checkpoint, pretrained
from pdfast.models.guidance import guided
from pdfast.models.model import Model
from pdfast.models.outputs import picture
from pdfast.storage import files
from pdfast.storage.marked import save_npz, save_png
from pdfast.storage.marks import marked_json
from pdfast.training.precision import cast_to_precision, set_precision

ABOUT = "samples.json"  # in a folder of pictures


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
    """Sample images and write them to a folder, an .npz or a .png.

    How they were made is written to samples.json in the folder, or to OUT.json beside a file OUT.

    Args:
        model_dir: A model directory, or the name of a model that comes with pdfast.
        out: A folder for PNG files, or a file ending in .npz or .png (a grid).
        num: Number of images.
        steps: Number of sampling steps; 0 for the number that the model was distilled to.
        seed: Seed, 0 to 2^32 - 1.
        label: Name or number of the class of all images; None draws the classes.
        guidance: Weight of classifier-free guidance; None for none.
        sampler: "ddim" or "ancestral".
        variance: Variance of the ancestral sampler, 0 to 1.
        device: As in `pdfast.train`.
        threads: As in `pdfast.train`.
        precision: "auto", "bf16", "tf32" or "fp32".
        timeout: As in `pdfast.train`.
        force: Replace files at `out` that pdfast wrote; otherwise existing ones are refused.

    Raises:
        UsageError: An argument is wrong, the model cannot be sampled like this, or `out` exists.
        PdfastError: A file cannot be read or written, or the samples are not finite.
    """
    screen = Screen()
    with kept(), collectives.session(device, threads, poll, timeout) as where:
        found = set_precision(precision, where)
        path = pretrained.find(model_dir, steps)
        model, digest = collectives.together(lambda: _load(path, where))
        model = cast_to_precision(model, found)
        if guidance is None and model.guidance:
            least, most = model.guidance
            raise UsageError(
                f"{model_dir} is a guided student: pass --guidance, a weight in {least:g} .. "
                f"{most:g}"
            )
        if guidance is not None:
            model = guided(model, guidance)
        steps = steps or model.steps
        if not steps:
            more = pretrained.students(str(model_dir)) if pretrained.is_name(model_dir) else []
            raise UsageError(
                f"{model_dir} is a teacher, made for any number of steps: pass --steps"
                + (f" (it comes with students of {', '.join(map(str, more))})" if more else "")
            )
        _check(model, out, num, seed, label)
        number = None if label is None else number_of(label, model.class_names, model.num_classes)
        collectives.from_first(lambda: _check_new(out, force))
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
        drawn = model.drawn_labels(num, seed) if labels is None else labels
        about = {
            "model": Path(os.path.abspath(path)).name,
            "model_manifest_sha256": digest,
            "steps": steps,
            "sampler": sampler,
            "variance": variance if sampler == "ancestral" else None,
            "guidance": guidance,
            "precision": found,
            "seed": seed,
            "images": num,
            "labels": None if drawn is None else drawn.tolist(),
            "classes": list(model.class_names),
            "versions": files.versions(),
        }
        collectives.from_first(lambda: _write(images.cpu(), about, out, force))
        of = "" if number is None else f", class {shown(number, model.class_names)}"
        where_to = f"{out}{'' if out.suffix else os.sep}"
        images_ = "1 image" if num == 1 else f"{num:,} images"
        screen.say(f"{images_} in {counted(steps)} (seed {seed}{of}): {where_to}")


def _check(model: Model, out: Path, num: int, seed: int, label: str | None) -> None:
    """Raise UsageError for arguments that do not fit the model or each other."""
    if not 0 <= seed < 2**32:
        raise UsageError("--seed must be in 0 .. 4294967295")
    if num < 1:
        raise UsageError("--num must be at least 1")
    if out.suffix not in ("", ".npz", ".png"):
        raise UsageError(f"--out {out} must be a folder, an .npz or a .png")
    if label is not None and not model.num_classes:
        raise UsageError("this model is unconditional: omit --label")


def _load(path: Path, device: torch.device) -> tuple[Model, str]:
    """Return the model of a model directory, and the digest of its manifest."""
    model = checkpoint.load_model(path, device)
    return model, files.read_manifest(path)["manifest_sha256"]


def _about(out: Path) -> Path:
    """Return the path of the JSON file that describes the images at `out`."""
    return out.with_name(f"{out.name}.json") if out.suffix else out / ABOUT


def _check_new(out: Path, force: bool) -> None:
    """Raise UsageError if `out` exists, or, with `force`, if pdfast did not write it."""
    files.check_new(out, force)
    if out.suffix:
        files.check_new(_about(out), force)


def _write(images: torch.Tensor, about: dict[str, Any], out: Path, force: bool) -> None:
    """Write all images or none, so that a full disk destroys nothing."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(out, error) from None
    _check_new(out, force)  # sampling may have taken long
    said = marked_json(about)
    if not out.suffix:
        files.write_folder(out, lambda stage: _write_each(images, said, stage), sync=False)  # many
        return
    _about(out).unlink(missing_ok=True)  # it never lies beside images that it does not describe
    if out.suffix == ".npz":
        files.write_file(out, lambda stage: save_npz(stage, arr_0=images.numpy()))
    else:
        sheet = grid(images, max(1, round(len(images) ** 0.5)))
        files.write_file(out, lambda stage: save_png(sheet, stage))
    files.write_file(_about(out), lambda stage: stage.write_bytes(said))


def _write_each(images: torch.Tensor, said: bytes, folder: Path) -> None:
    (folder / ABOUT).write_bytes(said)
    for k, image in enumerate(images.numpy()):
        save_png(picture(image), folder / f"{k:06d}.png")
