"""Distance and scores against torch-fidelity's own functions, on the same features."""

import pytest
import torch
from gaussians import gaussian_of
from torch_fidelity_metrics import metrics

from pdfast.evaluation.frechet import frechet_distance
from pdfast.evaluation.scores import Neighbourhood, inception_score, precision_recall


@pytest.fixture(scope="module")
def theirs():
    with metrics() as modules:
        yield modules


def features(num, width, spread, seed, shift=0.0):
    """Return correlated float64 (num, width), with deviations from 1 down to 10^-spread."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, width, generator=generator, dtype=torch.float64)
    mix = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    return x * torch.logspace(0, -spread, width, dtype=torch.float64) @ mix + shift


@pytest.mark.parametrize(
    ("num", "width", "spread"),
    [
        (500, 8, 0),
        (2000, 64, 0),
        (2000, 64, 3),
        (1500, 256, 1),
        (1500, 256, 6),
        (100, 150, 0),  # fewer images than features: both covariances are singular
        (40, 128, 2),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_the_distance_is_torch_fidelity_s(theirs, num, width, spread, shift):
    fid = theirs[0]
    p, q = features(num, width, spread, 0), features(num + 7, width, spread, 1, shift)
    statistics = [fid.fid_features_to_statistics(x) for x in (p, q)]
    expected = fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID]
    assert frechet_distance(gaussian_of(p), gaussian_of(q)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("num", "sharp"), [(2000, 1.0), (537, 6.0), (10, 1.0)])
def test_the_inception_score_is_torch_fidelity_s(theirs, num, sharp):
    isc = theirs[1]
    logits = sharp * features(num, 100, 0, num).float()
    expected = isc.isc_features_to_metric(logits)
    score = inception_score(logits.double())
    assert score.mean == pytest.approx(expected[isc.KEY_METRIC_ISC_MEAN], rel=1e-9)
    assert score.std == pytest.approx(expected[isc.KEY_METRIC_ISC_STD], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("num", "shift"), [((300, 300), 0.0), ((300, 201), 0.3), ((90, 301), 0.5)])
@pytest.mark.parametrize("block", [2**28, 40_000])
def test_precision_and_recall_are_torch_fidelity_s(theirs, monkeypatch, num, shift, block):
    """For float64 features, and float32 ones, whose distances only torch-fidelity rounds."""
    monkeypatch.setattr("pdfast.evaluation.scores.BLOCK_BYTES", block)
    prc = theirs[2]
    samples = 0.8 * features(num[0], 16, 1, 0)
    samples[:, 0] += shift
    images = features(num[1], 16, 1, 1)
    found = precision_recall(samples, Neighbourhood.of(images))
    assert 0 < found.recall < found.precision < 1
    for whole in (False, True):
        for x, y in ((samples, images), (samples.float(), images.float())):
            expected = prc.prc_features_to_metric(x, y, save_cpu_ram=not whole, verbose=False)
            found = precision_recall(x, Neighbourhood.of(y))
            assert found.precision == pytest.approx(expected[prc.KEY_METRIC_PRECISION], abs=1e-7)
            assert found.recall == pytest.approx(expected[prc.KEY_METRIC_RECALL], abs=1e-7)
