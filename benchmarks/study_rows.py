"""The rows of study_rounds.py: what is tried beside the config fashion_mnist16.

With the base's plan 940, 1440, 1940 and 2440 updates have been made when 8, 4, 2 and 1 steps are
reached. The `long` plans have as many, the `short` ones 0.6 of them: 564, 864, 1164 and 1464. Where
an update takes 4 network evaluations of an image in place of 5, since the data take the first step
of a target, they have 1.25 times as many.
"""

from typing import NamedTuple

BASE, TEACHER = "base", "teacher"


class Row(NamedTuple):
    """Settings that are tried."""

    flags: str
    """Of `pdfast distill`, beside --config."""
    seeds: tuple[int, ...] = (0,)


def plan(steps: str, updates: str) -> str:
    """Flags of a plan of rounds: "64 8 1" steps, of which the first is the teacher's, in so many
    updates each.
    """
    start, *made = steps.split()
    pairs = [f"{k} {n}" for k, n in zip(made, updates.split(), strict=True)]
    return (
        f"--distill.start-steps {start} --rounds {start},{','.join(made)} "
        f"--distill.round-updates {' '.join(pairs)}"
    )


HALVED = "64 32 16 8 4 2 1"
LONG = plan(HALVED, "140 300 500 500 500 500")
SHORT = plan(HALVED, " 80 160 324 300 300 300")
AS_BASE = "--rounds 13"
AVERAGES = "--distill.ema-decays 0.9 0.99 0.999"
RATE_2, RATE_4 = "--distill.lr 1e-3", "--distill.lr 2e-3"
FLAT = "--distill.anneal none"
WARMUP_10 = "--distill.warmup 10"
MOMENTS = "--distill.keep-moments"
HUBER = "--distill.loss huber"
# A live student's second step cannot be evaluated ahead; nor is there a teacher's to join with.
LIVE = "--engine.no-pipeline-teacher --distill.second student"
DATA = "--engine.no-pipeline-teacher --distill.first data"

