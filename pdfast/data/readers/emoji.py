"""The pictures of an emoji font, `emoji:<file>`: the PNGs of its largest strike (table CBDT).

Near-duplicates are dropped by one rule: glyphs that the font's ligatures make from a sequence with
one of the five skin-tone modifiers are left out. Of Noto Color Emoji's 3,926 pictures that leaves
2,036.

fontTools is not used here, because it does not check the counts and ranges in the tables: a font of
10 kB can keep it busy for an hour. The layouts of the tables are OpenType's.
"""

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pdfast.data.readers.pictures import Pictures
from pdfast.data.readers.reading import UNREADABLE, listen, unreadable
from pdfast.data.readers.registry import Reader, register

PREFIX = "emoji:"
MAX_FILE = 2**26  # bytes; Noto Color Emoji has 11 million
TONES = range(0x1F3FB, 0x1F400)  # code points of the skin-tone modifiers
METRICS = {17: 5, 18: 8}  # bytes before a picture's length, by image format


def absolute(source: str) -> str:
    """Return the same source with an absolute path, so that it is found from any folder."""
    return f"{PREFIX}{Path(source.removeprefix(PREFIX)).absolute()}"


def find(source: str) -> Pictures:
    """Find the pictures of a font, in the order of its glyphs.

    Raises:
        UsageError: The font cannot be read, or has no pictures.
    """
    path = Path(source.removeprefix(PREFIX))
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
        if len(content) > MAX_FILE:
            raise ValueError(f"it has more than {MAX_FILE:,} bytes")
        tables = _tables(content)
        for tag in ("CBLC", "CBDT"):
            if tag not in tables:
                raise ValueError(f"it has no table {tag}, which holds the pictures of a font")
        toned = _toned(tables)
        found = [(k, png) for k, png in _glyphs(tables["CBLC"], tables["CBDT"]) if k not in toned]
    except UNREADABLE as error:
        raise unreadable(path, "emoji font", error, "name another font") from None
    return Pictures(len(found), lambda start: _files(path, found[start:]), paths=lambda: [path])


def _files(path: Path, found: list[tuple[int, memoryview]]) -> Iterator[tuple[str, BinaryIO]]:
    for glyph, png in found:
        yield f"{path}: glyph {glyph}", io.BytesIO(png)


def _tables(content: bytes) -> dict[str, memoryview]:
    (num,) = struct.unpack_from(">H", content, 4)
    tables = {}
    for k in range(num):
        tag, _, offset, length = struct.unpack_from(">4sIII", content, 12 + 16 * k)
        if offset + length > len(content):
            raise ValueError(f"its table {tag.decode('ascii', 'replace')} is cut short")
        tables[tag.decode("ascii", "replace")] = memoryview(content)[offset : offset + length]
    return tables


def _glyphs(places: memoryview, data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and PNG of every glyph in the strike with the largest pictures."""
    (num,) = struct.unpack_from(">I", places, 4)
    strikes = [struct.unpack_from(">4I24x2H4B", places, 8 + 48 * k) for k in range(min(num, 256))]
    if not strikes:
        raise ValueError("it has no pictures")
    start, _, num, *_ = max(strikes, key=lambda strike: strike[7])  # height in pixels per em
    after, left = 0, len(data)
    for k in range(num):
        listen()
        first, last, offset = struct.unpack_from(">HHI", places, start + 8 * k)
        if not after <= first <= last:  # so no glyph comes twice
            raise ValueError("its glyphs are not in order")
        after = last + 1
        form, kind, base = struct.unpack_from(">HHI", places, start + offset)
        if form not in (1, 3) or kind not in METRICS:
            raise ValueError(f"its pictures are in index format {form} and image format {kind}")
        wide = "I" if form == 1 else "H"
        ends = struct.unpack_from(f">{last - first + 2}{wide}", places, start + offset + 8)
        for n, at in enumerate(ends[:-1]):
            if ends[n + 1] == at:
                continue  # a glyph without a picture
            at += base + METRICS[kind]
            (length,) = struct.unpack_from(">I", data, at)
            left -= length
            if at + 4 + length > len(data) or left < 0:
                raise ValueError("its pictures overlap, or are cut short")
            yield first + n, data[at + 4 : at + 4 + length]


# ------------------------------------------------------------------------------------------
# Skin tones


def _toned(tables: dict[str, memoryview]) -> set[int]:
    """Return the glyphs of sequences with a skin tone, by the ligatures of GSUB."""
    if "cmap" not in tables or "GSUB" not in tables:
        return set()
    tones = _tones(tables["cmap"])
    return {glyph for glyph, parts in _ligatures(tables["GSUB"]) if tones.intersection(parts)}


def _tones(cmap: memoryview) -> set[int]:
    """Return the glyphs of the modifiers, by the character map of format 12 (beyond 2^16)."""
    found = set()
    (num,) = struct.unpack_from(">H", cmap, 2)
    for k in range(num):
        (at,) = struct.unpack_from(">I", cmap, 8 + 8 * k)
        if struct.unpack_from(">H", cmap, at) == (12,):
            (count,) = struct.unpack_from(">I", cmap, at + 12)
            groups = np.frombuffer(cmap, ">u4", 3 * count, at + 16).reshape(-1, 3).astype(np.int64)
            for tone in TONES:
                for first, _, glyph in groups[(groups[:, 0] <= tone) & (tone <= groups[:, 1])]:
                    found.add(int(glyph) + tone - int(first))
    return found


class _Words:
    """16-bit numbers of a table, bounded: overlapping sub-tables cannot multiply the work."""

    def __init__(self, table: memoryview) -> None:
        self._table, self._left = table, 4 * len(table)

    def read(self, at: int, num: int = 1) -> tuple[int, ...]:
        self._left -= 2 * num
        if self._left < 0:
            raise ValueError("its ligatures overlap")
        return struct.unpack_from(f">{num}H", self._table, at)

    def list(self, at: int) -> tuple[int, ...]:
        """Read a count and the numbers behind it."""
        return self.read(at + 2, *self.read(at))


def _ligatures(table: memoryview) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield the glyph of every ligature, and the glyphs that it replaces except the first."""
    words = _Words(table)
    (lookups,) = words.read(8)
    for lookup in words.list(lookups):
        listen()
        at = lookups + lookup
        (kind,) = words.read(at)
        for subtable in words.list(at + 4):
            here, of = at + subtable, kind
            if kind == 7:  # an extension, which may lie further away
                _, of, high, low = words.read(here, 4)
                here += (high << 16) + low
            if of != 4:
                continue
            for sets in words.list(here + 4):
                for ligature in words.list(here + sets):
                    glyph, num = words.read(here + sets + ligature, 2)
                    yield glyph, words.read(here + sets + ligature + 4, max(0, num - 1))


register(Reader(keyword=PREFIX, open=lambda source, _: find(source), absolute=absolute))
