"""Messages: counts in words, and the one-sentence message for an exception that ends the work.

`--debug`, or PDFAST_DEBUG=1 in the environment, adds the traceback. Nothing here imports torch.
"""

import os
import re
import traceback

from pdfast.errors import PdfastError, printable

VARIABLE = "PDFAST_DEBUG"
HINT = " (--debug shows where)"
OUT_OF_MEMORY = (
    "out of memory: raise accumulate or set checkpoint, in [train] and [distill], or lower the "
    "batch or the model's size; finished models are whole"
)

_asked = False


def ask(debug: bool) -> None:
    """Record whether `--debug` was given to the current command."""
    global _asked
    _asked = debug


def debugging() -> bool:
    """Return whether tracebacks are to be shown."""
    return _asked or os.environ.get(VARIABLE, "") not in ("", "0")


def sentence(error: BaseException) -> tuple[str, int]:
    """Return an error's message on one line, and the exit code.

    The message ends with a hint at `--debug` if the error was not foreseen.
    """
    text, code, foreseen = _said(error)
    text = printable(" ".join(text.split()))
    return text if foreseen or debugging() else text + HINT, code


def foreseen(error: BaseException) -> bool:
    """Return whether the error's own message says all that is needed."""
    return _said(error)[2]


def _said(error: BaseException) -> tuple[str, int, bool]:
    """Return (message, exit code, whether the error was foreseen)."""
    if isinstance(error, PdfastError):
        return str(error), error.exit_code, True
    if is_out_of_memory(error):
        return OUT_OF_MEMORY, 1, True
    if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        line = str(error).partition("\n")[0]
        fix = "turn it off, or install what torch.compile needs, such as a C++ compiler"
        return f"engine.compile: {line}; {fix}", 1, False
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'output'}: {error.strerror}", 1, False
    kind, line = type(error).__name__, str(error).strip().partition("\n")[0]
    if not isinstance(error, Exception):  # for example KeyboardInterrupt
        return f"ended by {kind}", 1, True
    return f"unexpected {kind}: {line[:500] or 'no message'}", 1, False


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error is from Python, the CPU's or the GPU's allocator out of memory."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and bool(re.search(r"out of memory|can't allocate memory", str(error), re.IGNORECASE))
    )


def trace(error: BaseException) -> str:
    """Return the traceback of the error after those of all its causes.

    This includes causes hidden by `raise ... from None`.
    """
    whole = traceback.TracebackException.from_exception(error)
    below: traceback.TracebackException | None = whole
    while below is not None:
        below.__suppress_context__ = False
        below = below.__cause__ or below.__context__
    lines = "".join(whole.format()).splitlines()
    return "".join(printable(line) + "\n" for line in lines)


def counted(steps: int) -> str:
    """Return a number of steps in words: 1 step, 4 steps."""
    return f"{steps} step{'s' if steps > 1 else ''}"
