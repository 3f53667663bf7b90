"""The command line, `pdfast train | distill | sample | eval | compare | ...`; see commands/.

tyro parses the arguments into the dataclasses of commands/ and config/. Every error is one line on
stderr. Nothing here imports torch before a command runs.
"""

import contextlib
import io
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import tyro

from pdfast.cli.commands import COMMANDS, DEFAULT_CONFIG, PARSED, Command
from pdfast.cli.commands.exchange import Import, ImportInShort
from pdfast.cli.commands.runs import Distill, Train
from pdfast.cli.flags import join_help, with_new_names
from pdfast.cli.mistakes import explain
from pdfast.config.schema import load_config
from pdfast.config.serialization import nearest
from pdfast.console import messages
from pdfast.distributed import memory
from pdfast.errors import UsageError
from pdfast.launch import launched, speaks
from pdfast.version import __version__

DEBUG = "--debug"
HELP = {"-h", "--help"}


def parse(args: Sequence[str]) -> Command:
    """Parse the arguments, with defaults from the config that they name.

    Args:
        args: The arguments, without the program's name.

    Returns:
        The command, ready to `run`.

    Raises:
        UsageError: The arguments are wrong.
        SystemExit: The arguments ask for --help.
    """
    word = args[0] if args else ""
    if word and not word.startswith("-") and word not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise UsageError(f"no command '{word}'{nearest(word, COMMANDS)} (commands: {known})")
    for argument, value in itertools.pairwise([*args, "-"]):
        if argument == "--out=" or (argument == "--out" and not value):
            raise UsageError("--out is empty: give it a path, or omit it")
    args = with_new_names(args)
    kind: Any = COMMANDS.get(word)
    asked = kind is not None and not HELP.isdisjoint(args)
    if asked:
        join_help(kind)
    if kind not in (Train, Distill, Import):
        return cast(Command, _tyro(PARSED, args, "pdfast"))
    name = _last("--config", args)  # its values are the flags' defaults
    fields = load_config(name or DEFAULT_CONFIG)
    if kind is Import:
        required = dict.fromkeys(("source", "out"), tyro.MISSING)
        kind = ImportInShort if asked and _last("--from", args) != "google" else Import
        default = kind(config=name or "", model=fields.model, **required)
    else:
        default = kind(config=name or DEFAULT_CONFIG, fields=fields)
    return cast(Command, _tyro(kind, args[1:], f"pdfast {word}", default))


def _last(flag: str, args: Sequence[str]) -> str | None:
    """Return the last value of a flag, before tyro parses it; None without the flag."""
    found = None
    for n, argument in enumerate(args):
        if argument.startswith(f"{flag}="):
            found = argument.removeprefix(f"{flag}=")
        elif argument == flag and n + 1 < len(args):
            found = args[n + 1]
    return found


def _tyro(kind: object, args: Sequence[str], prog: str, default: object = None) -> object:
    """Parse with tyro; an error becomes a `UsageError` of one sentence."""
    keywords = {} if default is None else {"default": default}
    errors = io.StringIO()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stderr(errors))
            if HELP.isdisjoint(args):
                stack.enter_context(_plain())
            return tyro.cli(kind, args=list(args), prog=prog, **keywords)  # type: ignore[call-overload]
    except SystemExit as exit_:
        if exit_.code == 0:  # --help
            raise
        mistake = UsageError(explain(errors.getvalue(), args, prog))
        mistake.add_note(errors.getvalue())
        raise mistake from None


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    """Have tyro write errors without colours, frames and line breaks, as on no terminal at all."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(2**20)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    Args:
        args: The arguments; by default those of sys.argv.
    """
    given = list(sys.argv[1:] if args is None else args)
    messages.ask(DEBUG in given)  # anywhere among the arguments, and before anything can fail
    try:
        code = _run([argument for argument in given if argument != DEBUG])
    finally:
        messages.ask(False)
    if code and launched():  # an orderly exit could wait for a process that waits for this one
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(args: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?"
    try:
        # OpenMP's threads spin while they wait for work: here for some 50 us, not the default of 15
        # ms, which makes an update ten times slower beside any other busy process. It must be set
        # before torch is imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        memory.keep_freed()
        with contextlib.ExitStack() as stack:
            if not speaks():
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            if args == ["--version"]:
                print(f"pdfast {__version__}")
                return 0
            command = parse(args or ["--help"])
        command.run()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    except BrokenPipeError:
        from pdfast.console.progress import nobody_listens

        nobody_listens()
        return 0
    except Exception as error:
        return _fail(error)
    return 0


def _fail(error: Exception) -> int:
    """Print an error as one line on stderr, once for all processes, and return the exit code.

    With `--debug`, every process prints its traceback before that line.
    """
    message, code = messages.sentence(error)
    said = f"pdfast: {message}\n"
    traced = messages.trace(error) if messages.debugging() else ""
    if launched():
        from pdfast.distributed.board import first_to_say

        said = said if first_to_say(message) else ""
        if traced:
            traced = f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}:\n{traced}"
    sys.stderr.write(traced + said)  # in one write, so that processes do not mix their lines
    return code
