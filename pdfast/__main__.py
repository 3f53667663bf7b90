"""The command `pdfast`, and `python -m pdfast`."""

from collections.abc import Sequence

from pdfast import signals


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line, of sys.argv if left out; returns the exit code."""
    signals.install()  # before all that takes time to import
    from pdfast import cli

    return cli.main(args)


if __name__ == "__main__":
    raise SystemExit(main())
