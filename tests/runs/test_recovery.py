"""Damage to models and saved states is named, and repaired or refused; never by starting over."""

import dataclasses
import json
import random
import shutil

import pytest
import torch
from run_cases import assert_same_run, assert_same_tensors, stop_after

import pdfast
from pdfast.console.progress import Screen
from pdfast.errors import PdfastError, Stopped, UsageError
from pdfast.models import checkpoint
from pdfast.models.model import Model
from pdfast.runs import training_state
from pdfast.storage import files
from pdfast.storage.files import Damaged
from pdfast.training.loop import Optimizer
from pdfast.training.model_run import ModelRun

ROUND_1, ROUND_2 = "round-01-steps-0004", "round-02-steps-0002"
OF_TEACHER = [f"state/round-00-update-{n:09d}" for n in (10, 11)]
OF_ROUND_2 = [f"state/round-02-update-{n:09d}" for n in (5, 6)]


def stopped_after(config, path, updates):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, updates)
        with pytest.raises(Stopped):
            pdfast.distill(config, out=path, quiet=True)
    return path


@pytest.fixture(scope="module")
def config():
    from conftest import TINY

    from pdfast.config.schema import Config
    from pdfast.config.serialization import from_table

    return from_table(Config, {**TINY, "precision": "fp32"})  # what auto means on a CPU


@pytest.fixture(scope="module")
def training(config, tmp_path_factory):
    """Make a run stopped in its teacher's phase, with two states."""
    return stopped_after(config, tmp_path_factory.mktemp("training") / "run", 11)


@pytest.fixture(scope="module")
def distilling(config, tmp_path_factory):
    """Make a run stopped in its second round, with two states."""
    return stopped_after(config, tmp_path_factory.mktemp("distilling") / "run", 24)


@pytest.fixture
def copied(tmp_path):
    """Return a function that copies a run to a new place."""
    return lambda run: shutil.copytree(run, tmp_path / "run")


def flip(file, at, mask):
    content = bytearray(file.read_bytes())
    content[at] ^= mask
    file.write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def empty(file):
    file.write_bytes(b"")


def remove(file):
    file.unlink()


def flips(folder, seed, num):
    """Yield (file, position, mask) of random single bytes in a folder's files."""
    rng = random.Random(seed)
    listed = sorted(folder.iterdir())
    for _ in range(num):
        file = rng.choice(listed)
        yield file, rng.randrange(file.stat().st_size), rng.randrange(1, 256)


def contents(run):
    """Return all files except log.txt, which records refusals and what was set aside."""
    files = (p for p in sorted(run.rglob("*")) if p.is_file() and p.name != "log.txt")
    return {str(p.relative_to(run)): p.read_bytes() for p in files}


def start(path, config, resume):
    """Return the warnings of a run that is resumed."""
    said = []
    screen = Screen(quiet=True)
    screen.warn = said.append
    with ModelRun(path, config, screen).start(resume):
        return said


# ------------------------------------------------------------------------------------------
# Found and named


@pytest.mark.parametrize("kind", ["model", "state"])
def test_each_of_200_single_flipped_bytes(config, distilling, copied, kind):
    run = copied(distilling)
    folder = run / (ROUND_1 if kind == "model" else OF_ROUND_2[1])
    hit = set()

    def load():
        return (
            checkpoint.load_model(folder)
            if kind == "model"
            else training_state.load(folder, config)
        )

    for file, at, mask in flips(folder, kind, 200):
        flip(file, at, mask)
        with pytest.raises(Damaged) as error:
            load()
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)
        flip(file, at, mask)
        hit.add(file.name)
    assert hit == {file.name for file in folder.iterdir()}
    load()


@pytest.mark.parametrize("folder", ["teacher", ROUND_1, OF_ROUND_2[0], OF_ROUND_2[1]])
def test_strict_refuses_all_damage_and_changes_nothing(config, distilling, copied, folder):
    run = copied(distilling)
    whole = contents(run)
    damages = [(lambda f, at=at, mask=mask: flip(f, at, mask), file)
               for file, at, mask in flips(run / folder, folder, 5)]  # fmt: skip
    damages += [(damage, f) for damage in (cut, empty, remove) for f in (run / folder).iterdir()]
    for damage, file in damages:
        damage(file)
        before = contents(run)
        with pytest.raises(PdfastError) as error:
            start(run, config, "strict")
        assert str(file) in str(error.value)
        assert contents(run) == before
        file.write_bytes(whole[str(file.relative_to(run))])
    assert start(run, config, "strict") == []
    assert contents(run) == whole


