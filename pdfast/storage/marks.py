"""The mark of pdfast in single files, which have no manifest: pictures, archives, texts, JSON.

By it `--force` knows what it may replace; see `files.check_replaceable`. Programs that change a
picture or an archive leave the mark out; a text and a JSON file hold a digest of themselves.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MARK = b"written by pdfast"
MARK_WITHIN = 256  # bytes of a file's head
MAX_TEXT = 2**27  # bytes of a text that is looked at
DIGITS = 64
JSON_HEAD = b'{\n "comment": "%b, SHA-256 ' % MARK  # then its digest, taken with zeros there


def has_mark(file: Path) -> bool:
    """Whether a file is a PNG, a zip (an .npz), a text or JSON with the mark, or is empty."""
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
    """A text, each line ended, with a comment below it by which it is known while unchanged."""
    return text + b"# %b, SHA-256 %b\n" % (MARK, hashlib.sha256(text).hexdigest().encode())


def marked_json(table: dict[str, Any]) -> bytes:
    """A JSON object, each value on a line, with a comment before it as `marked_text` has one."""
    lines = [f",\n {json.dumps(key)}: {json.dumps(table[key], allow_nan=False)}" for key in table]
    return _sealed(b'%b%b"%b\n}\n' % (JSON_HEAD, b"0" * DIGITS, "".join(lines).encode()))


def _sealed(text: bytes) -> bytes:
    """A marked JSON text with its digest in place."""
    rest = text[len(JSON_HEAD) + DIGITS :]
    digest = hashlib.sha256(JSON_HEAD + b"0" * DIGITS + rest).hexdigest().encode()
    return JSON_HEAD + digest + rest
