"""Conditioning objects: joined, carried between updates, and restored from tensors."""

import dataclasses

import pytest
import torch

from pdfast.diffusion.conditioning import UNCONDITIONAL, Conditioning, DropoutRng

LABEL, WEIGHTS = torch.tensor([3, -1, 0]), torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
RNG = DropoutRng(7, 1, torch.tensor([2]), 0)
CASES = {
    "nothing": (UNCONDITIONAL, 0),
    "a class": (Conditioning(LABEL), 1),
    "a weight": (Conditioning(guidance=WEIGHTS), 1),
    "both, and dropout": (Conditioning(LABEL, WEIGHTS, RNG), 2),
}


@pytest.mark.parametrize("case", CASES)
def test_tensors_are_carried_and_put_back_in_their_places(case):
    conditioning, num = CASES[case]
    carried = [tensor + 1 for tensor in conditioning.tensors()]
    assert len(carried) == num
    later = conditioning.with_tensors(carried)
    assert later.dropout_rng is conditioning.dropout_rng
    for name in ("label", "guidance"):
        before, after = getattr(conditioning, name), getattr(later, name)
        assert (before is None) == (after is None)
        assert before is None or torch.equal(after, before + 1)


@pytest.mark.parametrize("case", CASES)
def test_both_batches_are_joined_in_order(case):
    conditioning, num = CASES[case]
    later = conditioning.with_tensors([tensor + 1 for tensor in conditioning.tensors()])
    pairs = zip(conditioning.tensors(), conditioning.joined(later).tensors(), strict=True)
    for tensor, both in pairs:
        assert torch.equal(both, torch.cat([tensor, tensor + 1]))
    assert len(conditioning.joined(later).tensors()) == num


def test_batches_told_of_different_things_are_not_joined():
    with pytest.raises(ValueError, match="shorter"):
        Conditioning(LABEL, WEIGHTS).joined(Conditioning(LABEL))


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        UNCONDITIONAL.label = LABEL
