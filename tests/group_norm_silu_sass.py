"""group_norm_silu's machine code on the emulator: what it computes and what it issues.

`python tests/group_norm_silu_sass.py CUBIN` prints the counts of every case, and where the
instructions of the first one go. CUBIN is csrc/group_norm_silu.cu for sm_90a, compiled with the
flags that tests/kernels/conftest.py has.
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
DISTINCT = 2  # images; the batch repeats them
SAMPLED = 4  # clusters of a grid that are run: the first, the last and some between them
BODIES = {"forward": "ForwardBody", "backward": "BackwardBody", "parameters": "ParamBody"}


class Case(NamedTuple):
    """A call with everything in bfloat16."""

    n: int
    c: int
    size: int
    film: bool
    silu: bool = True
    groups: int = 32

    def __str__(self):
        kinds = [name for name, on in (("FiLM", self.film), ("SiLU", self.silu)) if on]
        return " ".join([f"{self.n}x{self.c}x{self.size}x{self.size}", *kinds])


CASES = [
    Case(128, 256, 32, film=True),
    Case(128, 256, 32, film=False),
    Case(128, 512, 32, film=False),
    Case(128, 256, 16, film=False),
    Case(128, 256, 8, film=True),
]


@dataclass
class Outcome:
    """Some clusters of one launch."""

    run: sass.Run
    elements: int  # of the image, that the instructions are spread over
    drawn: dict  # the DISTINCT images and what belongs to them
    outputs: dict  # name: (the whole batch's tensor, which of its elements have been written)

    @property
    def count(self):
        """Thread instructions per element."""
        return self.run.per_element(self.elements)

    def __str__(self):
        barriers = (self.run.barriers + self.run.cluster_barriers).max()
        of_request, of_least = self.run.conflicts("LDS")
        return (
            f"{self.count:.1f} instructions an element, {barriers} barriers, shared loads take "
            f"{of_request:.2f} wavefronts each, {of_least:.2f} of the least possible"
        )


def numpy_of(tensor):
    return tensor.contiguous().view(torch.int16 if tensor.dtype == BF16 else tensor.dtype).numpy()


def kernel_of(cubin, which, plan=None, silu=False):
    """The kernel for bfloat16 that a plan runs on."""
    flags = f"Li{plan.vector}ELb{plan.resident:d}ELb{plan.resident and silu:d}E" if plan else ""
    (name,) = [name for name in cubin.names if f"{BODIES[which]}INS_4Bf16E{flags}" in name]
    return cubin.kernel(name)


def statistics(x, groups):
    """Mean, 1 / standard deviation and root mean square of each group of (n, hw, c)."""
    n, hw, _ = x.shape
    variance, mean = torch.var_mean(x.double().view(n, hw, groups, -1), dim=(1, 3), correction=0)
    return mean, (variance + host.EPS).rsqrt(), (variance + mean**2).sqrt()


class Emulated:
    """The kernels of one case. The call and the geometry are the whole batch's on an H100."""

    def __init__(self, cubin, lib, case):
        self.cubin, self.lib, self.case = cubin, lib, case
        self.drawn = host.draw(DISTINCT, case.size**2, case.c, BF16, film=case.film)
        mean, rstd, _ = statistics(self.drawn["x"], case.groups)
        self.inputs = {**self.drawn, "mean": mean.float(), "rstd": rstd.float()}

    def place(self, inputs, outputs, struct, **scalars):
        """Maps a call's tensors; returns the memory, the outputs by name and the call."""
        n, c, size, groups = self.case.n, self.case.c, self.case.size, self.case.groups
        shapes = {
            "y": (n, size**2, c),
            "dx": (n, size**2, c),
            "dfilm": (n, 2 * c),
            "sums": (n, 3, c),
        }
        shapes |= {"dweight": (c,), "dbias": (c,), "mean": (n, groups), "rstd": (n, groups)}
        memory, arrays = sass.Memory(), {}
        for name in inputs.split():
            array = numpy_of(self.inputs[name])
            whole = name in ("weight", "bias")
            arrays[name] = array if whole else array[np.arange(n) % DISTINCT]
        for name in outputs.split():
            kind = np.float32 if name in ("mean", "rstd", "sums") else np.int16
            arrays[name] = np.zeros(shapes[name], kind)
        address = {name: memory.place(array) for name, array in arrays.items()}
        kind = host.DTYPES[BF16]
        call = struct(
            size=host.Sizes(n, size**2, c, groups),
            type=host.Types(kind, kind, kind, kind),
            at=host.Layout(c, 0, 2 * c),
            silu=self.case.silu,
            **address,
            **scalars,
        )
        return memory, {name: (arrays[name], address[name]) for name in outputs.split()}, call

    def launch(self, which):
        """The plan (of the parameters' kernel, None), the launch and the geometry's bytes."""
        n, c, size, groups = self.case.n, self.case.c, self.case.size, self.case.groups
        geometry = host.geometry(self.lib, n, size**2, c, groups, which=which)
        if which == "parameters":
            return None, sass.Launch(-(-c // 32), 256, shared=2 * 256 * 4), geometry
        plan = host.plan(self.lib, n, size**2, c, groups, backward=which == "backward")
        launch = sass.Launch(plan.grid, plan.threads, plan.cluster, plan.shared_bytes)
        return plan, launch, geometry

    def emulate(self, which, placed, clusters=None):
        memory, outputs, call = placed
        plan, launch, geometry = self.launch(which)
        kernel = kernel_of(self.cubin, which, plan, self.case.silu)
        last = launch.blocks // launch.cluster - 1
        clusters = (
            np.unique(np.linspace(0, last, SAMPLED).astype(int)) if clusters is None else clusters
        )
        run = sass.emulate(kernel, launch, [call, geometry], memory, clusters)
        found = {}
        for name, (array, address) in outputs.items():
            written = run.written(address).reshape(*array.shape, -1)
            assert (written.all(-1) == written.any(-1)).all(), f"{name}: elements in part"
            tensor = torch.from_numpy(array)
            tensor = tensor.view(BF16) if array.dtype == np.int16 else tensor
            found[name] = (tensor, torch.from_numpy(written.all(-1)))
        return run, found

    def film(self):
        return "film" if self.case.film else ""

    def forward(self):
        inputs = f"x weight bias {self.film()}"
        placed = self.place(inputs, "y mean rstd", host.Forward, eps=host.EPS)
        run, found = self.emulate("forward", placed)
        return Outcome(run, run.bytes_stored(placed[1]["y"][1]).sum() // 2, self.drawn, found)

    def backward(self):
        inputs = f"dy x mean rstd weight bias {self.film()}"
        outputs = f"dx sums {'dfilm' if self.case.film else ''}"
        placed = self.place(inputs, outputs, host.Backward)
        run, found = self.emulate("backward", placed)
        return Outcome(run, run.bytes_stored(placed[1]["dx"][1]).sum() // 2, self.drawn, found)

    def parameters(self):
        """The whole launch after the backward's, from made-up sums."""
        placed = self.place(self.film(), "sums dweight dbias", host.Backward)
        sums, _ = placed[1]["sums"]
        sums[...] = np.random.default_rng(0).standard_normal(sums.shape, np.float32)
        blocks = -(-self.case.c // 32)
        run, found = self.emulate("parameters", placed, range(blocks))
        case = self.case
        return Outcome(run, case.n * case.c * case.size**2, self.drawn, found)


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
