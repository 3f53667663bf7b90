"""Files of 0.1.0 are read and resumed; unknown formats and fields are refused."""

import dataclasses
import hashlib
import json
import math
import operator
import shutil
import tomllib
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import tomli_w
import torch
from engine_cases import changed
from run_cases import TIMING, metrics, stop_after
from torch import nn

import pdfast
from pdfast.config import formats
from pdfast.config.formats import ADDED, CHANGED, FIRST, FORMAT, RENAMED, OtherVersion
from pdfast.config.model import NetConfig
from pdfast.config.schema import Config, load_config
from pdfast.config.serialization import to_table
from pdfast.errors import PdfastError, Stopped, UsageError
from pdfast.kernels import group_norm_silu
from pdfast.models import checkpoint
from pdfast.models.model import Model
from pdfast.runs import training_state
from pdfast.storage import digests, files, kept, model_dir
from pdfast.storage.files import Damaged
from pdfast.version import __version__

OLD = Path(__file__).parents[1] / "fixtures" / "formats-0.1.0"
ENDS = json.loads((OLD / "ends.json").read_text())
MODELS = ("teacher", "round-01-steps-0004", "round-02-steps-0002")
STATES = ("training/state/round-00-update-000000007", "distilling/state/round-01-update-000000005")
# Weights differ by 2.3e-6 between processors (see the fixtures' README); from the saved states to
# the ends of the phases they move by 2e-3 and more.
TOLERANCE = 2e-5
COMPARED = ("loss", "grad_norm", "lr", "distance", "signal")


def here():
    """Settings that the bits depend on, as in make.py, beside those in the fixtures' files."""
    info = {}
    if Path("/proc/cpuinfo").is_file():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            info.setdefault(key.strip(), value.strip())
    found = {key: info.get(key, "") for key in ("vendor_id", "cpu family", "model", "cache size")}
    return files.versions() | found | {"capability": torch.backends.cpu.get_cpu_capability()}


def repeats():
    """Return whether this machine and build reproduce the fixtures' bits, not just close values."""
    made, now = ENDS["made_with"], here()
    op = json.loads((OLD / "evaluating" / "teacher" / "manifest.json").read_text())
    same = {key for key in made if made[key] == now[key]}
    free = {"pdfast", "python"}
    return made.keys() - free <= same and op["group_norm_silu"] == group_norm_silu.implementation(
        torch.device("cpu")
    )


def assert_close(found, expected, tolerance=TOLERANCE):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance, msg=name)


@pytest.fixture
def old(tmp_path):
    """A copy of a fixture that a test may change."""
    shutil.copytree(OLD, tmp_path / "old")
    return tmp_path / "old"


def contents(folder):
    left = {".lock", "log.txt"}
    found = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in left)
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def distill(config, out, **more):
    return pdfast.distill(config, out=out, threads=1, quiet=True, **more)


# ------------------------------------------------------------------------------------------
# Files of 0.1.0


@pytest.mark.parametrize("name", MODELS)
def test_models_load_and_sample_as_they_did(name):
    model = pdfast.load(OLD / "evaluating" / name)
    assert model.steps == {"teacher": 0, MODELS[1]: 4, MODELS[2]: 2}[name]
    assert model.cfg.dropout == (0.1 if name == "teacher" else 0.0)
    samples = model.sample(**ENDS["samples"])
    expected = safetensors.torch.load_file(OLD / "samples.safetensors")[name]
    if repeats():
        assert torch.equal(samples, expected)
    torch.testing.assert_close(samples, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("then", ["v", "both"])
def test_a_model_of_a_network_of_ones_own_loads(old, then):
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, z, logsnr, label):
            return self.layer(z) if then == "v" else torch.cat([self.layer(z), z], 1)

    path = old / "own"
    table = json.loads((path / "config.json").read_text())
    assert table["head"] == "v"
    (path / "config.json").write_text(json.dumps(table | {"head": then}))
    files.seal(path, format=1)
    model = pdfast.load(path, network=Linear())
    del table["head"]
    now = {"v": "v", "both": "x_eps"}[then]
    assert model.describe() == table | {"parameterization": now, "classes": []}
    weights = safetensors.torch.load_file(OLD / "own" / "model.safetensors")
    assert_close(model.weights(), weights, 0)


