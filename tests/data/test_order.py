"""data.order: each epoch has each image once, however batches are divided, and over resumptions."""

import dataclasses

import pytest
import torch
from engine_cases import changed, digits
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pdfast.data.dataset import Dataset
from pdfast.distributed import collectives
from pdfast.models.model import Model
from pdfast.training.batch import held_out_batches, open_batch
from pdfast.training.holdout import hold_out

ROUND = 2


@pytest.fixture
def model(tiny):
    return Model(tiny.model)


def set_of(num, holdout=0):
    return hold_out(digits(num), holdout, seed=0)


def config_of(tiny, batch, order="epochs"):
    return changed(tiny, data={"order": order}, train={"batch": batch})


def numbers(config, model, data, updates, *, world=1, parts=1, begin=0, round_=ROUND):
    """Return the image numbers of all processes, (updates, batch), in the order of positions."""
    rows = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "size", lambda: world)
        for rank in range(world):
            patch.setattr(collectives, "rank", lambda rank=rank: rank)
            number = torch.tensor([begin])
            batch, source = open_batch(config, config.train, data, model, round_, number)
            drawn = []
            for k in range(begin, begin + updates):
                source.load(k)
                number.fill_(k)
                pieces = [batch.part(n, parts).noised((1.57, 0.0), 4)[0] for n in range(parts)]
                drawn.append(torch.cat([piece.chosen for piece in pieces]))
            source.close()
            rows.append(torch.stack(drawn))
    return torch.cat(rows, 1)


CASE = {
    "num": st.integers(1, 40),
    "each": st.integers(1, 6),
    "world": st.sampled_from([1, 2, 3, 8]),
    "parts": st.sampled_from([1, 2, 3]),
    "holdout": st.integers(0, 9),
    "cut": st.integers(0, 11),
    "streamed": st.booleans(),
}
MANY_OF_TWO = {"num": 2, "each": 6, "world": 8, "parts": 3, "holdout": 0, "cut": 1}


def check(tiny, model, num, each, world, parts, holdout, cut, streamed):
    """Check 12 updates, or three epochs of larger sets: undivided, divided, and interrupted."""
    data = set_of(num, min(holdout, num - 1))
    trained = torch.arange(num) if data.trained is None else data.trained
    config = config_of(tiny, each * world * parts)
    updates = max(12, -(-3 * len(trained) // config.train.batch))
    whole = numbers(config, model, data, updates)
    epochs = whole.flatten().split(len(trained))
    assert len(epochs) >= 3
    for epoch in epochs[:-1]:
        assert torch.equal(epoch.sort().values, trained)
    assert len(epochs[-1].unique()) == len(epochs[-1])
    config = changed(config, engine={"data": "stream" if streamed else "device"})
    for begin, end in ((0, cut), (cut, updates)):
        divided = {"world": world, "parts": parts, "begin": begin}
        found = numbers(config, model, data, end - begin, **divided) if end > begin else whole[:0]
        assert torch.equal(found, whole[begin:end])


def test_each_epoch_holds_each_image_once(tiny, model):
    """By one process and one part, divided among several, and after a resume at any update."""
    case = given(**CASE)(lambda **case: check(tiny, model, **case))
    case = example(**MANY_OF_TWO, streamed=True)(case)
    settings(max_examples=25, deadline=None, derandomize=True, database=None)(case)()


def test_a_long_run_is_in_step_with_a_short_one(tiny, model):
    """The first epoch after 2^32 draws and more."""
    data, config = set_of(11), config_of(tiny, 4)
    begin = 11 * 2**33
    drawn = numbers(config, model, data, 11, begin=begin).flatten()
    for epoch in drawn.split(11):
        assert torch.equal(epoch.sort().values, torch.arange(11))
    assert not torch.equal(drawn, numbers(config, model, data, 11).flatten())


def test_streamed_images_are_those_that_are_drawn(tiny, model):
    """Each image is grey, with its number as its value."""
    images = torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(50, 8, 8, 1)
    data = hold_out(Dataset(images.contiguous(), None), 5, seed=0)
    config = changed(config_of(tiny, 8), engine={"data": "stream"})
    number = torch.tensor([0])
    batch, source = open_batch(config, config.train, data, model, ROUND, number)
    for k in (0, 1, 2, 20):
        source.load(k)
        number.fill_(k)
        chosen = batch.noised((1.57, 0.0), 4)[0].chosen
        assert torch.equal(batch.images[:, 0, 0, 0].long(), chosen)
    source.close()


def test_phases_and_seeds_have_orders_of_their_own(tiny, model):
    data, config = set_of(50), config_of(tiny, 50)
    other = dataclasses.replace(config, seed=config.seed + 1)
    orders = [numbers(config, model, data, 2, round_=round_) for round_ in (0, 1, 2)]
    orders.append(numbers(other, model, data, 2, round_=0))
    rows = {tuple(row.tolist()) for order in orders for row in order}
    assert len(rows) == 8


def test_what_the_loss_is_watched_on_does_not_depend_on_the_order(tiny, model):
    """The fixed batch, and the images held out."""
    data, found = set_of(50, 7), []
    for order in ("epochs", "independent"):
        config = config_of(tiny, 16, order)
        batch, _ = open_batch(config, config.train, data, model, ROUND, fixed=True)
        batches = [batch, *held_out_batches(config, data, model, ROUND)]
        found.append([part.noised((1.57, 0.0), 4)[0] for part in batches])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.chosen, other.chosen)
        assert torch.equal(one.z_t, other.z_t)


def test_independent_draws_repeat_and_leave_out(tiny, model):
    drawn = numbers(config_of(tiny, 50, "independent"), model, set_of(50), 4)
    assert all(len(row.unique()) < 45 for row in drawn)  # 32 are expected
