"""The measurements of the benchmarks, and the table at their end.

Each test times one implementation of an op on one shape, and reports it with `measure`. On a GPU a
call is captured in a CUDA graph and replayed, as in training, so that Python's launch overhead does
not count. GB/s count the bytes that the op must move, whatever an implementation moves.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import PER_GRAPH, ROWS, capture, table

from pdfast.distributed import memory


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="one round of the smallest shapes")
    parser.addoption("--compile", action="store_true", help="compiled updates too (minutes)")
    parser.addoption("--rows", type=Path, help="also write the measured rows to this JSON file")
    parser.addoption("--kernels", type=Path, help="folder for tables of updates' kernels by name")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []
    memory.keep_freed()  # as the command line does


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise `case` by the module's CASES; with --quick only by the last, its smallest."""
    if "case" in metafunc.fixturenames:
        cases = metafunc.module.CASES
        cases = cases[-1:] if metafunc.config.getoption("--quick") else cases
        metafunc.parametrize("case", cases, ids=str)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def measure(benchmark: Any, device: torch.device, request: pytest.FixtureRequest) -> Callable:
    """measure(function, op=, shape=, who=, moved=): time a call that moves `moved` bytes.

    `absent` is the reason why an implementation cannot run; the table then shows it.
    """
    quick = request.config.getoption("--quick")

    def run(
        function: Callable[[], object],
        *,
        op: str,
        shape: object,
        who: str,
        moved: int = 0,
        absent: str = "",
    ) -> None:
        row = {"op": op, "shape": str(shape), "who": who, "seconds": None, "bytes": moved}
        request.config.stash[ROWS].append(row)
        if absent:
            row["absent"] = absent
            pytest.skip(absent)
        torch.compiler.reset()  # after 8 shapes Dynamo would run the function eagerly
        benchmark.group = f"{op} {shape}"
        calls, target = 1, function
        if device.type == "cuda":
            graph = capture(function)
            calls = PER_GRAPH

            def target() -> None:
                graph.replay()
                torch.cuda.synchronize()

        target()
        if quick:
            benchmark.pedantic(target, rounds=1)
        else:
            start = time.perf_counter()
            target()
            rounds = max(9, min(200, int(0.4 / (time.perf_counter() - start))))
            benchmark.pedantic(target, rounds=rounds, warmup_rounds=3)
        times = [t / calls for t in benchmark.stats.stats.data]
        row |= {"seconds": statistics.median(times), "rounds": len(times)}

    return run


@pytest.fixture
def measure_images(
    benchmark: Any, device: torch.device, request: pytest.FixtureRequest
) -> Callable:
    """measure_images(function, op=, shape=, who=, num=): time a call that handles `num` images.

    The row has the median of a few calls, and images/s.
    """
    quick = request.config.getoption("--quick")

    def run(function: Callable[[], object], *, op: str, shape: str, who: str, num: int) -> None:
        row = {"op": op, "shape": shape, "who": who, "seconds": None, "bytes": 0}
        request.config.stash[ROWS].append(row)

        def target() -> None:
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        target()
        benchmark.group = f"{op} {shape}"
        benchmark.pedantic(target, rounds=1 if quick else 5)
        row["seconds"] = benchmark.stats.stats.median
        row["images_per_s"] = benchmark.extra_info["images_per_s"] = num / row["seconds"]

    return run


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Write the rows so far, in case the run is killed."""
    if path := item.config.getoption("--rows"):
        path.write_text(json.dumps(item.config.stash[ROWS], indent=1) + "\n")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if rows:
        terminalreporter.write_line("")
        terminalreporter.write_line(table(rows))