@pytest.mark.parametrize("name", ["training", "distilling", "evaluating"])
def test_a_run_ends_where_it_would_have_ended(old, name, capsys):
    """Draws, dropout and averages continue as in 0.1.0: to the bit, on a machine that can."""
    run = old / name
    distill(old / "config.toml", run)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("kept no digest of the data") == 1
    assert f"warning: {run} was begun by pdfast 0.1.0, which kept no digest of the data" in said
    assert not (run / "state").exists()
    assert load_config(run / "config.toml").eval.classes == "even"  # as it drew them
    for model in MODELS:
        expected = safetensors.torch.load_file(OLD / "evaluating" / model / "model.safetensors")
        assert_close(checkpoint.load_model(run / model).weights(), expected)
        if repeats():
            assert model_dir.fingerprint(run / model) == ENDS["ends"]["weights"][model]
    found, lines = metrics(run), ENDS["ends"]["metrics"]
    assert len(found) == len(lines)
    for mine, line in zip(found, lines, strict=True):
        for key in ("round", "update", "steps", *COMPARED):
            if repeats() or key not in line:
                assert mine.get(key) == line.get(key)
            else:
                assert mine[key] == pytest.approx(line[key], rel=1e-3)
    assert_same_figures(json.loads((run / "report.json").read_text()))


def assert_same_figures(report):
    expected = ENDS["ends"]["report"]
    for key in ("teacher", "student", "floor"):
        assert report[key] == pytest.approx(expected[key], rel=1e-4)
        assert not repeats() or report[key] == expected[key]
    assert report["facts"]["reference_sha256"] == expected["facts"]["reference_sha256"]


def test_the_tolerance_would_notice():
    """The tolerance is below the effect of another EMA decay, or of a lost update."""
    teacher = safetensors.torch.load_file(OLD / "evaluating" / "teacher" / "model.safetensors")
    state = OLD / STATES[0]
    for name, tensor in safetensors.torch.load_file(state / "ema.safetensors").items():
        assert (tensor - teacher[name]).abs().max() > 50 * TOLERANCE
    moved = json.loads((state / "state.json").read_text())["config"]["train"]["lr"]
    assert moved * (0.91 - 0.9) > TOLERANCE  # effect of one update with a decay larger by 0.01


def rekeyed(run, model, folder):
    """Write the evaluation state of format 1 as 0.1.0 would have written it on this machine."""
    z = torch.linspace(-1, 1, math.prod(model.image_shape)).reshape(1, *model.image_shape)
    x_hat = model.predict_x(z, torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    table = json.loads((run / model.folder / "config.json").read_text())
    text = json.dumps([table, files.versions() | {"pdfast": "0.1.0"}, "cpu"])
    said = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    mark = digests.digest({**model.weights(), "x-hat": x_hat, "described": said})
    for path in folder.iterdir():
        with safetensors.safe_open(path, "pt") as file:
            facts = file.metadata()
        facts.pop("sha256")
        tensors = kept.load(path, facts)
        own = {"model": mark, "steps": facts["steps"], "seed": facts["seed"]}
        name = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:24]
        (folder.parent / name).mkdir(exist_ok=True)
        kept.save(folder.parent / name / path.name, tensors, facts | own)
    if name != folder.name:
        shutil.rmtree(folder)
    return name == folder.name


@pytest.mark.parametrize("how", ["distill", "evaluate"])
@torch.no_grad()
def test_an_evaluation_goes_on_where_it_was(old, how, monkeypatch):
    """Only missing samples are drawn; on another machine, as if it had been started there."""
    run, sampled, same = old / "evaluating", [], []
    of = {"figure": "teacher", "samples": MODELS[2]}
    for folder in sorted((run / "eval-state").iterdir()):
        (path,) = folder.iterdir()
        name = of[path.name.split("-")[0]]
        model = pdfast.load(run / name)
        model.folder = name
        same.append(rekeyed(run, model, folder))
    assert len(same) == 3
    if repeats() and here()["python"] == ENDS["made_with"]["python"]:
        assert all(same)
    real = Model.sample_images

    def sample_images(model, num, steps, *args, **kwargs):
        if num > 16:  # those are for a picture
            sampled.append((model.steps, steps, num, kwargs.get("first", 0)))
        return real(model, num, steps, *args, **kwargs)

    monkeypatch.setattr(Model, "sample_images", sample_images)
    if how == "distill":
        distill(old / "config.toml", run)
    else:
        pdfast.evaluate(run, threads=1, quiet=True)
    assert sampled == [(2, 2, 300 - 256, 256)]
    assert_same_figures(json.loads((run / "report.json").read_text()))
    assert not list((run / "eval-state").rglob("samples-*"))  # figures stay


