"""Data sources, and one sentence for each fault in them."""

import numpy as np
import pytest
import torch
from PIL import Image

from pdfast.config.schema import DataConfig, NetConfig
from pdfast.data import sources
from pdfast.data.dataset import load_dataset
from pdfast.errors import UsageError
from pdfast.kernels.add_noise import to_float
from pdfast.models.images import to_uint8

GREY = NetConfig(image_size=8, channels=1)
COLOUR = NetConfig(image_size=8, channels=3)


def load(source, model=GREY):
    return load_dataset(DataConfig(source=str(source)), model)


def save_images(folder, num, size=(8, 8), mode="L"):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(num):
        value = 10 * k if mode == "L" else (10 * k, 5, 255 - k)
        Image.new(mode, size, value).save(folder / f"{k}.png")


def test_digits():
    data = load("digits")
    assert data.images.shape == (1797, 8, 8, 1)
    assert data.images.dtype == torch.uint8
    assert (data.images.min(), data.images.max()) == (0, 255)
    assert data.labels is None
    labelled = load("digits", NetConfig(image_size=8, channels=1, num_classes=10))
    assert torch.bincount(labelled.labels).tolist()[:3] == [178, 182, 177]


def test_an_empty_source_is_refused_where_data_are_needed():
    none = DataConfig(source="")
    assert sources.absolute("") == ""
    assert sources.count(none) is None
    with pytest.raises(UsageError, match=r"^no data: pass --data\.source FOLDER_OR_NPZ"):
        load_dataset(none, GREY)
    with pytest.raises(UsageError, match=r"data\.source must name a folder or a file, or be empty"):
        DataConfig(source=" ")
    with pytest.raises(UsageError, match="is still YOUR_IMAGES: replace it by your folder"):
        load("YOUR_IMAGES")


def test_float_and_back():
    images = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    scaled = to_float(images.permute(0, 3, 1, 2))
    assert (scaled.min(), scaled.max()) == (-1, 1)
    assert torch.equal(to_uint8(scaled), images)
    assert to_uint8(torch.tensor([[[[-3.0, 3.0]]]])).flatten().tolist() == [0, 255]


def test_folder_is_cropped_and_resized(tmp_path):
    picture = np.zeros((20, 40), np.uint8)
    picture[:, 10:30] = 200  # all of the central square
    Image.fromarray(picture).save(tmp_path / "wide.png")
    Image.fromarray(picture.T.copy()).save(tmp_path / "tall.jpg", quality=100)
    (tmp_path / "notes.txt").write_text("not an image")
    data = load(tmp_path)
    assert data.images.shape == (2, 8, 8, 1)
    assert (data.images.int() - 200).abs().max() <= 2


def test_resize_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255  # far above what 8 pixels can hold: must become grey
    for name in ("a", "b"):
        Image.fromarray(stripes).save(tmp_path / f"{name}.png")
    assert (load(tmp_path).images.int() - 127).abs().max() <= 6


def test_class_folders(tmp_path):
    save_images(tmp_path / "cats", 2, mode="RGB")
    save_images(tmp_path / "dogs", 3, mode="RGB")
    data = load(tmp_path, NetConfig(image_size=8, channels=3, num_classes=2))
    assert data.labels.tolist() == [0, 0, 1, 1, 1]
    assert load(tmp_path, COLOUR).labels is None


def test_npz(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(5))
    data = load(tmp_path / "a.npz", NetConfig(image_size=8, channels=3, num_classes=5))
    assert np.array_equal(data.images.numpy(), images)
    assert data.labels.tolist() == [0, 1, 2, 3, 4]


def test_samples_are_read_back(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "samples.npz", images)  # as arr_0
    assert np.array_equal(load(tmp_path / "samples.npz", GREY).images, images)


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "bad.npz", **arrays)
    return tmp_path / "bad.npz"


def zeros(n=4, size=8, channels=1, dtype=np.uint8):
    return np.zeros((n, size, size, channels), dtype)


CLASSES = NetConfig(image_size=8, channels=1, num_classes=3)


