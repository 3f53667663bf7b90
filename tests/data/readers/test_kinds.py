"""Kinds of pictures: which are decoded, and how EXIF turns them."""

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from pdfast.data.readers import decoding, kinds, pictures
from pdfast.data.readers.reading import Wanted
from pdfast.errors import UsageError

LOSSY = {"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF", "ICNS"}  # the last: by its other sizes


def saved(image, kind, **options):
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.save(out, kind, **options)
    return out.getvalue()


def decoded(contents, size=8, channels=1):
    """Decode (name, content) pairs."""
    found = pictures.Pictures(
        len(contents), lambda start: ((name, io.BytesIO(c)) for name, c in contents[start:])
    )
    wanted = Wanted(size, channels)
    made = list(decoding.decoded(wanted, found, 0, lambda: None))
    for one in made:
        if one.image is None:
            raise UsageError(one.why)
    return np.stack([one.image for one in made])


# ------------------------------------------------------------------------------------------
# Suffixes

WRITTEN = [
    suffix
    for suffix in kinds.SUFFIXES
    if Image.registered_extensions()[suffix] in Image.SAVE and suffix != ".pfm"
]


def test_what_is_tried_here():
    """Most kinds are covered; Pillow can only read the others."""
    assert {".jfif", ".jpe", ".avif", ".apng", ".jp2", ".ppm", ".tga", ".ico"} <= {
        *WRITTEN,
        *(suffix for suffix in (".avif", ".jp2") if kinds.lacking(suffix)),
    }
    assert {*kinds.SUFFIXES} == {*WRITTEN, *ONLY_READ, ".pfm"}
    assert set(kinds.OLD_SUFFIXES) < set(kinds.SUFFIXES)


@pytest.mark.parametrize("suffix", WRITTEN)
def test_each_kind_is_decoded(suffix):
    """The pixels are the written ones, if the kind is lossless."""
    if kind := kinds.lacking(suffix):
        pytest.fail(f"this Pillow has no {kind}")
    kind = Image.registered_extensions()[suffix]
    # An icon has fixed sizes, of which 16 is the least.
    image = np.random.default_rng(1).integers(0, 2, (16, 16), np.uint8).repeat(4, 0).repeat(4, 1)
    mode = {"XBM": "1", "MSP": "1", "BLP": "P", "FTEX": "RGBA"}.get(kind, "RGB")
    content = saved(Image.fromarray(image * 255).convert(mode), kind)
    found = decoded([(f"a{suffix.upper()}", content)] * 2, 64)[..., 0]
    assert found.shape == (2, 64, 64)
    off = np.abs(found.astype(int) - image * 255)
    assert off.mean() <= (40 if kind in LOSSY else 0)


