"""The loop in the README of an ONNX export, run as written."""

import re

import numpy as np
import torch


def by_readme(model, folder, monkeypatch):
    """Assert that the README's loop makes the model's samples in uint8, and return them."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder.parent)
    ran = {}
    exec(code, ran)
    start = np.random.default_rng(0).standard_normal((4, *model.image_shape))
    label = torch.arange(4) % model.num_classes if model.num_classes else None
    ours = model.sample(4, ran["steps"], noise=torch.from_numpy(start).float(), label=label)
    assert np.abs(ran["pictures"] - (ours.numpy() * 127.5 + 127.5)).max() < 0.51
    assert ran["steps"] == (model.steps or 64)
    return ran["pictures"]
