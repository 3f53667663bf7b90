"""The contents of a run's report: tables, pictures and texts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pdfast.console.messages import counted
from pdfast.console.progress import short
from pdfast.data.image_grid import Row
from pdfast.errors import printable
from pdfast.evaluation.detectors.opening import without_network
from pdfast.evaluation.evaluator import SampleMetrics
from pdfast.evaluation.floor import far_above
from pdfast.evaluation.provenance import Facts
from pdfast.evaluation.report.html import Table, View
from pdfast.evaluation.report.plots import NUM_SHOWN, gallery
from pdfast.evaluation.report.price import Line, Panel
from pdfast.evaluation.sweep import Measured, StepSweep
from pdfast.models.model import Model
from pdfast.runs import watched_loss
from pdfast.runs.run import Run
from pdfast.runs.spent import Account, Spent
from pdfast.runs.watched_loss import MEANING, WORDS

QUICK = (
    "Round 0 is the teacher's training. The quick distance is of 256 images in at most 16 steps, "
    "for comparing rounds only. {loss} This loss may rise in rounds of many steps, whose students "
    "start close to their teachers; a smaller distill.lr keeps it lower. Signal / rounding: at the "
    "start of a round, the distance between target and student in v, divided by the error that the "
    "networks' rounding adds to it (medians over a fixed batch of training images). If it is not "
    "well above 1, a round learns little at this precision."
)

EVALUATIONS = (
    "Evaluations: forward passes of a network, each for one image, that the training has taken so "
    "far; a backward pass counts as two more, and repeating the forward "
    "pass for it (checkpoint) counts too. The teacher's evaluations are those of its training. A "
    "student's are those of all rounds up to its own: they include the teachers' forward passes "
    "and the choice among averages, but not the first teacher's training. Seconds are counted in "
    "the same way."
)
NOT_RECORDED = "\u2013"

Curve = dict[int, Measured]  # by steps


def as_json(sweep: StepSweep, facts: Facts, curves: dict[str, Curve]) -> dict[str, Any]:
    """Return the contents of report.json or eval.json.

    They are metric, floor, facts, and {steps: distance} by name; "scores" with a detector's
    network, and "classes" of conditional models, also by name and steps.

    Args:
        sweep: The sweep, with its evaluator.
        facts: How the figures were measured.
        curves: The measured curves, by name.
    """

    def by_steps(value: Callable[[Measured], Any]) -> dict[str, Any]:
        return {
            name: {str(k): value(m) for k, m in sorted(c.items())} for name, c in curves.items()
        }

    evaluator = sweep.evaluator
    table = {
        "metric": evaluator.metric,
        "floor": sweep.floor,
        "floor_std": sweep.floor_std,
        "images": evaluator.num,
        "facts": facts.table(),
        **by_steps(lambda m: m.distance),
    }
    if evaluator.detector.weights:
        table["scores"] = by_steps(lambda m: scores_of(m.figure))
    if evaluator.classes or evaluator.num_left_out:
        table["classes"] = {
            "left_out": evaluator.num_left_out,
            "floor": {str(label): of.floor for label, of in evaluator.classes.items()},
            **by_steps(lambda m: m.figure.table()["classes"]),
        }
    return table


def scores_of(figure: SampleMetrics) -> dict[str, float]:
    """Return all figures except the distances, by name."""
    found: dict[str, float] = {}
    if figure.inception_score is not None:
        score = figure.inception_score
        found |= {"inception_score": score.mean, "inception_score_std": score.std}
    if figure.manifold is not None:
        found |= figure.manifold._asdict()
    return found


@dataclass(frozen=True)
class Report:
    """The measurements of a run."""

    run: Run
    sweep: StepSweep
    model: Model
    """The teacher, which gives the kind of the samples."""
    data: Tensor
    """The first images of the set."""
    facts: Facts
    teacher: Curve
    student: Curve = field(default_factory=dict)
    """The students, each at its own number of steps."""

    @property
    def curves(self) -> dict[str, Curve]:
        """The curves of teacher and students, by name."""
        return {"teacher": self.teacher, "student": self.student}

    def account(self) -> Account:
        """Return the evaluations and seconds of the run's phases."""
        return Account(self.run.metrics())

    def evaluations(self) -> dict[str, dict[str, int | None]]:
        """Return the network evaluations of each row, by name and steps, for report.json."""
        account = self.account()
        return {
            "teacher": {str(k): account.teacher.evaluations for k in self.teacher},
            "student": {str(k): account.student(k).evaluations for k in sorted(self.student)},
        }

    @property
    def title(self) -> str:
        """Title of the page."""
        return f"{self.run.config.name}: {self.sweep.evaluator.metric} against sampling steps"

    @property
    def summary(self) -> str:
        """First paragraph of the page, on how the distances were measured."""
        sweep, evaluator = self.sweep, self.sweep.evaluator
        of = "the data" if evaluator.metric == "FD-raw" else "all images"
        clipped = "clipped " if self.model.clip else ""
        return (
            f"{evaluator.num} samples (seed {evaluator.seed}, {clipped}DDIM) against {of}. "
            f"Resampled data scores {sweep.floor:.3f} +- {sweep.floor_std:.3f}, the floor."
            + self.facts.rank_note
            + self._guidance_note
            + (f" {said[0].upper()}{said[1:]}." if (said := self.far_above) else "")
        )

    @property
    def far_above(self) -> str:
        """Sentence on a teacher that this run trained, far above the floor; "" for any other.

        Guidance moves samples away from the data, so that it says nothing of a guided teacher.
        """
        if self.account().teacher.seconds is None or self.run.config.eval.guidance:
            return ""
        steps, metric = self.run.config.eval.baseline_steps, self.sweep.evaluator.metric
        distance = self.teacher[steps].distance
        return far_above(distance, self.sweep.floor, f"{metric} at {counted(steps)}", steps)

    @property
    def _guidance_note(self) -> str:
        """Note on the cost of guidance; "" without guidance."""
        if self.model.calls == 1:
            return ""
        weight = self.run.config.eval.guidance
        return (
            f" Guidance has weight {weight:g}: the teacher is evaluated twice per step, with and "
            "without the class, the students once."
        )

    # -- tables ----------------------------------------------------------------------------

    def distances(self) -> Table:
        """Return the table of distance and cost at each number of steps."""
        steps = "steps = network calls" if self.model.calls == 1 else "steps"
        header = [steps, "teacher", "student", "ms/image, teacher", "student"]
        header += ["evaluations, teacher", "student", "seconds, teacher", "student"]
        account = self.account()

        def cells(found: Measured | None, spent: Spent) -> tuple[str, ...]:
            if found is None:
                return "", "", "", ""
            timed = short(1000 * found.seconds, 2)
            return f"{found.distance:.3f}", timed, *spent_cells(spent)

        lines = []
        for k, of_teacher in self.teacher.items():
            both = (
                cells(of_teacher, account.teacher),
                cells(self.student.get(k), account.student(k)),
            )
            lines.append([str(k), *(cell for pair in zip(*both, strict=True) for cell in pair)])
        return header, lines

    @property
    def distances_note(self) -> str:
        """Explanation of the columns of `distances`."""
        return evaluations_note(self.distances())

    def price(self) -> list[Panel] | None:
        """Return the plot of distance against evaluations; None if none were recorded."""
        account, evaluator = self.account(), self.sweep.evaluator
        quick = {m["round"]: m for m in self.run.metrics() if "distance" in m}

        def line(name: str, distances: dict[int, float], joined: bool) -> Line:
            known = {k: account.student(k).evaluations for k in distances}
            points = [(n, d, k) for k, d in distances.items() if (n := known[k]) is not None]
            return Line(name, sorted(points), joined)

        after = {m["steps"]: m["distance"] for r, m in quick.items() if r and "steps" in m}
        rounds = line("after each round, quick", after, joined=True)
        judged = {k: m.distance for k, m in self.student.items()}
        final = line(f"this report, {evaluator.num:,} samples", judged, joined=False)
        if not rounds.points and not final.points:
            return None
        levels = [("resampled data (floor)", self.sweep.floor)]
        of_teacher = [("teacher, quick", quick[0]["distance"])] if 0 in quick else []
        metric, of_rounds = evaluator.metric, without_network(evaluator.data).metric
        if metric == of_rounds:
            return [Panel(metric, [rounds, final], [*of_teacher, *levels])]
        return [Panel(of_rounds, [rounds], of_teacher), Panel(metric, [final], levels)]

    def scores(self) -> Table | None:
        """Return Inception score, precision and recall; None without a detector's network."""
        names = list(scores_of(next(iter(self.teacher.values())).figure))
        if not names:
            return None
        shown = [name.replace("_", " ") for name in names]
        header = ["steps", *(f"{who}: {name}" for who in self.curves for name in shown)]
        lines = []
        for k in self.teacher:
            line = [str(k)]
            for curve in self.curves.values():
                found = scores_of(curve[k].figure) if k in curve else {}
                line += [f"{found[name]:.3f}" if found else "" for name in names]
            lines.append(line)
        return header, lines

    def classes(self) -> Table | None:
        """Return the table of distance by class; None for an unconditional model."""
        evaluator = self.sweep.evaluator
        if not evaluator.classes:
            return None
        columns = [
            (f"{who}, {counted(k)}", m) for who, c in self.curves.items() for k, m in c.items()
        ]
        told = evaluator.set_classes
        assert told is not None
        header = ["class", "name", "images", "floor", *(name for name, _ in columns)]
        lines = [
            [str(label), printable(told.name(label)), f"{told.counts[label]:,}", f"{of.floor:.3f}"]
            + [f"{measured.figure.classes[label]:.3f}" for _, measured in columns]
            for label, of in sorted(evaluator.classes.items())
        ]
        return header, lines

    @property
    def classes_note(self) -> str:
        """Note on classes left out of `classes`; "" if none are."""
        evaluator = self.sweep.evaluator
        if not evaluator.num_left_out:
            return ""
        return (
            f"Left out: {evaluator.num_left_out} of the classes, each of which has fewer than the "
            f"{evaluator.width + 1:,} images, or samples, that {evaluator.metric} needs."
        )

    def measured(self) -> Table:
        """Return the table of how the figures were measured."""
        return ["what", "value"], self.facts.rows()

    def rounds(self) -> Table:
        """Return the table of the rounds, from the metrics."""
        logged, config = self.run.metrics(), self.run.config
        quick = {m["round"]: m["distance"] for m in logged if "distance" in m}
        name = watched_loss.logged(logged)
        header = ["round", "steps", "updates", f"{WORDS[name]}, start", "end"]
        header += ["quick distance", "updates/s", "signal / rounding"]
        chosen = any("chosen" in m for m in logged)  # among averages and raw weights
        header += ["student"] if chosen else []
        lines = []
        for m in logged:
            if f"{name}_end" not in m:
                continue
            r, steps = m["round"], m.get("steps", 0)
            updates = config.distill.updates_of(steps) if steps else config.train.updates
            rate = updates / m["seconds"] if m["seconds"] else 0.0
            losses = [f"{m[f'{name}_{at}']:.3g}" for at in ("start", "end")]
            distance = f"{quick[r]:.3f}" if r in quick else ""
            numbers = [str(r), str(steps or ""), str(updates), *losses, distance]
            line = [*numbers, short(rate, 3), _learnable(m)]
            lines.append([*line, *([_chosen(m)] if chosen else [])])
        return header, lines

    @property
    def rounds_note(self) -> str:
        """Explanation of the columns of `rounds`."""
        return QUICK.format(loss=MEANING[watched_loss.logged(self.run.metrics())])

    def rows(self) -> list[Row]:
        """Return the rows of samples/compare.png: data, teacher at the baseline, students."""
        baseline = self.run.config.eval.baseline_steps
        shown = [("data", self.data), self._row(baseline)]
        for k in self.student:
            shown += [] if k == baseline else [self._row(k)]
            shown.append(self._row(k, student=True))
        return [(caption, samples[:NUM_SHOWN]) for caption, samples in shown]

    def _row(self, k: int, student: bool = False) -> Row:
        found, name = (self.student, "student") if student else (self.teacher, "teacher")
        return f"{name}, {counted(k)}", found[k].samples

    def views(self) -> list[View]:
        """Return the pictures of teacher and student at each number of steps, for the page."""
        metric, found = self.sweep.evaluator.metric, []
        for k, of_teacher in self.teacher.items():
            pictures, captions = [], []
            for name, of in (("teacher", of_teacher), ("student", self.student.get(k))):
                said = "none has this number of steps" if of is None else (
                    f"{metric} {of.distance:.3f}, {short(1000 * of.seconds, 2)} ms/image"
                )  # fmt: skip
                captions.append(f"{name}, {counted(k)}: {said}")
                picture = None if of is None else gallery(self.model, of.samples, self.data)
                pictures.append(picture)
            found.append(View(k, pictures[0], pictures[1], (captions[0], captions[1])))
        return found


def spent_cells(spent: Spent) -> tuple[str, str]:
    """Return evaluations and seconds as cells of a table."""
    evaluations, seconds = spent.evaluations, spent.seconds
    return (
        NOT_RECORDED if evaluations is None else f"{evaluations:,}",
        NOT_RECORDED if seconds is None else short(seconds, 3),
    )


def evaluations_note(table: Table) -> str:
    """Return an explanation of a table's evaluations."""
    unknown = any(NOT_RECORDED in row for row in table[1])
    return EVALUATIONS + (f" {NOT_RECORDED}: not recorded." if unknown else "")


def _chosen(m: dict[str, Any]) -> str:
    """Return the candidate that was chosen as a round's student, or ""."""
    if "chosen" not in m:
        return ""
    return f"EMA {m['chosen']:g}" if m["chosen"] else "raw"


def _learnable(m: dict[str, Any]) -> str:
    """Return a round's signal, its rounding and their ratio, or ""."""
    if "signal" not in m:
        return ""
    if m["rounding"] is None:
        return f"{m['signal']:.2g}"
    ratio = short(m["signal"] / m["rounding"], 3) if m["rounding"] else "exact"
    return f"{m['signal']:.2g} / {m['rounding']:.2g} = {ratio}"
