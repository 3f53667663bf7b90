"""Saved states of a phase in progress: state/round-RR-update-UUUUUUUUU/, the newest few.

A state has the optimizer's tensors and state.json: round, steps N (0 for the teacher), phase,
update, seconds spent, the whole config, and the digest of the data.

Where rounds keep their moments, state/moments-round-RR/ has those of a finished round in the same
form, until the next round is finished.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pdfast.config import formats
from pdfast.config.formats import Written
from pdfast.config.schema import Config, DistillConfig
from pdfast.config.serialization import from_table, to_table
from pdfast.errors import UsageError
from pdfast.storage import files
from pdfast.storage.digests import UNKNOWN, Digest
from pdfast.storage.files import Damaged

TABLE = "state.json"
KEYS = ("round", "steps", "phase", "update", "seconds", "config", "data")
KEPT = 2
MAX_SECONDS = 1e10
MOMENTS = re.compile(r"moments-round-(\d{2})")
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
    data: Digest = UNKNOWN,
) -> None:
    """Write a state; older ones go when it is whole. Raises PdfastError if it cannot."""
    path = folder / f"round-{round_:02d}-update-{update:09d}"
    write(path, config, round_, update, seconds, tensors, data)
    for old in found(folder, round_)[KEPT:]:
        files.remove(old)


def write(
    path: Path,
    config: Config,
    round_: int,
    update: int,
    seconds: float,
    tensors: dict[str, dict[str, Tensor]],
    data: Digest = UNKNOWN,
) -> None:
    """Write tensors and state.json into a directory. Raises PdfastError if it cannot."""
    files.write(path, tensors, {TABLE: describe(config, round_, update, seconds, data)})


def moments_path(folder: Path, round_: int) -> Path:
    """Where the moments at a round's end lie."""
    return folder / f"moments-round-{round_:02d}"


def describe(
    config: Config, round_: int, update: int, seconds: float, data: Digest
) -> dict[str, Any]:
    """What state.json holds."""
    return {
        **_place(config, round_, update),
        "seconds": seconds,
        "config": to_table(config),
        "data": to_table(data),
    }


def _place(config: Config, round_: int, update: int) -> dict[str, Any]:
    return {
        "round": round_,
        "steps": steps_of(config, round_),
        "phase": "distill" if round_ else "train",
        "update": update,
    }


def load(path: Path, config: Config, data: Digest = UNKNOWN) -> tuple[State, str]:
    """A state of a run of `config`, and what will keep its bits from repeating, if anything will.

    Raises Damaged naming the file, UsageError where the state is of another config or other data,
    or OtherVersion where a version of pdfast wrote it that this one cannot read.
    """
    tensors, tables, manifest = files.read(path)
    if TABLE not in tables:
        raise Damaged(path / files.MANIFEST, f"does not list {TABLE}")
    place = _place_of(path, tables[TABLE], config)
    _check(path, tables[TABLE], files.written(path, manifest), config, data, place)
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
    """Sampling steps N of a round's student; 0 for the teacher, and beyond the plan."""
    return config.distill.steps_after(round_) if round_ else 0


def _place_of(path: Path, table: dict[str, Any], config: Config) -> dict[str, Any]:
    """What state.json has to say of its place by the name of its directory."""
    if match := MOMENTS.fullmatch(path.name):
        return _place(config, int(match[1]), table.get("update", 0))  # of which the name says none
    match = NAME.fullmatch(path.name)
    round_, update = (int(match[1]), int(match[2])) if match else (-1, -1)
    return _place(config, round_, update)


def _check(
    path: Path,
    table: dict[str, Any],
    by: Written,
    config: Config,
    data: Digest,
    place: dict[str, Any],
) -> None:
    """Refuse a state.json of the wrong types, of another place, of another config or other data."""
    round_ = place["round"]
    try:
        whole = formats.complete(path, table, KEYS, by, f"{TABLE}/")
        saved = formats.read(Config, whole["config"], path, by)
        seen = from_table(Digest, whole["data"], "data.")
    except (AttributeError, TypeError, ValueError) as error:
        raise Damaged(path / TABLE, f"holds no whole state: {error}") from None
    for key, value in place.items():
        if type(table[key]) is not type(value) or table[key] != value:
            raise Damaged(path / TABLE, f"has {key} {table[key]!r}, where {value!r} belongs")
    seconds = table["seconds"]
    if not isinstance(seconds, int | float) or not 0 <= seconds < MAX_SECONDS:
        raise Damaged(path / TABLE, f"has seconds {seconds!r}, which is no time")
    begun = [table["steps"]] if round_ else []
    changed = differences(saved, config, begun, by_digest=data.known or not seen.known)
    if changed:
        raise UsageError(f"{path} was saved with {', '.join(changed)}: choose another --out")
    if seen.known and data.known and seen != data:
        raise UsageError(
            f"{path} was saved with other data ({seen}) than there are now ({data}): put those "
            "back, or choose another --out"
        )


def differences(
    before: Config, now: Config, begun: Sequence[int], by_digest: bool = False
) -> list[str]:
    """What would keep what was made with one config from being gone on with by another.

    `begun`: steps of the rounds that have been begun; where there is none, [distill] is free.
    `by_digest`: the data are compared by their digests elsewhere, and may lie anywhere.
    """
    free: tuple[str, ...] = FREE_KEYS if begun else (*FREE_KEYS, "distill.")
    free += ("data.source",) if by_digest else ()
    old, new = _flat(to_table(before)), _flat(to_table(now))
    for key in [k for k in {**old, **new} if k.startswith("distill.round_")]:
        old.pop(key, None)
        new.pop(key, None)
    for steps in begun:
        then = _of_round(before.distill, steps)
        old |= then
        new |= then | _of_round(now.distill, steps)
    if begun:  # per round above
        del old["distill.updates"], new["distill.updates"]
    return [
        f"{key} {_shown(value)} (now {_shown(new[key])})"
        for key, value in old.items()
        if new[key] != value and not key.startswith(free)
    ]


def _of_round(distill: DistillConfig, steps: int) -> dict[str, Any]:
    """What the round to so many steps does, in words; nothing of one after the plan's last."""
    if steps < distill.plan[-1]:
        return {}
    of = f"of the {steps}-step round"
    found: dict[str, Any] = {f"updates {of}": distill.updates_of(steps)}
    if steps == distill.start_steps:
        return found
    begins = steps * distill.merged(steps) if steps in distill.plan else 0
    found[f"teacher's steps {of}"] = begins or "(it is not in the plan)"
    own = dict(distill.round_lr), dict(distill.round_ema_decay)
    for name, table in zip(("distill.lr", "distill.ema_decay"), own, strict=True):
        found[f"{name} {of}"] = table.get(steps, f"(as {name})")
    return found


def _shown(value: Any) -> str:
    """A value in a message, words in brackets as they are."""
    return value if isinstance(value, str) and value.startswith("(") else repr(value)


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
