"""The kinds of pictures that are read, by the suffixes of their names.

These are all kinds that Pillow registers and decodes by itself, except those whose decoder starts
another program (EPS: Ghostscript) or asks the system or a third-party handler (WMF, EMF, BUFR,
GRIB, HDF5), that Pillow only recognizes or only writes (MPEG, PDF, Palm), that contain a picture of
another kind (IPTC, MIC, FPX), or that need far more memory than their pixels (FITS).
"""

import functools

from PIL import Image, features

# Recognized reliably by their first bytes, so they are decoded whatever suffix the name has.
SURE = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
}
# With few or no such bytes: damaged files of another kind may look like them. So they are decoded
# only if the name has their suffix.
NAMED = {
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "DIB": (".dib",),
    "PCX": (".pcx",),
    "DCX": (".dcx",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "QOI": (".qoi",),
    "ICO": (".ico",),
    "ICNS": (".icns",),
    "CUR": (".cur",),
    "PSD": (".psd",),
    "DDS": (".dds",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "IM": (".im",),
    "MSP": (".msp",),
    "FLI": (".fli", ".flc"),
    "PCD": (".pcd",),
    "PIXAR": (".pxr",),
    "GBR": (".gbr",),
    "BLP": (".blp",),
    "FTEX": (".ftc", ".ftu"),
}
SUFFIXES = tuple(suffix for kinds in (SURE, NAMED) for group in kinds.values() for suffix in group)
MAIN = "images (.png, .jpg, .jpeg, .webp, .gif, .bmp, .tif, .avif, ...)"  # in error messages
# The suffixes that pdfast 0.1.0 read.
OLD_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Kinds that a build of Pillow may lack, with their names in its `features`.
OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}


def suffix(name: str) -> str:
    """Return the lower-case suffix of a name, with its dot; "" if it has none."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 and "/" not in name[dot:] else ""


@functools.cache
def formats(suffix: str) -> tuple[str, ...]:
    """Return Pillow's names of the kinds that may be decoded under a suffix."""
    Image.init()  # fills Image.OPEN
    kinds = [*SURE, *(kind for kind, suffixes in NAMED.items() if suffix in suffixes)]
    return tuple(kind for kind in kinds if kind in Image.OPEN)


def lacking(suffix: str) -> str:
    """Return the kind of a suffix if this build of Pillow cannot decode it; else ""."""
    for kind, feature in OPTIONAL.items():
        if suffix in SURE[kind] and not (kind in Image.OPEN and features.check(feature)):
            return kind
    return ""
