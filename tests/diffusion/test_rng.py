"""Counter-based draws: known answers, and independence of everything but the counter."""

import math

import pytest
import torch

from pdfast.diffusion.rng import Draws, Stream, index_below
from pdfast.kernels.philox import philox, uniform_of


def scalar(value):
    return torch.tensor(value, dtype=torch.int64)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's known-answer tests of philox4x32-10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, expected):
    assert tuple(philox(tuple(map(scalar, counter)), key).tolist()) == expected


def test_a_draw_depends_on_its_position_alone():
    draws = Draws(7, Stream.NOISE, round_=3)
    whole = draws.normal(11, 0, 10, (3, 5, 5))
    assert whole.shape == (10, 3, 5, 5)
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(draws.normal(11, 4, 3, (3, 5, 5)), whole[4:7])


@pytest.mark.parametrize(
    "other",
    [
        (Draws(8, Stream.NOISE, 3), 11),
        (Draws(7, Stream.FIXED, 3), 11),
        (Draws(7, Stream.NOISE, 4), 11),
        (Draws(7, Stream.NOISE, 3), 12),
        (Draws(7, Stream.NOISE, 3), 11 + 2**32),
    ],
)
def test_seed_stream_round_and_update_all_count(other):
    draws, update = other
    words = Draws(7, Stream.NOISE, 3).words(11, 0, 64)
    assert (draws.words(update, 0, 64) == words).float().mean() < 0.01


def test_normals_are_standard():
    z = Draws(0, Stream.NOISE).normal(0, 0, 2000, (1, 16, 16)).double().flatten()
    n = len(z)
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)
    inside = (z.abs() < 1.959963984540054).double().mean()
    assert abs(inside - 0.95) < 4 * math.sqrt(0.95 * 0.05 / n)
    pairs = z.view(-1, 2)
    assert abs((pairs[:, 0] * pairs[:, 1]).mean()) < 4 / math.sqrt(n / 2)


def test_integers_and_uniforms():
    words = Draws(1, Stream.BATCH).words(0, 0, 30_000)
    index = index_below(words[:, 0], 10)
    assert index.min() == 0
    assert index.max() == 9
    counts = torch.bincount(index, minlength=10).double()
    assert ((counts - 3000) ** 2 / 3000).sum() < 28  # chi-square, 9 degrees, p = 0.001
    u = uniform_of(words[:, 2], words[:, 3])
    assert u.dtype == torch.float64
    assert u.min() > 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 4 / math.sqrt(12 * len(u))
    ends = torch.tensor([0, 2**32 - 1])
    assert index_below(ends, 8192).tolist() == [0, 8191]
    first, last = uniform_of(ends, ends).tolist()
    assert 0 < first < 2**-52
    assert 1 - 2**-52 < last < 1
