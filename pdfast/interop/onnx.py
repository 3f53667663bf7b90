"""Export of a model's network as one ONNX graph, with a JSON file that describes it.

The graph maps (z, logsnr[, label]) to the raw output, in float32, for any batch size.
group_norm_silu is traced as PyTorch's own ops. Before the graph is written, onnxruntime's output is
compared with the model's.

A label is a class, or -1 for no class where the model was trained with label dropout. Any other
label is an error, as in PyTorch.
"""

import contextlib
import copy
import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdfast.config.names import OUTPUTS, Parameterization
from pdfast.config.serialization import to_table
from pdfast.diffusion.conditioning import NO_CLASS
from pdfast.diffusion.schedules import logsnr_of
from pdfast.errors import UsageError
from pdfast.interop.common import Prepared, Probe, agreed, probe
from pdfast.kernels import group_norm_silu
from pdfast.models.blocks import GroupNormSiLU
from pdfast.models.model import Model
from pdfast.models.unet import UNet
from pdfast.version import __version__

GRAPH, MEANING, README = "network.onnx", "network.json", "README.md"
# From opset 21 on, a group norm is exported as GroupNormalization, which the standard defines with
# the variance E[x^2] - E[x]^2. That is inexact at a large mean, and can be NaN (onnxruntime 1.32.0,
# see findings/onnxruntime_group_norm.sh). Up to 20 it is InstanceNormalization, which is exact.
OPSET = 20
TEACHER_STEPS = 64  # sampling steps of a teacher in the README
MAX_BYTES = 2**31 - 2**24  # of the weights: a protobuf file holds 2 GiB, nodes included
LEVELS = ["alpha = cos phi", "sigma = sin phi"]
FORMULAS = {  # by the schedule's kind, see Schedule.describe
    "cosine": ["phi = a u + b", *LEVELS, "logsnr = -2 ln tan phi"],
    "table": [
        "logsnr is listed at u = 1/T, 2/T, ..., 1, where T is the number of entries",
        "in between it is linear in u, and below 1/T it is that of 1/T",
        "tan phi = exp(-logsnr / 2)",
        *LEVELS,
    ],
    "edm": [
        "tan phi = (sigma_min^(1/rho) + u (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho",
        *LEVELS,
        "logsnr = -2 ln tan phi",
    ],
}
# phi of a time u in 0 .. 1, in Python, by the schedule's kind.
PHI = {
    "cosine": 'return schedule["a"] * u + schedule["b"]',
    "table": """\
levels = schedule["logsnr"]
    times = (np.arange(len(levels)) + 1) / len(levels)
    return math.atan(math.exp(-np.interp(u, times, levels) / 2))""",
    "edm": """\
low, high = (schedule[k] ** (1 / schedule["rho"]) for k in ("sigma_min", "sigma_max"))
    return math.atan((low + u * (high - low)) ** schedule["rho"])""",
}
# x-hat of a network's output `out`, in Python.
X_HAT: dict[Parameterization, str] = {
    "x": "out",
    "eps": "(z - sigma * out) / alpha",
    "v": "alpha * z - sigma * out",
    "x_eps": "alpha * (z - sigma * out[:, channels:]) + sigma**2 * out[:, :channels]",
}
CARD = """\
# {title}

`{graph}` takes noisy images z and their logSNR (float32){label_input}, and returns
{predicts}. `{meaning}` describes its inputs, output, noise
schedule and sampler. Exported by pdfast {version}.

This samples as pdfast does, in the folder that holds `{folder}`:

```python
import json
import math

import numpy as np
import onnxruntime

folder, num, steps = {folder!r}, 4, {steps}
about = json.load(open(f"{{folder}}/{meaning}"))
schedule = about["schedule"]
session = onnxruntime.InferenceSession(f"{{folder}}/{graph}")


def phi_at(u):
    {phi}


_, channels, size, _ = about["inputs"]["z"]["shape"]
z = np.random.default_rng(0).standard_normal((num, channels, size, size))
{labels}for k in range(steps, 0, -1):  # from u = 1 down to 1 / steps
    phi = phi_at(k / steps)
    alpha, sigma = math.cos(phi), math.sin(phi)
    logsnr = np.full(num, -2 * math.log(math.tan(phi)), np.float32)
    out = session.run(None, {{"z": z.astype(np.float32), "logsnr": logsnr{label}}})[0]
    x_hat = np.clip({x_hat}, -1, 1)
    if k > 1:  # the last step returns x_hat
        eps_hat = (z - alpha * x_hat) / sigma
        phi = phi_at((k - 1) / steps)
        z = math.cos(phi) * x_hat + math.sin(phi) * eps_hat
pictures = np.rint(x_hat * 127.5 + 127.5).astype(np.uint8)  # (B, C, H, W)
```
"""


