"""A run directory: its config, models, metrics and saved states.

- config.toml, metrics.jsonl, report.html, report.json, report.md, report.png,
  report-evaluations.png
- log.txt: the screen's lines, of the run and all its resumptions
- teacher/, round-01-steps-4096/ ...: models, each whole or absent
- samples/: pictures; state/: the phase in progress, and with distill.keep_moments each round's
  moments; .lock: names the process that is using the directory
- tensorboard/, wandb/: files of trackers; eval-state/: an evaluation in progress, and of a finished
  one its figures and what the report was made from
- not-finite-round-00-update-000000123/ ...: the state before an update that would not be finite
- round-01-steps-4096.damaged/ ...: a model that was found damaged, and made again

`Run.start` begins or resumes a run: for one process at a time, with damaged directories set aside
or refused. Of several processes only the first writes, and tells the others what the directory
holds, so all must call every method that reads or writes. Models and states are read by all, so all
need the same file system.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

from PIL import Image
from torch import Tensor

from pdfast.config.names import Resume
from pdfast.config.schema import Config, is_dumped
from pdfast.config.serialization import from_table, to_table
from pdfast.console import messages
from pdfast.console.log import LOG
from pdfast.console.progress import Screen
from pdfast.distributed import collectives
from pdfast.errors import PdfastError, UsageError
from pdfast.runs import record, recovery, training_state
from pdfast.runs.metrics_log import Metrics
from pdfast.runs.record import Record
from pdfast.runs.recovery import Finding
from pdfast.runs.training_state import State
from pdfast.storage import files, staging
from pdfast.storage.digests import GIVEN, UNKNOWN, Digest
from pdfast.storage.files import Damaged
from pdfast.storage.lock import LOCK, Lock

ROUND_DIR = re.compile(r"round-(\d+)-steps-(\d+)")


class Tracking(Protocol):
    """Follows a run to show it elsewhere; see trackers/."""

    def check(self) -> None:
        """Report what has failed since the last call."""

    def close(self, code: int) -> None:
        """Finish showing a run that ended with this exit code, and wait for that."""


class Run:
    """A run directory, without its lock until `start` begins or resumes the run.

    From `start` or `open` to the end of a `with` block no other process works in it.
    """

    def __init__(self, path: Path, config: Config, screen: Screen, data: Digest = UNKNOWN) -> None:
        """Describe a run directory; nothing is read or written yet.

        Args:
            path: The directory.
            config: The run's config.
            screen: Where progress and warnings are shown.
            data: Digest of the data that the run's models learn from.
        """
        self.path, self.config, self.screen, self.data = path, config, screen, data
        self._metrics = Metrics(path / "metrics.jsonl")
        self._lock: Lock | None = None
        self._tracking: Tracking | None = None

    def start(self, resume: Resume = "auto") -> Self:
        """Make the directory, or resume the run of the same config and data in it.

        Args:
            resume: What becomes of a run that exists. auto: it is resumed; a damaged student or
                saved state is set aside under another name, and made again. strict: it is resumed
                unless anything is damaged. never: it is refused.

        Returns:
            The run itself, to be used in a `with` block.

        Raises:
            UsageError: The directory holds a run of another config or of other data, a run although
                `resume` is never, or files that are not a run's.
            PdfastError: The directory cannot be written, another process works in it, its damage
                could only be repaired by training from the start, or a newer version of pdfast has
                worked in it.
        """
        collectives.from_first(lambda: self._locked(lambda: self._take_up(resume), resume))
        return self

    def open(self) -> Self:
        """Lock an existing run for this process, and leave it unchanged."""
        collectives.from_first(lambda: self._locked(lambda: None))
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if self._tracking is not None:
                self._tracking.close(0 if error is None else getattr(error, "exit_code", 1))
        finally:
            self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        """Write the error that ended the work to the log, and release the lock."""
        try:
            if error is not None:
                if messages.debugging() or not messages.foreseen(error):
                    self.screen.note(messages.trace(error))
                self.screen.note(f"pdfast: {messages.sentence(error)[0]}")
            self.screen.close_log()
        finally:
            if self._lock is not None:
                self._lock.release()

    def track(self, begin_tracking: Callable[[], Tracking]) -> None:
        """Have trackers follow the run until its end."""

        def begin() -> None:
            self._tracking = begin_tracking()

        collectives.from_first(begin)

    # -- taking it up ----------------------------------------------------------------------

    def _locked(self, work: Callable[[], None], resume: Resume = "auto") -> None:
        """Take the lock and do the work; release the lock if that fails."""
        try:
            self._refuse(resume)  # before anything is made there
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.path, self.screen.warn)
            try:
                self._refuse(resume)
                if self._is_run():
                    self.screen.open_log(self.path / LOG)
                work()
                # A new run's log begins only now: a folder with nothing but a log is not a run.
                self.screen.open_log(self.path / LOG)
            except BaseException as error:
                self._leave(error)
                raise
        except OSError as error:
            raise files.cannot_write(self.path, error) from None

    def _refuse(self, resume: Resume) -> None:
        """Raise UsageError for a folder of other files, or for a run if none may be resumed."""
        is_run = self._is_run()
        if is_run and resume == "never":
            raise UsageError(
                f"{self.path} holds a run already, and --resume never was given: choose "
                "another --out, or omit --resume"
            )
        if not is_run and self.path.is_dir():
            theirs = (p.name for p in self.path.iterdir())
            if any(name != LOCK and not staging.is_left(name) for name in theirs):
                raise UsageError(f"{self.path} is not empty and holds no run: choose another --out")
        if is_run:
            self._refuse_foreign_config()

    def _is_run(self) -> bool:
        return (self.path / "config.toml").is_file()

    def _take_up(self, resume: Resume) -> None:
        begun = self._begun()
        if begun is not None:
            self._refuse_others(*begun)
        for folder in (self.path, self.path / "samples", self._states):
            staging.sweep(folder, locked=self._lock is not None and self._lock.excludes)
        if resume == "strict" and self._round_dirs() and not self.teacher_dir.is_dir():
            raise PdfastError(
                f"{self.teacher_dir}, the teacher of the existing rounds, is missing: restore "
                "it, or pass --resume auto to have it made again"
            )
        self._put_aside(recovery.of_models(self.teacher_dir, self._round_dirs()), resume)
        broken = recovery.of_states(self._states, self.config, self._is_finished, self.data)
        self._put_aside(broken, resume)
        self._metrics.drop_partial_line()
        for path, match in self._round_dirs().items():
            if int(match[2]) < self.config.distill.plan[-1]:
                self.screen.say(
                    f"round {int(match[1])} is no longer in the plan (distill.rounds), and is not "
                    f"used; its model is kept in {path}"
                )
        now = (Record() if begun is None else begun[1]).now(self.data)
        text, path = record.dump(self.config, now), self.path / "config.toml"
        if not path.is_file() or path.read_bytes() != text.encode():
            self.write_text("config.toml", text)
        files.make_folder(self.path / "samples")

    def _put_aside(self, found: list[Finding], resume: Resume) -> None:
        """Rename damaged directories; with --resume strict refuse them."""
        for path, error, then in found:
            if resume == "strict":
                raise PdfastError(f"{error}, or pass --resume auto: {then}")
            name = files.set_aside(path).name
            self.screen.warn(f"{error.what}: {path.name} is set aside as {name}, and {then}")

    def _begun(self) -> tuple[Config, Record] | None:
        """Return the contents of config.toml; None if nothing has been made in the directory."""
        path = self.path / "config.toml"
        if not path.is_file():
            return None
        if self.teacher_dir.exists() or self._round_dirs() or training_state.rounds(self._states):
            return record.read(path)
        record.refuse_newer(path)
        return None

    def _refuse_others(self, saved: Config, begun: Record) -> None:
        """Raise UsageError if the run was begun with another config, or with other data."""
        rounds = training_state.rounds(self._states)
        steps = {int(match[2]): None for match in self._round_dirs().values()}
        of_states = (training_state.steps_of(saved, round_) for round_ in rounds)
        steps |= dict.fromkeys(filter(None, of_states))
        both = begun.data.known and self.data.known
        changed = training_state.differences(saved, self.config, list(steps), by_digest=both)
        if changed:
            config = self.path / "config.toml"
            of_rounds = self.teacher_dir.is_dir() and not training_state.differences(
                saved, self.config, [], by_digest=both
            )
            keep = ""
            if of_rounds:
                keep = f" ({self.path}/round-* and {self._states} alone, to keep the teacher)"
            raise UsageError(
                f"{self.path} was started with {', '.join(changed)}: to continue it as it was, "
                f"pass --config {config} and --out {self.path}; to use the new value, choose "
                f"another --out, or delete {self.path}{keep} and start over"
            )
        if both and begun.data != self.data:
            named = self.config.data.source
            fix = "pass the former data" if named.startswith(GIVEN) else (
                "restore the former data, or name their new place with --data.source"
            )  # fmt: skip
            if named == saved.data.source and not named.startswith(GIVEN):
                raise UsageError(
                    f"the data of {named} have changed since {self.path} was begun (from "
                    f"{begun.data} to {self.data}): {fix}, or choose another --out"
                )
            raise UsageError(
                f"{self.path} was begun with other data ({begun.data}) than "
                f"{'the call gives' if named.startswith(GIVEN) else f'{named} has'} now "
                f"({self.data}): {fix}, or choose another --out"
            )
        if self.data.known and not begun.data.known:
            self.screen.warn(
                f"{self.path} was begun by pdfast {begun.begun_by}, which kept no digest of the "
                "data: whether they are still the same cannot be checked; from now on the run's "
                f"data are these ({self.data})"
            )

    def as_begun(self) -> Config:
        """Return the config to resume with; fields that the first format lacked keep their values.

        All processes must call this before `start`. It changes nothing; see `record.as_begun`.
        """

        def kept() -> dict[str, Any]:
            try:
                begun = self._begun()
            except OSError as error:
                raise files.cannot_write(self.path, error) from None
            if begun is None:
                return {"config": to_table(self.config)}
            config, said = record.as_begun(*begun, self.config)
            if said:
                self.screen.say(
                    f"{self.path} was begun by pdfast {begun[1].begun_by}, and keeps what that "
                    f"version used: {', '.join(said)}"
                )
            return {"config": to_table(config)}

        return from_table(Config, collectives.from_first(kept)["config"])

    def _refuse_foreign_config(self) -> None:
        """Raise UsageError for a config.toml that a user wrote, which would be replaced.

        Once metrics or models exist, the file is the run's, even if it was edited.
        """
        path = self.path / "config.toml"
        begun = self._metrics.path.exists() or self.teacher_dir.exists() or self._round_dirs()
        if begun or not path.is_file():
            return
        if not is_dumped(path.read_text("utf-8", "replace")):
            raise UsageError(
                f"{path} was not written by a run, and is not replaced: choose another --out"
            )

    # -- models ----------------------------------------------------------------------------

    @property
    def teacher_dir(self) -> Path:
        """The directory of the teacher's model."""
        return self.path / "teacher"

    def round_dir(self, round_: int) -> Path:
        """Return the directory of a round's student."""
        steps = self.config.distill.steps_after(round_)
        return self.path / f"round-{round_:02d}-steps-{steps:04d}"

    def _is_finished(self, round_: int) -> bool:
        return (self.round_dir(round_) if round_ else self.teacher_dir).is_dir()

    def has(self, model_dir: Path) -> bool:
        """Return whether a finished model exists: directories are renamed into place when whole."""
        return collectives.from_first(model_dir.is_dir)

    def make_model(self, save: Callable[[], None]) -> None:
        """Have the first process write a model, after syncing the metrics before it to disk."""

        def make() -> None:
            self._check_there()
            self._sync_metrics()
            save()

        collectives.from_first(make)

    def students(self) -> dict[int, Path]:
        """Return the finished students by sampling steps, in the order of rounds."""
        found = collectives.from_first(
            lambda: [(int(match[2]), path.name) for path, match in self._round_dirs().items()]
        )
        return {steps: self.path / name for steps, name in found}

    def begun(self) -> list[int]:
        """Return the rounds (0: the teacher) that have a saved state."""
        return collectives.from_first(lambda: training_state.rounds(self._states))

    def _round_dirs(self) -> dict[Path, re.Match[str]]:
        matches = {p: ROUND_DIR.fullmatch(p.name) for p in sorted(self.path.glob("round-*"))}
        return {path: match for path, match in matches.items() if match and path.is_dir()}

    # -- files -----------------------------------------------------------------------------

    def write(self, name: str, save: Callable[[Path], object]) -> None:
        """Have `save` write a file of the run, under another name until it is whole.

        Args:
            name: The file's path in the run directory.
            save: Writes the file, given a path.

        Raises:
            PdfastError: The file cannot be written.
        """

        def write() -> None:
            self._check_there()
            path = self.path / name
            try:
                files.make_folder(path.parent)
            except OSError as error:
                raise files.cannot_write(path, error) from None
            files.write_file(path, save)

        collectives.from_first(write)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run."""
        self.write(name, lambda stage: stage.write_text(text, "utf-8"))

    def save_picture(self, picture: Image.Image, name: str) -> None:
        """Write a PNG into samples/."""
        self.write(f"samples/{name}", picture.save)

    def has_picture(self, name: str) -> bool:
        """Return whether samples/ holds this picture."""
        return collectives.from_first((self.path / "samples" / name).is_file)

    def _check_there(self) -> None:
        """Raise PdfastError if the directory is not the one that was locked."""
        if self._lock is not None and not self._lock.is_ours():
            raise PdfastError(
                f"{self.path} is gone: it, or the {LOCK} in it, was removed or replaced while this "
                "process was using it: put it back, or choose another --out, and start again"
            )

    # -- metrics ---------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        """Return all lines of metrics.jsonl.

        Raises:
            PdfastError: A line is damaged; the message names it.
        """
        return collectives.from_first(self._metrics.read)

    def log(self, **values: Any) -> None:
        """Append the first process's `values` as one line to metrics.jsonl.

        Raises:
            PdfastError: A value is not finite, or the file cannot be written.
        """

        def append() -> None:
            self._check_there()
            self._metrics.append(values)
            if self._tracking is not None:
                self._tracking.check()

        collectives.from_first(append)

    def rewind_metrics(self, round_: int, update: int) -> None:
        """Drop what an interrupted phase logged after the state that it resumes from.

        Args:
            round_: The round; 0: the teacher.
            update: The state's update; negative: the phase starts again.
        """

        def rewind() -> None:
            if update >= 0 and not self._metrics.has(round_):
                self.screen.warn(
                    f"{self._metrics.path} lacks what round {round_} logged up to update {update}: "
                    "it was removed or cut; the run continues, and its report lacks it too"
                )
            lost = self._metrics.rewind(round_, update)
            if lost:
                self.screen.warn(
                    f"round {round_}: {lost} updates came after the last saved state, and are "
                    "repeated"
                )

        collectives.from_first(rewind)

    def _sync_metrics(self) -> None:
        """Sync the metrics, so that a loss of power leaves no gap before a state or model."""
        try:
            self._metrics.sync()
        except OSError as error:
            raise files.cannot_write(self._metrics.path, error) from None

    # -- states ----------------------------------------------------------------------------

    @property
    def _states(self) -> Path:
        return self.path / "state"

    def save_state(
        self, round_: int, update: int, seconds: float, tensors: dict[str, dict[str, Tensor]]
    ) -> None:
        """Save a phase after `update` updates; older states are removed when the new one is whole.

        Args:
            round_: The round; 0: the teacher.
            update: Number of updates done in the phase.
            seconds: Seconds spent in the phase.
            tensors: Tensors by file name and by name.

        Raises:
            PdfastError: The state cannot be written.
        """

        def save() -> None:
            self._ready_for_states()
            training_state.save(
                self._states, self.config, round_, update, seconds, tensors, self.data
            )

        collectives.from_first(save)

    def save_moments(
        self, round_: int, update: int, seconds: float, tensors: dict[str, dict[str, Tensor]]
    ) -> None:
        """Save the optimizer's moments after a round's last update, for the next round.

        Takes the arguments of `save_state`.
        """

        def save() -> None:
            self._ready_for_states()
            path = training_state.moments_path(self._states, round_)
            training_state.write(path, self.config, round_, update, seconds, tensors, self.data)

        collectives.from_first(save)

    def load_moments(self, round_: int) -> dict[str, dict[str, Tensor]]:
        """Return the tensors that `save_moments` wrote at the end of this round.

        Raises:
            PdfastError: The moments are missing or damaged.
            UsageError: They are of another config.
        """
        path = training_state.moments_path(self._states, round_)
        again = f"remove all rounds in {self.path} to have them made again"
        if not self.has(path):
            raise PdfastError(
                f"round {round_ + 1} begins with the moments of round {round_} "
                f"(distill.keep_moments), and {path} is missing: restore it, {again}, or choose "
                "another --out"
            )
        try:
            state, moved = collectives.together(
                lambda: training_state.load(path, self.config, self.data)
            )
        except Damaged as error:
            raise PdfastError(
                f"{error.what}: round {round_ + 1} begins with these moments "
                f"(distill.keep_moments): put a whole copy of {path} in its place, or {again}"
            ) from None
        if moved:
            self._warn_moved(path, moved)
        return state[1]

    def _ready_for_states(self) -> None:
        """Make the folder of the states, after syncing the metrics."""
        self._check_there()
        self._sync_metrics()
        try:
            files.make_folder(self._states)
        except OSError as error:
            raise files.cannot_write(self._states, error) from None

    def _warn_moved(self, path: Path, moved: str) -> None:
        self.screen.warn(
            f"{path} was saved with {moved}: the run continues, but will not have the bits "
            "of an uninterrupted one"
        )

    def save_failure(
        self,
        round_: int,
        update: int,
        seconds: float,
        tensors: dict[str, dict[str, Tensor]],
        table: dict[str, Any],
    ) -> Path:
        """Write the state before an update that would not be finite, for inspection.

        Args:
            round_: The round; 0: the teacher.
            update: Number of updates done before.
            seconds: Seconds spent in the phase.
            tensors: Tensors by file name and by name.
            table: Contents of not-finite.json, written beside state.json.

        Returns:
            The directory that was written.
        """
        path = self.path / f"not-finite-round-{round_:02d}-update-{update:09d}"

        def save() -> None:
            self._check_there()
            state = training_state.describe(self.config, round_, update, seconds, self.data)
            files.write(path, tensors, {training_state.TABLE: state, "not-finite.json": table})

        collectives.from_first(save)
        return path

    def load_state(self, round_: int) -> State | None:
        """Return (state.json, tensors) of a round's newest state; None if none was saved.

        Raises:
            Damaged: The state is damaged.
            UsageError: The state is of another config or of other data.
        """

        def newest() -> str:
            return next((path.name for path in training_state.found(self._states, round_)), "")

        name = collectives.from_first(newest)
        if not name:
            return None
        path = self._states / name
        state, moved = collectives.together(
            lambda: training_state.load(path, self.config, self.data)
        )
        if moved:
            self._warn_moved(path, moved)
        return state

    def clear_states(self, round_: int) -> None:
        """Remove the saved states of a round whose model is finished."""
        collectives.from_first(lambda: training_state.clear(self._states, round_))
