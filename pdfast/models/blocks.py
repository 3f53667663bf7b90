"""Blocks of the U-Net: convolutions, norms, residual blocks, attention, and stages of them.

On a GPU, adding a convolution's bias, adding a residual, and concatenating a skip connection would
each take a separate pass over memory. They are deferred to the op that reads the tensor next, which
is nearly always a norm: see `Pending`. On a CPU, convolutions add their bias for free, and
deferring the rest gains too little.

Shape letters: B batch, C channels, H height, W width.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows
from torch import Tensor, nn

from pdfast.config.schema import NetConfig
from pdfast.diffusion.conditioning import DropoutRng
from pdfast.kernels.dropout import dropout
from pdfast.kernels.group_norm_silu import group_norm_silu, sum_group_norm_silu
from pdfast.models.resampling import Filter


def lecun_normal_(weight: Tensor) -> None:
    """Fill `weight` (out, in, *kernel) with a truncated normal of variance 1 / fan_in."""
    fan_in = weight[0].numel()
    # The standard normal cut at two standard deviations has standard deviation 0.8796.
    std = fan_in**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def defers_sums(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a network on this device and of this type defers sums and concatenations."""
    return device.type in ("cuda", "meta") and dtype != torch.float64


class Pending(NamedTuple):
    """An activation as a deferred sum: h + addend + residual."""

    h: Tensor
    """(B, C, H, W)."""
    addend: Tensor | None = None
    """Deferred biases, or an embedding that includes them; (C,) or (B, C)."""
    residual: Tensor | None = None
    """(B, C, H, W), of h's dtype."""

    def written(self) -> Tensor:
        """Compute the sum, in separate passes; return `h` itself if there is nothing to add."""
        h = self.h
        if self.addend is not None:
            h = h + self.addend.to(h.dtype)[..., None, None]
        return h if self.residual is None else h + self.residual


class Conv(nn.Conv2d):
    """A convolution whose bias may be deferred to the reader of its output."""

    def forward(self, x: Tensor, defer: bool = False) -> Tensor:
        """Convolve x (B, C, H, W) to (B, C', H', W'), without the bias if `defer`."""
        if not defer:
            return super().forward(x)
        return F.conv2d(x, self.weight, None, self.stride, self.padding)

    def pending(self, x: Tensor, defer: bool) -> Pending:
        """Convolve x (B, C, H, W); with `defer`, the bias becomes the addend of the result."""
        return Pending(self(x, defer), self.bias if defer else None)


