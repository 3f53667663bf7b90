"""shuffle: the order of a set's images, epoch by epoch: a permutation of any size, by counter.

Swap-or-not (Hoang, Morris, Rogaway 2012, "An Enciphering Scheme Based on a Card Shuffle"): in each
round x has the partner k - x (mod n), whose partner is x, and a random bit of the pair decides
whether the two swap. This permutes 0 .. n - 1 for every n, in a loop of known length; a Feistel
network would need walks back into the range. One round before the others swaps every pair, so that
each place of an epoch holds any number with the same probability. Each round then moves x with
probability 1/2 to a place drawn uniformly, so after 14 rounds 2^-28 of the original arrangement of
any two numbers is left (more in the smallest sets: the orders of 4 numbers are 0.001 from uniform,
in total variation).

Draw d is at place d % n of epoch d // n. So each epoch holds each number once, whichever processes
make its draws, and there is no state. A round's salt and key are hashes of (seed, key, epoch,
round), the two halves of the mixer lea64 (Steele and Vigna 2021, "LXM: Better Splittable
Pseudorandom Number Generators") in steps of 2^64 over the golden ratio. The bit of a pair is the
highest bit of a square modulo 2^64, as in Widynski's generators (2020, "Squares: A Fast
Counter-Based RNG"). The number that is squared is the salt plus as many steps as the larger number
of the pair.

`add_noise` draws by it. Fused: all of it, into the kernel of `add_noise`, where it moves no bytes.
Bound: integer arithmetic, some 50 instructions a round (sm_90); on a CPU, seven calls of PyTorch a
round. Loses: to a table of the order, if there is memory for it and it is renewed each epoch.
"""

import torch
from torch import Tensor

from pdfast.kernels.runtime import tl, triton

ROUNDS = 14

# 2^64 over the golden ratio, and lea64's multiplier; as int64, whose products wrap.
_STEP, _MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64, 0xDABA0B6EB09322E3 - 2**64
STEP, MULTIPLIER = tl.constexpr(_STEP), tl.constexpr(_MULTIPLIER)


# ------------------------------------------------------------------------------------------
# Reference


def shuffled(draw: Tensor, num: int, key: tuple[int, int | Tensor]) -> Tensor:
    """Draw numbers from 0 .. num - 1 without replacement, epoch by epoch.

    The `num` draws that begin at a multiple of `num` hold each number once.

    Args:
        draw: Numbers of the draws over all epochs, 0 .. 2^62, int64 (B,).
        num: Size of the set, 1 .. 2^31 - 1.
        key: As returned by `philox.key_of`; the second number may be a 0-d int64 tensor on the
            device of `draw`.

    Returns:
        Numbers in 0 .. num - 1, int64 (B,).
    """
    # In-place ops, and numbers as tensors (on the CPU for any device), save calls of PyTorch, which
    # take most of a CPU's time on small batches.
    seed, low = key
    root = (seed << 32 | (0 if isinstance(low, Tensor) else low)) * _MULTIPLIER
    root = (root + 2**63) % 2**64 - 2**63  # wrap into the range of an int64
    numbers = torch.tensor([root, _STEP, _MULTIPLIER, 32, num], device="cpu")
    start, step, multiplier, half, size = numbers.unbind()
    if isinstance(low, Tensor):
        start = start + low * multiplier
    round_ = torch.arange(ROUNDS + 1, device=draw.device)[:, None]
    salts = (draw // size * (ROUNDS + 1) + round_).mul_(step).add_(start)
    salts.bitwise_xor_(salts >> half).mul_(multiplier)
    keys = (salts >> half).bitwise_xor_(salts).mul_(multiplier)
    keys.bitwise_right_shift_(half).mul_(size).bitwise_right_shift_(half)  # modulo num: uniform
    first, *others = keys.unbind()
    x = (first - draw).remainder_(size)
    partner, bits, steps = torch.empty_like(x), torch.empty_like(x), torch.full_like(x, _STEP)
    for k, salt in zip(others, salts.unbind()[1:], strict=True):
        torch.sub(k, x, out=partner).remainder_(size)
        torch.maximum(x, partner, out=bits)
        torch.addcmul(salt, bits, steps, out=bits)
        x = torch.where(bits.mul_(bits).signbit(), partner, x)
    return x


# ------------------------------------------------------------------------------------------
# Triton


@triton.jit
def shuffled_at(draw, num, seed, key, rounds: tl.constexpr):
    """Return the number at a draw, with the same bits as `shuffled`.

    Args:
        draw: Number of the draw over all epochs, int64.
        num: Size of the set, an integer.
        seed: First number of the key, an integer.
        key: Second number of the key, an integer.
        rounds: Number of rounds that may swap; one more comes before them.
    """
    epoch = draw // num
    x = draw - epoch * num
    root = (seed.to(tl.int64) << 32) | key.to(tl.int64)
    state = root * MULTIPLIER + epoch * (rounds + 1) * STEP
    for r in range(rounds + 1):
        salt = (state ^ (state >> 32)) * MULTIPLIER
        k = (salt ^ (salt >> 32)) * MULTIPLIER
        k = ((k >> 32) * num) >> 32
        k = tl.where(k < 0, k + num, k)
        partner = tl.where(k < x, k - x + num, k - x)
        bits = salt + tl.maximum(x, partner) * STEP
        x = tl.where((bits * bits < 0) | (r == 0), partner, x)
        state += STEP
    return x
