"""Reads tests/data/published.npz: the published implementation's own numbers."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pdfast.config import NetConfig
from pdfast.model import Model

FILE = Path(__file__).parent / "data" / "published.npz"
HEADS = ("x", "eps", "v", "both")
WEIGHTS = ("constant", "snr", "snr_trunc", "v_mse")
LEVELS, BLOCKS = 2, 1

_npz = np.load(FILE, allow_pickle=False)


def value(key: str) -> Tensor:
    """An array as float64 (integers stay); images come as NCHW."""
    array = torch.from_numpy(np.array(_npz[key]))
    array = array.double() if array.is_floating_point() else array
    return array.permute(0, 3, 1, 2) if array.ndim == 4 else array


def grad_keys(prefix: str) -> list[str]:
    """Parameter paths whose gradient is stored under a case."""
    return [
        k.removeprefix(f"{prefix}/grad/") for k in _npz.files if k.startswith(f"{prefix}/grad/")
    ]


def model(role: str, head: str) -> Model:
    """The golden "teacher" or "student" with the published weights, float64, for a head."""
    cfg = NetConfig(
        image_size=8,
        channels=3,
        ch=32,
        emb_ch=32,
        ch_mult=(1,) * LEVELS,
        num_res_blocks=BLOCKS,
        attn_resolutions=(4,),
        groups=32,
        head=head,
    )
    result = Model(cfg).double()
    prefix = f"{'both' if head == 'both' else 'x'}/{role}/params/"
    flax = {k.removeprefix(prefix): _npz[k].astype(np.float64) for k in _npz.files if prefix in k}
    result.net.load_state_dict(_convert(flax))
    return result.eval()


def module_names() -> dict[str, str]:
    """The published module names -> ours."""
    names = {"dense0": "emb0", "dense1": "emb1"}
    names |= {name: name for name in ("conv_in", "conv_out", "norm_out")}
    names |= {"mid.block_1": "mid.0", "mid.attn_1": "mid.1", "mid.block_2": "mid.2"}
    stage = 0
    for level in range(LEVELS):
        for block in range(BLOCKS):
            names[f"down_{level}.block_{block}"] = f"down.{stage}.0"
            names[f"down_{level}.attn_{block}"] = f"down.{stage}.1"
            stage += 1
        if level < LEVELS - 1:
            names[f"down_{level}.downsample"] = f"down.{stage}.0"
            stage += 1
    stage = 0
    for level in reversed(range(LEVELS)):
        for block in range(BLOCKS + 1):
            names[f"up_{level}.block_{block}"] = f"up.{stage}.0"
            names[f"up_{level}.attn_{block}"] = f"up.{stage}.1"
            stage += 1
        if level:
            names[f"up_{level}.upsample"] = f"up.{stage - 1}.2"
    return names


def _convert(flax: dict[str, np.ndarray]) -> dict[str, Tensor]:
    names, state, qkv = module_names(), {}, {}
    inner_names = {"temb_proj": "film", "nin_shortcut": "shortcut", "proj_out": "proj"}
    for path, array in flax.items():
        outer, *inner, leaf = path.split("/")
        layer = inner[0] if inner else ""
        if layer in ("q", "k", "v"):  # kernel (in, heads, head_dim), bias (heads, head_dim)
            flat = array.reshape(array.shape[0], -1).T if leaf == "kernel" else array.reshape(-1)
            qkv.setdefault((names[outer], leaf), {})[layer] = flat
            continue
        if leaf == "kernel" and array.ndim == 4:  # HWIO -> OIHW
            array = array.transpose(3, 2, 0, 1)
        elif leaf == "kernel":  # (..., out) -> (out, in)
            array = array.reshape(-1, array.shape[-1]).T
            array = array[:, :, None, None] if layer == "nin_shortcut" else array
        leaf = {"kernel": "weight", "scale": "weight", "bias": "bias"}[leaf]
        parts = [names[outer], inner_names.get(layer, layer), leaf]
        state[".".join(p for p in parts if p)] = torch.from_numpy(array.copy())
    for (module, leaf), parts in qkv.items():
        key = f"{module}.qkv.{'weight' if leaf == 'kernel' else 'bias'}"
        state[key] = torch.from_numpy(np.concatenate([parts[c] for c in "qkv"]))
    return state


def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    return float((a - b).detach().norm() / b.norm())


def relative_per_image(a: Tensor, b: Tensor) -> Tensor:
    """||a - b|| / ||b|| of each image, in float64."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    return (a - b).norm(dim=1) / b.norm(dim=1)