def prepare(model: Model, name: str) -> Prepared:
    """Trace the network, and compare the graph in onnxruntime with the model.

    Args:
        model: The model, float32 on the CPU.
        name: Name of the folder to write.

    Returns:
        The export, ready to be written.

    Raises:
        UsageError: The network is too large for one .onnx file.
        PdfastError: The graph's output differs from the model's.
    """
    size = sum(value.nbytes for value in model.net.state_dict().values())
    if size > MAX_BYTES:
        raise UsageError(
            f"model.ch {model.cfg.ch} and the other widths make a network of {size / 2**30:.1f} "
            "GiB, where one .onnx file holds 2: export it with --to diffusers"
        )
    ends = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)  # u
    levels = logsnr_of(model.schedule.phi(ends)).float()
    graph = trace(model.net, probe(model, levels))
    content = graph.SerializeToString()
    difference = 0.0
    checked = [probe(model, levels[:count]) for count in (3, 1, 2)]  # the traced batch size first
    if model.label_dropout:
        checked.append(checked[0]._replace(label=torch.full((3,), NO_CLASS)))
    for inputs in checked:
        with torch.no_grad():
            expected = model(*inputs)
        difference = max(difference, agreed("onnxruntime", run(content, inputs), expected))
    meaning = json.dumps(describe(model, difference), indent=1, allow_nan=False)

    def write(folder: Path) -> None:
        (folder / GRAPH).write_bytes(content)
        (folder / MEANING).write_text(meaning + "\n", "utf-8")
        (folder / README).write_text(card(model, name), "utf-8")

    line = f"{GRAPH} (opset {OPSET}), equal to {difference:.0e} in onnxruntime"
    return Prepared(write, f"{line}; {README} has the loop that samples with it")


def card(model: Model, folder: str) -> str:
    """Return the README.md: how to sample with the graph alone."""
    cfg, steps = model.cfg, model.steps
    classes = model.num_classes
    return CARD.format(
        title=f"A {steps}-step student" if steps else "A diffusion model",
        graph=GRAPH,
        meaning=MEANING,
        folder=folder,
        version=__version__,
        predicts=OUTPUTS[cfg.parameterization].holds,
        steps=steps or min(TEACHER_STEPS, model.schedule.most_steps),
        phi=PHI[model.schedule.describe()["kind"]],
        x_hat=X_HAT[cfg.parameterization],
        label_input=", and classes (int64)" if classes else "",
        labels=f"label = np.arange(num) % {classes}  # classes 0 .. {classes - 1}\n"
        * bool(classes),
        label=', "label": label' if classes else "",
    )


def trace(net: UNet, inputs: Probe) -> Any:
    """Export the network with a dynamic batch size.

    Args:
        net: The network, float32 on the CPU; it is not changed.
        inputs: Inputs to trace with.

    Returns:
        The onnx.ModelProto.
    """
    net = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, GroupNormSiLU):
            module.op = group_norm_silu.eager
    given = {name: value for name, value in inputs._asdict().items() if value is not None}
    batch = torch.export.Dim("batch")
    with quiet():
        program = torch.onnx.export(
            net,
            kwargs=given,
            dynamo=True,
            dynamic_shapes={name: {0: batch} for name in given},
            output_names=["out"],
            opset_version=OPSET,
            custom_translation_table={
                torch.ops.aten.atan.default: atan,
                torch.ops.aten.embedding.default: embedding,
                torch.ops.aten.searchsorted.Tensor: searchsorted,
            },
            verbose=False,
        )
    graph = program.model_proto  # type: ignore[union-attr]  # dynamo=True gives a program
    for node in graph.graph.node:
        del node.metadata_props[:]  # they hold file names of the machine that exported it
    return graph


