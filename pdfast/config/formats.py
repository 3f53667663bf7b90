"""Formats of what is stored: models, states, runs, evaluations in progress, and what old ones mean.

All share one number, FORMAT, and record it beside the version of pdfast that wrote them. What an
older format lacks means what the version that wrote it did, by the tables below, whatever today's
default is. A newer format, or a field that is not known, is refused by naming the version.

To store a new field, or to give one another form:

1. Where a release has written FORMAT already, raise it by one and begin a new line in the tables.
2. Annotate a new field of a config with `Since`, which says what is meant where it is missing:
   what the versions before did. For other tables ADDED says so.
3. Under CHANGED, say what old values are called now, under RENAMED what a field or table is;
   names are as in ADDED.
4. Run tests/config/test_formats.py: the files of old versions must come to the same results as
   before.

A line of a format that was released never changes again.
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
MAX_FORMAT = 2**31  # that any version could have

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
"""By format: the fields that it was the first to have, and what older ones mean without.

Fields of a config are dotted, as its flags are, by the names that they have today, and come from
their annotations, `Since`; those of other tables follow the table's name and a slash.
"""

BOTH = (("both", "x_eps"),)
CHANGED: Mapping[int, Mapping[str, tuple[tuple[Any, Any], ...]]] = MappingProxyType(
    {
        2: MappingProxyType({"engine.compile": ((False, "off"), (True, "on"))}),
        3: MappingProxyType({"model.parameterization": BOTH, "config.json/parameterization": BOTH}),
    }
)
"""Fields whose values changed their form, by the format that did so: pairs of old and new."""

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
"""Renamed fields and tables, by the format that renamed them: the old and the new name.

Both are dotted, in the same table, which has today's name.
"""


class Since(NamedTuple):
    """Annotates a field of a config that the first format did not have."""

    format: int
    """The first that has it."""
    before: Any
    """What formats without it mean, which need not be the field's default."""


def learn(cls: type[Any], prefix: str = "") -> None:
    """Note the fields of a config's dataclass, and of those in it, that have `Since`."""
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        for mark in getattr(hint, "__metadata__", ()):
            if isinstance(mark, Since):
                ADDED[mark.format][prefix + name] = mark.before
        if dataclasses.is_dataclass(hint):
            learn(typing.cast(type, hint), f"{prefix}{name}.")


class OtherVersion(PdfastError):  # noqa: N818  # nothing is wrong with what is stored
    """Another version of pdfast wrote something that this one cannot read."""


class Written(NamedTuple):
    """Who wrote something that is stored."""

    format: int
    version: str


FIRST = Written(1, ADDED[2]["run/pdfast"])  # which recorded no format


def written(what: object, format_: object, version: object) -> Written:
    """Who wrote `what`, by the format and version that it records; format None: the first.

    Raises OtherVersion for a newer format, ValueError for what is no format.
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
    """A stored table as the dataclass that it is of; what its format lacks is filled in.

    `prefix` comes before its fields' names in ADDED. `sealed`: no hand can have changed it. Raises
    OtherVersion for a field that is not known, ValueError for one that is missing or wrong.
    """
    refuses = sealed or by.version != __version__
    return from_table(cls, _upgraded(cls, table, what, by, prefix, True, refuses), prefix)


def upgraded(cls: type[Any], table: dict[str, Any], what: object, by: Written) -> dict[str, Any]:
    """A table that need not hold every field, such as a user's config, as this format has it.

    Raises OtherVersion for a field that another version knew.
    """
    return _upgraded(cls, table, what, by, "", False, by.version != __version__)


def complete(
    what: object, table: Mapping[str, Any], keys: Iterable[str], by: Written, prefix: str
) -> dict[str, Any]:
    """A stored table of these keys; what its format lacks is filled in.

    Raises as `read`, but looks at no value.
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
    """Whether a table sets just the fields of the first format, all of them.

    Such a config was written by the version of that format, or for it.
    """
    named = with_new_names(table, FIRST.format)[0]
    return set(_leaves(named, _keys(cls))) == set(_keys(cls)) - set(added(1))


