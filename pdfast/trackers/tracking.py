"""The run's end of its trackers: starts the process that follows it, and hears of what failed."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdfast.console.progress import Screen
from pdfast.distributed.signals import poll
from pdfast.errors import PdfastError

BEGIN = 120.0  # seconds for the trackers to begin, importing their packages included
UPLOAD = 60.0  # seconds at the end of a run for what is still to be uploaded
HURRY = 10.0  # the same for one that ends otherwise: its job may soon be killed


class Tracking:
    """A process that follows a run directory; see trackers/follow.py."""

    def __init__(self, run: Path, names: Sequence[str], screen: Screen) -> None:
        """Start it. Raises PdfastError where a tracker cannot begin."""
        self._screen, self._left, self._rest = screen, set(names), b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pdfast.trackers.follow", run.absolute(), *names],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            start_new_session=True,  # where a terminal's signals do not reach it
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._words, self._end = self._process.stdout, self._process.stdin
        try:
            word = self._begun(names[0])
        except BaseException:
            self._stop()
            raise
        for where in word["ready"]:
            screen.say(f"tracking: {where}")
        os.set_blocking(self._words.fileno(), False)

    def _begun(self, first: str) -> dict[str, Any]:
        """Its first word, once all trackers have begun; hears signals while it waits."""
        limit = time.monotonic() + BEGIN
        while not select.select([self._words], [], [], 0.2)[0]:
            poll()
            if time.monotonic() > limit:
                raise PdfastError(
                    f"tracking cannot begin within {BEGIN:.0f} s: see what its packages wait for, "
                    "or leave --track out"
                )
        line = self._words.readline()
        word = json.loads(line) if line else {"lost": first, "why": "its process ended"}
        if "lost" in word:
            name = word["lost"]
            offline = ", or set WANDB_MODE=offline" if name == "wandb" else ""
            raise PdfastError(
                f"tracking by {name} cannot begin ({word['why']}): put that right{offline}, or "
                f"leave {name} out of --track"
            )
        return dict(word)

    def check(self) -> None:
        """Warn of trackers that have failed, each once; never waits."""
        while part := self._words.read():
            self._rest += part
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            word = json.loads(line)
            self._lose(word["lost"], word["why"])
        if part == b"":  # where it lives there is None to read
            for name in sorted(self._left):
                self._lose(name, "its process was killed")

    def close(self, code: int) -> None:
        """The run has ended with this exit status; waits, within bounds, for what is on its way."""
        self.check()
        with contextlib.suppress(BrokenPipeError):
            self._end.write(f"{code}".encode())
        limit = UPLOAD if code == 0 else HURRY
        try:
            if self._process.wait(limit) == 0:
                self._left.clear()
        except subprocess.TimeoutExpired:
            for name in sorted(self._left):
                self._lose(name, f"not everything was taken in within {limit:.0f} s")
        self.check()
        self._stop()

    def _lose(self, name: str, why: str) -> None:
        if name in self._left:
            self._left.remove(name)
            self._screen.warn(f"{name} tracks no more ({why}); the run itself is as it would be")

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._end.close()
        self._words.close()