@pytest.mark.parametrize("damage", [cut, empty, remove, lambda f: flip(f, 40, 8)])
@pytest.mark.parametrize(
    ("folder", "then"),
    [
        (ROUND_1, "the round is made again"),
        (OF_ROUND_2[1], "the run resumes from round-02-update-000000005"),
    ],
)
def test_auto_puts_damage_aside(config, distilling, copied, folder, then, damage):
    for n, name in enumerate(sorted(p.name for p in (distilling / folder).iterdir())):
        run = copied(distilling)
        damage(run / folder / name)
        before = contents(run)
        (said,) = start(run, config, "auto")
        assert str(run / folder / name) in said, n
        assert then in said
        aside = f"{folder}.damaged"
        assert contents(run) == {k.replace(f"{folder}/", f"{aside}/"): v for k, v in before.items()}
        assert start(run, config, "auto") == []
        shutil.rmtree(run)


@pytest.mark.parametrize("damage", [cut, empty, remove, lambda f: flip(f, 40, 8)])
def test_a_damaged_teacher_is_not_trained_again(config, distilling, copied, damage):
    run = copied(distilling)
    for name in sorted(p.name for p in (run / "teacher").iterdir()):
        content = (run / "teacher" / name).read_bytes()
        damage(run / "teacher" / name)
        before = contents(run)
        for resume in ("auto", "strict"):
            with pytest.raises(PdfastError, match=r"remove .*teacher to have it trained") as error:
                start(run, config, resume)
            assert str(run / "teacher" / name) in str(error.value)
        assert contents(run) == before
        (run / "teacher" / name).write_bytes(content)


def test_states_of_the_teacher_all_damaged_are_refused(config, training, copied):
    run = copied(training)
    for state in OF_TEACHER:
        remove(run / state / "manifest.json")
    before = contents(run)
    for _ in range(2):
        with pytest.raises(PdfastError, match=r"no saved state of the teacher in .*state is whole"):
            pdfast.distill(config, out=run, quiet=True)
    assert contents(run) == before


def test_eval_refuses_a_damaged_run_as_it_is(distilling, copied):
    run = copied(distilling)
    flip(run / ROUND_1 / "model.safetensors", 3000, 1)
    before = contents(run)
    with pytest.raises(Damaged, match=r"round-01-steps-0004/model\.safetensors is damaged"):
        pdfast.evaluate(run, quiet=True)
    kept = {name: data for name, data in contents(run).items() if "eval-state" not in name}
    assert kept == before  # and of the teacher's figures, which were found before, none is lost


def test_never_refuses_a_run_and_starts_a_new_one(config, distilling, copied, tmp_path):
    run = copied(distilling)
    before = contents(run)
    with pytest.raises(UsageError, match=r"holds a run already, and --resume never was given"):
        start(run, config, "never")
    assert contents(run) == before
    assert start(tmp_path / "new", config, "never") == []


def test_resume_takes_three_words(config, tmp_path):
    with pytest.raises(UsageError, match="resume must be auto, strict or never, not 'always'"):
        pdfast.train(config, out=tmp_path / "run", quiet=True, resume="always")
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------
# Repaired runs end with the same bits


def test_the_state_before_a_damaged_one_leads_to_the_same_bits(
    config,
    training,
    copied,
    straight,
    capsys,
):
    run = copied(training)
    (run / OF_TEACHER[1] / "weights.safetensors").write_bytes(b"cut")
    pdfast.distill(config, out=run)
    output = capsys.readouterr().out
    assert "warning:" in output
    assert "weights.safetensors is damaged" in output
    assert "resuming from update 10" in output
    assert_same_run(straight, run)
    assert not (run / "state").exists()


def test_a_round_without_a_whole_state_begins_anew(
    config,
    distilling,
    copied,
    straight,
    capsys,
):
    run = copied(distilling)
    for state in OF_ROUND_2:
        flip(run / state / "moments.safetensors", 500, 4)
    pdfast.distill(config, out=run)
    assert capsys.readouterr().out.count("moments.safetensors is damaged") == 2
    assert_same_run(straight, run)


