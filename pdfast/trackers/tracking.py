"""The run's side of its trackers: it starts the process that follows it, and reports failures."""

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

BEGIN = 120.0  # seconds for the trackers to start, imports of their packages included
UPLOAD = 60.0  # seconds at the end of a run to upload the rest
HURRY = 10.0  # the same for a run that fails or is stopped, since its job may soon be killed


class Tracking:
    """The process that follows a run directory; see trackers/follow.py."""

    def __init__(self, run: Path, names: Sequence[str], screen: Screen) -> None:
        """Start the process, and wait until its trackers are ready.

        Args:
            run: The run directory.
            names: Names of the trackers.
            screen: Where to say how to see the run, and which trackers fail.

        Raises:
            PdfastError: A tracker cannot start.
        """
        self._screen, self._left, self._rest = screen, set(names), b""
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pdfast.trackers.follow", run.absolute(), *names],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            start_new_session=True,  # out of reach of the terminal's signals
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
        """Return the process's first message, once all trackers are ready; polls for signals."""
        limit = time.monotonic() + BEGIN
        while not select.select([self._words], [], [], 0.2)[0]:
            poll()
            if time.monotonic() > limit:
                raise PdfastError(
                    f"tracking did not start within {BEGIN:.0f} s: check what its packages wait "
                    "for, or omit --track"
                )
        line = self._words.readline()
        word = json.loads(line) if line else {"lost": first, "why": "its process ended"}
        if "lost" in word:
            name = word["lost"]
            offline = ", or set WANDB_MODE=offline" if name == "wandb" else ""
            raise PdfastError(
                f"tracking by {name} cannot start ({word['why']}): fix that{offline}, or remove "
                f"{name} from --track"
            )
        return dict(word)

    def check(self) -> None:
        """Warn once about each tracker that has failed, without waiting."""
        while part := self._words.read():
            self._rest += part
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            word = json.loads(line)
            self._lose(word["lost"], word["why"])
        if part == b"":  # end of file: a living process gives None
            for name in sorted(self._left):
                self._lose(name, "its process was killed")

    def close(self, code: int) -> None:
        """Tell the trackers the run's exit status, and wait a limited time for their uploads."""
        self.check()
        with contextlib.suppress(BrokenPipeError):
            self._end.write(f"{code}".encode())
        limit = UPLOAD if code == 0 else HURRY
        try:
            if self._process.wait(limit) == 0:
                self._left.clear()
        except subprocess.TimeoutExpired:
            for name in sorted(self._left):
                self._lose(name, f"it did not finish within {limit:.0f} s")
        self.check()
        self._stop()

    def _lose(self, name: str, why: str) -> None:
        if name in self._left:
            self._left.remove(name)
            self._screen.warn(f"{name} stopped tracking ({why}); the run itself is not affected")

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._end.close()
        self._words.close()
