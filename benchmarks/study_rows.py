"""The rows of study_rounds.py: settings to try on the config study_rounds.toml.

`base` has batches of 32 and makes 940, 1440, 1940 and 2440 updates until 8, 4, 2 and 1 steps. The
other rows have batches of 16 and, unless they say otherwise, as many updates: half of the
evaluations. Most of them end at 4 steps. Where the data take the first step of a target, an update
takes 4 network evaluations of an image instead of 5, and there are 1.25 times as many updates.
"""

from typing import NamedTuple

BASE, TEACHER = "base", "teacher"


class Row(NamedTuple):
    """Settings to try."""

    flags: str
    """Flags of `pdfast distill`, besides --config."""
    seeds: tuple[int, ...] = (0,)


def plan(steps: str, updates: str) -> str:
    """Return the flags of a plan of rounds: the steps ("64 8 1"), the first of them the teacher's,
    and the updates of each round.
    """
    start, *made = steps.split()
    pairs = [f"{k} {n}" for k, n in zip(made, updates.split(), strict=True)]
    return (
        f"--distill.start-steps {start} --rounds {start},{','.join(made)} "
        f"--distill.round-updates {' '.join(pairs)}"
    )


HALF = "--distill.batch 16"
TO_1, TO_4 = f"--rounds 13 {HALF}", f"--rounds 11 {HALF}"
HALVED = "64 32 16 8 4"
FEW = "128 160 64 240 32 336 16 560 8 960 4 1200 2 1200 1 1200"
MANY = "128 260 64 400 32 560 16 930 8 1600 4 2000 2 2000 1 2000"
FROM_256 = "--distill.start-steps 256 --rounds 256,128,64,32,16,8,4,2,1"
# Rates of the early rounds, whose student starts near its target: larger ones drive it away.
SLOW = (
    "--distill.round-lr 4096 5e-6 2048 5e-6 1024 1e-5 512 1e-5 256 2e-5 128 5e-5 64 1e-4 32 2e-4 "
    "16 3e-4"
)
SHARES = "--distill.round-updates 64 100 32 150 16 250 8 385 4 600 2 600 1 600"
AVERAGES = "--distill.ema-decays 0.9 0.99 0.999"
FLAT = "--distill.anneal none"
# pipeline_teacher needs two steps of a frozen teacher; here the student takes the second.
LIVE = f"{HALF} --engine.no-pipeline-teacher --distill.second student"
DATA = f"{HALF} --engine.no-pipeline-teacher --distill.first data"

ROWS = {
    BASE: Row("--rounds 13", seeds=(0, 1, 2)),
    "batch-16": Row(TO_1),
    "batch-16-slow-start": Row(f"{TO_1} {SLOW}"),
    # 0.6 of the base's evaluations. Starts at 256 steps: earlier rounds hardly change the student.
    "batch-16-start-256": Row(
        f"{plan('256 128 64 32 16 8 4 2 1', '60 120 180 300 468 600 600 600')} {HALF} "
        "--distill.round-lr 128 5e-5 64 2e-4 32 3e-4 16 4e-4",
        seeds=(0, 1),
    ),
    # As many evaluations, but from 8192 steps, with small rates in the early rounds.
    "batch-16-slow-start-0.6": Row(f"{TO_1} {SLOW} {SHARES}", seeds=(0, 1, 2)),
    # The same with the pseudo-Huber loss.
    "huber-slow-start-0.6": Row(f"{TO_1} {SLOW} {SHARES} --distill.loss huber", seeds=(0, 1, 2)),
    # As many evaluations in batches of 8: from 256 steps, then from 8192.
    "batch-8": Row(
        f"{FROM_256} --distill.batch 8 --distill.warmup 200 --distill.round-updates {FEW}",
        seeds=(0, 1, 2),
    ),
    "batch-8-slow-start": Row(
        f"--rounds 13 --distill.batch 8 --distill.warmup 200 {SLOW} "
        "--distill.round-updates 64 200 32 300 16 500 8 1010 4 1200 2 1200 1 1200"
    ),
    # As many evaluations as the base: in its batches, with small first rates; in smaller ones.
    "slow-start": Row(f"--rounds 13 {SLOW}"),
    "batch-16-equal": Row(
        f"{TO_1} {SLOW} --distill.updates 80 --distill.warmup 200 "
        "--distill.round-updates 64 160 32 240 16 400 8 600 4 1000 2 1000 1 1000"
    ),
    "batch-8-equal": Row(
        f"{FROM_256} --distill.batch 8 --distill.warmup 200 --distill.round-updates {MANY}"
    ),
    "huber-batch-8-equal": Row(
        f"{FROM_256} --distill.batch 8 --distill.warmup 200 --distill.round-updates {MANY} "
        "--distill.loss huber",
        seeds=(0, 1, 2),
    ),
    "huber-base": Row("--rounds 13 --distill.loss huber"),
    # Where to start: with batches of 32 and its own numbers of updates, then with 16.
    "start-64": Row(plan("64 32 16 8 4 2 1", "100 150 250 500 500 500")),
    "batch-16-start-64": Row(f"{plan(HALVED, '140 300 500 500')} {HALF}"),
    # One setting of batch-16 changed.
    "huber": Row(f"{TO_4} --distill.loss huber"),
    "moments": Row(f"{TO_4} --distill.keep-moments --distill.warmup 10"),
    "averages": Row(f"{TO_4} {AVERAGES}"),
    "averages-flat": Row(f"{TO_4} {AVERAGES} {FLAT}"),
    "rate-2": Row(f"{TO_4} --distill.lr 1e-3"),
    # One, two and four rounds with the live student; another teacher of a wide one.
    "wide-4": Row(f"{plan('64 4', '1440')} {LIVE}"),
    "wide-16-4": Row(f"{plan('64 16 4', '640 800')} {LIVE}"),
    "live-halvings": Row(f"{plan(HALVED, '140 300 500 500')} {LIVE}"),
    "wide-4-teacher-256": Row(f"{plan('256 4', '1440')} {LIVE}"),
    # The data take the first step, and the student or the teacher the second.
    "data-4": Row(f"{plan('64 4', '1800')} {DATA} --distill.second student"),
    "data-halvings": Row(f"{plan(HALVED, '175 375 625 625')} {DATA}"),
}
"""Rows by name, for `--rows` of study_rounds.py."""
