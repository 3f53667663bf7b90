"""resample of tensors with more elements than 32 bits count, and of the largest images."""

import pytest
import torch

from pdfast.kernels.resample import MOST, avg_pool2x2, resample_op, resample_reference, upsample2x

DEVICE = torch.device("cuda", 0)
SHAPE = (2, 32, 8192, 8176)  # of the larger tensor: 8.6 GB in bfloat16
NEEDED = 24 * 2**30

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def roomy():
    """Skip unless memory holds two and a half such tensors."""
    if torch.cuda.get_device_properties(DEVICE).total_memory < NEEDED:
        pytest.skip("the device has less than 24 GB")
    yield
    torch.cuda.empty_cache()


@pytest.mark.parametrize("up", [False, True])
def test_more_elements_than_32_bits_count(roomy, up):
    """The first and last rows of each image, against the reference on these rows alone."""
    b, c, h, w = SHAPE
    assert c * h * w <= MOST < b * c * h * w
    shape = (b, c, h // 2, w // 2) if up else SHAPE
    x = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE, memory_format=torch.channels_last)
    x.normal_(generator=torch.Generator(DEVICE).manual_seed(0))
    out = upsample2x(x) if up else avg_pool2x2(x)
    for image in range(b):
        for rows in (slice(0, 4), slice(-4, None)):
            part = x[image : image + 1, :, rows].contiguous(memory_format=torch.channels_last)
            expected = resample_reference(part, up, 1 if up else 4)
            height = expected.shape[2]
            of = slice(-height, None) if rows.stop is None else slice(0, height)
            found = out[image : image + 1, :, of]
            assert torch.equal(found, expected)


def test_a_graph_replays_it():
    """Both directions and their gradients, captured."""
    x = torch.randn(4, 64, 8, 8, device=DEVICE).contiguous(memory_format=torch.channels_last)

    def work():
        return [resample_op(x, up, divisor) for up in (False, True) for divisor in (1, 4)]

    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    x.normal_()
    graph.replay()
    for found, expected in zip(captured, work(), strict=True):
        assert torch.equal(found, expected)
