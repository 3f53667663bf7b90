"""The Python interface: `pdfast.train`, `pdfast.distill`, `pdfast.evaluate`, as the commands."""

import dataclasses
from pathlib import Path

import torch

from pdfast import peers
from pdfast.checkpoint import cannot_write, load_model
from pdfast.config import Config, check_distillable, load_config
from pdfast.data import Dataset, load_dataset
from pdfast.device import choose_device
from pdfast.distillation import adopt_teacher, check_start, distill_rounds, load_teacher
from pdfast.errors import UsageError
from pdfast.kernels import group_norm_silu, runtime
from pdfast.model import Model
from pdfast.progress import Screen
from pdfast.report import report_model, report_run
from pdfast.run import Run
from pdfast.training import train_teacher
from pdfast.version import __version__


def _config(config: Config | str | Path) -> Config:
    """A Config whose data are found from any folder."""
    loaded = config if isinstance(config, Config) else load_config(config)
    if loaded.data.source == "digits":
        return loaded
    source = str(Path(loaded.data.source).absolute())
    return dataclasses.replace(loaded, data=dataclasses.replace(loaded.data, source=source))


def _open(
    config: Config, out: str | Path | None, quiet: bool, device: torch.device
) -> tuple[Run, Dataset]:
    """The run directory, and the data, read before anything is written."""
    data = load_dataset(config.data, config.model).to(device)
    path = Path(out) if out is not None else Path("runs") / config.name
    run = Run.start(path, config, Screen(quiet))
    threads = f" ({torch.get_num_threads()} threads)" if device.type == "cpu" else ""
    run.screen.say(
        f"pdfast {__version__}: {path} on {device}{threads}, float32, PyTorch {torch.__version__}; "
        f"group_norm_silu: {group_norm_silu.implementation(device)}; "
        f"other ops: {runtime.implementation(device)}"
    )
    return run, data


def train(
    config: Config | str | Path = "digits",
    *,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int = 0,
    quiet: bool = False,
) -> Model:
    """Train a teacher, or go on with one, and report its distances. Returns it.

    `config` is a Config, the name of one that comes with pdfast, or a TOML file; `out` is the run
    directory, runs/<name> by default. Raises PdfastError with a sentence that names the fix.
    """
    config = _config(config)
    where = choose_device(device, threads)
    peers.check(config, where)
    run, data = _open(config, out, quiet, where)
    model = train_teacher(run, data, where)
    report_run(run, data, config.eval.steps, where)
    return model


def distill(
    config: Config | str | Path = "digits",
    *,
    teacher: str | Path | None = None,
    rounds: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int = 0,
    quiet: bool = False,
) -> Model:
    """Distil a teacher by progressive distillation (Salimans & Ho 2022). Returns the last student.

    Without `teacher`, a model directory, the config's own is trained first, or taken from the run
    directory `out`. Finished rounds are kept: the same call resumes, and more `rounds` go on.
    Arguments and errors otherwise as in `train`.
    """
    config = _config(config)
    if rounds is not None:
        config = dataclasses.replace(
            config, distill=dataclasses.replace(config.distill, rounds=rounds)
        )
    check_distillable(config)
    where = choose_device(device, threads)
    peers.check(config, where)
    model = None if teacher is None else load_teacher(Path(teacher), config, where)
    run, data = _open(config, out, quiet, where)
    if model is not None and teacher is not None:
        adopt_teacher(run, Path(teacher), model)
    model = train_teacher(run, data, where)
    check_start(model, config)
    student = distill_rounds(run, model, data)
    report_run(run, data, config.eval.steps, where)
    return student


def evaluate(
    model: str | Path,
    *,
    config: Config | str | Path | None = None,
    steps: tuple[int, ...] | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int = 0,
    quiet: bool = False,
) -> None:
    """Measure the Frechet distance of a model directory, or of a whole run directory.

    A run directory gets its report.json, report.md and report.png written again. A model's
    numbers go to `out` (eval-<model> beside it); its data come from `config`, or from the run
    directory that the model lies in. `steps` replaces the config's step counts.
    """
    path, screen, where = Path(model).resolve(), Screen(quiet), choose_device(device, threads)
    is_run = (path / "config.toml").is_file()
    beside = path / "config.toml" if is_run else path.parent / "config.toml"
    if not path.is_dir():
        raise UsageError(f"there is no model or run directory {model}")
    if config is None and not beside.is_file():
        raise UsageError(
            f"{model} lies in no run directory: name the data to compare with, by --config"
        )
    resolved = _config(config if config is not None else beside)
    chosen = tuple(steps or resolved.eval.steps)
    resolved = dataclasses.replace(resolved, eval=dataclasses.replace(resolved.eval, steps=chosen))
    if is_run:
        if out is not None:
            raise UsageError(f"{model} is a run, whose report goes into it: leave --out away")
        data = load_dataset(resolved.data, resolved.model).to(where)
        report_run(Run(path, resolved, screen), data, chosen, where)
        return
    loaded = load_model(path, where)
    # The data as this model sees them; the distance needs no labels.
    seen = dataclasses.replace(loaded.cfg, num_classes=0)
    data = load_dataset(resolved.data, seen).to(where)
    folder = Path(out) if out is not None else path.parent / f"eval-{path.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    report_model(path.name, loaded, resolved, data, Run(folder, resolved, screen))
