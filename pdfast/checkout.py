"""Whether this copy of pdfast can run where it lies; imports nothing, for setup.py asks too."""

import pathlib
import sys

LINKED = ("kernels", "configs")  # folders at the top of a checkout, to which the package has links


def why_not() -> str:
    """What is wrong with it and what to do, in one sentence; empty if nothing is."""
    if sys.platform == "win32":
        return (
            "pdfast runs on Linux and macOS: on Windows, clone it anew inside WSL, and run it there"
        )
    package = pathlib.Path(__file__).parent
    broken = [str(package / name) for name in LINKED if not (package / name).is_dir()]
    if not broken:
        return ""
    return (
        f"{' and '.join(broken)} should be symbolic links to folders of the same names, and this "
        "checkout was made without such links: clone it anew with git clone -c core.symlinks=true, "
        "on a file system that has them, or put a copy of each folder in the place of its link"
    )
