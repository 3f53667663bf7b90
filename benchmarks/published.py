"""The published algorithm in plain PyTorch, as a competent user writes it: the update's peer.

The network is pdfast's, module by module and weight by weight, with its fused ops taken out:
nn.GroupNorm, FiLM and SiLU are PyTorch's own. The losses are the published ones in x space
(`pdfast/reference.py`); noise comes from torch.randn, gradients from autograd, the update from
torch.optim.AdamW (fused on a GPU, foreach on a CPU) after clip_grad_norm_.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from live import enliven
from torch import Tensor, nn

from pdfast.config.schema import Config
from pdfast.distillation.rounds import remove_dropout
from pdfast.distillation.teacher import new_model
from pdfast.models.blocks import GroupNormSiLU
from pdfast.models.model import Model
from pdfast.reference import distillation_loss, training_loss

Phase = Literal["train", "distill"]


def norm_film_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    film: Tensor | None = None,
    *,
    groups: int,
    eps: float,
    silu: bool,
) -> Tensor:
    """Compute group_norm_silu by separate PyTorch ops, in the layout of x."""
    h = F.group_norm(x, groups, weight, bias, eps)
    if film is not None:
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        h = h * (1 + scale) + shift
    return F.silu(h) if silu else h


def plain(model: Model, channels_last: bool) -> Model:
    """Give the model PyTorch's norms, and the default layout unless `channels_last`; return it."""
    model.net.defer = False  # compute sums and concatenations at once
    for module in model.modules():
        if isinstance(module, GroupNormSiLU):
            module.op = norm_film_silu
    if not channels_last:
        model.to(memory_format=torch.contiguous_format)
        # The U-Net makes its input channels-last, and everything after it would be so too.
        model.net.conv_in.register_forward_pre_hook(lambda _, args: (args[0].contiguous(),))
    return model


@contextlib.contextmanager
def settings(tf32: bool) -> Iterator[None]:
    """Let cuDNN pick its fastest algorithms, and allow TF32 or not; restore both after it."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = True, tf32, tf32
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


class Published:
    """A trainer of one phase of a config; each `update()` is one update."""

    def __init__(
        self,
        config: Config,
        phase: Phase,
        images: Tensor,
        num_steps: int,
        *,
        autocast: bool = False,
        compiled: str | None = None,
    ) -> None:
        """`images` are unlabelled, uint8 (N, H, W, C), on the device of all the work.

        `num_steps` are the student's sampling steps, in distillation. `autocast` means bf16 and the
        channels-last layout; without it float32 (TF32 allowed) and the default layout. `compiled`
        is a mode of torch.compile for the networks.
        """
        self.config, self.phase, self.images = config, phase, images
        self.num_steps, self.autocast = num_steps, autocast
        self.cfg = config.train if phase == "train" else config.distill
        self.model = plain(enliven(new_model(config, images.device)), autocast).train()
        self.named = dict(self.model.net.named_parameters())
        if phase == "distill":
            self.teacher = copy.deepcopy(remove_dropout(self.model)).eval().requires_grad_(False)
        if compiled:
            for model in [self.model] + ([self.teacher] if phase == "distill" else []):
                model.net = torch.compile(model.net, mode=compiled)
        self.params = list(self.named.values())
        self.ema = [p.detach().clone() for p in self.params] if self.cfg.ema_decay else []
        on_gpu = images.device.type == "cuda"
        kind = {"fused": True} if on_gpu else {"foreach": True}
        options = {"lr": self.cfg.lr, "weight_decay": self.cfg.weight_decay}
        self.optimizer = torch.optim.AdamW(self.params, **options, **kind)

    def update(self) -> Tensor:
        """Draw a batch, and make one step of the optimizer; return the mean loss."""
        with settings(tf32=True):
            if self.images.device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            x = self.draw()
            eps = torch.randn_like(x)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
                loss = self.loss(x, eps).mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            with torch.profiler.record_function("optimizer"):
                self.step()
        return loss.detach()

    def gradients(self) -> dict[str, Tensor]:
        """Return the clipped gradients of the last update, by parameter name."""
        return {n: torch.zeros(()) if p.grad is None else p.grad for n, p in self.named.items()}

    def draw(self) -> Tensor:
        """Draw images (B, C, H, W) in [-1, 1], mirrored at random if the config says so."""
        images, batch = self.images, self.cfg.batch
        chosen = images[torch.randint(len(images), (batch,), device=images.device)]
        x = chosen.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        x = x.contiguous(memory_format=torch.channels_last) if self.autocast else x.contiguous()
        if self.config.data.horizontal_flip:
            mirrored = torch.rand(batch, 1, 1, 1, device=x.device) < 0.5
            x = torch.where(mirrored, x.flip(3), x)
        return x

    def loss(self, x: Tensor, eps: Tensor) -> Tensor:
        """Return the loss per image, by Algorithm 1 or 2."""
        weight, device = self.cfg.loss_weight, x.device
        if self.phase == "train":
            u = torch.rand(len(x), device=device)
            return training_loss(self.model, x, eps, u, weight)
        i = torch.randint(self.num_steps, (len(x),), device=device)
        return distillation_loss(self.model, self.teacher, x, eps, i, self.num_steps, weight)[0]

    @torch.no_grad()
    def step(self) -> None:
        """Clip, make a step of AdamW, and update the averaged weights."""
        if self.cfg.grad_clip:
            nn.utils.clip_grad_norm_(self.params, self.cfg.grad_clip)
        self.optimizer.step()
        if self.ema:
            torch._foreach_lerp_(self.ema, self.params, 1.0 - self.cfg.ema_decay)
