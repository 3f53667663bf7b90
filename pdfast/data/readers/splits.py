"""Recognize folders that are the splits of a set: train, val, test and the like."""

import re

TRAIN, VAL, TEST, MORE = "train", "val", "test", "more"
WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), VAL),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation", "holdout", "heldout"), TEST),
    # Found beside splits, but plausible as class names too.
    **dict.fromkeys(("extra", "unlabeled", "unlabelled", "pred", "query", "gallery"), MORE),
}
# Words that add no meaning to a split's name: training_set, test_images, trainA.
FILLING = {"set", "data", "dataset", "split", "image", "images", "img", "imgs", "photos", "a", "b"}
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+")


def looks_split(names: list[str]) -> bool:
    """Return whether folders of these names are the splits of a set, not its classes or parts.

    Each must have the name of a split in it. If one has other words too (seg_train, seg_test),
    there must be splits of two kinds: bullet_train and freight_train are classes. Two folders with
    plain names of different splits are splits whatever else lies beside them.
    """
    plain = {WORDS.get(name.lower(), MORE) for name in names} - {MORE}
    if len(plain) > 1:
        return True
    parts = [[word.lower() for word in WORD.findall(name)] for name in names]
    of_each = [[WORDS[word] for word in words if word in WORDS] for words in parts]
    if not names or not all(of_each):
        return False
    alone = all(word in WORDS or word in FILLING for words in parts for word in words)
    found = {kind for of_one in of_each for kind in of_one}
    return bool(found - {MORE}) and (len(found) > 1 or alone)


def training(names: list[str]) -> str:
    """Return the split to train on: the one named so, else the first."""
    for name in names:
        if TRAIN in (WORDS.get(word.lower()) for word in WORD.findall(name)):
            return name
    return names[0]
