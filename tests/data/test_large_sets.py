"""Mapped sets take no private memory, and processes share them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import TINY

pytestmark = pytest.mark.slow

NUM = 1_600_000  # images of 8x8x3: 307 MB
LARGE, FEW = NUM * 8 * 8 * 3, 2_000
MARGIN = 150 * 10**6  # bytes: half of the set, and more than two runs of a small set differ by

# Measures the peak of a process's private memory, by a thread that samples it.
WATCHED = """
import json, sys, threading, time
import torch
import pdfast
from pdfast.cli.main import main
from pdfast.distributed import memory
from pdfast.data import digest
from pdfast.config.schema import DataConfig, NetConfig
from pdfast.data.dataset import load_dataset

torch.set_num_threads(1)
most, done = 0, threading.Event()

def watch():
    global most
    while not done.wait(0.01):
        most = max(most, memory.own())

def pss():
    with open("/proc/self/smaps_rollup") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("Pss:"))

def work():
    source, out = sys.argv[2:]
    if sys.argv[1] == "data":
        assert main(["data", source, "--size", "8", "--out", out]) == 0
    elif sys.argv[1] == "train":
        table = json.loads(open(out + ".json").read())
        from pdfast.config.schema import Config
        from pdfast.config.serialization import from_table
        pdfast.train(from_table(Config, table), out=out, threads=1, quiet=True)
    else:
        data = load_dataset(DataConfig(source=source), NetConfig(image_size=8, channels=3))
        digest.known(data).digest
        print(int(data.images.sum(dtype=torch.int64)), flush=True)
        sys.stdin.readline()
        print(pss(), memory.own(), flush=True)
        sys.stdin.readline()

thread = threading.Thread(target=watch)
thread.start()
work()
done.set()
thread.join()
print(most)
"""


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Write a large set and a small one, whose first images are the same."""
    folder = tmp_path_factory.mktemp("sets")
    images = np.random.default_rng(0).integers(0, 256, (NUM, 8, 8, 3), np.uint8)
    np.savez(folder / "large.npz", images=images)
    np.savez(folder / "small.npz", images=images[:FEW])
    return folder


def watched(*args):
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *map(str, args)],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


def test_preparing_takes_no_more_for_a_large_set(sets, tmp_path):
    small = watched("data", sets / "small.npz", tmp_path / "small.npz")
    large = watched("data", sets / "large.npz", tmp_path / "large.npz")
    assert large - small < MARGIN
    with np.load(tmp_path / "large.npz") as made, np.load(sets / "large.npz") as given:
        assert np.array_equal(made["images"], given["images"])


def test_training_takes_no_more_for_a_large_set(sets, tmp_path):
    used = {}
    for name in ("small", "large"):
        table = json.loads(json.dumps(TINY))
        table["data"] = {"source": str(sets / f"{name}.npz")}
        table["model"]["channels"] = 3
        table["eval"]["num"] = 400
        (tmp_path / f"{name}.json").write_text(json.dumps(table))
        used[name] = watched("train", "", tmp_path / name)
    assert used["large"] - used["small"] < MARGIN


def test_two_processes_share_a_large_set(sets):
    def hold(num):
        """Return (PSS, private memory) of so many processes, each of which has read all images."""
        opened = [
            subprocess.Popen(
                [sys.executable, "-c", WATCHED, "hold", str(sets / "large.npz"), ""],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for _ in range(num)
        ]  # fmt: skip
        try:
            for process in opened:
                assert int(process.stdout.readline()) > 0
            found = []
            for process in opened:
                process.stdin.write("\n")
                process.stdin.flush()
                found.append(tuple(map(int, process.stdout.readline().split())))
            return found
        finally:
            for process in opened:
                process.kill()
                process.wait()

    ((one, _),) = hold(1)
    both = hold(2)
    assert one > LARGE
    assert sum(pss for pss, _ in both) < 1.1 * one + sum(own for _, own in both)
