"""A model's network as one ONNX graph, and a JSON file that says what its output means.

The graph is (z, logsnr[, label]) -> raw output, float32, for any batch. group_norm_silu is traced
as PyTorch's own ops, and onnxruntime runs the graph beside the model before it is kept.

A label is a class, or -1 where the model learned to do without one. Any other is an error, as it is
in PyTorch.
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

from pdfast.config.names import OUTPUTS
from pdfast.config.serialization import to_table
from pdfast.diffusion.conditioning import NO_CLASS
from pdfast.diffusion.schedules import logsnr_of
from pdfast.errors import UsageError
from pdfast.interop.common import Prepared, Probe, agreed, probe
from pdfast.kernels import group_norm_silu
from pdfast.models.model import Model
from pdfast.models.unet import GroupNormSiLU, UNet
from pdfast.version import __version__

GRAPH, MEANING = "network.onnx", "network.json"
# From 21 on a group norm is exported as GroupNormalization, whose definition in the standard takes
# the variance as E[x^2] - E[x]^2: off at a large mean, and then NaN (in onnxruntime 1.32.0, see
# findings/onnxruntime_group_norm.sh). Up to 20 it is InstanceNormalization, which is exact.
OPSET = 20
MAX_BYTES = 2**31 - 2**24  # a protobuf file ends at 2 GiB; the nodes take their part of it
BY_BETAS = (
    "logsnr is that of u = 1/T, 2/T, ... 1, T being their number, linear in u between, and below "
    "1/T that of 1/T; tan phi = exp(-logsnr / 2), alpha = cos phi, sigma = sin phi"
)
FORMULAS = {  # of a schedule's kind, see Schedule.describe
    "cosine": "phi = a u + b, alpha = cos phi, sigma = sin phi, logsnr = -2 ln tan phi",
    "table": BY_BETAS,
    "edm": (
        "tan phi = (sigma_min^(1/rho) + u (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho, alpha = "
        "cos phi, sigma = sin phi, logsnr = -2 ln tan phi"
    ),
}


def prepare(model: Model) -> Prepared:
    """Trace the network and run it by onnxruntime. Raises UsageError if it is too large."""
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
    checked = [probe(model, levels[:count]) for count in (3, 1, 2)]  # the traced batch, and others
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

    line = f"{GRAPH} (opset {OPSET}), equal to {difference:.0e} in onnxruntime"
    return Prepared(write, f"{line}; {MEANING} says what its output means")


def trace(net: UNet, inputs: Probe) -> Any:
    """The network as an onnx.ModelProto whose first axis is free."""
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
        del node.metadata_props[:]  # the trace's: file names of the machine that exported it
    return graph


def atan(self: Any) -> Any:
    """The arctangent in float64, which onnxruntime does not have.

    Its float32 one starts a Newton step: atan(t) = p + atan((t - tan p) / (1 + t tan p)), and the
    second atan is so small that it equals its argument.
    """
    op = importlib.import_module("onnxscript").opset20
    single, double = 1, 11  # onnx.TensorProto's
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
    """Rows of a table (V, E), where Gather alone would count indices below 0 from the end.

    They are moved below -V, where they are as much an error as those from V on.
    """
    op = importlib.import_module("onnxscript").opset20
    size = op.Shape(weight, start=0, end=1)
    below = op.Less(indices, op.Constant(value_ints=[0]))
    return op.Gather(weight, op.Where(below, op.Sub(indices, size), indices))


def searchsorted(rising: Any, wanted: Any) -> Any:
    """How many numbers of a rising table (T,) are below each of (B,): int64."""
    op, whole = importlib.import_module("onnxscript").opset20, 7  # onnx.TensorProto's int64
    below = op.Less(op.Unsqueeze(rising, [0]), op.Unsqueeze(wanted, [1]))
    return op.ReduceSum(op.Cast(below, to=whole), [1], keepdims=0)


def run(content: bytes, inputs: Probe) -> Tensor:
    """The graph's output, by onnxruntime on the CPU."""
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    given = {k: v.numpy() for k, v in inputs._asdict().items() if v is not None}
    return torch.from_numpy(session.run(["out"], given)[0])


def describe(model: Model, difference: float) -> dict[str, Any]:
    """What a reader needs to sample with the graph alone."""
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
        "schedule": {
            **schedule,
            "formula": f"{FORMULAS[schedule['kind']]}; N steps are at u = N/N, ..., 1/N",
        },
        "largest_difference": difference,
        "model": to_table(cfg),
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's remarks about other packages and its own internals to itself."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
