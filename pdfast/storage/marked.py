"""Write pictures and arrays, which have no manifest, with pdfast's mark inside.

The mark shows `--force` what it may replace; see `files.check_replaceable`. Other programs drop the
mark when they change and save such a file.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pdfast.storage.marks import MARK

METADATA = {"Comment": MARK.decode()}  # of a PNG, as matplotlib's savefig takes it


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture as a PNG with the mark."""
    info = PngInfo()
    for key, text in METADATA.items():
        info.add_text(key, text)
    image.save(path, "png", pnginfo=info)


def save_npz(path: Path, **arrays: Any) -> None:
    """Write arrays as `np.savez` does, with the mark."""
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as file:
        file.comment = MARK