def with_new_names(table: Mapping[str, Any], format_: int = 1) -> tuple[dict[str, Any], list[str]]:
    """A config, or part of one, of a format or of any before this, in today's words.

    Returns it with the names and values that are other ones now, in words. A field that is there
    by both names keeps the old one too, which is not known then.
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
    """The table, copied in its place, that would hold the field `key`; None where there is none."""
    of = config
    for part in key.split(".")[:-1]:
        if not isinstance(of.get(part), Mapping):
            return None
        of[part] = dict(of[part])
        of = of[part]
    return of


def _shown(value: Any) -> str:
    """As TOML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def renamed_after(format_: int) -> dict[str, str]:
    """The old names of later formats, in the order that they were given up."""
    later = [RENAMED[number] for number in sorted(RENAMED) if number > format_]
    return {old: new for names in later for old, new in names.items()}


def added(format_: int) -> dict[str, Any]:
    """The fields that formats after this one have, and what they mean without."""
    later = [ADDED[number] for number in sorted(ADDED, reverse=True) if number > format_]
    return {key: value for fields in later for key, value in fields.items()}


def as_before(
    table: Mapping[str, Any], format_: int, prefix: str = "config.json/"
) -> dict[str, Any] | None:
    """A model's config.json as an older format had it; None if that could not say as much."""
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
            if value and not inner:  # a table that all came later
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
    """`whole`: every field must be there. `refuses`: fields that are not known, as `read` does."""
    check(isinstance(table, dict), f"{prefix.rstrip('.') or 'the config'} must be a table")
    for name in reversed(prefix.split(".")[:-1]):  # which renames are told by
        table = {name: table}
    table = with_new_names(table, by.format)[0]
    for name in prefix.split(".")[:-1]:
        table = table[name]
    hints = typing.get_type_hints(cls)
    found = {key: value for key, value in table.items() if key not in hints}
    if found and refuses:
        raise _not_known(what, prefix + next(iter(found)), by)
    if found:
        from_table(cls, found, prefix)  # which names the field most like it
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
    """What a field means that a format lacks. Raises ValueError if the format has it."""
    later = added(by.format)
    if key not in later:
        raise ValueError(f"{key} is missing")
    return _fresh(later[key])


def _fresh(value: Any) -> Any:
    """A value of ADDED as JSON has it, which may be changed."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def value_now(key: str, value: Any, format_: int) -> Any:
    """A value of a format, or of any before this, as this one has it."""
    for number in sorted(CHANGED):
        if number > format_:
            value = counterpart(value, CHANGED[number].get(key, ()))
    return value


def _value_then(key: str, value: Any, format_: int) -> Any:
    """A value of this format as an older one had it."""
    for number in sorted(CHANGED, reverse=True):
        if number > format_:
            value = counterpart(value, [(new, old) for old, new in CHANGED[number].get(key, ())])
    return value


def counterpart(value: Any, pairs: Iterable[tuple[Any, Any]]) -> Any:
    """The second of the pair whose first the value is; the value itself if there is none."""
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
    """The dotted names of a dataclass's fields, and of those of the dataclasses in it."""
    found = []
    for name, hint in typing.get_type_hints(cls).items():
        inner = typing.cast(type, hint)
        nested = dataclasses.is_dataclass(hint)
        found += _keys(inner, f"{prefix}{name}.") if nested else [prefix + name]
    return found


def _leaves(table: Mapping[str, Any], keys: list[str], prefix: str = "") -> list[str]:
    """The dotted names of what a table sets; a table under one of `keys` is one value."""
    found = []
    for name, value in table.items():
        key = prefix + name
        nested = isinstance(value, dict) and key not in keys
        found += _leaves(value, keys, f"{key}.") if nested else [key]
    return found
