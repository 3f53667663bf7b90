"""The benchmarks' peer of a whole update, and what their tables say of one."""

import pytest
import torch
from harness import table
from parts import GAPS, Kernel, gpu_hours, part_of, profiled, write_kernels
from published import Published, norm_film_silu, plain

from pdfast.distillation.teacher import new_model
from pdfast.kernels.group_norm_silu import group_norm_silu
from pdfast.training.op_counter import ATTENTION, NETS, NORMS, OPTIMIZER, OTHER, PARTS, STEPS


def randomized(model):
    """Without the zeros that the last layers start from."""
    torch.manual_seed(1)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


@pytest.mark.parametrize("channels_last", [False, True])
def test_plain_net_is_the_same_function_in_its_layout(tiny, channels_last):
    ours = randomized(new_model(tiny, torch.device("cpu")))
    peer = plain(randomized(new_model(tiny, torch.device("cpu"))), channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    seen = []
    for module in peer.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, args, out: seen.append(out))
    z, logsnr = torch.randn(2, 1, 8, 8), torch.tensor([0.5, -3.0])
    torch.testing.assert_close(peer(z, logsnr), ours(z, logsnr), rtol=1e-4, atol=1e-4)
    assert all(out.is_contiguous(memory_format=layout) for out in seen)
    assert len(seen) > 10


def test_plain_norm_keeps_the_layout():
    x, w, b, film = torch.randn(2, 8, 4, 4), torch.randn(8), torch.randn(8), torch.randn(2, 16)
    for silu in (True, False):
        y = norm_film_silu(x, w, b, film, groups=4, eps=1e-6, silu=silu)
        assert y.is_contiguous()
        expected = group_norm_silu(x, w, b, film, groups=4, eps=1e-6, silu=silu)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("phase", ["train", "distill"])
def test_it_learns(tiny, phase):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (1, 8, 8, 1), dtype=torch.uint8)
    peer = Published(tiny, phase, images, 4)
    before = [p.detach().clone() for p in peer.params]
    losses = [float(peer.update()) for _ in range(12)]
    assert all(loss >= 0 for loss in losses)
    moved = [not torch.equal(p, q) for p, q in zip(peer.params, before, strict=True)]
    assert any(moved)
    assert bool(peer.ema) == (phase == "train")
    if phase == "train":
        assert losses[-1] < losses[0]
        assert not torch.equal(peer.ema[0], peer.params[0])
        return
    # The student starts as its teacher, whose weights stay.
    teacher = peer.teacher.parameters()
    assert all(torch.equal(p, q) for p, q in zip(teacher, before, strict=True))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("aten::mkldnn_convolution", NETS),
        ("aten::addmm", NETS),
        ("aten::mm", NETS),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", NETS),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", NETS),
        ("triton_tem_fused_convolution_7", NETS),
        ("triton_poi_fused_add_convolution_silu_3", OTHER),
        ("triton_red_fused_native_group_norm_silu_1", NORMS),
        ("void pdfast::group_norm_silu_kernel<pdfast::ForwardBody<float>>", NORMS),
        ("void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<float>", NORMS),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", ATTENTION),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", ATTENTION),
        ("add_noise_kernel", STEPS),
        ("pdfast::distill_loss", STEPS),
        ("sum_of_squares_kernel", OPTIMIZER),
        ("pdfast::adamw", OPTIMIZER),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", OPTIMIZER),
        ("aten::add", None),
        ("aten::maximum", None),
    ],
)
def test_names_of_kernels(name, part):
    assert part_of(name) == part


