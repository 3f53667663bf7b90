"""Everything that needs a GPU, in parts: build, check, test, time; sized for 15 minutes of one GPU.

    python benchmarks/gpu_suite.py --out DIR                 all parts, the most important first
    python benchmarks/gpu_suite.py --out DIR --parts first   parts up to fashion: 10 minutes at most
    python benchmarks/gpu_suite.py --out DIR --parts rest    the other parts, on the existing build
    python benchmarks/gpu_suite.py --out DIR --parts update,norm --fashion fashion_mnist16.npz
    python benchmarks/gpu_suite.py --out DIR --dry-run       on a CPU: that every part would run

Every part has a time limit, and leaves its results even when it fails or runs out of time. After
each part the suite writes gpu_suite.json, gpu_suite.md, logs.tar.gz, and kernels-*.tsv of the
updates. The report names what is missing: compute-sanitizer, a peer, or the data of `fashion`.

The Python that runs this needs torch, triton, ninja, setuptools, pytest with its plugins benchmark,
timeout and xdist, hypothesis, and pdfast's requirements: nothing is installed, and the build stays
in the working tree.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from harness import table

ROOT = Path(__file__).parents[1]
# Time limits in seconds, in the order of the parts; `first` and `rest` are their names together.
FIRST = {"build": 50, "launch": 45, "gpu": 110, "soak": 60, "nccl": 35}
FIRST |= {"update": 125, "norm": 55, "fashion": 120}
REST = {"sampling": 40, "options": 100, "kernels": 65, "sanitize": 75, "compiled": 260}
LIMITS = FIRST | REST
DRY_LIMIT = 300
WORKERS = 8  # for tests that spend most of their time in compilers
LAUNCHES, SOAK = "tests/gpu/test_launches.py", "tests/gpu/test_soak.py"
NORM = "benchmarks/bench_group_norm_silu.py"
# Benchmarks of more than single ops.
WHOLE = ("bench_update", "bench_options", "bench_sampling", "bench_features")
OPTIONS = ("pipeline_teacher", "teacher_stream", "pipeline_teacher, teacher_stream")
OPTIONS += ("tabulate_film", "checkpoint", "accumulate 2")
SANITIZER, CHECKS = "compute-sanitizer", ("memcheck", "racecheck")


class Work(NamedTuple):
    """Settings that all parts share."""

    out: Path
    folder: Path
    """Folder for logs, rows and runs."""
    dry: bool
    fashion: Path | None
    """Path of fashion_mnist16.npz, or None."""

    def rows(self, part: str) -> Path:
        """Return the file for the measurements of a part's benchmarks."""
        return self.folder / f"{part}.rows.json"


def commands(work: Work) -> dict[str, list[str]]:
    """Return the command line of each part, in the order in which they run."""
    python, dry = [sys.executable, "-m"], work.dry
    really = [*python, "pytest", "-v", "--tb=short", "-rs"]
    tests = [*really, *["--collect-only"] * dry]
    on_gpu = "tests/gpu", "tests/kernels", "tests/models/test_backends.py"
    side_by_side = ["-n", str(WORKERS)] if not dry else []
    device, case = ("cpu", "digits") if dry else ("cuda:0", "cifar10")

    def bench(part: str, *what: str) -> list[str]:
        command = [*python, "pytest", "-q", "--benchmark-only", "--rows", str(work.rows(part))]
        return [*command, "--benchmark-columns=median,iqr,rounds", *["--quick"] * dry, *what]

    def updates(*names: str) -> list[str]:
        return [f"benchmarks/bench_update.py::test_update[{case}-{name}]" for name in names]

    build = "setup.py build_ext --inplace", f"-m pdfast doctor --device {device}"
    ops = [str(p) for p in sorted(ROOT.glob("benchmarks/bench_*.py")) if p.stem not in WHOLE]
    of_time = "pdfast-distill", "pdfast-train", "plain-distill", "plain-train"
    slow = "pdfast-compiled-distill", "reduce-overhead-distill", "pdfast-compiled-train"
    slow += "reduce-overhead-train", "max-autotune-distill"
    options = [f"benchmarks/bench_options.py::test_option[{case}-{name}]" for name in OPTIONS]
    # The smaller of the odd sizes: a sanitizer is 10 to 100 times slower.
    odd = f"{sys.executable} -m pytest -q tests/gpu/test_group_norm_silu.py "
    odd += "-k 'odd_sizes and bfloat16 and not 256'"
    checks = [f"{SANITIZER} --error-exitcode 9 --tool {tool} {odd}" for tool in CHECKS]
    return {
        "build": ["bash", "-c", " && ".join(f"{sys.executable} {command}" for command in build)],
        "launch": [*tests, *side_by_side, LAUNCHES],
        "gpu": [
            *tests,
            *side_by_side,
            "-m",
            "not slow",
            "--ignore",
            SOAK,
            "--ignore",
            LAUNCHES,
            *on_gpu,
        ],
        "soak": [*tests, "-s", SOAK],
        "nccl": [
            *really,
            "-s",
            "-k",
            device.removesuffix(":0"),
            "tests/training/test_one_process.py",
        ],
        "update": bench("update", "--kernels", str(work.out), *updates(*of_time)),
        "norm": bench("norm", "-k", "not compile", NORM),
        "fashion": fashion(work, device),
        "sampling": bench(
            "sampling", "benchmarks/bench_sampling.py", "benchmarks/bench_features.py"
        ),
        "options": bench("options", *options),
        "kernels": bench("kernels", "-k", "not group_norm or compile or residual", *ops),
        "sanitize": ["bash", "-c", " && ".join(checks)],
        "compiled": bench("compiled", "--compile", "--kernels", str(work.out), *updates(*slow))
        + ["--collect-only"] * dry,  # a CPU compiles for minutes
    }


