"""The U-Net of Salimans & Ho 2022, as in the authors' released code, for any image size.

It has residual blocks with FiLM, BigGAN-style resampling inside them, self-attention at chosen
resolutions, GroupNorm with eps 1e-6, and zero-initialised last layers. Options of the config turn
it into the U-Net of DDPM (Ho et al. 2020) as in diffusers' pipelines, which embeds a timestep, adds
the embedding instead of FiLM, and resamples by convolutions. The options of [model.edm] turn it
into ADM, DDPM++ or NCSN++ with the preconditioning of Karras et al. 2022.

Activations are in channels-last memory order, so that a convolution's output is both the token
matrix of attention and the row-major input of GroupNorm. (On CUDA, PyTorch's GroupNorm would
convert to NCHW.)

Shape letters: B batch, C channels, H height, W width, E embedding width.
"""

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812  # the name everyone knows
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pdfast.config.schema import NetConfig
from pdfast.diffusion.betas import schedule_of
from pdfast.diffusion.conditioning import NO_CLASS, UNCONDITIONAL, Conditioning
from pdfast.diffusion.preconditioning import preconditioner_of
from pdfast.models.blocks import (
    Attention,
    Conv,
    Downsample,
    GroupNormSiLU,
    Pending,
    ResBlock,
    Stage,
    Upsample,
    conv,
    defers_sums,
    linear,
)
from pdfast.models.embeddings import (
    fourier_embedding,
    guidance_embedding,
    logsnr_embedding,
    noise_embedding,
    timestep_embedding,
)
from pdfast.models.resampling import Pyramid


