"""Every Triton kernel compiled ahead of time, without a GPU: no stack, no spills, wide accesses.

Not under Triton's interpreter, which replaces the compiler. Registers and shared memory are
printed at the end of the run; nothing here says how fast the code is.
"""

import re
import subprocess
from pathlib import Path

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pdfast.kernels import adamw, add_noise, ddim_step, distill_loss, dropout

TOOL = next(Path(triton.__file__).parent.rglob("bin/cuobjdump"))
SIZE = {"fp32": 4, "bf16": 2, "fp16": 2}
HEADS, WEIGHTS = ("x", "eps", "v", "both"), ("constant", "snr", "snr_trunc", "v_mse")
ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[A-Za-z]\w*(?:::\w+)*)*?(?:\.v(\d))?\.b(\d+)\b")


def compiled(kernel, types, constants, arch, plain=(), num_warps=4, **options):
    """(registers and so on, bytes per thread of accesses of at least 16 bytes: loads, stores).

    `types` has the other arguments' types, divisible by 16 but for those in `plain`.
    """
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (names.index(name),): [["tt.divisibility", 16]] for name in types if name not in plain
        },
    )
    options |= {"num_warps": num_warps, "enable_fp_fusion": False}
    asm = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options).asm
    wide = {"ld": 0, "st": 0}
    for kind, vector, bits in ACCESS.findall(asm["ptx"]):
        size = int(vector or 1) * int(bits) // 8
        wide[kind] += size if size >= 16 else 0
    return asm["cubin"], wide["ld"], wide["st"]


@pytest.fixture
def check(tmp_path, record_property):
    def check(kernel, types, constants, arch, loads, stores, plain=(), num_warps=4, **options):
        """`loads` and `stores`: bytes per program of the streams that must be wide."""
        options["num_warps"] = num_warps
        cubin, loaded, stored = compiled(kernel, types, constants, arch, plain, **options)
        file = tmp_path / "kernel.cubin"
        file.write_bytes(cubin)
        command = [TOOL, "--dump-resource-usage", file]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        usage = re.search(r"REG:\d+ STACK:\d+ SHARED:\d+ LOCAL:\d+", usage)[0]
        registers, shared = re.search(r"REG:(\d+) .*SHARED:(\d+)", usage).groups()
        name = f"{kernel.fn.__name__} sm_{arch}"
        record_property("machine code", (name, int(registers), int(shared)))
        assert "STACK:0 " in usage
        assert usage.endswith("LOCAL:0")
        threads = 32 * num_warps
        assert (loaded * threads, stored * threads) == (loads, stores)

    return check


@pytest.mark.parametrize("dtype", SIZE)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_ddim_step(check, arch, head, dtype):
    names = ("z", "z_next", "z_in", "out")
    types = {name: "*fp32" for name in names} | {"out": f"*{dtype}", "z_in": f"*{dtype}"}
    types |= {"phi": "*fp64", "phi_next": "*fp64", "size": "i32"}
    second, block = dtype != "fp32", ddim_step.BLOCK
    constants = {"channels": 3, "head": head, "writes_z_in": second, "block": block}
    loads = 4 + (SIZE[dtype] if head != "both" else 0)
    stores = 4 + (SIZE[dtype] if second else 0)
    check(ddim_step.ddim_step_kernel, types, constants, arch, loads * block, stores * block)


SMALL, LARGE = 1, 6  # blocks of 8x8x1 and 64x64x3 images
KINDS = [(90, head, "snr_trunc", dtype, LARGE) for head in HEADS for dtype in SIZE]
KINDS += [(90, head, "snr_trunc", "bf16", SMALL) for head in HEADS]
KINDS += [(arch, head, "snr_trunc", "bf16", LARGE) for arch in (80, 100) for head in ("v", "both")]
LOSSES = [(*kind, y_given) for kind in KINDS for y_given in (False, True, "uneven")]
OTHERS = WEIGHTS[:2] + WEIGHTS[3:]
LOSSES += [(90, head, weight, "bf16", LARGE, False) for head in HEADS for weight in OTHERS]


@pytest.mark.parametrize(("arch", "head", "weight", "dtype", "blocks", "y_given"), LOSSES)
def test_distill_loss(check, arch, head, weight, dtype, blocks, y_given):
    raw = f"*{dtype}"
    types = {"out": raw, "phi_t": "*fp64", "loss": "*fp32", "grad": raw, "size": "i32"}
    teacher = {"z_t": "*fp32", "out_t": raw, "out_mid": raw, "phi_mid": "*fp64", "last": "*u8"}
    uneven, y_given = y_given == "uneven", y_given is True
    if uneven:  # the teacher's second step has an angle of its own
        teacher["phi_next"] = "*fp64"
    types |= {"y": "*fp32"} if y_given else teacher
    block = distill_loss.block_of(head)
    constants = {"channels": 3, "head": head, "weight": weight, "y_given": y_given}
    constants |= {"block": block, "blocks": blocks}
    constants |= dict.fromkeys(teacher if y_given else ["y"])
    constants |= {} if uneven else {"phi_next": None}
    flat = 0 if head == "both" else SIZE[dtype]
    loads = flat + 4 if y_given else 3 * flat + (4 if head in ("v", "both") else 0)
    kernel, options = distill_loss.distill_loss_kernel, distill_loss.OPTIONS
    check(kernel, types, constants, arch, loads * block, flat * block, **options)


