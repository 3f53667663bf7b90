"""scikit-learn's 8x8 digits, which come inside that package."""

import numpy as np

from pdfast.errors import UsageError
from pdfast.sources.reading import Arrays, Wanted, check_shape


def read(wanted: Wanted) -> Arrays:
    """1,797 grey images of 8x8 and their classes, 0 to 9."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install scikit-learn, or set data.source to your own images"
        ) from None
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # greys 0 .. 16
    check_shape("scikit-learn's digits", images.shape, wanted)
    return Arrays(images, digits.target)
