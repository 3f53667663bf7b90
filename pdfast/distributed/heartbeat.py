"""Threads that notice when another process of the run has ended or no longer answers.

Process 0 and each of the others send each other a message, through gloo, BEATS times in `timeout`
seconds. Through process 0 the loss of any process reaches all.

- A process that has ended closes its connections. Processes that wait for it raise `ProcessLost`
  at once. A process that is busy elsewhere, with its GPU for example, is ended by its thread after
  `GRACE` seconds, with the same message.
- A process that is stopped, or whose machine is down or disconnected, is silent. Within `timeout`
  it counts as lost: its connections are closed, with the same effect. On this machine it is also
  killed, because a stopped process would keep its GPU memory and the run's lock.

A busy process beats too: its thread needs Python's interpreter only now and then. But extension
code that holds the interpreter's lock for most of `timeout` is taken for silence. A process whose
thread beats while its main thread hangs, in a file system or a GPU that never returns, goes
unnoticed: collectives have no time limit, since process 0 may work alone for long.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from pdfast.console import messages
from pdfast.console.log import last_words
from pdfast.distributed.board import first_to_say
from pdfast.errors import AGAIN, PdfastError
from pdfast.launch import TIMEOUT
from pdfast.storage.processes import Process

GRACE = 10.0  # seconds for a process to notice, in its own work, that another is lost
BEATS = 20  # in a timeout
MISSED = 15  # beats without a message after which a process is lost; the rest is for the end
WORD_TAG, CUT_TAG = 1, 2  # tags of gloo's messages; no other message has a tag
CLOSED, BEAT, GOODBYE, FAILED = range(4)  # the messages; the last two are sent on leaving
WORD_LIMIT = timedelta(seconds=5)  # for the last message to be sent
ON = f"the last saved state is whole, and {AGAIN}"


class ProcessLost(PdfastError):  # noqa: N818  # the error is the other process's
    """Another process of the run has ended or does not answer, so this one cannot continue."""

    @classmethod
    def ended(cls) -> "ProcessLost":
        """Return the error for a connection that was closed."""
        return cls(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: another process of this "
            f"run has ended; its own message says why; {ON}"
        )

    @classmethod
    def silent(cls, rank: int, timeout: float) -> "ProcessLost":
        """Return the error for a process that is silent."""
        return cls(
            f"process {rank} of {os.environ['WORLD_SIZE']} does not answer within --timeout "
            f"{timeout:g} s: the process, its machine or the network has stopped; {ON}"
        )

    @classmethod
    def absent(cls, ranks: Sequence[int], limit: float) -> "ProcessLost":
        """Return the error for processes that never started."""
        named = f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
        return cls(
            f"{named} of {os.environ['WORLD_SIZE']} did not start within {limit:g} s: find out "
            "what delays the start, and run the same command again"
        )

    @classmethod
    def unconnected(cls, limit: float) -> "ProcessLost":
        """Return the error for processes that have all started, but do not connect."""
        return cls(
            f"the {os.environ['WORLD_SIZE']} processes of this run did not connect within "
            f"{limit:g} s: one has stopped, or the network blocks the connection; run the same "
            "command again"
        )


def say(error: ProcessLost) -> None:
    """Print the error on stderr, unless another process has already done so, and log it."""
    if messages.debugging():
        faulthandler.dump_traceback()
    last_words(f"pdfast: {error}")
    if first_to_say(str(error)):
        print(f"pdfast: {error}", file=sys.stderr, flush=True)


def give_up(error: ProcessLost) -> None:
    """End this process with an error, whatever its main thread is waiting for."""
    say(error)
    os._exit(error.exit_code)


class Silence:
    """Counts this process's beats since each of the others was last heard.

    It counts beats, not seconds: a process that was stopped for a while, alone or with the whole
    job, as schedulers do, must not mistake that time for the others' silence.
    """

    def __init__(self, peers: Iterable[int]) -> None:
        self._missed, self._lock = dict.fromkeys(peers, 0), threading.Lock()

    def heard(self, peer: int) -> None:
        """Note a message from a process."""
        with self._lock:
            self._missed[peer] = 0

    def left(self, peer: int) -> None:
        """Expect no more messages from a process."""
        with self._lock:
            self._missed.pop(peer, None)

    def beat(self) -> int | None:
        """Count a beat; return a process that was silent for more than MISSED beats, or None."""
        with self._lock:
            for peer in self._missed:
                self._missed[peer] += 1
            return next((peer for peer, n in self._missed.items() if n > MISSED), None)


class Heartbeat:
    """The threads of one process that send and hear messages, for the length of a session."""

    def __init__(self, peers: Mapping[int, Process], timeout: float = TIMEOUT) -> None:
        """Start the threads.

        Args:
            peers: Processes to send to and to hear, by their ranks in gloo's default group.
            timeout: Seconds after which a silent process counts as lost.
        """
        self.lost: ProcessLost | None = None
        """Reason why this process has closed its connections; None until it does."""
        self._peers, self._timeout = peers, timeout
        self._grace = min(GRACE, timeout / 10)
        self._silence = Silence(peers)
        self._lock = threading.Lock()
        self._leaving, self._closed = threading.Event(), threading.Event()
        # Sends are not waited for: a wait that reaches its time limit closes all connections.
        self._sent = {peer: deque[dist.Work | None](maxlen=BEATS) for peer in peers}
        self._listeners = [threading.Thread(target=self._listen, args=(p,)) for p in peers]
        self._beater = threading.Thread(target=self._beat)
        for thread in (*self._listeners, self._beater):
            thread.daemon = True
            thread.start()

    def close(self, word: int) -> None:
        """Send the last message; after a GOODBYE, wait for the others' last messages too.

        After a failure it waits for nobody, since a collective may hang.

        Raises:
            ProcessLost: Another process falls silent in the meantime.
        """
        with self._lock:
            self._leaving.set()
        for peer in self._peers:
            with contextlib.suppress(RuntimeError):
                sending = dist.isend(torch.tensor([word]), peer, tag=WORD_TAG)
                assert sending is not None
                sending.wait(WORD_LIMIT)
        if word == GOODBYE:
            for listener in self._listeners:
                listener.join()
        self._closed.set()
        if word == GOODBYE:
            self._beater.join()
            if self.lost:
                raise self.lost

    def _beat(self) -> None:
        while not self._closed.wait(self._timeout / BEATS):
            with self._lock:
                if not self._leaving.is_set():
                    for peer, sent in self._sent.items():
                        with contextlib.suppress(RuntimeError):  # its listener gets the error too
                            sent.append(dist.isend(torch.tensor([BEAT]), peer, tag=WORD_TAG))
            silent = self._silence.beat()
            if silent is not None:
                self._cut_off(silent)
                return

    def _listen(self, peer: int) -> None:
        """Hear a process until its last message, or until its connection is closed."""
        word = torch.tensor([CLOSED])
        try:
            while True:
                dist.recv(word, peer, tag=WORD_TAG)
                if int(word) != BEAT:
                    break
                self._silence.heard(peer)
        except RuntimeError:
            word.fill_(CLOSED)
        self._silence.left(peer)
        if int(word) == GOODBYE or self.lost or self._leaving.wait(self._grace):
            return
        give_up(ProcessLost.ended())

    def _cut_off(self, peer: int) -> None:
        """Give up a silent process, and the run with it."""
        self.lost = ProcessLost.silent(peer, self._timeout)
        say(self.lost)
        process = self._peers[peer]
        if process.is_here() and process.is_alive():
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)
        with contextlib.suppress(RuntimeError):  # the time limit of this wait closes connections
            waiting = dist.irecv(torch.zeros(1), peer, tag=CUT_TAG)
            assert waiting is not None
            waiting.wait(timedelta(milliseconds=1))
        if not self._leaving.wait(self._grace):
            give_up(self.lost)
