"""Numbers of sampling steps that suit a teacher trained on T timesteps.

N sampling steps are at u = k / N, and timestep t is at u = (t + 1) / T. If N divides T, every step
is one of the timesteps; otherwise some lie between two timesteps, where logSNR is interpolated.
"""

from pdfast.config.loops import halvings
from pdfast.config.schema import MAX_STEPS

LARGEST = 8192  # most steps that distillation starts from by default
FEW = 4  # halving should end at this many steps or fewer


def divisors(timesteps: int) -> list[int]:
    """Return the divisors of T, rising: with so many steps, every step is one of T timesteps."""
    return [n for n in range(1, timesteps + 1) if timesteps % n == 0]


def fits_in(most: int) -> int:
    """Return the largest power of 2 that is at most `most`."""
    return 1 << (most.bit_length() - 1)


def start_for(timesteps: int) -> int:
    """Return the number of steps to start distillation from.

    It is the largest even divisor of T, at most 8192, that halves to 4 steps or fewer and is at
    least half the largest power of 2 up to T; if there is no such divisor, it is that power (at
    most 8192).

    Args:
        timesteps: T, the teacher's timesteps; MAX_STEPS for a teacher of continuous time.
    """
    start = fits_in(min(timesteps, LARGEST))
    if timesteps >= MAX_STEPS:
        return start
    near = [n for n in divisors(timesteps) if start // 2 <= n <= LARGEST]
    ending = [n for n in near if n % 2 == 0 and n >> halvings(n) <= FEW]
    return ending[-1] if ending else start


def between(start: int, timesteps: int) -> str:
    """Return a message that `start` does not divide T, naming the nearest divisor.

    Args:
        start: Number of steps to start distillation from.
        timesteps: T, the teacher's timesteps; MAX_STEPS for a teacher of continuous time.

    Returns:
        The message, or "" if `start` divides T or time is continuous.
    """
    if timesteps >= MAX_STEPS or timesteps % start == 0:
        return ""
    near = min(divisors(timesteps), key=lambda n: (max(n, start) / min(n, start), -n))
    ends = near >> halvings(near)
    other = ", with rounds of other ratios" if ends > FEW else ""
    return (
        f"{start} does not divide the teacher's {timesteps} timesteps, so some noise levels are "
        f"interpolated, which is normal; to visit the teacher's own timesteps only, start from "
        f"{near}{other} (docs/teachers.md)"
    )
