"""Run the command line in forked processes, without import time, each with a signal at some event.

A server imports pdfast once, does a whole run so that nothing is initialized later, and forks for
each call. What counts as an event, all in order:

- "write": every step of the path that writes, found by Python's audit events, not by pdfast's own
  names: opening a file to write, fsync, rename, mkdir, unlink, rmdir. A signal comes before the
  step. When a file is opened or written there is a second event, "torn", where the file is left
  with a part of its content.
- "update": an optimizer update. "poll": the work checks whether a signal has come; "heard": the
  number of writes before the last such check.

One call can stand for all its events: `snapshots` keeps what is on the disk before each, which is
what SIGKILL would leave there.
"""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """What a call left."""

    code: int
    """Exit status; -n for signal n."""
    events: dict[str, int]
    """Number of events by kind, if the call was not killed."""
    output: str
    errors: str


class Server:
    """The server process; use it as a context manager."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()

    def call(self, folder, *args, signum=0, kinds=(), number=0, then=0, apart=0, snapshots=""):
        """Run `pdfast *args` in a folder, with a signal at event `number` (from 1) of `kinds`.

        `then`: another signal, as if it came `apart` seconds after the first. `snapshots`, instead
        of a signal: a folder outside this one, which receives a copy of it at each event of
        `kinds`, named by the event's number.
        """
        asked = {
            "folder": str(folder),
            "args": [str(a) for a in args],
            "signum": int(signum),
            "kinds": list(kinds),
            "number": number,
            "then": then,
            "apart": apart,
            "snapshots": str(snapshots),
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        ended = Ended(**json.loads(self._process.stdout.readline()))
        assert "Traceback" not in ended.errors, ended.errors
        return ended


class Events:
    """Counts events, and sends the signal at the chosen one."""

    def __init__(self, folder, signum, kinds, number, then, apart, snapshots):
        self.root, self.signum, self.kinds, self.number = folder, signum, kinds, number
        self.then, self.apart, self.snapshots = then, apart, snapshots
        self.counts = {"write": 0, "torn": 0, "update": 0, "poll": 0, "heard": 0}

    def happens(self, kind, path=None, tear=None):
        """Count an event; `tear` leaves the file at `path` with a part of its content."""
        self.counts[kind] += 1
        if kind == "poll":
            self.counts["heard"] = self.counts["write"]
        if kind not in self.kinds:
            return
        number = sum(self.counts[k] for k in self.kinds)
        if self.snapshots:
            copy = shutil.copytree(self.root, Path(self.snapshots, str(number)))
            if tear:
                tear(copy / Path(path).absolute().relative_to(self.root))
        elif number == self.number:
            if tear:
                tear(path)
            from pdfast.distributed import signals

            for signum in filter(None, (self.signum, self.then)):
                signal.raise_signal(signum)
                signals._since -= self.apart

    def _inside(self, path):
        return isinstance(path, str | os.PathLike) and str(Path(path).absolute()).startswith(
            self.root
        )

    def audit(self, event, args):
        if event == "open" and self._inside(args[0]) and args[2] & (os.O_WRONLY | os.O_RDWR):
            self.happens("write")
            if args[2] & (os.O_TRUNC | os.O_APPEND):
                tear = functools.partial(self._tear, anew=bool(args[2] & os.O_TRUNC))
                self.happens("torn", args[0], tear)
        elif event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir") and self._inside(args[0]):
            self.happens("write")

    @staticmethod
    def _tear(path, anew):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if anew else os.O_APPEND))
        os.write(fd, b'{"round": 0, "upd')

    def install(self):
        """Hook into the process, which must end with the call."""
        import safetensors.torch

        from pdfast.distributed import signals
        from pdfast.training import loop

        def counted(module, name, kind, after=None):
            real = getattr(module, name)

            def call(*args, **kwargs):
                self.happens(kind)
                result = real(*args, **kwargs)
                if after:
                    self.happens("torn", args[1], after)
                return result

            setattr(module, name, call)

        def halve(path):
            os.truncate(path, os.path.getsize(path) // 2)

        counted(os, "fsync", "write")
        counted(safetensors.torch, "save_file", "write", after=halve)
        counted(loop, "update", "update")
        counted(signals, "requested", "poll")
        sys.addaudithook(self.audit)


def _child(asked, notes):
    """Do one call, in its own process."""
    from pdfast.__main__ import main

    os.chdir(asked["folder"])
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(notes / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w") for n in (1, 2))
    args = asked.pop("args")
    events = Events(**asked)
    events.install()
    try:
        code = main(args)
    except BaseException:
        traceback.print_exc()
        code = 99
    counts = dict(events.counts)  # before the next line counts
    with (notes / "events").open("w") as file:
        json.dump(counts, file)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve():
    import tempfile

    from conftest import TINY

    import pdfast.cli.main
    import pdfast.cost.forecast
    from pdfast.config.schema import Config
    from pdfast.config.serialization import from_table

    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder)
        pdfast.distill(from_table(Config, TINY), out=notes / "run", quiet=True, threads=1)
        for line in sys.stdin:
            (notes / "events").write_text("{}")
            pid = os.fork()
            if pid == 0:
                try:
                    _child(json.loads(line), notes)
                finally:
                    os._exit(98)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            said = {name: (notes / name).read_text() for name in ("output", "errors")}
            events = json.loads((notes / "events").read_text() or "{}")
            print(json.dumps({"code": code, "events": events, **said}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
    _serve()