@pytest.mark.parametrize(("then", "now"), [("true", "on"), ("false", "off")])
def test_a_value_of_another_form_means_the_same(old, then, now):
    file, state = old / "training" / "config.toml", old / STATES[0]
    file.write_text(file.read_text().replace("compile = false", f"compile = {then}"))
    assert load_config(file).engine.compile == now
    table = json.loads((state / "state.json").read_text())
    table["config"]["engine"]["compile"] = then == "true"
    read = formats.read(Config, table["config"], state, FIRST)
    assert read == load_config(file)


@pytest.mark.parametrize(
    ("text", "said", "field", "value"),
    [
        ('[peers]\nattention = "xformers"', "peers is called backends now", "backends.attention",
         "xformers"),
        ('[model]\nhead = "x"', "model.head is called model.parameterization now",
         "model.parameterization", "x"),
        ('[model]\nhead = "both"', "model.head is called model.parameterization now, "
         "model.parameterization both is called x_eps now", "model.parameterization", "x_eps"),
        ('[model]\nparameterization = "both"', "model.parameterization both is called x_eps now",
         "model.parameterization", "x_eps"),
        ("[engine]\ncompile = false", "engine.compile false is called off now", "engine.compile",
         "off"),
    ],
)  # fmt: skip
def test_a_users_config_may_have_the_former_names(tmp_path, text, said, field, value):
    file = tmp_path / "mine.toml"
    file.write_text(f"{text}\n")
    with pytest.warns(FutureWarning) as warned:
        assert operator.attrgetter(field)(load_config(file)) == value
    (warning,) = warned
    assert str(warning.message) == f"{file}: {said}"


@pytest.mark.parametrize(
    ("text", "old"),
    [
        ("[peers]\n[backends]", "peers"),
        ('[model]\nhead = "x"\nparameterization = "x"', "model.head"),
    ],
)
def test_a_field_is_not_there_by_both_names(tmp_path, text, old):
    file = tmp_path / "mine.toml"
    file.write_text(f"{text}\n")
    with pytest.raises(UsageError, match=f"unknown key '{old}'"):
        load_config(file)


@pytest.mark.parametrize("format_", [1, 2])
def test_a_model_is_described_as_an_older_format_did(format_):
    """The former words of a model identify an evaluation of 0.1.0; today's are read back."""
    cfg = NetConfig(parameterization="x_eps", channels=1)
    table = {"model": to_table(cfg), "steps": 4, "classes": []}
    old = formats.as_before(table, format_)
    known = [key for key in to_table(cfg) if key not in ("sigmas", "edm")]  # which came later
    assert old["model"] == {
        {"parameterization": "head"}.get(key, key): "both" if value == "x_eps" else value
        for key, value in to_table(cfg).items()
        if key in known
    }
    assert list(old["model"]) == ["head" if key == "parameterization" else key for key in known]
    assert ("classes" in old) == (format_ == 2)
    by = formats.Written(format_, "0.1.9")
    assert checkpoint.parse_config(Path("config.json"), old, by).cfg == cfg


def test_a_former_name_of_a_run_is_no_news(recwarn):
    load_config(OLD / "training" / "config.toml")
    assert not recwarn.list


