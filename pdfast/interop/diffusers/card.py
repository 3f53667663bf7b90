"""The model card of an exported pipeline: its call, and its measured accuracy."""

import html
import math
import re
import textwrap

from pdfast.config.schema import NetConfig
from pdfast.diffusion.timesteps import divisors
from pdfast.errors import printable
from pdfast.models.model import Model
from pdfast.version import __version__

PREDICTS = {"x": "x-hat (`sample`)", "eps": "eps-hat (`epsilon`)", "v": "v-hat (`v_prediction`)"}

CARD = """\
---
library_name: diffusers
tags:
- {task}
- progressive-distillation
---

# {title}

`UNet2DModel` and `DDIMScheduler`, exported by pdfast {version}. {made} Images are {size}x{size},
{colour}. The network predicts {predicts}.

## How to call it

In the folder that holds `{folder}`:

```python
{call}
```
{after}
- **Steps.** {steps} The numbers that divide {grid} are safe: {examples}; the pipeline's own
  default, 50, {default}. For all others diffusers rounds the timesteps, but steps down by a fixed
  {grid} // N, so the pictures are worse.{extra}
- **`use_clipped_model_output=True`.** The sampler clips x-hat to [-1, 1], and then computes eps-hat
  from the clipped x-hat. Without it the pictures differ, and are worse.
- **The scheduler.** Keep it: its betas are the schedule that the network was trained on.{labels}

## How exact it is

When this was written, the network's output differed from pdfast's by at most {difference:.0e}, and
the scheduler's float32 alpha-bar from the exact schedule's by {error:.0e}. Timestep k stands for
u = (k + 1) / {grid} of {schedule}.
"""

# Without low_cpu_mem_usage=False, diffusers warns where the package accelerate is missing.
CALL = """\
import torch
from diffusers import DDIMPipeline

pipe = DDIMPipeline.from_pretrained({folder!r}, low_cpu_mem_usage=False)
images = pipe(
    batch_size=4,
    num_inference_steps={steps},
    use_clipped_model_output=True,
    generator=torch.Generator().manual_seed(0),
).images"""

LOOP = """\
import torch
from diffusers import DDIMPipeline

pipe = DDIMPipeline.from_pretrained({folder!r}, low_cpu_mem_usage=False)
unet, scheduler = pipe.unet, pipe.scheduler
labels = torch.tensor([0, 1, 2, 3]) % {classes}
shape = (len(labels), {channels}, {size}, {size})
z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
{weight}scheduler.set_timesteps({steps})
with torch.no_grad():
    for t in scheduler.timesteps:
        out = unet(z, t, class_labels=labels).sample
{guided}        z = scheduler.step(out, t, z, use_clipped_model_output=True).prev_sample
images = (z / 2 + 0.5).clamp(0, 1)  # (B, C, H, W)"""

# For a network that was trained with label dropout.
WEIGHT = """\
w = 1.0  # guidance: 0 for none; w + 1 is elsewhere called the scale
none = torch.full_like(labels, {classes})  # no class
"""
GUIDED = """\
        out = out + w * (out - unet(z, t, class_labels=none).sample)
"""

NOT_PIPE = """
Use this loop, not `pipe()`, which takes no labels.
"""

LABELS = """
- **Classes.** The model is class-conditional, with labels 0 to {last}.{names}"""

NO_CLASS = """
- **No class.** Label {classes} stands for no class. The network was trained with it, so that it can
  be sampled with classifier-free guidance, at two evaluations per step."""

WIDTH = 100  # columns of the card


