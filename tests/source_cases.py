"""Helpers shared by the tests of data readers."""

import numpy as np
import pytest

from pdfast.config.schema import DataConfig, NetConfig
from pdfast.data.dataset import load_dataset
from pdfast.errors import UsageError

GREY = NetConfig(image_size=8, channels=1)
CLASSES = NetConfig(image_size=8, channels=1, num_classes=10)
CIFAR = NetConfig(num_classes=10)


def load(path, model=GREY):
    return load_dataset(DataConfig(source=str(path)), model)


def refused(path, message, model=GREY):
    with pytest.raises(UsageError) as error:
        load(path, model)
    text = str(error.value)
    assert message in text
    assert text.startswith(str(path)[:-4])  # names the file, or the one beside it
    assert "\n" not in text


def pictures(num=6, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, size, size), np.uint8)
