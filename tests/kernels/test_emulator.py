"""The emulator in tests/sass against small kernels with known results. Needs nvcc and no GPU."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import sass
import torch
from nvcc import compile_cubin, read_cubin

pytestmark = pytest.mark.gpu
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def cubin(tmp_path_factory):
    out = tmp_path_factory.mktemp("emulated") / "emulated.cubin"
    return read_cubin(compile_cubin(Path(__file__).with_name("emulated.cu"), out))


def launch(cubin, name, *arguments, blocks=1, threads=64, **options):
    """Runs a kernel on arrays and scalars of numpy."""
    memory = sass.Memory()
    raw = [
        a.tobytes() if np.isscalar(a) else np.uint64(memory.place(a)).tobytes() for a in arguments
    ]
    grid = sass.Launch(blocks, threads, **options)
    clusters = range(blocks // grid.cluster)
    return sass.emulate(cubin.kernel(name), grid, raw, memory, clusters)


def c_int(value):
    return (int(value) + 2**31) % 2**32 - 2**31


def integers(low, high, *shape, kind=np.int32):
    return RNG.integers(low, high, shape, kind)


def test_loop(cubin):
    times = integers(0, 40, 128)
    out = np.zeros_like(times)
    run = launch(cubin, "loop", times, out, blocks=2)
    wanted = [0] * 128
    for i, count in enumerate(times):
        for k in range(count):
            wanted[i] = c_int(wanted[i] * 3 + k)
    assert out.tolist() == wanted
    # A round counts once for a warp, as long as any of its lanes is in the loop.
    rounds = times.reshape(-1, 32).max(1)
    most = run.hits.max()
    assert most == rounds.sum()
    # Instructions before and after the loop count once for a warp: no lane goes there alone.
    assert set(run.hits[run.hits < most].tolist()) == {0, 4}
    assert run.issued.sum() == run.hits.sum()
    in_loop, outside = (run.hits == most).sum(), (run.hits == 4).sum()
    of_block = rounds.reshape(2, 2).sum(1) * in_loop + 2 * outside
    assert run.issued.tolist() == of_block.tolist()


def branch(kind, value, first, after):
    """Compute one round of `branches`."""
    unsigned = value % 2**32
    return {
        0: value * after,
        1: int(value / 3) + first,
        2: unsigned.bit_count() + 100,
        3: after - (value ^ 77),
        4: 32 - unsigned.bit_length() - after,
        5: c_int(int(f"{unsigned:032b}"[::-1], 2)) >> 3,
        6: max(value, first),
    }.get(kind, value + 1)


def test_branches(cubin):
    kind, out = integers(0, 8, 65), integers(-(2**31), 2**31, 64)
    wanted = []
    for i, value in enumerate(out.tolist()):
        for step in range(3):
            value = c_int(branch(kind[i] + step, value, int(kind[0]), int(kind[i + 1])))
        wanted.append(value)
    run = launch(cubin, "branches", kind, out)
    assert out.tolist() == wanted
    assert "BRX" in run.histogram(1)


def test_lanes(cubin):
    values = integers(-9, 10, 64)
    values[0] = 3  # rounds of the last loop
    out = np.zeros((8, 64), np.int32)
    launch(cubin, "lanes", values, out)
    warps, lane = values.reshape(2, 32), np.arange(32)
    assert (out[0].reshape(2, 32) == warps.sum(1, keepdims=True)).all()
    assert (out[1].reshape(2, 32) == warps.cumsum(1)).all()
    below = np.where(lane % 8 < 5, lane + 3, lane) % 32
    assert (out[2].reshape(2, 32) == warps[:, below]).all()
    source = lane // 16 * 16 + (lane * 5 + 1) % 16
    assert (out[3].reshape(2, 32) == warps[:, source]).all()
    ballot = ((warps > 0) * (1 << lane.astype(np.uint32))).sum(1).astype(np.uint32).view(np.int32)
    assert (out[4].reshape(2, 32) == ballot[:, None]).all()
    sevens = (warps == 7).any(1)
    assert (out[5].reshape(2, 32) == np.where(sevens, 2, 1)[:, None]).all()
    assert (out[6].reshape(2, 32) == warps.max(1, keepdims=True)).all()
    half = warps.copy()
    for k in range(3):
        half = np.where(lane % 2, half + half[:, lane ^ 2 << k], half)
    assert (out[7].reshape(2, 32) == half).all()


@pytest.mark.parametrize(("stride", "ways"), [(32, 32), (33, 1)])
def test_conflicts(cubin, stride, ways):
    values = RNG.standard_normal(1024, np.float32)
    out = np.zeros_like(values)
    run = launch(cubin, f"transpose_{stride}", values, out, threads=256)
    assert (out.reshape(32, 32) == values.reshape(32, 32).T).all()
    assert run.conflicts("LDS") == (ways, ways)
    assert run.conflicts("STS") == (1, 1)
    assert run.shared.requests == {"LDS": 32, "STS": 32}
    assert run.barriers.tolist() == [1]


@pytest.mark.parametrize(("step", "ways"), [(1, 1), (2, 2), (3, 1), (8, 8)])
def test_conflicts_of_16_bytes(cubin, step, ways):
    """Eight lanes at a time: four wavefronts a warp at least."""
    values = RNG.standard_normal((64, 4), np.float32)
    out = np.zeros_like(values)
    run = launch(cubin, "wide", values, out, np.int32(step), shared=64 * step * 16)
    assert (out == values[np.arange(64) ^ 1]).all()
    assert run.conflicts("LDS") == (4 * ways, ways)
    assert run.conflicts("STS") == (4 * ways, ways)


def test_divide(cubin):
    a = integers(-(2**63), 2**63, 256, kind=np.int64)
    b = integers(-(2**63), 2**63, 256, kind=np.int64) >> integers(0, 62, 256, kind=np.int64)
    b[b == 0] = 1
    a[::3] >>= 33
    a[7::50] = b[7::50]
    out = np.zeros((7, 256), np.int64)
    launch(cubin, "divide", a, b, out, threads=256)
    for i, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        c, d = c_int(x), c_int(y)
        u, v = x % 2**64, y % 2**64
        truncated = abs(c) // abs(d) * (1 if (c < 0) == (d < 0) else -1) if d else 0
        wanted = [
            abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1),
            u % v,
            truncated,
            c % 2**32 % (d % 2**32) if d else 0,
            x * y + (x >> 7) - (x << 9),
            x * y >> 64,
            int(x < y) if x != y else 1,
        ]
        wrapped = [(w + 2**63) % 2**64 - 2**63 for w in wanted]
        assert out[:, i].tolist() == wrapped, (x, y)


def nearest(found, exact):
    """Return whether no float32 is nearer to a fraction."""
    around = np.nextafter(found, np.float32([-np.inf, np.inf]))
    return all(
        abs(Fraction(float(found)) - exact) <= abs(Fraction(float(v)) - exact) for v in around
    )


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_floats(cubin):
    a, b, c = np.ldexp(RNG.standard_normal((3, 256), np.float32), integers(-9, 9, 3, 256))
    # Quotients that take the slow path: too large, subnormal, or of subnormal numbers.
    for lanes, up, down in ((16, 110, -110), (32, -100, 40), (48, -140, -130)):
        a[lanes : lanes + 16] = np.ldexp(a[lanes : lanes + 16], up)
        b[lanes : lanes + 16] = np.ldexp(b[lanes : lanes + 16], down)
    c[::2] = -(a * b)[::2]  # sums that cancel
    c = np.clip(c, -80, 80)
    out = np.zeros((10, 256), np.float32)
    launch(cubin, "floats", a, b, c, out, threads=256)
    assert (out[0] == a / b).all()
    sizes = np.abs(out[0])
    assert np.isinf(sizes).any()
    assert ((sizes > 0) & (sizes < 2.0**-126)).any()
    assert (out[1] == np.sqrt(np.abs(a))).all()
    values = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    exact = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in values]
    assert all(nearest(f, e) for f, e in zip(out[2], exact, strict=True))
    for x, y, f in zip(a.tolist(), b.tolist(), out[3], strict=True):
        total, away = Fraction(x) + Fraction(y), np.nextafter(f, np.float32(np.copysign(np.inf, f)))
        assert abs(Fraction(float(f))) <= abs(total) < abs(Fraction(float(away)))
    wanted = np.exp(c.astype(np.float64))
    assert (np.abs(out[4] / wanted - 1) < 3e-7).all()
    assert (out[5] == np.minimum(a, b) - np.maximum(b, c)).all()
    scaled = (np.abs(c) * np.float32(1e6)).astype(np.uint64).astype(np.float32)
    assert (out[6] == c.astype(np.int32).astype(np.float32) + scaled).all()
    halves = torch.from_numpy(out[7].view(np.int16).reshape(256, 2)).view(torch.bfloat16)
    assert torch.equal(halves[:, 1], torch.from_numpy(a).bfloat16())
    assert torch.equal(halves[:, 0], torch.from_numpy(c).bfloat16())
    halves = out[8].view(np.float16).reshape(256, 2)
    assert (halves[:, 1] == b.astype(np.float16)).all()
    assert (halves[:, 0] == c.astype(np.float16)).all()
    assert (out[9] == c.astype(np.float16)).all()


def test_halves(cubin):
    exponents = integers(-5, 6, 3, 256, 2)
    a, b, c = np.ldexp(RNG.standard_normal((3, 256, 2), np.float32), exponents).astype(np.float16)
    out = np.zeros((4, 256, 2), np.float16)
    launch(cubin, "halves", a, b, c, out, threads=256)
    x, y, z = (v.astype(np.float64) for v in (a, b, c))
    assert (out[0] == (x * y + z).astype(np.float16)).all()
    assert (out[1] == (x * y).astype(np.float16)).all()
    assert (out[2] == (x - y).astype(np.float16)).all()
    # The same bits as bfloat16; float64 does not always hold the sums.
    x, y, z = (torch.from_numpy(v).view(torch.bfloat16).double().numpy() for v in (a, b, c))
    found = torch.from_numpy(out[3]).view(torch.bfloat16).double().numpy()
    for p, q, r, f in zip(*(v.ravel().tolist() for v in (x, y, z, found)), strict=True):
        half_ulp = Fraction(2) ** (math.frexp(f)[1] - 9)
        assert abs(Fraction(p) * Fraction(q) + Fraction(r) - Fraction(f)) <= half_ulp


def test_neighbours(cubin):
    values = integers(-99, 99, 512)
    out = np.zeros_like(values)
    run = launch(cubin, "neighbours", values, out, blocks=8, cluster=4)
    blocks = values.reshape(2, 4, 64)
    assert (out.reshape(2, 4, 64) == np.roll(blocks, -1, 1)[:, :, ::-1]).all()
    assert run.cluster_barriers.tolist() == [2] * 8


def test_copies(cubin):
    values = integers(0, 99, 128, 4)
    for name, arrived in (("copy_all", 128), ("copy_half", 64)):
        out = np.zeros_like(values)
        launch(cubin, name, values, out, shared=2048)
        assert (out[:arrived] == values[:arrived]).all()
        assert (out[arrived:] == -1).all()  # nobody has waited for the others


def test_meet(cubin):
    values = integers(0, 99, 128)
    out = np.zeros_like(values)
    run = launch(cubin, "meet", values, out, np.int32(64), threads=128)
    other = values[np.arange(128) ^ 63]
    assert (out == other + 1000 * (other > 50).sum()).all()
    assert run.barriers.tolist() == [3]
    with pytest.raises(sass.FaultError, match="hangs"):
        launch(cubin, "meet", values, out, np.int32(96), threads=128)


def test_refused(cubin):
    out = np.zeros(64, np.int32)
    with pytest.raises(sass.UnsupportedError, match="unknown opcode"):
        launch(cubin, "add_atomically", out)
    with pytest.raises(sass.FaultError, match="has 252 bytes"):
        launch(cubin, "loop", out, out[:63].copy())
    with pytest.raises(sass.FaultError, match="in no buffer"):
        launch(cubin, "loop", out, np.uint64(0))
    with pytest.raises(AssertionError, match="takes"):
        launch(cubin, "loop", out)
    with pytest.raises(sass.FaultError, match="shared memory has"):
        launch(cubin, "wide", np.zeros((64, 4), np.int32), out, np.int32(2), shared=1024)