def conv(in_ch: int, out_ch: int, kernel: int, zero: bool = False) -> Conv:
    """Return a stride-1, same-size convolution with the published initialisation.

    Args:
        in_ch: Input channels.
        out_ch: Output channels.
        kernel: Kernel size, odd.
        zero: Initialise the weight to zero.
    """
    layer = Conv(in_ch, out_ch, kernel, padding=kernel // 2)
    nn.init.zeros_(layer.weight) if zero else lecun_normal_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # bias=True above
    return layer


def linear(in_features: int, out_features: int, zero: bool = False) -> nn.Linear:
    """Return a dense layer with the published initialisation, or of weight zero."""
    layer = nn.Linear(in_features, out_features)
    nn.init.zeros_(layer.weight) if zero else lecun_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class GroupNormSiLU(nn.GroupNorm):
    """GroupNorm, then optional FiLM `h (1 + scale) + shift`, then optional SiLU."""

    def __init__(self, cfg: NetConfig, channels: int, silu: bool = True) -> None:
        super().__init__(cfg.groups_of(channels), channels, eps=cfg.norm_eps)
        self.silu = silu
        self.op: Callable[..., Tensor] = group_norm_silu  # may be replaced by backends.py

    def forward(  # type: ignore[override]  # more than nn.GroupNorm
        self,
        x: Pending,
        film: Tensor | None = None,
        skip: Tensor | None = None,
        keep_sum: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Normalise the concatenation of an activation and a skip connection.

        Args:
            x: Activation (B, C, H, W).
            film: FiLM scales, then shifts, (B, 2 (C + C')); None for no FiLM.
            skip: Skip connection (B, C', H, W), concatenated after x; None for none.
            keep_sum: Also return x as one tensor.

        Returns:
            The result (B, C + C', H, W), channels-last; and the sum of x (B, C, H, W), or None.
        """
        params = self.weight, self.bias, film
        if self.op is group_norm_silu:
            return sum_group_norm_silu(
                x.h,
                *params,
                addend=x.addend,
                residual=x.residual,
                skip=skip,
                keep_sum=keep_sum,
                groups=self.num_groups,
                eps=self.eps,
                silu=self.silu,
            )
        s = x.written()
        whole = s if skip is None else torch.cat([s, skip], dim=1)
        y = self.op(whole, *params, groups=self.num_groups, eps=self.eps, silu=self.silu)
        return y, s if keep_sum else None


class Downsample(nn.Module):
    """Halving of the size by a 3x3 convolution with stride 2."""

    def __init__(self, ch: int, cfg: NetConfig) -> None:
        super().__init__()
        self.conv = conv(ch, ch, 3)
        self.conv.stride, self.conv.padding = (2, 2), (cfg.downsample_padding,) * 2

    def forward(self, x: Tensor, defer: bool = False) -> Pending:
        """Halve x (B, C, H, W) to (B, C, H / 2, W / 2)."""
        if self.conv.padding == (0, 0):
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv.pending(x, defer)


class Upsample(nn.Module):
    """Doubling of the size by nearest-neighbour upsampling, then a 3x3 convolution."""

    def __init__(self, ch: int) -> None:
        super().__init__()
        self.conv, self.filter = conv(ch, ch, 3), Filter()

    def forward(self, x: Tensor, defer: bool = False) -> Pending:
        """Double x (B, C, H, W) to (B, C, 2 H, 2 W)."""
        return self.conv.pending(self.filter.resampled(x, "up", defer), defer)


class ResBlock(nn.Module):
    """A residual block: norm, SiLU, resample, conv; norm, FiLM, SiLU, dropout, conv.

    Without FiLM the embedding is added before the second norm.
    """

    def __init__(self, in_ch: int, out_ch: int, cfg: NetConfig, resample: str = "none") -> None:
        super().__init__()
        self.resample, self.filter = resample, Filter(cfg.edm.filter)
        self.residual_scale = cfg.edm.residual_scale
        self.norm1 = GroupNormSiLU(cfg, in_ch)
        self.conv1 = conv(in_ch, out_ch, 3)
        self.scales = cfg.film
        self.film = linear(cfg.emb_ch, 2 * out_ch if cfg.film else out_ch)
        self.norm2 = GroupNormSiLU(cfg, out_ch)
        self.layer = 0  # number of the dropout's random stream, set by UNet
        self.dropout = cfg.dropout
        self.conv2 = conv(out_ch, out_ch, 3, zero=True)
        projects = in_ch != out_ch or (cfg.edm.projection and resample != "none")
        self.shortcut = conv(in_ch, out_ch, 1) if projects else nn.Identity()

    def forward(
        self,
        x: Pending,
        film: Tensor,
        dropout_rng: DropoutRng | None = None,
        skip: Tensor | None = None,
        defer: bool = False,
        bias: Tensor | None = None,
    ) -> tuple[Pending, Tensor]:
        """Apply the block to the concatenation of an activation and a skip connection.

        Args:
            x: Activation; it and `skip` have C channels together.
            film: FiLM scales, then shifts, (B, 2C'); without FiLM the embedding (B, C').
            dropout_rng: Counter-based random state of dropout; None for no dropout.
            skip: Skip connection; None for none.
            defer: Defer sums to their readers.
            bias: With `defer`, the sum (C',) of the biases of the last convolution and, if it is a
                convolution, of the shortcut.

        Returns:
            The block's output (B, C', H', W'); and x as one tensor.
        """
        h, x_sum = self.norm1(x, skip=skip, keep_sum=True)
        inner = self.conv1.pending(self.filter.resampled(h, self.resample, defer), defer)
        if self.scales:
            h, _ = self.norm2(inner, film)
        elif inner.addend is not None:
            h, _ = self.norm2(Pending(inner.h, film + inner.addend))
        else:
            h, _ = self.norm2(Pending(inner.h + film[:, :, None, None]))
        if dropout_rng is not None and self.dropout:
            h = dropout(h, self.dropout, layer=self.layer, **dropout_rng._asdict())
        h = self.conv2.pending(h, defer).h
        residual = self.filter.resampled(x_sum, self.resample, defer)
        if isinstance(self.shortcut, Conv):
            if skip is None:
                residual = self.shortcut(residual, defer)
            else:
                residual = _product_of_both(residual, skip, self.shortcut.weight)
        elif self.residual_scale != 1:
            residual = residual * self.residual_scale
        return (Pending(h, bias, residual) if defer else Pending(h + residual)), x_sum


def _product_of_both(x: Tensor, skip: Tensor, weight: Tensor) -> Tensor:
    """Return the 1x1 convolution of [x | skip] by weight (C', C, 1, 1) without concatenating."""
    b, _, height, width = x.shape
    of_x, of_skip = torch.split(weight.flatten(1), [x.shape[1], skip.shape[1]], dim=1)
    pixels, beside = (t.permute(0, 2, 3, 1).flatten(0, 2) for t in (x, skip))
    out: Tensor = (pixels @ of_x.t()).addmm_(beside, of_skip.t())
    return out.view(b, height, width, -1).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Self-attention over all pixels with a residual, and one fused q/k/v projection."""

    def __init__(self, ch: int, cfg: NetConfig) -> None:
        super().__init__()
        self.num_heads = cfg.num_heads or ch // cfg.head_dim
        self.residual_scale = cfg.edm.residual_scale
        # May be replaced by backends.py.
        self.attend: Callable[[Tensor, Tensor, Tensor], Tensor] = F.scaled_dot_product_attention
        self.norm = GroupNormSiLU(cfg, ch, silu=False)
        self.qkv = linear(ch, 3 * ch)
        self.proj = linear(ch, ch, zero=True)

    def forward(self, x: Pending, defer: bool = False) -> tuple[Pending, Tensor]:
        """Attend over the pixels of x.

        Args:
            x: Activation (B, C, H, W).
            defer: Defer sums to their readers.

        Returns:
            The output (B, C, H, W); and x as one tensor.
        """
        y, x_sum = self.norm(x, keep_sum=True)
        b, c, height, width = y.shape
        tokens = y.permute(0, 2, 3, 1).reshape(b, height * width, c)
        heads = b, height * width, self.num_heads, c // self.num_heads
        # chunk: its backward concatenates the gradients in the layout that the product's reads.
        q, k, v = (part.view(heads).transpose(1, 2) for part in self.qkv(tokens).chunk(3, dim=-1))
        h: Tensor = self.attend(q, k, v)
        h = h.transpose(1, 2).reshape(b, height * width, c)
        bias = self.proj.bias
        h = F.linear(h, self.proj.weight, None if defer else bias)
        h = h.view(b, height, width, c).permute(0, 3, 1, 2)
        residual = x_sum if self.residual_scale == 1 else x_sum * self.residual_scale
        return (Pending(h, bias, residual) if defer else Pending(residual + h)), x_sum


class Stage(nn.ModuleList):
    """Layers between two skip connections: residual blocks and attention."""

    def forward(
        self,
        h: Pending,
        skip: Tensor | None,
        films: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        dropout_rng: DropoutRng | None,
        defer: bool,
    ) -> tuple[Pending, Tensor]:
        """Apply all layers to the concatenation of an activation and a skip connection.

        Args:
            h: Activation (B, C, H, W).
            skip: Skip connection (B, C', H, W); None for none.
            films: FiLM parameters of each residual block.
            biases: Deferred biases of each residual block; None where nothing is deferred.
            dropout_rng: Counter-based random state of dropout; None for no dropout.
            defer: Defer sums to their readers.

        Returns:
            The output; and h as one tensor, which without `defer` includes the skip connection.
        """
        if skip is not None and not defer:
            h, skip = Pending(torch.cat([h.written(), skip], dim=1)), None
        film, bias, first = iter(films), iter(biases), None
        for layer in self:
            if isinstance(layer, ResBlock):
                h, x = layer(h, next(film), dropout_rng, skip, defer, next(bias))
                skip = None
            elif isinstance(layer, Attention):
                h, x = layer(h, defer)
            else:
                x = h.written()
                h = layer(x, defer)
            first = x if first is None else first
        assert first is not None
        return h, first

    def bordered(
        self,
        h: Tensor,
        skip: Tensor | None,
        films: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        dropout_rng: DropoutRng | None,
        defer: bool,
    ) -> Tensor:
        """Apply `forward` with plain tensors as input and output, for checkpointing."""
        return self(Pending(h), skip, films, biases, dropout_rng, defer)[0].written()  # type: ignore[no-any-return]

    def halves(self) -> bool:
        """Whether one of the residual blocks halves the size."""
        return any(block.resample == "down" for block in self.blocks())

    def blocks(self) -> list[ResBlock]:
        """Return the residual blocks, in order."""
        return [layer for layer in self if isinstance(layer, ResBlock)]
