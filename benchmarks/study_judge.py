"""Judge students for study_rounds.py: distances of the same samples by all detectors.

    python benchmarks/study_judge.py CONFIG OUT.json STEPS=MODEL ...

`pdfast eval --detector lite0` finds the same distances, but also precision and recall. For those it
finds the neighbours of 50,000 images every time: minutes on a CPU, more than the rounds of a row.
"""

import dataclasses
import json
import sys
from pathlib import Path

from pdfast.config.schema import Config, load_config
from pdfast.data import digest
from pdfast.data.dataset import load_dataset
from pdfast.distributed import memory
from pdfast.distributed.device import choose_device
from pdfast.evaluation.evaluator import Evaluator
from pdfast.models.checkpoint import load_model
from pdfast.training.precision import set_precision

DETECTORS = ("pixel", "lite0")


def judge(config: Config, models: dict[int, Path], detectors: tuple[str, ...] = DETECTORS) -> dict:
    """Return, by detector, the distances by steps, as texts, and "floor"."""
    device = choose_device()
    set_precision(config.precision, device)
    data = digest.known(load_dataset(config.data, config.model))
    evaluators = [
        Evaluator.of(data, dataclasses.replace(config, eval=settings), device)
        for settings in (dataclasses.replace(config.eval, detector=name) for name in detectors)
    ]
    found = {
        name: {"floor": each.floor()[0]} for name, each in zip(detectors, evaluators, strict=True)
    }
    for steps, path in models.items():
        images = evaluators[0].sampled(load_model(path, device), steps, evaluators[0].num)
        for name, each in zip(detectors, evaluators, strict=True):
            found[name][str(steps)] = each.distance(images)
    return found


def main(args: list[str]) -> None:
    """Judge the models, and write the distances to a file."""
    memory.keep_freed()  # as the command line does
    config, out, *pairs = args
    models = {int(steps): Path(path) for steps, _, path in (pair.partition("=") for pair in pairs)}
    Path(out).write_text(json.dumps(judge(load_config(config), models), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
