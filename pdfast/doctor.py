"""`pdfast doctor`: what runs where, in which type, by which implementation, and why."""

import platform

import torch

from pdfast.device import choose_device
from pdfast.progress import Screen
from pdfast.version import __version__

# What each op runs on, in the order of an update.
OPS = (
    ("network", "PyTorch (convolutions channels-last; attention by SDPA)"),
    ("group_norm_silu", "PyTorch: group_norm, then FiLM and SiLU"),
    ("add_noise", "PyTorch, draws by Philox; Triton on a GPU"),
    ("ddim_step", "PyTorch; Triton on a GPU"),
    ("distill_loss", "PyTorch; Triton on a GPU"),
    ("adamw", "PyTorch, on flat buffers; Triton on a GPU"),
)


def doctor(device_name: str, threads: int, screen: Screen) -> None:
    """Print the device, versions, number types and implementation of every op."""
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
    screen.say("dtype: float32 throughout; per-image coefficients in float64")
    for name, implementation in OPS:
        screen.say(f"  {name:<16} {implementation}")
    screen.say("  no compiled kernels in this version: every op is the PyTorch one on any device")
    screen.say("pdfast's developers have never run this version on a GPU")
