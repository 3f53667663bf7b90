"""The tensors of NVlabs/edm's networks, converted for the layers of pdfast's network.

Folded into the weights are:

- DDPM++ and NCSN++: the factor sqrt(1/2) of every residual sum, into the layer whose output enters
  it, and the class layer, which precedes the first layer of the embedding there;
- preconditioning ve: the sign of the prediction, which is -eps there.

The variances that iddpm predicts are dropped.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdfast.config.schema import NetConfig
from pdfast.diffusion.preconditioning import iddpm_levels
from pdfast.errors import PdfastError
from pdfast.interop.edm.network import Described
from pdfast.interop.edm.pickled import Record
from pdfast.models.blocks import Attention, Conv, ResBlock
from pdfast.models.model import Model
from pdfast.models.resampling import Filter, Pyramid

MOST_TENSORS = 100_000
MOST_DEPTH = 8
SAME = 1e-4  # relative tolerance of noise levels from a float32 recursion
UNUSED = ("map_augment.weight",)  # it has no effect: its input is 0 at sampling, and it has no bias
BUFFER = ".resample_filter"


@dataclass(frozen=True)
class Layer:
    """A tensor of the file, and the parameter that it fills."""

    shape: tuple[int, ...]
    """Shape in the file."""
    target: Tensor
    """Parameter of pdfast's network."""
    change: Callable[[Tensor], Tensor] = lambda given: given
    """Conversion of the file's tensor, in float64, up to a `reshape` to the target's shape."""