def atan(self: Any) -> Any:
    """Build the float64 arctangent, which onnxruntime lacks, from the float32 one.

    With p the float32 result, atan(t) = p + atan((t - tan p) / (1 + t tan p)). The second one is so
    small that it equals its argument.
    """
    op = importlib.import_module("onnxscript").opset20
    single, double = 1, 11  # FLOAT and DOUBLE of onnx.TensorProto
    start = op.Cast(op.Atan(op.Cast(self, to=single)), to=double)
    sin, cos = op.Sin(start), op.Cos(start)
    rest = op.Div(op.Sub(op.Mul(self, cos), sin), op.Add(cos, op.Mul(self, sin)))
    return op.Add(start, rest)


def embedding(
    weight: Any,
    indices: Any,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Gather rows of a table (V, E), with negative indices an error.

    Gather alone counts negative indices from the end. They are moved below -V, which is out of
    range as V and above are.
    """
    op = importlib.import_module("onnxscript").opset20
    size = op.Shape(weight, start=0, end=1)
    below = op.Less(indices, op.Constant(value_ints=[0]))
    return op.Gather(weight, op.Where(below, op.Sub(indices, size), indices))


def searchsorted(rising: Any, wanted: Any) -> Any:
    """Count the numbers of a rising table (T,) that are below each of (B,), as int64."""
    op, whole = importlib.import_module("onnxscript").opset20, 7  # INT64 of onnx.TensorProto
    below = op.Less(op.Unsqueeze(rising, [0]), op.Unsqueeze(wanted, [1]))
    return op.ReduceSum(op.Cast(below, to=whole), [1], keepdims=0)


def run(content: bytes, inputs: Probe) -> Tensor:
    """Return the graph's output at the given inputs, by onnxruntime on the CPU."""
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    given = {k: v.numpy() for k, v in inputs._asdict().items() if v is not None}
    return torch.from_numpy(session.run(["out"], given)[0])


def describe(model: Model, difference: float) -> dict[str, Any]:
    """Return the content of network.json: all that is needed to sample with the graph alone.

    Args:
        model: The model.
        difference: The measured difference between graph and model, relative.
    """
    cfg, schedule = model.cfg, model.schedule.describe()
    shape = ["batch", *model.image_shape]
    inputs: dict[str, Any] = {
        "z": {"type": "float32", "shape": shape},
        "logsnr": {"type": "float32", "shape": ["batch"]},
    }
    if cfg.num_classes:
        inputs["label"] = {
            "type": "int64",
            "shape": ["batch"],
            "from": 0,
            "below": cfg.num_classes,
            "names": list(model.class_names),
            "no_class": NO_CLASS if cfg.label_dropout else None,
            "others": "are an error",
        }
    return {
        "pdfast": __version__,
        "opset": OPSET,
        "inputs": inputs,
        "output": {"name": "out", "shape": ["batch", cfg.out_channels, *shape[2:]]},
        "parameterization": cfg.parameterization,
        "predicts": OUTPUTS[cfg.parameterization].holds,
        "steps": model.steps,
        "steps_are": "sampling steps that the model was distilled to; 0: a teacher",
        "schedule": {**schedule, "formula": FORMULAS[schedule["kind"]]},
        "sampler": {
            "kind": "ddim",
            "times": "N steps are at u = N/N, ..., 1/N; the last one returns x-hat",
            "clip": model.clip,
        },
        "largest_difference": difference,
        "model": to_table(cfg),
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's warnings about other packages and its own internals."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
