"""Sets of small pictures in the formats of other tools, and statistics of their pixels."""

import io
import json
import zipfile

import numpy as np
from PIL import Image
from sealed_statistics import ABOUT


def pictures(num, size=4, channels=1, seed=0, low=0, high=256):
    return np.random.default_rng(seed).integers(
        low, high, (num, size, size, channels), dtype=np.uint8
    )


def features(images):
    """Return FD-pixel's features of images of at most 32x32 pixels."""
    return images.reshape(len(images), -1) / 127.5 - 1.0


def png(image):
    out = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(out, "png")
    return out.getvalue()


def as_folder(images, path):
    path.mkdir()
    for k, image in enumerate(images):
        (path / f"{k:04d}.png").write_bytes(png(image))
    return path


def as_zip(images, path):
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for k, image in enumerate(images):
            archive.writestr(f"{k:04d}.png", png(image))
    return path.with_suffix(".zip")


def as_npz(images, path, **more):
    np.savez(path.with_suffix(".npz"), arr_0=images, **more)
    return path.with_suffix(".npz")


def statistics(images):
    """Return statistics as pytorch-fid and EDM store them."""
    x = features(images)
    return {"mu": x.mean(0), "sigma": np.cov(x, rowvar=False).reshape(x.shape[1], -1)}


def about(**changes):
    """Return the `about` of pdfast stats for four features, with some values changed."""
    return {"about": np.array(json.dumps(ABOUT | changes))}