@pytest.mark.parametrize(
    ("arrays", "model", "message"),
    [
        ({"pictures": zeros()}, GREY, "has no array `images` (it holds pictures)"),
        ({"images": zeros(dtype=np.float32)}, GREY, "`images` must be uint8"),
        ({"images": zeros()[..., 0]}, GREY, "of shape (N, H, W, C)"),
        ({"images": zeros(channels=4)}, GREY, "make them square, (H, H, C), with 1 channel or 3"),
        (
            {"images": np.zeros((4, 3, 8, 8), np.uint8)},
            COLOUR,
            "shape (3, 8, 8): put the channels last, images.transpose(0, 2, 3, 1)",
        ),
        ({"images": zeros(size=9)}, GREY, "images of 9x9x1, but the config asks for 8x8x1"),
        ({"images": zeros()}, COLOUR, "images of 8x8x1, but the config asks for 8x8x3"),
        ({"images": zeros(1)}, GREY, "has 1 image; at least 2 are needed"),
        ({"images": zeros()}, CLASSES, "has no labels, but model.num_classes is 3"),
        (
            {"images": zeros(), "labels": np.arange(4)},
            CLASSES,
            "labels from 0 to 3, outside 0 .. 2",
        ),
        (
            {"images": zeros(), "labels": np.arange(4) - 1},
            CLASSES,
            "has negative labels (-1): number classes from 0",
        ),
        ({"images": zeros(), "labels": np.arange(3)}, CLASSES, "`labels` must be 4 whole numbers"),
        ({"images": zeros(), "labels": np.zeros(4)}, CLASSES, "`labels` must be 4 whole numbers"),
        ({"images": np.array([{}], object)}, GREY, "is not a readable .npz"),
    ],
)
def test_bad_npz(tmp_path, arrays, model, message):
    with pytest.raises(UsageError) as error:
        load(npz(tmp_path, **arrays), model)
    assert message in str(error.value)


def test_truncated_npz(tmp_path):
    path = npz(tmp_path, images=zeros())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UsageError, match="is not a readable"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="is not a readable"):
        load(path)


def test_damaged_compressed_npz_and_npy(tmp_path):
    np.savez_compressed(tmp_path / "c.npz", images=zeros(100))
    content = bytearray((tmp_path / "c.npz").read_bytes())
    content[60:70] = b"\xff" * 10
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(UsageError, match="is not a readable"):
        load(tmp_path / "c.npz")
    np.save(tmp_path / "a.npy", zeros())
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(UsageError, match="is not a readable"):
        load(tmp_path / "a.npz")


def test_modes_of_images(tmp_path):
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "a.png")  # invisible: shows white
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "b.png")
    turned = Image.new("RGB", (8, 8), "black")
    turned.paste((255, 255, 255), (0, 0, 8, 4))  # bright above, until it is turned
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    turned.save(tmp_path / "c.png", exif=exif)
    (tmp_path / ".thumbs").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / ".thumbs" / "d.png")
    images = load(tmp_path, COLOUR).images
    assert len(images) == 3
    assert (images[0] == 255).all()
    assert (images[1] == torch.tensor([10, 20, 30])).all()
    assert (images[2][:, 4:] == 255).all()
    assert (images[2][:, :4] == 0).all()
    Image.fromarray(np.full((8, 8), 25_600, np.uint16)).save(tmp_path / "e.png")
    with pytest.raises(
        UsageError, match=r"e\.png has more than 8 bits per channel: save it with 8"
    ):
        load(tmp_path, COLOUR)


def test_bad_folders(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load(tmp_path / "absent")
    with pytest.raises(UsageError, match="holds no images"):
        load(tmp_path)
    save_images(tmp_path, 1)
    with pytest.raises(UsageError, match="has 1 image; at least 2"):
        load(tmp_path)
    save_images(tmp_path, 3)
    with pytest.raises(UsageError, match="has no class sub-folders, but labels are asked for: mak"):
        load(tmp_path, CLASSES)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    with pytest.raises(UsageError, match=r"2\.png is not a readable image: repair or remove it"):
        load(tmp_path)
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(UsageError, match=r"neither a folder of images nor an \.npz"):
        load(tmp_path / "x.csv")
