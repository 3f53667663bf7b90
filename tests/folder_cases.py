"""Helpers shared by the tests of folders of pictures."""

import numpy as np
import pytest
from foreign import picture

from pdfast.data.readers import folder
from pdfast.data.readers.reading import Wanted
from pdfast.errors import UsageError

PNG = picture(np.zeros((8, 8), np.uint8))


def put(root, *names, content=PNG):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def find(root, folders="auto", labels=True, skip_bad=False):
    return folder.find(root, Wanted(8, labels=labels, folders=folders, skip_bad=skip_bad))


def classes(root, folders="auto", **options):
    """Return the label of every picture, by its path, and the class names."""
    found = find(root, folders, **options)
    paths = [str(path.relative_to(root)) for _, path in found.files(0)]
    assert len(paths) == found.num == len(found.labels)
    assert found.labels.dtype == np.int64
    return dict(zip(paths, found.labels.tolist(), strict=True)), found.names


def refused(root, message, *also, folders="auto", labels=True, skip_bad=False):
    with pytest.raises(UsageError) as error:
        find(root, folders, labels, skip_bad)
    text = str(error.value)
    for part in (message, *also, str(root)):
        assert part in text
    assert "\n" not in text
    assert text.isprintable()
    return text
