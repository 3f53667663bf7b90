"""Tests of launches, in a process of their own, in which Triton has a stub as its driver.

They run where CUDA_VISIBLE_DEVICES is empty and Triton is not interpreting: see Makefile.
"""

import os

import pytest

from pdfast.kernels import runtime

OWN_PROCESS = os.environ.get("CUDA_VISIBLE_DEVICES") == "" and not runtime.INTERPRETING
collect_ignore_glob = [] if OWN_PROCESS and runtime.HAVE_TRITON else ["test_*.py"]


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