ROWS = {
    # The config as it is.
    BASE: Row(AS_BASE, seeds=(0, 1, 2)),
    # Where to start: with the config's updates, with the first trial's, with the base's, with 0.6
    # of the base's.
    "start-256": Row("--distill.start-steps 256 --rounds 8"),
    "start-256-long": Row(plan("256 128 64 32 16 8 4 2 1", "60 80 120 240 440 500 500 500")),
    "start-64": Row(plan(HALVED, "100 150 250 500 500 500")),
    "start-64-long": Row(LONG),
    "start-64-short": Row(SHORT),
    # One setting of the base changed.
    "averages": Row(f"{AS_BASE} {AVERAGES}"),
    "huber": Row(f"{AS_BASE} {HUBER}"),
    "rate-2": Row(f"{AS_BASE} {RATE_2}"),
    "rate-4": Row(f"{AS_BASE} {RATE_4}"),
    "flat": Row(f"{AS_BASE} {FLAT}"),
    "warmup-10": Row(f"{AS_BASE} {WARMUP_10}"),
    "moments": Row(f"{AS_BASE} {MOMENTS}"),
    # Settings that may need each other: averages for a flat rate, kept moments for no warm-up.
    "averages-flat": Row(f"{AS_BASE} {AVERAGES} {FLAT}"),
    "averages-flat-rate-2": Row(f"{AS_BASE} {AVERAGES} {FLAT} {RATE_2}"),
    "moments-warmup-10": Row(f"{AS_BASE} {MOMENTS} {WARMUP_10}"),
    # The base's updates in other shares: few for the first rounds and many for the last, and the
    # other way round.
    "shares-late": Row(plan(HALVED, " 80 120 240 400 600 1000")),
    "shares-early": Row(plan(HALVED, "240 320 480 500 450  450")),
    # Half the batch, twice the updates.
    "batch-16": Row(f"{plan(HALVED, '280 600 1000 1000 1000 1000')} --distill.batch 16"),
    # 0.6 of the base's evaluations, with settings that may make up for it.
    "short-rate-2": Row(f"{SHORT} {RATE_2}"),
    "short-rate-4": Row(f"{SHORT} {RATE_4}"),
    "short-warmup-10-rate-2": Row(f"{SHORT} {WARMUP_10} {RATE_2}"),
    "short-moments-rate-2": Row(f"{SHORT} {MOMENTS} {WARMUP_10} {RATE_2}"),
    "short-averages-flat": Row(f"{SHORT} {AVERAGES} {FLAT}"),
    "short-averages-flat-rate-2": Row(f"{SHORT} {AVERAGES} {FLAT} {RATE_2}"),
    "short-huber-rate-2": Row(f"{SHORT} {HUBER} {RATE_2}"),
    # One wide round with the live student, to each number of steps.
    "wide-8": Row(f"{plan('64 8', '940')} {LIVE}"),
    "wide-4": Row(f"{plan('64 4', '1440')} {LIVE}"),
    "wide-2": Row(f"{plan('64 2', '1940')} {LIVE}"),
    "wide-1": Row(f"{plan('64 1', '2440')} {LIVE}"),
    "wide-8-short": Row(f"{plan('64 8', '564')} {LIVE}"),
    "wide-4-short": Row(f"{plan('64 4', '864')} {LIVE}"),
    "wide-2-short": Row(f"{plan('64 2', '1164')} {LIVE}"),
    "wide-1-short": Row(f"{plan('64 1', '1464')} {LIVE}"),
    # Two and three of them, and one for each halving.
    "wide-8-1": Row(f"{plan('64 8 1', '940 1500')} {LIVE}"),
    "wide-8-2": Row(f"{plan('64 8 2', '940 1000')} {LIVE}"),
    "wide-8-1-short": Row(f"{plan('64 8 1', '564 900')} {LIVE}"),
    "wide-8-2-short": Row(f"{plan('64 8 2', '564 600')} {LIVE}"),
    "wide-16-4-1": Row(f"{plan('64 16 4 1', '640 800 1000')} {LIVE}"),
    "wide-32-8-2": Row(f"{plan('128 32 8 2', '340 600 1000')} {LIVE}"),
    "wide-16-4-1-short": Row(f"{plan('64 16 4 1', '384 480 600')} {LIVE}"),
    "wide-32-8-2-short": Row(f"{plan('128 32 8 2', '204 360 600')} {LIVE}"),
    "live-halvings": Row(f"{LONG} {LIVE}"),
    "live-halvings-short": Row(f"{SHORT} {LIVE}"),
    # What else a live student may need.
    "wide-4-rate-2": Row(f"{plan('64 4', '1440')} {LIVE} {RATE_2}"),
    "wide-4-huber": Row(f"{plan('64 4', '1440')} {LIVE} {HUBER}"),
    "wide-4-averages": Row(f"{plan('64 4', '1440')} {LIVE} {AVERAGES}"),
    "wide-4-averages-flat": Row(f"{plan('64 4', '1440')} {LIVE} {AVERAGES} {FLAT}"),
    # The teacher's steps of a wide round. A run's first student starts as the teacher, so that
    # each number is a run.
    "teacher-16": Row(f"{plan('16 4', '1440')} {LIVE}"),
    "teacher-32": Row(f"{plan('32 4', '1440')} {LIVE}"),
    "teacher-256": Row(f"{plan('256 4', '1440')} {LIVE}"),
    "teacher-1024": Row(f"{plan('1024 4', '1440')} {LIVE}"),
    # The data take the first step: halvings with the teacher's second step, then consistency
    # training, in one wide round and in two.
    "data-halvings": Row(f"{plan(HALVED, '175 375 625 625 625 625')} {DATA}"),
    "data-8": Row(f"{plan('64 8', '1175')} {DATA} --distill.second student"),
    "data-4": Row(f"{plan('64 4', '1800')} {DATA} --distill.second student"),
    "data-1": Row(f"{plan('64 1', '3050')} {DATA} --distill.second student"),
    "data-8-1": Row(f"{plan('64 8 1', '1175 1875')} {DATA} --distill.second student"),
    "data-4-huber": Row(f"{plan('64 4', '1800')} {DATA} --distill.second student {HUBER}"),
}
"""By name; `--rows` of study_rounds.py takes them."""
