"""Readers of data sets: one module a kind of file, each of which trusts nothing in the file.

A reader gets the path and the model's config, and gives the images as uint8 (N, H, W, C) in C
order, and their labels as whole numbers (N,), or None where there are none or the model has no
classes. It checks each size that a file declares before it allocates for it, reads in parts that
a signal can come between, runs no code from the file, and raises UsageError naming the file for
all that is wrong.
"""

from pathlib import Path

from pdfast.config import NetConfig
from pdfast.errors import UsageError
from pdfast.sources import cifar, digits, folder, idx, npz
from pdfast.sources.reading import Arrays


def read(source: str, model: NetConfig) -> Arrays:
    """Images and labels of `data.source`, of the model's size and channels."""
    if source == "digits":
        return digits.read(model)
    path = Path(source)
    try:
        if path.is_dir():
            return folder.read(path, model)
        if path.is_file():
            if npz.reads(path.name):
                return npz.read(path, model)
            if idx.reads(path.name):
                return idx.read(path, model)
            if cifar.reads(path.name):
                return cifar.read(path, model)
        there = path.exists()
    except OSError as error:
        raise UsageError(f"data.source {path} cannot be read: {error.strerror}") from None
    if there:
        raise UsageError(
            f"{path} is neither a folder of images nor an .npz, an ...images-idx3-ubyte[.gz] as of "
            "MNIST, or a .tar.gz of CIFAR-10"
        )
    raise UsageError(f"data.source {path} does not exist")


def count(source: str, model: NetConfig) -> int | None:
    """How many images `read` would give; None where there is no such set.

    Images are not read for it, but for those of the digits and of CIFAR-10.
    """
    if source == "digits":
        return len(digits.read(model)[0])
    path = Path(source)
    try:
        if path.is_dir():
            return folder.count(path)
        if npz.reads(path.name):
            return npz.count(path)
        if idx.reads(path.name):
            return idx.count(path)
        return len(cifar.read(path, model)[0]) if cifar.reads(path.name) else None
    except (UsageError, OSError):
        return None
