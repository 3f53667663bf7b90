"""AdamW with clipping, the learning-rate schedule and averaged weights, in flat buffers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pdfast.config.schema import DistillConfig, LoopConfig
from pdfast.diffusion.angles import AdamWHyperparameters, adamw
from pdfast.distributed import collectives
from pdfast.errors import PdfastError
from pdfast.models.backends import apex_adamw
from pdfast.models.model import Model
from pdfast.training.precision import low_parameters

MOMENTS = "moments.safetensors"
OTHERS = "it belongs to another network; resume with that one, or choose another --out"


class Optimizer:
    """The tensors that an update changes, on the model's device. They stay in place.

    Master weights, gradients, moments and averages are one float32 buffer each (float64 for a
    float64 model), the averages of shape (K, P). The model's parameters become views of the master
    weights. Under bf16, the parameters that are rounded become views of a copy, which the
    optimizer's kernel writes, so that no update casts a weight.
    """

    ALIGN = 16  # parameters begin at multiples of this many numbers, for wide loads and stores

    def __init__(
        self,
        model: Model,
        cfg: LoopConfig,
        dtype: torch.dtype = torch.float32,
        implementation: str = "pdfast",
    ) -> None:
        """Move the model's parameters into the buffers.

        Args:
            model: The model in training.
            cfg: The config's table of the phase.
            dtype: Dtype of convolutions and linear layers.
            implementation: `backends.optimizer`: "pdfast" or "apex".
        """
        self.cfg = cfg
        self._adamw = apex_adamw if implementation == "apex" else adamw
        self._hyperparameters = AdamWHyperparameters(
            max_norm=cfg.grad_clip,
            weight_decay=cfg.weight_decay,
            ema_decays=cfg.averages,
            max_skipped=cfg.max_skipped,
            ema_warmup=cfg.ema_warmup,
        )
        self._params = {n: p for n, p in model.net.named_parameters() if p.requires_grad}
        self._starts, end = [], 0
        for p in self._params.values():
            self._starts.append(end)
            end += -(-p.numel() // self.ALIGN) * self.ALIGN
        zeros = torch.zeros(end, dtype=model.dtype, device=model.device)
        self.weights = zeros
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(zeros), torch.zeros_like(zeros)
        # The processes sum this in one call: the gradient, and behind it the loss.
        self._summed = zeros.new_zeros(end + self.ALIGN)
        self.grads, self.loss = self._summed[:end], self._summed[end]
        self._leaves, self._grads = list(self._params.values()), self._views(self.grads)
        for name, view in self._views(self.weights).items():
            view.copy_(self._params[name].detach())
            self._params[name].data = view
        rounded = dtype != model.dtype == torch.float32
        self._low = low_parameters(model) if rounded else {}
        self.copy = self.weights.to(dtype) if self._low else None
        self._read_copies()
        self.ema = self.weights.repeat(len(cfg.averages), 1) if cfg.averages else None
        self.rate = torch.zeros(1, dtype=torch.float64, device=model.device)
        self.done = torch.zeros(1, dtype=torch.int64, device=model.device)
        # Updates skipped because the loss or gradient was not finite: all, and the last in a row.
        self.skipped = self.done.new_zeros(2)
        # Updates of the moments in earlier rounds, if they are kept from round to round.
        keeps = isinstance(cfg, DistillConfig) and cfg.keep_moments
        self.earlier = torch.zeros_like(self.done) if keeps else None
        self.norm = zeros.new_zeros(())  # of the last update, whether made or skipped
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=model.device)  # of those made
        # Updates made or skipped, and updates skipped, when loss_sum was last reset.
        self.logged = self.done.new_zeros(2)

    def _read_copies(self) -> None:
        """Make the rounded parameters views of the copy."""
        if self.copy is not None:
            copies = self._views(self.copy)
            for name, p in self._low.items():
                p.data = copies[name]

    def restart(self, cfg: LoopConfig) -> None:
        """Begin anew at the weights that `release` left; every tensor stays in place.

        Only the learning rate and its schedule may differ in `cfg`. `load_moments` restores moments
        that are kept.
        """
        self.cfg = cfg
        for tensor in (self.exp_avg, self.exp_avg_sq, self.rate, self.norm, *self._counters()):
            tensor.zero_()
        if self.ema is not None:
            self.ema.copy_(self.weights)
        if self.copy is not None:
            self.copy.copy_(self.weights)
        self._read_copies()

    def released(self) -> bool:
        """Return whether the model's parameters are the master weights, as after `release`."""
        views = self._views(self.weights)
        return all(_place(p) == _place(views[name]) for name, p in self._params.items())

    def _views(self, buffer: Tensor) -> dict[str, Tensor]:
        """Return a buffer's parts by name, each in the shape and strides of its parameter."""
        parts = zip(self._params.items(), self._starts, strict=True)
        begin = buffer.storage_offset()
        return {name: buffer.as_strided(p.shape, p.stride(), begin + at) for (name, p), at in parts}

    def lr(self, update: int) -> float:
        """Return the learning rate of update 0, 1, ..."""
        return self.cfg.rate(update)

    def backward(self, out: Tensor, grad_out: Tensor, loss: Tensor, first: bool) -> None:
        """Differentiate one part of a batch, and add up gradient and loss.

        Args:
            out: Raw output of the model, with its graph.
            grad_out: Gradient of the loss with respect to `out`.
            loss: Loss, 0-d.
            first: Whether it is the first part, so that sums begin at zero.
        """
        grads = torch.autograd.grad(out, self._leaves, grad_out)
        if first:
            _copy_each(self._grads, grads)
            self.loss.copy_(loss)
            return
        if self.copy is None:
            torch._foreach_add_(list(self._grads.values()), grads)
        else:
            # CUDA adds lists of two dtypes one by one, so convert to float32 and add all at once.
            wide = torch.zeros_like(self.grads)
            _copy_each(self._views(wide), grads)
            self.grads.add_(wide)
        self.loss.add_(loss)

    def step(self) -> None:
        """Sum over processes, clip, and apply the gradient at learning rate `self.rate`.

        If the loss or the gradient is not finite, only `done` and `skipped` change.
        """
        collectives.all_reduce(self._summed)
        self.done.add_(1)
        norm = self._adamw(
            self.weights,
            self.grads,
            self.exp_avg,
            self.exp_avg_sq,
            self.ema,
            self.copy,
            self.rate,
            self.done,
            self.loss,
            self.skipped,
            self._hyperparameters,
            self.earlier,
        )
        self.norm.copy_(norm)
        made, with_loss = self.skipped[1] == 0, self.loss_sum + self.loss
        torch.where(made, with_loss, self.loss_sum, out=self.loss_sum)

    def average(self) -> None:
        """Give the model its averaged weights, if any are kept; of several, the first."""
        self.use(self.weights if self.ema is None else self.ema[0])

    def use(self, weights: Tensor) -> None:
        """Give the model these weights: a flat buffer, like each of `candidates`."""
        self.weights.copy_(weights)
        if self.copy is not None:
            self.copy.copy_(self.weights)

    def candidates(self) -> dict[float, Tensor]:
        """Return a copy of the raw weights, under 0, and the averages, each under its decay."""
        averages = () if self.ema is None else self.ema
        return {0.0: self.weights.clone(), **dict(zip(self.cfg.averages, averages, strict=True))}

    def release(self) -> None:
        """Give the model back its master weights, unrounded."""
        for name, view in self._views(self.weights).items():
            self._params[name].data = view

    def tensors(self) -> list[Tensor]:
        """Return the tensors that an update changes and the next one reads."""
        kept = [self.weights, self.exp_avg, self.exp_avg_sq, self.ema, self.copy]
        return [*(t for t in kept if t is not None), *self._counters()]

    def _counters(self) -> list[Tensor]:
        counters = [self.done, self.loss_sum, self.skipped, self.logged]
        return counters if self.earlier is None else [*counters, self.earlier]

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return these tensors by file and parameter, without the rounded copy."""
        moments = {"step": self.done, "skipped": self.skipped}
        moments |= {"loss_sum": self.loss_sum, "logged": self.logged}
        moments |= {} if self.earlier is None else {"earlier": self.earlier}
        files = {
            "weights.safetensors": self._views(self.weights),
            MOMENTS: moments | self._moment_views(),
        }
        averages = () if self.ema is None else self.ema
        for name, average in zip(average_files(self.cfg), averages, strict=True):
            files[name] = self._views(average)
        return files

    def _moment_views(self) -> dict[str, Tensor]:
        pairs = (("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq))
        return {
            f"{key}.{name}": view
            for key, buffer in pairs
            for name, view in self._views(buffer).items()
        }

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Return the moments that a round leaves for the next one, by file.

        "earlier" in it is the number of all updates made so far.
        """
        assert self.earlier is not None
        made = self.earlier + self.done - self.skipped[0]
        return {MOMENTS: {"earlier": made, **self._moment_views()}}

    def load_moments(self, files: dict[str, dict[str, Tensor]]) -> None:
        """Begin with the last round's `moments`; raise PdfastError if they do not fit."""
        assert self.earlier is not None
        self._take(files, {MOMENTS: {"earlier": self.earlier, **self._moment_views()}})

    def load(self, files: dict[str, dict[str, Tensor]]) -> None:
        """Restore a `state`; if it does not fit, raise PdfastError and change nothing."""
        self._take(files, self.state())
        if self.copy is not None:
            self.copy.copy_(self.weights)

    def _take(
        self, files: dict[str, dict[str, Tensor]], mine: dict[str, dict[str, Tensor]]
    ) -> None:
        """Copy saved tensors into the tensors of the same files and names."""
        pairs = []
        for file, tensors in mine.items():
            for name, tensor in tensors.items():
                saved = files.get(file, {}).get(name)
                if saved is None or _kind(saved) != _kind(tensor):
                    but = "" if saved is None else f" (but {_kind(saved)})"
                    raise PdfastError(
                        f"the saved state has no {name} of {_kind(tensor)} in {file}{but}: {OTHERS}"
                    )
                pairs.append((tensor, saved))
        for file, saved_tensors in files.items():
            for name in sorted(saved_tensors.keys() - mine.get(file, {}).keys()):
                raise PdfastError(
                    f"the saved state has {name} in {file}, which this run does not keep: {OTHERS}"
                )
        for tensor, saved in pairs:
            tensor.copy_(saved)


def average_files(cfg: LoopConfig) -> list[str]:
    """Return the file of each average in a state; with `ema_decays` the names hold the decays."""
    if isinstance(cfg, DistillConfig) and cfg.ema_decays:
        return [f"ema_{decay}.safetensors" for decay in cfg.ema_decays]
    return ["ema.safetensors"] if cfg.averages else []


def _place(tensor: Tensor) -> tuple[int, torch.dtype]:
    return tensor.data_ptr(), tensor.dtype


def _copy_each(views: Mapping[str, Tensor], grads: Sequence[Tensor]) -> None:
    """Copy each gradient to its view, with as few launches as possible.

    CUDA copies a list in one launch if it has one dtype and the strides of the views.
    """
    lists: dict[tuple[torch.dtype, bool], tuple[list[Tensor], list[Tensor]]] = {}
    for view, grad in zip(views.values(), grads, strict=True):
        key = grad.dtype, grad.stride() == view.stride()
        into, source = lists.setdefault(key, ([], []))
        into.append(view)
        source.append(grad)
    for into, source in lists.values():
        torch._foreach_copy_(into, source)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
