"""The command line: `pdfast train | distill | sample | eval | import | export | data | doctor`.

The parser is tyro's, over the dataclasses below and those of config.py; every mistake is made one
line on stderr. Nothing here imports torch before a command runs.
"""

import contextlib
import io
import itertools
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, cast

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

from pdfast.config import (
    Config,
    DataConfig,
    Precision,
    check_distillable,
    check_own_teacher,
    check_trainable,
    load_config,
)
from pdfast.errors import PdfastError, UsageError
from pdfast.launch import launched, speaks
from pdfast.tables import check, nearest
from pdfast.version import __version__

DEFAULT_CONFIG = "digits"
Fields = Annotated[Config, arg(name="")]  # every config field as a flag, --model.ch and so on


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where to run."""

    device: str = "auto"
    """auto (the first GPU, else the CPU; under torchrun each process's own GPU), cpu or cuda:k."""
    threads: int = 0
    """CPU threads; 0: torch's choice."""


@dataclass(frozen=True, kw_only=True)
class RunCommand(Machine):
    """What `train` and `distill` share."""

    config: str = DEFAULT_CONFIG
    """Name of a config that comes with pdfast, or the path of a TOML file."""
    out: Path | None = None
    """Run directory; runs/<name of the config> if left out. An unfinished run goes on."""
    resume: Literal["auto", "strict", "never"] = "auto"
    """What becomes of a run that is in --out. auto: it goes on; what is damaged in it is put aside
    and made again, unless that would mean from zero. strict: what is damaged is refused. never:
    the run is refused."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Show the run as it goes: tensorboard (in the run directory), wandb (Weights & Biases, as its
    environment variables say). Each needs the extra of its name."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Print the resolved config, parameters, memory, disk, time and rounds, and stop."""
    fields: Fields = field(default_factory=Config)

    def forecast(self, distill: bool) -> None:
        """`--dry-run`."""
        from pdfast.device import choose_device
        from pdfast.forecast import forecast
        from pdfast.progress import Screen

        where, fields = choose_device(self.device, self.threads), self.fields
        teacher = None
        if distill:
            from pdfast.distillation import load_teacher, with_fit
        if distill and fields.distill.teacher:
            teacher = load_teacher(fields, where).cfg
            fields = with_fit(fields, teacher)
        elif distill:
            check_own_teacher(fields)
            fields = with_fit(fields, fields.model.unguided())
        else:
            check_trainable(fields)
        forecast(fields, where, Screen(), distill, teacher)


@dataclass(frozen=True, kw_only=True)
class Train(RunCommand):
    """Train a teacher in continuous time."""

    def run(self) -> None:
        """Run the command."""
        if self.dry_run:
            return self.forecast(distill=False)
        from pdfast.api import train

        train(
            self.fields,
            out=self.out,
            device=self.device,
            threads=self.threads,
            resume=self.resume,
            track=self.track,
        )


@dataclass(frozen=True, kw_only=True)
class Distill(RunCommand):
    """Halve a teacher's sampling steps, round by round; without --teacher, train it first."""

    def run(self) -> None:
        """Run the command."""
        check_distillable(self.fields)
        if self.dry_run:
            return self.forecast(distill=True)
        from pdfast.api import distill

        distill(
            self.fields,
            out=self.out,
            device=self.device,
            threads=self.threads,
            resume=self.resume,
            track=self.track,
        )


@dataclass(frozen=True, kw_only=True)
class Sample(Machine):
    """Sample images from a model directory."""

    model: Positional[Path]
    """Model directory, such as runs/digits/round-11-steps-0004."""
    steps: int = 0
    """Sampling steps; 0: the number that the model was distilled to."""
    num: int = 64
    """Number of images."""
    seed: int = 0
    """Image k depends on the seed and on k alone."""
    out: Path = Path("samples")
    """A folder for PNG files, or an .npz (uint8 NHWC, arr_0), or a .png (a grid)."""
    label: int | None = None
    """Class of every image, for a class-conditional model; drawn at random if left out."""
    guidance: float | None = None
    """Weight w of classifier-free guidance, x-hat(class) + w (x-hat(class) - x-hat(no class)); of a
    guided student it must be given."""
    sampler: Literal["ddim", "ancestral"] = "ddim"
    """ddim is deterministic; ancestral adds noise at each step."""
    variance: float = 1.0
    """Variance of the ancestral sampler, from 0 (small) to 1 (large)."""
    precision: Precision = "auto"
    """Of the network's convolutions and linear layers: bf16 (auto on a GPU), tf32, or fp32 (auto on
    a CPU)."""

    def run(self) -> None:
        """Run the command."""
        from pdfast.sampling import sample_to

        sample_to(
            self.model,
            self.out,
            num=self.num,
            steps=self.steps,
            seed=self.seed,
            label=self.label,
            guidance=self.guidance,
            sampler=self.sampler,
            variance=self.variance,
            precision=self.precision,
            device=self.device,
            threads=self.threads,
        )


@dataclass(frozen=True, kw_only=True)
class Eval(Machine):
    """Frechet distance against sampling steps, of a model or of a run (whose report it writes)."""

    model: Positional[Path]
    """Model directory or run directory."""
    steps: tuple[int, ...] = ()
    """Step counts; those of the config if left out."""
    config: str | None = None
    """Config that names the data, for a model outside a run directory."""
    out: Path | None = None
    """Where a single model's numbers go; eval-<model> beside the model if left out."""
    precision: Precision | None = None
    """As for sample; that of the config if left out."""
    detector: str | None = None
    """pixel, inception[:PATH] or lite0, as eval.detector; that of the config if left out."""
    guidance: float | None = None
    """Weight of classifier-free guidance, as eval.guidance; that of the config if left out."""

    def run(self) -> None:
        """Run the command."""
        check(min(self.steps, default=1) >= 1, "--steps must all be at least 1")
        from pdfast.api import evaluate

        evaluate(
            self.model,
            config=self.config,
            steps=self.steps,
            out=self.out,
            device=self.device,
            threads=self.threads,
            precision=self.precision,
            detector=self.detector,
            guidance=self.guidance,
        )


@dataclass(frozen=True, kw_only=True)
class Import:
    """Make a model directory of another library's model."""

    source: Positional[Path]
    """google: a checkpoint of the authors' released code, a flax training state. diffusers: the
    folder of a DDPMPipeline or DDIMPipeline, or its id on the hub."""
    from_: Annotated[Literal["google", "diffusers"], arg(name="from")]
    """Whose it is."""
    out: Path
    """Model directory to write; of a diffusers pipeline also OUT.toml, a config to distil it by."""
    config: str = ""
    """google: config whose [model] gives the network, which the file does not; its fields are
    flags."""
    steps: int | None = None
    """Sampling steps that the model was distilled to, 0 for a teacher. If left out: of google the
    file's num_sample_steps, which of a teacher is absent, 0 or the config's distill.start_steps; of
    diffusers 0, but of an export by pdfast its own."""
    fields: Fields = field(default_factory=Config)

    def run(self) -> None:
        """Run the command."""
        if self.from_ == "diffusers":
            check(
                not self.config and self.fields == load_config(DEFAULT_CONFIG),
                "--config and its fields are for --from google: a pipeline tells its network",
            )
            from pdfast.importing.diffusers import import_diffusers

            import_diffusers(str(self.source), self.out, self.steps)
            return
        check(
            bool(self.config),
            "--config is missing: the file does not tell its network, so name a config of it, such "
            "as cifar10",
        )
        from pdfast.importing.google import import_google

        import_google(self.source, self.out, self.fields, self.steps)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model as a folder that diffusers or an ONNX runtime loads."""

    model: Positional[Path]
    """Model directory, such as runs/digits/round-11-steps-0004."""
    to: Literal["diffusers", "onnx"]
    """diffusers: a DDIMPipeline and a model card with the call; onnx: the network as one graph, and
    a JSON file that says what its output means."""
    out: Path
    """A new folder."""
    guidance: float | None = None
    """Guidance weight at which a guided student is written."""

    def run(self) -> None:
        """Run the command."""
        from pdfast.exporting import export

        export(self.model, self.out, self.to, guidance=self.guidance)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Write images from anywhere as one .npz: cropped, resized, checked, each once."""

    source: Positional[str]
    """A folder of images, a .zip, .tar shards, an .npz, IDX files, CIFAR-10's .tar.gz, emoji:FONT,
    hf:NAME[:SPLIT], or digits; see data.source. Images may have any size."""
    out: Path
    """A new .npz; a contact sheet, .png, is written beside it."""
    size: int
    """Height and width in pixels."""
    channels: Literal[0, 1, 3] = 0
    """1 for grey, 3 for colour; 0: 3 if any image has colour."""
    labels: FlagCreatePairsOff[bool] = False
    """Write the classes too."""
    duplicates: Literal["keep", "drop"] = "drop"
    """What becomes of images whose pixels repeat those of an earlier one."""

    def run(self) -> None:
        """Run the command."""
        check(1 <= self.size <= 2**16, "--size must be in 1 .. 65536")
        from pdfast.dataset_file import make
        from pdfast.progress import Screen

        make(
            DataConfig(source=self.source).source,
            self.out,
            size=self.size,
            channels=self.channels,
            labels=self.labels,
            duplicates=self.duplicates,
            screen=Screen(),
        )


@dataclass(frozen=True, kw_only=True)
class Doctor(Machine):
    """Say what runs where: device, number types, each op's implementation and why."""

    def run(self) -> None:
        """Run the command."""
        from pdfast.doctor import doctor
        from pdfast.progress import Screen

        doctor(self.device, self.threads, Screen())


AnyCommand = Train | Distill | Sample | Eval | Import | Export | Data | Doctor
COMMANDS = ("train", "distill", "sample", "eval", "import", "export", "data", "doctor")
Command = (
    Annotated[Train, subcommand("train")]
    | Annotated[Distill, subcommand("distill")]
    | Annotated[Sample, subcommand("sample")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Import, subcommand("import")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Data, subcommand("data")]
    | Annotated[Doctor, subcommand("doctor")]
)


def parse(args: Sequence[str]) -> AnyCommand:
    """The command of the arguments, its defaults taken from the config that they name."""
    word = args[0] if args else ""
    if word and not word.startswith("-") and word not in COMMANDS:
        known = ", ".join(COMMANDS)
        raise UsageError(f"no command '{word}'{nearest(word, COMMANDS)} (commands: {known})")
    for argument, value in itertools.pairwise([*args, "-"]):
        if argument == "--out=" or (argument == "--out" and not value):
            raise UsageError("--out is empty: name a place, or leave it away")
    kind = {"train": Train, "distill": Distill, "import": Import}.get(word)
    if kind is None:
        return cast(AnyCommand, _tyro(Command, args, "pdfast"))
    name = _config_argument(args)
    fields = load_config(name or DEFAULT_CONFIG)
    default: AnyCommand
    if kind is Import:
        required = dict.fromkeys(("source", "from_", "out"), tyro.MISSING)
        default = Import(config=name or "", fields=fields, **required)
    else:
        default = kind(config=name or DEFAULT_CONFIG, fields=fields)
    return cast(AnyCommand, _tyro(kind, args[1:], f"pdfast {word}", default))


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
    text = re.sub(r"\s*Perhaps you meant:\s+(--[\w.-]+).*", r"; did you mean \1?", text)
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
        from pdfast.distributed import first_to_say

        if not first_to_say(message):
            return code
    print(f"pdfast: {message}", file=sys.stderr)
    return code


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, the CPU's allocator or the GPU's says so."""
    return isinstance(error, MemoryError) or bool(
        re.search(r"out of memory|can't allocate memory", str(error), re.IGNORECASE)
    )
