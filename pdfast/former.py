"""Imports of modules by their names of version 0.1, each with one DeprecationWarning."""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

NAMES = {
    "adapters": "diffusion.wrappers",
    "checkpoint": "models.checkpoint",
    "cuda_graph": "models.cuda_graph",
    "detectors": "evaluation.detectors",
    "exporting": "interop.export",
    "guidance": "models.guidance",
    "judge": "evaluation.evaluator",
    "method": "diffusion.angles",
    "model": "models.model",
    "network": "models.custom",
    "own": "distillation.custom",
    "samplers": "diffusion.samplers",
    "schedule": "diffusion.schedules",
    "unet": "models.unet",
}


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A finder and loader that resolves a module's former name to its present module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a spec for a former name; None for any other name."""
        return importlib.machinery.ModuleSpec(name, self) if _now(name) else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Import the module by its present name, with a warning."""
        now = _now(spec.name)
        warnings.warn(f"{spec.name} is called {now} now", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(now)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec, which the import machinery has replaced."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def _now(name: str) -> str:
    """Return the present name of a module; "" if `name` is not a former name."""
    package, _, rest = name.partition(".")
    first, dot, inner = rest.partition(".")
    ours = package == "pdfast" and first in NAMES
    return f"pdfast.{NAMES[first]}{dot}{inner}" if ours else ""


def install() -> None:
    """Let imports find modules by their former names.

    The finder goes before all others: they would find the modules of a package a second time under
    its former name, by the package's path.
    """
    sys.meta_path.insert(0, Finder())
