"""torch-fidelity's own metrics, imported behind stub torchvision modules, which they never call."""

import contextlib
import importlib
import sys
import types

STUBS = ("torchvision", "torchvision.datasets", "torchvision.transforms")
STUBS += ("torchvision.transforms.functional", "torchvision.models")


class _Stub(types.ModuleType):
    """A module of which any name can be imported: an empty class."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextlib.contextmanager
def metrics():
    """(metric_fid, metric_isc, metric_prc); no module of theirs is left when the block ends."""
    before = dict(sys.modules)
    for name in STUBS:
        sys.modules[name] = _Stub(name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    try:
        names = ("fid", "isc", "prc")
        yield [importlib.import_module(f"torch_fidelity.metric_{name}") for name in names]
    finally:
        for name in set(sys.modules) - set(before):
            if name.split(".")[0] in ("torch_fidelity", "torchvision"):
                del sys.modules[name]
