"""Training states as flax writes them, and damaged ones, with small networks for them."""

import dataclasses

import msgpack
import numpy as np
import torch
from torch import Tensor

from pdfast.config.schema import Config, NetConfig
from pdfast.interop.google.published import views
from pdfast.models.model import Model

CHUNKED = "__msgpack_chunked_array__"
SMALL = NetConfig(
    image_size=8, ch=4, emb_ch=6, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), groups=2
)
CONFIG = Config(model=SMALL)
ARCHITECTURES = [
    {},
    {"num_classes": 3, "parameterization": "x_eps", "attn_resolutions": (), "channels": 1},
    {"ch_mult": (1,), "attn_resolutions": (8,), "num_heads": 2, "num_res_blocks": 3},
    {"ch_mult": (1, 2, 3), "attn_resolutions": (2, 8), "num_heads": 0, "head_dim": 4},
]


def net(**fields):
    """A small network without zero weights."""
    torch.manual_seed(0)
    model = Model(dataclasses.replace(SMALL, **fields))
    for p in model.parameters():
        torch.nn.init.normal_(p)
    return model.eval()


def same(a, b):
    """Return whether two models have the same weights, to the bit."""
    expected = b.state_dict()
    return all(torch.equal(value, expected[key]) for key, value in a.state_dict().items())


class Array:
    """An array as in a file, whose parts may contradict each other."""

    def __init__(self, array, code=1):
        if isinstance(array, Tensor):
            dtype = str(array.dtype).removeprefix("torch.")
            bits = array.contiguous().view(torch.int16) if dtype == "bfloat16" else array
            self.shape, self.dtype, self.data = list(array.shape), dtype, bits.numpy().tobytes()
        else:
            array = np.asarray(array)
            self.shape, self.dtype = list(array.shape), array.dtype.name
            self.data = array.tobytes()
        self.code = code

    def packed(self):
        """msgpack's ext type."""
        content = msgpack.packb([self.shape, self.dtype, self.data], default=packed_default)
        return msgpack.ExtType(self.code, content)

    def reshaped(self, *shape):
        """Return the same elements in another shape."""
        other = Array(0)
        other.shape, other.dtype, other.data = list(shape), self.dtype, self.data
        assert np.prod(shape) == np.prod(self.shape)
        return other

    def chunked(self, *lengths):
        """Split an array into chunks, as flax does above a gigabyte; `lengths` in elements."""
        flat, chunks = np.frombuffer(self.data, self.dtype), {}
        for n, part in enumerate(np.split(flat, np.cumsum(lengths)[:-1])):
            chunks[str(n)] = Array(part)
        shape = {str(n): size for n, size in enumerate(self.shape)}
        return {CHUNKED: True, "shape": shape, "chunks": chunks}


def packed_default(value):
    """Encode a value that msgpack does not know."""
    if isinstance(value, Array):
        return value.packed()
    raise TypeError(value)


def pack(state):
    """Return the bytes of a file."""
    return msgpack.packb(state, default=packed_default)


def params(model):
    """Return a model's parameters as {"module": {"kernel": Array}}."""
    found = {}
    for path, view in views(model.cfg, model.net.state_dict()).items():
        *outer, leaf = path.split("/")
        table = found
        for part in outer:
            table = table.setdefault(part, {})
        table[leaf] = Array(view.contiguous())
    return found


def state(model, **keys):
    """A training state; `keys` replace its own, or remove them where they are Ellipsis."""
    found = {
        "step": Array(np.int64(1234), code=3),
        "optimizer": {"state": {"step": 7}, "target": {"conv_in": {"bias": Array(np.ones(3))}}},
        "ema_params": params(model),
        "num_sample_steps": 4,
        **keys,
    }
    return {key: value for key, value in found.items() if value is not ...}


def get(table, path):
    """Return the value at "a/b/c"."""
    for part in path.split("/"):
        table = table[part]
    return table


def put(table, path, value):
    """Set the value at "a/b/c"; Ellipsis removes it."""
    *outer, leaf = path.split("/")
    for part in outer:
        table = table.setdefault(part, {})
    if value is ...:
        del table[leaf]
    else:
        table[leaf] = value
