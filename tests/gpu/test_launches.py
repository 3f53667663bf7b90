"""Every op launched on a GPU, for each option that changes the launch, against a CPU's reference.

The first test to run on a new GPU or Triton; tests/kernels checks how accurate the ops are.
"""

import pytest
import torch
from launch_cases import CASES
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cuda", 0)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("case", CASES)
def test_launch(case):
    found, expected = CASES[case](DEVICE), CASES[case](torch.device("cpu"))
    for a, b in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a.cpu(), b)
