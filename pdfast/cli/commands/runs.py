"""`pdfast train` and `pdfast distill`."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tyro.conf import FlagCreatePairsOff

from pdfast.cli.commands.shared import DEFAULT_CONFIG, Fields, Machines
from pdfast.config.names import Resume, TrackerName
from pdfast.config.schema import Config, check_distillable, check_own_teacher, check_trainable


@dataclass(frozen=True, kw_only=True)
class RunCommand(Machines):
    """The flags that `train` and `distill` share."""

    config: str = DEFAULT_CONFIG
    """Name of a config that comes with pdfast, or the path of a TOML file."""
    out: Path | None = None
    """Run directory; by default runs/<name of the config>. A run in it is resumed."""
    resume: Resume = "auto"
    """How to treat a run that --out already holds. auto: continue it; a damaged student or state is
    set aside and made again from what was before it; a damaged teacher is refused. strict: refuse
    any damage. never: refuse the run."""
    track: tuple[TrackerName, ...] = ()
    """Trackers that follow the run: tensorboard (files in the run directory), wandb (Weights &
    Biases, configured by its environment variables). Each needs the extra of its name."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Print the resolved config, parameters, memory, disk, time and rounds, and exit."""
    fields: Fields = field(default_factory=Config)

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of `pdfast.train` and `pdfast.distill`."""
        names = ("out", "device", "threads", "resume", "track", "timeout")
        return {name: getattr(self, name) for name in names}

    def forecast(self, distill: bool) -> None:
        """Carry out `--dry-run`."""
        start = time.perf_counter()
        import pdfast.api  # noqa: F401  # so that the time of the run's imports is counted
        from pdfast.distributed.settings import kept

        with kept():
            self._forecast(distill, start)

    def _forecast(self, distill: bool, start: float) -> None:
        from pdfast.console.progress import Screen
        from pdfast.cost.forecast import forecast
        from pdfast.distributed.device import choose_device

        where, fields = choose_device(self.device, self.threads), self.fields
        teacher = None
        if distill:
            from pdfast.distillation.rounds import load_teacher, with_fit
        if distill and fields.distill.teacher:
            teacher = load_teacher(fields, where).cfg
            fields = with_fit(fields, teacher)
        elif distill:
            check_own_teacher(fields)
            fields = with_fit(fields, fields.model.unguided())
        else:
            check_trainable(fields)
        imports = time.perf_counter() - start
        forecast(fields, where, Screen(), distill, teacher, imports)


@dataclass(frozen=True, kw_only=True)
class Train(RunCommand):
    """Train a teacher in continuous time.

    The defaults shown are those of --config (digits, if none is named).
    A key that a TOML file leaves out has pdfast's own default.
    """

    def run(self) -> None:
        """Run the command."""
        if self.dry_run:
            return self.forecast(distill=False)
        from pdfast.api import train

        train(self.fields, **self.options())


@dataclass(frozen=True, kw_only=True)
class Distill(RunCommand):
    """Halve a teacher's sampling steps, round by round; without --teacher, train it first.

    The defaults shown are those of --config (digits, if none is named).
    A key that a TOML file leaves out has pdfast's own default.
    """

    def run(self) -> None:
        """Run the command."""
        check_distillable(self.fields)
        if self.dry_run:
            return self.forecast(distill=True)
        from pdfast.api import distill

        distill(self.fields, **self.options())
