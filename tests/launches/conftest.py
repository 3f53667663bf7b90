"""Tests of launches, in a process of their own, in which Triton has a stub as its driver.

They run where they alone are named, CUDA_VISIBLE_DEVICES is empty, and Triton is not interpreting:
see Makefile. The stub launches nothing, so other tests in its process would read what no kernel
wrote.
"""

import os
from pathlib import Path

import pytest

from pdfast.kernels import runtime

OWN_PROCESS = os.environ.get("CUDA_VISIBLE_DEVICES") == "" and not runtime.INTERPRETING


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Leave these tests out unless they alone are named."""
    start, here = config.invocation_params.dir, Path(__file__).resolve().parent
    paths = [(start / argument.partition("::")[0]).resolve() for argument in config.args]
    if not all(path.is_relative_to(here) for path in paths):
        return True
    if not OWN_PROCESS:
        raise pytest.UsageError(
            "tests/launches need CUDA_VISIBLE_DEVICES to be empty, and TRITON_INTERPRET not to be 1"
        )
    return None if runtime.HAVE_TRITON else True


@pytest.fixture(scope="session")
def _installed():
    from stub_driver import StubDriver, install

    driver = StubDriver()
    return driver, install(driver)


@pytest.fixture
def driver(_installed):
    """The stub, for Hopper unless a test sets another `arch`."""
    _installed[0].arch = 90
    return _installed[0]


@pytest.fixture
def launches(_installed, driver):
    """The launches of the test so far."""
    _installed[1].clear()
    return _installed[1]
