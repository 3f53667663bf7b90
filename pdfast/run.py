"""A run directory: its config, models, metrics and saved state.

- config.toml, metrics.jsonl, report.json, report.md, report.png
- teacher/, round-01-steps-4096/ ...: models, each whole or absent
- samples/: pictures; state/: the phase in progress

Of several processes the first alone writes, and answers what is there; every method that reads or
writes is reached by all. The others read models and states, so they need the same file system.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from pdfast import checkpoint, distributed
from pdfast.config import Config, dump_config, load_config, to_table
from pdfast.errors import PdfastError, UsageError
from pdfast.model import Model
from pdfast.progress import Screen

ROUND_DIR = re.compile(r"round-(\d+)-steps-(\d+)")
STATES_KEPT = 2
State = tuple[dict[str, Any], dict[str, dict[str, Tensor]]]  # state.json, and tensors by file
FREE_KEYS = (
    "name",
    "log_every",
    "save_every",
    "eval.",
    "engine.data",
    "distill.rounds",
)  # may change on resume


class Run:
    """A run directory that exists; `Run.start` makes one or goes on with it."""

    def __init__(self, path: Path, config: Config, screen: Screen) -> None:
        self.path, self.config, self.screen = path, config, screen

    @classmethod
    def start(cls, path: Path, config: Config, screen: Screen) -> "Run":
        """Make the directory, or take it up where a run of the same config left it.

        Raises UsageError if it holds a run of a different config or files that are no run's,
        PdfastError if it cannot be written.
        """
        run = cls(path, config, screen)
        distributed.from_first(run._take_up)
        return run

    def _take_up(self) -> None:
        path = self.path
        try:
            if (path / "config.toml").is_file():
                self._refuse_other_config()
            elif path.is_dir() and any(path.iterdir()):
                raise UsageError(f"{path} is not empty and holds no run: choose another --out")
            (path / "samples").mkdir(parents=True, exist_ok=True)
            for folder in (path, path / "samples", path / "state"):
                checkpoint.sweep(folder)
        except OSError as error:
            raise checkpoint.cannot_write(path, error) from None
        self._drop_partial_line()
        self.write_text("config.toml", dump_config(self.config))

    # -- models ----------------------------------------------------------------------------

    @property
    def teacher_dir(self) -> Path:
        """Where the teacher's model goes."""
        return self.path / "teacher"

    def round_dir(self, round_: int) -> Path:
        """Where the student of a round goes."""
        steps = self.config.distill.steps_after(round_)
        return self.path / f"round-{round_:02d}-steps-{steps:04d}"

    def has(self, model_dir: Path) -> bool:
        """Whether a finished model is there (a directory is renamed into place when whole)."""

        def whole() -> bool:
            if model_dir.is_dir() and not (model_dir / checkpoint.MANIFEST).is_file():
                raise PdfastError(
                    f"{model_dir / checkpoint.MANIFEST} is missing: restore it, or remove "
                    f"{model_dir} to have the model made again"
                )
            return model_dir.is_dir()

        return distributed.from_first(whole)

    def save_model(self, model: Model, model_dir: Path, **facts: Any) -> None:
        """Write a model of the run; `facts` go into its manifest."""
        distributed.from_first(lambda: checkpoint.save_model(model, model_dir, **facts))

    def students(self) -> dict[int, Path]:
        """Finished students: sampling steps -> model directory, in order of rounds."""

        def find() -> list[tuple[int, str]]:
            found = []
            for child in sorted(self.path.glob("round-*-steps-*")):
                match = ROUND_DIR.fullmatch(child.name)
                if match and self.has(child):
                    found.append((int(match[2]), child.name))
            return found

        return {steps: self.path / name for steps, name in distributed.from_first(find)}

    # -- config ----------------------------------------------------------------------------

    def _refuse_other_config(self) -> None:
        """Raise UsageError if the directory was started with values that would not be repeated."""
        if not (self.teacher_dir.exists() or self.students() or any(self.path.glob("state/*"))):
            return  # nothing was made yet
        saved = load_config(self.path / "config.toml")
        free: tuple[str, ...] = FREE_KEYS
        begun = self._rounds_begun(saved)
        if not begun:
            free = (*free, "distill.")
        before, now = _flat(to_table(saved)), _flat(to_table(self.config))
        for key in [k for k in {**before, **now} if k.startswith("distill.round_updates")]:
            before.pop(key, None)
            now.pop(key, None)
        for steps in begun:
            key = f"updates of the {steps}-step round"
            before[key] = saved.distill.updates_of(steps)
            now[key] = self.config.distill.updates_of(steps)
        if len(begun) > 0:  # per round above
            before.pop("distill.updates")
            now.pop("distill.updates")
        changed = [
            f"{key} {value!r} (now {now[key]!r})"
            for key, value in before.items()
            if now[key] != value and not key.startswith(free)
        ]
        if changed:
            raise UsageError(
                f"{self.path} was started with {', '.join(changed)}: choose another --out, or "
                "remove what was made with the old value"
            )

    def _rounds_begun(self, saved: Config) -> list[int]:
        """Steps of the rounds that have a model or a saved state."""
        steps = list(self.students())
        for state in self.path.glob("state/round-*-update-*"):
            round_ = int(state.name.split("-")[1])
            if round_ and saved.distill.steps_after(round_) not in steps:
                steps.append(saved.distill.steps_after(round_))
        return steps

    # -- files -----------------------------------------------------------------------------

    def write(self, name: str, save: Callable[[Path], object]) -> None:
        """Have `save` write a file of the run, under another name until it is whole."""
        path = self.path / name
        stage = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")

        def write() -> None:
            try:
                save(stage)
                stage.replace(path)
            except OSError as error:
                raise checkpoint.cannot_write(path, error) from None
            finally:
                if stage.exists():
                    stage.unlink()

        distributed.from_first(write)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run."""
        self.write(name, lambda stage: stage.write_text(text, "utf-8"))

    def save_picture(self, picture: Image.Image, name: str) -> None:
        """Write a PNG into samples/."""
        self.write(f"samples/{name}", picture.save)

    def has_picture(self, name: str) -> bool:
        """Whether samples/ holds this picture."""
        return distributed.from_first((self.path / "samples" / name).is_file)

    # -- metrics ---------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl."""
        return distributed.from_first(self._read_metrics)

    def _read_metrics(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        lines = []
        for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
            try:
                lines.append(dict(json.loads(line), round=int(json.loads(line)["round"])))
            except (ValueError, TypeError, KeyError):
                raise PdfastError(
                    f"{path}, line {number}, is damaged: remove that line (it holds no weights)"
                ) from None
        return lines

    def log(self, **values: Any) -> None:
        """Append one line to metrics.jsonl: the first process's `values`."""

        def append() -> None:
            try:
                with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(values) + "\n")
            except OSError as error:
                raise PdfastError(
                    f"cannot write {self.path / 'metrics.jsonl'}: {checkpoint.reason(error)}; "
                    "finished models and the last saved state are whole"
                ) from None

        distributed.from_first(append)

    def _drop_partial_line(self) -> None:
        """Forget a last line that a crash or a full disk cut short."""
        path = self.path / "metrics.jsonl"
        content = path.read_bytes() if path.is_file() else b""
        if content and not content.endswith(b"\n"):
            whole = content[: content.rfind(b"\n") + 1]
            self.write("metrics.jsonl", lambda stage: stage.write_bytes(whole))

    def rewind_metrics(self, round_: int, update: int) -> None:
        """Drop what an interrupted phase logged after the state that it resumes from."""

        def rewind() -> None:
            lines = self.metrics()
            kept = [m for m in lines if m["round"] != round_ or 0 <= m.get("update", -1) <= update]
            if len(kept) < len(lines):
                self.write_text("metrics.jsonl", "".join(json.dumps(m) + "\n" for m in kept))

        distributed.from_first(rewind)

    # -- state -----------------------------------------------------------------------------

    def _states(self, round_: int) -> list[Path]:
        """Saved states of a round, newest first."""
        return sorted((self.path / "state").glob(f"round-{round_:02d}-update-*"), reverse=True)

    def save_state(
        self, round_: int, update: int, seconds: float, tensors: dict[str, dict[str, Tensor]]
    ) -> None:
        """Save a phase after `update` updates; older states go when the new one is whole."""

        def save() -> None:
            path = self.path / "state" / f"round-{round_:02d}-update-{update:09d}"
            table = {"round": round_, "update": update, "seconds": seconds}
            checkpoint.write(path, tensors, {"state.json": table})
            for old in self._states(round_)[STATES_KEPT:]:
                shutil.rmtree(old, ignore_errors=True)

        distributed.from_first(save)

    def load_state(self, round_: int) -> State | None:
        """(state.json, tensors) of the newest whole state of a round; None if none was saved."""
        read: list[State] = []

        def newest() -> str | None:
            states = self._states(round_)
            for path in states:
                try:
                    read.append(_read_state(path))
                    return path.name
                except (PdfastError, KeyError) as error:
                    self.screen.warn(f"{error}; trying the state before it")
            if states:
                raise PdfastError(
                    f"no saved state in {self.path / 'state'} is whole: remove that folder to "
                    "start this phase anew"
                )
            return None

        name = distributed.from_first(newest)
        if name is None:
            return None
        return read[0] if read else _read_state(self.path / "state" / name)

    def clear_states(self, round_: int) -> None:
        """Forget the saved states of a round: its model is finished."""

        def clear() -> None:
            for path in self._states(round_):
                shutil.rmtree(path, ignore_errors=True)
            if (self.path / "state").is_dir() and not any((self.path / "state").iterdir()):
                (self.path / "state").rmdir()

        distributed.from_first(clear)


def _read_state(path: Path) -> State:
    tensors, tables, _ = checkpoint.read(path)
    return tables["state.json"], tensors


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
