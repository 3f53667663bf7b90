"""A run directory: its config, models, metrics and saved state.

config.toml  metrics.jsonl  report.json  report.md  report.png
teacher/  round-01-steps-4096/ ...   models, each whole or absent
samples/  state/                     pictures; the phase in progress
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from pdfast import checkpoint
from pdfast.config import Config, dump_config, load_config, to_table
from pdfast.errors import PdfastError, UsageError
from pdfast.progress import Screen

ROUND_DIR = re.compile(r"round-(\d+)-steps-(\d+)")
STATES_KEPT = 2


def round_name(round_: int, steps: int) -> str:
    """Name of the directory of round `round_`, whose student has `steps` sampling steps."""
    return f"round-{round_:02d}-steps-{steps:04d}"


class Run:
    """An opened run directory; `Run(path, config)` starts one or goes on with it."""

    def __init__(self, path: Path, config: Config, screen: Screen) -> None:
        """Raises UsageError if the directory holds a run of a different config."""
        self.path, self.config, self.screen = path, config, screen
        try:
            self._refuse_other_config()
            (path / "samples").mkdir(parents=True, exist_ok=True)
            for folder in (path, path / "state"):
                checkpoint.sweep(folder)
        except OSError as error:
            raise checkpoint.cannot_write(path, error) from None
        self.write_text("config.toml", dump_config(config))

    @property
    def teacher_dir(self) -> Path:
        """Where the teacher's model goes."""
        return self.path / "teacher"

    def round_dir(self, round_: int) -> Path:
        """Where the student of a round goes."""
        return self.path / round_name(round_, self.config.distill.steps_after(round_))

    def has(self, model_dir: Path) -> bool:
        """Whether a finished model is there (a directory is renamed into place when whole)."""
        return (model_dir / checkpoint.MANIFEST).is_file()

    def _refuse_other_config(self) -> None:
        if not (self.path / "config.toml").is_file():
            return
        saved, asked = load_config(self.path / "config.toml"), self.config
        free = {"name", "log_every", "save_every", "eval"}
        if not any(self.path.glob("round-*")) and not any(self.path.glob("state/round-*")):
            free |= {"distill"}
        before, now = to_table(saved), to_table(asked)
        before["distill"].pop("rounds")
        now["distill"].pop("rounds")
        changed = [
            f"{name} {old!r} (now {now_[name]!r})"
            for table, old_, now_ in _pairs(before, now)
            if table not in free
            for name, old in old_.items()
            if now_[name] != old
        ]
        if changed:
            raise UsageError(
                f"{self.path} was started with {', '.join(changed)}: "
                "choose another --out, or remove it to start anew"
            )

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the run so that it is never half there."""
        stage = self.path / f".{name}.tmp"
        try:
            stage.write_text(text, "utf-8")
            stage.replace(self.path / name)
        except OSError as error:
            raise checkpoint.cannot_write(self.path, error) from None

    def has_picture(self, name: str) -> bool:
        """Whether samples/ holds this picture."""
        return (self.path / "samples" / name).is_file()

    def save_picture(self, picture: Image.Image, name: str) -> None:
        """Write a PNG into samples/, never half of one."""
        stage = self.path / "samples" / f".{name}"
        try:
            picture.save(stage)
            stage.replace(self.path / "samples" / name)
        except OSError as error:
            raise checkpoint.cannot_write(self.path / "samples" / name, error) from None

    # -- metrics ---------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]

    def log(self, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        try:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise PdfastError(
                f"cannot write {self.path / 'metrics.jsonl'}: {checkpoint.reason(error)}; "
                "finished models and the last saved state are whole"
            ) from None

    def rewind_metrics(self, round_: int, update: int) -> None:
        """Drop what an interrupted phase logged after the state that it resumes from."""
        lines = self.metrics()
        kept = [m for m in lines if m["round"] != round_ or 0 <= m.get("update", -1) <= update]
        if len(kept) < len(lines):
            self.write_text("metrics.jsonl", "".join(json.dumps(m) + "\n" for m in kept))

    # -- state -----------------------------------------------------------------------------

    def _states(self, round_: int) -> list[Path]:
        """Saved states of a round, newest first."""
        return sorted((self.path / "state").glob(f"round-{round_:02d}-update-*"), reverse=True)

    def save_state(self, round_: int, update: int, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Save a phase after `update` updates; older states go when the new one is whole."""
        path = self.path / "state" / f"round-{round_:02d}-update-{update:09d}"
        checkpoint.write(path, tensors, {"state.json": {"round": round_, "update": update}})
        for old in self._states(round_)[STATES_KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def load_state(self, round_: int) -> tuple[int, dict[str, dict[str, Tensor]]] | None:
        """(update, tensors) of the newest whole state of a round; None if none was saved."""
        states = self._states(round_)
        for path in states:
            try:
                tensors, tables, _ = checkpoint.read(path)
                return int(tables["state.json"]["update"]), tensors
            except (PdfastError, KeyError) as error:
                self.screen.warn(f"{error}; trying the state before it")
        if states:
            raise PdfastError(
                f"no saved state in {self.path / 'state'} is whole: remove that folder to start "
                "this phase anew"
            )
        return None

    def clear_states(self) -> None:
        """Forget saved states: the phase's model is finished."""
        shutil.rmtree(self.path / "state", ignore_errors=True)


def _pairs(
    before: dict[str, Any], now: dict[str, Any]
) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(table, old, new) with full key names, for every table and the top-level fields."""
    pairs = []
    for key, old in before.items():
        if isinstance(old, dict):
            names = {f"{key}.{name}": value for name, value in old.items()}
            pairs.append((key, names, {f"{key}.{name}": v for name, v in now[key].items()}))
        else:
            pairs.append((key, {key: old}, {key: now[key]}))
    return pairs


def students(path: Path) -> dict[int, Path]:
    """Finished students of a run: sampling steps -> model directory, in order of rounds."""
    found = {}
    for child in sorted(path.glob("round-*-steps-*")):
        match = ROUND_DIR.fullmatch(child.name)
        if match and (child / checkpoint.MANIFEST).is_file():
            found[int(match[2])] = child
    return found