def test_a_config_of_an_old_run_is_a_config_like_any_other():
    """A whole config of 0.1.0 means what it did then; a partial one has today's defaults."""
    old = load_config(OLD / "training" / "config.toml")
    mine = load_config(OLD / "config.toml")
    assert old.engine.compile == "off"
    assert mine.engine.compile == Config().engine.compile
    before = {"engine": {"compile": "off"}}
    for key, meant in formats.added(1).items():
        if "/" not in key:
            *tables, field = key.split(".")
            table = before
            for name in tables:
                table = table.setdefault(name, {})
            table[field] = meant
    assert (before["data"]["labels"], before["eval"]["classes"]) == ("top-as-text", "even")
    edm = before["model"].pop("edm")
    before["model"]["edm"] = dataclasses.replace(mine.model.edm, **edm)
    mine = changed(mine, **before)
    assert dataclasses.replace(mine, precision="fp32", name="old") == old


# ------------------------------------------------------------------------------------------
# The tables


def config_fields(table, prefix=""):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from config_fields(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_every_field_that_the_first_format_lacked_has_its_old_meaning():
    from pdfast.config.serialization import from_table, to_table

    first = tomllib.loads((OLD / "training" / "config.toml").read_text())
    then = set(config_fields(formats.with_new_names(first)[0]))
    now = set(config_fields(to_table(Config())))
    added = {key for key in formats.added(1) if "/" not in key}
    assert now - then == added, "annotate a new field of a config with formats.Since"
    assert then <= now
    for fields in (*ADDED.values(), *CHANGED.values()):
        for key, value in fields.items():
            if "/" in key:
                continue
            *outer, name = key.split(".")
            for meant in [pair[1] for pair in value] if fields in CHANGED.values() else [value]:
                table = {name: meant}
                for part in reversed(outer):
                    table = {part: table}
                from_table(Config, table)
    assert max(ADDED) <= FORMAT
    assert max(CHANGED) <= FORMAT
    assert max(RENAMED) <= FORMAT


@pytest.fixture
def newer_field(monkeypatch):
    """Pretend that this format added `train.grad_clip`, and that nothing was clipped before."""
    monkeypatch.setitem(ADDED[FORMAT], "train.grad_clip", 0.0)


def without_clip(table):
    return {**table, "train": {k: v for k, v in table["train"].items() if k != "grad_clip"}}


def test_a_new_field_means_what_was_done_before_it(old, newer_field, monkeypatch, capsys):
    """A missing field means no clipping, in states and config.toml, and in the resumed run."""
    run, state = old / "training", old / STATES[0]
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(tomli_w.dumps(without_clip(tomllib.loads(text))))
    table = json.loads((state / "state.json").read_text())
    table["config"] = without_clip(table["config"])
    (state / "state.json").write_text(json.dumps(table))
    files.seal(state, format=1)
    assert load_config(run / "config.toml").train.grad_clip == 0.0
    assert load_config(old / "config.toml").train.grad_clip == 1.0
    for update in (8, 9):
        with monkeypatch.context() as patch:
            stop_after(patch, 1)
            with pytest.raises(Stopped):
                pdfast.distill(old / "config.toml", out=run, threads=1)
        said = " ".join(capsys.readouterr().out.split())
        assert f"{run} was begun by pdfast 0.1.0, and keeps what that version used: " in said
        assert "train.grad_clip 0.0" in said
        assert "keeps what that version used: " in (run / "log.txt").read_text()
        newest = run / "state" / f"round-00-update-{update:09d}"
        saved = json.loads((newest / "state.json").read_text())
        assert saved["config"]["train"]["grad_clip"] == 0.0
        assert saved["data"]["num"] == 1797
    assert tomllib.loads((run / "config.toml").read_text())["train"]["grad_clip"] == 0.0
    loud = load_config(old / "config.toml")
    loud = dataclasses.replace(loud, train=dataclasses.replace(loud.train, grad_clip=2.0, lr=1.0))
    with pytest.raises(
        UsageError, match=r"was started with train\.lr 0\.004 \(now 1\.0\): to continue"
    ):
        distill(loud, run)
    shutil.rmtree(run)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Stopped):
            distill(old / "config.toml", run)
    assert tomllib.loads((run / "config.toml").read_text())["train"]["grad_clip"] == 1.0


