"""group_norm_silu's machine code on the emulator: its results and its instructions.

`python tests/group_norm_silu_sass.py CUBIN` prints the counts of every case, and where the
instructions of the first one go. CUBIN is csrc/group_norm_silu.cu for sm_90a, compiled with the
flags in tests/kernels/conftest.py.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import group_norm_silu_host as host
import numpy as np
import sass
import torch

BF16 = torch.bfloat16
DISTINCT = 2  # distinct images, which the batch repeats
SAMPLED = 4  # clusters of a grid to run: the first, the last and some between them
BODIES = {"forward": "ForwardBody", "backward": "BackwardBody", "parameters": "ParamBody"}


class Case(NamedTuple):
    """A call in bfloat16. `sum`: terms added to x, and gradients that reach the sum."""

    n: int
    c: int
    size: int
    film: bool
    silu: bool = True
    groups: int = 32
    sum: str = ""  # "addend": one for all images; "residual": that, a residual, and dsum

    def __str__(self):
        kinds = [name for name, on in (("FiLM", self.film), ("SiLU", self.silu)) if on]
        kinds += [self.sum] if self.sum else []
        return " ".join([f"{self.n}x{self.c}x{self.size}x{self.size}", *kinds])


CASES = [
    Case(128, 256, 32, film=True),
    Case(128, 256, 32, film=True, sum="residual"),
    Case(128, 256, 32, film=True, sum="addend"),
    Case(128, 512, 32, film=False),
    Case(128, 256, 16, film=False),
    Case(128, 256, 8, film=True),
]


class Written(NamedTuple):
    """The part of one output that some clusters have written."""

    rows: torch.Tensor  # of the first dimension, those that have been written to
    values: torch.Tensor  # these rows
    mask: torch.Tensor  # which of the values have been written


@dataclass
class Outcome:
    """Results of some clusters of one launch."""

    run: sass.Run
    elements: int  # of the image, for instructions per element
    inputs: dict  # name: tensor of the distinct images
    outputs: dict  # name: Written

    @property
    def count(self):
        """Return thread instructions per element."""
        return self.run.per_element(self.elements)

    def __str__(self):
        barriers = (self.run.barriers + self.run.cluster_barriers).max()
        of_request, of_least = self.run.conflicts("LDS")
        return (
            f"{self.count:.1f} instructions an element, {barriers} barriers, shared loads take "
            f"{of_request:.2f} wavefronts each, {of_least:.2f} of the least possible"
        )


def statistics(x, groups):
    """Return mean, 1 / standard deviation and root mean square of each group of (n, hw, c)."""
    n, hw, _ = x.shape
    variance, mean = torch.var_mean(x.double().view(n, hw, groups, -1), dim=(1, 3), correction=0)
    return mean, (variance + host.EPS).rsqrt(), (variance + mean**2).sqrt()


def kernel_of(cubin, which, plan, case):
    """Return the bfloat16 kernel of a plan whose vectors lie in one group each."""
    sums = ("", "addend", "residual").index(case.sum)
    known = f"Li1ELi{sums}" if case.silu else "Lin1ELin1"
    flags = f"Li{plan.vector}ELb{plan.resident:d}ELb1E{known}E"
    flags = "" if which == "parameters" else flags
    (name,) = [name for name in cubin.names if f"{BODIES[which]}INS_4Bf16E{flags}" in name]
    return cubin.kernel(name)


class Emulated:
    """A case's kernels. Calls and launches are those of the whole batch on an H100; some clusters
    of them run."""

    def __init__(self, cubin, lib, case):
        self.cubin, self.lib, self.case = cubin, lib, case
        assert case.n % DISTINCT == 0
        shape = (DISTINCT, case.size**2, case.c, BF16)
        self.inputs = host.draw(*shape, film=case.film)
        if case.sum:
            all_of = case.sum == "residual"
            self.inputs = host.draw_sum(*shape, None, "one", all_of, all_of, film=case.film)
        self.inputs["s"] = host.sum_of(self.inputs)
        mean, rstd, _ = statistics(self.inputs["s"], case.groups)
        self.inputs |= {"mean": mean.float(), "rstd": rstd.float()}
        sums = np.random.default_rng(0).standard_normal((case.n, 3, case.c), np.float32)
        self.inputs["sums"] = torch.from_numpy(sums)

    def run(self, which, inputs, outputs, struct, clusters=None, **scalars):
        """Run a kernel on these inputs and outputs; None means absent."""
        n, c, size, _, silu, groups, _ = self.case
        hw, kind, memory, arrays = size**2, host.DTYPES[BF16], sass.Memory(), {}
        shapes = {"y": (n, hw, c), "dx": (n, hw, c), "dfilm": (n, 2 * c), "sums": (n, 3, c)}
        shapes |= {"dweight": (c,), "dbias": (c,), "mean": (n, groups), "rstd": (n, groups)}
        shapes |= {"sum": (n, hw, c), "daddend": (c,)}
        address = {}
        for name in inputs.split():
            name, _, source = name.partition("=")
            if self.inputs.get(source or name) is None:
                continue
            tensor = self.inputs[source or name].contiguous()
            array = tensor.view(torch.uint8).numpy()
            repeats = n // DISTINCT if len(tensor) == DISTINCT else 1
            address[name] = memory.place(array, repeats=repeats)
        for name in outputs.split():
            if name == "dfilm" and not self.case.film:
                continue
            of_f32 = name in ("mean", "rstd", "sums")
            arrays[name] = torch.zeros(shapes[name], dtype=torch.float32 if of_f32 else BF16)
            address[name] = memory.place(arrays[name].view(torch.uint8).numpy())
        call = struct(
            size=host.Sizes(n, hw, c, groups),
            type=host.Types(kind, kind, kind, kind),
            at=host.Layout(c, 0, 2 * c),
            silu=silu,
            **address,
            **scalars,
        )
        plan, geometry = host.launch(self.lib, which, call)
        launch = sass.Launch(plan.grid, plan.threads, plan.cluster, plan.shared_bytes)
        if clusters is None:
            last = plan.grid // plan.cluster - 1
            clusters = np.unique(np.linspace(0, last, SAMPLED).astype(int))
        kernel = kernel_of(self.cubin, which, plan, self.case)
        run = sass.emulate(kernel, launch, [call, geometry], memory, clusters)
        found = {k: self.written(memory.buffer(address[k]), v) for k, v in arrays.items()}
        return run, address, found

    @staticmethod
    def written(buffer, tensor):
        rows = torch.from_numpy(buffer.rows_written(len(tensor)).nonzero()[0])
        octets = torch.from_numpy(buffer.written).view(len(tensor), -1)[rows]
        octets = octets.view(len(rows), *tensor.shape[1:], tensor.itemsize)
        assert torch.equal(octets.all(-1), octets.any(-1)), "elements written in part"
        return Written(rows, tensor[rows], octets.all(-1))

    def forward(self):
        summed = " sum" if self.case.sum == "residual" else ""
        run, address, found = self.run(
            "forward",
            "x weight bias film addend residual",
            "y mean rstd" + summed,
            host.Forward,
            eps=host.EPS,
        )
        elements = run.bytes_stored(address["y"]).sum() // 2
        return Outcome(run, elements, self.inputs, found)

    def backward(self):
        """Run the backward; with a residual from the sum, as in the op."""
        x = {"": "x", "addend": "x addend", "residual": "x=s dsum"}[self.case.sum]
        wanted = " daddend" if self.case.sum else ""
        run, address, found = self.run(
            "backward",
            f"dy {x} mean rstd weight bias film",
            "dx dfilm sums" + wanted,
            host.Backward,
            daddend_rows=1 if self.case.sum else 0,
        )
        elements = run.bytes_stored(address["dx"]).sum() // 2
        return Outcome(run, elements, self.inputs, found)

    def parameters(self):
        """Run the whole launch, from made-up sums."""
        everything = range(-(-self.case.c // 8))
        wanted = " daddend" if self.case.sum else ""
        run, _, found = self.run(
            "parameters",
            "sums film",
            "dweight dbias" + wanted,
            host.Backward,
            everything,
            daddend_rows=1 if self.case.sum else 0,
        )
        case = self.case
        return Outcome(run, case.n * case.c * case.size**2, self.inputs, found)


def main(path):
    cubin = sass.Cubin(path)
    with tempfile.TemporaryDirectory() as folder:
        lib = host.load_host(host.compile_host(Path(folder) / "host.so", "-shared", "-fPIC"))
        for case in CASES:
            for which in BODIES:
                outcome = getattr(Emulated(cubin, lib, case), which)()
                print(f"{case} {which}: {outcome}")
                if case == CASES[0] and which != "parameters":
                    counts = outcome.run.histogram(outcome.elements)
                    print(*(f"  {name:10} {count:.2f}" for name, count in counts.items()), sep="\n")
                    print("  from, to, warp instructions, thread instructions an element")
                    for first, end, times, cost in outcome.run.regions(outcome.elements):
                        if cost >= 0.2:
                            print(f"  {first:#06x} {end:#06x} {times:6} {cost:.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
