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
    """What `train` and `distill` share."""

    config: str = DEFAULT_CONFIG
    """Name of a config that comes with pdfast, or the path of a TOML file."""
    out: Path | None = None
    """Run directory; runs/<name of the config> if left out. An unfinished run goes on."""
    resume: Resume = "auto"
    """What becomes of a run that is in --out. auto: it goes on; what is damaged in it is put aside
    and made again, unless that would mean from zero. strict: what is damaged is refused. never:
    the run is refused."""
    track: tuple[TrackerName, ...] = ()
    """Show the run as it goes: tensorboard (in the run directory), wandb (Weights & Biases, as its
    environment variables say). Each needs the extra of its name."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Print the resolved config, parameters, memory, disk, time and rounds, and stop."""
    fields: Fields = field(default_factory=Config)

    def options(self) -> dict[str, Any]:
        """What `pdfast.train` and `pdfast.distill` take beside the config."""
        names = ("out", "device", "threads", "resume", "track", "timeout")
        return {name: getattr(self, name) for name in names}

    def forecast(self, distill: bool) -> None:
        """`--dry-run`."""
        start = time.perf_counter()
        import pdfast.api  # noqa: F401  # all that the run itself imports
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
    """Train a teacher in continuous time."""

    def run(self) -> None:
        """Run the command."""
        if self.dry_run:
            return self.forecast(distill=False)
        from pdfast.api import train

        train(self.fields, **self.options())


@dataclass(frozen=True, kw_only=True)
class Distill(RunCommand):
    """Halve a teacher's sampling steps, round by round; without --teacher, train it first."""

    def run(self) -> None:
        """Run the command."""
        check_distillable(self.fields)
        if self.dry_run:
            return self.forecast(distill=True)
        from pdfast.api import distill

        distill(self.fields, **self.options())
