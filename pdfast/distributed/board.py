"""Short notes shared by the processes of a run, in the store of torchrun or of process 0."""

import contextlib
import functools
import hashlib
import os
import threading
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from pdfast.launch import launched

ANSWER = 5.0  # seconds to wait for the store, whose machine may be down

_said: set[str] = set()


@functools.cache
def store() -> Any:
    """Return the torch.distributed.Store that all processes share."""
    kept = next(rendezvous("env://"))[0]
    return PrefixStore(f"pdfast/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", kept)


def first_to_say(text: str) -> bool:
    """Return whether no process of this run has printed `text` yet; True where that is unknown.

    A mistake that every process finds is thus reported once.
    """
    if not launched():
        return True
    if text in _said:
        return False
    _said.add(text)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    first = [True]

    def ask() -> None:
        with contextlib.suppress(RuntimeError, ValueError):
            first[0] = store().add(f"said/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER)
    return first[0]
