"""Shared parts of the tests of the Triton kernels: inputs, and the rule of acceptance."""

import typing

import torch
from hypothesis import settings
from hypothesis import strategies as st

from pdfast.config.names import LossWeight, Parameterization
from pdfast.diffusion.schedules import CosineSchedule
from pdfast.kernels import runtime

ON_GPU = torch.cuda.is_available() and not runtime.INTERPRETING
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
PARAMETERIZATIONS, WEIGHTS = typing.get_args(Parameterization), typing.get_args(LossWeight)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCHEDULE = CosineSchedule()
FEW = settings(max_examples=75, deadline=None, derandomize=True, database=None)
MANY = settings(FEW, max_examples=500)

SIDES = st.sampled_from([1, 5, 7, 12])
SHAPES = st.tuples(st.integers(1, 3), st.sampled_from([1, 3]), SIDES, SIDES)
LAYOUTS = st.sampled_from(["channels last", "channels first", "every other column"])
STEPS = st.sampled_from([1, 2, 3, 64, 8192])
SEEDS = st.integers(0, 2**31 - 1)


def images(shape, dtype, layout, generator):
    """Draw standard normal images, laid out in memory in one of three ways."""
    b, c, h, w = shape
    if layout == "every other column":
        wide = torch.randn(b, c, h, 2 * w, generator=generator).to(DEVICE, dtype)
        return wide[..., ::2]
    tensor = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    last = layout == "channels last"
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def angles(num_steps, batch, generator):
    """Return i = 0, N - 1, then random ones, as their phi_t, phi_mid and whether i is 0."""
    i = torch.randint(0, num_steps, (batch,), generator=generator)
    i[: min(batch, 2)] = torch.tensor([0, num_steps - 1])[:batch]
    phi_t, phi_mid = SCHEDULE.phi((i + 1.0) / num_steps), SCHEDULE.phi((i + 0.5) / num_steps)
    return phi_t.to(DEVICE), phi_mid.to(DEVICE), (i == 0).to(DEVICE)


FAIR = 4  # ulps of error that eager PyTorch may have and still be a standard


def assert_accepted(ours, eager, exact, terms=None, parts=None):
    """Check that the relative L2 error is at most twice eager PyTorch's, plus one ulp.

    Where numbers are sums that may cancel, `terms` are the magnitudes of each number's terms, and
    the float32 ulp is one of these: below it, PyTorch's own error is a matter of luck.

    At most FAIR ulps of PyTorch's error count (and the underflow of 16-bit dtypes): if it lost its
    digits, twice its error would allow anything. These too are ulps of the terms. `parts` replaces
    `terms` in this cap only, and does not widen the tolerance itself. Give neither for numbers that
    are no such sums.

    The interpreter truncates to bfloat16 instead of rounding, which may cost that ulp. float16 may
    overflow, but then as in eager PyTorch.
    """
    assert ours.dtype == eager.dtype
    assert ours.shape == eager.shape
    kind = torch.finfo(ours.dtype)
    finite = eager.isfinite()
    assert torch.equal(ours.isfinite(), finite)
    ours, eager, exact = (t.double().where(finite, 0.0) for t in (ours, eager, exact))
    found, peer = (ours - exact).norm(), (eager - exact).norm()
    allowed = kind.eps * exact.norm()
    fair = kind.eps * exact.abs().clamp(min=kind.tiny).norm()
    single = torch.finfo(torch.float32).eps
    if terms is not None:
        allowed += single * terms.norm()
        fair += single * terms.norm()
    if parts is not None:
        fair += single * parts.norm()
    allowed += 2 * torch.minimum(peer, FAIR * fair)
    assert found <= allowed, (
        f"error {found:.3g} is above the allowed {allowed:.3g} (eager PyTorch's error "
        f"{peer:.3g}, norm of the result {exact.norm():.3g})"
    )
