"""shuffle: the kernel against the reference and plain Python, to the bit; permutations; chance."""

import math

import pytest
import torch
from kernel_checks import DEVICE

from pdfast.kernels import runtime
from pdfast.kernels.philox import Stream, key_of
from pdfast.kernels.runtime import tl, triton
from pdfast.kernels.shuffle import ROUNDS, shuffled, shuffled_at

KEY = key_of(7, Stream.BATCH, 3)
KEYS = [KEY, (0, 0), (2**32 - 1, 2**32 - 1)]
SIZES = [1, 2, 3, 5, 64, 1797, 60_000]


@triton.jit(do_not_specialize=["num", "seed", "key"])
def order_kernel(draws, out, num, seed, key, rounds: tl.constexpr, block: tl.constexpr):
    i = tl.arange(0, block)
    tl.store(out + i, shuffled_at(tl.load(draws + i), num, seed, key, rounds))


def by_kernel(draws, num, key):
    out = torch.empty_like(draws, device=DEVICE)
    args = (draws.to(DEVICE), out, num, *key)
    runtime.launch(order_kernel, (1,), DEVICE, *args, rounds=ROUNDS, block=len(draws))
    return out.cpu()


def in_plain_python(draw, num, key):
    """Compute the papers' formulas with Python's integers."""

    def wrapped(value):
        return (value + 2**63) % 2**64 - 2**63

    def half_of_lea64(value):
        return wrapped((value ^ value >> 32) * 0xDABA0B6EB09322E3)

    epoch, x = divmod(draw, num)
    for round_ in range(15):
        root = (key[0] * 2**32 + key[1]) * 0xDABA0B6EB09322E3
        state = wrapped(root + (15 * epoch + round_) * 0x9E3779B97F4A7C15)
        salt = half_of_lea64(state)
        k = (half_of_lea64(salt) >> 32) * num >> 32
        partner = (k - x) % num
        bits = (salt + max(x, partner) * 0x9E3779B97F4A7C15) ** 2
        if round_ == 0 or bits >> 63 & 1:
            x = partner
    return x


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("num", [*SIZES, 2**31 - 1])
def test_kernel_reference_and_plain_python_draw_the_same(num, key):
    g = torch.Generator().manual_seed(num)
    draws = torch.randint(0, 2**62, (256,), generator=g)
    draws[:128] = torch.arange(128)
    draws[128:160] = 2**32 * num + torch.arange(-16, 16)
    draws[-1] = 2**62
    expected = shuffled(draws, num, key)
    assert torch.equal(by_kernel(draws, num, key), expected)
    assert expected[::8].tolist() == [in_plain_python(d, num, key) for d in draws[::8].tolist()]


def test_the_order_stays_what_it_is():
    """Saved runs depend on it: these numbers must not change."""
    order = shuffled(torch.arange(20), 10, KEY).tolist()
    assert order[:10] == [5, 7, 8, 9, 3, 0, 2, 4, 1, 6]
    assert order[10:] == [4, 2, 9, 7, 3, 8, 1, 6, 5, 0]
    far = shuffled(2**62 - 5 + torch.arange(5), 2**31 - 1, KEY).tolist()
    assert far == [980301210, 1955958229, 1074469458, 956591347, 1733404815]


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("num", SIZES)
def test_each_epoch_holds_each_number_once(num, key):
    """Also epochs far from the first; and the orders of two epochs differ, if n has several."""
    every, orders = torch.arange(num), set()
    for epoch in (0, 1, 2, 2**32 - 1, 2**32, 2**62 // num):
        order = shuffled(epoch * num + every, num, key)
        assert torch.equal(order.sort().values, every)
        orders.add(tuple(order.tolist()))
    assert len(orders) == 6 or num < 64


def test_of_very_many_none_comes_twice():
    """A million draws of an epoch of 2^31 - 1; without a permutation some 244 would repeat."""
    num = 2**31 - 1
    draws = 2**30 * num + torch.arange(0, num, 2**11)
    order = shuffled(draws, num, KEY)
    assert len(order) > 10**6
    assert len(order.unique()) == len(order)
    assert int(order.min()) >= 0
    assert int(order.max()) < num


# ------------------------------------------------------------------------------------------
# Chance. The draws are fixed, so the results are too: within 4 standard deviations of the mean.


def assert_even(cells, count):
    """Check by chi-square that the numbers 0 .. count - 1 are equally frequent."""
    expected, df = len(cells) / count, count - 1
    assert expected >= 20
    chi2 = float(((torch.bincount(cells, minlength=count) - expected) ** 2).sum()) / expected
    assert abs(chi2 - df) < 4 * math.sqrt(2 * df), f"chi-square {chi2:.1f} of {df}"


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize(("num", "epochs"), [(2, 40_000), (3, 40_000), (4, 40_000), (5, 20_000)])
def test_every_permutation_is_as_likely(num, epochs, key):
    order = shuffled(torch.arange(num * epochs), num, key).view(epochs, num)
    number = torch.zeros(epochs, dtype=torch.int64)  # of the permutation, by its Lehmer code
    for i in range(num):
        number = number * (num - i) + (order[:, i + 1 :] < order[:, i, None]).sum(1)
    assert_even(number, math.factorial(num))


def eighths(order, num):
    return order * 8 // num


@pytest.mark.parametrize("num", [64, 1797, 1_281_167])
@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, -1), (30, 33)])
def test_two_places_of_an_epoch_say_nothing_of_each_other(num, one, other):
    """Except that they differ, which is too little to show here."""
    epochs = torch.arange(20_000) * num
    a, b = (shuffled(epochs + place % num, num, KEY) for place in (one, other))
    assert not (a == b).any()
    for order in (a, b):
        assert_even(order * 64 // num, 64)
    if num > 64:
        assert_even(8 * eighths(a, num) + eighths(b, num), 64)


@pytest.mark.parametrize("num", [64, 1797, 1_281_167])
@pytest.mark.parametrize("what", ["epoch", "seed", "round"])
def test_orders_are_independent(num, what):
    """Between one epoch and the next, and between seeds and rounds."""
    epochs = torch.arange(20_000) * num
    for place in (0, 1, num // 2, num - 1):
        a = shuffled(epochs + place, num, KEY)
        b = {
            "epoch": lambda place: shuffled(epochs + num + place, num, KEY),
            "seed": lambda place: shuffled(epochs + place, num, (KEY[0] + 1, KEY[1])),
            "round": lambda place: shuffled(epochs + place, num, key_of(7, Stream.BATCH, 4)),
        }[what](place)
        assert_even(8 * eighths(a, num) + eighths(b, num), 64)


def test_neighbours_are_parted():
    """Neighbours in the set are at any distance from each other in an epoch, on either side."""
    num, epochs = 256, 400
    order = shuffled(torch.arange(num * epochs), num, KEY).view(epochs, num)
    place = order.argsort(1)
    apart = (place[:, 1:] - place[:, :-1]) % num  # 1 .. num - 1
    assert_even((apart - 1).flatten(), num - 1)
