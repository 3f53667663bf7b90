"""Names of the detectors of `eval.detector`, which evaluation/detectors/ implements."""

from pathlib import Path

from pdfast.config.serialization import nearest
from pdfast.errors import UsageError

NAMES = ("pixel", "inception", "lite0")
INCEPTION = "inception"


def split(detector: str) -> tuple[str, str]:
    """Return (name, path of the weights or "") of a value of `eval.detector`.

    Raises:
        UsageError: There is no such detector, or its path is wrong.
    """
    name, colon, path = detector.partition(":")
    if name not in NAMES:
        raise UsageError(
            f"eval.detector must be {', '.join(NAMES)} or inception:PATH, not "
            f"'{detector[:100]}'{nearest(name, NAMES)}"
        )
    if colon and name != INCEPTION:
        raise UsageError(f"eval.detector {name} takes no path: only inception:PATH does")
    if colon and not path.strip("\0 "):
        raise UsageError(
            "eval.detector inception: lacks the path of the weights after the colon; omit the "
            "colon to have them downloaded"
        )
    if "\0" in path or len(path) > 4096:
        raise UsageError("eval.detector must be a path of at most 4096 characters")
    return name, path


def absolute(detector: str) -> str:
    """Return the detector with an absolute path of its weights.

    Raises:
        UsageError: There is no such detector, or its path is wrong.
    """
    name, path = split(detector)
    try:
        return f"{name}:{Path(path).expanduser().absolute()}" if path else name
    except RuntimeError:  # ~NAME
        raise UsageError(f"eval.detector: there is no home folder for {path}") from None
