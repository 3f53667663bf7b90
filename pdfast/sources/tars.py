"""Members of tar archives, checked before anything is done with them; nothing is ever unpacked."""

import tarfile
from typing import Any, ClassVar

MAX_NOTE = 2**12  # bytes of a header that describes the next: a long name, a precise time


class Entry(tarfile.TarInfo):
    """A member that is a plain file or folder; others are refused before anything is done."""

    most: ClassVar[int]
    """Bytes of a member."""
    notes: ClassVar[bool] = False
    """Whether headers in later formats may describe a member."""

    @classmethod
    def frombuf(cls, *args: Any) -> "Entry":
        """Parse a header."""
        entry = super().frombuf(*args)
        note = entry.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
        plain = (entry.isreg() and entry.type != tarfile.GNUTYPE_SPARSE) or entry.isdir()
        if not (plain or (cls.notes and note)):
            raise ValueError(f"its member {entry.name} is neither a file nor a folder")
        if not 0 <= entry.size <= (MAX_NOTE if note else cls.most):
            raise ValueError(f"its member {entry.name} has {entry.size:,} bytes")
        if entry.name.startswith("/") or ".." in entry.name.split("/"):
            raise ValueError(f"its member {entry.name} is outside its folder")
        return entry
