"""Samples in the dtype of a data set: uint8 for pictures, floats for other data."""

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Convert float (N, C, H, W) in [-1, 1] to uint8 (N, H, W, C), rounding to nearest."""
    scaled = (images.permute(0, 2, 3, 1).float() + 1.0) * 127.5
    return scaled.round().clamp(0, 255).to(torch.uint8).contiguous()


def to_floats(images: Tensor) -> Tensor:
    """Convert float (N, C, H, W) to float32 (N, H, W, C), unscaled."""
    return images.permute(0, 2, 3, 1).float().contiguous()


def as_stored(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert samples (N, H, W, C) to a set's dtype: floats in [-1, 1] to uint8 if that is it."""
    if images.dtype == dtype:
        return images
    return to_uint8(images.permute(0, 3, 1, 2))
