"""Numbers of sampling steps that fit a teacher's T timesteps.

N steps are at u = k / N, and timestep t is u = (t + 1) / T: all of them are timesteps where N
divides T. Otherwise some lie between two, where logSNR is interpolated.
"""

from pdfast.config.loops import halvings
from pdfast.config.schema import MAX_STEPS
from pdfast.console.messages import counted

LARGEST = 8192  # steps that a teacher is distilled from by default
FEW = 4  # that halvings should end at, or below


def divisors(timesteps: int) -> list[int]:
    """The numbers of steps, rising, at which every step is one of T timesteps."""
    return [n for n in range(1, timesteps + 1) if timesteps % n == 0]


def fits_in(most: int) -> int:
    """The largest power of 2 that is not above `most`."""
    return 1 << (most.bit_length() - 1)


def start_for(timesteps: int) -> int:
    """The steps to distil a teacher of T timesteps from; T = MAX_STEPS: of continuous time.

    The largest even divisor of T, 8192 at most, that halves to 4 steps or fewer, if it is not less
    than half the largest power of 2 in T; else that power.
    """
    start = fits_in(min(timesteps, LARGEST))
    if timesteps >= MAX_STEPS:
        return start
    near = [n for n in divisors(timesteps) if start // 2 <= n <= LARGEST]
    ending = [n for n in near if n % 2 == 0 and n >> halvings(n) <= FEW]
    return ending[-1] if ending else start


def between(start: int, timesteps: int) -> str:
    """A sentence on a start that does not divide T, naming the nearest that does; "" if it does.

    Of continuous time, T = MAX_STEPS, there is nothing to say.
    """
    if timesteps >= MAX_STEPS or timesteps % start == 0:
        return ""
    near = min(divisors(timesteps), key=lambda n: (max(n, start) / min(n, start), -n))
    times = halvings(near)
    ends = near >> times
    goes_on = (
        f"halves {times} time{'s' * (times > 1)}, to {counted(ends)}"
        if times
        else "cannot be halved"
    )
    if ends > FEW:
        goes_on += "; rounds of other ratios go on from there, with distill.second student"
    return (
        f"{start} steps do not divide the teacher's {timesteps} timesteps, so that some of them "
        f"lie between two, where logSNR is interpolated: the nearest number that does, {near}, "
        f"{goes_on}"
    )
