#!/usr/bin/env bash
# PyTorch: SIGUSR1 ends torchrun at once, and the processes that it started run on without it.
#
# torch 2.13.0, Python 3.11, no GPU needed.
# SLURM's --signal=USR1@120 sends SIGUSR1 to a job's steps ahead of its time limit.
# torchrun passes on SIGTERM, SIGINT, SIGHUP and SIGQUIT. It has no handler for SIGUSR1, whose default
# ends it: its status is 138, its workers are not told, and are still there. With
# --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 the workers get the signal, and torchrun
# ends with status 1, whatever theirs is.
#
#     default:             torchrun ends with 138; the worker heard nothing, and runs on
#     --signals-to-handle: torchrun ends with 1; the worker heard SIGUSR1, and has ended
#
# Exits 0 as long as this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "${PYTHON:-}" ]; then  # PYTHON: a Python that has torch already
    python3 -m venv "$folder/env"
    PYTHON="$folder/env/bin/python"
    "$PYTHON" -m pip install --quiet 'torch==2.13.0' 'numpy==2.4.6'
fi

cat > "$folder/worker.py" <<'PY'
import os
import signal
import sys
import time
from pathlib import Path


def heard(signum, frame):
    Path("heard").write_text(signal.Signals(signum).name)
    sys.exit(0)


signal.signal(signal.SIGUSR1, heard)
Path("pid").write_text(str(os.getpid()))
time.sleep(60)
PY
cat > "$folder/send.py" <<'PY'
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SIGNALS = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


def torchrun(*options):
    """(torchrun's status, what the worker heard, whether it runs on)."""
    for name in ("pid", "heard"):
        Path(name).unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *options]
    started = subprocess.Popen([*command, "worker.py"], stderr=subprocess.DEVNULL)
    while not (Path("pid").exists() and Path("pid").read_text()):
        time.sleep(0.1)
    worker = int(Path("pid").read_text())
    started.send_signal(signal.SIGUSR1)
    code = started.wait()
    time.sleep(1)
    said = Path("heard").read_text() if Path("heard").exists() else "nothing"
    try:
        os.kill(worker, signal.SIGKILL)
        alive = True
    except ProcessLookupError:
        alive = False
    return 128 - code if code < 0 else code, said, alive


default, asked = torchrun(), torchrun(SIGNALS)
for name, (code, said, alive) in (("default", default), ("--signals-to-handle", asked)):
    left = "runs on" if alive else "has ended"
    print(f"{name}: torchrun ends with {code}; the worker heard {said}, and {left}")
sys.exit((default, asked) != ((138, "nothing", True), (1, "SIGUSR1", False)))
PY
cd "$folder"
"$PYTHON" send.py
