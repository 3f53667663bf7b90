"""The threads by which the processes of a run tell each other that they are there.

Process 0 sends each other one a word BEATS times in `timeout` seconds, by gloo, and they it. So
the end of any process ends all in two steps:

- One that has ended is noticed by its closed connection: a process that waits for it raises
  `ProcessLost` at once, and one that is held up elsewhere, by the GPU say, is ended by its thread
  after `GRACE` seconds, with the same words.
- One that is silent, being stopped, or on a machine that is down or cut off, is given up within
  `timeout`: connections are closed, so that it comes to the same; on this machine it is killed,
  so that it holds neither a GPU nor the run's lock.

A process beats whatever it works at, for the thread needs no more than Python's interpreter now and
then; extension code that keeps that to itself for most of `timeout` looks like silence. What
is not noticed is a process that beats and gets no further, its main thread waiting for a file
system or a GPU that does not come back: collectives have no limit of their own, for process 0 may
work alone for long.
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

from pdfast import failure
from pdfast.board import first_to_say
from pdfast.errors import PdfastError
from pdfast.launch import TIMEOUT
from pdfast.log import last_words
from pdfast.processes import Process

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
        """The connection to it was closed."""
        return cls(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: another process of this "
            f"run has ended; its own message says why; {ON}"
        )

    @classmethod
    def silent(cls, rank: int, timeout: float) -> "ProcessLost":
        """Nothing is heard from it."""
        return cls(
            f"process {rank} of {os.environ['WORLD_SIZE']} does not answer within --timeout "
            f"{timeout:g} s: it or its machine has stopped, or the network between; {ON}"
        )

    @classmethod
    def absent(cls, ranks: Sequence[int], limit: float) -> "ProcessLost":
        """They did not come to the beginning."""
        named = f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
        return cls(
            f"{named} of {os.environ['WORLD_SIZE']} did not start within {limit:g} s: see what "
            "keeps them from it, and give the same command again"
        )

    @classmethod
    def unconnected(cls, limit: float) -> "ProcessLost":
        """They came, and then one did not answer."""
        return cls(
            f"the {os.environ['WORLD_SIZE']} processes of this run did not connect within "
            f"{limit:g} s: one has stopped, or the network lets none through; give the same "
            "command again"
        )


def say(error: ProcessLost) -> None:
    """Tell it on stderr, unless a process has, and in the logs."""
    if failure.debugging():
        faulthandler.dump_traceback()
    last_words(f"pdfast: {error}")
    if first_to_say(str(error)):
        print(f"pdfast: {error}", file=sys.stderr, flush=True)


def give_up(error: ProcessLost) -> None:
    """End this process, whatever it waits for."""
    say(error)
    os._exit(error.exit_code)


class Silence:
    """For how many beats of this process each other one was silent.

    Not for how many seconds: where all were stopped for a while, as schedulers do, or this one
    alone was, nobody was silent.
    """

    def __init__(self, peers: Iterable[int]) -> None:
        self._missed, self._lock = dict.fromkeys(peers, 0), threading.Lock()

    def heard(self, peer: int) -> None:
        """It has sent a word."""
        with self._lock:
            self._missed[peer] = 0

    def left(self, peer: int) -> None:
        """It is not to be heard again."""
        with self._lock:
            self._missed.pop(peer, None)

    def beat(self) -> int | None:
        """Count a beat of this process; the first one that was silent for too many, or None."""
        with self._lock:
            for peer in self._missed:
                self._missed[peer] += 1
            return next((peer for peer, n in self._missed.items() if n > MISSED), None)


class Heartbeat:
    """Threads from the beginning of a session to its end."""

    def __init__(self, peers: Mapping[int, Process], timeout: float = TIMEOUT) -> None:
        """`peers`: whom to beat for and to listen to, by rank; of an initialised gloo group."""
        self.lost: ProcessLost | None = None
        """Why connections were closed, if this process did that."""
        self._peers, self._timeout = peers, timeout
        self._grace = min(GRACE, timeout / 10)
        self._silence = Silence(peers)
        self._lock = threading.Lock()
        self._leaving, self._closed = threading.Event(), threading.Event()
        # They are not waited for, since a wait that is given up closes all connections.
        self._sent = {peer: deque[dist.Work | None](maxlen=BEATS) for peer in peers}
        self._listeners = [threading.Thread(target=self._listen, args=(p,)) for p in peers]
        self._beater = threading.Thread(target=self._beat)
        for thread in (*self._listeners, self._beater):
            thread.daemon = True
            thread.start()

    def close(self, word: int) -> None:
        """Leave with a last word. Raises ProcessLost if all say goodbye but one that is silent.

        After a failure nobody is waited for: a collective may be stuck.
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
        """Until the last word of a process, or the end of the connection."""
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
        """Give up a process that is silent, and with it the run."""
        self.lost = ProcessLost.silent(peer, self._timeout)
        say(self.lost)
        process = self._peers[peer]
        if process.is_here() and process.is_alive():
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)
        with contextlib.suppress(RuntimeError):  # that no such message comes closes all connections
            waiting = dist.irecv(torch.zeros(1), peer, tag=CUT_TAG)
            assert waiting is not None
            waiting.wait(timedelta(milliseconds=1))
        if not self._leaving.wait(self._grace):
            give_up(self.lost)
