"""Which members of an archive are pictures, and why one that looks like a picture is skipped."""

from pdfast.data.readers.pictures import SUFFIXES
from pdfast.data.readers.reading import LeftOut

# Suffixes of pictures; those not in `SUFFIXES` are of kinds that are not read.
UNREAD = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".ico", ".svg", ".eps", ".psd", ".tga"),
    *(".pbm", ".pgm", ".pnm", ".ppm", ".exr", ".hdr", ".dng", ".nef"),
)


def is_picture(name: str, left_out: LeftOut, archive: str = "") -> bool:
    """Return whether a member is a picture to read; note a skipped one that looks like a picture.

    Args:
        name: The member's name.
        left_out: Where skipped members are noted.
        archive: The archive's name, if there may be several.
    """
    called = f"{archive}: {name}" if archive else name
    lower = name.lower()
    if not lower.endswith((*SUFFIXES, *UNREAD)):
        return False
    if any(part.startswith((".", "__MACOSX")) and part != "." for part in name.split("/")):
        left_out.add("hidden files", called)
    elif not lower.endswith(SUFFIXES):
        left_out.add("images of a kind that is not read", called)
    else:
        return True
    return False
