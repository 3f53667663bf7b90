"""What commands share."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from pdfast.config.schema import Config
from pdfast.config.serialization import check
from pdfast.launch import TIMEOUT, launched

DEFAULT_CONFIG = "digits"
Force = FlagCreatePairsOff[bool]
Fields = Annotated[Config, arg(name="")]  # every config field as a flag, --model.ch and so on


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every command has."""

    debug: FlagCreatePairsOff[bool] = False
    """Before an error's line show its traceback and its cause; so does PDFAST_DEBUG=1."""


@dataclass(frozen=True, kw_only=True)
class Machine(Common):
    """Where to run."""

    device: str = "auto"
    """auto (the first GPU, else the CPU; under torchrun each process's own GPU), cpu or cuda:k."""
    threads: int = 0
    """CPU threads; 0: torch's choice."""


@dataclass(frozen=True, kw_only=True)
class Machines(Machine):
    """Where to run, of several processes each."""

    timeout: float = TIMEOUT
    """Of several processes (torchrun): seconds within which one that does not answer ends the run;
    while they start at least 60. A process answers however long it works."""


def check_alone(command: str) -> None:
    """Refuse a command that would do, and write, the same in each of several processes."""
    check(
        not launched(),
        f"pdfast {command} is work for one process: start it without torchrun",
    )


def check_size(size: int, least: int = 1) -> None:
    """Refuse a height and width of pictures that none have."""
    check(least <= size <= 2**16, f"--size must be in {least} .. 65536")


def check_resize(size: int, resize: str | None) -> None:
    """Refuse a way of resizing without a size (0), and a size that no picture has."""
    check_size(size, least=0)
    check(size > 0 or resize is None, "--resize is for --size, which says to what size")
