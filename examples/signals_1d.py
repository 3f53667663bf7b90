"""A custom network on signals: 64 numbers of a plucked string, sampled in 4 steps.

    python examples/signals_1d.py [--out runs/signals]

Trains a small 1-D network with pdfast's loop, distils it from 64 steps to 4, and prints the
distances of both, in about a minute on one CPU core. The same command resumes an interrupted run.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

import pdfast
from pdfast.config import Config, DistillConfig, EvalConfig, TrainConfig

LENGTH, PATCH, WIDTH, EMBED = 64, 4, 32, 64
PITCHES = torch.tensor([2.0, 3.0, 4.0, 6.0])  # periods in a signal


def plucked_strings(num: int, seed: int = 0) -> Tensor:
    """Make notes of four pitches, float32 (num, 1, 64), with an onset, harmonics and a decay."""
    g = torch.Generator().manual_seed(seed)
    t = torch.arange(LENGTH) / LENGTH
    pitch = PITCHES[torch.randint(len(PITCHES), (num, 1), generator=g)]
    onset = 0.35 * torch.rand(num, 1, generator=g)
    since = (t - onset).clamp(min=0)
    signal = torch.zeros(num, LENGTH)
    for k in (1, 2, 3):
        size = torch.rand(num, 1, generator=g) / k
        signal += size * torch.sin(2 * math.pi * k * pitch * since)
    decay = torch.exp(-(1 + 4 * torch.rand(num, 1, generator=g)) * since)
    return (1.5 * signal * decay)[:, None]


class Block(nn.Module):
    """Residual block: norm, dilated convolution, norm with FiLM, convolution."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, WIDTH), nn.GroupNorm(8, WIDTH)
        self.conv1 = nn.Conv1d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation)
        self.film = nn.Linear(EMBED, 2 * WIDTH)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """Transform features h (B, WIDTH, L) by an embedding (B, EMBED)."""
        scale, shift = self.film(emb)[:, :, None].chunk(2, dim=1)
        x = self.conv1(silu(self.norm1(h)))
        x = self.conv2(silu(self.norm2(x) * (1 + scale) + shift))
        return h + x


class SignalNet(nn.Module):
    """A network as pdfast expects it: (z, logsnr, label) -> v-hat."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv1d(2, WIDTH, PATCH, stride=PATCH)
        self.blocks = nn.ModuleList(Block(dilation) for dilation in (1, 2, 4, 1))
        self.embed = nn.Sequential(nn.Linear(32, EMBED), nn.SiLU())
        self.leave = nn.ConvTranspose1d(WIDTH, 1, PATCH, stride=PATCH)
        self.register_buffer("place", torch.linspace(-1, 1, LENGTH)[None, None])
        nn.init.zeros_(self.leave.weight)

    def forward(self, z: Tensor, logsnr: Tensor, label: Tensor | None = None) -> Tensor:
        """Predict v-hat (B, 1, 64) at z (B, 1, 64) and logsnr (B,); there are no classes."""
        angle = torch.atan(torch.exp(-0.5 * logsnr))[:, None]  # 0 (data) to pi/2 (noise)
        waves = angle * torch.arange(1, 17, dtype=z.dtype, device=z.device)
        emb = self.embed(torch.cat([waves.sin(), waves.cos()], dim=1))
        h = self.enter(torch.cat([z, self.place.expand(len(z), -1, -1)], dim=1))
        for block in self.blocks:
            h = block(h, emb)
        return self.leave(h)


CONFIG = Config(
    name="signals",
    train=TrainConfig(updates=1200, batch=64, lr=5e-3, warmup=50, anneal="linear", ema_decay=0.99),
    distill=DistillConfig(start_steps=64, rounds=4, updates=150, batch=64, lr=1e-3),
    eval=EvalConfig(steps=(1, 2, 4, 8), baseline_steps=32, num=1000),
)


def main() -> None:
    """Train the teacher, distil it, and print the distances of both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/signals"))
    out = parser.parse_args().out
    signals = plucked_strings(4000)
    torch.manual_seed(0)
    network = pdfast.Network(SignalNet(), shape=(1, LENGTH))
    given = {"data": signals, "out": out, "threads": 1}  # so small a network gains nothing from two
    teacher = pdfast.train(CONFIG, network=network, **given)
    student = pdfast.distill(CONFIG, teacher=teacher, **given)

    print("\nsteps  teacher  student   (distance from the data; lower is better)")
    report = json.loads((out / "report.json").read_text())
    for steps, distance in report["teacher"].items():
        own = report["student"].get(steps)
        print(f"{steps:>5}  {distance:7.3f}  {'' if own is None else f'{own:7.3f}'}")
    print(f"floor  {report['floor']:7.3f}\npicture: {out / 'samples' / 'compare.png'}")
    print(f"student.sample(16, steps=4): {tuple(student.sample(16, steps=4).shape)}")


if __name__ == "__main__":
    main()
