"""Warm-ups so long that the phase never reaches its learning rate.

The networks of a teacher and of a first fit begin untrained: at such rates they stay noise. The
student of a round begins as its teacher. In a round of many steps, where the two hardly differ, the
small rates of a warm-up may be wanted; in those of few steps the student has much to learn.
"""

from pdfast.config.schema import Config, DistillConfig, LoopConfig

FEW_STEPS = 16  # of a student: rounds to as many or fewer are warned of


def train_note(config: Config) -> str:
    """Return a note on the warm-up of a teacher's training; "" if it is shorter."""
    return _note(config.train, "train.lr")


def distill_notes(config: Config) -> list[str]:
    """Return notes on the warm-up of the rounds, without those that are not needed."""
    cfg, notes = config.distill, []
    if cfg.fit_updates and (note := _note(cfg.loop_of(cfg.start_steps), "distill.fit_lr")):
        notes.append(f"the first fit: {note}")
    rounds = [cfg.loop_of(steps) for steps in cfg.plan if steps <= FEW_STEPS]
    which = (
        "all rounds"
        if len(rounds) == len(cfg.plan)
        else f"all rounds to {FEW_STEPS} steps or fewer"
    )
    longest = max(rounds, key=lambda loop: loop.updates, default=None)
    if longest is not None and (note := _note(longest, "distill.lr")):
        notes.append(f"{which}: {note}")
    return notes


def _note(cfg: LoopConfig, rate: str) -> str:
    """Return a note on a phase's warm-up, with the fix; "" if it is shorter than the phase."""
    table = "distill" if isinstance(cfg, DistillConfig) else "train"
    # The rate rises to the last update, or, where it is annealed too, to the middle.
    reached = max(cfg.rate(k) for k in ((cfg.updates - 1) // 2, cfg.updates - 1))
    if cfg.warmup < cfg.updates or reached >= cfg.lr:
        return ""
    return (
        f"{table}.warmup {cfg.warmup:,} is not shorter than the {cfg.updates:,} updates, so the "
        f"learning rate reaches at most {reached:.2g} instead of {rate} {cfg.lr:g}: set "
        f"{table}.warmup to about {max(1, cfg.updates // 10)}"
    )
