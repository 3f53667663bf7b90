"""The config to distil an imported model with, which the imports write."""

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
    """Write a config to distil an imported model with, and print the command.

    Nothing is written if the model's steps cannot be halved.

    Args:
        path: The TOML file to write.
        model: The imported model.
        out: Its model directory.
        screen: Where the command is printed.
    """
    plan = rounds_from(model)
    if plan is None:
        screen.say(f"{model.steps} steps cannot be halved, so no config to distil it is written")
        return
    cfg = model.cfg
    parameterization = (
        "v" if cfg.parameterization == "eps" else cfg.parameterization
    )  # eps-hat does not determine x at low SNR
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
    """Return the path quoted for a shell."""
    return shlex.quote(str(path))


def rounds_from(model: Model) -> tuple[int, int] | None:
    """Return the steps to start from and the number of halvings that end at 4 steps or fewer.

    A student starts from its own steps, a teacher from those of `start_for`. Where 4 cannot be
    reached, all possible halvings are made. Returns None if the first number cannot be halved.
    """
    start = model.steps or start_for(model.schedule.most_steps)
    most = halvings(start)
    if most == 0:
        return None
    rounds = next((k for k in range(1, most + 1) if start >> k <= FEW), most)
    return start, rounds
