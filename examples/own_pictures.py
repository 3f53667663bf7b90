"""Distil a student of your own pictures: from a folder to grids of samples.

    python examples/own_pictures.py photos [--out runs/photos] [--size 16] [--config mine.toml]

Trains a small teacher, distils it from 64 steps to 4, and writes grids of samples. The same
command resumes an interrupted run. Network and loops come from the config pictures16, or with
--config from a TOML file; the other flags replace single settings.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import pdfast
from pdfast.config import Config
from pdfast.data.image_grid import grid


def parsed() -> argparse.Namespace:
    """The command line; a setting that is not given is None."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="pictures of any size, cropped to squares")
    parser.add_argument("--out", type=Path, help="run directory (default: runs/FOLDER)")
    parser.add_argument("--config", default="pictures16", help="a name, or a TOML file")
    parser.add_argument("--size", type=int, help="height and width in pixels")
    parser.add_argument("--grey", action="store_true", help="pictures without colour")
    parser.add_argument("--skip-bad", action="store_true", help="leave out unreadable pictures")
    parser.add_argument("--updates", type=int, help="updates of the teacher")
    parser.add_argument("--rounds", type=int, help="halvings of the steps")
    parser.add_argument("--round-updates", type=int, help="updates of each round")
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


def settings(args: argparse.Namespace) -> Config:
    """The config of the run, its pictures those of the folder."""
    config = pdfast.load_config(args.config)
    data = changed(config.data, source=str(args.folder), skip_bad=args.skip_bad or None)
    return replace(
        config,
        data=data,
        model=changed(config.model, image_size=args.size, channels=1 if args.grey else None),
        train=changed(config.train, updates=args.updates),
        distill=changed(config.distill, rounds=args.rounds, updates=args.round_updates),
    )


def main() -> None:
    """Train, distil, and write the grids."""
    args = parsed()
    out = args.out or Path("runs") / args.folder.resolve().name
    try:
        config = settings(args)
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