class UNet(nn.Module):
    """The network of a `Model`: (z, logsnr, label) to a raw output.

    The output has `cfg.out_channels` channels and z's dtype, which must be that of the
    convolutions. With [model.edm] it includes the preconditioning, so that it is the prediction
    that the parameterization names. The schedule is used only to embed a timestep.
    """

    def __init__(self, cfg: NetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.schedule = schedule_of(cfg) if cfg.embedding == "timestep" else None
        self.checkpoint = False  # keep only the stages' inputs for the backward pass
        self.defer: bool | None = None  # defer sums; None: as `defers_sums` returns
        self.preconditioner = preconditioner_of(cfg)
        noise_ch = cfg.edm.noise_ch or cfg.ch
        if cfg.edm.fourier:
            self.register_buffer("noise_freqs", 16 * torch.randn(noise_ch // 2))
        self.emb0 = linear(noise_ch, cfg.emb_ch)
        self.emb1 = linear(cfg.emb_ch, cfg.emb_ch)
        self.emb_class = linear(cfg.num_classes, cfg.emb_ch) if cfg.num_classes else None
        # Zero, so that a guided student starts equal to its teacher. emb0 has the bias.
        self.emb_guidance: nn.Linear | None = None
        if cfg.guidance:
            self.emb_guidance = nn.Linear(cfg.ch, cfg.emb_ch, bias=False)
            nn.init.zeros_(self.emb_guidance.weight)
        self.conv_in = conv(cfg.channels, cfg.ch, 3)

        def attention(ch: int, size: int) -> list[nn.Module]:
            return [Attention(ch, cfg)] if size in cfg.attn_resolutions else []

        size, ch, skips = cfg.image_size, cfg.ch, [cfg.ch]
        widths = [cfg.ch * mult for mult in cfg.ch_mult]
        inside = cfg.resample == "resnet"

        # For each halving, the part of z that is added after it.
        self.pyramid = nn.ModuleList()
        # Each stage of `down` adds a skip connection; each stage of `up` takes one.
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            for _ in range(cfg.num_res_blocks):
                self.down.append(Stage([ResBlock(ch, width, cfg), *attention(width, size)]))
                ch = width
                skips.append(ch)
            if level < len(widths) - 1:
                halves = ResBlock(ch, ch, cfg, "down") if inside else Downsample(ch, cfg)
                self.down.append(Stage([halves]))
                if cfg.edm.pyramid:
                    above = ch if self.pyramid else cfg.channels
                    added = conv(above, ch, 3), cfg.edm.filter, cfg.edm.residual_scale
                    self.pyramid.append(Pyramid(*added))
                size //= 2
                skips.append(ch)

        self.mid = Stage([ResBlock(ch, ch, cfg), Attention(ch, cfg), ResBlock(ch, ch, cfg)])

        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for block in range(cfg.num_res_blocks + 1):
                stage: list[nn.Module] = [ResBlock(ch + skips.pop(), width, cfg)]
                if cfg.edm.attention_up == "all" or block == cfg.num_res_blocks:
                    stage += attention(width, size)
                ch = width
                if level > 0 and block == cfg.num_res_blocks:
                    stage.append(ResBlock(ch, ch, cfg, "up") if inside else Upsample(ch))
                    size *= 2
                self.up.append(Stage(stage))
        assert not skips

        self.norm_out = GroupNormSiLU(cfg, ch)
        self.conv_out = conv(ch, cfg.out_channels, 3, zero=True)
        for layer, res_block in enumerate(self._blocks()):
            res_block.layer = layer
        self._film_widths = [block.film.out_features for block in self._blocks()]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _stages(self) -> list[Stage]:
        return [*self.down, self.mid, *self.up]

    def _blocks(self) -> list[ResBlock]:
        return [block for stage in self._stages() for block in stage.blocks()]

    def _defers(self) -> bool:
        """Whether sums are deferred, and the FiLM layers computed as one product."""
        weight = self.conv_in.weight
        return defers_sums(weight.device, weight.dtype) if self.defer is None else self.defer

    def _last_biases(self) -> Iterator[Tensor | None]:
        """Yield each block's last bias, its shortcut's included; one fused op adds them all."""
        blocks = [block for stage in self._stages() for block in stage.blocks()]
        both = [(b.conv2.bias, b.shortcut.bias) for b in blocks if isinstance(b.shortcut, Conv)]
        sums = iter(torch._foreach_add(*map(list, zip(*both, strict=True))) if both else ())
        for block in blocks:
            yield next(sums) if isinstance(block.shortcut, Conv) else block.conv2.bias

    def precise(self) -> Iterator[nn.Module]:
        """Yield the modules that stay in float32 when the others use a lower precision."""
        layers = (self.emb0, self.emb1, self.emb_class, self.emb_guidance)
        yield from (layer for layer in layers if layer is not None)
        yield from (module for module in self.modules() if isinstance(module, GroupNormSiLU))

    def embedding(self, logsnr: Tensor) -> Tensor:
        """Return the input of the first dense layer: the embedded noise level.

        Args:
            logsnr: Noise levels (B,).

        Returns:
            (B, `emb0.in_features`), of the layer's dtype.
        """
        cfg, dtype = self.cfg, self.emb0.weight.dtype
        if cfg.embedding == "noise":
            assert self.preconditioner is not None
            noise = self.preconditioner.noise(logsnr)
            if cfg.edm.fourier:
                return fourier_embedding(noise, self.noise_freqs)  # type: ignore[arg-type]
            return noise_embedding(noise, self.emb0.in_features, cfg.freq_shift).to(dtype)
        if self.schedule is None:
            return logsnr_embedding(logsnr, cfg.ch, dtype)
        t = cfg.timesteps * self.schedule.u(logsnr) - 1
        return timestep_embedding(t, cfg.ch, cfg.freq_shift).to(dtype)

    def guide(self, w: Tensor) -> Tensor:
        """Embed guidance weights (B,) as (B, E), to be added to the first dense layer's output."""
        assert self.emb_guidance is not None
        w = w.to(self.emb_guidance.weight.dtype)
        return self.emb_guidance(guidance_embedding(w, self.cfg.ch, *self.cfg.guidance))  # type: ignore[no-any-return]

    def _with_class(self, emb: Tensor, label: Tensor | None) -> Tensor:
        """Add the embedding of labels (B,) to `emb` (B, E), unless there are no classes."""
        if self.emb_class is None:
            return emb
        if label is None:
            raise ValueError("this model is class-conditional: pass label, int64 of shape (B,)")
        # A one-hot input to a dense layer is a row of its weight, plus its bias.
        rows = self.emb_class.weight.t()
        if self.cfg.label_dropout:
            told = label != NO_CLASS
            rows = F.embedding(label * told, rows) * told[:, None]
        else:
            rows = F.embedding(label, rows)
        return emb + rows + self.emb_class.bias

    def films(self, logsnr: Tensor, conditioning: Conditioning = UNCONDITIONAL) -> Tensor:
        """Return the FiLM parameters of all residual blocks.

        On a GPU one product computes them all: a network has dozens of blocks, and each one's layer
        is too small to keep the GPU busy.

        Args:
            logsnr: Noise levels (B,).
            conditioning: Labels and guidance weights (B,), where the network takes them.

        Returns:
            The blocks' parameters side by side: 2C each with FiLM, (B, sum of 2C), and without it
            the C added values. They are of the convolutions' dtype.

        Raises:
            ValueError: Labels or guidance weights are missing.
        """
        label, guidance = conditioning.label, conditioning.guidance
        emb = self.emb0(self.embedding(logsnr))
        if self.emb_guidance is not None:
            if guidance is None:
                raise ValueError("this model takes guidance weights: pass guidance, of shape (B,)")
            emb = emb + self.guide(guidance)
        if self.cfg.edm.class_first:
            emb = self.emb1(F.silu(self._with_class(emb, label)))
        else:
            emb = self._with_class(self.emb1(F.silu(emb)), label)
        emb = F.silu(emb).to(self.conv_in.weight.dtype)
        layers = [block.film for block in self._blocks()]
        if not self._defers():  # on a CPU, starting a product costs nothing
            return torch.cat([layer(emb) for layer in layers], dim=1)
        weight = torch.cat([layer.weight for layer in layers])  # its gradient is split, not copied
        return F.linear(emb, weight, torch.cat([layer.bias for layer in layers]))

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
        *,
        conditioning: Conditioning | None = None,
    ) -> Tensor:
        """Return the raw output.

        Args:
            z: Noisy images (B, C, H, W), of the convolutions' dtype.
            logsnr: Noise levels log(alpha^2 / sigma^2), (B,).
            label: Classes, int64 (B,), of a class-conditional network; NO_CLASS for no class, if
                the network was trained with label dropout.
            guidance: Guidance weights (B,), of a guided student.
            conditioning: All conditioning at once, with FiLM parameters from a table and dropout's
                random state; replaces `label` and `guidance`.

        Returns:
            Raw output (B, `cfg.out_channels`, H, W), of z's dtype.

        Raises:
            ValueError: Labels or guidance weights are missing.
        """
        told = Conditioning(label, guidance) if conditioning is None else conditioning
        films = self.films(logsnr, told) if told.films is None else told.films
        film = iter(torch.split(films, self._film_widths, dim=1))

        z = z.contiguous(memory_format=torch.channels_last)
        defer = self._defers()
        bias = iter(self._last_biases() if defer else itertools.repeat(None))

        def run(stage: Stage, h: Pending, skip: Tensor | None = None) -> tuple[Pending, Tensor]:
            told_of = [next(film) for _ in stage.blocks()], [next(bias) for _ in stage.blocks()]
            rest = (skip, *told_of, told.dropout_rng, defer)
            # Grad mode first: a teacher's compiled code then serves both values of `checkpoint`.
            if torch.is_grad_enabled() and self.checkpoint:
                x, through = h.written(), stage.bordered
                # Dropout is counter-based: there is no generator whose state must be kept.
                out = checkpoint(through, x, *rest, use_reentrant=False, preserve_rng_state=False)
                return Pending(out), x
            return stage(h, *rest)  # type: ignore[no-any-return]

        if self.preconditioner is not None:
            given = z
            z = self.preconditioner.scaled(z, logsnr)
        above, added = z, iter(self.pyramid)
        h, skips = Pending(self.conv_in(z)), []
        for stage in (*self.down, self.mid):  # their first layers return their input as one tensor
            h, x = run(stage, h)
            skips.append(x)
            if self.pyramid and stage.halves():
                above = next(added)(above, h.written())
                h = Pending(above)
        for stage in self.up:
            h, _ = run(stage, h, skips.pop())  # type: ignore[arg-type]  # a ModuleList of Stages
        out: Tensor = self.conv_out(self.norm_out(h)[0])
        return (
            out if self.preconditioner is None else self.preconditioner.output(given, out, logsnr)
        )
