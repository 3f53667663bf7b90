"""Outputs of `sample`: tensors, arrays, pictures, and x-hat of each step."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image

from pdfast.config.schema import NetConfig
from pdfast.errors import PdfastError, UsageError
from pdfast.models.custom import Network
from pdfast.models.model import Model

TINY = {"image_size": 4, "ch": 4, "emb_ch": 8, "ch_mult": (1,), "num_res_blocks": 1}
TINY |= {"attn_resolutions": (), "groups": 2}


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr("pdfast.models.model.SAMPLE_BATCH", 4)


def make(channels=3, **fields):
    torch.manual_seed(0)
    model = Model(NetConfig(**(TINY | {"channels": channels} | fields))).eval()
    torch.nn.init.normal_(model.net.conv_out.weight)
    return model


class Half(torch.nn.Module):
    """v-hat = -z, so that x-hat = (alpha + sigma) z."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(-1.0))

    def forward(self, z, logsnr, label):
        return self.w * z


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_the_outputs_hold_the_same_images(channels, mode):
    model = make(channels)
    images = model.sample(3, 2, seed=5)
    assert isinstance(images, torch.Tensor)
    assert torch.equal(images, model.sample(3, 2, seed=5, output="pt"))
    expected = np.round((images.double().numpy().transpose(0, 2, 3, 1) + 1) * 127.5)
    array = model.sample(3, 2, seed=5, output="np")
    assert (array.dtype, array.shape) == (np.uint8, (3, 4, 4, channels))
    assert np.abs(array - expected).max() == 0
    pictures = model.sample(3, 2, seed=5, output="pil")
    assert all(isinstance(p, Image.Image) and p.mode == mode for p in pictures)
    shown = np.stack([np.asarray(p).reshape(4, 4, channels) for p in pictures])
    assert np.array_equal(shown, array)


def test_samples_that_are_no_pictures():
    """Their array holds the floats unchanged, in the network's shape."""
    network = Network(Half(), shape=(2, 5))
    assert not network.pictures
    samples = network.sample(3, 2)
    array = network.sample(3, 2, output="np")
    assert (array.dtype, array.shape) == (np.float32, (3, 2, 5))
    assert np.array_equal(array, samples.numpy())
    said = r"samples of shape \(2, 5\) are not pictures, .* use output='np'"
    with pytest.raises(UsageError, match=said):
        network.sample(3, 2, output="pil")
    with pytest.raises(UsageError, match="output must be 'pt', 'np' or 'pil', not 'PIL'"):
        network.sample(3, 2, output="PIL")
    # A custom network of pictures, and one of three channels of unknown range.
    own = Network(Half(), shape=(3, 4, 4), clip=(-1, 1))
    assert own.sample(2, 2, output="pil")[1].size == (4, 4)
    assert own.sample(2, 2, output="np").dtype == np.uint8
    assert Network(Half(), shape=(3, 4, 4)).sample(2, 2, output="np").dtype == np.float32


def test_pictures_of_a_model_that_has_diverged():
    model = make()
    with torch.no_grad():
        model.net.conv_out.bias[0] = math.nan
    assert model.sample(2, 1).isnan().any()
    for output in ("np", "pil"):
        with pytest.raises(PdfastError, match="not finite: it has diverged"):
            model.sample(2, 1, output=output)


def test_the_callback_is_told_every_step():
    """Six samples are two batches of four, the second padded; its x-hats are of two samples."""
    model, told = make(), []
    expected = model.sample(6, 3, seed=1)
    assert torch.equal(model.sample(6, 3, seed=1, callback=told.append), expected)
    assert [(step.done, step.total) for step in told] == [(k, 6) for k in range(1, 7)]
    assert [(step.first, len(step.x_hat)) for step in told] == [(0, 4)] * 3 + [(4, 2)] * 3
    assert [step.u for step in told] == pytest.approx([1, 2 / 3, 1 / 3] * 2)
    assert torch.equal(torch.cat([told[2].x_hat, told[5].x_hat]), expected)
    start = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    model.sample(2, 3, noise=start, callback=told.append)
    first = model.predict_x(start, -20.0).clamp(-1, 1)  # the cosine schedule's logSNR at u = 1
    torch.testing.assert_close(told[6].x_hat, first, rtol=0, atol=1e-5)
    assert told[6].x_hat.abs().max() == 1


def test_x_hats_have_the_shape_and_the_range_of_the_network():
    told = []
    network = Network(Half(), shape=(2, 3, 5), clip=(-0.5, 0.25))
    samples = network.sample(2, 2, callback=told.append)
    assert [tuple(step.x_hat.shape) for step in told] == [(2, 2, 3, 5)] * 2
    assert (told[0].x_hat.min(), told[0].x_hat.max()) == (-0.5, 0.25)
    network.sample(2, 2, clip=False, callback=told.append)
    assert told[2].x_hat.max() > 0.25
    assert torch.equal(told[1].x_hat, samples)


def test_what_a_callback_does_to_its_copy_changes_nothing():
    model = make()
    expected = model.sample(2, 3)
    assert torch.equal(model.sample(2, 3, callback=lambda step: step.x_hat.fill_(7)), expected)


def test_a_callback_ends_the_sampling_by_raising():
    model, count = make().train(), itertools.count(1)

    def stop(step):
        if next(count) == 2:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        model.sample(2, 3, callback=stop)
    assert next(count) == 3
    assert model.training


def test_a_guided_teacher_reports_each_step_once():
    from pdfast.models.guidance import guided

    told, label = [], torch.tensor([0, 1])
    model = guided(make(num_classes=2, label_dropout=0.1), 1.0)
    images = model.sample(2, 3, label=label, callback=told.append)
    assert [step.done for step in told] == [1, 2, 3]
    assert torch.equal(told[-1].x_hat, images)


def test_classes_and_noise_are_taken_as_lists_and_arrays():
    model, noise = make(num_classes=3), torch.randn(2, 3, 4, 4)
    for parameter in model.parameters():  # so that the class has an effect
        torch.nn.init.normal_(parameter, std=0.3)
    expected = model.sample(2, 2, label=torch.tensor([2, 0]), noise=noise)
    assert not torch.equal(expected, model.sample(2, 2, label=torch.tensor([0, 2]), noise=noise))
    for label in ([2, 0], (2, 0), np.array([2, 0])):
        assert torch.equal(model.sample(2, 2, label=label, noise=noise.numpy()), expected)
    z = torch.randn(2, 3, 4, 4)
    x_hat = model.predict_x(z, 0.5, torch.tensor([2, 0]))
    assert torch.equal(model.predict_x(z, 0.5, [2, 0]), x_hat)


@pytest.mark.parametrize(
    "label", [["a", "b"], [0, 3], [-1, 0], [0.0, 1.0], [0], 0, [[0], [1, 2]], "ab"]
)
def test_wrong_classes_are_a_sentence(label):
    for call in (
        lambda model: model.sample(2, 2, label=label),
        lambda model: model.predict_x(torch.randn(2, 3, 4, 4), 0.5, label),
    ):
        with pytest.raises(UsageError, match=r"label must hold 2 whole numbers in 0 \.\. 2"):
            call(make(num_classes=3))


def test_a_teacher_needs_the_number_of_steps():
    with pytest.raises(UsageError, match="is a teacher, made for any number of steps: pass steps"):
        make().sample(2)
