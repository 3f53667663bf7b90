"""Mutated reference statistics whose checksums and lengths are right; see sealed_files.py."""

import io
import json

import numpy as np
from mutations import TEXTS, changed
from sealed_files import archived, npy

ABOUT = {  # as pdfast stats writes it
    "format": 1,
    "pdfast": "0.2.0",
    "torch": "2.13.0",
    "metric": "FD-pixel",
    "detector": "pixel",
    "detector_resize": "none",
    "detector_sha256": "",
    "features": 4,
    "set": {
        "source": "a",
        "images": 9,
        "size": "2x2x1",
        "own_size": "2x2",
        "reading": "none",
        "images_sha256": "ab",
        "files_sha256": "cd",
        "left_out": "",
    },
}


def sealed_statistics(rng):
    """Mutate the mean, the covariance, one of its numbers or `about`; then the list of members."""
    what = rng.choice(["mean", "covariance", "number", "about", "about", "images", "nothing"])
    mean, sigma, text = np.arange(4.0), np.eye(4) + 0.5, json.dumps(ABOUT)
    if what == "number":
        place = rng.randrange(4), rng.randrange(4)
        sigma[place] = rng.choice([np.nan, np.inf, -9.0, 0.5 + 1e-9, 1e-300, 1e30, 1e300, 0.0])
    if what == "about":
        table = json.loads(text)
        for _ in range(rng.choice([1, 1, 2])):
            table = changed(rng, table)
        text = json.dumps(table)
        if rng.random() < 0.1:
            text = rng.choice(["[" * 9000, '{"format":' * 9000, "1" * 5000, "NaN", "", *TEXTS])
    members = [("mu.npy", saved(mean)), ("sigma.npy", saved(sigma))]
    if what == "mean":
        members[0] = "mu.npy", npy(rng, "'<f8'", mean.shape, mean.tobytes())
    if what == "covariance":
        members[1] = "sigma.npy", npy(rng, "'<f8'", sigma.shape, sigma.tobytes())
    if rng.random() < 0.7:
        members.append(("about.npy", saved(np.array(text))))
    if what == "images":
        images = npy(rng, "'|u1'", (6, 8, 8, 1), bytes(384))
        members[rng.randrange(len(members))] = (rng.choice([*TEXTS, "arr_0.npy"]), images)
    return archived(rng, members)


def saved(array):
    """Return an array as a valid .npy member."""
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()
