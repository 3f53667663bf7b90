"""The command line: `pdfast train | distill | sample | eval | import | export | data | doctor`.

The parser is tyro's, over the dataclasses of commands/ and config.py; every mistake is made one
line on stderr. Nothing here imports torch before a command runs.
"""

import contextlib
import io
import itertools
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, cast

import tyro

from pdfast.commands import COMMANDS, DEFAULT_CONFIG, PARSED, Command
from pdfast.commands.exchange import Import
from pdfast.commands.runs import Distill, Train
from pdfast.config import load_config
from pdfast.errors import PdfastError, UsageError
from pdfast.launch import launched, speaks
from pdfast.tables import nearest
from pdfast.version import __version__


def parse(args: Sequence[str]) -> Command:
    """The command of the arguments, its defaults taken from the config that they name."""
    word = args[0] if args else ""
    if word and not word.startswith("-") and word not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise UsageError(f"no command '{word}'{nearest(word, COMMANDS)} (commands: {known})")
    for argument, value in itertools.pairwise([*args, "-"]):
        if argument == "--out=" or (argument == "--out" and not value):
            raise UsageError("--out is empty: name a place, or leave it away")
    kind: Any = COMMANDS.get(word)
    if kind not in (Train, Distill, Import):
        return cast(Command, _tyro(PARSED, args, "pdfast"))
    name = _config_argument(args)  # whose values are the defaults of the flags
    fields = load_config(name or DEFAULT_CONFIG)
    if kind is Import:
        required = dict.fromkeys(("source", "from_", "out"), tyro.MISSING)
        default = Import(config=name or "", model=fields.model, **required)
    else:
        default = kind(config=name or DEFAULT_CONFIG, fields=fields)
    return cast(Command, _tyro(kind, args[1:], f"pdfast {word}", default))


def _config_argument(args: Sequence[str]) -> str | None:
    """The value of --config, found before the parser knows its defaults; the last one counts."""
    found = None
    for n, argument in enumerate(args):
        if argument.startswith("--config="):
            found = argument.removeprefix("--config=")
        elif argument == "--config" and n + 1 < len(args):
            found = args[n + 1]
    return found


def _tyro(kind: object, args: Sequence[str], prog: str, default: object = None) -> object:
    """Parse with tyro; a mistake becomes a `UsageError` of one sentence."""
    keywords = {} if default is None else {"default": default}
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=list(args), prog=prog, **keywords)  # type: ignore[call-overload]
    except SystemExit as exit_:
        if exit_.code == 0:  # --help
            raise
        raise UsageError(_one_line(errors.getvalue())) from None


def _one_line(box: str) -> str:
    """tyro's framed error as one sentence, with the nearest flag where it names one."""
    lines = [line.strip("\u2502| ") for line in box.splitlines()[1:]]
    text = (
        " ".join(line for line in lines if re.search(r"[\w)]", line))
        .split("For full helptext")[0]
        .strip()
    )
    text = re.sub(r" Argument helptext.*| \(required\)$|^Error parsing fields[\w.]*: ", "", text)
    text = re.sub(r" \(applied to [^)]*\)| Arguments are applied to .* can matter\.", "", text)
    text, _, guess = text.partition("Perhaps you meant:")
    nearest_flag = re.search(r"--[\w.-]+", guess)
    if nearest_flag and nearest_flag[0] not in text.split():  # not a flag of another command
        text = f"{text.strip()}; did you mean {nearest_flag[0]}?"
    text = text.replace("did you mean --distill.rounds?", "did you mean --rounds?")  # its alias
    return f"{text[0].lower()}{text[1:]}" if text else "the arguments cannot be read; see --help"


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of `pdfast`; returns the exit code."""
    code = _run(list(sys.argv[1:] if args is None else args))
    if code and launched():  # an orderly end could wait for another process, which waits for this
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(args: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?"
    try:
        # Let OpenMP's threads wait for work by spinning for some 50 us, not its default of 15 ms,
        # which beside any other busy process makes an update ten times slower. It must be set
        # before torch is imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        with contextlib.ExitStack() as stack:
            if not speaks():
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            if args == ["--version"]:
                print(f"pdfast {__version__}")
                return 0
            command = parse(args or ["--help"])
        command.run()
    except PdfastError as error:
        return _fail(str(error), error.exit_code)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    except BrokenPipeError:
        from pdfast.progress import nobody_listens

        nobody_listens()
        return 0
    except OSError as error:
        return _fail(f"{error.filename or 'output'}: {error.strerror}", 1)
    except (MemoryError, RuntimeError) as error:
        if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            return _fail(
                f"engine.compile: {str(error).splitlines()[0]}; leave it off, or install what "
                "torch.compile needs, a C++ compiler first",
                1,
            )
        if not _is_out_of_memory(error):
            raise
        return _fail(
            "out of memory: raise accumulate or set checkpoint, in [train] and [distill], or lower "
            "the batch or the model's size; finished models are whole",
            1,
        )
    return 0


def _fail(message: str, code: int) -> int:
    """Print one line on stderr, of several processes once; returns the code."""
    message = " ".join(message.split())
    if launched():
        from pdfast.board import first_to_say

        if not first_to_say(message):
            return code
    print(f"pdfast: {message}", file=sys.stderr)
    return code


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, the CPU's allocator or the GPU's says so."""
    return isinstance(error, MemoryError) or bool(
        re.search(r"out of memory|can't allocate memory", str(error), re.IGNORECASE)
    )