def test_a_field_that_a_format_has_is_missed(old, straight, tmp_path):
    """In a sealed file it is damage; in config.toml, a field to restore."""
    run = shutil.copytree(straight, tmp_path / "run")
    for folder, format_ in ((run, FORMAT), (old / "training", 1)):
        table = tomllib.loads((folder / "config.toml").read_text())
        assert table.get("run", {}).get("format", 1) == format_
        (folder / "config.toml").write_text(tomli_w.dumps(without_clip(table)))
        with pytest.raises(UsageError, match=r"config\.toml: train\.grad_clip is missing; restore"):
            distill(old / "config.toml", folder)
    for format_ in (1, FORMAT):
        state = old / STATES[1]
        table = json.loads((OLD / STATES[1] / "state.json").read_text())
        table["config"] = without_clip(table["config"])
        (state / "state.json").write_text(json.dumps(table))
        files.seal(state, format=format_)
        missing = "train.grad_clip" if format_ == 1 else "state.json/data"
        with pytest.raises(Damaged, match=f"does not hold a complete state: {missing} is missing"):
            training_state.load(state, load_config(old / "config.toml"))


# ------------------------------------------------------------------------------------------
# Unknown formats and fields


NEWER = {"format": FORMAT + 5, "versions": {"pdfast": "9.8.7"}}
SAID = (
    f"was written by pdfast 9.8.7, format {FORMAT + 5}; this is pdfast {__version__}, which reads "
    f"formats up to {FORMAT}: upgrade pdfast"
)


def of_newer(path, **changes):
    """Seal a directory as a newer version would, with other fields in one of its tables."""
    for name, extra in changes.items():
        file = path / name
        file.write_text(json.dumps(extra(json.loads(file.read_text()))))
    files.seal(path, **NEWER)


def newer_config(run, **table):
    found = tomllib.loads((run / "config.toml").read_text())
    said = {"format": FORMAT + 5, "pdfast": "9.8.7"}
    (run / "config.toml").write_text(tomli_w.dumps(found | table | {"run": said}))


def newer_config_alone(run):
    """The config.toml of a run that has made nothing yet."""
    shutil.rmtree(run / "state")
    newer_config(run, sparkle=1)


def newer_marker(run):
    said = {"format": FORMAT + 5, "pdfast": "9.8.7"}
    (run / "eval-state" / "format.json").write_text(json.dumps(said))


@pytest.mark.parametrize("resume", ["auto", "strict"])
@pytest.mark.parametrize(
    ("name", "folder", "change"),
    [
        ("training", "", newer_config),
        ("training", "", newer_config_alone),
        ("training", "state/round-00-update-000000007", of_newer),
        ("distilling", "teacher", of_newer),
        ("distilling", "state/round-01-update-000000005", of_newer),
        ("evaluating", "round-01-steps-0004", of_newer),
        ("evaluating", "", newer_marker),
    ],
)
def test_a_newer_format_is_refused_by_its_version(old, name, folder, change, resume):
    """It is refused, and nothing is changed, set aside or called damaged."""
    run = old / name
    change(run / folder)
    before = contents(run)
    with pytest.raises(PdfastError) as error:
        distill(old / "config.toml", run, resume=resume)
    assert SAID in str(error.value)
    assert not isinstance(error.value, Damaged)
    after = contents(run)
    if change is newer_marker:  # the format of the run itself is known
        after["config.toml"] = before["config.toml"]
        after = {key: value for key, value in after.items() if not key.startswith("samples/")}
    assert after == before
    if name == "evaluating":
        with pytest.raises(OtherVersion, match=r"9\.8\.7"):
            pdfast.evaluate(run, quiet=True)


def test_a_newer_model_is_refused_wherever_it_is_read(old, tmp_path):
    teacher = old / "evaluating" / "teacher"
    of_newer(teacher)
    for use in (
        lambda: pdfast.load(teacher),
        lambda: pdfast.evaluate(teacher, quiet=True),
        lambda: distill(old / "config.toml", tmp_path / "run", teacher=teacher),
        lambda: pdfast.export(teacher, tmp_path / "export", to="onnx", quiet=True),
    ):
        with pytest.raises(OtherVersion) as error:
            use()
        assert str(error.value) == f"{teacher} {SAID}"
    assert not (tmp_path / "run").exists()
    (old / "evaluating" / "config.toml").unlink()
    with pytest.raises(OtherVersion):
        pdfast.load(teacher)


