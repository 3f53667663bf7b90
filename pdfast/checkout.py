"""Check that this copy of pdfast can run here. Used by setup.py too, so it imports no package."""

import pathlib
import sys

LINKED = ("kernels", "configs")  # symbolic links in the package to folders of the checkout's root


def why_not() -> str:
    """Return one sentence on why this copy cannot run, and the fix; empty if it can."""
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
