"""Instructions of group_norm_silu's kernels per element, counted on an emulator. Needs only nvcc.

The emulator runs the machine code, so the kernels' results are checked as well.
"""

import group_norm_silu_host as host
import pytest
import torch
from group_norm_checks import ROUNDINGS, ROUNDOFF, Exact, exact_of, last_rounding
from group_norm_silu_sass import CASES, DISTINCT, Emulated, statistics
from nvcc import read_cubin

# Largest thread instructions per element: forward, and backward with the parameters' sums. For the
# first case's earlier kernels, the same emulator counted 40.5 forward, as did Nsight Compute on an
# H200 (42.5 M warp instructions for 33.5 M elements), and 69.4 backward. A device copy takes the
# time of some 20 forward. Without a bound the count is only printed.
BOUNDS = {str(CASES[0]): (20, 32), str(CASES[1]): (25, 36)}
MOST_BARRIERS = 3  # a slab, of a block and of a cluster
SLOW = (CASES[2], CASES[3])  # like the first, except for the sum or the number of channels
RUN = [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else [], id=str(c)) for c in CASES]
NAMES = ("y", "dx", "dweight", "dbias", "dfilm")

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def emulated(norm_machine_code, tmp_path_factory):
    _, folder = norm_machine_code
    (path,) = folder.glob("*compute_90a.cubin")
    out = tmp_path_factory.mktemp("host") / "group_norm_silu.so"
    lib = host.load_host(host.compile_host(out, "-shared", "-fPIC"))
    cubin = read_cubin(path)
    return lambda case: Emulated(cubin, lib, case)


@pytest.fixture
def counted(record_property):
    """Print an outcome at the end, and hold its count to a bound."""

    def check(case, which, outcome, count, bound):
        record_property("instructions", f"group_norm_silu {case} {which}: {outcome}")
        if bound:
            assert count <= bound
            # Shared loads take the fewest wavefronts that their width allows, or nearly.
            assert outcome.run.conflicts("LDS")[1] < 1.1

    return check


def exact_images(t, case):
    """Return the Exact of each distinct image alone."""
    images = []
    for k in range(DISTINCT):
        x, dy = (t[name][k : k + 1].mT[..., None] for name in ("s", "dy"))
        film = t["film"][k : k + 1] if case.film else None
        images.append(
            exact_of(x, t["weight"], t["bias"], film, dy, case.groups, case.silu, host.EPS)
        )
        if case.sum == "residual":  # the sum's other gradient
            images[-1].values[1].add_(t["dsum"][k : k + 1].double().mT[..., None])
    return images


def check(name, found, mask, exact):
    """Check the L2 error of the written part of an output, against the bound for that part."""
    k = NAMES.index(name)

    def chosen(tensor):
        tensor = tensor[0, ..., 0].mT if tensor.dim() == 4 else tensor.reshape(-1)
        return tensor.broadcast_to(mask.shape)[mask]

    part = Exact(*([chosen(tensors[k])] for tensors in exact))
    (bound,) = part.bounds([found.dtype])
    error = (found[mask].double() - part.values[0]).norm()
    assert error <= bound, f"{name}: {error:.3g} > {bound:.3g}"


@pytest.mark.parametrize("case", RUN)
def test_forward(emulated, counted, case):
    outcome = emulated(case).forward()
    exact = exact_images(outcome.inputs, case)
    y = outcome.outputs["y"]
    assert y.mask.sum() == outcome.elements  # each element once
    for row, values, mask in zip(*y, strict=True):
        check("y", values, mask, exact[row % DISTINCT])
    mean, rstd, size = statistics(outcome.inputs["s"], case.groups)
    for name, want, allowed in (("mean", mean, 3e-7 * size), ("rstd", rstd, 1e-6 * rstd)):
        rows, values, mask = outcome.outputs[name]
        assert torch.equal(rows, y.rows)
        wrong = (values - want[rows % DISTINCT]).abs() > allowed[rows % DISTINCT]
        assert not wrong[mask].any()
        of_groups = y.mask.any(1).view(len(rows), case.groups, -1).any(2)
        assert torch.equal(mask, of_groups)
    if case.sum == "residual":
        rows, values, mask = outcome.outputs["sum"]
        assert torch.equal(mask, y.mask)
        assert torch.equal(values[mask], outcome.inputs["s"][rows % DISTINCT][mask])
    bound, _ = BOUNDS.get(str(case), (None, None))
    counted(case, "forward", outcome, outcome.count, bound)


@pytest.mark.parametrize("case", RUN)
def test_backward(emulated, counted, case):
    kernels = emulated(case)
    outcome, sums = kernels.backward(), kernels.parameters()
    t = outcome.inputs
    exact = exact_images(t, case)
    dx = outcome.outputs["dx"]
    assert dx.mask.sum() == outcome.elements
    for row, values, mask in zip(*dx, strict=True):
        check("dx", values, mask, exact[row % DISTINCT])
    if case.film:
        for row, values, mask in zip(*outcome.outputs["dfilm"], strict=True):
            check("dfilm", values, mask, exact[row % DISTINCT])
            assert mask.sum() == 2 * dx.mask[dx.rows == row].any(1).sum()
    rows, values, mask = outcome.outputs["sums"]
    assert torch.equal(rows, dx.rows)
    kinds = 3 if case.sum else 2
    assert torch.equal(mask[:, :kinds], dx.mask.any(1)[:, None].expand_as(mask[:, :kinds]))
    assert not mask[:, kinds:].any()
    gain = 1 + t["film"][:, : case.c].double() if case.film else torch.ones(DISTINCT, case.c)
    for row, of_image, of_mask in zip(
        rows, gain[rows % DISTINCT, None] * values, mask, strict=True
    ):
        check("dbias", of_image[0], of_mask[0], exact[row % DISTINCT])
        check("dweight", of_image[1], of_mask[1], exact[row % DISTINCT])
    terms = gain.repeat(case.n // DISTINCT, 1)[:, None] * t["sums"].double()
    terms[:, 2] = t["sums"][:, 2].double()
    for k, name in enumerate(("dbias", "dweight", "daddend")[:kinds]):
        _, found, mask = sums.outputs[name]
        assert mask.all()
        want, most = terms[:, k].sum(0), terms[:, k].abs().sum(0)
        bound = last_rounding(want, found.dtype) + ROUNDINGS * ROUNDOFF * most.norm()
        assert (found.double() - want).norm() <= bound
    bound = BOUNDS.get(str(case), (None, None))[1]
    counted(case, "backward", outcome, outcome.count + sums.count, bound)
