"""`pdfast eval SAMPLES --against` and `pdfast stats`: other tools' samples, sets and statistics."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from run_cases import run
from sample_sets import about, as_folder, as_npz, as_zip, features, pictures, png, statistics
from torch_fidelity_metrics import metrics

from pdfast.evaluation import against, statistics_file
from pdfast.evaluation.detectors import plain
from pdfast.evaluation.detectors.base import Detector, Features

ROOT = Path(__file__).parents[2]


def judged(capsys, *args):
    """Run a command that must succeed; return eval.json and its output."""
    code, output, errors = run(capsys, "eval", *args)
    assert code == 0, errors
    folder = output.split("report: ")[1].split("eval.json")[0]
    return json.loads(open(f"{folder}eval.json").read()), output


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# ------------------------------------------------------------------------------------------
# Figures


def test_the_distance_is_torch_fidelity_s_whatever_holds_the_samples(capsys, tmp_path):
    samples, data = pictures(60), pictures(80, seed=1, low=40)
    with metrics() as (fid, _, _):
        both = [
            fid.fid_features_to_statistics(torch.from_numpy(features(x))) for x in (samples, data)
        ]
        expected = fid.fid_statistics_to_metric(*both, verbose=False)[fid.KEY_METRIC_FID]
    there = as_npz(data, tmp_path / "data")
    for how in (as_folder, as_zip, as_npz):
        path = how(samples, tmp_path / how.__name__)
        table, output = judged(capsys, path, "--against", there)
        assert table["metric"] == "FD-pixel"
        assert table["distance"] == pytest.approx(expected, rel=1e-9)
        assert table["warnings"] == []
        assert 0 < table["floor"] < table["distance"]
        facts = table["facts"]
        assert facts["samples"]["images"] == 60
        assert facts["reference"]["images"] == 80
        assert facts["samples"]["size"] == facts["reference"]["size"] == "4x4x1"
        assert facts["samples"]["reading"] == "none"
        assert f"FD-pixel: {expected:.4f}" in output
        text = (path.parent / f"eval-{path.stem}" / "eval.md").read_text()
        assert f"| FD-pixel | {expected:.4f} |" in text


def test_statistics_of_one_feature_have_the_closed_form(capsys, tmp_path):
    """For one pixel: (difference of means)^2 + (difference of standard deviations)^2."""
    samples, data = pictures(50, size=1), pictures(40, size=1, seed=1, low=100)
    a, b = features(samples), features(data)
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    path = as_npz(samples, tmp_path / "samples")
    np.savez_compressed(tmp_path / "theirs.npz", **statistics(data))
    theirs = tmp_path / "theirs.npz"
    table, output = judged(capsys, path, "--against", theirs, "--detector", "pixel")
    assert table["distance"] == pytest.approx(expected, rel=1e-12)
    assert table["floor"] is None
    assert table["facts"]["reference"]["images"] == 0
    assert table["facts"]["statistics_sha256"] == hashlib.sha256(theirs.read_bytes()).hexdigest()
    assert len(table["warnings"]) == 1
    assert "does not record the number, size and resize of its images" in table["warnings"][0]
    assert "number of images not known" in output


def test_statistics_of_pdfast_stats_are_what_others_read(capsys, tmp_path):
    data, samples = pictures(90, seed=1, high=200), pictures(70)
    there = as_folder(data, tmp_path / "data")
    out = tmp_path / "stats.npz"
    code, output, _ = run(capsys, "stats", there, "--out", out)
    assert code == 0
    assert "90 images" in output
    with np.load(out, allow_pickle=False) as found:  # as pytorch-fid and EDM
        expected = statistics(data)
        np.testing.assert_allclose(found["mu"], expected["mu"], atol=1e-14)
        np.testing.assert_allclose(found["sigma"], expected["sigma"], atol=1e-14)
    path = as_zip(samples, tmp_path / "samples")
    of_set = judged(capsys, path, "--against", there)[0]
    of_statistics = judged(capsys, path, "--against", out)[0]
    assert of_statistics["warnings"] == []
    assert of_statistics["distance"] == pytest.approx(of_set["distance"], rel=1e-12)
    facts = of_statistics["facts"]["reference"]
    assert facts["source"] == f"{out} (of {there})"
    assert (facts["images"], facts["size"], facts["own_size"]) == (90, "4x4x1", "4x4")
    assert facts["images_sha256"] == of_set["facts"]["reference"]["images_sha256"]
    lines = "".join(
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted(there.iterdir())
    )
    assert facts["files_sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    zipped = of_set["facts"]["samples"]["files_sha256"]
    assert zipped == hashlib.sha256(path.read_bytes()).hexdigest()
    before = out.read_bytes()
    assert "already exists" in run(capsys, "stats", there, "--out", out)[2]
    assert out.read_bytes() == before
    assert run(capsys, "stats", there, "--out", out, "--force")[0] == 0


# ------------------------------------------------------------------------------------------
# A network


WIDTH = 6


@pytest.fixture
def network(monkeypatch):
    """A stand-in for InceptionV3: six means of pixels, and logits."""

    def extract(images):
        x = images.double().flatten(1) / 255
        values = torch.stack([x[:, k::WIDTH].mean(1) for k in range(WIDTH)], 1).float()
        return Features(values, torch.cat([values, values.flip(1)], 1) * 9)

    detector = Detector(
        name="inception", metric="FID", extract=extract, resize="none", batch=16, weights="ab" * 32,
        needed=WIDTH + 1, width=WIDTH,
    )  # fmt: skip
    real = against.open_detector

    def opened(name, *args):
        return detector if name.startswith("inception") else real(name, *args)

    for module in ("against", "make_statistics"):
        monkeypatch.setattr(f"pdfast.evaluation.{module}.open_detector", opened)
    return detector


def seen(network, images):
    return network.extract(torch.from_numpy(images)).values


def test_a_reference_batch_of_adm(capsys, tmp_path, network):
    """Distance from its statistics, precision and recall from its images, which are others."""
    samples, some, data = (pictures(40, seed=k, low=9 * k) for k in range(3))
    x = seen(network, data).double().numpy()
    batch = as_npz(
        some,
        tmp_path / "batch",
        mu=x.mean(0).astype(np.float32),
        sigma=np.cov(x, rowvar=False).astype(np.float32),
        mu_s=np.zeros(3),
        sigma_s=np.eye(3),
    )
    path = as_npz(samples, tmp_path / "samples")
    table, output = judged(capsys, path, "--against", batch, "--detector", "inception")
    with metrics() as (fid, isc, prc):
        mine = seen(network, samples)
        with np.load(batch) as found:
            theirs = {key: found[key].astype(np.float64) for key in ("mu", "sigma")}
        distance = fid.fid_statistics_to_metric(
            fid.fid_features_to_statistics(mine.double()), theirs, verbose=False
        )[fid.KEY_METRIC_FID]
        shares = prc.prc_features_to_metric(mine, seen(network, some), verbose=False)
        logits = network.extract(torch.from_numpy(samples)).logits
        score = isc.isc_features_to_metric(logits.float())
    assert table["distance"] == pytest.approx(distance, rel=1e-6)
    scores = table["scores"]
    assert scores["precision"] == pytest.approx(shares[prc.KEY_METRIC_PRECISION], abs=1e-7)
    assert scores["recall"] == pytest.approx(shares[prc.KEY_METRIC_RECALL], abs=1e-7)
    assert scores["inception_score"] == pytest.approx(score[isc.KEY_METRIC_ISC_MEAN], rel=1e-6)
    facts = table["facts"]
    assert facts["reference"]["left_out"] == "arrays that are not used: mu_s, sigma_s"
    assert facts["reference"]["images"] == 0
    assert (facts["detector_sha256"], facts["features"]) == ("ab" * 32, WIDTH)
    assert "weights SHA-256 abababab" in output
    table, _ = judged(capsys, path, "--against", batch, "--detector", "pixel")
    alone = as_npz(some, tmp_path / "alone")
    assert table["distance"] == judged(capsys, path, "--against", alone)[0]["distance"]
    assert "only its images are used" in table["warnings"][0]


def test_statistics_of_other_weights_are_warned_of(capsys, tmp_path, network):
    out, path = tmp_path / "stats.npz", as_npz(pictures(30), tmp_path / "samples")
    assert run(capsys, "stats", path, "--out", out, "--detector", "inception")[0] == 0
    assert judged(capsys, path, "--against", out)[0]["warnings"] == []  # the file's own detector
    found = statistics_file.read(out)
    other = json.loads(str(np.load(out)["about"]))
    other["detector_sha256"] = "cd" * 32
    np.savez(out, mu=found.gaussian.mean, sigma=found.gaussian.cov, about=json.dumps(other))
    table, output = judged(capsys, path, "--against", out)
    assert table["distance"] == pytest.approx(0, abs=1e-9)
    assert "between features of two networks" in table["warnings"][0]
    assert "warning: " in output


def test_the_commands_of_the_docs(capsys, tmp_path, monkeypatch, network):
    monkeypatch.chdir(tmp_path)
    as_npz(pictures(40, seed=1), tmp_path / "fashion_mnist")
    as_zip(pictures(40), tmp_path / "samples")
    named = {"SAMPLES": "samples.zip", "DATA": "fashion_mnist.npz", "STATS.npz": "stats.npz"}
    commands = [
        [named.get(word, word) for word in line.split("#")[0].split()[1:]]
        for line in (ROOT / "docs" / "evaluation.md").read_text().splitlines()
        if line.startswith(
            ("    pdfast eval samples", "    pdfast eval SAMPLES", "    pdfast stats")
        )
    ]
    assert len(commands) == 6
    for command in sorted(commands, key=lambda words: words[0] != "stats"):  # writes a file
        code, output, errors = run(capsys, *command)
        assert code == 0, errors
        assert "40 images" in output


# ------------------------------------------------------------------------------------------
# Sizes


def test_sizes_and_resizes_that_differ_are_warned_of(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "PIXELS", 4)  # larger images are averaged down to this
    large = as_npz(pictures(30, size=8), tmp_path / "large")
    small = as_npz(pictures(30, size=4, seed=1), tmp_path / "small")
    table, _ = judged(capsys, large, "--against", small)
    assert "the samples are 8x8x1 and the reference 4x4x1" in table["warnings"][0]
    table, _ = judged(capsys, large, "--against", small, "--size", "2")
    assert table["facts"]["samples"]["size"] == table["facts"]["reference"]["size"] == "2x2x1"
    reading = "centre crop, antialiased bicubic resize to 2x2"
    assert table["facts"]["samples"]["reading"] == reading
    assert table["warnings"] == []
    table, _ = judged(capsys, large, "--against", small, "--size", "4", "--resize", "area")
    assert table["facts"]["samples"]["reading"] == "centre crop, area resize to 4x4"
    assert table["facts"]["samples"]["own_size"] == "8x8"
    assert table["facts"]["reference"]["reading"] == "none"
    assert any("the samples were resized by: centre crop, area" in w for w in table["warnings"])


def test_images_of_several_sizes_need_one(capsys, tmp_path):
    folder = as_folder(pictures(30), tmp_path / "mixed")
    (folder / "a.png").write_bytes(png(pictures(1, size=6)[0]))
    data = as_npz(pictures(30, seed=1), tmp_path / "data")
    code, _, errors = run(capsys, "eval", folder, "--against", data)
    assert code == 2
    assert "has images of 2 sizes (4x4, 6x6): pass --size" in errors
    table, _ = judged(capsys, folder, "--against", data, "--size", "4")
    assert table["facts"]["samples"]["own_size"] == "2 sizes (4x4, 6x6)"
    assert table["facts"]["samples"]["images"] == 31
    wide = tmp_path / "wide"
    wide.mkdir()
    for name in "ab":
        (wide / f"{name}.png").write_bytes(png(pictures(1, size=6)[0][:4]))
    assert "4x6, which are not square" in run(capsys, "eval", wide, "--against", data)[2]


# ------------------------------------------------------------------------------------------
# What is refused


def test_what_cannot_be_compared_is_refused(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").touch()
    a_run = tmp_path / "run"
    path = as_npz(pictures(30), tmp_path / "samples")
    other = as_npz(pictures(30, size=5), tmp_path / "other")
    np.savez(tmp_path / "wide.npz", mu=np.zeros(20), sigma=np.eye(20))
    np.savez(tmp_path / "lite.npz", **statistics(pictures(30, size=2)) | about(detector="lite0"))
    wide, lite = tmp_path / "wide.npz", tmp_path / "lite.npz"
    for args, message in (
        ([path, "--against", other], "has 16 and 25 features: give both the same size by --size"),
        ([path, "--against", wide], "does not say of which detector: name it, with --detector"),
        ([path, "--against", wide, "--detector", "pixel"], "20 features, and FD-pixel of these"),
        ([path, "--against", lite, "--detector", "pixel"], "pass --detector lite0, or name"),
        ([path, "--against", tmp_path / "no.npz"], "no.npz does not exist"),
        ([path, "--against", other, "--steps", "4"], "--steps is for models"),
        ([path, "--against", other, "--num", "0"], "--num is for models"),
        ([path, "--against", other, "--resize", "area"], "--resize needs --size"),
        ([a_run, "--size", "4"], "--size is for samples: name their reference with --against"),
        ([a_run, "--against", other], "is a run or model directory"),
        (["digits", "--against", other], "digits has no folder to write beside: pass --out"),
        ([path], "is not a model or run directory: if it holds samples, name the set"),
    ):
        code, _, errors = run(capsys, "eval", *args)
        assert code == 2, args
        assert message in errors
        assert errors.count("\n") == 1
    assert not (tmp_path / "eval-samples").exists()


def test_a_report_of_somebody_else_s_is_not_replaced(capsys, tmp_path):
    path = as_npz(pictures(30), tmp_path / "samples")
    other = as_npz(pictures(30, seed=1), tmp_path / "other")
    out = tmp_path / "out"
    out.mkdir()
    (out / "eval.md").write_text("mine")
    args = ["eval", path, "--against", other, "--out", out]
    assert "is not replaced" in run(capsys, *args)[2]
    assert (out / "eval.md").read_text() == "mine"
    (out / "eval.md").unlink()
    assert run(capsys, *args)[0] == 0
    assert run(capsys, *args)[0] == 0  # an earlier report of pdfast is replaced
    code, _, errors = run(capsys, "compare", out, tmp_path)
    assert code == 2
    assert "which have no sampling steps to compare by" in errors
