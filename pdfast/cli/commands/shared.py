"""Flags and checks that several commands share."""

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
    """The flags of every command."""

    debug: FlagCreatePairsOff[bool] = False
    """Show the traceback and the cause of an error before its line, as PDFAST_DEBUG=1 does."""


@dataclass(frozen=True, kw_only=True)
class Machine(Common):
    """The flags of commands that compute."""

    device: str = "auto"
    """auto (the first GPU, else the CPU; under torchrun each process's own GPU), cpu or cuda:k."""
    threads: int = 0
    """CPU threads; 0: torch's choice."""


@dataclass(frozen=True, kw_only=True)
class Machines(Machine):
    """The flags of commands that may run in several processes."""

    timeout: float = TIMEOUT
    """With several processes (torchrun): seconds without an answer after which a process counts as
    lost and the run ends; at least 60 are allowed for the start. A busy process answers too."""


def check_alone(command: str) -> None:
    """Refuse to run, in each of several processes, a command that is meant for one."""
    check(
        not launched(),
        f"pdfast {command} is work for one process: start it without torchrun",
    )


def check_size(size: int, least: int = 1) -> None:
    """Refuse a height and width outside `least` .. 65536."""
    check(least <= size <= 2**16, f"--size must be in {least} .. 65536")


def check_resize(size: int, resize: str | None) -> None:
    """Refuse --resize without --size (0), and a size outside 0 .. 65536."""
    check_size(size, least=0)
    check(size > 0 or resize is None, "--resize needs --size, the size to resize to")
