"""Detectors with a network: their features, and one-sentence errors."""

import dataclasses
import importlib
import io
import json
import os
import pickle
import sys
from urllib.error import URLError

import numpy as np
import pytest
import torch
from gaussians import gaussian_of
from run_cases import run

import pdfast
from pdfast.config import detectors
from pdfast.config.schema import DataConfig, NetConfig, load_config
from pdfast.data.dataset import Dataset, load_dataset
from pdfast.errors import PdfastError, UsageError
from pdfast.evaluation.detectors import inception, lite0, network
from pdfast.evaluation.detectors.opening import open_detector
from pdfast.evaluation.evaluator import Evaluator
from pdfast.evaluation.frechet import frechet_distance
from pdfast.storage import files

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def module():
    found = inception._module()
    assert not {"torch_fidelity", "torchvision"} & {name.split(".")[0] for name in sys.modules}
    return found


@pytest.fixture(scope="module")
def net(module):
    """torch-fidelity's InceptionV3 with random weights."""

    class Random(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_):
            for layer in self.modules():
                if isinstance(layer, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(layer.weight)
            torch.nn.init.normal_(self.fc.weight, std=3)

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    return Random("random", ["2048", "logits_unbiased"], empty)


@pytest.fixture(scope="module")
def weights(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (20, 8, 8, 1), dtype=torch.uint8, generator=generator)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# ------------------------------------------------------------------------------------------
# What they compute


def test_fid_of_a_model_by_the_command_line(
    capsys, straight, module, net, weights, pictures, tmp_path, monkeypatch
):
    """A few small images, random weights and few features; then the distance by hand."""
    monkeypatch.setattr(inception, "NEEDED", 2)
    monkeypatch.setitem(network.BATCH, "cpu", 5)
    monkeypatch.setattr(inception, "_module", lambda: module)
    monkeypatch.setattr(inception, "WIDTH", 64)  # features of an early layer, of which there are
    monkeypatch.setattr(net, "features_list", ["64"])
    monkeypatch.setattr(module.FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 75)
    np.savez(tmp_path / "set.npz", images=pictures.numpy())
    (tmp_path / "set.toml").write_text('[data]\nsource = "set.npz"\n[eval]\nnum = 20\n')
    monkeypatch.chdir(tmp_path)
    model = straight / "round-02-steps-0002"
    code, output, _ = run(
        capsys, "eval", model, "--config", "set.toml", "--steps", 2,
        "--detector", f"inception:{weights}", "--out", "e",
    )  # fmt: skip
    assert code == 0
    assert "\nFID " in output
    assert "warning: the SHA-256 of" in output
    table = json.loads((tmp_path / "e" / "eval.json").read_text())
    assert table["metric"] == "FID"
    assert table["facts"]["detector_sha256"] == files.sha256(weights)
    assert f"weights SHA-256 {files.sha256(weights)[:16]}" in output
    scores = table["scores"]["model"]["2"]
    assert set(scores) == {"inception_score", "inception_score_std", "precision", "recall"}
    assert scores["inception_score"] > 1
    samples = pdfast.load(model).sample_images(20, 2)
    found = []
    for images in (pictures, samples):
        x = images.permute(0, 3, 1, 2).repeat(1, 3, 1, 1)
        parts = [net(part)[0] for part in x.split(5)]
        found.append(gaussian_of(torch.cat(parts).double()))
    assert table["model"]["2"] == pytest.approx(frechet_distance(*found), rel=1e-6)


def test_features_do_not_depend_on_what_else_is_in_the_batch(weights, pictures, monkeypatch):
    monkeypatch.setitem(network.BATCH, "cpu", 3)
    extract = open_detector(f"inception:{weights}", Dataset(pictures, None), CPU).extract
    two, one = extract(pictures[:2]), extract(pictures[1:2])
    assert two.values.shape == (2, 2048)
    assert two.logits.shape == (2, 1008)
    assert torch.equal(two.values[1:], one.values)
    assert torch.equal(two.logits[1:], one.logits)


def test_features_are_those_of_a_plain_call():
    """Calls of 16 channels-last images on a CPU change rounding alone."""
    networks = importlib.import_module("efficientnet_lite_pytorch")
    net = networks.EfficientNet.from_name(lite0.NAME, image_size=lite0.SIZE).eval()
    images = torch.randint(0, 256, (20, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        plain = lite0.features(net, images.permute(0, 3, 1, 2).contiguous()).values
    extract = network.batches(net, lite0.features, CPU)
    found = torch.cat([extract(part).values for part in images.split(network.BATCH["cpu"])])
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, plain)  # the layout differs


def test_fd_lite0_grows_with_noise(monkeypatch):
    """With the real weights, which the package includes."""
    monkeypatch.setattr(lite0, "NEEDED", 2)
    monkeypatch.setitem(network.BATCH, "cpu", 24)
    digits = load_dataset(DataConfig(), NetConfig(image_size=8, channels=1)).images
    data = Dataset(digits[:24], None)
    evaluator = Evaluator(data, 24, 0, open_detector("lite0", data, CPU))
    assert evaluator.metric == "FD-Lite0"
    assert evaluator.detector.weights.startswith("57934424")  # as in its file name
    assert evaluator.distance(data.images) == pytest.approx(0, abs=1e-4)
    torch.manual_seed(0)
    distances = []
    for amount in (0, 16, 64):
        noise = torch.randint(-amount, amount + 1, data.images.shape)
        other = (digits[24:48].int() + noise).clamp(0, 255).byte()
        distances.append(evaluator.distance(other))
    assert 0 < distances[0] < distances[1] < distances[2]
    figure = evaluator.figure(other)
    assert figure.distance == distances[2]
    assert figure.inception_score is None
    assert 0 <= figure.manifold.precision <= 1


# ------------------------------------------------------------------------------------------
# One sentence each


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ("inceptoin", "eval.detector must be pixel, inception, lite0 or inception:PATH, not "
         "'inceptoin'; did you mean 'inception'?"),
        ("lite0:x.pth", "eval.detector lite0 takes no path"),
        ("inception:", "lacks the path of the weights"),
        ("inception:a\0b", "must be a path"),
        ("inception:nowhere.pth", "there is no weights file .*nowhere.pth"),
        ("inception:" + "x" * 300, "eval.detector: /.*x cannot be read: file name too long"),
    ],
)  # fmt: skip
def test_names(straight, detector, message):
    with pytest.raises(UsageError, match=message):
        pdfast.evaluate(straight, detector=detector, quiet=True)
    assert detectors.absolute("pixel") == "pixel"


