"""What nvcc makes of group_norm_silu: no spills, no stack, 16-byte accesses. Needs no GPU."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

SOURCE = pathlib.Path(__file__).parents[2] / "csrc" / "group_norm_silu.cu"
ARCHITECTURES = ["sm_80", "sm_90a", "sm_100"]
PROBE = "group_norm_silu_built_for"  # an empty kernel, asked about and never run
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>\S+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
    r"(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)
KERNEL = re.compile(
    r"(?P<pass>Forward|Backward|Param)BodyI(?:NS_\d)?(?P<type>f|F16|Bf16)E?"
    r"(?:Li(?P<vector>\d)ELb(?P<resident>\d)ELb(?P<silu>\d))?E"
)


def find_nvcc():
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which(str(pathlib.Path(home) / "bin" / "nvcc"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """ptxas's report and the PTX."""
    nvcc = find_nvcc()
    if not nvcc:
        pytest.skip("no nvcc")
    out = tmp_path_factory.mktemp("nvcc")
    targets = [f"-gencode=arch={a.replace('sm', 'compute')},code={a}" for a in ARCHITECTURES]
    # PyTorch's extension builds switch these conversions off.
    off = [f"-D__CUDA_NO_{name}__" for name in ("HALF_OPERATORS", "HALF_CONVERSIONS")]
    done = subprocess.run(
        [
            *[nvcc, "-std=c++17", "-O3", "--threads", "2", "-Xptxas", "-v", "-fatbin"],
            *[*targets, "-gencode=arch=compute_90,code=compute_90", *off],
            *["-D__CUDA_NO_BFLOAT16_CONVERSIONS__", "--expt-relaxed-constexpr"],
            *["-Xcompiler", "-Wall", "--keep", "--keep-dir", str(out)],
            *["-o", str(out / "all.fatbin"), str(SOURCE)],
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    report = done.stdout + done.stderr
    assert "warning" not in report.lower(), report
    (ptx,) = out.glob("*compute_90.ptx")
    entries = [entry.groupdict() for entry in ENTRY.finditer(report)]
    return [entry for entry in entries if PROBE not in entry["name"]], ptx.read_text()


def label(name):
    found = KERNEL.search(name)
    assert found, name
    return found.groupdict()


@pytest.mark.gpu
def test_registers(built, record_property):
    entries, _ = built
    assert len(entries) == 27 * len(ARCHITECTURES)
    for entry in entries:
        kernel, registers = label(entry["name"]), int(entry["registers"])
        name = f"group_norm_silu {kernel['pass']} {entry['arch']}"
        record_property("machine code", (name, registers, int(entry["shared"] or 0)))
        assert entry["stack"] == entry["stores"] == entry["loads"] == "0", entry
        # Blocks of 256 threads on an SM's 65536 registers: 3 where the slab is resident, else 2.
        assert registers <= (80 if kernel["resident"] == "1" else 128), entry


@pytest.mark.gpu
def test_accesses_of_16_bytes(built):
    _, ptx = built
    bodies = [body for body in re.split(r"\.entry\s+", ptx)[1:] if PROBE not in body[:80]]
    assert len(bodies) == 27
    for body in bodies:
        kernel = label(body.split("(")[0])
        if kernel["vector"] not in ("4", "8"):
            continue
        assert re.search(r"st\.global\.v4\.u32", body)
        copies = re.findall(r"cp\.async\.cg\.shared\.global \[\S+\], \[\S+\], 16", body)
        loads = re.findall(r"ld\.global\.nc\.v4\.[buf]32", body)
        if kernel["resident"] == "1":
            assert copies
            assert not loads
        else:
            assert loads
            assert not copies
        # No array in local memory, and nothing that depends on who comes first.
        assert not re.search(r"ld\.local|st\.local|\batom\.|\bred\.", body)