@pytest.mark.parametrize("damaged", [[ROUND_1], [ROUND_1, ROUND_2]])
def test_damaged_rounds_are_made_again(config, copied, straight, capsys, damaged):
    run = copied(straight)
    broken = {}
    for name in damaged:
        flip(run / name / "config.json", 30, 1)
        broken[name] = contents(run / name)
    kept = contents(run / ROUND_2)
    pdfast.distill(config, out=run)
    output = capsys.readouterr().out
    for name in damaged:
        assert f"warning: {run / name / 'config.json'} is damaged" in output
        assert contents(run / f"{name}.damaged") == broken[name]
    if ROUND_2 not in damaged:  # it was not touched; so the lines of round 1 come after its own
        assert contents(run / ROUND_2) == kept
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        lines.sort(key=lambda line: json.loads(line)["round"])
        (run / "metrics.jsonl").write_text("".join(lines))
    assert_same_run(straight, run)


# ------------------------------------------------------------------------------------------
# A state that is whole, but not of this place


def edited(state, **values):
    """Change state.json, and write a valid manifest for it."""
    table = json.loads((state / "state.json").read_text()) | values
    kept = {k: v for k, v in table.items() if v is not None}
    (state / "state.json").write_text(json.dumps(kept))
    files.seal(state)


@pytest.mark.parametrize(
    "values",
    [
        {"round": 1},
        {"round": "2"},
        {"update": 6.0},
        {"update": 5},
        {"update": None},
        {"steps": True},
        {"steps": 4},
        {"phase": "train"},
        {"seconds": -1.0},
        {"seconds": "5"},
        {"seconds": 10**400},
        {"config": None},
        {"config": 7},
        {"config": {"seed": 1}},
        {"data": None},
        {"data": {"num": "40"}},
    ],
)
def test_a_state_of_wrong_values_is_damaged(config, distilling, copied, values):
    run = copied(distilling)
    edited(run / OF_ROUND_2[1], **values)
    (said,) = start(run, config, "auto")
    assert str(run / OF_ROUND_2[1] / "state.json") in said


def test_a_state_of_another_config_is_refused(config, distilling, copied):
    run = copied(distilling)
    table = json.loads((run / OF_ROUND_2[1] / "state.json").read_text())["config"]
    table["distill"]["lr"] = 0.5
    edited(run / OF_ROUND_2[1], config=table)
    before = contents(run)
    message = r"update-000000006 was saved with distill\.lr 0\.5 \(now 0\.001\): choose another"
    with pytest.raises(UsageError, match=message):
        start(run, config, "auto")
    assert contents(run) == before
    table["distill"]["lr"], table["save_every"] = 1e-3, 3  # which may change
    edited(run / OF_ROUND_2[1], config=table)
    assert start(run, config, "auto") == []


def test_a_state_of_another_machine_is_a_warning(config, distilling, copied, capsys):
    run = copied(distilling)
    then = {**files.versions(), "threads": 96, "torch": "1.0"}
    files.seal(run / OF_ROUND_2[1], versions=then)
    pdfast.distill(config, out=run)
    now = files.versions()
    expected = f"was saved with torch 1.0 (now {now['torch']}), threads 96 (now {now['threads']})"
    assert expected in capsys.readouterr().out


def test_what_was_written_of_a_failure_can_be_put_in_place_of_a_state(config, tmp_path):
    with ModelRun(tmp_path / "run", config, Screen(quiet=True)).start() as run:
        tensors = {"x.safetensors": {"x": torch.ones(1)}}
        path = run.save_failure(0, 7, 1.5, tensors, {"loss": "nan"})
        files.make_folder(run.path / "state")
        path.rename(run.path / "state" / path.name.removeprefix("not-finite-"))
    assert start(tmp_path / "run", config, "strict") == []
    with ModelRun(tmp_path / "run", config, Screen(quiet=True)).start() as run:
        table, tensors = run.load_state(0)
    assert (table["update"], table["seconds"]) == (7, 1.5)
    assert torch.equal(tensors["x.safetensors"]["x"], torch.ones(1))


def test_tensors_that_do_not_fit_change_nothing(config):
    optimizer = Optimizer(Model(config.model), config.train)
    state = optimizer.state()
    before = {f: {k: t.clone() for k, t in group.items()} for f, group in state.items()}
    name = list(state["weights.safetensors"])[-1]
    for wrong in (torch.ones(3), state["weights.safetensors"][name].double(), None):
        weights = {k: t + 1 for k, t in state["weights.safetensors"].items()}
        weights[name] = wrong
        if wrong is None:
            del weights[name]
        with pytest.raises(PdfastError, match=rf"the saved state has no {name} of float32 \("):
            optimizer.load({**state, "weights.safetensors": weights})
        now = optimizer.state()
        for file, group in before.items():
            assert all(torch.equal(now[file][k], t) for k, t in group.items())


