"""Names of the loss watched before and after each phase, in metrics.jsonl and in words.

Nothing here imports torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pdfast.config.schema import Config

Watched = Literal["fixed_batch_loss", "held_out_loss"]

WORDS: dict[Watched, str] = {
    "fixed_batch_loss": "fixed-batch loss",
    "held_out_loss": "held-out loss",
}
MEANING: dict[Watched, str] = {
    "fixed_batch_loss": (
        "The fixed-batch loss is of a fixed batch of training images, times and noises."
    ),
    "held_out_loss": (
        "The held-out loss is the mean over all images that are held out of training, each at one "
        "time and noise."
    ),
}
# Names of pdfast 0.1.0, whose "held" batch was a fixed one: its images were trained on.
FORMER = {
    "held_loss": "fixed_batch_loss",
    "held_loss_start": "fixed_batch_loss_start",
    "held_loss_end": "fixed_batch_loss_end",
}


def watched(config: Config) -> Watched:
    """Return the watched loss of a run with this config."""
    return "held_out_loss" if config.data.holdout else "fixed_batch_loss"


def logged(lines: Sequence[Mapping[str, Any]]) -> Watched:
    """Return the watched loss of a run by its metrics, whatever the current config says."""
    found = any("held_out_loss_end" in line for line in lines)
    return "held_out_loss" if found else "fixed_batch_loss"


def renamed(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line of metrics.jsonl with the current names."""
    return {FORMER.get(key, key): value for key, value in line.items()}