NOISES = [(90, "none", "bf16", flip, n) for flip in (0, 1) for n in (0, 1)]
NOISES += [(90, "none", dtype, 1, 1) for dtype in ("fp32", "fp16")]
NOISES += [(90, head, dtype, True, True) for head in HEADS for dtype in ("fp32", "bf16")]
NOISES += [(arch, head, "bf16", True, head == "v") for arch in (80, 100) for head in ("none", "v")]
NOISES += [(arch, head, "bf16", True, "table") for arch in (80, 90, 100) for head in ("none", "x")]
GATHERED = [(*case, True, levels) for case in NOISES[::5] for levels in ("u8", "fp32")]
NOISES = [(*case, False, "u8") for case in NOISES] + GATHERED


@pytest.mark.parametrize(("arch", "head", "dtype", "flip", "times", "gathered", "levels"), NOISES)
def test_add_noise(check, arch, head, dtype, flip, times, gathered, levels):
    table = times == "table"
    types = {"update": "*i64", "z_t": "*fp32", "z_in": f"*{dtype}", "y": "*fp32"}
    types |= {"images": f"*{levels}"} | ({"angles": "*fp64"} if table else {})
    types |= {"phi_t": "*fp64", "phi_mid": "*fp64", "last": "*u8", "index": "*i64", "size": "i32"}
    types |= {"spare": "*fp64"} | {name: "i32" for name in add_noise.DRAWN_BY} | {"seed": "i64"}
    block, second = add_noise.BLOCK, dtype != "fp32"
    constants = {"a": 1.57, "b": 4.5e-5, "width": 32, "channels": 3, "flip": bool(flip)}
    constants |= {"continuous": times == 1, "head": head, "writes_z_in": second}
    constants |= {"gathered": gathered} | ({} if table else {"angles": None})
    stores = 4 + (SIZE[dtype] if second else 0) + (4 if head != "none" else 0)
    kernel = add_noise.add_noise_kernel
    constants["block"] = block
    loads = 4 if levels == "fp32" and not flip else 0
    check(kernel, types, constants, arch, loads * block, stores * block, plain=add_noise.DRAWN_BY)


@pytest.mark.parametrize("dtype", SIZE)
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_dropout(check, arch, dtype):
    types = {"x": f"*{dtype}", "update": "*i64", "out": f"*{dtype}", "size": "i32"}
    types |= {name: "i32" for name in dropout.DRAWN_BY} | {"seed": "i64"}
    block, plain = dropout.BLOCK, dropout.DRAWN_BY
    constants = {"threshold": 6554, "scale": 65536 / (65536 - 6554), "block": block}
    moved = SIZE[dtype] * block
    check(dropout.dropout_kernel, types, constants, arch, moved, moved, plain=plain)


LOOP = {"turns": 58, "programs": adamw.PROGRAMS, "block": adamw.BLOCK}  # 60 million parameters


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_sum_of_squares(check, arch):
    types, block = {"grads": "*fp32", "partials": "*fp64", "size": "i64"}, adamw.BLOCK
    check(adamw.sum_of_squares_kernel, types, LOOP, arch, 4 * block, 0)


ADAMWS = [(90, ema, copy, n) for ema in (0, 1) for copy in (None, "bf16", "fp16") for n in (0, 1)]
ADAMWS += [(arch, 1, "bf16", 1) for arch in (80, 100)]


@pytest.mark.parametrize(("arch", "ema", "copy", "max_norm"), ADAMWS)
def test_adamw(check, arch, ema, copy, max_norm):
    flat = ["params", "grads", "exp_avg", "exp_avg_sq"] + ["ema"] * ema
    types = {name: "*fp32" for name in [*flat, "lr", "loss", "norm"]}
    types |= {"step": "*i64", "skipped": "*i64", "partials": "*fp64", "size": "i32"}
    types |= {"copy": f"*{copy}"} if copy else {}
    numbers = {"beta1": 0.9, "beta2": 0.999, "log_beta1": -0.1, "log_beta2": -0.001, "eps": 1e-8}
    numbers |= {"weight_decay": 0.1, "ema_decay": 0.999, "max_norm": float(max_norm)}
    constants = numbers | LOOP | {"most": adamw.PROGRAMS, "max_skipped": 10}
    constants |= {name: None for name in ("ema", "copy") if name not in types}
    loads, stores = 4 * len(flat), 4 * (len(flat) - 1) + (2 if copy else 0)
    block = adamw.BLOCK
    partials = 8 * adamw.PROGRAMS
    check(adamw.adamw_kernel, types, constants, arch, loads * block + partials, stores * block)
