"""Machine code of every Triton kernel, as its op launches it: no stack, no spills, wide accesses.

Registers and shared memory are printed at the end; no test here measures a speed.
"""

import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton
from launch_cases import CODES

CPU = torch.device("cpu")
TOOL = next(Path(triton.__file__).parent.rglob("bin/cuobjdump"))
ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[A-Za-z]\w*(?:::\w+)*)*?(?:\.v(\d))?\.b(\d+)\b")


def wide_accesses(ptx, threads):
    """Return the bytes of a program's loads and stores of at least 16 bytes a thread."""
    wide = {"ld": 0, "st": 0}
    for kind, vector, bits in ACCESS.findall(ptx):
        size = int(vector or 1) * int(bits) // 8
        wide[kind] += size if size >= 16 else 0
    return wide["ld"] * threads, wide["st"] * threads


@pytest.mark.parametrize("case", CODES)
def test_code(driver, launches, tmp_path, record_property, case):
    code = CODES[case]
    driver.arch = code.arch
    code.call(CPU, **code.options)
    launch = launches[code.launch]
    file = tmp_path / "kernel.cubin"
    file.write_bytes(launch.compiled.asm["cubin"])
    command = [TOOL, "--dump-resource-usage", file]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:\d+ STACK:\d+ SHARED:\d+ LOCAL:\d+", usage)[0]
    registers, shared = re.search(r"REG:(\d+) .*SHARED:(\d+)", usage).groups()
    name = f"{launch.kernel} sm_{code.arch}"
    record_property("machine code", (name, int(registers), int(shared)))
    assert "STACK:0 " in usage
    assert usage.endswith("LOCAL:0")
    threads = 32 * launch.compiled.metadata.num_warps
    wide = wide_accesses(launch.compiled.asm["ptx"], threads)
    assert wide == (code.loads, code.stores)
