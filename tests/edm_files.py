"""Network pickles as NVlabs/edm writes them, except that the source of their classes is empty.

fixtures/edm_networks.json has four small networks: the arguments that they were made with, the
names, shapes and numbers of their modules, and outputs of their denoisers. The outputs are those of
the published classes (NVlabs/edm, commit 008a4e5, PyTorch 2.13.0 on a CPU in float32) with the
weights of `value` at the inputs of `inputs`.
"""

import collections
import json
import pickle
import sys
import types
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import torch

FOUND = json.loads((Path(__file__).parent / "fixtures" / "edm_networks.json").read_text())
NETWORKS, SIGMAS = FOUND["networks"], FOUND["sigmas"]
WRAPPERS = {"vp": "VPPrecond", "ve": "VEPrecond", "iddpm": "iDDPMPrecond", "edm": "EDMPrecond"}
CONSTANTS = {
    "vp": {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "sigma_min": 0.001, "sigma_max": 152.4},
    "ve": {"sigma_min": 0.02, "sigma_max": 100},
    "iddpm": {"C_1": 0.001, "C_2": 0.008, "M": 1000, "sigma_min": 0.0064, "sigma_max": 20291.0},
    "edm": {"sigma_data": 0.5, "sigma_min": 0, "sigma_max": float("inf")},
}


def value(name, shape):
    """Weights for a name, of about unit gain, from a generator that NumPy never changes."""
    draws = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("freqs"):
        return torch.tensor(4 * draws, dtype=torch.float32)
    if len(shape) == 1:
        draws = 0.2 * draws + ("norm" in name and name.endswith("weight"))
    else:
        draws = draws / np.prod(shape[1:]) ** 0.5
    return torch.tensor(draws, dtype=torch.float32)


def inputs():
    """Return images, noise, labels and noise levels at which the outputs were recorded."""
    unit = (3 * 8 * 8) ** 0.5
    x, noise = (unit * value(name, (4, 3, 8, 8)) for name in ("x", "noise"))
    return 0.5 * x, noise, torch.tensor([0, 1, 2, 1]), torch.tensor(SIGMAS)


def shown(denoised):
    """Return the recorded elements (4, 4) of a denoiser's output (4, 3, 8, 8)."""
    places = [(0, 0, 0), (1, 3, 4), (2, 7, 7), (0, 2, 6)]
    return torch.stack([denoised[:, c, y, x] for c, y, x in places], dim=1)


# ------------------------------------------------------------------------------------------
# Pickles


def _stand_in(module, name):
    """A function that pickle writes under a name of NVlabs/edm's."""

    def function(*args):
        raise AssertionError("called")

    function.__module__, function.__qualname__, function.__name__ = module, name, name
    return function


RECONSTRUCT = _stand_in("torch_utils.persistence", "_reconstruct_persistent_obj")


class Persisted:
    """A persistent object."""

    def __init__(self, class_name, state, **meta):
        self.meta = {"type": "class", "version": 6, "module_src": "", "class_name": class_name}
        self.meta |= {"state": state} | meta

    def __reduce__(self):
        return RECONSTRUCT, (self.meta,)


class Call:
    """A call of a name with arguments, for a pickle."""

    def __init__(self, name, *args):
        self.module, _, self.name = name.rpartition(".")
        self.args = args
        self.function = _stand_in(self.module, self.name)

    def __reduce__(self):
        return self.function, self.args


def dumped(tree, *calls, protocol=4):
    """Pickle a tree with such objects; `calls` are the Calls in it."""
    modules = {}
    for function in (RECONSTRUCT, *(call.function for call in calls)):
        parts = function.__module__.split(".")
        for n in range(1, len(parts) + 1):
            name = ".".join(parts[:n])
            modules.setdefault(name, types.ModuleType(name))
        setattr(modules[function.__module__], function.__name__, function)
    with mock.patch.dict(sys.modules, modules):
        return pickle.dumps(tree, protocol=protocol)


def state(attributes=None, parameters=None, buffers=None, modules=None):
    """The state of an nn.Module."""
    table = collections.OrderedDict
    return {
        "training": False,
        "_parameters": table(parameters or {}),
        "_buffers": table(buffers or {}),
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": table(),
        "_modules": table(modules or {}),
        **(attributes or {}),
    }


def module(tree, taps, path=""):
    """Build a module of the recorded tree, with its weights."""
    parameters, buffers = {}, {}
    for name, shape in tree["parameters"].items():
        made = None if shape is None else torch.nn.Parameter(value(f"{path}{name}", tuple(shape)))
        parameters[name] = made
    for name, shape in tree["buffers"].items():
        if name == "resample_filter" and shape is not None:
            line = torch.tensor(taps, dtype=torch.float32)
            buffers[name] = (torch.outer(line, line) / line.sum() ** 2)[None, None]
        else:
            buffers[name] = None if shape is None else value(f"{path}{name}", tuple(shape))
    inner = {
        name: None if child is None else module(child, taps, f"{path}{name}.")
        for name, child in tree["modules"].items()
    }
    attributes = {
        key: np.float64(number) if key == "skip_scale" else number
        for key, number in tree["attributes"].items()
    }
    held = state(attributes | {"_init_args": (), "_init_kwargs": {}}, parameters, buffers, inner)
    if tree["class"] != "ModuleDict":
        return Persisted(tree["class"], held)
    container = torch.nn.ModuleDict()
    container.__dict__.update(held)
    return container


def levels(c_1=0.001, c_2=0.008, times=1000):
    """iDDPM's noise levels by their recursion (Karras et al. 2022, table 1)."""
    bars = np.sin(0.5 * np.pi * np.arange(times + 1) / times / (c_2 + 1)) ** 2
    found = np.zeros(times + 1)
    for j in range(times, 0, -1):
        found[j - 1] = ((found[j] ** 2 + 1) / max(bars[j - 1] / bars[j], c_1) - 1) ** 0.5
    return torch.tensor(found, dtype=torch.float32)


def network(name, kind="edm", classes=0, **changes):
    """Build the persistent object of a recorded network with a preconditioning.

    `changes` are made to the network's arguments before it is pickled.
    """
    recorded = NETWORKS[name]
    arguments = recorded["arguments"] | {"label_dim": classes}
    tree = json.loads(json.dumps(recorded["tree"]))
    if not classes:
        tree["modules"]["map_label"] = None
    if kind == "iddpm":
        arguments["out_channels"] *= 2
        last = tree["modules"].get("out_conv") or tree["modules"]["dec"]["modules"]["8x8_aux_conv"]
        for shape in last["parameters"].values():
            shape[0] *= 2
    model = module(tree, arguments.get("resample_filter", [1, 1]))
    model.meta["state"]["_init_kwargs"] = arguments | changes
    buffers = {"u": levels()} if kind == "iddpm" else {}
    own = {"label_dim": classes, "img_channels": 3, "use_fp16": False, **CONSTANTS[kind]}
    return Persisted(WRAPPERS[kind], state(own, {}, buffers, {"model": model}))


def inner(persisted):
    """Return the record of the network inside a preconditioning."""
    return persisted.meta["state"]["_modules"]["model"].meta


def write(path, persisted, protocol=4):
    """Write a network-snapshot of a persistent object."""
    others = {"loss_fn": Persisted("EDMLoss", state({"P_mean": -1.2})), "augment_pipe": None}
    tree = {"ema": persisted, **others, "dataset_kwargs": {"path": "cifar10.zip"}}
    path.write_bytes(dumped(tree, protocol=protocol))
    return path
