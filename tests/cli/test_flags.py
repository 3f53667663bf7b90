"""Flags: the list of them, suggestions for wrong ones, and switches that were given a value."""

import dataclasses
import operator
import os
import pickle
import pty
import re
import subprocess
import sys

import pytest

import pdfast
from pdfast.cli.commands import COMMANDS
from pdfast.cli.flags import flags_of, help_text, suggestion
from pdfast.cli.main import main, parse
from pdfast.errors import UsageError, as_arguments


@pytest.mark.parametrize("command", COMMANDS)
def test_the_flags_are_those_that_the_help_lists(capsys, command):
    every = ["--from", "google"] if command == "import" else []
    assert main([command, *every, "--help"]) == 0
    lines = re.findall(r"^\W*((?:-h, )?--[^\u2502]*)", capsys.readouterr().out, re.MULTILINE)
    listed = {name for line in lines for name in re.findall(r"--[a-z][\w.-]*", line)}
    known = {name for flag in flags_of(COMMANDS[command]) for name in flag.names()}
    assert {"--help", "--debug"} < known
    assert listed >= known  # help texts name further flags
    assert {name for line in lines for name in re.findall(r"^(?:-h, )?(--[\w.-]+)", line)} <= known


def test_the_help_of_an_import_is_short(capsys):
    """The 40 flags of [model] are for google alone."""
    assert main(["import", "--help"]) == 0
    short = capsys.readouterr().out
    assert "--model.ch" not in short
    assert "pdfast import --from google --help" in " ".join(re.sub("\u2502", "", short).split())
    for google in (["--from=google"], ["--from", "edm", "--from", "google"]):
        assert main(["import", *google, "--help"]) == 0
        assert "--model.ch " in capsys.readouterr().out
    assert main(["import", "google", "--help"]) == 0
    assert "--model.ch " not in capsys.readouterr().out


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "import"])
def test_a_help_text_is_one_paragraph(capsys, monkeypatch, command):
    """The docstring's line breaks are gone."""
    monkeypatch.setenv("COLUMNS", "1000")
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    kind = COMMANDS[command]
    texts = {field.name: help_text(kind, field.name) for field in dataclasses.fields(kind)}
    texts.pop("fields", None)  # those of the config, which have texts of their own
    assert all(texts.values())
    assert [text for text in texts.values() if text not in shown] == []


@pytest.mark.parametrize(
    ("command", "wrong", "meant"),
    [
        ("train", "--train.lrr", "--train.lr"),
        ("distill", "--train.lrr", "--train.lr"),
        ("train", "--distill.lrr", "--distill.lr"),
        ("distill", "--distill.update", "--distill.updates"),
        ("train", "--lr", "--train.lr"),
        ("distill", "--data", "--data.source"),
        ("eval", "--data", "--data.source"),
        ("distill", "--lr", "--distill.lr"),
        ("train", "--batch", "--train.batch"),
        ("distill", "--batch", "--distill.batch"),
        ("distill", "--trian.lr", "--train.lr"),
        ("distill", "--train.image-size", "--model.image-size"),
        ("distill", "--train.steps", "--eval.steps"),
        ("distill", "--num", "--eval.num"),
        ("distill", "--distill.rouds", "--rounds"),
        ("distill", "--dry_rum", "--dry-run"),
        ("distill", "--train.no-chekpoint", "--train.no-checkpoint"),
        ("distill", "--engine.pipe", "--engine.pipeline-teacher"),
        ("train", "--debgu", "--debug"),
        ("sample", "--forc", "--force"),
        ("sample", "--eval.num", "--num"),
        ("import", "--model.chh", "--model.ch"),
        ("sample", "--model.ch", ""),
        ("distill", "--frobnicate", ""),
        ("distill", "--train.", ""),
    ],
)
def test_which_flag_is_meant(command, wrong, meant):
    assert suggestion(wrong, flags_of(COMMANDS[command]), command) == meant


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            "train --train.lrr 3 --model.chh=4",
            "--train.lrr and --model.chh are no options of pdfast train; did you mean --train.lr "
            "and --model.ch?",
        ),
        (
            "distill --lr 1",
            "--lr is no option of pdfast distill; did you mean --distill.lr or --train.lr?",
        ),
        (
            "distill --train.lrr 1",
            "--train.lrr is no option of pdfast distill; did you mean --train.lr?",
        ),
        ("distill --frobnicate", "--frobnicate is no option of pdfast distill"),
        ("--verison", "no command before --verison; did you mean --version? (commands: train, "),
        ("--rounds 3", "no command before --rounds 3 (commands: train, "),
        (
            "distill --engine.pipeline-teacher False",
            "--engine.pipeline-teacher is a switch, which takes no value such as False: write "
            "--engine.no-pipeline-teacher instead",
        ),
        ("distill --engine.pipeline_teacher=off", "--engine.no-pipeline-teacher instead"),
        ("distill --engine.no-graph 0", "such as 0: write --engine.graph instead"),
        ("train --deterministic true", "takes no value such as true: omit true"),
        ("distill --dry-run no", "takes no value such as no: omit --dry-run, too"),
        ("sample --force False model", "takes no value such as False: omit --force, too"),
        ("train extra", "extra is no argument of pdfast train"),
        ("sample m --num 3 4", "4 is no argument of pdfast sample"),
        ("train --train.lr x", "--train.lr must be a number, not 'x'"),
        ("train --seed 1.5", "--seed must be a whole number, not '1.5'"),
        (
            "eval m --steps 4,8",
            "--steps must be whole numbers separated by spaces, not '4,8'",
        ),
        (
            "import m --from difusers --out o",
            "--from cannot be 'difusers'; did you mean 'diffusers'? (choices: diffusers, edm, "
            "google)",
        ),
        ("sample m --steps", "--steps needs a value"),
        ("train --config", "--config needs a value"),
        ("sample m --guidance x", "--guidance must be a number, not 'x'"),
        ("eval m --num=x", "--num must be a whole number, not 'x'"),
        (
            "train --model.edm.constants 1 2 x",
            "--model.edm.constants must be numbers separated by spaces, not '1', '2', 'x'",
        ),
        ("data p --size 8 --out o --data.resize foo", "--data.resize cannot be 'foo' (choices: "),
        ("data p --size 8 --out o --resize foo", "--resize cannot be 'foo' (choices: "),
        ("train a b c", "a and b and c are no arguments of pdfast train (see --help)"),
        ("train extra a.toml", "of pdfast train; did you mean --config a.toml?"),
        ("data photos extra", "data needs --out PATH and --size INT (see pdfast data --help)"),
        ("stats --out o", "stats needs SOURCE (see pdfast stats --help)"),
        ("data photos", "data needs --out PATH and --size INT (see pdfast data --help)"),
        (
            "export",
            "export needs MODEL, --to {diffusers,onnx} and --out PATH (see pdfast export --help)",
        ),
    ],
)
def test_what_is_wrong_in_one_sentence(args, message):
    with pytest.raises(UsageError) as error:
        parse(args.split())
    assert str(error.value).startswith(message) or str(error.value).endswith(message)


