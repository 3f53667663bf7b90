"""Packages that importing pdfast.models loads."""

import subprocess
import sys

import pytest

ALL = """
import importlib, pkgutil, sys
import pdfast.models

for module in pkgutil.iter_modules(pdfast.models.__path__):
    importlib.import_module(f"pdfast.models.{module.name}")
print(*{name.split(".")[1] for name in sys.modules if name.startswith("pdfast.")})
"""


@pytest.fixture(scope="module")
def loaded():
    """Return the packages that all modules of pdfast.models together load."""
    done = subprocess.run([sys.executable, "-c", ALL], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("package", ["data", "runs", "training", "evaluation", "interop", "cli"])
def test_models_load_nothing_of(loaded, package):
    assert {"models", "diffusion", "config"} <= loaded
    assert package not in loaded
