"""config.toml of a run: its config, and in [run] who wrote it, who began the run, and its data.

A copy of it is a config like any other.
"""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from pdfast.config import formats
from pdfast.config.formats import FIRST, FORMAT
from pdfast.config.schema import RUN, Config, load_config, written
from pdfast.config.serialization import from_table, read_toml, to_table
from pdfast.errors import UsageError
from pdfast.runs.training_state import FREE_KEYS
from pdfast.storage.digests import UNKNOWN, Digest
from pdfast.version import __version__

# What may change on resume, but an older run keeps, so that its figures stay comparable.
JUDGED = ("eval.classes",)


@dataclass(frozen=True, kw_only=True)
class Record:
    """[run]."""

    format: int = FORMAT
    pdfast: str = __version__
    begun_format: int = FORMAT
    """That the run was begun in: what it lacked stays as it was there."""
    begun_by: str = __version__
    data: Digest = UNKNOWN
    """Of what the run's models have learned from."""

    def now(self, data: Digest) -> "Record":
        """What this version writes of the run, whose data are, where known, these."""
        kept = data if data.known else self.data
        return Record(begun_format=self.begun_format, begun_by=self.begun_by, data=kept)


def dump(config: Config, record: Record) -> str:
    """The text of config.toml."""
    return tomli_w.dumps({**to_table(config), RUN: to_table(record)})


def read(path: Path) -> tuple[Config, Record]:
    """A config.toml of a run, which an older version may have written.

    Raises OtherVersion for one that this version cannot read, UsageError for what no version wrote.
    """
    keys = [field.name for field in dataclasses.fields(Record)]
    try:
        table = read_toml(path)
        try:
            by, run = written(path, table)
            by = by or FIRST
            record = formats.complete(path, run, keys, by, f"{RUN}/")
            config = formats.read(Config, table, path, by, sealed=False)
            return config, from_table(Record, record, f"{RUN}.")
        except ValueError as error:
            raise UsageError(f"{path}: {error}") from None
    except UsageError as error:
        raise UsageError(f"{error}; put back the config that the run was started with") from None


def find(path: Path) -> tuple[Config, Record | None]:
    """The same of a file that need not be a run's: a user's config has no record."""
    try:
        by, _ = written(path, read_toml(path))
    except ValueError:
        by = None
    return (load_config(path), None) if by is None else read(path)


def refuse_newer(path: Path) -> None:
    """Raise OtherVersion for a config.toml of a newer format."""
    with contextlib.suppress(ValueError):  # what no version wrote
        written(path, read_toml(path))


def as_begun(saved: Config, record: Record, asked: Config) -> tuple[Config, list[str]]:
    """The config to go on with in a run that an older format began.

    What that format lacked stays as the run has it, whatever is asked for, unless it may change on
    resume; how its samples are judged does too, so that its figures stay comparable. Also gives
    what is then not as it was asked, in words.
    """
    old, table, kept = to_table(saved), to_table(asked), []
    for key in formats.added(record.begun_format):
        if "/" in key or (key.startswith(FREE_KEYS) and key not in JUDGED):
            continue
        *outer, name = key.split(".")
        was, now = old, table
        for part in outer:
            was, now = was[part], now[part]
        if was[name] != now[name]:
            now[name] = was[name]
            kept.append(f"{key} {was[name]!r}")
    return from_table(Config, table), kept