@pytest.mark.parametrize("columns", ["40", "200"])
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sample"], "pdfast: sample needs MODEL (see pdfast sample --help)\n"),
        (
            ["train", "--seed", "long " * 30],
            f"pdfast: --seed must be a whole number, not '{'long ' * 30}'\n",
        ),
        (
            ["train", f"/{'folder/' * 30}a.toml"],
            f"; did you mean --config /{'folder/' * 30}a.toml?\n",
        ),
    ],
)
def test_messages_are_the_same_on_a_terminal(columns, args, message):
    """tyro writes for the terminal that stdout is: in colours, in frames, in its width."""
    master, terminal = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pdfast", *args],
            stdout=terminal, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "TERM": "xterm", "COLUMNS": columns},
        )  # fmt: skip
    finally:
        os.close(terminal)
        os.close(master)
    assert done.returncode == 2
    assert done.stderr.endswith(message)
    assert done.stderr.startswith("pdfast: ")


def test_switches_that_are_right_pass():
    command = parse(["distill", "--engine.no-pipeline-teacher", "--deterministic"])
    assert not command.fields.engine.pipeline_teacher
    assert command.fields.deterministic


RENAMED = "--model.head is called --model.parameterization now"
CALLED = "--model.parameterization both is called x_eps now"


@pytest.mark.parametrize(
    ("flag", "message", "field", "value"),
    [
        ("--peers.attention xformers", "--peers.attention is called --backends.attention now",
         "backends.attention", "xformers"),
        ("--model.head x", RENAMED, "model.parameterization", "x"),
        ("--model.head both", f"{RENAMED}, {CALLED}", "model.parameterization", "x_eps"),
        ("--model.parameterization both", CALLED, "model.parameterization", "x_eps"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("between", [" ", "="])
def test_a_former_name_of_a_flag_works_with_one_warning(flag, message, field, value, between):
    with pytest.warns(FutureWarning) as said:
        command = parse(["train", *flag.replace(" ", between).split()])
    assert operator.attrgetter(field)(command.fields) == value
    (warning,) = said
    assert str(warning.message) == message


@pytest.mark.parametrize(
    ("said", "in_python"),
    [
        (
            "choose another --out, or pass --force, which",
            "choose another out, or pass force=True, ",
        ),
        ("(--device cpu), or --distill.start-steps 4", "(device='cpu'), or distill.start_steps 4"),
        ("use pdfast eval --against, or --data.source", "use pdfast eval --against, or data"),
        ("pip install --no-deps; a--b", "pip install --no-deps; a--b"),
    ],
)
def test_messages_to_python_name_arguments(said, in_python):
    assert as_arguments(said).startswith(in_python)


def test_the_functions_of_the_package_can_be_pickled():
    for name in ("train", "distill", "evaluate", "load"):
        assert pickle.loads(pickle.dumps(getattr(pdfast, name))) is getattr(pdfast, name)
