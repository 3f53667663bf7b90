"""Gradients, from autograd into the flat buffer that the optimizer reads."""

import pytest
import torch

from pdfast.config.schema import NetConfig, TrainConfig
from pdfast.models.model import Model
from pdfast.training.op_counter import Counter
from pdfast.training.optimizer import Optimizer
from pdfast.training.precision import low_parameters

NET = {"image_size": 8, "channels": 1, "ch": 8, "emb_ch": 16, "ch_mult": (1, 2), "groups": 4}
NET |= {"num_res_blocks": 1, "attn_resolutions": (4,)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_parts_are_added_up_in_float32(dtype):
    """For parameters of both dtypes, as autograd returns them, in a few launches for each part."""
    model = Model(NetConfig(**NET))
    low = low_parameters(model)
    optimizer = Optimizer(model, TrainConfig(), dtype)
    params = dict(model.net.named_parameters())
    assert 0 < len(low) < len(params)
    torch.manual_seed(0)
    factors = {name: torch.randn_like(p, dtype=torch.float32) for name, p in params.items()}

    def outs():
        return torch.stack([(params[name] * factors[name]).sum() for name in params])

    def launches(work, *args):
        with Counter(kernels=True) as counter:
            result = work(*args)
        return sum(amount.launches for amount in counter.kinds.values()), result

    expected = {name: torch.zeros(p.shape) for name, p in params.items()}
    for n in range(3):
        out, again, part = outs(), outs(), torch.rand(len(params))
        alone, grads = launches(torch.autograd.grad, out, params.values(), part)
        for name, grad in zip(params, grads, strict=True):
            assert grad.dtype == (dtype if name in low else torch.float32)
            expected[name] += grad
        whole, _ = launches(optimizer.backward, again, part, torch.tensor(2.0), n == 0)
        assert 1 < whole - alone <= 2 + len(params) // 32 < len(low)
    for name, view in optimizer._grads.items():
        assert torch.equal(view, expected[name]), name
    assert optimizer.loss == 6
    used = sum(p.numel() for p in params.values())
    assert used < optimizer.grads.numel()  # the padding between parameters is not added
    assert optimizer.grads.count_nonzero() == sum(int(e.count_nonzero()) for e in expected.values())
