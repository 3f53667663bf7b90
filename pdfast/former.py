"""Modules under the names that they had in version 0.1: each works, with one warning."""

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
    "cuda_graph": "training.cuda_graph",
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
    """Finds what an import asks for by a former name, and gives the module that it is now."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec whose module is `_now(name)`; None for any other name."""
        return importlib.machinery.ModuleSpec(name, self) if _now(name) else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Import it by its present name."""
        now = _now(spec.name)
        warnings.warn(f"{spec.name} is called {now} now", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(now)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module its own spec again, which the import has replaced."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def _now(name: str) -> str:
    """The present name of a module; "" where that is the one given."""
    package, _, rest = name.partition(".")
    first, dot, inner = rest.partition(".")
    ours = package == "pdfast" and first in NAMES
    return f"pdfast.{NAMES[first]}{dot}{inner}" if ours else ""


def install() -> None:
    """Let imports find modules by their former names.

    Before all other finders: a package has its path by its former name too, where its modules
    would be found a second time.
    """
    sys.meta_path.insert(0, Finder())
