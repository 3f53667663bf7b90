"""Pictures and arrays that have no manifest beside them, with pdfast's mark inside.

By the mark `--force` knows what it may replace; see `files.check_replaceable`. Programs that change
such a file and write it again leave the mark out.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pdfast.storage.marks import MARK

METADATA = {"Comment": MARK.decode()}  # of a PNG, as matplotlib takes it


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture."""
    info = PngInfo()
    for key, text in METADATA.items():
        info.add_text(key, text)
    image.save(path, "png", pnginfo=info)


def save_npz(path: Path, **arrays: Any) -> None:
    """Write arrays as `np.savez` does."""
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as file:
        file.comment = MARK