def test_a_config_s_detector_is_checked(tmp_path):
    (tmp_path / "a.toml").write_text('[eval]\ndetector = "fid"\n')
    with pytest.raises(UsageError, match=r"a.toml: eval.detector must be pixel, inception, lite0"):
        load_config(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text('[eval]\nfeatures = "pixel"\n')
    with pytest.raises(UsageError, match=r"unknown key 'eval.features'"):
        load_config(tmp_path / "a.toml")


class _Harmful:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as weights"),
        (b"no weights at all" * 100, "cannot be read as weights"),
        ([torch.ones(2)], "is not a state dict"),
        ({"a": 3}, "is not a state dict"),
        (_Harmful(), "cannot be read as weights"),
        ({"weight": torch.ones(2, 2)}, "another network than torch-fidelity's InceptionV3 .its "
         r"Conv2d_1a_3x3.bn.bias is missing, not \(32,\)"),
        ("fc", r"its fc.weight is \(1000, 2048\), not \(1008, 2048\)"),
        ("more", "it holds aux, which torch-fidelity's InceptionV3 does not have"),
        ("nan", "holds numbers that are not finite, in fc.bias"),
        ("cut", "cannot be read as weights"),
    ],
)  # fmt: skip
def test_files_that_are_no_weights(net, weights, straight, tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    changes = {
        "fc": {"fc.weight": torch.ones(1000, 2048)},
        "more": {"aux": torch.ones(1)},
        "nan": {"fc.bias": torch.full((1008,), torch.nan)},
    }
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str) and content == "cut":
        path.write_bytes(weights.read_bytes()[:-1000])
    elif isinstance(content, _Harmful):
        path.write_bytes(pickle.dumps(content))
    else:
        other = isinstance(content, str) and net.state_dict() | changes[content]
        torch.save(other or content, path)
    with pytest.raises(UsageError, match=message) as refused:
        pdfast.evaluate(straight, detector=f"inception:{path}", quiet=True)
    assert str(path) in str(refused.value)
    assert not (tmp_path / "made-by-a-pickle").exists()


@pytest.mark.parametrize(
    ("detector", "package", "extra"),
    [("inception:w.pth", "torch_fidelity", "fid"), ("lite0", "efficientnet_lite_pytorch", "lite0")],
)
def test_a_missing_package_names_its_extra(straight, monkeypatch, detector, package, extra):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(PdfastError, match=rf"pip install 'pdfast\[{extra}\]'") as refused:
        pdfast.evaluate(straight, detector=detector, quiet=True)
    assert package.replace("_", "-") in str(refused.value)


@pytest.mark.parametrize(
    ("detector", "metric", "needed"), [("inception", "FID", 2049), ("lite0", "FD-Lite0", 1281)]
)
def test_too_few_images_for_the_covariance(straight, weights, detector, metric, needed):
    """The run has 1,797 digits and 64 samples; nothing is sampled or written."""
    path = f":{weights}" if detector == "inception" else ""
    message = f"{metric} needs at least {needed:,} samples, .*, not 64: set eval.num "
    with pytest.raises(UsageError, match=message):
        pdfast.evaluate(straight, detector=detector + path, quiet=True)
    data = Dataset(torch.zeros(needed - 1, 8, 8, 1, dtype=torch.uint8), None)
    opened = open_detector(detector + path, data, CPU)
    with pytest.raises(UsageError, match=f"needs at least {needed:,} images, .*, not "):
        Evaluator(data, needed, 0, opened)


def test_too_few_images_are_refused_before_anything_is_trained(tiny_toml, tmp_path):
    config = load_config(tiny_toml)
    with pytest.raises(UsageError, match="FD-Lite0 needs at least 1,281 samples"):
        pdfast.distill(
            dataclasses.replace(config, eval=dataclasses.replace(config.eval, detector="lite0")),
            out=tmp_path / "run",
            quiet=True,
        )
    assert not (tmp_path / "run").exists()


def test_samples_that_are_no_pictures(weights):
    for images in (torch.zeros(3, 2, 2, 2, dtype=torch.uint8), torch.zeros(3, 8, 8, 1)):
        with pytest.raises(UsageError, match="is for pictures of 1 or 3 channels"):
            open_detector("lite0", Dataset(images, None), CPU)


def test_weights_are_downloaded_once_or_asked_for(weights, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    data, asked = Dataset(pictures, None), []

    def unreachable(*_, **__):
        raise URLError(OSError("no route to host"))

    def download(url, file, hash_prefix, progress):
        asked.append((url.rsplit("/", 1)[-1], hash_prefix))
        os.link(weights, file)

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(
        PdfastError, match=r"could not be downloaded .*: get that file .* inception:PATH"
    ):
        open_detector("inception", data, CPU)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert open_detector("inception", data, CPU).weights == files.sha256(weights)
    assert asked == [("weights-inception-2015-12-05-6726825d.pth", "6726825d")]