def fashion(work: Work, device: str) -> list[str]:
    """Return the command for the whole run of configs/fashion_mnist16.toml, or a short dry run."""
    command = [sys.executable, "-m", "pdfast", "distill", "--config", "fashion_mnist16"]
    command += ["--data.source", str(work.fashion), "--out", str(work.folder / "fashion")]
    command += ["--precision", "bf16", "--device", device]
    if work.dry:
        command += ["--rounds", "2", "--train.updates", "3", "--distill.updates", "3"]
        return [*command, "--eval.steps", "1", "2", "--eval.num", "64"]
    return [*command, "--rounds", "13", "--eval.steps", "1", "2", "4", "8", "16", "64"]


def why_not(part: str, work: Work) -> str:
    """Return why a part cannot run here; empty if it can."""
    if part == "sanitize" and shutil.which(SANITIZER) is None:
        return f"left out: {SANITIZER} is not installed"
    if part == "fashion" and work.fashion is None:
        return "left out: its data is not here (--fashion fashion_mnist16.npz)"
    return ""


def run(part: str, work: Work) -> dict[str, object]:
    """Run one part under its limit; return how it ended, seconds, the log's end and the rows."""
    log, rows = work.folder / f"{part}.log", work.rows(part)
    report = {"status": why_not(part, work), "well": True, "seconds": 0.0, "tail": [], "rows": []}
    if report["status"]:
        print(f"{part}: {report['status']}", flush=True)
        return report
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # The command line sets GOMP_SPINCOUNT for itself; see pdfast/cli/main.py.
    environment = {"GOMP_SPINCOUNT": "1000", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if work.dry and part in ("gpu", "kernels"):  # Triton's ops
        environment["TRITON_INTERPRET"] = "1"
    limit, start = DRY_LIMIT if work.dry else LIMITS[part], time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            commands(work)[part],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            report |= {"status": f"exit {code}", "well": code == 0}
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # compilers and workers too
            process.wait()
            report |= {"status": f"stopped after {limit} s", "well": False}
    report["seconds"] = round(time.perf_counter() - start, 1)
    print(f"{part}: {report['status']}, {report['seconds']} s", flush=True)
    report["rows"] = json.loads(rows.read_text()) if rows.exists() else []
    report["tail"] = log.read_text(errors="replace").splitlines()[-12:]
    table_of_run = work.folder / "fashion" / "report.md"
    if part == "fashion" and table_of_run.exists():
        report["text"] = table_of_run.read_text()
    return report


def output_of(*words: str) -> str:
    """Return what a program prints, or why it could not run."""
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() or done.stderr.strip()
    except OSError as error:
        return str(error)


def facts() -> dict[str, str]:
    """Describe the machine and the software."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "none"
    there = torch.cuda.is_available()
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"]
    return {
        "gpu": torch.cuda.get_device_name(0) if there else "none",
        "driver": output_of(*query) if there else "none",
        "torch": torch.__version__,
        "triton": triton_version,
        "nvcc": output_of("nvcc", "--version").splitlines()[-1],
        "python": platform.python_version(),
        "commit": output_of("git", "rev-parse", "--short", "HEAD"),
        "date": time.strftime("%Y-%m-%d"),
    }


def markdown(report: dict[str, dict]) -> str:
    """Format the report for people."""
    lines = ["# GPU suite", ""] + [f"- {key}: {value}" for key, value in report["facts"].items()]
    lines += ["", "| part | result | seconds |", "|---|---|---:|"]
    parts = report["parts"]
    lines += [f"| {name} | {p['status']} | {p['seconds']} |" for name, p in parts.items()]
    lines += [f"| together | | {sum(p['seconds'] for p in parts.values()):.1f} |"]
    lines += ["", table([row for p in parts.values() for row in p["rows"]])]
    lines += [f"{p['text']}\n" for p in parts.values() if "text" in p]
    for name, part in parts.items():
        if not part["tail"]:
            continue
        lines += [f"### end of {name}'s log", "", "```", *part["tail"], "```", ""]
    return "\n".join(lines)


def write(report: dict[str, dict], work: Work) -> None:
    """Write all results so far."""
    (work.out / "gpu_suite.json").write_text(json.dumps(report, indent=1) + "\n")
    (work.out / "gpu_suite.md").write_text(markdown(report))
    with tarfile.open(work.out / "logs.tar.gz", "w:gz") as tar:
        for log in sorted(work.folder.glob("*.log")):
            tar.add(log, log.name)


def chosen(names: str) -> list[str]:
    """Return the chosen parts, in their order; raise ValueError for an unknown name."""
    sets = {"all": LIMITS, "first": FIRST, "rest": REST}
    asked = {part for name in names.split(",") for part in sets.get(name, [name])}
    if unknown := asked - set(LIMITS):
        known = ", ".join([*sets, *LIMITS])
        raise ValueError(f"no part {', '.join(sorted(unknown))}: choose from {known}")
    return [part for part in LIMITS if part in asked]


def why_not_built(dry: bool) -> str:
    """Return why the extension in the working tree cannot be used; empty if it can."""
    sys.path.insert(0, str(ROOT))
    from pdfast.kernels import group_norm_silu

    again = "run the part build first (--parts build,...)"
    if group_norm_silu.UNFIT:
        return f"{group_norm_silu.UNFIT.split(':')[0]}: {again}"
    if not group_norm_silu.HAS_CPU:
        return f"pdfast's extension is not built in {ROOT}: {again}"
    if not dry and not group_norm_silu.HAS_CUDA:
        return f"pdfast's extension in {ROOT} is built without CUDA: {again}"
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen parts; return 0 if every part that could run succeeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder without a report yet")
    names = ", ".join(LIMITS)
    parser.add_argument("--parts", default="all", help=f"all, first, rest, or some of {names}")
    parser.add_argument("--fashion", type=Path, help="fashion_mnist16.npz, made by pdfast data")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU")
    parser.add_argument("--list", action="store_true", help="print parts, limits, commands; stop")
    args = parser.parse_args(arguments)
    try:
        parts = chosen(args.parts)
    except ValueError as error:
        parser.error(str(error))
    if args.fashion and not args.fashion.is_file():
        parser.error(f"no file {args.fashion}")
    with tempfile.TemporaryDirectory() as folder:
        given = args.fashion.resolve() if args.fashion else None
        work = Work(args.out.resolve(), Path(folder), args.dry_run, given)
        if args.list:
            for part in parts:
                limit = DRY_LIMIT if args.dry_run else LIMITS[part]
                print(f"{part}, {limit} s at most: {' '.join(commands(work)[part])}")
            return 0
        if not args.dry_run and not torch.cuda.is_available():
            parser.error("torch sees no CUDA device; --dry-run tries the suite on a CPU")
        if (work.out / "gpu_suite.json").exists():
            parser.error(f"{args.out} holds a report already: choose another --out")
        if "build" not in parts and (reason := why_not_built(args.dry_run)):
            parser.error(reason)
        work.out.mkdir(parents=True, exist_ok=True)
        if args.dry_run and given is None:  # noise instead of clothes
            given = work.folder / "noise.npz"
            noise = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 1), np.uint8)
            np.savez(given, images=noise)
            work = work._replace(fashion=given)
        report: dict[str, dict] = {"facts": facts(), "parts": {}}
        for part in parts:
            report["parts"][part] = run(part, work)
            write(report, work)
            if part == "build" and not report["parts"][part]["well"]:
                print("the build failed: nothing else is tried", flush=True)
                break
    return int(not all(part["well"] for part in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
