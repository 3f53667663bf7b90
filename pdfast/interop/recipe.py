"""A config to distil an imported model by, and the command, as the imports write them."""

import shlex
from pathlib import Path

import tomli_w

from pdfast.config.loops import halvings
from pdfast.config.schema import EvalConfig
from pdfast.config.serialization import to_table
from pdfast.console.progress import Screen
from pdfast.diffusion.timesteps import FEW, between, start_for
from pdfast.models.model import Model
from pdfast.storage import files
from pdfast.storage.marks import marked_text


def write_config(path: Path, model: Model, out: Path, screen: Screen) -> None:
    """A config to distil the model in `out` by, if it can be, and the command."""
    plan = rounds_from(model)
    if plan is None:
        screen.say(f"{model.steps} steps cannot be halved, so there is no config to distil it by")
        return
    cfg = model.cfg
    parameterization = (
        "v" if cfg.parameterization == "eps" else cfg.parameterization
    )  # eps-hat says nothing of x at low SNR
    table = {
        "model": to_table(cfg.without_dropout()) | {"parameterization": parameterization},
        "distill": dict(zip(("start_steps", "rounds"), plan, strict=True)),
    }
    if model.schedule.most_steps < EvalConfig().baseline_steps:
        most = model.schedule.most_steps
        few = [k for k in EvalConfig().steps if k <= most]
        table["eval"] = {"baseline_steps": most, "steps": few}
    command = f"pdfast distill --config {_quoted(path)} --teacher {_quoted(out)}"
    text = f"# {command} --data.source YOUR_IMAGES\n\n{tomli_w.dumps(table)}"
    content = marked_text(text.encode())
    files.write_file(path, lambda stage: stage.write_bytes(content))
    if not model.steps and (said := between(plan[0], model.schedule.most_steps)):
        screen.say(said)
    screen.say(
        f"{path}: a config to distil it from {plan[0]} steps in {plan[1]} "
        f"round{'s' * (plan[1] > 1)}"
        + (
            ", the student with a v parameterization, which is fitted first"
            if parameterization != cfg.parameterization
            else ""
        )
        + "; name a folder of images, or an .npz:"
    )
    screen.say(f"{command} --data.source YOUR_IMAGES")


def _quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def rounds_from(model: Model) -> tuple[int, int] | None:
    """Steps to start from, and rounds to end at 4; None where not one halving is possible.

    A student starts from its own steps, a teacher as `start_for` says.
    """
    start = model.steps or start_for(model.schedule.most_steps)
    most = halvings(start)
    if most == 0:
        return None
    rounds = next((k for k in range(1, most + 1) if start >> k <= FEW), most)
    return start, rounds
