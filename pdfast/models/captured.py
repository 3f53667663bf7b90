"""A model's network call as a CUDA graph, so that a sampling step is a few launches.

Called from Python, a U-Net launches hundreds of kernels per sampling step, and a fast GPU waits for
the next one. Captured, they are one launch.
"""

import contextlib
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor

from pdfast.diffusion.conditioning import Conditioning
from pdfast.diffusion.samplers import Denoiser
from pdfast.errors import PdfastError
from pdfast.models.cuda_graph import Replay

_permitted: ContextVar[bool] = ContextVar("permitted", default=True)
FEWEST = 16  # calls that pay for warming up and capturing, about five calls


class Capturable(Denoiser, Protocol):
    """The part of a model that a capture uses."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one image."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images."""

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 for an unconditional model."""


class CallReplay(Replay):
    """The network's call, whose memory is not that of an update."""

    WHAT = "a sampling step"
    FIX = (
        "sampling continues without a graph, more slowly; in a run set engine.graph to false, "
        "since PyTorch may refuse every later capture"
    )
    NEW_PEAK = False


class Captured:
    """A model as a `Denoiser` whose calls replay one CUDA graph; on a CPU they are called."""

    def __init__(self, model: Capturable, batch: int) -> None:
        """Capture `model.predict_x_at_angle`.

        Args:
            model: The model, in evaluation mode. Its weights must stay where they are.
            batch: Number of images per call.

        Raises:
            PdfastError: The call cannot be captured.
        """
        self.schedule, self._model = model.schedule, model
        self._z = torch.zeros(batch, *model.image_shape, dtype=model.dtype, device=model.device)
        self._x_hat = torch.empty_like(self._z)
        self._phi = torch.ones(batch, dtype=torch.float64, device=model.device)
        self._label = self._phi.new_zeros(batch, dtype=torch.int64) if model.num_classes else None
        with self._here():
            self._replay = CallReplay(self._call, [], model.device)

    def predict_x_at_angle(self, z: Tensor, phi: Tensor, conditioning: Conditioning) -> Tensor:
        """Return x-hat (B, C, H, W), unclipped, at z (B, C, H, W) and angle phi (B,) in radians."""
        with self._here():
            self._z.copy_(z)
            self._phi.copy_(phi)
            if self._label is not None:
                assert conditioning.label is not None
                self._label.copy_(conditioning.label)
            self._replay()
            return self._x_hat.clone()  # the next call overwrites it

    def close(self) -> None:
        """Free the graph's memory."""
        self._replay.close()

    def _call(self) -> None:
        told = Conditioning(self._label)
        self._x_hat.copy_(self._model.predict_x_at_angle(self._z, self._phi, told))

    def _here(self) -> contextlib.AbstractContextManager[object]:
        """Make the model's GPU the current one, whose streams a replay uses."""
        device = self._model.device
        return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def permitted(graph: bool) -> Iterator[None]:
    """Set whether samplers may capture their calls while the block runs (`engine.graph`)."""
    before = _permitted.set(graph)
    try:
        yield
    finally:
        _permitted.reset(before)


@contextlib.contextmanager
def denoiser_of(model: Capturable, batch: int, calls: int) -> Iterator[Denoiser]:
    """Provide what a model's sampler calls: a captured call on a GPU, else the model.

    Args:
        model: The model, in evaluation mode, one that can be captured.
        batch: Number of images per call.
        calls: Number of calls; a few do not pay for a capture.

    Yields:
        A denoiser for batches of that size.

    Warns:
        UserWarning: The call cannot be captured, or there is too little memory for a graph.
    """
    if model.device.type != "cuda" or calls < FEWEST or not _permitted.get():
        yield model
        return
    try:
        captured = Captured(model, batch)
    except (PdfastError, torch.OutOfMemoryError) as error:
        warnings.warn(str(error).splitlines()[0], stacklevel=2)
        yield model
        return
    with contextlib.closing(captured):
        yield captured
