"""A kernel's machine code as text: what a cubin says of it, and its disassembly.

The disassembler is the one that Triton ships; nothing here needs a GPU or the CUDA toolkit.
"""

import re
import struct
import subprocess
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

LINE = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[0-9T])\s+)?([A-Z][A-Z0-9_a-z.]*)\s*(.*?)\s*;", re.M
)
NOTE = re.compile(r"\(\*.*?\*\)|\.reuse|`")  # branch tables' labels, hints of the operand cache
KPARAM_INFO, PARAM_CBANK = 0x17, 0x0A  # attributes of .nv.info
SIZED, WIDTHS = 4, {1: 4, 2: 4, 3: 4}  # an attribute's format: its length follows, or 2 bytes do


@lru_cache
def tool(name):
    import triton

    return next(Path(triton.__file__).parent.rglob(f"bin/{name}"))


@dataclass
class Instruction:
    """One line of the disassembly: `@guard opcode.modifiers operands`."""

    address: int
    guard: str | None
    opcode: str
    modifiers: list[str]
    operands: list[str]
    text: str
    asked: set[str] = field(default_factory=set)  # modifiers that the emulator has looked for

    def has(self, *names):
        self.asked |= set(names)
        return any(name in self.modifiers for name in names)


@dataclass
class Kernel:
    name: str
    code: list[Instruction]
    params: list[tuple[int, int]]  # offset and size of each, in the order of the arguments
    param_base: int  # of the parameters, in constant bank 0
    static_shared: int
    constants: dict[int, bytes]  # the other constant banks


def sections(cubin):
    """The sections of an ELF file of 64 bits: name to content (a size where it stores none)."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", cubin, table + k * size) for k in range(count)]
    start = heads[names][4]
    found = {}
    for name, kind, _, _, offset, length in heads:
        end = cubin.index(b"\0", start + name)
        nobits = kind == 8
        found[cubin[start + name : end].decode()] = (
            length if nobits else cubin[offset : offset + length]
        )
    return found


def parameters(info):
    """From .nv.info: (offset, size) of each parameter, and where they start in bank 0."""
    at, found, base = 0, {}, None
    while at < len(info):
        layout, attribute, size = struct.unpack_from("<BBH", info, at)
        value = info[at + 4 : at + 4 + size] if layout == SIZED else b""
        at += 4 + len(value)
        if attribute == KPARAM_INFO:
            _, ordinal, offset, packed = struct.unpack("<IHHI", value)
            found[ordinal] = (offset, packed >> 18)
        elif attribute == PARAM_CBANK:
            _, base, _ = struct.unpack("<IHH", value)
    return [found[k] for k in sorted(found)], base


def names(cubin_path):
    """The kernels of a cubin, by their mangled names."""
    prefix = ".text."
    content = Path(cubin_path).read_bytes()
    return [name[len(prefix) :] for name in sections(content) if name.startswith(prefix)]


def parse(line):
    address, guard, opcode, operands = line
    opcode, *modifiers = opcode.split(".")
    plain = NOTE.sub("", operands).strip()
    split = [part.strip() for part in re.split(r",|(?<=\w) (?=-?0x)", plain)] if plain else []
    text = f"{'@' + guard + ' ' if guard else ''}{'.'.join([opcode, *modifiers])} {operands}"
    return Instruction(int(address, 16), guard, opcode, modifiers, split, text.strip())


def read_kernel(cubin_path, name):
    """Disassembles one kernel of a cubin."""
    command = [tool("cuobjdump"), "-sass", "-fun", name, cubin_path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code = [parse(line) for line in LINE.findall(text)]
    assert code, f"no code of {name}"
    assert [ins.address for ins in code] == list(range(0, 16 * len(code), 16)), name
    parts = sections(Path(cubin_path).read_bytes())
    params, base = parameters(parts[f".nv.info.{name}"])
    shared = parts.get(f".nv.shared.{name}", 0)
    constants = {}
    for bank in range(1, 8):
        for section in (f".nv.constant{bank}", f".nv.constant{bank}.{name}"):
            if section in parts:
                constants[bank] = parts[section]
    return Kernel(
        name, code, params, base or 0, shared if isinstance(shared, int) else len(shared), constants
    )
