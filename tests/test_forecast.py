"""What --dry-run says of memory, and how it knows the data set's size."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pdfast.config import load_config
from pdfast.counting import Count, Memory
from pdfast.forecast import memory_line, num_images


@pytest.fixture
def config():
    return load_config("digits")


def with_source(config, source):
    return replace(config, data=replace(config.data, source=str(source)))


def test_images_are_counted_without_reading_them(config, tmp_path):
    assert num_images(config) == 1797
    np.savez(tmp_path / "set.npz", images=np.zeros((7, 8, 8, 1), np.uint8))
    assert num_images(with_source(config, tmp_path / "set.npz")) == 7
    (tmp_path / "birds" / "wren").mkdir(parents=True)
    for n in range(3):
        Image.new("L", (8, 8)).save(tmp_path / "birds" / "wren" / f"{n}.png")
    (tmp_path / "birds" / "notes.txt").write_text("no image")
    assert num_images(with_source(config, tmp_path / "birds")) == 3


def test_a_set_that_is_not_there_is_said_to_come_on_top(config, tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK")
    np.savez(tmp_path / "other.npz", pictures=np.zeros(3))
    for name in ("none.npz", "broken.npz", "other.npz", "nowhere"):
        assert num_images(with_source(config, tmp_path / name)) is None
    count = Count({}, Memory({"weights": 3_000_000, "data set": 1_000_000}, 7_000_000), 1)
    known = memory_line("training", count, 8, torch.device("cpu"), data=True)
    assert known.startswith("memory, training: 11 MB in an update of batch 8 = 3.0 weights + 1.0 d")
    assert known.endswith("+ 7.0 activations and temporaries; on top of that: the process itself")
    unknown = memory_line("training", count, 8, torch.device("cuda"), data=False)
    assert unknown.startswith("memory, training: 10 MB in an update of batch 8 = 3.0 weights + 7.0")
    assert "on top of that: the data set (not found here) and cuDNN's workspace" in unknown
