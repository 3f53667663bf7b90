"""pdfast's mark in single files, which have no manifest: pictures, archives, texts and JSON.

The mark shows `--force` what it may replace; see `files.check_replaceable`. Other programs drop it
when they change a picture or an archive; a text and a JSON file contain a digest of themselves.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MARK = b"written by pdfast"
MARK_WITHIN = 256  # bytes of a file's head
MAX_TEXT = 2**27  # bytes of a text that is checked
DIGITS = 64
# How marked JSON begins. Its own digest follows, computed with zeros in that place.
JSON_HEAD = b'{\n "comment": "%b, SHA-256 ' % MARK


def has_mark(file: Path) -> bool:
    """Return whether a file is empty, or a PNG, a zip (an .npz), a text or JSON with the mark.

    A text or JSON file that was changed since it was written does not count.
    """
    if not file.is_file():
        return False
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(0)
            head = opened.read(MARK_WITHIN)
            opened.seek(max(0, size - len(MARK)))
            end = opened.read()
        if head.startswith(b"\x89PNG"):
            return b"tEXtComment\0" + MARK in head
        if head.startswith(b"PK"):
            return end == MARK
        text = file.read_bytes() if size <= MAX_TEXT else b"?"
    except OSError:
        return False
    if text.startswith(JSON_HEAD):
        return text == _sealed(text)
    return text == marked_text(text[: text.rfind(b"\n", 0, -1) + 1]) or not text


def marked_text(text: bytes) -> bytes:
    """Append a comment with the mark and the SHA-256 of the text, whose lines must all be ended."""
    return text + b"# %b, SHA-256 %b\n" % (MARK, hashlib.sha256(text).hexdigest().encode())


def marked_json(table: dict[str, Any]) -> bytes:
    """Return a JSON object, one value per line, after a comment with the mark and its SHA-256."""
    lines = [f",\n {json.dumps(key)}: {json.dumps(table[key], allow_nan=False)}" for key in table]
    return _sealed(b'%b%b"%b\n}\n' % (JSON_HEAD, b"0" * DIGITS, "".join(lines).encode()))


def _sealed(text: bytes) -> bytes:
    """Return a marked JSON text with its digest in place."""
    rest = text[len(JSON_HEAD) + DIGITS :]
    digest = hashlib.sha256(JSON_HEAD + b"0" * DIGITS + rest).hexdigest().encode()
    return JSON_HEAD + digest + rest
