"""`pdfast doctor`: the device, the number types, and each op's implementation with the reason."""

import os
import platform

import torch

from pdfast.console.progress import Screen
from pdfast.distributed.device import choose_device
from pdfast.distributed.settings import kept
from pdfast.kernels import group_norm_silu
from pdfast.kernels.registry import registered
from pdfast.launch import launched
from pdfast.training.precision import precision_of
from pdfast.version import __version__


def implementations(device: torch.device) -> dict[str, str]:
    """Return each op's implementation on a device, with the reason, in the order of an update."""
    ops = [op for op in registered().values() if not op.beside]
    return {
        "network": "PyTorch (convolutions channels-last; attention by SDPA)",
        **{op.name: op.implementation(device) for op in ops},
    }


@kept()
def doctor(device_name: str, threads: int, screen: Screen) -> None:
    """Print the versions, the device, the number types, and every op's implementation."""
    device = choose_device(device_name, threads)
    python = platform.python_version()
    screen.say(f"pdfast {__version__}, torch {torch.__version__}, Python {python}")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        screen.say(f"device: {device}, {torch.cuda.get_device_name(device)} (sm_{major}{minor})")
    else:
        why = "as asked" if device_name == "cpu" else "torch sees no CUDA device"
        screen.say(
            f"device: cpu, because {why}; {torch.get_num_threads()} threads, "
            f"{torch.backends.cpu.get_cpu_capability()}"
        )
    if launched():
        by = "nccl" if device.type == "cuda" else "gloo"
        screen.say(f"processes: {os.environ['WORLD_SIZE']}, joined by {by}; this is the first")
    low = "bfloat16" if precision_of("auto", device) == "bf16" else "float32"
    screen.say(
        f"dtype: convolutions and linear layers {low}, unless --precision says otherwise; master "
        "weights, moments, norms, z_t, target and loss float32; per-image coefficients float64"
    )
    for name, implementation in implementations(device).items():
        screen.say(f"  {name:<16} {implementation}")
    if facts := group_norm_silu.build_facts():
        cuda = f"CUDA {facts['cuda']} for {facts['cuda_architectures']}" if facts["cuda"] else ""
        screen.say(f"extension: {facts['compiler']}, {cuda or 'without CUDA'}")
    screen.say(
        "measured by pdfast's developers: an earlier commit of this version on one NVIDIA H200 "
        "(torch 2.11, triton 3.6); several GPUs and the paper's configs have not been run"
    )
    screen.say(f"verdict: pdfast can train, distil and sample here, on {device}{_limit(device)}")


def _limit(device: torch.device) -> str:
    """Return what the device is too slow for, as the end of a sentence."""
    if device.type == "cuda":
        return ""
    return "; without a GPU, use small networks (such as 16x16 images and model.ch 32)"
