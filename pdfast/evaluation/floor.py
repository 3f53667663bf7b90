"""A teacher whose distance is far above the floor, the distance of resampled data."""

from pdfast.console.progress import short

FAR = 20.0  # times the floor; measured teachers have 1.7 to 2.8 times it at 64 steps
LEAST_STEPS = 8  # in fewer steps the samples of a good teacher are far above the floor, too


def far_above(distance: float, floor: float, what: str, steps: int) -> str:
    """Return a sentence on a teacher far above the floor, with the fix; "" if it is nearer.

    Args:
        distance: The teacher's distance from the data.
        floor: The distance of as many resampled images.
        what: What the distance is called.
        steps: Sampling steps of the samples.
    """
    if steps < LEAST_STEPS or not 0.0 < FAR * floor < distance:
        return ""
    return (
        f"the teacher's own {what}, {short(distance, 3)}, is {short(distance / floor, 2)} times "
        f"the floor, {short(floor, 3)}: it is not trained enough to be distilled; raise "
        "train.updates"
    )
