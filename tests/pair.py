"""A function in two forked processes of a run, so that neither imports anything; no launcher.

Process 0 has the store. Each is a child of the test, which thus sees its exit status.
"""

import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from torchrun import ALARM, LIMIT

from pdfast.errors import PdfastError
from pdfast.launch import VARIABLES


def variables(rank, size, port=1):
    """Return the environment variables that torchrun would set."""
    return dict(zip(VARIABLES, map(str, (rank, size, rank, "localhost", port)), strict=True))


class Pair:
    """Two processes that start at once; a context manager that ends both."""

    def __init__(self, folder, function):
        """`function` gets the rank, and works in the folder."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.folder = folder
        self.pids = [self._fork(rank, port, function) for rank in range(2)]

    def _fork(self, rank, port, function):
        pid = os.fork()
        if pid:
            return pid
        code = 99
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(ALARM)
            os.chdir(self.folder)
            sys.stderr = Path(f"said-{rank}").open("w")  # noqa: SIM115  # until its end
            os.dup2(sys.stderr.fileno(), 2)
            os.environ.update(variables(rank, 2, port))
            function(rank)
            code = 0
        except PdfastError as error:
            Path(f"raised-{rank}").write_text(str(error))
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        finally:  # whatever happens, it must not continue as a second pytest
            sys.stderr.flush()
            os._exit(code)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        self.codes()

    def until(self, name):
        """Wait for a file of each process, such as name-0."""
        end = time.monotonic() + LIMIT
        while not all((self.folder / f"{name}-{rank}").is_file() for rank in range(2)):
            assert time.monotonic() < end, self.said()
            time.sleep(0.02)

    def codes(self):
        """Wait for both, and return their exit statuses; -n for signal n."""
        pids, self.pids = self.pids, []
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

    def said(self):
        """Return each process's output on stderr."""
        return [(self.folder / f"said-{rank}").read_text() for rank in range(2)]

    def raised(self, rank):
        """Return the error that ended a process."""
        return (self.folder / f"raised-{rank}").read_text()
