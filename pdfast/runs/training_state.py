"""Saved states of a phase in progress: state/round-RR-update-UUUUUUUUU/, the newest few.

A state holds the optimizer's tensors and state.json: round, sampling steps N (0 for the teacher),
phase, update, seconds spent, the whole config, and the digest of the data.

If rounds keep their moments, state/moments-round-RR/ holds those of each finished round, in the
same form.
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
    "engine.compile",  # changes only the rounding
    "engine.data",
    "distill.rounds",
    "distill.teacher",  # compared by its weights
    "distill.max_skipped",
    "train.max_skipped",
)  # may change on resume


def found(folder: Path, round_: int) -> list[Path]:
    """Return the saved states of a round, newest first."""
    states = (p for p in folder.glob(f"round-{round_:02d}-*") if NAME.fullmatch(p.name))
    return sorted(states, reverse=True)


def rounds(folder: Path) -> list[int]:
    """Return the rounds that have a saved state, whole or damaged; 0: the teacher."""
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
    """Write a state, and remove all but the newest KEPT once it is whole.

    Args:
        folder: The folder of the states.
        config: The run's config.
        round_: The round; 0: the teacher.
        update: Number of updates done in the phase.
        seconds: Seconds spent in the phase.
        tensors: Tensors by file name and by name.
        data: Digest of the run's data.

    Raises:
        PdfastError: The state cannot be written.
    """
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
    """Write tensors and state.json into a directory.

    Takes the arguments of `save`, except for `path`, the directory.

    Raises:
        PdfastError: The directory cannot be written.
    """
    files.write(path, tensors, {TABLE: describe(config, round_, update, seconds, data)})


def moments_path(folder: Path, round_: int) -> Path:
    """Return the directory of the moments at a round's end."""
    return folder / f"moments-round-{round_:02d}"


def describe(
    config: Config, round_: int, update: int, seconds: float, data: Digest
) -> dict[str, Any]:
    """Return the contents of state.json."""
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
    """Read a state of a run with this config.

    Args:
        path: The state's directory.
        config: The run's config.
        data: Digest of the run's data.

    Returns:
        The state; and, as a phrase, the versions or machine facts that have changed since it was
            saved and keep the run from repeating bit for bit, "" if none have.

    Raises:
        Damaged: A file is missing or altered; the message names it.
        UsageError: The state is of another config or of other data.
        OtherVersion: A version of pdfast wrote it that this version cannot read.
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
    """Return the sampling steps N of a round's student; 0 for the teacher, and beyond the plan."""
    return config.distill.steps_after(round_) if round_ else 0


def _place_of(path: Path, table: dict[str, Any], config: Config) -> dict[str, Any]:
    """Return the values that state.json must have by the name of its directory."""
    if match := MOMENTS.fullmatch(path.name):
        return _place(config, int(match[1]), table.get("update", 0))  # the name has no update
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
    """Refuse a state.json with wrong types, or of another place, config or data."""
    round_ = place["round"]
    try:
        whole = formats.complete(path, table, KEYS, by, f"{TABLE}/")
        saved = formats.read(Config, whole["config"], path, by)
        seen = from_table(Digest, whole["data"], "data.")
    except (AttributeError, TypeError, ValueError) as error:
        raise Damaged(path / TABLE, f"does not hold a complete state: {error}") from None
    for key, value in place.items():
        if type(table[key]) is not type(value) or table[key] != value:
            raise Damaged(path / TABLE, f"has {key} {table[key]!r}, where {value!r} belongs")
    seconds = table["seconds"]
    if not isinstance(seconds, int | float) or not 0 <= seconds < MAX_SECONDS:
        raise Damaged(path / TABLE, f"has seconds {seconds!r}, which is not a duration")
    begun = [table["steps"]] if round_ else []
    changed = differences(saved, config, begun, by_digest=data.known or not seen.known)
    if changed:
        raise UsageError(f"{path} was saved with {', '.join(changed)}: choose another --out")
    if seen.known and data.known and seen != data:
        raise UsageError(
            f"{path} was saved with other data ({seen}) than the run has now ({data}): restore "
            "the former data, or choose another --out"
        )


UPDATES = "updates "  # begins the phrase for a round's updates


def differences(
    before: Config, now: Config, begun: Sequence[int], by_digest: bool = False
) -> list[str]:
    """List the changes that keep one config from resuming what another config made.

    Args:
        before: The config of what was made.
        now: The config to resume with.
        begun: Sampling steps of the rounds that have begun; before the first round [distill] may
            change.
        by_digest: The data are compared by their digests elsewhere, so `data.source` may change.

    Returns:
        A phrase for each key: the old value and the new one.
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
    if begun:
        counts = [key for key in old if key.startswith(UPDATES)]
        one_key = before.distill.round_updates == now.distill.round_updates
        one_key &= before.distill.updates != now.distill.updates
        if one_key and any(old[key] != new[key] for key in counts):
            for key in counts:  # all of them follow from the one key that was changed
                del old[key], new[key]
        else:  # compared per round
            del old["distill.updates"], new["distill.updates"]
    return [
        f"{key} {_shown(value)} (now {_shown(new[key])})"
        for key, value in old.items()
        if new[key] != value and not key.startswith(free)
    ]


def _of_round(distill: DistillConfig, steps: int) -> dict[str, Any]:
    """Return what the round to `steps` sampling steps does; {} after the last of the plan."""
    if steps < distill.plan[-1]:
        return {}
    of = f"of the {steps}-step round"
    found: dict[str, Any] = {f"{UPDATES}{of}": distill.updates_of(steps)}
    if steps == distill.start_steps:
        return found
    begins = steps * distill.merged(steps) if steps in distill.plan else 0
    found[f"teacher's steps {of}"] = begins or "(it is not in the plan)"
    own = dict(distill.round_lr), dict(distill.round_ema_decay)
    for name, table in zip(("distill.lr", "distill.ema_decay"), own, strict=True):
        found[f"{name} {of}"] = table.get(steps, f"(as {name})")
    return found


def _shown(value: Any) -> str:
    """Format a value for a message; phrases in brackets stay as they are."""
    return value if isinstance(value, str) and value.startswith("(") else repr(value)


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables to one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