def test_metrics_are_on_disk_before_a_state_or_model_is(config, tmp_path, monkeypatch):
    order = []
    real = files.fsync
    monkeypatch.setattr(files, "fsync", lambda path: (order.append(path), real(path)))
    with ModelRun(tmp_path / "run", config, Screen(quiet=True)).start() as run:
        run.log(round=0, update=1)
        for save in (
            lambda: run.save_state(0, 1, 0.0, {"x.safetensors": {"x": torch.zeros(1)}}),
            lambda: run.save_model(Model(config.model), run.teacher_dir),
        ):
            order.clear()
            save()
            assert order[0] == tmp_path / "run" / "metrics.jsonl"
            assert any(path.suffix == ".safetensors" for path in order[1:])


def test_a_process_killed_while_it_removes_a_state_leaves_no_damage(config, tmp_path, monkeypatch):
    def killed(path, **kwargs):
        if path.name.endswith("000000001"):
            (path / "manifest.json").unlink()
            raise KeyboardInterrupt

    with ModelRun(tmp_path / "run", config, Screen(quiet=True)).start() as run:
        for update in (1, 2):
            run.save_state(0, update, 0.0, {"x.safetensors": {"x": torch.zeros(1)}})
        monkeypatch.setattr(training_state.files.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run.save_state(0, 3, 0.0, {"x.safetensors": {"x": torch.zeros(1)}})
    monkeypatch.undo()
    assert start(tmp_path / "run", config, "strict") == []
    assert [p.name[-1] for p in sorted((tmp_path / "run" / "state").iterdir())] == ["2", "3"]


def test_two_states_stay_and_a_damaged_one_is_none_of_them(config, tmp_path):
    with ModelRun(tmp_path / "run", config, Screen(quiet=True)).start() as run:
        for update in (1, 2, 3):
            run.save_state(0, update, 0.0, {"x.safetensors": {"x": torch.zeros(1)}})
    folder = tmp_path / "run" / "state"
    assert [p.name[-1] for p in sorted(folder.iterdir())] == ["2", "3"]
    remove(folder / "round-00-update-000000003" / "state.json")
    assert len(start(tmp_path / "run", config, "auto")) == 1
    with ModelRun(tmp_path / "run", config, Screen(quiet=True)).start() as run:
        run.save_state(0, 4, 0.0, {"x.safetensors": {"x": torch.zeros(1)}})
    assert [p.name[-1] for p in training_state.found(folder, 0)] == ["4", "2"]
    wider = dataclasses.replace(config, seed=1)
    with pytest.raises(UsageError, match=r"was started with seed 0 \(now 1\)"):
        start(tmp_path / "run", wider, "auto")


def test_a_teacher_that_is_gone_is_missed(config, straight, copied, capsys):
    run = copied(straight)
    shutil.rmtree(run / "teacher")
    pdfast.distill(config, out=run)
    assert "the teacher of the existing rounds, is missing: it is trained again" in (
        capsys.readouterr().out
    )
    assert_same_tensors(straight / "teacher", run / "teacher")
    assert (straight / "report.json").read_text() == (run / "report.json").read_text()


def test_strict_does_not_train_a_teacher_again(config, straight, copied):
    run = copied(straight)
    shutil.rmtree(run / "teacher")
    with pytest.raises(PdfastError, match="the teacher of the existing rounds, is missing"):
        start(run, config, "strict")
    assert not (run / "teacher").exists()


def test_a_model_of_another_round_is_not_taken_for_this_ones(config, straight, copied):
    run = copied(straight)
    shutil.rmtree(run / ROUND_2)
    shutil.copytree(run / ROUND_1, run / ROUND_2)
    with pytest.raises(PdfastError, match=r"manifest\.json is of another round than the directory"):
        start(run, config, "strict")
    (warning,) = start(run, config, "auto")
    assert f"{ROUND_2} is set aside as {ROUND_2}.damaged" in warning


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seconds"', '"secones"'),
        ('"fixed_batch_loss_start"', '"fixed_batch_loss_strat"'),
        ('"rounding"', '"roundinh"'),
        ('"distance": ', '"distance": "x", "y": '),
        ('"distance": ', '"distance": null, "y": '),
    ],
)
def test_an_altered_line_of_metrics_is_named(straight, copied, old, new):
    metrics = copied(straight) / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    number = max(n for n, line in enumerate(lines) if old in line)
    lines[number] = lines[number].replace(old, new)
    metrics.write_text("".join(lines))
    with pytest.raises(PdfastError, match=rf"metrics\.jsonl, line {number + 1}, is damaged"):
        pdfast.evaluate(metrics.parent, quiet=True)
