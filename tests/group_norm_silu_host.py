"""The host build of group_norm_silu's CUDA kernels, through ctypes."""

import ctypes
import pathlib
import shutil
import subprocess

import torch

CSRC = pathlib.Path(__file__).parents[1] / "csrc"
DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
EPS = 1e-6
H100 = {"shared_limit": 232448, "sms": 132, "clusters": True}
A100 = {"shared_limit": 166912, "sms": 108, "clusters": False}
STREAM = {"shared_limit": 64, "sms": 132, "clusters": True}  # nothing fits: x is read twice


class Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("n", "hw", "c", "groups")]


class Types(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("x", "param", "film", "addend")]


class Layout(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("first", "addend_stride", "film_stride")]


def pointers(names):
    return [(name, ctypes.c_void_p) for name in names.split()]


class Forward(ctypes.Structure):
    _fields_ = [
        ("size", Sizes),
        ("type", Types),
        ("at", Layout),
        *pointers("x skip addend residual weight bias film y sum mean rstd"),
        ("eps", ctypes.c_double),
        ("silu", ctypes.c_int32),
    ]


class Backward(ctypes.Structure):
    _fields_ = [
        ("size", Sizes),
        ("type", Types),
        ("at", Layout),
        *pointers("dy dsum x skip addend mean rstd weight bias film"),
        *pointers("dx dskip dweight dbias dfilm daddend sums"),
        ("daddend_rows", ctypes.c_int32),
        ("silu", ctypes.c_int32),
    ]


class Limits(ctypes.Structure):
    _fields_ = [
        ("shared_limit", ctypes.c_int),
        ("sms", ctypes.c_int),
        ("clusters", ctypes.c_bool),
        ("aligned", ctypes.c_bool),
        ("cluster", ctypes.c_int),
    ]


class Plan(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int) for name in ("slab", "cluster", "threads")],
        *[(name, ctypes.c_int64) for name in ("grid", "total", "shared_bytes")],
        ("resident", ctypes.c_bool),
        ("vector", ctypes.c_int),
    ]


def compile_host(out, *flags):
    """Compile the kernels for the host into `out`."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    assert compiler, "a C++17 compiler is needed: g++ or clang++"
    command = [compiler, "-std=c++17", *flags, "-Wno-unknown-pragmas", "-DPDFAST_HOST", "-x", "c++"]
    subprocess.run([*command, str(CSRC / "group_norm_silu.cu"), "-o", str(out)], check=True)
    return out


def load_host(path):
    built = ctypes.CDLL(str(path))
    for name in ("host_forward", "host_backward", "host_plan", "host_launch"):
        getattr(built, name).restype = ctypes.c_char_p
    return built


def limits(machine, cluster=0, aligned=True):
    return Limits(**machine, aligned=aligned, cluster=cluster)


def plan(lib, n, hw, c, groups, dtype=torch.bfloat16, backward=False, **kwargs):
    out, kind = Plan(), DTYPES.get(dtype, 1)
    given = limits(kwargs.pop("machine", H100), **kwargs)
    types = Types(kind, kind, kind, kind)
    error = lib.host_plan(
        ctypes.byref(Sizes(n, hw, c, groups)), ctypes.byref(types), backward, given,
        ctypes.byref(out),
    )  # fmt: skip
    if error:
        raise RuntimeError(error.decode())
    return out


def launch(lib, which, call, machine=H100):
    """Return a kernel's plan and its second argument's bytes; forward, backward or parameters."""
    out, room = Plan(), ctypes.create_string_buffer(4096)
    size, number = ctypes.c_int64(len(room)), ("forward", "backward", "parameters").index(which)
    error = lib.host_launch(
        ctypes.byref(call), number, limits(machine), ctypes.byref(out), room, ctypes.byref(size)
    )
    if error:
        raise RuntimeError(error.decode())
    return out, room.raw[: size.value]


def draw(n, hw, c, dtype, param=None, film=True, mean=0.0, std=1.0, seed=0):
    """Draw inputs as the op takes them: x and dy (n, hw, c)."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    param = param or dtype
    return {
        "x": (normal(n, hw, c) * std + mean + 0.5 * normal(1, 1, c)).to(dtype),
        "dy": normal(n, hw, c).to(dtype),
        "weight": (1 + 0.5 * normal(c)).to(param),
        "bias": (0.5 * normal(c)).to(param),
        "film": (0.5 * normal(n, 2 * c)).to(param) if film else None,
    }


