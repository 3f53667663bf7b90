"""Statistics files: reading them, and refusing invalid ones."""

import numpy as np
import pytest
import torch
from sample_sets import about, pictures, statistics

from pdfast.errors import UsageError
from pdfast.evaluation import statistics_file


def wrong(name, change):
    found = statistics(pictures(40, size=2))
    found |= change(found)
    return pytest.param(found, name, id=name)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        wrong("`mu` is pickled", lambda s: {"mu": np.array([{}] * 4, object)}),
        wrong("numbers that are not finite", lambda s: {"mu": s["mu"] * np.nan}),
        wrong(
            "`sigma` holds numbers that are not finite", lambda s: {"sigma": s["sigma"] + np.inf}
        ),
        wrong("holds numbers above 1e+30", lambda s: {"sigma": s["sigma"] * 1e40}),
        wrong("is not symmetric", lambda s: {"sigma": s["sigma"] + np.triu(s["sigma"], 1)}),
        wrong("has negative eigenvalues", lambda s: {"sigma": -s["sigma"]}),
        wrong("not float64 of shape (2, 2)", lambda s: {"mu": s["mu"].reshape(2, 2)}),
        wrong("not int64 of shape (4,)", lambda s: {"mu": np.arange(4)}),
        wrong(
            "of shape (4, 4), not float64 of shape (4, 3)", lambda s: {"sigma": s["sigma"][:, 1:]}
        ),
        wrong("more than the 8,192 that can be read", lambda s: {"mu": np.zeros(8193)}),
        wrong("`about` was not written by pdfast stats", lambda s: {"about": np.arange(3)}),
        wrong(
            "was not written by pdfast stats: make it", lambda s: {"about": np.array("[" * 9000)}
        ),
        wrong("was not written by pdfast stats", lambda s: about(detector="x")),
        wrong("was not written by pdfast stats", lambda s: about(features=None)),
        wrong("by a newer version of pdfast, in format 2", lambda s: about(format=2, more=1)),
        wrong("says that it is of 5 features, but holds 4", lambda s: about(features=5)),
    ],
)
def test_statistics_that_are_none_are_refused(tmp_path, arrays, message):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    assert statistics_file.is_one(path)
    with pytest.raises(UsageError) as error:
        statistics_file.read(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))


def test_one_of_the_two_arrays_is_too_few(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(3))
    with pytest.raises(UsageError, match="has no array `sigma`"):
        statistics_file.read(tmp_path / "a.npz")


def test_rounding_of_float32_is_no_asymmetry(tmp_path):
    found = statistics(pictures(40, size=2))
    sigma = found["sigma"].astype(np.float32)
    sigma[0, 1] *= 1 + 1e-6
    np.savez(tmp_path / "a.npz", mu=found["mu"].astype(">f8"), sigma=np.asfortranarray(sigma))
    read = statistics_file.read(tmp_path / "a.npz")
    assert torch.equal(read.gaussian.cov, read.gaussian.cov.T)
    np.testing.assert_allclose(read.gaussian.cov, found["sigma"], rtol=1e-5)
    np.testing.assert_array_equal(read.gaussian.mean, found["mu"])


def test_texts_of_a_file_do_nothing_to_a_terminal(tmp_path):
    found = statistics(pictures(40, size=2)) | about(metric="\x1b[2J")
    np.savez(tmp_path / "a.npz", **found)
    assert statistics_file.read(tmp_path / "a.npz").made.metric == r"\x1b[2J"
