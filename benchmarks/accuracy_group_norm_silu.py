"""The tables of docs/accuracy.md: errors of group_norm_silu and of PyTorch's group norm.

    python benchmarks/accuracy_group_norm_silu.py

The op is the norm with SiLU of an 8 x 256 x 32 x 32 tensor in 32 groups, whose values have spread 1
about a common mean. Each implementation computes y and the gradients of <y, dy> in the given dtype.
Errors are relative, in L2, against float64 on the same, already rounded inputs. Prints Markdown,
and runs on a GPU if there is one.
"""

import torch
from torch import Tensor

from pdfast.kernels.group_norm_silu import eager, group_norm_silu, implementation, reference

SHAPE, GROUPS = (8, 256, 32, 32), 32
MEANS = (0, 1, 10, 100, 1_000, 10_000)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def contiguous(x: Tensor, *parameters: Tensor, groups: int) -> Tensor:
    """Run PyTorch's own ops on x in the default layout."""
    return eager(x.contiguous(), *parameters, groups=groups)


WHO = {
    "pdfast": group_norm_silu,
    "pdfast, not compiled": reference,
    "PyTorch, channels-last": eager,
    "PyTorch, contiguous": contiguous,
}
WHAT = {"y": "The output", "dx": "Its gradient for x", "dweight": "Its gradient for the weights"}


def inputs(mean: float, dtype: torch.dtype) -> list[Tensor]:
    """Draw x, weight, bias and dy in float64, and round them; images are channels-last."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    weight, bias = torch.randn(2, SHAPE[1], generator=generator, dtype=torch.float64)
    given = [x + mean, 1 + weight / 2, bias, dy]
    layout = {"memory_format": torch.channels_last}
    return [t.to(DEVICE, dtype, **(layout if t.ndim == 4 else {})) for t in given]


def outputs(function, tensors: list[Tensor]) -> dict[str, Tensor]:
    """Return y, dx and dweight."""
    x, weight, bias, dy = tensors
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = function(x, weight, bias, groups=GROUPS)
    dx, dweight = torch.autograd.grad(y, [x, weight], dy)
    return {"y": y.detach(), "dx": dx, "dweight": dweight}


def errors(mean: float, dtype: torch.dtype) -> dict[str, list[str]]:
    """Return each implementation's relative L2 error, for y and each gradient."""
    tensors = inputs(mean, dtype)
    exact = outputs(reference, [t.double() for t in tensors])
    found = [outputs(function, tensors) for function in WHO.values()]
    return {name: [relative(f[name], e) for f in found] for name, e in exact.items()}


def relative(found: Tensor, exact: Tensor) -> str:
    """Format the relative L2 error, if it is finite."""
    size = float(exact.norm())
    return f"{float((found.double() - exact).norm()) / size:.1e}" if size else "-"


def main() -> None:
    """Print the tables."""
    rows = {
        (str(dtype).removeprefix("torch."), mean): errors(mean, dtype)
        for dtype in (torch.float32, torch.bfloat16)
        for mean in MEANS
    }
    print(f"PyTorch {torch.__version__}, {implementation(DEVICE)}")
    for name, title in WHAT.items():
        print(f"\n{title} ({name}):\n")
        print(f"| type | mean | {' | '.join(WHO)} |\n|---|--:|{'--:|' * len(WHO)}")
        for (kind, mean), found in rows.items():
            print(f"| {kind} | {mean:,} | {' | '.join(found[name])} |")


if __name__ == "__main__":
    main()