def draw_sum(
    n, hw, c, dtype, first=None, addend="one", residual=True, dsum=True, param=None, **how
):
    """Draw them with a sum, and with the last channels in a tensor of their own.

    `first`: number of x's channels; `addend`: "one" for all images, "each" image's own, or "".
    """
    t, first = draw(n, hw, c, dtype, param, **how), first or c
    g = torch.Generator().manual_seed(1)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    t["x"], skip = t["x"][:, :, :first].contiguous(), t["x"][:, :, first:].contiguous()
    t["skip"] = skip if first < c else None
    rows = {"one": (first,), "each": (n, first)}.get(addend)
    t["addend"] = normal(*rows).to(param or dtype) if rows else None
    t["residual"] = normal(n, hw, first).to(dtype) if residual else None
    t["dsum"] = normal(n, hw, first).to(dtype) if dsum else None
    return t


def sum_of(t):
    """Return x + addend + residual (n, hw, first) as the kernels do: in float32, then x's dtype."""
    total = t["x"].float()
    if t.get("addend") is not None:
        rows = t["addend"].float()
        total = total + (rows if rows.ndim == 1 else rows[:, None])
    if t.get("residual") is not None:
        total = (total + t["residual"].float()).to(t["x"].dtype)
    return total


def aside(tensor, offset):
    """Copy a tensor to `offset` elements after a multiple of 16 bytes."""
    whole = torch.empty(tensor.numel() + 64, dtype=tensor.dtype)
    start = -whole.data_ptr() % 16 // tensor.element_size() + offset
    return whole[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)


def run(lib, t, groups, act=True, machine=H100, cluster=0, order=0, offset=0):
    """Return all outputs of the host build.

    With a residual the sum is kept, and the backward takes it, as in the op.
    """
    n, hw, first = t["x"].shape
    c = t["weight"].numel()
    f32 = torch.float32
    t = {k: v if v is None else aside(v, offset) for k, v in t.items()}
    like = lambda v: None if v is None else aside(torch.full_like(v, torch.nan), offset)  # noqa: E731
    y = torch.empty(n, hw, c, dtype=t["x"].dtype)
    out = {"y": like(y), "dx": like(t["x"]), "dskip": like(t.get("skip"))}
    out |= {"dweight": like(t["weight"]), "dbias": like(t["bias"]), "dfilm": like(t["film"])}
    out |= {"mean": torch.full((n, groups), torch.nan), "rstd": torch.full((n, groups), torch.nan)}
    out |= {"daddend": like(t.get("addend")), "sums": torch.full((n, 3, c), torch.nan, dtype=f32)}
    out["sum"] = like(t["x"]) if t.get("residual") is not None else None
    size, x_type = Sizes(n, hw, c, groups), DTYPES[t["x"].dtype]
    of = lambda k: x_type if t.get(k) is None else DTYPES[t[k].dtype]  # noqa: E731
    kind = Types(x_type, of("weight"), of("film"), of("addend"))
    each = t.get("addend") is not None and t["addend"].ndim == 2
    layout = Layout(first, first if each else 0, 2 * c)
    rows = 0 if t.get("addend") is None else n if each else 1
    at = {k: v if v is None else v.data_ptr() for k, v in {**t, **out}.items()}
    given = limits(machine, cluster)

    def fill(struct, tensors=at, **scalars):
        names = [name for name, kind in struct._fields_ if kind is ctypes.c_void_p]
        pointers = {k: tensors.get(k) for k in names}
        return struct(size=size, type=kind, at=layout, silu=act, **pointers, **scalars)

    kept = at | {"x": at["sum"], "addend": None} if out["sum"] is not None else at
    for call, function in [
        (fill(Forward, eps=EPS), lib.host_forward),
        (fill(Backward, kept, daddend_rows=rows), lib.host_backward),
    ]:
        error = function(ctypes.byref(call), given, order)
        if error:
            raise RuntimeError(error.decode())
    return out