def only_read():
    """Return a grey picture of 8x8 pixels in each kind that Pillow reads but does not write."""
    grey = np.random.default_rng(2).integers(0, 2, (8, 8), np.uint8) * 255
    rgb = grey[..., None].repeat(3, 2)
    rows = ",\n".join(f'"{"".join("ab"[v // 255] for v in row)}"' for row in grey.tolist())
    xpm = f'/* XPM */\nstatic char *x[] = {{\n"8 8 2 1",\n"a c #000000",\n"b c #FFFFFF",\n{rows}}};'
    head = struct.pack("<IiiHHIIiiII", 40, 8, 16, 1, 24, 0, 0, 0, 0, 0, 0)  # of a .bmp, both masks
    cursor = struct.pack("<HHHBBBBHHII", 0, 2, 1, 8, 8, 0, 0, 0, 0, 40 + 192 + 32, 22) + head
    frame = struct.pack("<IHH8xIH", 16 + 70, 0xF1FA, 1, 70, 16) + grey.tobytes()
    film = struct.pack("<IHHHHHHI108x", 128 + len(frame), 0xAF11, 1, 8, 8, 8, 0, 5) + frame
    texture = b"FTEX" + struct.pack("<8i", 0, 8, 8, 1, 1, 1, 32, 192)
    scan = bytearray(96 * 2048)
    scan[2048:2052] = b"PCD_"
    for row in grey.repeat(64, 0).repeat(96, 1)[::2]:  # two rows of it, then their colour: grey
        scan += (row.clip(0, 182).tobytes() * 2) + bytes([156]) * 384 + bytes([137]) * 384
    pcx = saved(Image.fromarray(rgb), "PCX")
    pixar = struct.pack("<4s412xHH4xHH596x", b"\x80\xe8\0\0", 8, 8, 14, 2) + rgb.tobytes()
    planes = rgb.transpose(2, 0, 1).tobytes()
    return grey, {
        ".xpm": xpm.encode(),
        ".ras": struct.pack(">8I", 0x59A66A95, 8, 8, 8, 64, 1, 0, 0) + grey.tobytes(),
        ".cur": cursor + rgb[::-1].tobytes() + bytes(32),
        ".gbr": struct.pack(">5I4sI", 28, 2, 8, 8, 1, b"GIMP", 10) + grey.tobytes(),
        ".pxr": pixar,
        ".psd": struct.pack(">4sH6xHIIHHIIIH", b"8BPS", 1, 3, 8, 8, 8, 3, 0, 0, 0, 0) + planes,
        ".fli": film,
        ".flc": film,
        ".ftu": texture + rgb.tobytes(),
        ".ftc": texture + rgb.tobytes(),
        ".pcd": bytes(scan),
        ".dcx": struct.pack("<III", 0x3ADE68B1, 12, 0) + pcx,
    }


GREY, ONLY_READ = only_read()


@pytest.mark.parametrize("suffix", [s for s in ONLY_READ if s not in WRITTEN])
def test_each_kind_that_is_only_read(suffix):
    found = decoded([(f"a{suffix}", ONLY_READ[suffix])] * 2)[0, ..., 0]
    if suffix == ".pcd":  # of 768x512 pixels, of which the middle is taken
        whole = Image.fromarray(GREY.repeat(64, 0).repeat(96, 1)).crop((128, 0, 640, 512))
        assert np.abs(found - np.asarray(whole.resize((8, 8)), int)).mean() < 40
    else:
        assert np.array_equal(found, GREY)


def test_kinds_of_weak_marks_go_by_their_names():
    """A damaged picture of another kind must not pass for one of these."""
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    for kind, suffix in (("TGA", ".tga"), ("PPM", ".pgm"), ("PCX", ".pcx"), ("SGI", ".bw")):
        content = saved(image, kind)
        assert np.array_equal(decoded([(f"a{suffix}", content)] * 2)[0, ..., 0], np.asarray(image))
        with pytest.raises(UsageError, match=r"a\.png is not a readable image"):
            decoded([("a.png", content)] * 2)
    png = saved(image, "PNG")  # what a name says wrongly of these is passed over
    assert np.array_equal(decoded([("a.tga", png), ("set: row 7", png)])[1, ..., 0], image)


def test_more_than_8_bits_in_other_kinds():
    deep = Image.fromarray(np.full((8, 8), 0.5, np.float32))
    with pytest.raises(UsageError, match=r"a\.pfm has more than 8 bits per channel"):
        decoded([("a.pfm", saved(deep, "PPM"))] * 2)


def test_an_icon_that_is_larger_than_it_says():
    """The PNG inside determines its size."""
    png = saved(Image.new("1", (8192, 8193)), "PNG")
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 1, len(png), 22) + png
    with pytest.raises(UsageError, match=r"a\.ico has 8192x8193 pixels, more than 67,108,864"):
        decoded([("a.ico", icon)] * 2)


def test_a_kind_that_this_pillow_lacks(monkeypatch):
    monkeypatch.setattr(kinds.features, "check", lambda feature: feature != "avif")
    with pytest.raises(UsageError, match=r"a\.avif cannot be read by this Pillow, which lacks AV"):
        decoded([("a.avif", b"\0\0\0\x1cftypavif")] * 2)
    with pytest.raises(UsageError, match=r"a\.webp is not a readable image"):
        decoded([("a.webp", b"x")] * 2)


