"""The kinds of pictures that are read, by the suffixes of their names.

They are all that Pillow registers and decodes by itself. Not taken are those whose decoder starts
another program (EPS: Ghostscript) or asks the system or a handler of somebody else's (WMF, EMF,
BUFR, GRIB, HDF5), that are only recognized or only written (MPEG, PDF, Palm), that open a picture
of a further kind inside (IPTC, MIC, FPX), or that need far more memory than their pixels (FITS).
"""

import functools

from PIL import Image, features

# Known by their first bytes: whatever a name says, a picture of these kinds is decoded.
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
# With few such bytes or none, so that damaged files of another kind may pass for them: decoded
# only where the name says so.
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
MAIN = "images (.png, .jpg, .jpeg, .webp, .gif, .bmp, .tif, .avif, ...)"  # in refusals
# As pdfast 0.1.0 had them.
OLD_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Those that a build of Pillow may be without, as its `features` calls them.
OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}


def suffix(name: str) -> str:
    """A name's suffix in small letters, with its dot; "" if it has none."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 and "/" not in name[dot:] else ""


@functools.cache
def formats(suffix: str) -> tuple[str, ...]:
    """What may be decoded under a suffix, by Pillow's names."""
    Image.init()  # which fills OPEN
    kinds = [*SURE, *(kind for kind, suffixes in NAMED.items() if suffix in suffixes)]
    return tuple(kind for kind in kinds if kind in Image.OPEN)


def lacking(suffix: str) -> str:
    """The kind of a suffix, if this Pillow cannot decode it; else ""."""
    for kind, feature in OPTIONAL.items():
        if suffix in SURE[kind] and not (kind in Image.OPEN and features.check(feature)):
            return kind
    return ""
