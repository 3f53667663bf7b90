"""Set before the first product on the GPU, after which PyTorch asks no more."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(items):
    """A capture that fails comes last: after it PyTorch, up to 2.11, captures nothing more."""
    items.sort(key=lambda item: item.name == "test_what_cannot_be_captured")
