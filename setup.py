"""Build of pdfast. PyTorch must be installed first: extensions are compiled against it."""

import pathlib
import sys

from setuptools import find_namespace_packages, setup

try:
    import torch  # noqa: F401
except ImportError:
    sys.exit(
        "pdfast is built against the PyTorch that is installed, and this environment has none: "
        "install PyTorch first, then run pip install --no-build-isolation on pdfast."
    )

here = pathlib.Path(__file__).parent
version: dict[str, str] = {}
exec((here / "pdfast" / "version.py").read_text("utf-8"), version)

setup(
    name="pdfast",
    version=version["__version__"],
    description="Few-step diffusion sampling by progressive distillation",
    long_description=(here / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_namespace_packages(include=["pdfast", "pdfast.*"]),
    package_data={"pdfast": ["py.typed"], "pdfast.configs": ["*.toml"]},
    install_requires=[
        "torch>=2.6",
        "numpy>=2.0",
        "safetensors>=0.5",
        "Pillow>=11",
        "matplotlib>=3.9",
        "rich>=13.9",
        "tyro>=1.0",
        "tomli-w>=1.1",
    ],
    extras_require={
        "demo": ["scikit-learn>=1.5"],
        "test": ["pytest>=8", "pytest-timeout", "pytest-xdist", "hypothesis", "mypy", "ruff"],
    },
    entry_points={"console_scripts": ["pdfast = pdfast.cli:main"]},
)
