"""Whole runs with guided teachers and guided students, and refused ones."""

import json

import pytest
import torch
from engine_cases import changed, random_model
from guidance_cases import RANGE, STEPS
from run_cases import assert_same_run, metrics, stop_after

import pdfast
from pdfast.cli.main import main
from pdfast.config.schema import Config, dump_config
from pdfast.config.serialization import from_table, to_table
from pdfast.distributed.signals import Stopped
from pdfast.errors import UsageError
from pdfast.models import checkpoint
from pdfast.models.guidance import guided


def test_a_run_with_guided_students(guides, tmp_path, capsys, monkeypatch):
    """Teacher, fit and rounds; resumed to the bit in each; sampled, exported and continued."""
    guides = changed(guides, distill={"fit_updates": 7})
    plain, out = tmp_path / "plain", tmp_path / "run"
    student = pdfast.distill(guides, out=plain, quiet=True)
    assert (student.guidance, student.label_dropout, student.steps) == (RANGE, 0.0, 2)
    teacher = pdfast.load(plain / "teacher")
    assert (teacher.guidance, teacher.label_dropout) == ((), 0.25)
    ends = [m for m in metrics(plain) if "fixed_batch_loss_end" in m]
    assert [m.get("steps", 0) for m in ends] == [0, 8, 4, 2]
    # The fit evaluates its teacher with and without the class: 2 + 3, as in the rounds.
    passes = [12 * 3, 7 * 5, 6 * 5, 12 * 5]  # evaluations for each image of a batch
    assert [m["evaluations"] for m in ends] == [4 * n for n in passes]
    for stop in (5, 10, 7):  # in the training, the fit and the second halving
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            with pytest.raises(Stopped):
                pdfast.distill(guides, out=out, quiet=True)
    pdfast.distill(guides, out=out, quiet=True)
    assert_same_run(plain, out)

    last = plain / "round-03-steps-0002"
    assert "emb_guidance.weight" in student.net.state_dict()
    for args, code, said in (
        (["--label", "3", "--guidance", "1.5"], 0, "4 images in 2 steps"),
        ([], 2, "is a guided student: pass --guidance"),
        (["--guidance", "9"], 2, "guidance 9 is outside 0 .. 4"),
        (["--guidance", "1", "--label", "10"], 2, "--label must be in 0 .. 9"),
    ):
        folder = tmp_path / f"samples{code}"
        found = main(["sample", str(last), "--num", "4", "--out", str(folder), *args])
        assert (found, said in "".join(capsys.readouterr())) == (code, True), args
    with pytest.raises(UsageError, match=r"guided student: pass guidance, one of its weights 0"):
        pdfast.export(last, tmp_path / "export", quiet=True)
    with pytest.raises(
        UsageError, match="a guided teacher runs its network with the class and without"
    ):
        pdfast.export(guided(teacher, 1.0), tmp_path / "export", quiet=True)

    capsys.readouterr()
    pdfast.train(guides, out=plain)
    assert capsys.readouterr().out.count("model.guidance is for students: the teacher") == 1

    # Halved further in another run, whose teacher is then a guided student.
    more = changed(guides, distill={"start_steps": 2, "rounds": 1, "fit_updates": 0})
    further = pdfast.distill(more, teacher=last, out=tmp_path / "more", quiet=True)
    assert (further.steps, further.guidance) == (1, RANGE)


def test_a_teacher_from_elsewhere_is_guided(guides, classes, tiny, tmp_path):
    teachers = {}
    for name, config in {
        "good": classes,
        "told": changed(classes, model={"label_dropout": 0.0}),
        "eps": changed(classes, model={"parameterization": "eps"}),
    }.items():
        teachers[name] = tmp_path / name
        checkpoint.save_model(random_model(config.model, 0, torch.float32), teachers[name])
    asked = changed(
        guides, model={"label_dropout": 0.0}, distill={"teacher": str(teachers["good"])}
    )
    out = tmp_path / "run"
    student = pdfast.distill(asked, out=out, quiet=True)
    assert student.guidance == RANGE
    kept = pdfast.load_config(out / "config.toml")
    assert kept.distill.fit_updates == 4 * asked.distill.updates
    ends = [m for m in metrics(out) if "fixed_batch_loss_end" in m]
    assert ends[0]["fixed_batch_loss_end"] < ends[0]["fixed_batch_loss_start"]
    for name, message in {
        "told": "cannot be guided, since it was always given the class: train one with "
        "model.label_",
        "eps": "cannot be guided, since it predicts eps: train one of x, v or x_eps, or omit mod",
    }.items():
        with pytest.raises(UsageError, match=message):
            pdfast.distill(guides, teacher=teachers[name], out=tmp_path / "no", quiet=True)
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_a_run_that_changes_the_weight_it_is_judged_at(guides, tmp_path):
    """Quick distances and pictures are made again, models are not."""
    run, fresh = tmp_path / "run", tmp_path / "fresh"
    other = changed(guides, eval={"guidance": 3.0})
    pdfast.distill(guides, out=run, quiet=True)
    pdfast.distill(other, out=run, quiet=True)
    pdfast.distill(other, out=fresh, quiet=True)

    def distances(path):
        found = [m for m in metrics(path) if m.get("guidance") == 3.0]
        return [(m["round"], m["distance"]) for m in found]

    assert distances(run) == distances(fresh)
    assert len(distances(run)) == guides.distill.rounds + 2
    for picture in fresh.glob("samples/*.png"):
        assert picture.read_bytes() == (run / "samples" / picture.name).read_bytes()


