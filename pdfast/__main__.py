"""The command `pdfast`, and `python -m pdfast`."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from pdfast.distributed import signals

_elsewhere = warnings.formatwarning


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Format a warning that pdfast raises as one line, without its place in the source."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        return f"warning: {message}\n"
    return _elsewhere(message, category, filename, lineno, line)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        args: The arguments; by default those of sys.argv.
    """
    signals.install()  # before the slow imports, so that a signal during them is heard
    warnings.formatwarning = _one_line
    from pdfast.cli.main import main as command

    return command(args)


if __name__ == "__main__":
    raise SystemExit(main())
