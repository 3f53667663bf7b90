"""Evaluation of models at several numbers of sampling steps, with saved results."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pdfast.console.messages import counted
from pdfast.distributed import collectives
from pdfast.distributed.signals import poll
from pdfast.errors import AGAIN
from pdfast.evaluation import resume
from pdfast.evaluation.evaluator import Evaluator, SampleMetrics
from pdfast.evaluation.resume import EvalState, Finished, Part
from pdfast.models.model import SAMPLE_BATCH, Model
from pdfast.runs.run import Run
from pdfast.storage import staging

NUM_KEPT = 64  # samples shown in the report
STOPPED = f"finished models are whole, samples are saved; {AGAIN}"
PART = 4  # batches of each process between two saves


@dataclass(frozen=True)
class Measured:
    """Results of a model at one number of sampling steps."""

    figure: SampleMetrics
    """Metrics of the samples."""
    seconds: float
    """Seconds of sampling per image."""
    samples: Tensor
    """The first samples as stored, (N, H, W, C) on the CPU; in the first process only."""

    @property
    def distance(self) -> float:
        """Frechet distance of the samples from the data."""
        return self.figure.distance


class StepSweep:
    """Evaluates models. Every method is called by all processes."""

    def __init__(self, evaluator: Evaluator, run: Run) -> None:
        """Compute the floor of the distance, and print it.

        Args:
            evaluator: Computes the metrics.
            run: The run whose folder keeps the results. Results of earlier evaluations are reused.

        Raises:
            OtherVersion: A newer version of pdfast wrote the kept results.
        """
        self.evaluator, self.screen = evaluator, run.screen
        self._folder = run.path / resume.FOLDER
        collectives.from_first(self._begin)
        if evaluator.detector.warning:
            run.screen.warn(evaluator.detector.warning)
        self.floor, self.floor_std = evaluator.floor()
        run.screen.say(
            f"{evaluator.metric} {self.floor:8.4f}  resampled data (floor, +- {self.floor_std:.4f})"
        )
        left_out, least = collectives.from_first(
            lambda: [evaluator.num_left_out, evaluator.width + 1]
        )
        if left_out:
            run.screen.say(
                f"no distance for {left_out} class{'es' * (left_out > 1)}: {evaluator.metric} of a "
                f"class needs at least {least:,} images and {least:,} samples"
            )

    def __call__(self, name: str, model: Model, steps: Iterable[int]) -> dict[int, Measured]:
        """Evaluate a model at each of some numbers of sampling steps.

        Args:
            name: The model's name on the screen.
            model: The model.
            steps: Numbers of sampling steps.

        Returns:
            The results, by number of steps.

        Raises:
            Stopped: A signal ended the evaluation; the samples so far are saved.
            PdfastError: The samples are not finite, or a file cannot be written.
        """
        marks = collectives.from_first(lambda: resume.fingerprints(model))
        return {k: self._measured(name, model, k, marks) for k in sorted(set(steps))}

    def _begin(self) -> None:
        staging.sweep(self._folder.parent)
        resume.check_format(self._folder)

    def clear(self) -> None:
        """Delete the saved samples of a finished report, but not its metrics."""
        collectives.from_first(lambda: resume.forget_samples(self._folder))

    def _state(self, marks: list[str], steps: int) -> EvalState:
        return EvalState(self._folder, marks, steps, self.evaluator.seed, self.evaluator.drawn)

    def _measured(self, name: str, model: Model, steps: int, marks: list[str]) -> Measured:
        evaluator, state = self.evaluator, self._state(marks, steps)
        shown = torch.empty(0)

        def finished() -> tuple[dict[str, Any], float] | None:
            nonlocal shown
            done = state.finished(evaluator.key())
            if done is None:
                return None
            shown = done.part.samples
            return done.figure.table(), done.part.seconds

        if (found := collectives.from_first(finished)) is not None:
            figure, seconds = SampleMetrics.from_table(found[0]), found[1]
        else:
            samples, seconds = self._sampled(name, model, steps, state)
            figure, shown = evaluator.figure(samples), samples[:NUM_KEPT].cpu()
            done = Finished(figure, Part(shown, seconds))
            collectives.from_first(lambda: state.finish(evaluator.key(), done))
        self.screen.say(f"{evaluator.metric} {figure.distance:8.4f}  {name}, {counted(steps)}")
        return Measured(figure, seconds / evaluator.num, shown)

    def _sampled(self, name: str, model: Model, steps: int, state: EvalState) -> Part:
        """Return all samples: the saved ones, and the missing ones, which are saved in parts."""
        evaluator = self.evaluator
        start, seconds = self._kept(model, state)
        done, parts = len(start), [start]
        size = PART * SAMPLE_BATCH * collectives.size()
        missing = [(k, min(size, evaluator.num - k)) for k in range(done, evaluator.num, size)]
        calls = steps * sum(model.calls_for(num) for _, num in missing)
        before = steps * model.calls_for(done)
        with self.screen.task(f"sampling {name}, {counted(steps)}", before + calls, before) as task:

            def on_step() -> None:
                poll(STOPPED)
                task.advance()

            for first, num in missing:
                part = self._part(model, steps, first, num, on_step)
                collectives.from_first(partial(state.keep, first, part))
                parts.append(part.samples)
                seconds += part.seconds
        return Part(torch.cat(parts), seconds)

    def _kept(self, model: Model, state: EvalState) -> Part:
        """Return the saved samples, from the first on, in every process."""
        found: list[Part] = []

        def read() -> tuple[int, float]:
            found.extend(state.parts(self.evaluator.num))
            return sum(len(part.samples) for part in found), sum(part.seconds for part in found)

        num, seconds = collectives.from_first(read)
        like = self.evaluator.data.images
        samples = torch.empty(num, *like.shape[1:], dtype=like.dtype, device=model.device)
        if found:
            samples.copy_(torch.cat([part.samples for part in found]))
        if num:
            collectives.broadcast([samples])
        return Part(samples, seconds)

    def _part(
        self, model: Model, steps: int, first: int, num: int, on_step: Callable[[], None]
    ) -> Part:
        start = time.perf_counter()
        made = self.evaluator.sampled(model, steps, num, first, on_step)
        return Part(made, time.perf_counter() - start)