def test_a_guided_student_as_teacher_keeps_its_weights(guides, tmp_path):
    """A student of another network is fitted to it at the same weights, never unguided."""
    teacher = tmp_path / "teacher"
    model = random_model(guides.model, 0, torch.float32)
    model.remove_dropout()
    checkpoint.save_model(model, teacher)
    half = changed(guides, model={"ch": 4}, distill={"fit_updates": 20})
    student = pdfast.distill(half, teacher=teacher, out=tmp_path / "run", quiet=True)
    assert (student.cfg.ch, student.guidance) == (4, RANGE)
    ends = [m for m in metrics(tmp_path / "run") if "fixed_batch_loss_end" in m]
    assert ends[0]["fixed_batch_loss_end"] < ends[0]["fixed_batch_loss_start"]
    for model in ({"guidance": ()}, {"guidance": (0.0, 2.0)}):
        asked = changed(changed(guides, eval={"guidance": 0.0}), model=model)
        with pytest.raises(UsageError, match=r"has model\.guidance \[0.0, 4.0\].*trained with$"):
            pdfast.distill(asked, teacher=teacher, out=tmp_path / "no", quiet=True)


def test_a_guided_teacher_alone_is_reported_as_such(classes, tmp_path):
    """`train` with eval.guidance evaluates guided samples; `distill` then needs guided students."""
    guided_only = changed(classes, eval={"guidance": 2.0})
    pdfast.train(guided_only, out=tmp_path / "run", quiet=True)
    found = json.loads((tmp_path / "run" / "report.json").read_text())["teacher"]
    pdfast.train(classes, out=tmp_path / "plain", quiet=True)
    plain = json.loads((tmp_path / "plain" / "report.json").read_text())["teacher"]
    assert found.keys() == plain.keys()
    assert found != plain
    unlearned = changed(guided_only, model={"label_dropout": 0.0})
    with pytest.raises(UsageError, match="guidance needs a teacher that also learns without"):
        pdfast.train(unlearned, out=tmp_path / "no", quiet=True)
    with pytest.raises(
        UsageError, match=r"eval\.guidance is set, but the students take no guidance"
    ):
        pdfast.distill(guided_only, out=tmp_path / "no", quiet=True)


@pytest.mark.parametrize(
    ("model", "evaluation", "message"),
    [
        ({"label_dropout": 0.1}, {}, "model.label_dropout is for class-conditional models"),
        ({"guidance": [0, 1]}, {}, "model.guidance is for class-conditional models"),
        ({"num_classes": 3, "label_dropout": 1.0}, {}, r"model.label_dropout must be in \[0, 1\)"),
        ({"num_classes": 3, "guidance": [2, 1]}, {}, "model.guidance must be the least and the"),
        ({"num_classes": 3, "guidance": [1.0]}, {}, "model.guidance must be the least and the"),
        (
            {"num_classes": 3, "label_dropout": 0.1, "guidance": [0, 1]},
            {"guidance": 2.0},
            "eval.guidance 2 is outside model.guidance",
        ),
    ],
)
def test_refused_configs(tiny, model, evaluation, message):
    table = to_table(tiny)
    table["model"] |= model
    table["eval"] |= evaluation
    with pytest.raises(UsageError, match=message):
        from_table(Config, table)


def test_a_dry_run_counts_the_fit_of_guided_students(guides, tmp_path, capsys):
    path = tmp_path / "guides.toml"
    path.write_text(dump_config(guides))
    assert main(["distill", "--config", str(path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "memory, the first fit" in said
    assert f"round 1 {STEPS:>6} {4 * guides.distill.updates:>9}" in " ".join(said.split("\n")), said
