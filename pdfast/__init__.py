"""Few-step diffusion sampling by progressive distillation (Salimans & Ho 2022).

Example:
    ```python
    student = pdfast.distill("digits", rounds=11)
    images = pdfast.load("runs/digits/round-11-steps-0004").sample(64, steps=4, seed=0)
    ```

`pdfast.reference` states the published algorithms in plain PyTorch.
"""

import functools
import importlib
import inspect
import pathlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

from pdfast import former
from pdfast.checkout import why_not
from pdfast.errors import PdfastError, Stopped, UsageError, for_python
from pdfast.version import __version__

if TYPE_CHECKING:
    from pdfast import reference
    from pdfast.api import distill, evaluate, train
    from pdfast.config.schema import Config, load_config
    from pdfast.diffusion import wrappers as wrappers
    from pdfast.evaluation.compare.write import compare
    from pdfast.interop.export import export
    from pdfast.interop.importing import import_model
    from pdfast.models.checkpoint import load_model as load
    from pdfast.models.checkpoint import save as save
    from pdfast.models.custom import Network
    from pdfast.models.guidance import guided
    from pdfast.models.model import Model

__all__ = [
    "Config",
    "Model",
    "Network",
    "PdfastError",
    "Stopped",
    "UsageError",
    "__version__",
    "compare",
    "distill",
    "evaluate",
    "export",
    "guided",
    "import_model",
    "load",
    "load_config",
    "reference",
    "save",
    "train",
    "wrappers",
]

if _why_not := why_not():
    if pathlib.Path(sys.argv[0]).stem in ("-m", "pdfast"):  # the command: no traceback
        sys.exit(f"pdfast: {_why_not}")
    raise ImportError(_why_not)

former.install()

_LAZY = {  # imported on first use: torch takes seconds, and `pdfast --help` should not wait for it
    "Config": ("pdfast.config.schema", "Config"),
    "Model": ("pdfast.models.model", "Model"),
    "Network": ("pdfast.models.custom", "Network"),
    "compare": ("pdfast.evaluation.compare.write", "compare"),
    "distill": ("pdfast.api", "distill"),
    "evaluate": ("pdfast.api", "evaluate"),
    "export": ("pdfast.interop.export", "export"),
    "guided": ("pdfast.models.guidance", "guided"),
    "import_model": ("pdfast.interop.importing", "import_model"),
    "load": ("pdfast.models.checkpoint", "load_model"),
    "load_config": ("pdfast.config.schema", "load_config"),
    "reference": ("pdfast.reference", ""),
    "save": ("pdfast.models.checkpoint", "save"),
    "train": ("pdfast.api", "train"),
    "wrappers": ("pdfast.diffusion.wrappers", ""),
}
_FORMER = {"adapters": "wrappers"}  # names of earlier versions


def __getattr__(name: str) -> Any:
    if name in _FORMER:
        now = _FORMER[name]
        warnings.warn(f"pdfast.{name} is called pdfast.{now} now", DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[__name__], now)
    if name not in _LAZY:
        raise AttributeError(f"module 'pdfast' has no attribute '{name}'")
    return _loaded(name)


@functools.cache
def _loaded(name: str) -> Any:
    module, attribute = _LAZY[name]
    loaded = importlib.import_module(module)
    found = getattr(loaded, attribute) if attribute else loaded
    return for_python(found, name) if inspect.isfunction(found) else found


def __dir__() -> list[str]:
    return __all__
