"""Saved states of a phase in progress: state/round-RR-update-UUUUUUUUU/, the newest few.

A state has the optimizer's tensors and state.json: round, steps N (0 for the teacher), phase,
update, seconds spent, and the whole config.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pdfast import files
from pdfast.config import Config
from pdfast.errors import UsageError
from pdfast.files import Damaged
from pdfast.tables import from_table, to_table

TABLE = "state.json"
KEPT = 2
MAX_SECONDS = 1e10
NAME = re.compile(r"round-(\d{2})-update-(\d{9})")
State = tuple[dict[str, Any], dict[str, dict[str, Tensor]]]  # state.json, and tensors by file
FREE_KEYS = (
    "name",
    "log_every",
    "save_every",
    "eval.",
    "engine.compile",  # another choice changes the rounding alone
    "engine.data",
    "distill.rounds",
    "distill.teacher",  # compared by its weights
    "distill.max_skipped",
    "train.max_skipped",
)  # may change on resume


def found(folder: Path, round_: int) -> list[Path]:
    """Saved states of a round, newest first."""
    states = (p for p in folder.glob(f"round-{round_:02d}-*") if NAME.fullmatch(p.name))
    return sorted(states, reverse=True)


def rounds(folder: Path) -> list[int]:
    """Rounds that have a saved state, whole or not."""
    matches = (NAME.fullmatch(path.name) for path in folder.glob("round-*"))
    return sorted({int(match[1]) for match in matches if match})


def save(
    folder: Path,
    config: Config,
    round_: int,
    update: int,
    seconds: float,
    tensors: dict[str, dict[str, Tensor]],
) -> None:
    """Write a state; older ones go when it is whole. Raises PdfastError if it cannot."""
    path = folder / f"round-{round_:02d}-update-{update:09d}"
    files.write(path, tensors, {TABLE: describe(config, round_, update, seconds)})
    for old in found(folder, round_)[KEPT:]:
        files.remove(old)


def describe(config: Config, round_: int, update: int, seconds: float) -> dict[str, Any]:
    """What state.json holds."""
    return {
        **_place(config, round_, update),
        "seconds": seconds,
        "config": to_table(config),
    }


def _place(config: Config, round_: int, update: int) -> dict[str, Any]:
    return {
        "round": round_,
        "steps": steps_of(config, round_),
        "phase": "distill" if round_ else "train",
        "update": update,
    }


def load(path: Path, config: Config) -> tuple[State, str]:
    """A state of a run of `config`, and what will keep its bits from repeating, if anything will.

    Raises Damaged naming the file, or UsageError where the state is of another config.
    """
    tensors, tables, manifest = files.read(path)
    if TABLE not in tables:
        raise Damaged(path / files.MANIFEST, f"does not list {TABLE}")
    _check(path, tables[TABLE], config)
    then, now = manifest["versions"], files.versions()
    moved = [
        f"{key} {then.get(key)} (now {now[key]})"
        for key in ("torch", "machine", "threads")
        if then.get(key) != now[key]
    ]
    return (tables[TABLE], tensors), ", ".join(moved)


def clear(folder: Path, round_: int) -> None:
    """Remove the states of a round whose model is finished, damaged ones too."""
    for path in folder.glob(f"round-{round_:02d}-update-*"):
        files.remove(path)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def steps_of(config: Config, round_: int) -> int:
    """Sampling steps N of a round's student; 0 for the teacher."""
    return config.distill.steps_after(round_) if round_ else 0


def _check(path: Path, table: dict[str, Any], config: Config) -> None:
    """Refuse a state.json of the wrong types, of another place, or of another config."""
    match = NAME.fullmatch(path.name)
    round_, update = (int(match[1]), int(match[2])) if match else (-1, -1)
    for key, value in _place(config, round_, update).items():
        if type(table.get(key)) is not type(value) or table[key] != value:
            raise Damaged(path / TABLE, f"has {key} {table.get(key)!r}, where {value!r} belongs")
    seconds = table.get("seconds")
    if not isinstance(seconds, int | float) or not 0 <= seconds < MAX_SECONDS:
        raise Damaged(path / TABLE, f"has seconds {seconds!r}, which is no time")
    try:
        saved = from_table(Config, table["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(path / TABLE, f"holds no config: {error}") from None
    changed = differences(saved, config, [table["steps"]] if round_ else [])
    if changed:
        raise UsageError(
            f"{path} was saved with {', '.join(changed)}: choose another --out, or remove the state"
        )


def differences(before: Config, now: Config, begun: Sequence[int]) -> list[str]:
    """What would keep what was made with one config from being gone on with by another.

    `begun`: steps of the rounds that have been begun; where there is none, [distill] is free.
    """
    free: tuple[str, ...] = FREE_KEYS if begun else (*FREE_KEYS, "distill.")
    old, new = _flat(to_table(before)), _flat(to_table(now))
    for key in [k for k in {**old, **new} if k.startswith("distill.round_updates")]:
        old.pop(key, None)
        new.pop(key, None)
    for steps in begun:
        key = f"updates of the {steps}-step round"
        old[key], new[key] = before.distill.updates_of(steps), now.distill.updates_of(steps)
    if begun:  # per round above
        del old["distill.updates"], new["distill.updates"]
    return [
        f"{key} {value!r} (now {new[key]!r})"
        for key, value in old.items()
        if new[key] != value and not key.startswith(free)
    ]


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