def filled(path: Path, found: Described) -> Model:
    """Return the model with the file's weights, on the CPU, in evaluation mode.

    Args:
        path: The file, for messages.
        found: The network that the file describes.

    Raises:
        PdfastError: A tensor is missing, unknown, not finite or of another shape, or the file
            contradicts the arguments that its network was made with.
    """
    given = dict(_tensors(path, found.record, itertools.count()))
    _check_blocks(path, found)
    filters = {name: given.pop(name) for name in list(given) if name.endswith(BUFFER)}
    for name in UNUSED:
        given.pop(name, None)
    with torch.device("meta"):
        model = Model(found.cfg)
    _check_shapes(path, given, dict(_layers(model, found)))  # before memory is allocated
    net = model.net
    state = {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    with torch.no_grad():
        for name, layer in _layers(model, found):
            changed = layer.change(given[name].double())
            layer.target.copy_(changed.reshape(layer.target.shape))
        if found.record.class_name == "SongUNet" and net.emb_class is not None:
            _fold_class(net.emb0, net.emb_class, given)
    _check_filters(path, found.cfg, filters)
    _check_levels(path, found)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval()


def _check_shapes(path: Path, given: dict[str, Tensor], layers: dict[str, Layer]) -> None:
    """Raise PdfastError unless the file has exactly the network's tensors, all finite."""
    for name in sorted(layers.keys() | given.keys()):
        wrong = ""
        if name not in layers:
            wrong = "which the network does not have"
        elif name not in given:
            wrong = "which is missing"
        elif tuple(given[name].shape) != layers[name].shape:
            wrong = f"of shape {tuple(given[name].shape)}, not {layers[name].shape}"
        elif not given[name].is_floating_point() or not given[name].float().isfinite().all():
            wrong = "which must hold finite floats"
        if wrong:
            raise PdfastError(
                f"{path} does not fit its own arguments: tensor {name[:200]}, {wrong}; download "
                "the file again"
            )


def _tensors(
    path: Path, record: Record, count: Iterator[int], name: str = "", depth: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a record and of its inner records, by dotted names.

    `count` numbers the tensors and modules of the whole file.
    """
    if depth > MOST_DEPTH:
        raise PdfastError(f"{path} is nested more than {MOST_DEPTH} deep at {name[:200]}")
    for kind in ("_parameters", "_buffers", "_modules"):
        held = record.state.get(kind, {})
        if type(held) is not dict:
            raise PdfastError(f"{path}: {name[:200] or 'its network'} has no table {kind}")
        for key, value in held.items():
            if next(count) > MOST_TENSORS:
                raise PdfastError(f"{path} has more than {MOST_TENSORS} tensors and modules")
            if value is None:
                continue
            if type(value) is Record and kind == "_modules":
                yield from _tensors(path, value, count, f"{name}{key}.", depth + 1)
            elif isinstance(value, Tensor) and kind != "_modules":
                yield f"{name}{key}", value
            else:
                raise PdfastError(f"{path}: {name[:200]}{key} is no {kind[1:-1]}")


def _layers(model: Model, found: Described) -> Iterator[tuple[str, Layer]]:
    """Yield the layer for each of the file's tensors, by name, in the network's order."""
    cfg, net, song = found.cfg, model.net, found.record.class_name == "SongUNet"
    scale, size = cfg.edm.residual_scale, cfg.image_size
    half = net.emb0.in_features // 2
    if cfg.edm.fourier:
        freqs: Tensor = net.noise_freqs  # type: ignore[assignment]
        yield "map_noise.freqs", Layer((half,), freqs)
    for name, layer in (("map_layer0", net.emb0), ("map_layer1", net.emb1)):
        yield from _dense(name, layer)
    if not song:  # cosines come first there, sines here: swap the halves of the columns
        weight = net.emb0.weight
        yield "map_layer0.weight", Layer(tuple(weight.shape), weight, lambda w: w.roll(half, 1))
    if net.emb_class is not None:
        target = net.emb_class.weight
        if song:  # folded into one layer by _fold_class, once both layers are known
            shape = net.emb0.in_features, cfg.num_classes
            device = target.device
            yield "map_label.weight", Layer(shape, torch.empty(shape, device=device))
            yield "map_label.bias", Layer(shape[:1], torch.empty(shape[:1], device=device))
        else:
            yield "map_label.weight", Layer(tuple(target.shape), target)
    yield from _conv(f"enc.{size}x{size}_conv", net.conv_in)
    pyramid = iter(net.pyramid)
    last = len(cfg.ch_mult) - 1
    stages = iter(net.down)
    for level in range(last + 1):
        prefix = f"enc.{size >> level}x{size >> level}"
        if level:
            yield from _block(f"{prefix}_down", list(next(stages).children()), scale)
            if cfg.edm.pyramid:
                added = next(pyramid)
                assert isinstance(added, Pyramid)
                yield from _conv(f"{prefix}_aux_residual", added.conv, scale)
        for n in range(cfg.num_res_blocks):
            yield from _block(f"{prefix}_block{n}", list(next(stages).children()), scale)
    prefix = f"dec.{size >> last}x{size >> last}"
    yield from _block(f"{prefix}_in0", list(net.mid[:2]), scale)
    yield from _block(f"{prefix}_in1", list(net.mid[2:]), scale)
    stages = iter(net.up)
    for level in range(last, -1, -1):
        for n in range(cfg.num_res_blocks + 1):
            prefix = f"dec.{size >> level}x{size >> level}"
            layers = list(next(stages).children())
            up = layers.pop() if level and n == cfg.num_res_blocks else None
            yield from _block(f"{prefix}_block{n}", layers, scale)
            if up is not None:
                larger = size >> (level - 1)
                yield from _block(f"dec.{larger}x{larger}_up", [up], scale)
    norm, conv = (f"dec.{size}x{size}_aux_norm", f"dec.{size}x{size}_aux_conv")
    norm, conv = (norm, conv) if song else ("out_norm", "out_conv")
    yield from _dense(norm, net.norm_out)
    yield from _last(conv, net.conv_out, cfg)


def _dense(name: str, layer: nn.Module, scale: float = 1.0) -> Iterator[tuple[str, Layer]]:
    """Yield the tensors of a layer that has the same shapes in the file."""
    for leaf, target in layer.state_dict(keep_vars=True).items():
        yield f"{name}.{leaf}", Layer(tuple(target.shape), target, lambda given: given * scale)


def _conv(name: str, layer: nn.Module, scale: float = 1.0) -> Iterator[tuple[str, Layer]]:
    """Yield the tensors of a convolution, for which pdfast may have a dense layer."""
    for leaf, layer_ in _dense(name, layer, scale):
        shape = layer_.shape + (1, 1) * (leaf.endswith("weight") and len(layer_.shape) == 2)
        yield leaf, Layer(shape, layer_.target, layer_.change)


def _block(name: str, layers: list[nn.Module], scale: float) -> Iterator[tuple[str, Layer]]:
    """Yield the tensors of a residual block and its attention, which is inside the block there."""
    block, *rest = layers
    assert isinstance(block, ResBlock)
    yield from _dense(f"{name}.norm0", block.norm1)
    yield from _conv(f"{name}.conv0", block.conv1)
    yield from _dense(f"{name}.affine", block.film)
    yield from _dense(f"{name}.norm1", block.norm2)
    yield from _conv(f"{name}.conv1", block.conv2, scale)
    if isinstance(block.shortcut, Conv):
        yield from _conv(f"{name}.skip", block.shortcut, scale)
    for attention in rest:
        assert isinstance(attention, Attention)
        yield from _dense(f"{name}.norm2", attention.norm)
        yield from _conv(f"{name}.proj", attention.proj, scale)
        for leaf, layer in _conv(f"{name}.qkv", attention.qkv):
            heads = attention.num_heads

            def by_kind(given: Tensor, heads: int = heads) -> Tensor:
                """Reorder rows from the file's (head, channel, qkv) to (qkv, head, channel)."""
                return given.reshape(heads, -1, 3, *given.shape[1:]).movedim(2, 0)

            yield leaf, Layer(layer.shape, layer.target, by_kind)


def _last(name: str, layer: Conv, cfg: NetConfig) -> Iterator[tuple[str, Layer]]:
    """Yield the last convolution: without iddpm's variances, and with ve's -eps negated."""
    sign = -1.0 if cfg.edm.preconditioning == "ve" else 1.0
    channels = cfg.out_channels
    for leaf, target in layer.state_dict(keep_vars=True).items():
        copies = 2 if cfg.edm.preconditioning == "iddpm" else 1
        shape = (copies * channels, *target.shape[1:])
        yield f"{name}.{leaf}", Layer(shape, target, lambda given: sign * given[:channels])


def _fold_class(first: nn.Linear, layer: nn.Linear, given: dict[str, Tensor]) -> None:
    """Fold the class layer, whose output enters the first layer there, into one added after it.

    One-hot labels are sqrt(number of classes) there, and 1 here.
    """
    weight, bias = (given[f"map_label.{leaf}"].double() for leaf in ("weight", "bias"))
    into = given["map_layer0.weight"].double()
    layer.weight.copy_(into @ weight * weight.shape[1] ** 0.5)
    layer.bias.copy_(into @ bias)


# ------------------------------------------------------------------------------------------
# Consistency of what the file stores twice


def _check_blocks(path: Path, found: Described) -> None:
    """Raise PdfastError where a block's attributes differ from its network's arguments."""
    cfg = found.cfg
    block = {"skip_scale": cfg.edm.residual_scale, "adaptive_scale": cfg.film}
    for name, record in _records(found.record):
        wanted: dict[str, Any] = {}
        if record.class_name == "UNetBlock":
            wanted = dict(block)
            heads = record.state.get("num_heads")
            if heads != 0:
                width = record.state.get("out_channels")
                fits = type(width) is int and cfg.head_dim
                wanted["num_heads"] = width // cfg.head_dim if fits else cfg.num_heads  # type: ignore[operator]
        elif record.class_name == "GroupNorm":
            weight = record.state.get("_parameters", {}).get("weight")
            width = len(weight) if isinstance(weight, Tensor) and weight.ndim else 0
            wanted = {"num_groups": cfg.groups_of(width), "eps": cfg.norm_eps}
        for key, value in wanted.items():
            its = record.state.get(key)
            same = type(its) in (int, float, bool) and abs(its - value) <= 1e-6 * abs(value)
            if not same:
                raise PdfastError(
                    f"{path}: {name[:200]} has no {key} {value:g}, as {found.record.class_name} "
                    "gives it: it is of another version of that class"
                )


def _records(record: Record, name: str = "") -> Iterator[tuple[str, Record]]:
    """Yield the records below one, by dotted names; `_tensors` has checked their tables."""
    for key, value in record.state.get("_modules", {}).items():
        if type(value) is Record:
            yield f"{name}{key}", value
            yield from _records(value, f"{name}{key}.")


def _check_filters(path: Path, cfg: NetConfig, filters: dict[str, Tensor]) -> None:
    """Raise PdfastError for a resampling filter that differs from the network's arguments."""
    wanted = Filter(cfg.edm.filter).weight(torch.empty(1, 1, dtype=torch.float64))
    for name, tensor in filters.items():
        if tensor.shape != wanted.shape or not torch.allclose(tensor.double(), wanted, atol=1e-6):
            raise PdfastError(
                f"{path} does not fit its own arguments: {name[:200]} is not the filter that they "
                "describe; download the file again"
            )


def _check_levels(path: Path, found: Described) -> None:
    """Raise PdfastError where iddpm's table of noise levels does not follow from its constants."""
    if found.cfg.edm.preconditioning != "iddpm":
        return
    buffers = found.own.state.get("_buffers")
    its = buffers.get("u") if type(buffers) is dict else None
    wanted = iddpm_levels(*found.cfg.edm.constants)
    if (
        not isinstance(its, Tensor)
        or its.shape != wanted.shape
        or not torch.allclose(its.double(), wanted, rtol=SAME, atol=SAME)
    ):
        raise PdfastError(f"{path}: its noise levels u are not those of its C_1, C_2 and M")
