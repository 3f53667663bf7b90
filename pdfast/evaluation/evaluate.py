"""The evaluation of a run directory, or of one model."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from pdfast.config.schema import Config
from pdfast.console.progress import Screen
from pdfast.data import digest
from pdfast.data.dataset import Dataset, load_dataset
from pdfast.distributed import collectives
from pdfast.errors import UsageError
from pdfast.evaluation import same_classes
from pdfast.evaluation.evaluator import Evaluator
from pdfast.evaluation.provenance import AS_GIVEN, averaging
from pdfast.evaluation.report.write import check_out, report_model, report_run
from pdfast.models import captured
from pdfast.models.checkpoint import class_names_of, load_model
from pdfast.models.guidance import guided
from pdfast.models.model import Model
from pdfast.runs import record
from pdfast.runs.record import Record
from pdfast.runs.run import Run
from pdfast.storage.digests import Digest
from pdfast.storage.files import cannot_write
from pdfast.training.call_config import absolute_config, changed_config, run_dir
from pdfast.training.image_stream import place, read_by_all
from pdfast.training.model_run import ModelRun
from pdfast.training.precision import cast_to_precision, set_precision


def evaluate_path(
    model: str | Path,
    config: Config | str | Path | None,
    asked: dict[str, Any],
    out: str | Path | None,
    where: torch.device,
    screen: Screen,
    other_data: bool,
) -> None:
    """Evaluate a run directory, or one model, and write its report.

    Args:
        model: The run directory, or a model directory.
        config: The config with the data to compare with; None for the config of the run, or for
            the defaults, if there is no run.
        asked: Settings that replace those of the config.
        out: Folder of the report of one model; None for eval-<model> beside it. A run's report goes
            into the run.
        where: The device.
        screen: Where progress is reported.
        other_data: Whether the data may differ from those that the run was trained on.

    Raises:
        UsageError: `model` is neither, or a setting or the data do not suit it.
    """
    path = Path(model).resolve()
    is_file, is_dir, is_run, lies_in_run = collectives.from_first(
        lambda: [
            path.is_file(),
            path.is_dir(),
            (path / "config.toml").is_file(),
            (path.parent / "config.toml").is_file(),
        ]
    )
    if is_file:
        raise UsageError(
            f"{model} is not a model or run directory: if it holds samples, name the set to "
            "compare them with by --against"
        )
    if not is_dir:
        raise UsageError(f"there is no model or run directory {model}")
    if config is None and "data" not in asked and not (is_run or lies_in_run):
        raise UsageError(
            f"{model} is in no run directory, so its data are not known: pass --data.source, or "
            "--config (samples of other tools are compared by pdfast eval --against)"
        )
    begun, resolved = collectives.together(lambda: _asked_of(path, is_run, config, asked))
    found = set_precision(resolved.precision, where, resolved.deterministic)
    source, graph = resolved.data.source, resolved.engine.graph

    def placed(read: Dataset) -> Dataset:
        """Return the set on the device, after checking that it is the run's."""
        data = digest.known(read)
        if begun is not None and not other_data:
            collectives.from_first(lambda: _check_data(path, begun, data.digest, screen))
        return place(data, resolved, where)

    def classes_checked(data: Dataset, names: tuple[str, ...], num_classes: int) -> None:
        same_classes.check_judged(path, names, data, other_data, screen)
        for line in same_classes.missing(data, num_classes, names):
            screen.say(line)

    if is_run:
        if out is not None:
            raise UsageError(f"{model} is a run, whose report goes into it: omit --out")
        data = placed(
            read_by_all(source, lambda: load_dataset(resolved.data, resolved.model, screen))
        )
        names = tuple(collectives.from_first(lambda: list(class_names_of(path / "teacher"))))
        classes_checked(data, names, resolved.model.num_classes)
        with captured.permitted(graph), ModelRun(path, resolved, screen).open() as run:
            if not collectives.from_first((path / "teacher").is_dir):
                raise UsageError(
                    f"the run {model} has no teacher yet: continue it with the command that began "
                    "it"
                )
            report_run(run, data, resolved.eval.steps, where)
        return
    loaded = cast_to_precision(collectives.together(lambda: load_model(path, where)), found)
    loaded = guided(loaded, resolved.eval.guidance)
    data = placed(read_by_all(source, lambda: _seen_by(loaded, resolved, screen)))
    classes_checked(data, loaded.class_names, loaded.num_classes)
    evaluator = Evaluator.of(data, resolved, where, screen, loaded)
    folder = path.parent / f"eval-{path.name}" if out is None else run_dir(resolved, out)
    collectives.from_first(lambda: check_out(folder))
    collectives.from_first(lambda: _make(folder))
    inside = lies_in_run and config is None
    weights = AS_GIVEN
    if inside:
        weights = collectives.from_first(lambda: averaging(path, resolved, bool(loaded.steps)))
    with captured.permitted(graph):
        report_model(
            path.name, loaded, Run(folder, resolved, screen), evaluator, {"model": weights}
        )


def _asked_of(
    path: Path, is_run: bool, config: Config | str | Path | None, asked: dict[str, Any]
) -> tuple[Record | None, Config]:
    """Return the record of the run whose data are used, if there is one, and the config."""
    saved, begun = Config(), None
    if is_run:
        saved, begun = record.read(path / "config.toml")
    elif config is None and (path.parent / "config.toml").is_file():
        saved, begun = record.find(path.parent / "config.toml")
    if not is_run and "data" in asked:
        begun = None  # of a single model, the data that the call names need not be the run's
    return begun, absolute_config(changed_config(saved if config is None else config, asked))


def _check_data(path: Path, begun: Record, data: Digest, screen: Screen) -> None:
    """Raise UsageError if the data are not those that the run was begun with."""
    if not begun.data.known:
        screen.warn(
            f"{path} is of a run that pdfast {begun.begun_by} began, which kept no digest of the "
            "data: whether these are the same cannot be checked"
        )
    elif begun.data.differ(data):
        raise UsageError(
            f"{path} is of a run of other data ({begun.data}) than these ({data}): put back the "
            "run's data, or pass --other-data to use these"
        )


def _seen_by(model: Model, config: Config, screen: Screen) -> Dataset:
    """Load the data as a model sees them, with labels if model and data have classes."""
    if model.num_classes:
        try:
            return load_dataset(config.data, model.cfg, screen)
        except UsageError as error:
            screen.say(f"no distances by class: {error}")
    return load_dataset(config.data, dataclasses.replace(model.cfg, num_classes=0), screen)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
