"""The config of a call: its values replaced, its paths absolute, and its run directory."""

import dataclasses
from pathlib import Path
from typing import Any

from pdfast.config import detectors
from pdfast.config.schema import Config, load_config
from pdfast.config.serialization import from_table, to_table
from pdfast.data import sources
from pdfast.errors import UsageError
from pdfast.models import pretrained


def changed_config(config: Config | str | Path, changes: dict[str, Any] | None = None) -> Config:
    """Return the config with some values replaced, given as in TOML, with its types checked."""
    table = to_table(config if isinstance(config, Config) else load_config(config))
    for key, value in (changes or {}).items():
        table[key] = table[key] | value if isinstance(value, dict) else value
    return from_table(Config, table)


def absolute_config(config: Config | str | Path) -> Config:
    """Return the config with absolute paths of data, teacher and detector, with types checked."""
    loaded = changed_config(config)
    data, distill = loaded.data, loaded.distill
    data = dataclasses.replace(data, source=sources.absolute(data.source))
    judged = dataclasses.replace(loaded.eval, detector=detectors.absolute(loaded.eval.detector))
    if distill.teacher:
        teacher = pretrained.find(distill.teacher).absolute()
        distill = dataclasses.replace(distill, teacher=str(teacher))
    return dataclasses.replace(loaded, data=data, distill=distill, eval=judged)


def run_dir(config: Config, out: str | Path | None) -> Path:
    """Return the run directory: `out`, or runs/ and the config's name; check that it is a path."""
    if not isinstance(out, str | Path | None) or out == "" or "\0" in str(out):
        raise UsageError(f"out must be a path, not {out!r}: name a folder, or omit it")
    return Path(out) if out is not None else Path("runs") / config.name
