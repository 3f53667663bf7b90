"""Build of pdfast. PyTorch must be installed first: extensions are compiled against it.

CXX names the compiler; TORCH_CUDA_ARCH_LIST the GPUs to build for (default: the ones present, else
Ampere, Hopper and Blackwell); MAX_JOBS limits the parallel compilations.
"""

import os
import pathlib
import shutil
import sys
import sysconfig
from collections.abc import Iterator

from setuptools import find_namespace_packages, setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    sys.exit(
        "pdfast is built against the PyTorch that is installed, and this environment has none: "
        "install PyTorch first, then run pip install --no-build-isolation on pdfast."
    )

DEFAULT_ARCHITECTURES = "8.0;9.0;10.0+PTX"
CPP_SOURCES = [
    "csrc/module.cpp",
    "csrc/group_norm_silu_op.cpp",
    "csrc/group_norm_silu_cpu.cpp",
    "csrc/group_norm_silu_avx2.cpp",
    "csrc/group_norm_silu_avx512.cpp",
]
CUDA_SOURCES = ["csrc/group_norm_silu.cu"]

here = pathlib.Path(__file__).parent
version: dict[str, str] = {}
exec((here / "pdfast" / "version.py").read_text("utf-8"), version)
# ninja may lie beside this Python without being on the PATH.
os.environ["PATH"] = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])


def why_nothing_is_compiled() -> str:
    """What this machine lacks to compile extensions; empty if nothing."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler ('{compiler}' is not on the PATH)"
    if not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python headers (Debian: python3-dev)"
    return ""


def has_nvcc() -> bool:
    """Whether CUDA sources can be compiled: a CUDA build of torch, and a toolkit."""
    home = cpp_extension.CUDA_HOME
    return bool(torch.version.cuda and home and (pathlib.Path(home) / "bin" / "nvcc").exists())


def extensions() -> Iterator[object]:
    """The extension module, for what this machine can compile."""
    flags = ["-O3", "-g0", "-fopenmp"]
    if lacking := why_nothing_is_compiled():
        print(f"pdfast: {lacking}: ops run as their PyTorch references", file=sys.stderr)
        return
    if not has_nvcc():
        yield cpp_extension.CppExtension(
            "pdfast._C", CPP_SOURCES, extra_compile_args=flags, extra_link_args=["-fopenmp"]
        )
        return
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or " ".join(
        sorted(
            {
                "{}.{}".format(*torch.cuda.get_device_capability(k))
                for k in range(torch.cuda.device_count())
            }
        )
    )
    macros = [
        ("PDFAST_CUDA", torch.version.cuda),
        ("PDFAST_CUDA_ARCHITECTURES", architectures.replace(";", " ")),
    ]
    yield cpp_extension.CUDAExtension(
        "pdfast._C",
        CPP_SOURCES + CUDA_SOURCES,
        define_macros=macros,
        extra_compile_args={"cxx": flags, "nvcc": ["-O3", "--threads", "2"]},
        extra_link_args=["-fopenmp"],
    )


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
    ext_modules=list(extensions()),
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    install_requires=[
        "torch>=2.6",
        "triton>=3.4; sys_platform == 'linux'",
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
        "test": [
            "pytest>=8",
            "pytest-benchmark>=5",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "mypy",
            "ruff",
        ],
    },
    entry_points={"console_scripts": ["pdfast = pdfast.cli:main"]},
)
