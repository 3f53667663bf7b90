"""The config to distil an imported model with, which the imports write."""

import shlex
from pathlib import Path
from typing import NamedTuple

import tomli_w

from pdfast.config.loops import DistillConfig, halvings
from pdfast.config.schema import EvalConfig
from pdfast.config.serialization import to_table
from pdfast.console.progress import Screen
from pdfast.diffusion.timesteps import FEW, between, start_for
from pdfast.models.model import Model
from pdfast.storage import files
from pdfast.storage.marks import marked_text

YOURS = "YOUR_IMAGES"
TRIAL_STEPS, TRIAL_UPDATES = 64, 200  # of the short run that is proposed first


class Plan(NamedTuple):
    """The rounds that are proposed for an imported model."""

    start: int
    """Steps of the first round's teacher."""
    halvings: int
    """Rounds that halve the steps."""
    fits: bool = False
    """Whether a first fit of a student of v to a teacher of eps comes before them."""

    def text(self) -> str:
        """Return the rounds in words."""
        rounds = f"{self.halvings} halving{'s' * (self.halvings > 1)}"
        steps = f"{rounds}, {self.start} to {self.start >> self.halvings} steps"
        if not self.fits:
            return steps
        return (
            f"a first fit of a v student to this eps teacher (round 1 of {self.halvings + 1}), "
            f"then {steps}"
        )


def write_config(path: Path, model: Model, out: Path, screen: Screen) -> None:
    """Write a config to distil an imported model with, and print the command.

    Nothing is written if the model's steps cannot be halved.

    Args:
        path: The TOML file to write.
        model: The imported model.
        out: Its model directory.
        screen: Where the command is printed.
    """
    plan = plan_for(model)
    if plan is None:
        screen.say(f"{model.steps} steps cannot be halved, so no config to distil it is written")
        return
    command = f"pdfast distill --config {_quoted(path)} --teacher {_quoted(out)}"
    command += f" --data.source {YOURS}"
    content = marked_text(_config(model, plan, command).encode())
    files.write_file(path, lambda stage: stage.write_bytes(content))
    if not model.steps and (said := between(plan.start, model.schedule.most_steps)):
        screen.say(said)
    screen.say(f"wrote {path}: {plan.text()}")
    screen.say(f"next, with your pictures (a folder or an .npz) in place of {YOURS}:")
    screen.say(command)
    distill = DistillConfig()
    rounds = f"{plan.halvings} round{'s' * (plan.halvings > 1)} of {distill.updates:,} updates"
    after = f" after a fit of {distill.with_fit().fit_updates:,}" if plan.fits else ""
    screen.say(
        f"this is {rounds}{after}, in batches of {distill.batch}: see its time first, with "
        "--dry-run"
    )
    trial = Path("runs", f"{out.name}-trial")
    screen.say(f"for a trial add {_trial(plan, bool(model.steps))} --out {_quoted(trial)}")


def _config(model: Model, plan: Plan, command: str) -> str:
    """Return the text of the config."""
    network = to_table(model.cfg.without_dropout())
    if plan.fits:
        network["parameterization"] = "v"
    most, distill, judged = model.schedule.most_steps, DistillConfig(), EvalConfig()
    few = [steps for steps in judged.steps if steps <= most]
    fit = f"""\
fit_updates = 0  # of the first fit; 0: four times updates
fit_lr = {distill.fit_lr:g}
"""
    return f"""\
# {command}
# See its time first: add --dry-run.

[data]
source = ""  # a folder of images or an .npz; or pass --data.source

# {plan.text()}
[distill]
start_steps = {plan.start}
rounds = {plan.halvings}
updates = {distill.updates}  # of each round; rounds to 2 steps and to 1 step get twice as many
batch = {distill.batch}
lr = {distill.lr:g}
{fit if plan.fits else ""}
[eval]
steps = {few}  # steps at which the report compares teacher and students
baseline_steps = {min(judged.baseline_steps, most)}  # steps of the teacher's baseline

{tomli_w.dumps({"model": network})}"""


def _trial(plan: Plan, is_student: bool) -> str:
    """Return the flags of a short run; a student keeps the steps to start from."""
    flags = f"--distill.updates {TRIAL_UPDATES}"
    if is_student or plan.start <= TRIAL_STEPS:
        return flags
    rounds = next(k for k in range(1, TRIAL_STEPS) if TRIAL_STEPS >> k <= FEW)
    return f"--distill.start-steps {TRIAL_STEPS} --rounds {rounds} {flags}"


def _quoted(path: Path) -> str:
    """Return the path quoted for a shell."""
    return shlex.quote(str(path))


def plan_for(model: Model) -> Plan | None:
    """Return the steps to start from and the number of halvings that end at 4 steps or fewer.

    A student starts from its own steps, a teacher from those of `start_for`. Where 4 cannot be
    reached, all possible halvings are made. Returns None if the first number cannot be halved.
    """
    start = model.steps or start_for(model.schedule.most_steps)
    most = halvings(start)
    if most == 0:
        return None
    rounds = next((k for k in range(1, most + 1) if start >> k <= FEW), most)
    return Plan(start, rounds, model.parameterization == "eps")
