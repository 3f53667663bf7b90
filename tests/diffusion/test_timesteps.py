"""Numbers of steps that suit a teacher's timesteps."""

import pytest

from pdfast.config.schema import MAX_STEPS
from pdfast.diffusion.timesteps import between, divisors, start_for


@pytest.mark.parametrize(
    ("timesteps", "start"),
    [
        (MAX_STEPS, 8192),  # continuous time
        (8192, 8192),
        (4096, 4096),
        (1024, 1024),
        (1000, 512),  # 500 and 1000 halve to 125 alone
        (100, 64),
        (768, 768),  # 3 * 2^8 halves to 3
        (1280, 1024),  # its 256 is less than half of 1024
        (1001, 512),
        (2, 2),
        (3, 2),  # 3 cannot be halved
        (12, 12),
    ],
)
def test_where_a_teacher_is_distilled_from(timesteps, start):
    assert start_for(timesteps) == start


def test_divisors():
    assert divisors(100) == [1, 2, 4, 5, 10, 20, 25, 50, 100]
    assert divisors(7) == [1, 7]


@pytest.mark.parametrize(
    ("start", "timesteps", "said"),
    [
        (512, 1024, ""),
        (250, 1000, ""),
        (8192, MAX_STEPS, ""),
        (48, MAX_STEPS, ""),
        (512, 1000, "start from 500, with rounds of other ratios (docs/teachers.md)"),
        (64, 1000, "start from 50, with rounds of other ratios (docs/teachers.md)"),
        (16, 1000, "start from 20, with rounds of other ratios (docs/teachers.md)"),
        (7, 1000, "start from 8 (docs/teachers.md)"),
        (64, 101, "start from 101, with rounds of other ratios (docs/teachers.md)"),
    ],
)
def test_what_is_said_of_a_start_that_does_not_divide(start, timesteps, said):
    text = between(start, timesteps)
    assert said in text
    assert bool(text) == bool(said)
    if text:
        assert text.startswith(f"{start} does not divide the teacher's {timesteps} timesteps, so")
