"""Resizing of feature maps inside a network: 2x2 average pooling, nearest upsampling, or a filter.

A filter is separable: the outer product of its taps with themselves, divided by their sum squared.
Halving takes every second value of the filtered map; doubling is the transpose of halving, times
four (Zhang 2019, Karras et al. 2019; NCSN++ of Song et al. 2021 has the taps 1, 3, 3, 1).

Shape letters: B batch, C channels, H height, W width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows
from torch import Tensor, nn

from pdfast.kernels.resample import avg_pool2x2, upsample2x

PLAIN = (1, 1)  # taps that are the same as average pooling and nearest upsampling


class Filter:
    """A resampling filter, the same for all channels."""

    def __init__(self, taps: Sequence[int] = PLAIN) -> None:
        self.taps = tuple(taps)
        self.padding = (len(self.taps) - 1) // 2
        """Zeros at each border with which halving a map gives exactly half its size."""
        self._on: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def resampled(self, x: Tensor, how: str, defer: bool) -> Tensor:
        """Resize a feature map.

        Args:
            x: Feature map (B, C, H, W).
            how: "up" doubles, "down" halves, "none" returns `x` itself.
            defer: Use pdfast's own kernels for plain taps.
        """
        if how == "none":
            return x
        if self.taps == PLAIN:
            if how == "up":
                return (
                    upsample2x(x) if defer else F.interpolate(x, scale_factor=2.0, mode="nearest")
                )
            return avg_pool2x2(x) if defer else F.avg_pool2d(x, 2)
        if how == "down":
            return self.halved(x, self.padding)
        weight = 4 * self.weight(x)
        channels = x.shape[1]
        return F.conv_transpose2d(x, weight, stride=2, padding=self.padding, groups=channels)

    def halved(self, x: Tensor, padding: int) -> Tensor:
        """Filter x (B, C, H, W), padded with zeros, and return every second value."""
        return F.conv2d(x, self.weight(x), stride=2, padding=padding, groups=x.shape[1])

    def weight(self, x: Tensor) -> Tensor:
        """Return the filter (C, 1, K, K), like x.

        It is cached, because no copy to the device is allowed while a CUDA graph is captured.
        """
        key = x.device, x.dtype
        if key not in self._on:
            taps = torch.tensor(self.taps, dtype=torch.float64, device="cpu")
            whole = torch.outer(taps, taps) / taps.sum().square()
            self._on[key] = whole[None, None].to(device=x.device, dtype=x.dtype)
        return self._on[key].expand(x.shape[1], -1, -1, -1)


class Pyramid(nn.Module):
    """One level of NCSN++'s input pyramid: a 3x3 convolution of the level above, halved and added.

    The filter runs over the convolution's output including its border, which is computed from
    zero padding.
    """

    def __init__(self, conv: nn.Conv2d, taps: Sequence[int], scale: float) -> None:
        super().__init__()
        self.conv = conv
        self.filter, self.scale = Filter(taps), scale

    def forward(self, above: Tensor, h: Tensor) -> Tensor:
        """Return the sum, like h (B, C', H, W), with the level above (B, C, 2 H, 2 W)."""
        assert self.conv.bias is not None
        wide = F.conv2d(above, self.conv.weight, padding=1 + self.filter.padding)
        halved = self.filter.halved(wide, 0) + self.conv.bias[:, None, None]
        return h * self.scale + halved
