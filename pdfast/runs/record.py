"""config.toml of a run: its config, and in [run] facts about the run.

These are the versions of pdfast that wrote the file and began the run, and the digest of its data.
A copy of the file can be used like any other config.
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

# Keys that may change on resume, but that an older run keeps, so its figures stay comparable.
JUDGED = ("eval.classes",)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The table [run] of config.toml."""

    format: int = FORMAT
    pdfast: str = __version__
    begun_format: int = FORMAT
    """Format in which the run was begun; what that format lacked stays as it was then."""
    begun_by: str = __version__
    data: Digest = UNKNOWN
    """Digest of the data that the run's models learn from."""

    def now(self, data: Digest) -> "Record":
        """Return the record that this version writes for the run.

        Args:
            data: Digest of the data, if known; else the recorded one is kept.
        """
        kept = data if data.known else self.data
        return Record(begun_format=self.begun_format, begun_by=self.begun_by, data=kept)


def dump(config: Config, record: Record) -> str:
    """Return the text of config.toml."""
    return tomli_w.dumps({**to_table(config), RUN: to_table(record)})


def read(path: Path) -> tuple[Config, Record]:
    """Read a run's config.toml, which an older version may have written.

    Returns:
        The config, and the table [run].

    Raises:
        OtherVersion: This version cannot read the file.
        UsageError: No version wrote such a file.
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
        raise UsageError(f"{error}; restore the config that the run was started with") from None


def find(path: Path) -> tuple[Config, Record | None]:
    """Read a config file that need not be a run's: a user's config has no record, so None.

    Raises what `read` and `load_config` raise.
    """
    try:
        by, _ = written(path, read_toml(path))
    except ValueError:
        by = None
    return (load_config(path), None) if by is None else read(path)


def refuse_newer(path: Path) -> None:
    """Check that a config.toml is not of a newer format.

    Raises:
        OtherVersion: It is.
    """
    with contextlib.suppress(ValueError):  # a file that no version wrote
        written(path, read_toml(path))


def as_begun(saved: Config, record: Record, asked: Config) -> tuple[Config, list[str]]:
    """Return the config to resume a run that an older format began.

    Fields that the older format lacked keep the run's values, whatever is asked for. Fields that
    may change on resume take the values asked for, except those in JUDGED, so that the run's
    figures stay comparable.

    Args:
        saved: The run's config.
        record: The run's record.
        asked: The config asked for.

    Returns:
        The config, and the keys whose values differ from those asked for, with the values used.
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
