"""Fields by their names in earlier versions, in Python, each with one DeprecationWarning.

`formats.py` has the former names in stored files, `pdfast/former.py` those of modules.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from pdfast.config.formats import BOTH, counterpart

T = TypeVar("T")
FORMER_VALUES = {"parameterization": BOTH}  # pairs of old and new, as formats.CHANGED has them


def formerly(**names: str) -> Callable[[type[T]], type[T]]:
    """Let a class accept arguments, and have attributes, by their former names.

    Values in FORMER_VALUES are accepted and returned in their former form under the former name. An
    argument by its former name prevails over one by its present name, so that
    `dataclasses.replace` accepts it.

    Args:
        **names: Present names by former names.

    Returns:
        The decorator of the class.
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
    """Return a field's value in its former form, with a warning."""
    _warn(cls, old, new)
    pairs = [(now, then) for then, now in FORMER_VALUES.get(new, ())]
    return counterpart(getattr(self, new), pairs)


def _warn(cls: type[Any], old: str, new: str) -> None:
    message = f"{old} of {cls.__name__} is called {new} now"
    warnings.warn(message, DeprecationWarning, stacklevel=3)