def card(
    model: Model, folder: str, suggested: int, grid: int, error: float, difference: float
) -> str:
    """Return the README.md of an exported pipeline.

    Args:
        model: The model.
        folder: Name of the folder that it is exported to.
        suggested: Sampling steps of the call.
        grid: Number of timesteps T of the pipeline.
        error: Largest error of the scheduler's alpha-bar.
        difference: Largest relative difference of the network's output from the model's.
    """
    cfg, steps = model.cfg, model.steps
    of = {
        "folder": folder,
        "steps": suggested,
        "classes": cfg.num_classes,
        "channels": cfg.channels,
        "size": cfg.image_size,
        "weight": WEIGHT.format(classes=cfg.num_classes) if cfg.label_dropout else "",
        "guided": GUIDED if cfg.label_dropout else "",
    }
    call = f"set_timesteps({suggested})" if cfg.num_classes else f"num_inference_steps={suggested}"
    text = CARD.format(
        folder=folder.replace("`", ""),
        task=f"{'class-' if cfg.num_classes else 'un'}conditional-image-generation",
        title=f"A {steps}-step student" if steps else "A diffusion model",
        version=__version__,
        made=(
            f"It was distilled to {steps} sampling step{'s' * (steps > 1)} by progressive "
            "distillation (Salimans & Ho 2022)."
            if steps
            else "It is a teacher: it was not distilled, and needs many sampling steps."
        ),
        size=cfg.image_size,
        colour="grey" if cfg.channels == 1 else "in colour",
        predicts=PREDICTS[cfg.parameterization],
        call=(LOOP if cfg.num_classes else CALL).format(**of),
        after=NOT_PIPE if cfg.num_classes else "",
        steps=f"`{call}`: this model was made for {steps}."
        if steps
        else f"`{call}` is a good number to begin with.",
        grid=grid,
        examples=", ".join(map(str, divisors(grid))),
        extra=_extra(grid),
        default="is one of them" if grid % 50 == 0 else "is not one of them",
        labels=_labels(model),
        difference=difference,
        error=error,
        schedule=_schedule(cfg),
    )
    head, code, rest = re.split(r"(```python\n.*?```\n)", text, maxsplit=1, flags=re.DOTALL)
    _, front, head = head.split("---\n", 2)
    return f"---\n{front}---\n{_wrapped(head)}{code}{_wrapped(rest)}"


def _wrapped(text: str) -> str:
    """Return Markdown's paragraphs and list items wrapped to the card's width."""
    blocks = re.split(r"\n(?=\n|- |#)", text)
    lines = []
    for block in blocks:
        start = "\n" if block.startswith("\n") else ""
        item = block.strip().startswith("- ")
        words = " ".join(block.split())
        lines.append(
            start
            + textwrap.fill(
                words,
                WIDTH,
                subsequent_indent="  " * item,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return "\n".join(lines) + "\n" * (not lines[-1].endswith("\n"))


def _labels(model: Model) -> str:
    """Describe the labels, with the classes' names; "" for an unconditional model."""
    if not model.num_classes:
        return ""
    named = [
        f"{label} {html.escape(printable(name), quote=False)}"
        for label, name in enumerate(model.class_names)
        if name
    ]
    names = f" Its classes: {'; '.join(named)}." if named else ""
    said = LABELS.format(last=model.num_classes - 1, names=names)
    return said + (NO_CLASS.format(classes=model.num_classes) if model.label_dropout else "")


def _extra(grid: int) -> str:
    """Return a sentence on the numbers of steps that get one timestep too many, or "".

    diffusers 0.42 counts timesteps down from T by the floating-point quotient T / N. Where that is
    rounded down, one more timestep is above 0, and becomes -1.
    """
    longer = [n for n in range(1, grid + 1) if math.ceil(grid / (grid / n)) != n]
    if not longer:
        return ""
    return (
        f" For {len(longer)} of the numbers 1 to {grid}, the first of them {longer[0]}, it also "
        "makes one timestep too many, -1 (diffusers 0.42)."
    )


def _schedule(cfg: NetConfig) -> str:
    """Describe the noise schedule in words."""
    if cfg.schedule == "cosine":
        return (
            f"the cosine schedule, with logSNR from {cfg.logsnr_max:g} (u = 0) to "
            f"{cfg.logsnr_min:g} (u = 1)"
        )
    ends = f" from {cfg.betas[0]:g} to {cfg.betas[1]:g}" if len(cfg.betas) == 2 else ""
    return (
        f"the teacher's schedule: `{cfg.schedule}` betas{ends} over {cfg.timesteps} timesteps, "
        "between which logSNR is interpolated"
    )
