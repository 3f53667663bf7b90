"""Threads that notice when another process of the run has ended or no longer answers.

Process 0 and each of the others send each other a word, by gloo, BEATS times in `timeout` seconds.
Through process 0 the loss of any process reaches all.

- A process that has ended closes its connections. Whoever waits for it raises `ProcessLost` at
  once; a process that is held up elsewhere, by its GPU say, is ended by its thread after `GRACE`
  seconds, with the same message.
- A process that is stopped, or whose machine is down or cut off, is silent. Within `timeout` it is
  given up: its connections are closed, with the same effect. If it is on this machine it is killed
  too, for a stopped process would keep its GPU memory and the run's lock.

A process that works beats too: its thread needs Python's interpreter only now and then. Extension
code that holds the interpreter's lock for most of `timeout` is taken for silence. A process whose
thread beats while its main thread hangs, in a file system or a GPU that never returns, is not
noticed: collectives have no time limit, since process 0 may work alone for long.
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
from pdfast.errors import PdfastError
from pdfast.launch import TIMEOUT
from pdfast.storage.processes import Process

GRACE = 10.0  # seconds that a process has to notice, in its own work, that another is lost
BEATS = 20  # in a timeout
MISSED = 15  # beats without a word after which another one is given up; the rest is for the end
WORD_TAG, CUT_TAG = 1, 2  # of gloo's messages; no other one has a tag
CLOSED, BEAT, GOODBYE, FAILED = range(4)  # what is heard; the last two are said on leaving
WORD_LIMIT = timedelta(seconds=5)  # for the last word to be on its way
ON = "the last saved state is whole, and the same command goes on from there"


class ProcessLost(PdfastError):  # noqa: N818  # the error is the other process's
    """Another process of the run has ended or does not answer, so that this one cannot go on."""

    @classmethod
    def ended(cls) -> "ProcessLost":
        """The error where its connection was closed."""
        return cls(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: another process of this "
            f"run has ended; its own message says why; {ON}"
        )

    @classmethod
    def silent(cls, rank: int, timeout: float) -> "ProcessLost":
        """The error where nothing is heard from it."""
        return cls(
            f"process {rank} of {os.environ['WORLD_SIZE']} does not answer within --timeout "
            f"{timeout:g} s: it or its machine has stopped, or the network between; {ON}"
        )

    @classmethod
    def absent(cls, ranks: Sequence[int], limit: float) -> "ProcessLost":
        """The error where some never started."""
        named = f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
        return cls(
            f"{named} of {os.environ['WORLD_SIZE']} did not start within {limit:g} s: see what "
            "the start waits for, and give the same command again"
        )

    @classmethod
    def unconnected(cls, limit: float) -> "ProcessLost":
        """The error where all have started, and then do not connect."""
        return cls(
            f"the {os.environ['WORLD_SIZE']} processes of this run did not connect within "
            f"{limit:g} s: one has stopped, or the network lets none through; give the same "
            "command again"
        )


def say(error: ProcessLost) -> None:
    """Print the error on stderr, unless a process of the run has done so, and log it."""
    if messages.debugging():
        faulthandler.dump_traceback()
    last_words(f"pdfast: {error}")
    if first_to_say(str(error)):
        print(f"pdfast: {error}", file=sys.stderr, flush=True)


def give_up(error: ProcessLost) -> None:
    """End this process with an error, whatever its main thread waits for."""
    say(error)
    os._exit(error.exit_code)


class Silence:
    """Count of this process's beats since each of the others was last heard.

    Beats, not seconds: a process that was stopped for a while, alone or with the whole job, as
    schedulers do, must not take that time for the others' silence.
    """

    def __init__(self, peers: Iterable[int]) -> None:
        self._missed, self._lock = dict.fromkeys(peers, 0), threading.Lock()

    def heard(self, peer: int) -> None:
        """Note a word from a process."""
        with self._lock:
            self._missed[peer] = 0

    def left(self, peer: int) -> None:
        """Expect no more words from a process."""
        with self._lock:
            self._missed.pop(peer, None)

    def beat(self) -> int | None:
        """Count a beat; gives a process that was silent for more than MISSED, or None."""
        with self._lock:
            for peer in self._missed:
                self._missed[peer] += 1
            return next((peer for peer, n in self._missed.items() if n > MISSED), None)


class Heartbeat:
    """The threads of one process, from the beginning of a session to its end."""

    def __init__(self, peers: Mapping[int, Process], timeout: float = TIMEOUT) -> None:
        """`peers`: the processes to send to and to hear, by rank, in gloo's default group."""
        self.lost: ProcessLost | None = None
        """The reason, once this process has closed its connections."""
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
        """Send the last word; after a GOODBYE, wait for the others' last words too.

        Raises ProcessLost if one of them falls silent meanwhile. After a failure nobody is waited
        for, since a collective may be stuck.
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
                        with contextlib.suppress(RuntimeError):  # its listener hears of it
                            sent.append(dist.isend(torch.tensor([BEAT]), peer, tag=WORD_TAG))
            silent = self._silence.beat()
            if silent is not None:
                self._cut_off(silent)
                return

    def _listen(self, peer: int) -> None:
        """Hear a process until its last word, or until its connection is closed."""
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
        """Give up a silent process, and with it the run."""
        self.lost = ProcessLost.silent(peer, self._timeout)
        say(self.lost)
        process = self._peers[peer]
        if process.is_here() and process.is_alive():
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)
        with contextlib.suppress(RuntimeError):  # no such message comes, which closes connections
            waiting = dist.irecv(torch.zeros(1), peer, tag=CUT_TAG)
            assert waiting is not None
            waiting.wait(timedelta(milliseconds=1))
        if not self._leaving.wait(self._grace):
            give_up(self.lost)
