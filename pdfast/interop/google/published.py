"""The published network's parameters: names, layouts, and the config that their shapes imply.

Names and layouts are those of the authors' flax code: convolution kernels (height, width, in,
out), dense kernels (in, out), attention kernels (in, heads, head_dim) and (heads, head_dim, out).
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from pdfast.config.schema import NetConfig

Shape = tuple[int, ...]


def views(cfg: NetConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return views of a network's tensors, by the published names and in the published layouts.

    Writing into a view writes into its tensor.

    Args:
        cfg: Config of the network.
        tensors: Tensors by their names in the network's state_dict.

    Returns:
        The views, in the order of the network from its input on.
    """
    found: dict[str, Tensor] = {}

    def conv(path: str, name: str) -> None:
        found[f"{path}/kernel"] = tensors[f"{name}.weight"].permute(2, 3, 1, 0)
        found[f"{path}/bias"] = tensors[f"{name}.bias"]

    def dense(path: str, name: str) -> None:
        weight = tensors[f"{name}.weight"]  # pdfast may have a 1x1 convolution
        found[f"{path}/kernel"] = (weight[..., 0, 0] if weight.ndim == 4 else weight).t()
        found[f"{path}/bias"] = tensors[f"{name}.bias"]

    def norm(path: str, name: str) -> None:
        found[f"{path}/scale"] = tensors[f"{name}.weight"]
        found[f"{path}/bias"] = tensors[f"{name}.bias"]

    def block(path: str, name: str) -> None:
        norm(f"{path}/norm1", f"{name}.norm1")
        conv(f"{path}/conv1", f"{name}.conv1")
        dense(f"{path}/temb_proj", f"{name}.film")
        norm(f"{path}/norm2", f"{name}.norm2")
        conv(f"{path}/conv2", f"{name}.conv2")
        if f"{name}.shortcut.weight" in tensors:
            dense(f"{path}/nin_shortcut", f"{name}.shortcut")

    def attention(path: str, name: str) -> None:
        norm(f"{path}/norm", f"{name}.norm")
        weight, bias = tensors[f"{name}.qkv.weight"], tensors[f"{name}.qkv.bias"]
        ch = weight.shape[1]
        heads = cfg.num_heads or ch // cfg.head_dim
        for k, part in enumerate("qkv"):
            rows = slice(k * ch, (k + 1) * ch)
            found[f"{path}/{part}/kernel"] = weight[rows].t().view(ch, heads, -1)
            found[f"{path}/{part}/bias"] = bias[rows].view(heads, -1)
        found[f"{path}/proj_out/kernel"] = tensors[f"{name}.proj.weight"].t().view(heads, -1, ch)
        found[f"{path}/proj_out/bias"] = tensors[f"{name}.proj.bias"]

    def stage(level: str, number: int, name: str) -> int:
        """Add a block and the attention after it; return the number of layers, 1 or 2."""
        block(f"{level}.block_{number}", f"{name}.0")
        if f"{name}.1.qkv.weight" not in tensors:
            return 1
        attention(f"{level}.attn_{number}", f"{name}.1")
        return 2

    dense("dense0", "emb0")
    dense("dense1", "emb1")
    if cfg.num_classes:
        dense("class_emb", "emb_class")
    conv("conv_in", "conv_in")
    last, count = len(cfg.ch_mult) - 1, 0
    for level in range(last + 1):
        for number in range(cfg.num_res_blocks):
            stage(f"down_{level}", number, f"down.{count}")
            count += 1
        if level < last:
            block(f"down_{level}.downsample", f"down.{count}.0")
            count += 1
    block("mid.block_1", "mid.0")
    attention("mid.attn_1", "mid.1")
    block("mid.block_2", "mid.2")
    count = 0
    for level in reversed(range(last + 1)):
        for number in range(cfg.num_res_blocks + 1):
            layers = stage(f"up_{level}", number, f"up.{count}")
            if level and number == cfg.num_res_blocks:
                block(f"up_{level}.upsample", f"up.{count}.{layers}")
            count += 1
    norm("norm_out", "norm_out")
    conv("conv_out", "conv_out")
    return found


# ------------------------------------------------------------------------------------------
# The config that a file's shapes imply


def differing(cfg: NetConfig, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Return the values implied by parameters of these shapes, for fields of `cfg` that differ.

    The numbers of elements decide, since shapes vary between versions of flax. Image size, groups
    of norms, dropout, and which of x, eps and v is predicted, do not follow from them.

    Args:
        cfg: The assumed config.
        shapes: Shapes of the file's parameters, by their published names.
    """
    told = dict(_told(cfg, shapes))
    return {
        key: value for key, value in told.items() if value != getattr(cfg, key) and _sane(value)
    }


def _told(cfg: NetConfig, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Any]]:
    def size(path: str) -> int:
        return math.prod(shapes.get(path, (0,)))

    ch, emb_ch = size("conv_in/bias") or cfg.ch, size("dense0/bias") or cfg.emb_ch
    channels = size("conv_in/kernel") // (9 * ch) or cfg.channels
    yield "channels", channels
    if size("conv_out/bias") == 2 * channels:
        yield "parameterization", "x_eps"
    elif size("conv_out/bias") == channels and cfg.parameterization == "x_eps":
        yield "parameterization", "x"
    yield "num_classes", size("class_emb/kernel") // emb_ch
    yield "ch", ch
    yield "emb_ch", emb_ch
    numbers = [re.fullmatch(r"down_(\d{1,2})\.block_0/conv1/bias", path) for path in shapes]
    levels = sorted({int(match[1]) for match in numbers if match})
    if levels != list(range(len(levels))) or not levels:
        return
    yield "ch_mult", tuple(size(f"down_{level}.block_0/conv1/bias") // ch for level in levels)
    blocks = [path for path in shapes if re.fullmatch(r"down_0\.block_\d{1,3}/conv1/bias", path)]
    yield "num_res_blocks", len(blocks)
    sizes = {cfg.image_size >> level for level in levels}
    has = {cfg.image_size >> n for n in levels if f"down_{n}.attn_0/norm/scale" in shapes}
    if has != sizes & set(cfg.attn_resolutions):
        yield "attn_resolutions", tuple(sorted(has))
    yield from _told_heads(cfg, shapes)


def _told_heads(cfg: NetConfig, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Any]]:
    """Yield the heads that attention kernels imply, if all are (in, heads, head_dim)."""
    heads = set()
    for path, shape in shapes.items():
        match = re.fullmatch(r"(.*attn_\d{1,3})/(q|k|v|proj_out)/kernel", path)
        if match is None:
            continue
        ch = math.prod(shapes.get(f"{match[1]}/norm/scale", ()))
        head = shape[:2] if match[2] == "proj_out" else shape[1:]
        if len(shape) != 3 or math.prod(head) != ch:
            return
        heads.add(head)
    numbers, dims = {number for number, _ in heads}, {dim for _, dim in heads}
    if numbers == {cfg.num_heads} or dims == {cfg.head_dim}:
        return
    if len(numbers) == 1:
        yield from (("num_heads", numbers.pop()), ("head_dim", 0))
    elif len(dims) == 1:
        yield from (("num_heads", 0), ("head_dim", dims.pop()))


def _sane(value: Any) -> bool:
    """Return whether a value is possible in a config; a file's shapes may be anything."""
    if isinstance(value, tuple):
        return len(value) <= 16 and all(1 <= n <= 2**16 for n in value)
    return isinstance(value, str) or 0 <= value <= 2**16
