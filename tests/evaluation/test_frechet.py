"""The Frechet distance: closed forms, the digits' floor, and its sensitivity."""

import math

import pytest
import torch
from gaussians import gaussian_of

from pdfast.config.schema import DataConfig, NetConfig
from pdfast.data.dataset import Dataset, load_dataset
from pdfast.errors import PdfastError
from pdfast.evaluation.detectors.base import Detector, Features
from pdfast.evaluation.detectors.plain import PIXEL
from pdfast.evaluation.evaluator import Evaluator
from pdfast.evaluation.frechet import Gaussian, Moments, frechet_distance


def gaussian(mean, cov):
    return Gaussian(torch.tensor(mean).double(), torch.tensor(cov).double())


def test_closed_forms():
    p = gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 4.0]])
    q = gaussian([3.0, 4.0], [[9.0, 0.0], [0.0, 16.0]])
    assert frechet_distance(p, p) == pytest.approx(0, abs=1e-12)
    # means 5 apart; commuting covariances: sum of (std difference)^2 = 2^2 + 2^2
    assert frechet_distance(p, q) == pytest.approx(25 + 8)
    assert frechet_distance(q, p) == pytest.approx(25 + 8)


def test_covariances_that_do_not_commute_or_are_singular():
    torch.manual_seed(0)
    a, b = torch.randn(5, 5).double(), torch.randn(5, 3).double()
    p, q = Gaussian(torch.zeros(5).double(), a @ a.T), Gaussian(torch.zeros(5).double(), b @ b.T)
    # tr (C_p C_q)^1/2 by the eigenvalues of the product, another way to the same number
    eigenvalues = torch.linalg.eigvals(p.cov @ q.cov).real.clamp(min=0)
    expected = p.cov.trace() + q.cov.trace() - 2 * eigenvalues.sqrt().sum()
    assert frechet_distance(p, q) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("num", [2, 10, 500])
def test_a_set_is_at_distance_0_of_itself_not_below(digits, num):
    """The pixels' covariance is singular; rounding alone makes the formula negative."""
    evaluator = Evaluator(Dataset(digits.images[:num], None), 0, 0, PIXEL)
    p = evaluator.reference.gaussian
    cross = torch.linalg.eigvalsh(p.root @ p.cov @ p.root).clamp(min=0).sqrt().sum()
    assert 2 * p.cov.trace() - 2 * cross < -1e-9
    assert evaluator.distance(digits.images[:num]) == 0.0


def test_a_distance_below_what_rounding_explains_is_an_error():
    p, q = gaussian([0.0], [[1.0]]), gaussian([0.0], [[-1.001]])
    with pytest.raises(PdfastError, match=r"distance came out as -0\.001, where rounding explains"):
        frechet_distance(p, q)
    assert frechet_distance(p, gaussian([0.0], [[-1.0]])) == 0.0
    assert math.isnan(frechet_distance(p, gaussian([0.0], [[math.nan]])))


def test_moments_do_not_depend_on_the_chunks():
    torch.manual_seed(0)
    x = torch.randn(100, 4).double() + 3
    for chunk in (100, 50, 7, 1):
        moments = Moments()
        for part in (x[:0], *x.split(chunk)):
            moments.add(part)
        fit = moments.gaussian()
        assert moments.count == 100
        assert torch.allclose(fit.mean, x.mean(0), atol=1e-14)
        assert torch.allclose(fit.cov, torch.cov(x.T), atol=1e-14)
    assert torch.equal(gaussian_of(x).cov, gaussian_of(x).cov.T)


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(), NetConfig(image_size=8, channels=1))


def test_floor_of_the_digits(digits):
    evaluator = Evaluator(digits, 0, 0, PIXEL)
    assert evaluator.metric == "FD-pixel"
    assert evaluator.num == 1797
    mean, std = evaluator.floor()
    assert mean == pytest.approx(0.070, abs=0.010)
    assert 0.001 < std < 0.02
    assert evaluator.floor() == (mean, std)


def test_distance_grows_with_damage(digits):
    evaluator = Evaluator(digits, 0, 0, PIXEL)
    # Constant pixels have eigenvalues of rounding size, 1e-17, whose square roots are 3e-9.
    assert 0 <= evaluator.distance(digits.images) < 1e-7
    torch.manual_seed(0)
    distances = []
    for amount in (8, 32, 128):
        noise = torch.randint(-amount, amount + 1, digits.images.shape)
        distances.append(evaluator.distance((digits.images.int() + noise).clamp(0, 255).byte()))
    assert distances[0] < distances[1] < distances[2]


def test_another_extractor_can_be_plugged_in(digits):
    def extract(images):
        x = images.double().flatten(1)
        return Features(torch.stack([x.mean(1), x.std(1)], 1))

    mean_and_contrast = Detector(name="contrast", metric="FD-contrast", extract=extract)
    evaluator = Evaluator(Dataset(digits.images, None), 100, 0, mean_and_contrast)
    assert evaluator.metric == "FD-contrast"
    assert evaluator.distance(digits.images) == pytest.approx(0, abs=1e-8)
    assert evaluator.distance(digits.images // 2) > 100
