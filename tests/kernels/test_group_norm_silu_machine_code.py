"""Machine code of group_norm_silu: no spills, no stack, 16-byte accesses. Needs no GPU."""

import re

import pytest
from nvcc import ARCHITECTURES

PROBE = "group_norm_silu_built_for"  # an empty kernel that is never run
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>\S+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers"
    r"(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)
KERNEL = re.compile(
    r"(?P<pass>Forward|Backward|Param)BodyI(?:NS_\d)?(?P<type>f|F16|Bf16)E?"
    r"(?:Li(?P<vector>\d)ELb(?P<resident>\d)ELb(?P<fold>\d)ELi(?P<silu>n?\d)ELi(?P<sum>n?\d)E)?E"
)
KERNELS = 33  # of each architecture


@pytest.fixture(scope="module")
def built(norm_machine_code):
    """Return ptxas's report and the PTX."""
    report, folder = norm_machine_code
    assert "warning" not in report.lower(), report
    (ptx,) = folder.glob("*compute_90.ptx")
    entries = [entry.groupdict() for entry in ENTRY.finditer(report)]
    return [entry for entry in entries if PROBE not in entry["name"]], ptx.read_text()


def label(name):
    found = KERNEL.search(name)
    assert found, name
    return found.groupdict()


@pytest.mark.gpu
def test_registers(built, record_property):
    entries, _ = built
    assert len(entries) == KERNELS * len(ARCHITECTURES)
    for entry in entries:
        kernel, registers = label(entry["name"]), int(entry["registers"])
        name = f"group_norm_silu {kernel['pass']} {entry['arch']}"
        record_property("machine code", (name, registers, int(entry["shared"] or 0)))
        assert entry["stack"] == entry["stores"] == entry["loads"] == "0", entry
        # Blocks of 128 threads on an SM's 65536 registers: 4 where the slab is resident, else 3.
        assert registers <= (128 if kernel["resident"] == "1" else 168), entry


@pytest.mark.gpu
def test_accesses_of_16_bytes(built):
    _, ptx = built
    bodies = [body for body in re.split(r"\.entry\s+", ptx)[1:] if PROBE not in body[:80]]
    assert len(bodies) == KERNELS
    for body in bodies:
        kernel = label(body.split("(")[0])
        if kernel["vector"] not in ("4", "8"):
            continue
        assert re.search(r"st\.global\.v4\.u32", body)
        copies = re.findall(r"cp\.async\.cg\.shared\.global \[\S+\], \[\S+\], 16", body)
        loads = re.findall(r"ld\.global\.nc\.v4\.[buf]32", body)
        if kernel["resident"] == "1":
            assert copies
            # A residual is read once, where it is added, and takes no room on chip.
            summed = kernel["pass"] == "Forward" and kernel["sum"] not in ("0", "1")
            assert bool(loads) == summed
        else:
            assert loads
            assert not copies
        # No arrays in local memory, and no atomics, whose order would change results.
        assert not re.search(r"ld\.local|st\.local|\batom\.|\bred\.", body)
