"""Shared parts of the tests of group_norm_silu's sums: variants, and their rule of acceptance."""

from typing import NamedTuple

import torch
from group_norm_checks import ROUNDOFF, exact_of, last_rounding, make
from torch import Tensor

from pdfast.kernels.group_norm_silu import sum_group_norm_silu


class Variant(NamedTuple):
    """The options that a call uses."""

    addend: str = ""  # "channels", (C,), or "images", (N, C)
    residual: bool = False
    skip: int = 0  # number of its channels
    keep_sum: bool = False

    def __str__(self):
        parts = [self.addend and f"{self.addend}-addend", self.residual and "residual"]
        parts += [self.skip and f"skip{self.skip}", self.keep_sum and "kept"]
        return "+".join(part for part in parts if part) or "plain"

    @property
    def rounded(self):
        return self.residual or self.keep_sum

    @property
    def adds(self):
        return bool(self.addend) or self.residual


VARIANTS = [
    Variant("channels"),
    Variant("images"),
    Variant("channels", keep_sum=True),
    Variant(residual=True),
    Variant(residual=True, keep_sum=True),
    Variant("channels", residual=True, keep_sum=True),
    Variant("images", residual=True),
    Variant(skip=8),
    Variant("channels", skip=16, keep_sum=True),
    Variant("channels", residual=True, skip=16, keep_sum=True),
    Variant("images", residual=True, skip=8),
    Variant("channels", skip=8),
]
STRADDLED = [  # widths that are not whole vectors
    Variant(skip=4),
    Variant("channels", skip=4),
    Variant("images", residual=True, skip=4, keep_sum=True),
]


class Case(NamedTuple):
    """The tensors of a call, by name, and the gradients of its results."""

    given: dict[str, Tensor]
    dy: Tensor
    dsum: Tensor | None


def case_of(variant, shape, dtype, film=True, mean=0.0, param=None, addend=None, seed=0):
    """Draw tensors for a variant at the shape of x; `param` and `addend` are dtypes."""
    n, c, *size = shape
    whole = (n, c + variant.skip, *size)
    x, weight, bias, modulation, dy = make(whole, dtype, film, mean, 1.0, param, seed)
    others, _, _, _, dsum = make(shape, dtype, False, seed=seed + 1)
    given = {"x": x[:, :c], "weight": weight, "bias": bias, "film": modulation}
    generator = torch.Generator().manual_seed(seed)
    rows = {"channels": (c,), "images": (n, c)}.get(variant.addend)
    if rows:
        drawn = torch.randn(rows, generator=generator, dtype=torch.float64)
        given["addend"] = drawn.to(addend or dtype)
    if variant.residual:
        given["residual"] = others
    if variant.skip:
        given["skip"] = x[:, c:]
    images = ("x", "residual", "skip")
    given = {
        name: t.contiguous(memory_format=torch.channels_last) if name in images else t
        for name, t in given.items()
        if t is not None
    }
    return Case(given, dy, dsum if variant.keep_sum else None)


def results(function, variant, case, dtype=None, **options):
    """Return y, the sum or None, and the gradients by name; `dtype` converts every tensor first."""
    leaves = {k: t.to(dtype or t.dtype).clone().requires_grad_() for k, t in case.given.items()}
    y, s = function(**leaves, keep_sum=variant.keep_sum, **options)
    outputs, seeds = [y], [case.dy.to(y.dtype)]
    if case.dsum is not None:
        outputs, seeds = [y, s], [*seeds, case.dsum.to(y.dtype)]
    grads = torch.autograd.grad(outputs, list(leaves.values()), seeds)
    return y.detach(), None if s is None else s.detach(), dict(zip(leaves, grads, strict=True))


def check_sum(variant, case, groups, silu=True, eps=1e-6, function=sum_group_norm_silu):
    """Check each output against float32's bound, like `check` for a plain norm."""
    given, dtype = case.given, case.given["x"].dtype
    c, wide = given["x"].shape[1], torch.promote_types(dtype, torch.float32)
    s = given["x"].to(wide)  # added up in this order, with one rounding for each sum
    if "addend" in given:
        s = s + given["addend"].to(wide)[..., None, None]
    if variant.residual:
        s = s + given["residual"].to(wide)
    s = (s.to(dtype) if variant.rounded else s).double()
    whole = torch.cat([s, given["skip"].double()], 1) if variant.skip else s
    film = given.get("film")
    exact = exact_of(whole, given["weight"], given["bias"], film, case.dy, groups, silu, eps)
    y, kept, grads = results(function, variant, case, groups=groups, eps=eps, silu=silu)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    if variant.keep_sum and variant.adds:
        assert torch.equal(kept.double(), s)
        assert kept.is_contiguous(memory_format=torch.channels_last)

    names = ["y", "x", "weight", "bias"] + ["film"] * (film is not None)
    found = {"y": y, **grads}
    if variant.skip:
        found["x"] = torch.cat([grads["x"], grads["skip"]], 1)
    values = dict(zip(names, exact.values, strict=True))
    dtypes = [found[name].dtype for name in names]
    bounds = dict(zip(names, exact.bounds(dtypes), strict=True))
    dx = values["x"][:, :c]
    if case.dsum is not None:  # and one more rounding, of a sum
        dx = dx + case.dsum.double()
        values["x"] = torch.cat([dx, values["x"][:, c:]], 1)
        bounds["x"] += ROUNDOFF * case.dsum.double().norm() + last_rounding(dx, dtype)
    if "addend" in given:  # sums of rounded terms; no term's rounding is larger than dx's own
        axes = (0, 2, 3) if given["addend"].ndim == 1 else (2, 3)
        values["addend"] = dx.sum(axes)
        terms = dx.abs().sum(axes)
        slack = (dx.numel() / terms.numel()) ** 0.5
        bounds["addend"] = slack * bounds["x"] + last_rounding(terms, given["addend"].dtype)
    for name, value in values.items():
        error = (found[name].double() - value).norm()
        bound = 1e-9 * (value.norm() + 1) if dtype == torch.float64 else bounds[name]
        assert error <= bound, f"{name}: {error:.3g} > {bound:.3g}"
    if variant.residual:
        assert torch.equal(grads["residual"], grads["x"])