def test_the_command_says_so_on_one_line(old, capsys):
    from pdfast.cli.main import main

    newer_config(old / "training")
    config, run = str(old / "config.toml"), str(old / "training")
    assert main(["distill", "--config", config, "--out", run]) == 1
    assert capsys.readouterr().err == f"pdfast: {run}/config.toml {SAID}\n"


def with_field(table):
    return table | {"sparkle": 1}


def with_inner_field(name):
    return lambda table: table | {name: table[name] | {"sparkle": 1}}


@pytest.mark.parametrize(
    ("folder", "file", "change", "field"),
    [
        (STATES[0], "state.json", with_field, "state.json/sparkle"),
        (STATES[1], "state.json", with_inner_field("config"), "sparkle"),
        ("distilling/teacher", "config.json", with_inner_field("model"), "model.sparkle"),
        ("distilling/teacher", "config.json", with_field, "config.json/sparkle"),
        ("own", "config.json", with_field, "config.json/sparkle"),
    ],
)
def test_a_field_that_is_not_known_is_no_damage(old, folder, file, change, field):
    """An unknown field in a known format comes from a version between two formats."""
    path = old / folder
    table = json.loads((path / file).read_text())
    if file == "state.json":
        config = formats.with_new_names(table["config"])[0]
        table |= {"data": dict(formats.UNKNOWN_DATA), "config": config}
    else:
        table = formats.with_new_names(table)[0] | {"classes": []}
        if folder == "own":
            table["parameterization"] = table.pop("head")
    (path / file).write_text(json.dumps(change(table)))
    files.seal(path, versions={"pdfast": "0.9.0"})
    run = old / folder.split("/")[0]
    before = contents(run)

    def read():
        if folder == "own":
            return pdfast.load(path, network=nn.Linear(4, 4))
        return distill(old / "config.toml", run)

    with pytest.raises(OtherVersion) as error:
        read()
    said = str(error.value)
    assert f"was written by pdfast 0.9.0, format {FORMAT}, and has {field}, which this" in said
    assert "use that version, or a newer one" in said
    assert contents(run) == before


def test_a_field_of_another_version_in_config_toml(straight, tiny, tmp_path):
    """A field by another version is refused as such; by this version, as a user's mistake."""
    run = shutil.copytree(straight, tmp_path / "run")
    text = (run / "config.toml").read_text().replace("grad_clip", "grad_clap", 1)
    (run / "config.toml").write_text(text)
    for read in (lambda: distill(tiny, run), lambda: load_config(run / "config.toml")):
        with pytest.raises(UsageError, match=r"unknown key 'train\.grad_clap'; did you mean"):
            read()
    text = text.replace(f'pdfast = "{__version__}"', 'pdfast = "0.9.0"', 1)
    (run / "config.toml").write_text(text)
    for read in (lambda: distill(tiny, run), lambda: load_config(run / "config.toml")):
        with pytest.raises(
            OtherVersion, match=rf"0\.9\.0, format {FORMAT}, and has train\.grad_clap"
        ):
            read()


@pytest.mark.parametrize("format_", [0, -1, 1.0, True, "2", [], 2**31])
def test_what_no_format_is_called_is_damage(tmp_path, format_):
    path = tmp_path / "made"
    files.write(path, {}, {"t.json": {}}, format=format_)
    with pytest.raises(Damaged, match=r"manifest\.json names no format that a version of pdfast"):
        files.read(path)
    with pytest.raises(ValueError, match="names no format"):
        formats.written(path, format_, "0.1.0")


def test_what_is_written_now_says_its_format(straight):
    for name in ("teacher", "round-01-steps-0004"):
        manifest = json.loads((straight / name / "manifest.json").read_text())
        assert (manifest["format"], manifest["versions"]["pdfast"]) == (FORMAT, __version__)
    run = tomllib.loads((straight / "config.toml").read_text())["run"]
    assert (run["format"], run["pdfast"]) == (FORMAT, __version__)
    assert (run["begun_format"], run["begun_by"]) == (FORMAT, __version__)
    assert formats.written("x", None, None) == FIRST
    assert set(TIMING) == {"images_per_s", "memory_mb", "seconds"}
