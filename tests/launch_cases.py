"""Cases for the tests of all Triton ops, collected from the ops' own tests.

The test of each op that registers itself (kernels/registry.py), tests/kernels/test_<op>.py, defines
the first three of these functions; `shared_code` is optional:

- launch_cases() returns a call of the op for each option that changes its launch: the op's name, a
  function that calls it, given a device and options, and the options;
- machine_code() returns requirements of the compiled kernels, as launch_inputs.Code;
- traffic() returns the bytes that a call reads and writes, as launch_inputs.Traffic;
- shared_code() returns pairs of such a function and a list of options: all these calls must compile
  to one kernel. Use it for numbers that change every update (`do_not_specialize`).
"""

import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from pdfast.kernels.registry import registered

OPS = {name: op for name, op in registered().items() if op.kernels}
REQUIRED = ("launch_cases", "machine_code", "traffic")


def load(file: str) -> ModuleType:
    """Load the test of an op, under another name than pytest's."""
    path = Path(__file__).parent / "kernels" / f"test_{file}.py"
    assert path.is_file(), f"{file} is registered: write {path}, with {', '.join(REQUIRED)}"
    spec = importlib.util.spec_from_file_location(f"cases_of_{file}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    missing = [name for name in REQUIRED if not hasattr(module, name)]
    assert not missing, f"{path} lacks {', '.join(missing)}: see {__file__}"
    return module


def named(name: str, options: dict[str, object]) -> str:
    """Return a name for a test."""
    return " ".join([name, *(f"{key}={value}" for key, value in options.items())])


def by_name(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict of pairs; fail if two have the same name."""
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
