"""pdfast: few-step diffusion sampling by progressive distillation (Salimans & Ho 2022).

    student = pdfast.distill("digits", rounds=11)
    images = pdfast.load("runs/digits/round-11-steps-0004").sample(64, steps=4, seed=0)

`pdfast.reference` states the published algorithms in plain PyTorch.
"""

import importlib
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from pdfast.checkout import why_not
from pdfast.errors import PdfastError, Stopped, UsageError
from pdfast.version import __version__

if TYPE_CHECKING:
    from pdfast import adapters, reference
    from pdfast.api import distill, evaluate, train
    from pdfast.checkpoint import load_model as load
    from pdfast.checkpoint import save as save
    from pdfast.config import Config, load_config
    from pdfast.exporting import export
    from pdfast.guidance import guided
    from pdfast.model import Model
    from pdfast.network import Network

__all__ = [
    "Config",
    "Model",
    "Network",
    "PdfastError",
    "Stopped",
    "UsageError",
    "__version__",
    "adapters",
    "distill",
    "evaluate",
    "export",
    "guided",
    "load",
    "load_config",
    "reference",
    "save",
    "train",
]

if _why_not := why_not():
    if pathlib.Path(sys.argv[0]).stem in ("-m", "pdfast"):  # the command: no traceback
        sys.exit(f"pdfast: {_why_not}")
    raise ImportError(_why_not)

_LAZY = {  # what takes time to import: torch above all, which `pdfast --help` should not wait for
    "Config": ("pdfast.config", "Config"),
    "Model": ("pdfast.model", "Model"),
    "Network": ("pdfast.network", "Network"),
    "adapters": ("pdfast.adapters", ""),
    "distill": ("pdfast.api", "distill"),
    "evaluate": ("pdfast.api", "evaluate"),
    "export": ("pdfast.exporting", "export"),
    "guided": ("pdfast.guidance", "guided"),
    "load": ("pdfast.checkpoint", "load_model"),
    "load_config": ("pdfast.config", "load_config"),
    "reference": ("pdfast.reference", ""),
    "save": ("pdfast.checkpoint", "save"),
    "train": ("pdfast.api", "train"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'pdfast' has no attribute '{name}'")
    module, attribute = _LAZY[name]
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def __dir__() -> list[str]:
    return __all__