def test_an_op_s_time_is_its_caller_s_part():
    def update():
        a = torch.randn(400, 400)
        a @ a
        with torch.profiler.record_function(OPTIMIZER):
            for _ in range(20):
                a.mul_(1.01)

    found = profiled(update, 2, torch.device("cpu"))
    assert set(found.parts) == {NETS, OPTIMIZER, OTHER, GAPS}
    assert min(found.parts[part] for part in (NETS, OPTIMIZER, OTHER)) > 0
    launches = {kernel.name: kernel.launches for kernel in found.kernels}
    assert launches["aten::mul_"] == 20  # of one update
    assert launches["aten::mm"] == 1
    seconds = [kernel.seconds for kernel in found.kernels]
    assert seconds == sorted(seconds, reverse=True)
    assert sum(seconds) == pytest.approx(sum(found.parts.values()) - found.parts[GAPS])


def test_a_table_of_kernels(tmp_path):
    path = tmp_path / "kernels.tsv"
    write_kernels(path, "of an update", [Kernel(0.0123, 84.5, "void f<A\t, B>\n(int)")])
    assert path.read_text() == (
        "# of an update\nms\tlaunches\tkernel\n12.3000\t84.5\tvoid f<A , B> (int)\n"
    )


def test_price_of_the_paper_s_distillation():
    """11 rounds of 50,000 updates, none of them the doubled ones."""
    assert gpu_hours("cifar10", 0.072) == pytest.approx(550_000 * 0.072 / 3600) == 11.0


def test_tables():
    update = {"op": "update, distill", "shape": "x, batch 8", "bytes": 0, "kind": "update"}
    parts = dict.fromkeys((*PARTS, GAPS), 0.01)
    timed = {"rounds": 3, "flops": 5e12, "images_per_s": 80.0}
    timed |= {"datasheet": 1e15, "matmul": 5e14, "parts": parts, "memory": 3e9}
    eager, beside_c, beside_e = [0.4, 0.4, 0.8], [0.5, 0.5, 0.5], [0.3, 0.3, 0.6]
    rows = [
        {**update, "who": "(e) pdfast", "seconds": 0.1, "times": [0.1, 0.1, 0.2], **timed}
        | {"link": beside_e},
        {**update, "who": "(a) eager", "seconds": 0.4, "times": eager, **timed}
        | {"config": "cifar10", "link": eager},
        {**update, "who": "(b) bf16 autocast", "seconds": None, "absent": "left out"},
        {**update, "who": "(c) compiled", "seconds": 0.25, "times": [0.25, 0.25, 0.25], **timed}
        | {"link": beside_c},
        {**update, "who": "(g) other norms", "seconds": 0.1, "times": [0.1, 0.1, 0.2], **timed}
        | {"link": None},
        {"op": "count", "shape": "y", "who": "count", "kind": "count", "seconds": 0, "bytes": 0}
        | {"parts": {NETS: [989_000_000_000_000, 7, 3]}, "peak": 12_000_000},
        {"op": "z", "shape": "s", "who": "eager", "seconds": 1.0, "bytes": 10**9},
    ]
    text = table(rows)
    assert "| s | eager | 1000 | 1 |  | 1.00x |" in text
    end = "5.0% | 10.0% | 3,000 |  |"
    # Three times as fast as (a), in its own process; (c) is twice as fast as (a) in another.
    assert f"| (e) pdfast | 100 | 100 to 200 | 80 | 300 | 3.00x | 1.50x | {end}" in text
    assert f"| (g) other norms | 100 | 100 to 200 | 80 |  |  |  | {end}" in text
    assert "| (b) bf16 autocast | left out |" in text
    assert text.index("| (a) eager") < text.index("| (b)") < text.index("| (e) pdfast")
    assert "| 61.1 |" in next(line for line in text.splitlines() if line.startswith("| (a) eager"))
    assert f"| {NETS} | 14.3% | 14.3% | 14.3% | 14.3% |" in text
    assert "### y: a count, not a measurement" in text
    assert "| together | 989,000 | 0.00 | 3 | 1000.00 |" in text
    failed = table([{**update, "who": "(e) pdfast", "seconds": None, "absent": "failed: no"}])
    assert "| (e) pdfast | failed: no |" in failed
