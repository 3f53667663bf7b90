"""Formats of stored models, states, runs and evaluations in progress, and how old ones are read.

All share one number, FORMAT, and record it beside the version of pdfast that wrote them. A field
that an older format lacks means what the version that wrote it did, whatever the field's default is
today; the tables below define it. A newer format, or an unknown field, is refused with the name of
the version that wrote it.

To store a new field, or to change the form of one:

1. If a release has already written FORMAT, raise it by one and begin a new line in the tables.
2. Annotate a new field of a config with `Since`, whose `before` is the behaviour of the versions
   without it. For other tables, add it to ADDED.
3. Under CHANGED, map old values to new ones; under RENAMED, map old names of fields or tables to
   new ones. Names are as in ADDED.
4. Run tests/config/test_formats.py: files of old versions must still give the same results.

The line of a released format never changes again.
"""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from pdfast.config.serialization import check, from_table
from pdfast.errors import PdfastError
from pdfast.version import __version__

T = TypeVar("T")

FORMAT = 4
MAX_FORMAT = 2**31  # no version has a format this high

UNKNOWN_DATA = MappingProxyType({"num": 0, "images": "", "labels": ""})

ADDED: dict[int, dict[str, Any]] = {
    2: {
        "run/format": 1,
        "run/pdfast": "0.1.0",
        "run/begun_format": 1,
        "run/begun_by": "0.1.0",
        "run/data": UNKNOWN_DATA,
        "state.json/data": UNKNOWN_DATA,
        "config.json/classes": (),
    },
    3: {},
    4: {},
}
"""New fields of each format, with what their absence means in older ones.

Fields of a config have dotted names, as flags do, by today's names, and come from their `Since`
annotations. Fields of other tables follow the table's name and a slash.
"""

BOTH = (("both", "x_eps"),)
CHANGED: Mapping[int, Mapping[str, tuple[tuple[Any, Any], ...]]] = MappingProxyType(
    {
        2: MappingProxyType({"engine.compile": ((False, "off"), (True, "on"))}),
        3: MappingProxyType({"model.parameterization": BOTH, "config.json/parameterization": BOTH}),
    }
)
"""Fields whose values changed, by the format that changed them: pairs of old and new value."""

RENAMED: Mapping[int, Mapping[str, str]] = MappingProxyType(
    {
        3: MappingProxyType(
            {
                "peers": "backends",
                "model.head": "model.parameterization",
                "config.json/head": "config.json/parameterization",
            }
        )
    }
)
"""Renamed fields and tables, by the format that renamed them: old to new name.

Both names are dotted and in the same table, which has today's name.
"""


class Since(NamedTuple):
    """An annotation of a config's field that the first format did not have."""

    format: int
    """First format with the field."""
    before: Any
    """Value that formats without the field imply; it may differ from the field's default."""


def learn(cls: type[Any], prefix: str = "") -> None:
    """Add a config's fields with a `Since` annotation to ADDED.

    Args:
        cls: The config's dataclass; dataclasses in it are included.
        prefix: Prefix of the fields' dotted names.
    """
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        for mark in getattr(hint, "__metadata__", ()):
            if isinstance(mark, Since):
                ADDED[mark.format][prefix + name] = mark.before
        if dataclasses.is_dataclass(hint):
            learn(typing.cast(type, hint), f"{prefix}{name}.")


class OtherVersion(PdfastError):  # noqa: N818  # nothing is wrong with what is stored
    """Another version of pdfast wrote something that this version cannot read."""


class Written(NamedTuple):
    """The format and the version of pdfast that wrote a stored file."""

    format: int
    version: str


FIRST = Written(1, ADDED[2]["run/pdfast"])  # this version recorded no format


def written(what: object, format_: object, version: object) -> Written:
    """Return who wrote a stored file, by the format and version that it records.

    Args:
        what: The file, for messages.
        format_: The recorded format; None for the first, which recorded none.
        version: The recorded version of pdfast.

    Raises:
        OtherVersion: The format is newer than FORMAT.
        ValueError: `format_` is not a format.
    """
    if format_ is None:
        return FIRST
    if type(format_) is not int or not 1 <= format_ < MAX_FORMAT:
        raise ValueError("names no format that a version of pdfast could have")
    by = Written(
        format_, version if isinstance(version, str) and version else "of no known version"
    )
    if format_ > FORMAT:
        raise OtherVersion(
            f"{what} was written by pdfast {by.version}, format {format_}; this is pdfast "
            f"{__version__}, which reads formats up to {FORMAT}: upgrade pdfast"
        )
    return by


