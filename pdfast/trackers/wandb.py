"""Weights & Biases tracker: one W&B run per run, resumed with it; its files are in <run>/wandb.

W&B's environment variables are respected (WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY and
others), except for those of id, resume and folder, which the run sets. W&B cannot delete logged
data, so when a resumed run repeats updates, only points that W&B does not have are logged.
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
    """Start the tracker of a run directory.

    wandb's errors pass through, such as those of a missing login or network.
    """
    return WandB(run, config)


class WandB:
    """A logger of a run's metrics and files to W&B, which keeps a record of what W&B has."""

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
        """Do nothing: W&B keeps the points that it has."""

    def add(self, point: Point) -> None:
        """Log the point as a row of W&B's history; points of one step share a row."""
        step, keys = point.step, list(point.values)
        last = self._given["step"]
        if step < last or (step == last and set(keys) <= set(self._given["keys"])):
            return
        self._log(point.values, step)
        self._given["keys"] = keys if step > last else [*self._given["keys"], *keys]
        self._given["step"] = step

    def picture(self, name: str, path: Path, step: int) -> None:
        """Log a picture that W&B does not have."""
        if self._is_new(path):
            self._log({name: wandb.Image(str(path))}, step)

    def report(self, run: Path, step: int) -> None:
        """Log report.html, and the distances as a table."""
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
        """Record what W&B has."""
        if self._run.disabled:  # W&B has nothing
            return
        text = json.dumps(self._given)
        if text != self._noted:
            stage = self._note.with_suffix(".tmp")
            stage.write_text(text, "utf-8")
            stage.replace(self._note)
            self._noted = text

    def close(self, code: int) -> None:
        """End W&B's run with this exit status, and wait until everything is uploaded."""
        self._run.finish(exit_code=code)

    def _is_new(self, path: Path) -> bool:
        """Return whether W&B lacks this version of a file."""
        files, version = self._given["files"], path.stat().st_mtime_ns
        had, files[path.name] = files.get(path.name), version
        return bool(had != version)

    def _log(self, values: dict[str, Any], step: int) -> None:
        """Log values at a step, or at W&B's own if that is later: its earlier rows are closed."""
        self._run.log(values, step=max(step, self._run.step))
