"""A run directory: its config, models, metrics and saved states.

- config.toml, metrics.jsonl, report.html, report.json, report.md, report.png
- log.txt: what was said on the screen, of all resumptions
- teacher/, round-01-steps-4096/ ...: models, each whole or absent
- samples/: pictures; state/: the phase in progress; .lock: whose it is at the moment
- tensorboard/, wandb/: what trackers keep; eval-state/: an evaluation in progress
- not-finite-round-00-update-000000123/ ...: what an update began from that would not be finite
- round-01-steps-4096.damaged/ ...: what was found damaged, and made again

`Run.start` takes it up: alone, and with what is damaged in it put aside or refused. Of several
processes the first alone writes, and answers what is there; every method that reads or writes is
reached by all. The others read models and states, so they need the same file system.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pdfast import checkpoint, damage, distributed, failure, files, states
from pdfast.config import Config, Head, dump_config, load_config
from pdfast.damage import Finding
from pdfast.errors import PdfastError, UsageError
from pdfast.lock import LOCK, Lock
from pdfast.log import LOG
from pdfast.metrics import Metrics
from pdfast.model import Model
from pdfast.network import Network
from pdfast.progress import Screen
from pdfast.states import State
from pdfast.tracking import Tracking

ROUND_DIR = re.compile(r"round-(\d+)-steps-(\d+)")
Resume = Literal["auto", "strict", "never"]


class Networks(NamedTuple):
    """Networks of one's own that the run's models are of, and that they begin as.

    None: pdfast's, by the config.
    """

    teacher: Network | None = None
    student: Network | None = None


BUILT_IN = Networks()


class Run:
    """A run directory that exists; `start` makes one or goes on with it, `open` reports on it.

    As a context manager it lets other processes in at the end of the block.
    """

    def __init__(
        self, path: Path, config: Config, screen: Screen, networks: Networks = BUILT_IN
    ) -> None:
        """Use a folder as it is, without its lock."""
        self.path, self.config, self.screen = path, config, screen
        self.networks = networks
        self._metrics = Metrics(path / "metrics.jsonl")
        self._lock: Lock | None = None
        self._tracking: Tracking | None = None

    @classmethod
    def start(
        cls,
        path: Path,
        config: Config,
        screen: Screen,
        resume: Resume = "auto",
        networks: Networks = BUILT_IN,
    ) -> "Run":
        """Make the directory, or take it up where a run of the same config left it.

        `resume` says what becomes of a run that is there. auto: it is gone on with; a damaged
        model of a round, or saved state, is put aside under another name, and what it held is
        done again. strict: whatever is damaged is refused. never: the run is refused.

        Raises UsageError if it holds a run of a different config or files that are no run's,
        PdfastError if it cannot be written, another process works in it, or what is damaged
        could only be made again from nothing.
        """
        run = cls(path, config, screen, networks)
        distributed.from_first(lambda: run._locked(lambda: run._take_up(resume), resume))
        return run

    @classmethod
    def open(cls, path: Path, config: Config, screen: Screen) -> "Run":
        """Use a run that is there, alone; it is left as it is."""
        run = cls(path, config, screen)
        distributed.from_first(lambda: run._locked(lambda: None))
        return run

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if self._tracking is not None:
                self._tracking.close(0 if error is None else getattr(error, "exit_code", 1))
        finally:
            self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        """Write what ended the work to the log, and let others in."""
        try:
            if error is not None:
                if failure.debugging() or not failure.foreseen(error):
                    self.screen.note(failure.trace(error))
                self.screen.note(f"pdfast: {failure.sentence(error)[0]}")
            self.screen.close_log()
        finally:
            if self._lock is not None:
                self._lock.release()

    def track(self, names: Sequence[str]) -> None:
        """Have trackers follow the run until its end; see trackers/. Raises PdfastError."""

        def begin() -> None:
            self._tracking = Tracking(self.path, names, self.screen) if names else None

        distributed.from_first(begin)

    # -- taking it up ----------------------------------------------------------------------

    def _locked(self, work: Callable[[], None], resume: Resume = "auto") -> None:
        """Take the lock, and do the work; without the lock again if it fails."""
        try:
            self._refuse(resume)  # before anything is made there
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.path, self.screen.warn)
            try:
                self._refuse(resume)
                if self._is_run():
                    self.screen.open_log(self.path / LOG)
                work()
                # Of a new run not before it is one: a folder with nothing but a log is no run's.
                self.screen.open_log(self.path / LOG)
            except BaseException as error:
                self._leave(error)
                raise
        except OSError as error:
            raise files.cannot_write(self.path, error) from None

    def _refuse(self, resume: Resume) -> None:
        """Raise UsageError for a folder of other things, or a run where none may be."""
        is_run = self._is_run()
        if is_run and resume == "never":
            raise UsageError(
                f"{self.path} holds a run, which --resume never does not go on with: choose "
                "another --out, or leave --resume away"
            )
        if not is_run and self.path.is_dir():
            theirs = (p.name for p in self.path.iterdir())
            if any(name != LOCK and not files.LEFT.fullmatch(name) for name in theirs):
                raise UsageError(f"{self.path} is not empty and holds no run: choose another --out")

    def _is_run(self) -> bool:
        return (self.path / "config.toml").is_file()

    def _take_up(self, resume: Resume) -> None:
        if self._is_run():
            self._refuse_other_config()
        for folder in (self.path, self.path / "samples", self._states):
            files.sweep(folder)
        if resume == "strict" and self._round_dirs() and not self.teacher_dir.is_dir():
            raise PdfastError(
                f"{self.teacher_dir}, the teacher of the rounds that are there, is gone: put it "
                "back, or pass --resume auto to have it made again"
            )
        self._put_aside(damage.of_models(self.teacher_dir, self._round_dirs()), resume)
        self._put_aside(damage.of_states(self._states, self.config, self._is_finished), resume)
        self._metrics.drop_partial_line()
        self.write_text("config.toml", dump_config(self.config))
        files.make_folder(self.path / "samples")

    def _put_aside(self, found: list[Finding], resume: Resume) -> None:
        """Give what is damaged another name; where --resume is strict, refuse it."""
        for path, error, then in found:
            if resume == "strict":
                raise PdfastError(f"{error}, or pass --resume auto: {then}")
            name = files.set_aside(path).name
            self.screen.warn(f"{error.what}: {path.name} is put aside as {name}, and {then}")

    def _refuse_other_config(self) -> None:
        """Raise UsageError if the directory was started with values that would not be repeated."""
        begun = states.rounds(self._states)
        if not (self.teacher_dir.exists() or self._round_dirs() or begun):
            return  # nothing was made yet
        try:
            saved = load_config(self.path / "config.toml")
        except UsageError as error:
            raise UsageError(
                f"{error}; put back the config that the run was started with"
            ) from None
        steps = {int(match[2]): None for match in self._round_dirs().values()}
        steps |= {states.steps_of(saved, round_): None for round_ in begun if round_}
        changed = states.differences(saved, self.config, list(steps))
        if changed:
            raise UsageError(
                f"{self.path} was started with {', '.join(changed)}: choose another --out, or "
                "remove what was made with the old value"
            )

    # -- models ----------------------------------------------------------------------------

    @property
    def teacher_dir(self) -> Path:
        """Where the teacher's model goes."""
        return self.path / "teacher"

    def round_dir(self, round_: int) -> Path:
        """Where the student of a round goes."""
        steps = self.config.distill.steps_after(round_)
        return self.path / f"round-{round_:02d}-steps-{steps:04d}"

    def _is_finished(self, round_: int) -> bool:
        return (self.round_dir(round_) if round_ else self.teacher_dir).is_dir()

    def has(self, model_dir: Path) -> bool:
        """Whether a finished model is there (a directory is renamed into place when whole)."""
        return distributed.from_first(model_dir.is_dir)

    def save_model(self, model: Model, model_dir: Path, **facts: Any) -> None:
        """Write a model of the run; `facts` go into its manifest."""

        def save() -> None:
            self._check_there()
            self._sync_metrics()
            checkpoint.save_model(model, model_dir, **facts)

        distributed.from_first(save)

    @property
    def student_head(self) -> Head:
        """What the run's students predict."""
        student = self.networks.student
        return self.config.model.head if student is None else student.head

    def load(self, model_dir: Path, device: torch.device) -> Model:
        """A model of the run. Raises UsageError if it is of another network."""
        is_teacher = model_dir == self.teacher_dir
        network = self.networks.teacher if is_teacher else self.networks.student
        return checkpoint.load_model(model_dir, device, network)

    def students(self) -> dict[int, Path]:
        """Finished students: sampling steps -> model directory, in order of rounds."""
        found = distributed.from_first(
            lambda: [(int(match[2]), path.name) for path, match in self._round_dirs().items()]
        )
        return {steps: self.path / name for steps, name in found}

    def begun(self) -> list[int]:
        """Rounds (0: the teacher) that have a saved state."""
        return distributed.from_first(lambda: states.rounds(self._states))

    def _round_dirs(self) -> dict[Path, re.Match[str]]:
        matches = {p: ROUND_DIR.fullmatch(p.name) for p in sorted(self.path.glob("round-*"))}
        return {path: match for path, match in matches.items() if match and path.is_dir()}

    # -- files -----------------------------------------------------------------------------

    def write(self, name: str, save: Callable[[Path], object]) -> None:
        """Have `save` write a file of the run, under another name until it is whole."""

        def write() -> None:
            self._check_there()
            files.write_file(self.path / name, save)

        distributed.from_first(write)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run."""
        self.write(name, lambda stage: stage.write_text(text, "utf-8"))

    def save_picture(self, picture: Image.Image, name: str) -> None:
        """Write a PNG into samples/."""
        self.write(f"samples/{name}", picture.save)

    def has_picture(self, name: str) -> bool:
        """Whether samples/ holds this picture."""
        return distributed.from_first((self.path / "samples" / name).is_file)

    def _check_there(self) -> None:
        """Raise PdfastError if the directory is not the one that was locked."""
        if self._lock is not None and not self._lock.is_ours():
            raise PdfastError(
                f"{self.path} is gone: it, or the {LOCK} in it, was removed or replaced while this "
                "process was at work in it, which ends here"
            )

    # -- metrics ---------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl."""
        return distributed.from_first(self._metrics.read)

    def log(self, **values: Any) -> None:
        """Append one line to metrics.jsonl: the first process's `values`."""

        def append() -> None:
            self._check_there()
            self._metrics.append(values)
            if self._tracking is not None:
                self._tracking.check()

        distributed.from_first(append)

    def rewind_metrics(self, round_: int, update: int) -> None:
        """Drop what an interrupted phase logged after the state that it resumes from."""

        def rewind() -> None:
            if update >= 0 and not self._metrics.has(round_):
                self.screen.warn(
                    f"{self._metrics.path} lacks what round {round_} logged up to update {update}: "
                    "it was removed or cut; the run goes on, and its report lacks that too"
                )
            lost = self._metrics.rewind(round_, update)
            if lost:
                self.screen.warn(
                    f"round {round_}: {lost} updates came after the last saved state, and are "
                    "done again"
                )

        distributed.from_first(rewind)

    def _sync_metrics(self) -> None:
        """So that a loss of power leaves no gap before a state or model that is there."""
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
        """Save a phase after `update` updates; older states go when the new one is whole."""

        def save() -> None:
            self._check_there()
            self._sync_metrics()
            try:
                files.make_folder(self._states)
            except OSError as error:
                raise files.cannot_write(self._states, error) from None
            states.save(self._states, self.config, round_, update, seconds, tensors)

        distributed.from_first(save)

    def save_failure(
        self,
        round_: int,
        update: int,
        seconds: float,
        tensors: dict[str, dict[str, Tensor]],
        table: dict[str, Any],
    ) -> Path:
        """Write a phase that cannot go on as it was after `update` updates; gives where it lies.

        It has the form of a state, and `table` beside it in not-finite.json.
        """
        path = self.path / f"not-finite-round-{round_:02d}-update-{update:09d}"

        def save() -> None:
            self._check_there()
            state = states.describe(self.config, round_, update, seconds)
            files.write(path, tensors, {states.TABLE: state, "not-finite.json": table})

        distributed.from_first(save)
        return path

    def load_state(self, round_: int) -> State | None:
        """(state.json, tensors) of a round's newest state; None if none was saved.

        Raises Damaged, or UsageError if it is of another config.
        """

        def newest() -> str:
            return next((path.name for path in states.found(self._states, round_)), "")

        name = distributed.from_first(newest)
        if not name:
            return None
        state, moved = distributed.together(lambda: states.load(self._states / name, self.config))
        if moved:
            self.screen.warn(
                f"{self._states / name} was saved with {moved}: the run goes on, but not to the "
                "bits of an undisturbed one"
            )
        return state

    def clear_states(self, round_: int) -> None:
        """Forget the saved states of a round: its model is finished."""
        distributed.from_first(lambda: states.clear(self._states, round_))