def read(
    cls: type[T], table: Any, what: object, by: Written, prefix: str = "", sealed: bool = True
) -> T:
    """Convert a stored table to its dataclass, and fill in the fields that its format lacks.

    Args:
        cls: The dataclass.
        table: The stored table.
        what: The file, for messages.
        by: Who wrote it.
        prefix: Prefix of its fields' names in ADDED.
        sealed: Whether the file is protected by a manifest, so that nobody can have edited it.

    Raises:
        OtherVersion: A field is unknown, and another version may have written it.
        ValueError: A field is missing or wrong.
    """
    refuses = sealed or by.version != __version__
    return from_table(cls, _upgraded(cls, table, what, by, prefix, True, refuses), prefix)


def upgraded(cls: type[Any], table: dict[str, Any], what: object, by: Written) -> dict[str, Any]:
    """Convert a table that may omit fields, such as a user's config, to today's format.

    Args:
        cls: The dataclass that the table is of.
        table: The table.
        what: The file, for messages.
        by: Who wrote it.

    Raises:
        OtherVersion: A field is unknown, and another version wrote it.
    """
    return _upgraded(cls, table, what, by, "", False, by.version != __version__)


def complete(
    what: object, table: Mapping[str, Any], keys: Iterable[str], by: Written, prefix: str
) -> dict[str, Any]:
    """Return a stored table with exactly the given keys, filling in those that its format lacks.

    Args:
        what: The file, for messages.
        table: The stored table. Its values are not checked.
        keys: The keys of today's format.
        by: Who wrote it.
        prefix: Prefix of the keys in ADDED.

    Raises:
        OtherVersion: A key is unknown.
        ValueError: A key is missing.
    """
    wanted, names = list(keys), renamed_after(by.format)
    now = {key: names.get(prefix + key, prefix + key).removeprefix(prefix) for key in table}
    table = {
        now[key]: value_now(prefix + now[key], value, by.format) for key, value in table.items()
    }
    for key in table:
        if key not in wanted:
            raise _not_known(what, prefix + key, by)
    return {key: table[key] if key in table else _before(prefix + key, by) for key in wanted}


def is_first(cls: type[Any], table: Mapping[str, Any]) -> bool:
    """Return whether a table sets exactly the fields of the first format.

    Such a config was written by the version of that format, or for it.
    """
    named = with_new_names(table, FIRST.format)[0]
    return set(_leaves(named, _keys(cls))) == set(_keys(cls)) - set(added(1))


def with_new_names(table: Mapping[str, Any], format_: int = 1) -> tuple[dict[str, Any], list[str]]:
    """Convert names and values of a config's table, or part of one, to today's.

    A field that is set by both its old and its new name keeps the old one, which is then refused as
    unknown.

    Args:
        table: The table.
        format_: The table's format, or an older one.

    Returns:
        The converted table, and a sentence on each name or value that has changed.
    """
    found, said = dict(table), []
    for old, new in renamed_after(format_).items():
        of, last, name = _table_of(found, old), old.rpartition(".")[2], new.rpartition(".")[2]
        if of is not None and last in of and name not in of:
            of[name] = of.pop(last)
            said.append(f"{old} is called {new} now")
    for key in {key for fields in CHANGED.values() for key in fields}:
        of, name = _table_of(found, key), key.rpartition(".")[2]
        if of is not None and name in of:
            then, of[name] = of[name], value_now(key, of[name], format_)
            if of[name] is not then:
                said.append(f"{key} {_shown(then)} is called {_shown(of[name])} now")
    return found, said


def _table_of(config: dict[str, Any], key: str) -> dict[str, Any] | None:
    """Copy, in its place, the table that holds the field `key`, and return it; None if missing."""
    of = config
    for part in key.split(".")[:-1]:
        if not isinstance(of.get(part), Mapping):
            return None
        of[part] = dict(of[part])
        of = of[part]
    return of