# ------------------------------------------------------------------------------------------
# EXIF

# The top left quarter is red, the top right green, the bottom left blue.
QUARTERS = np.zeros((16, 16, 3), np.uint8)
QUARTERS[:8, :8, 0] = QUARTERS[:8, 8:, 1] = QUARTERS[8:, :8, 2] = 255
# Pillow reads this, but cannot write it again: -1/0 where rational numbers must not be negative.
RESOLUTION = (0x11A, 10, 1, struct.pack("<ii", -1, 0))


def exif(turn, *more):
    """Return an EXIF table with an orientation and further fields (tag, type, count, content)."""
    fields = [(0x112, 3, 1, struct.pack("<HH", turn, 0)), *more]
    head, behind = struct.pack("<H", len(fields)), b""
    after = 8 + 2 + 12 * len(fields) + 4
    for tag, kind, count, content in fields:
        if len(content) > 4:
            content, behind = struct.pack("<I", after + len(behind)), behind + content
        head += struct.pack("<HHI", tag, kind, count) + content
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + head + struct.pack("<I", 0) + behind


def colours(image):
    """Return the colours of the four quarters, as letters."""
    means = image.reshape(2, 8, 2, 8, 3).mean((1, 3)).reshape(4, 3)
    return "".join("rgbk"[int(mean.argmax()) if mean.max() > 128 else 3] for mean in means)


TURNED = {1: "rgbk", 2: "grkb", 3: "kbgr", 4: "bkrg", 5: "rbgk", 6: "brkg", 7: "kgbr", 8: "gkrb"}


@pytest.mark.parametrize("turn", TURNED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_turns(turn, kind):
    """The result equals that of Pillow's exif_transpose, also where that function fails."""
    if kind == "TIFF":
        content = saved(Image.fromarray(QUARTERS), kind, tiffinfo={0x112: turn})
    else:
        content = saved(Image.fromarray(QUARTERS), kind, exif=exif(turn))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    images = decoded([("a", content)] * 2, 16, 3)
    assert np.array_equal(images[0], upright)
    assert colours(images[0]) == TURNED[turn]
    if kind == "TIFF":
        return
    content = saved(Image.fromarray(QUARTERS), kind, exif=exif(turn, RESOLUTION))
    if turn > 1:
        with pytest.raises(struct.error):
            ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert np.array_equal(decoded([("a", content)] * 2, 16, 3)[0], upright)


BAD_EXIF = {
    "no table": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "no order": b"Exif\0\0XX*\0\x08\0\0\0",
    "cut short": exif(1, RESOLUTION)[:20],
    "two numbers": exif(1, (0x112, 3, 2, struct.pack("<HH", 6, 6))),
    "a text": exif(1, (0x112, 2, 1, b"6\0\0\0")),
    "nine": exif(9),
    "endless": exif(1, (0x11A, 5, 2**31, struct.pack("<I", 8))),
    "beyond the end": exif(1, (0x11A, 5, 1, struct.pack("<I", 2**30))),
}


@pytest.mark.parametrize("case", BAD_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_turns_nothing(case, kind):
    content = saved(Image.fromarray(QUARTERS), kind, exif=BAD_EXIF[case])
    assert colours(decoded([("a", content)] * 2, 16, 3)[0]) == TURNED[1]


def test_exif_that_keeps_pillow_from_opening(tmp_path):
    """A JPEG is decoded although Pillow refuses its EXIF, where the resolution is a letter."""
    odd = exif(6, (0x128, 3, 1, struct.pack("<HH", 2, 0)), (0x11A, 2, 1, b"6\0\0\0"))
    content = saved(Image.fromarray(QUARTERS), "JPEG", exif=odd)
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(content))
    (tmp_path / "a.jpg").write_bytes(content)
    images = decoded([("a", content)] * 2, 16, 3)
    assert colours(images[0]) == TURNED[1]
    assert pictures._open("a", tmp_path / "a.jpg", "RGB").size == (16, 16)
    with pytest.raises(UsageError, match="a is not a readable image"):
        decoded([("a", content[:30])] * 2)
