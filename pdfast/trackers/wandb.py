"""Weights & Biases: a run of its own that a resumed run goes on with; files in <run>/wandb.

The environment counts: WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY and others, but for those of
id, resume and folder, which are the run's.
What W&B has cannot be taken back, so of updates that are done again only what is new is given.
"""

import json
import os
import uuid
from pathlib import Path
from typing import Any

import wandb

from pdfast.config.schema import Config
from pdfast.config.serialization import to_table
from pdfast.trackers import Point

INIT_LIMIT = 30.0  # seconds to reach the server


def start(run: Path, config: Config) -> "WandB":
    """A tracker. Raises what wandb does where it is not logged in, or has no network."""
    return WandB(run, config)


class WandB:
    """Gives a run's numbers and files to W&B, and keeps a note of what it has."""

    def __init__(self, run: Path, config: Config) -> None:
        self._note = run / "wandb" / "pdfast.json"
        self._given: dict[str, Any] = {"id": uuid.uuid4().hex[:8], "step": -1, "keys": []}
        self._given["files"] = {}
        if self._note.is_file():
            self._given = json.loads(self._note.read_text("utf-8"))
        self._noted = ""
        self._note.parent.mkdir(exist_ok=True)
        named = {"project": "pdfast", "name": run.name}
        self._run: Any = wandb.init(
            id=self._given["id"],
            resume="allow",
            dir=run,
            config=to_table(config),
            settings=wandb.Settings(
                console="off", disable_code=True, init_timeout=INIT_LIMIT, silent=True
            ),
            **{key: os.environ.get(f"WANDB_{key.upper()}", given) for key, given in named.items()},
        )
        folder = Path(self._run.dir).parent
        self.where = f"wandb sync {folder}" if self._run.offline else f"{self._run.url}"
        self.flush()

    def begin(self) -> None:
        """W&B keeps what it has."""

    def add(self, point: Point) -> None:
        """A row of its history, at the point's step; those of one step are one row."""
        step, keys = point.step, list(point.values)
        last = self._given["step"]
        if step < last or (step == last and set(keys) <= set(self._given["keys"])):
            return
        self._log(point.values, step)
        self._given["keys"] = keys if step > last else [*self._given["keys"], *keys]
        self._given["step"] = step

    def picture(self, name: str, path: Path, step: int) -> None:
        """An image."""
        if self._is_new(path):
            self._log({name: wandb.Image(str(path))}, step)

    def report(self, run: Path, step: int) -> None:
        """The page as it is, and the distances as a table."""
        if not self._is_new(run / "report.json"):
            return
        found = json.loads((run / "report.json").read_text("utf-8"))
        rows = [
            [int(steps), name, distance]
            for name in ("teacher", "student")
            for steps, distance in found[name].items()
        ]
        table = wandb.Table(columns=["steps", "model", found["metric"]], data=rows)
        page = wandb.Html(str(run / "report.html"), inject=False)
        self._log({"report/page": page, "report/distances": table}, step)

    def flush(self) -> None:
        """Note what W&B has."""
        if self._run.disabled:  # it has nothing
            return
        text = json.dumps(self._given)
        if text != self._noted:
            stage = self._note.with_suffix(".tmp")
            stage.write_text(text, "utf-8")
            stage.replace(self._note)
            self._noted = text

    def close(self, code: int) -> None:
        """Wait until all is uploaded."""
        self._run.finish(exit_code=code)

    def _is_new(self, path: Path) -> bool:
        """Whether W&B has not this version of a file."""
        files, version = self._given["files"], path.stat().st_mtime_ns
        had, files[path.name] = files.get(path.name), version
        return bool(had != version)

    def _log(self, values: dict[str, Any], step: int) -> None:
        """A resumed run has closed the rows that it had."""
        self._run.log(values, step=max(step, self._run.step))
