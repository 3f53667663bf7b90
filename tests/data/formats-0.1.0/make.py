"""Write these fixtures: what a version of pdfast leaves of runs that are stopped, and their ends.

PYTHONPATH=<checkout of that version> python make.py <new folder>
"""

import json
import shutil
import signal
import sys
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

import pdfast
from pdfast import checkpoint, distillation, engine, evaluation, files, signals
from pdfast.errors import Stopped

CONFIG = """\
name = "old"
log_every = 3
save_every = 100
[data]
horizontal_flip = true
[model]
image_size = 8
channels = 1
num_classes = 10
ch = 4
emb_ch = 8
ch_mult = [1]
num_res_blocks = 1
attn_resolutions = []
groups = 2
dropout = 0.1
label_dropout = 0.25
[train]
updates = 12
batch = 8
lr = 4e-3
warmup = 2
ema_decay = 0.9
[distill]
start_steps = 8
rounds = 2
updates = 8
batch = 8
lr = 2e-3
ema_decay = 0.8
[eval]
steps = [1, 2]
baseline_steps = 2
num = 300
"""
MODELS = ("teacher", "round-01-steps-0004", "round-02-steps-0002")
SAMPLES = {"num": 5, "steps": 2, "seed": 3}
TIMING = {"images_per_s", "memory_mb", "seconds"}
FINISHED = 2  # sets of samples that the evaluation in progress has judged
distillation.MONITOR_IMAGES = 64  # as in conftest.py


class Linear(nn.Module):
    """A network of one's own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, z, logsnr, label):
        return self.layer(z)


def distill(config, out):
    pdfast.distill(config, out=out, threads=1, quiet=True)


def stopped(config, out, module, name, count):
    """A run, stopped as by SIGTERM at the end of the count-th call of `module.name`."""
    real, calls = getattr(module, name), iter(range(1, 10**9))

    def counted(*args, **kwargs):
        result = real(*args, **kwargs)
        if next(calls) == count:
            signals._requested = signal.SIGTERM
        return result

    setattr(module, name, counted)
    try:
        distill(config, out)
    except Stopped as error:
        print(error)
    finally:
        setattr(module, name, real)
        signals._requested = 0


def ended(config, run, work):
    """The same command again, on a copy: what it comes to."""
    copy = work / run.name
    shutil.copytree(run, copy)
    distill(config, copy)
    lines = map(json.loads, (copy / "metrics.jsonl").read_text().splitlines())
    return {
        "weights": {name: checkpoint.fingerprint(copy / name) for name in MODELS},
        "metrics": [{k: v for k, v in line.items() if k not in TIMING} for line in lines],
        "report": json.loads((copy / "report.json").read_text()),
    }


def cpu():
    """What the order of sums depends on, beside the versions."""
    info = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        info.setdefault(key.strip(), value.strip())
    wanted = ("vendor_id", "cpu family", "model", "cache size")
    found = {key: info.get(key, "") for key in wanted}
    return found | {"capability": torch.backends.cpu.get_cpu_capability()}


def main(folder):
    torch.set_num_threads(1)
    folder.mkdir()
    work = folder / "work"
    work.mkdir()
    config = folder / "config.toml"
    config.write_text(CONFIG)
    distill(config, work / "straight")
    stopped(config, folder / "training", engine, "update", 7)
    stopped(config, folder / "distilling", engine, "update", 12 + 5)
    keep = evaluation.EvalState
    stopped(config, folder / "evaluating", keep, "keep", 2 * FINISHED + 1)
    shutil.rmtree(folder / "evaluating" / "samples")  # pictures, which are made again
    ends, *others = (
        ended(config, folder / run, work) for run in ("training", "distilling", "evaluating")
    )
    assert all(other == ends for other in others)
    torch.manual_seed(0)
    pdfast.save(pdfast.Network(Linear(), shape=(4,), num_classes=3, clip=(-2, 2)), folder / "own")
    samples = {}
    for name in MODELS:
        assert checkpoint.fingerprint(folder / "evaluating" / name) == ends["weights"][name]
        samples[name] = checkpoint.load_model(folder / "evaluating" / name).sample(**SAMPLES)
    safetensors.torch.save_file(samples, folder / "samples.safetensors")
    table = {"made_with": files.versions() | cpu(), "samples": SAMPLES, "ends": ends}
    (folder / "ends.json").write_text(json.dumps(table, indent=1) + "\n")
    shutil.rmtree(work)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
