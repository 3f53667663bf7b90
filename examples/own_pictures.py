"""Distil a student of your own pictures: from a folder to grids of samples.

    python examples/own_pictures.py photos [--out runs/photos] [--size 16] [--config mine.toml]

Prepares the folder, trains a small teacher, distils it from 64 steps to 2, and writes grids of
samples. The same command resumes an interrupted run. With --config, network and loops come from
a TOML file; the other flags replace single settings.
"""

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import pdfast
from pdfast.config import Config, DistillConfig, EvalConfig, NetConfig, TrainConfig
from pdfast.data.image_grid import grid

# Small enough for a CPU. More channels and updates make better pictures.
CONFIG = Config(
    name="own_pictures",
    model=NetConfig(
        image_size=16,
        channels=3,
        ch=32,
        emb_ch=128,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(),  # in the middle alone, which fits any --size
        groups=8,
    ),
    train=TrainConfig(updates=600, batch=32, lr=1e-3, warmup=100, anneal="linear", ema_decay=0.99),
    distill=DistillConfig(start_steps=64, rounds=5, updates=40, batch=32, lr=3e-4, warmup=20),
    eval=EvalConfig(steps=(2, 4, 8, 16), baseline_steps=64, num=256),
)


def parsed() -> argparse.Namespace:
    """The command line; a setting that is not given is None."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="pictures of any size, cropped to squares")
    parser.add_argument("--out", type=Path, help="run directory (default: runs/FOLDER)")
    parser.add_argument("--config", type=Path, help="a TOML file instead of the small network here")
    parser.add_argument("--size", type=int, help="height and width in pixels (default: 16)")
    parser.add_argument("--grey", action="store_true", help="pictures without colour")
    parser.add_argument("--updates", type=int, help="updates of the teacher (default: 600)")
    parser.add_argument("--rounds", type=int, help="halvings of the steps (default: 5, 64 to 2)")
    parser.add_argument(
        "--round-updates",
        type=int,
        help="updates of a round (default: 40; twice as many for 2 steps)",
    )
    parser.add_argument("--num", type=int, default=64, help="pictures in a grid (default: 64)")
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is no folder")
    if args.num < 1:
        parser.error(f"--num must be at least 1, not {args.num}")
    return args


def changed(table: Any, **given: Any) -> Any:
    """A table of the config with the settings that were given."""
    return replace(table, **{name: value for name, value in given.items() if value is not None})


def settings(args: argparse.Namespace, data: Path) -> Config:
    """The config of the run, its pictures those in the .npz `data`."""
    config = pdfast.load_config(args.config) if args.config else CONFIG
    return replace(
        config,
        data=replace(config.data, source=str(data)),
        model=changed(config.model, image_size=args.size, channels=1 if args.grey else None),
        train=changed(config.train, updates=args.updates),
        distill=changed(config.distill, rounds=args.rounds, updates=args.round_updates),
    )


def prepare(folder: Path, config: Config) -> None:
    """Crop and resize the pictures into the config's .npz, duplicates left out.

    A contact sheet lies beside it: look at it before you train for hours.
    """
    data = Path(config.data.source)
    command = [sys.executable, "-m", "pdfast", "data", str(folder), "--out", str(data), "--force"]
    command += ["--size", str(config.model.image_size), "--channels", str(config.model.channels)]
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)  # it has said why


def main() -> None:
    """Prepare the pictures, train, distil, and write the grids."""
    args = parsed()
    out = args.out or Path("runs") / args.folder.resolve().name
    try:
        config = settings(args, out.with_name(f"{out.name}-pictures.npz"))
        prepare(args.folder, config)
        teacher = pdfast.train(config, out=out)
        student = pdfast.distill(config, out=out)
    except pdfast.PdfastError as error:
        sys.exit(f"own_pictures: {error}")
    except KeyboardInterrupt:
        sys.exit("own_pictures: stopped; run the same command again to resume")

    print("\nfrom the same noise:")
    many, few = config.distill.start_steps, student.steps
    for name, model, steps in (
        ("teacher", teacher, many),
        ("teacher", teacher, few),
        ("student", student, few),
    ):
        pictures = torch.from_numpy(model.sample(args.num, steps, seed=0, output="np"))
        file = out / f"{name}-{steps}-steps.png"
        grid(pictures, columns=8).save(file)
        print(f"  {file}")
    print(f"the student: {next(out.glob(f'round-*-steps-{few:04}'))}")


if __name__ == "__main__":
    main()
