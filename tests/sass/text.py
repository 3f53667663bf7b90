"""A cubin's kernels: their disassembly, parameters and constants.

The disassembler is the one that Triton ships; nothing here needs a GPU or the CUDA toolkit.
"""

import re
import struct
import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

LINE = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P[0-9T])\s+)?([A-Z][A-Z0-9_a-z.]*)\s*(.*?)\s*;", re.M
)
HEAD = re.compile(r"^\s*Function : (\S+)$", re.M)
NOTE = re.compile(r"\(\*.*?\*\)|\.reuse|`")  # labels of branch tables, hints of the operand cache
SEPARATOR = re.compile(r",|(?<=\w) (?=-?0x)")
NOBITS = 8  # a section of an ELF file that stores no content, only its size
KPARAM_INFO, PARAM_CBANK = 0x17, 0x0A  # attributes of .nv.info
SIZED = 4  # how an attribute is stored: its length, then its value


@dataclass
class Instruction:
    """One line of the disassembly: `@guard opcode.modifiers operands`."""

    address: int
    guard: str
    opcode: str
    modifiers: list[str]
    operands: list[str]
    text: str
    asked: set[str] = field(default_factory=set)  # modifiers that the emulator has checked for

    def has(self, *names):
        self.asked |= set(names)
        return any(name in self.modifiers for name in names)

    @property
    def following(self):
        """Return the index of the next instruction."""
        return self.address // 16 + 1


@dataclass
class Kernel:
    name: str
    code: list[Instruction]
    params: list[tuple[int, int]]  # offset and size of each, in the order of the arguments
    param_base: int  # where they start in constant bank 0
    static_shared: int  # including the system's reserved bytes
    constants: dict[int, bytes]  # the other constant banks


def parse(match):
    address, guard, opcode, operands = match
    full = opcode
    opcode, *modifiers = opcode.split(".")
    plain = NOTE.sub("", operands).strip()
    split = [part.strip() for part in SEPARATOR.split(plain)] if plain else []
    text = f"{'@' + guard + ' ' if guard else ''}{full} {operands}".strip()
    return Instruction(int(address, 16), guard, opcode, modifiers, split, text)


def sections(elf):
    """Return the sections of a 64-bit ELF file: name to content, or to the size if it has none."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", elf, table + k * size) for k in range(count)]
    start, found = heads[names][4], {}
    for name, kind, _, _, offset, length in heads:
        text = elf[start + name : elf.index(b"\0", start + name)].decode()
        found[text] = length if kind == NOBITS else elf[offset : offset + length]
    return found


def parameters(info):
    """Read from .nv.info (offset, size) of each parameter, and where they start in bank 0."""
    at, found, base = 0, {}, 0
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


class Cubin:
    """A file of machine code; `names` are the kernels in it, mangled."""

    def __init__(self, path):
        self.path = Path(path)
        self.sections = sections(self.path.read_bytes())
        prefix = ".text."
        self.names = [n.removeprefix(prefix) for n in self.sections if n.startswith(prefix)]
        self.kernels = {}

    @cached_property
    def listings(self):
        (triton,) = find_spec("triton").submodule_search_locations  # its import takes seconds
        tool = next(Path(triton).rglob("bin/cuobjdump"))
        command = [tool, "-sass", self.path]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        _, *parts = HEAD.split(text)
        return dict(zip(parts[::2], parts[1::2], strict=True))

    def kernel(self, name):
        if name not in self.kernels:
            self.kernels[name] = self.read(name)
        return self.kernels[name]

    def read(self, name):
        code = [parse(match) for match in LINE.findall(self.listings[name])]
        assert [ins.address for ins in code] == list(range(0, 16 * len(code), 16)), name
        params, base = parameters(self.sections[f".nv.info.{name}"])
        shared, constants = self.sections.get(f".nv.shared.{name}", 0), {}
        for bank in range(1, 8):
            for section in (f".nv.constant{bank}", f".nv.constant{bank}.{name}"):
                if section in self.sections:
                    constants[bank] = self.sections[section]
        size = shared if isinstance(shared, int) else len(shared)
        return Kernel(name, code, params, base, size, constants)
