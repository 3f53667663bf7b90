"""Samples as a set stores its images: uint8, or floats of data that are no pictures."""

import torch
from torch import Tensor


def to_uint8(images: Tensor) -> Tensor:
    """Float (N, C, H, W) in [-1, 1] -> uint8 (N, H, W, C), rounded to nearest."""
    scaled = (images.permute(0, 2, 3, 1).float() + 1.0) * 127.5
    return scaled.round().clamp(0, 255).to(torch.uint8).contiguous()


def to_floats(images: Tensor) -> Tensor:
    """Float (N, C, H, W) -> float32 (N, H, W, C), as they are."""
    return images.permute(0, 2, 3, 1).float().contiguous()


def as_stored(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Samples (N, H, W, C) as a set of this dtype holds them: pictures in uint8, if it does."""
    if images.dtype == dtype:
        return images
    return to_uint8(images.permute(0, 3, 1, 2))
