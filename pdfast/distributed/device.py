"""The device that work runs on."""

import functools
import os
from typing import Literal

import torch

from pdfast.errors import UsageError
from pdfast.launch import launched


def choose_device(name: str = "auto", threads: int = 0) -> torch.device:
    """Return the device of a name, and set the number of CPU threads.

    Args:
        name: "auto" (the first GPU, else the CPU), "cpu" or "cuda:k". Under torchrun "auto" and
            "cuda" are this process's own GPU.
        threads: Number of CPU threads; 0 leaves it to torch.

    Raises:
        UsageError: The name is invalid, the GPU does not exist, one GPU is named for all processes,
            this machine has more processes than GPUs, or `threads` is out of its range.
    """
    name = _own(name) if launched() else name
    if not 0 <= threads <= 1024:
        raise UsageError(f"threads must be in 0 (torch's choice) .. 1024, not {threads}")
    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    number = name.removeprefix("cuda").removeprefix(":") or "0"
    if not name.startswith("cuda") or not number.isdecimal():
        raise UsageError(f"no device '{name}': use auto, cpu or cuda:k")
    count = torch.cuda.device_count()
    if int(number) >= count:
        raise UsageError(f"no device '{name}': torch sees {count} GPUs; use --device cpu")
    return torch.device("cuda", int(number))


def _own(name: str) -> str:
    """Return the name of the device that this process of several uses."""
    if name.startswith("cuda:"):
        raise UsageError(
            f"--device {name} is one GPU for all processes: omit --device, and each process uses "
            "its own"
        )
    if name not in ("auto", "cuda"):
        return name
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if 0 < gpus < processes:
        raise UsageError(
            f"{processes} processes on this machine, but torch sees {gpus} "
            f"GPU{'s' if gpus > 1 else ''}: start torchrun --nproc-per-node {gpus}, or pass "
            "--device cpu"
        )
    return f"cuda:{os.environ['LOCAL_RANK']}" if gpus else name


@functools.cache
def side_stream(device: torch.device, use: Literal["update", "teacher"]) -> torch.cuda.Stream:
    """Return the GPU's stream for this use, the same one throughout the process.

    It is reused because cuBLAS keeps a workspace of tens of MB for every stream that it has seen.
    """
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
