"""How much of the initial weights is left in the averaged weights.

The average starts as the weights after the first update, which are one step from the initial ones,
and each later decay multiplies their share. A plain decay of 0.9999 leaves 97 % of it after 300
updates. With `ema_warmup` the decay after k updates is at most (1 + k) / (10 + k). Until
`ema_decay` is reached, the share then falls as the ninth power of the number of updates, and the
average reaches over the last tenth of them. Dividing by one minus that share instead, as Adam does
with its moments, would give all updates so far the same weight, also the earliest ones.
"""

import math

from pdfast.config.schema import DistillConfig, LoopConfig

MAX_SHARE = 0.01  # above which a note is shown


def initial_share(cfg: LoopConfig, updates: int) -> float:
    """Return the share of the first update's weights in the averages after `updates` updates.

    It is the product of the decays of the later updates; 0 if no averages are kept.
    """
    if not cfg.ema_decay:
        return 0.0
    last, rising = max(0, updates - 1), 0
    if cfg.ema_warmup:  # (1 + k) / (10 + k) is at most ema_decay up to this k
        rising = min(last, int(max(0.0, (10 * cfg.ema_decay - 1) / (1 - cfg.ema_decay))))
    # The product of (1 + k) / (10 + k) for k = 1 .. rising, and of ema_decay after that.
    return 10 / math.comb(rising + 10, 9) * cfg.ema_decay ** (last - rising)


def share_note(cfg: LoopConfig, updates: int) -> str:
    """Return a note on `initial_share`, with the fix; empty if the share is at most 1 %."""
    share = initial_share(cfg, updates)
    if share <= MAX_SHARE:
        return ""
    table, fix = "distill" if isinstance(cfg, DistillConfig) else "train", "make more updates"
    if not cfg.ema_warmup:
        lower = math.floor(1000 * MAX_SHARE ** (1 / max(1, updates - 1))) / 1000
        fix = f"set {table}.ema_warmup, or lower {table}.ema_decay to {lower:g}"
    return (
        f"{share:.1%} of the averaged weights, which become the model, are still those of the "
        f"first update (ema_decay {cfg.ema_decay:g}, {updates} updates): {fix}"
    )
