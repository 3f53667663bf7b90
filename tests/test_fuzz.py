"""Mutated files of every kind give a valid result or one sentence (fuzzing.py)."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict

import fuzzing
import pytest

EXAMPLES = 20_000
MB = 100  # the most that an example may take
PICTURE_MB = 800  # the same for a picture: it may have 2^26 pixels of 4 bytes, and a copy
ENLARGED = re.compile(
    r"warning: \d+ of the first \d+ images of \S+ are smaller than 8x8, and are enlarged"
)


def test_a_few_mutated_files():
    counts = fuzzing.fuzz(300, seed=2)
    for kind in fuzzing.SHARES:
        assert counts[kind, "refused"] > 0
        assert counts[kind, "sealed"] > 0


def test_what_does_not_end_is_noticed(monkeypatch):
    def spin(*args):
        try:
            while True:
                pass
        except Exception:
            pass

    monkeypatch.setattr(fuzzing, "SECONDS", 0.05)
    monkeypatch.setattr(fuzzing, "load_dataset", spin)
    with pytest.raises(fuzzing.TooSlow):
        fuzzing.fuzz(20, seed=2)


@pytest.mark.slow
@pytest.mark.timeout(1300)
def test_mutated_files(capsys):
    """In a process with limited memory, so that one file cannot exhaust the machine's."""
    command = [sys.executable, fuzzing.__file__, str(EXAMPLES), "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    assert [line for line in done.stderr.splitlines() if not ENLARGED.fullmatch(line)] == []
    found = json.loads(done.stdout)
    table = defaultdict(dict)
    for kind, word, number in found["counts"]:
        table[kind][word] = number
    with capsys.disabled():
        print()
        for kind, row in table.items():
            print(f"{kind}: {', '.join(f'{word} {n}' for word, n in sorted(row.items()))}")
    tried = sum(row["accepted"] + row["refused"] for row in table.values())
    assert tried >= EXAMPLES
    assert sum(row["sealed"] for row in table.values()) >= tried / 2
    assert set(table) == set(fuzzing.SHARES)
    for row in table.values():  # otherwise the seals are wrong, and nothing behind them was tried
        assert row["sealed and accepted"] > 0.02 * row["sealed"]
    pictures = max(table.pop(kind)["MB"] for kind in fuzzing.PICTURES)
    assert max(row["MB"] for row in table.values()) < found["MB before"] + MB
    assert pictures < found["MB before"] + PICTURE_MB
