"""Names of fields that earlier versions had, in Python: each works, with one warning.

`formats.py` has those of what is stored, `pdfast/former.py` those of modules.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from pdfast.config.formats import BOTH, counterpart

T = TypeVar("T")
FORMER_VALUES = {"parameterization": BOTH}  # pairs of old and new, as formats.CHANGED has them


def formerly(**names: str) -> Callable[[type[T]], type[T]]:
    """Let a class take arguments, and have attributes, by names that they had before.

    `names`: by the former name, the one that it has now. Values of FORMER_VALUES are taken, and
    given, as they were under the former name. A former name prevails over the present one, so that
    `dataclasses.replace` takes it.
    """

    def decorate(cls: type[T]) -> type[T]:
        make = cls.__init__

        @functools.wraps(make)
        def init(self: T, *args: Any, **fields: Any) -> None:
            for old, new in names.items():
                if old in fields:
                    _warn(cls, old, new)
                    fields[new] = counterpart(fields.pop(old), FORMER_VALUES.get(new, ()))
            make(self, *args, **fields)

        cls.__init__ = init  # type: ignore[assignment, method-assign]
        for old, new in names.items():
            setattr(cls, old, property(functools.partial(_former, cls=cls, old=old, new=new)))
        return cls

    return decorate


def _former(self: object, cls: type[Any], old: str, new: str) -> Any:
    """A field's value as it was by its former name."""
    _warn(cls, old, new)
    pairs = [(now, then) for then, now in FORMER_VALUES.get(new, ())]
    return counterpart(getattr(self, new), pairs)


def _warn(cls: type[Any], old: str, new: str) -> None:
    message = f"{old} of {cls.__name__} is called {new} now"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
