"""Everything that needs a GPU, in one command: build, test, time; one JSON and one Markdown file.

    python benchmarks/gpu_suite.py --out DIR                    at most an hour on one GPU
    python benchmarks/gpu_suite.py --out DIR --parts build,gpu  some of it
    python benchmarks/gpu_suite.py --out DIR --dry-run          on a CPU: that it would run

Every part has a time limit and leaves its results even when it fails or runs out of time; what
matters most comes first. Where compute-sanitizer or a peer is not installed, the report says so.
torch.compile runs in its default mode beside single ops, none of which is a matrix product, and as
max-autotune, which takes minutes, beside whole updates, in a part of its own. The Python that runs
this needs torch, triton, ninja, pytest with its plugins benchmark, timeout and xdist, hypothesis,
and what pdfast requires: nothing is installed but pdfast.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from harness import table

ROOT = Path(__file__).parents[1]
LIMITS = {"build": 180, "gpu": 480, "kernels": 400, "update": 400}  # seconds, in this order
LIMITS |= {"tests": 480, "options": 480, "compiled": 580, "sanitize": 300}
WORKERS = 8  # of the kernels' tests, most of whose time goes into compiling
WHOLE = ("bench_update", "bench_options")  # updates; the others time single ops
SANITIZER, CHECKS = "compute-sanitizer", ("memcheck", "racecheck")


def command(part: str, rows: Path, dry: bool) -> list[str]:
    """What a part runs; the timed ones write their rows to `rows`."""
    python = [sys.executable, "-m"]
    bench = [*python, "pytest", "-q", "--benchmark-only", "--rows", str(rows)]
    bench += ["--benchmark-columns=median,iqr,rounds", *(["--quick"] if dry else [])]
    kernels = [str(p) for p in sorted(ROOT.glob("benchmarks/bench_*.py")) if p.stem not in WHOLE]
    tests = [*python, "pytest", "-v", "--tb=short", "-rs", "-m", "not slow"]
    tests += ["--collect-only"] * dry
    # The smaller of the odd sizes: a sanitizer is 10 to 100 times slower.
    odd = [*python, "pytest", "-q", "tests/gpu/test_group_norm_silu.py"]
    odd += ["-k", "'odd_sizes and bfloat16 and not 256'"]
    case = "digits" if dry else "cifar10"
    checks = [f"{SANITIZER} --error-exitcode 9 --tool {t} {' '.join(odd)}" for t in CHECKS]
    return {
        "build": [*python, "pip", "install", "--no-build-isolation", "--no-deps", "-e", "."],
        "gpu": [*tests, "tests/gpu"],
        "tests": [*tests, "-n", str(WORKERS), "tests/kernels", "tests/test_peers.py"],
        "sanitize": ["bash", "-c", " && ".join(checks)],
        "kernels": [*bench, *kernels],
        "update": [*bench, "benchmarks/bench_update.py"],
        "options": [*bench, "benchmarks/bench_options.py"],
        "compiled": [*bench, "--compile", "-k", case, "benchmarks/bench_update.py"],
    }[part]


def run(part: str, out: Path, dry: bool) -> dict[str, object]:
    """One part under its limit: exit status, seconds, the log's end, and the measured rows."""
    rows, log = out / f"{part}.rows.json", out / f"{part}.log"
    interpreted = dry and part != "options"  # which would be too many updates
    environment = dict(os.environ, **({"TRITON_INTERPRET": "1"} if interpreted else {}))
    if part == "sanitize" and shutil.which(SANITIZER) is None:
        print(f"{part}: {SANITIZER} is not installed", flush=True)
        return {"status": f"{SANITIZER} is not installed", "seconds": 0, "tail": [], "rows": []}
    start = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            command(part, rows, dry),
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = f"exit {process.wait(LIMITS[part])}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {LIMITS[part]} s"
            os.killpg(process.pid, signal.SIGKILL)  # compilers and workers too
            process.wait()
    seconds = round(time.perf_counter() - start, 1)
    print(f"{part}: {status}, {seconds} s", flush=True)
    measured = json.loads(rows.read_text()) if rows.exists() else []
    rows.unlink(missing_ok=True)
    tail = log.read_text().splitlines()[-12:]
    return {"status": status, "seconds": seconds, "tail": tail, "rows": measured}


def output_of(*words: str) -> str:
    """What a program prints, or why it could not run."""
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() or done.stderr.strip()
    except OSError as error:
        return str(error)


def facts() -> dict[str, str]:
    """Where this ran."""
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
    """The report for people."""
    lines = ["# GPU suite", ""] + [f"- {key}: {value}" for key, value in report["facts"].items()]
    lines += ["", "| part | result | seconds |", "|---|---|---:|"]
    parts = report["parts"]
    lines += [f"| {name} | {p['status']} | {p['seconds']} |" for name, p in parts.items()]
    lines += ["", table([row for p in parts.values() for row in p["rows"]])]
    for name, part in parts.items():
        lines += [f"### end of {name}'s log", "", "```", *part["tail"], "```", ""]
    return "\n".join(lines)


def main() -> int:
    """Run the chosen parts; 0 if all ended well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(LIMITS), help="of " + ", ".join(LIMITS))
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU, interpreted")
    args = parser.parse_args()
    chosen = args.parts.split(",")
    if unknown := set(chosen) - set(LIMITS):
        parser.error(f"no part {', '.join(unknown)}: choose from {', '.join(LIMITS)}")
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; --dry-run tries the suite on a CPU")
    args.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, dict] = {"facts": facts(), "parts": {}}
    for part in chosen:
        report["parts"][part] = run(part, args.out, args.dry_run)
        (args.out / "gpu_suite.json").write_text(json.dumps(report, indent=1) + "\n")
        (args.out / "gpu_suite.md").write_text(markdown(report))
    bad = [p for p in report["parts"].values() if not p["status"].endswith(("exit 0", "installed"))]
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
