"""Data sets: uint8 images resident in memory, (N, H, W, C), with optional int64 labels (N,).

Sources: scikit-learn's digits, a folder of images, an .npz. All that can be wrong with them is
found when they are read, before anything is trained.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from pdfast.config import DataConfig, NetConfig
from pdfast.errors import UsageError
from pdfast.signals import poll

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MIN_IMAGES = 2  # a covariance needs two
NPZ_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    NotImplementedError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Dataset:
    """Images uint8 (N, H, W, C) and labels int64 (N,), or None, on one device."""

    images: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "Dataset":
        """The same set on another device."""
        labels = None if self.labels is None else self.labels.to(device)
        return Dataset(self.images.to(device), labels)


def to_uint8(images: Tensor) -> Tensor:
    """Float (N, C, H, W) in [-1, 1] -> uint8 (N, H, W, C), rounded to nearest."""
    scaled = (images.permute(0, 2, 3, 1).float() + 1.0) * 127.5
    return scaled.round().clamp(0, 255).to(torch.uint8).contiguous()


def load_dataset(data: DataConfig, model: NetConfig) -> Dataset:
    """Read `data.source` as the model's size, channels and classes ask.

    Raises UsageError naming the file and the fix.
    """
    if data.source == "digits":
        images, labels = _digits()
        where = "scikit-learn's digits"
    else:
        path = Path(data.source)
        where = str(path)
        if path.is_dir():
            images, labels = _folder(path, model)
        elif path.suffix == ".npz" and path.is_file():
            images, labels = _npz(path)
        elif path.exists():
            raise UsageError(f"{path} is neither a folder of images nor an .npz file")
        else:
            raise UsageError(f"data.source {path} does not exist")
    if len(images) < MIN_IMAGES:
        raise UsageError(f"{where} has {len(images)} images; at least {MIN_IMAGES} are needed")
    size, channels = model.image_size, model.channels
    height, width, found = images.shape[1:]
    if height != width or found not in (1, 3):
        raise UsageError(
            f"{where} has images of shape {(height, width, found)}: make them square, (H, H, C), "
            "with 1 channel or 3"
        )
    if images.shape[1:] != (size, size, channels):
        raise UsageError(
            f"{where} has images of {height}x{width}x{found}, but the config asks for "
            f"{size}x{size}x{channels}: set model.image_size and model.channels to fit"
        )
    if not model.num_classes:
        return Dataset(torch.from_numpy(images), None)
    if labels is None:
        raise UsageError(
            f"{where} has no labels, but model.num_classes is {model.num_classes}: add labels "
            "(class sub-folders, or `labels` in the .npz) or set it to 0"
        )
    if labels.min() < 0:
        raise UsageError(f"{where} has negative labels ({labels.min()}): number classes from 0")
    if labels.max() >= model.num_classes:
        raise UsageError(
            f"{where} has labels from {labels.min()} to {labels.max()}, outside "
            f"0 .. {model.num_classes - 1}: set model.num_classes to {labels.max() + 1}"
        )
    return Dataset(torch.from_numpy(images), torch.from_numpy(labels))


Arrays = tuple[NDArray[np.uint8], NDArray[np.int64] | None]


def _digits() -> Arrays:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install scikit-learn, or set data.source to a folder or an .npz"
        ) from None
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # grey levels 0 .. 16
    return images[..., None], digits.target.astype(np.int64)


def _npz(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            if "images" not in file:
                names = ", ".join(file.files) or "nothing"
                raise UsageError(f"{path} has no array `images` (it holds {names})")
            images = file["images"]
            labels = file.get("labels")
    except UsageError:
        raise
    except NPZ_ERRORS as error:
        raise UsageError(f"{path} is not a readable .npz file ({error})") from None
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UsageError(
            f"{path}: `images` must be uint8 of shape (N, H, W, C), not {images.dtype} of shape "
            f"{images.shape}"
        )
    if labels is not None:
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise UsageError(
                f"{path}: `labels` must be {len(images)} whole numbers, not {labels.dtype} of "
                f"shape {labels.shape}"
            )
        labels = labels.astype(np.int64)
    return images, labels


def _folder(path: Path, model: NetConfig) -> Arrays:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    hidden = {p for p in files if any(q.startswith(".") for q in p.relative_to(path).parts)}
    files = [p for p in files if p not in hidden]
    if not files:
        raise UsageError(f"{path} holds no images ({', '.join(SUFFIXES)})")
    size, channels = model.image_size, model.channels
    images = np.empty((len(files), size, size, channels), np.uint8)
    for n, file in enumerate(files):
        poll("nothing was started")
        images[n] = _read_image(file, size, channels)
    if not model.num_classes:
        return images, None
    inside = [file.relative_to(path).parts for file in files]
    stray = [file for file, parts in zip(files, inside, strict=True) if len(parts) < 2]
    if stray:
        raise UsageError(f"{stray[0]} is in no class sub-folder, but model.num_classes is not 0")
    classes = {name: k for k, name in enumerate(sorted({parts[0] for parts in inside}))}
    return images, np.array([classes[parts[0]] for parts in inside], np.int64)


def _read_image(file: Path, size: int, channels: int) -> NDArray[np.uint8]:
    """Centre crop to a square, then antialiased resize: uint8 (size, size, channels).

    Turned as its EXIF tag says; transparency shows white.
    """
    try:
        with Image.open(file) as opened:
            if opened.mode.startswith(("I", "F")):
                raise UsageError(f"{file} has more than 8 bits per channel: save it with 8")
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if channels == 1 else "RGB")
    except UsageError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise UsageError(f"{file} is not a readable image: repair or remove it") from None
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        # Pillow's filters widen with the scale, so that shrinking does not alias.
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8).reshape(size, size, channels)
