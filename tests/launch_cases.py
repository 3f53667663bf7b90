"""A call of every Triton op for each option that changes its launch, on any device, and its code.

They are in the ops' own tests, tests/kernels/test_<op>.py, beside what else is known of an op: an
op that registers itself (kernels/registry.py) has them run by all tests of launches. Such a file
has these functions, of which the first three are needed:

- launch_cases() yields names of ops, a function of a device that calls the op, and its options;
- machine_code() yields what must be true of the compiled kernels, as launch_inputs.Code;
- traffic() yields what a call reads and writes, as launch_inputs.Traffic;
- shared_code() yields a function like the first's, and options whose launches share their code.
"""

import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from pdfast.kernels.registry import registered

OPS = {name: op for name, op in registered().items() if op.kernels}


def load(file: str) -> ModuleType:
    """The test of an op, under a name of its own: pytest has it under another."""
    path = Path(__file__).parent / "kernels" / f"test_{file}.py"
    spec = importlib.util.spec_from_file_location(f"cases_of_{file}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def named(name: str, options: dict[str, object]) -> str:
    """A name for a test."""
    return " ".join([name, *(f"{key}={value}" for key, value in options.items())])


def by_name(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of pairs, none of which has another's name."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        assert name not in found, f"two cases are called {name}"
        found[name] = value
    return found


TESTS = [load(file) for file in dict.fromkeys(op.file for op in OPS.values())]
CASES = by_name(
    (named(name, options), functools.partial(call, **options))
    for test in TESTS
    for name, call, options in test.launch_cases()
)
CODES = by_name(
    (named(f"{code.op} sm_{code.arch}", code.options | {"launch": code.launch}), code)
    for test in TESTS
    for code in test.machine_code()
)
TRAFFIC = by_name((traffic.name, traffic) for test in TESTS for traffic in test.traffic())
SHARED = [shared for test in TESTS if hasattr(test, "shared_code") for shared in test.shared_code()]