def _shown(value: Any) -> str:
    """Return a value as TOML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def renamed_after(format_: int) -> dict[str, str]:
    """Return the names that formats after `format_` replaced, old to new, in order."""
    later = [RENAMED[number] for number in sorted(RENAMED) if number > format_]
    return {old: new for names in later for old, new in names.items()}


def added(format_: int) -> dict[str, Any]:
    """Return the fields that formats after `format_` added, with what their absence means."""
    later = [ADDED[number] for number in sorted(ADDED, reverse=True) if number > format_]
    return {key: value for fields in later for key, value in fields.items()}


def as_before(
    table: Mapping[str, Any], format_: int, prefix: str = "config.json/"
) -> dict[str, Any] | None:
    """Convert a model's config.json to an older format.

    Args:
        table: The table in today's format.
        format_: The older format.
        prefix: Prefix of the table's keys in ADDED.

    Returns:
        The converted table; None if the older format cannot express it.
    """
    later, former = added(format_), {new: old for old, new in renamed_after(format_).items()}
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = prefix + key
        if name in later:
            if value != _fresh(later[name]):
                return None
            continue
        if isinstance(value, dict):
            inner = as_before(value, format_, f"{name.removeprefix('config.json/')}.")
            if inner is None:
                return None
            if value and not inner:  # the whole table came later
                continue
            value = inner
        name = former.get(name, name)
        found[name.removeprefix(prefix)] = _value_then(prefix + key, value, format_)
    return found


def _upgraded(
    cls: type[Any],
    table: Any,
    what: object,
    by: Written,
    prefix: str,
    whole: bool,
    refuses: bool,
) -> dict[str, Any]:
    """Convert a table to today's format.

    Args:
        cls: The dataclass that the table is of.
        table: The table.
        what: The file, for messages.
        by: Who wrote it.
        prefix: Prefix of its fields' names in ADDED.
        whole: Whether every field of its format must be there.
        refuses: Whether an unknown field raises OtherVersion, rather than UsageError.
    """
    check(isinstance(table, dict), f"{prefix.rstrip('.') or 'the config'} must be a table")
    for name in reversed(prefix.split(".")[:-1]):  # renames are by the full dotted name
        table = {name: table}
    table = with_new_names(table, by.format)[0]
    for name in prefix.split(".")[:-1]:
        table = table[name]
    hints = typing.get_type_hints(cls)
    found = {key: value for key, value in table.items() if key not in hints}
    if found and refuses:
        raise _not_known(what, prefix + next(iter(found)), by)
    if found:
        from_table(cls, found, prefix)  # its error names the most similar field
    for name, hint in hints.items():
        key = prefix + name
        if dataclasses.is_dataclass(hint):
            inner, of = table.get(name, {}), typing.cast(type, hint)
            found[name] = _upgraded(of, inner, what, by, f"{key}.", whole, refuses)
        elif name in table:
            found[name] = table[name]
        elif whole or key in added(by.format):
            found[name] = _before(key, by)
    return found


def _before(key: str, by: Written) -> Any:
    """Return the value of a field that a format lacks. Raises ValueError if the format has it."""
    later = added(by.format)
    if key not in later:
        raise ValueError(f"{key} is missing")
    return _fresh(later[key])


def _fresh(value: Any) -> Any:
    """Return a mutable copy of a value of ADDED, as JSON has it."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def value_now(key: str, value: Any, format_: int) -> Any:
    """Convert a field's value of format `format_`, or an older one, to today's."""
    for number in sorted(CHANGED):
        if number > format_:
            value = counterpart(value, CHANGED[number].get(key, ()))
    return value


def _value_then(key: str, value: Any, format_: int) -> Any:
    """Convert a field's value of today's format to format `format_`."""
    for number in sorted(CHANGED, reverse=True):
        if number > format_:
            value = counterpart(value, [(new, old) for old, new in CHANGED[number].get(key, ())])
    return value


def counterpart(value: Any, pairs: Iterable[tuple[Any, Any]]) -> Any:
    """Return the second of the pair whose first is `value`, or `value` if there is no such pair."""
    for one, other in pairs:
        if type(value) is type(one) and value == one:
            return other
    return value


def _not_known(what: object, key: str, by: Written) -> OtherVersion:
    return OtherVersion(
        f"{what} was written by pdfast {by.version}, format {by.format}, and has {key}, which this "
        f"version, pdfast {__version__}, does not know: use that version, or a newer one"
    )


def _keys(cls: type[Any], prefix: str = "") -> list[str]:
    """Return the dotted names of a dataclass's fields, nested dataclasses included."""
    found = []
    for name, hint in typing.get_type_hints(cls).items():
        inner = typing.cast(type, hint)
        nested = dataclasses.is_dataclass(hint)
        found += _keys(inner, f"{prefix}{name}.") if nested else [prefix + name]
    return found


def _leaves(table: Mapping[str, Any], keys: list[str], prefix: str = "") -> list[str]:
    """Return the dotted names that a table sets. A table under one of `keys` is one value."""
    found = []
    for name, value in table.items():
        key = prefix + name
        nested = isinstance(value, dict) and key not in keys
        found += _leaves(value, keys, f"{key}.") if nested else [key]
    return found
