"""Custom networks: any nn.Module, with its sample shape, parameterization and schedule.

    network = pdfast.Network(module, shape=(1, 64))
    student = pdfast.distill(teacher=network, data=signals, rounds=8)
    signals = student.sample(16, steps=4)  # (16, 1, 64)

The module maps (z, logsnr, label) to a raw output: z (B, *shape) and logsnr (B,) of its own dtype,
label int64 (B,), or None without classes. All are contiguous. The module always runs in evaluation
mode, also in training: dropout is off, and batch norms use their running statistics. The engine and
the kernels see every sample as an image (C, H, W): they merge the axes between the first and the
last, and treat D numbers without further axes as (D, 1, 1).
"""

import contextlib
import copy
import math
import typing
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pdfast.config.class_names import checked
from pdfast.config.former import formerly
from pdfast.config.schema import Parameterization
from pdfast.config.serialization import check
from pdfast.diffusion.conditioning import Conditioning
from pdfast.diffusion.samplers import Denoiser
from pdfast.diffusion.schedules import CosineSchedule, FormulaSchedule, Schedule
from pdfast.diffusion.wrappers import Adapter, level_at, schedule_from
from pdfast.errors import UsageError
from pdfast.models.images import to_floats
from pdfast.models.lanes import Lanes
from pdfast.models.model import Model
from pdfast.storage.files import reason

OWN = "own"  # `network` in the config.json of a custom network
MAX_CLASSES = 2**20
LEAST = -2 * math.log(2**24)  # logSNR: at lower ones, alpha x is lost in z's float32 rounding


class OutOfRange(UsageError):  # noqa: N818  # named for the condition
    """A schedule has noise levels that a network was not made for."""


@formerly(head="parameterization")
class Network(Model):
    """A custom network: a module with its sample shape, parameterization and schedule.

    It has the methods of every model, such as `sample` and `predict_x`. `pdfast.distill` leaves it
    unchanged.

    Example:
        ```python
        network = pdfast.Network(module, shape=(1, 64), parameterization="eps")
        student = pdfast.distill(teacher=network, data=signals, rounds=8)  # 1024 -> 4 steps
        samples = student.sample(16)  # (16, 1, 64)
        ```
    """

    in_double = False  # the module may cast to float32 inside
    KEYS = (
        "network",
        "shape",
        "parameterization",
        "schedule",
        "num_classes",
        "clip",
        "steps",
        "classes",
    )
    """Keys of `describe`."""

    def __init__(
        self,
        module: nn.Module,
        shape: Sequence[int],
        *,
        parameterization: Parameterization = "v",
        schedule: Schedule | None = None,
        num_classes: int = 0,
        clip: tuple[float, float] | None = None,
        steps: int = 0,
        class_names: Sequence[str] = (),
    ) -> None:
        """Wrap a module as a model.

        Args:
            module: Maps z (B, *shape), logsnr (B,) and label to a raw output of z's shape; for
                x_eps the first axis has twice the size: x-hat, then eps-hat. z and logsnr have the
                dtype of the module's parameters; label is int64 (B,), or None without classes.
            shape: Shape of one sample. The first axis holds channels; a single axis holds D
                numbers.
            parameterization: What the module predicts.
            schedule: The noise levels to sample at; None for the cosine schedule. Others are in
                `pdfast.wrappers`.
            num_classes: Number of classes; 0 for none.
            clip: Samplers clip x-hat to (low, high), which must contain all data; None for no
                clipping.
            steps: Sampling steps that the network was distilled to; 0 for a teacher.
            class_names: Names of the classes, by number.

        Raises:
            UsageError: An argument is wrong, or the schedule has noise levels that the module was
                not made for.
        """
        nn.Module.__init__(self)
        kind = kind_of(module)
        self.net = module  # type: ignore[assignment]
        self._shape = _shape(shape)
        known = typing.get_args(Parameterization)
        check(
            parameterization in known,
            f"parameterization must be one of {', '.join(known)}, not {parameterization!r}",
        )
        self.parameterization = parameterization
        self.schedule = CosineSchedule() if schedule is None else schedule
        check(
            isinstance(self.schedule, CosineSchedule | FormulaSchedule),
            f"schedule must be one of pdfast.wrappers, not {type(schedule).__name__}",
        )
        check(
            type(num_classes) is int and 0 <= num_classes <= MAX_CLASSES,
            f"num_classes must be a whole number in 0 .. {MAX_CLASSES}, not {num_classes!r}",
        )
        self._num_classes = num_classes
        self.class_names = checked(class_names, num_classes)
        self.clip = None if clip is None else _interval(clip)
        self.steps = steps
        self.check_levels()
        # Keeps device and dtype even of a module without parameters.
        self.register_buffer("_place", torch.empty(0, **kind), persistent=False)

    @classmethod
    def from_table(cls, module: nn.Module, table: dict[str, Any]) -> "Network":
        """Return the network of a module and a table written by `describe`.

        Raises:
            KeyError: The table lacks a key.
            TypeError: A value has a wrong type.
            UsageError: A value is wrong.
        """
        clip = table["clip"]
        return cls(
            module,
            tuple(table["shape"]),
            parameterization=table["parameterization"],
            schedule=schedule_from(table["schedule"]),
            num_classes=table["num_classes"],
            clip=None if clip is None else tuple(clip),
            class_names=table["classes"],
        )

    def check_levels(self, u: float = 1.0) -> None:
        """Raise OutOfRange for noise levels at times u .. 1 that the network does not support."""
        name = repr(self.schedule)
        noisiest = level_at(self.schedule, 1.0)
        if self.parameterization == "eps" and noisiest < LEAST:
            raise OutOfRange(
                f"parameterization eps divides by alpha, which is 0 at u = 1 on the schedule "
                f"{name}: pass a schedule that ends before, such as pdfast.wrappers.LinearVP(), or "
                "a network of another parameterization"
            )
        adapter = getattr(self.net, "_orig_mod", self.net)  # torch.compile's wrapper has it
        if not isinstance(adapter, Adapter):
            return
        for time in (1.0, u):
            fault = adapter.fault(level_at(self.schedule, time))
            if fault:
                fewer = "" if time == 1.0 else "take fewer steps, or "
                raise OutOfRange(
                    f"at u = {time:.4g} the schedule {name} visits {fault}: {fewer}pass "
                    f"{adapter.fix()}"
                )

    def check_steps(self, steps: int) -> None:
        """Raise OutOfRange for more sampling steps than its noise levels allow."""
        self.check_levels(1 / steps)

    def copy(self) -> "Network":
        """Return a deep copy, in evaluation mode.

        Raises:
            UsageError: The module cannot be copied.
        """
        try:
            return copy.deepcopy(self).eval()
        except Exception as error:
            raise UsageError(
                f"the module cannot be copied ({type(error).__name__}: {reason(error)}): let it "
                "hold only what copy.deepcopy takes"
            ) from error

    def train(self, mode: bool = True) -> "Network":
        """Set the mode; the module itself stays in evaluation mode."""
        super().train(mode)
        self.net.eval()
        return self

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if unconditional."""
        return self._num_classes

    @property
    def label_dropout(self) -> float:
        """0, since the module is always given the class."""
        return 0.0

    @property
    def guidance(self) -> tuple[float, ...]:
        """An empty range, since the module takes no guidance weight."""
        return ()

    def lanes(self, batches: int) -> Lanes:
        """None: the module may keep a state that two calls at once would mix up."""
        return Lanes(0)

    def denoiser(self, calls: int) -> contextlib.AbstractContextManager[Denoiser]:
        """Provide the network itself: its module may not allow a capture."""
        return contextlib.nullcontext(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, as the module takes it."""
        return self._shape

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of a sample in the engine."""
        first, *rest = self.shape
        return first, math.prod(rest[:-1]), rest[-1] if rest else 1

    @property
    def device(self) -> torch.device:
        """Device of the module."""
        return self._buffers["_place"].device  # type: ignore[union-attr]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of samples and parameters, float32 or float64."""
        return self._buffers["_place"].dtype  # type: ignore[union-attr]

    @property
    def net_dtype(self) -> torch.dtype:
        """The same as `dtype`, since a module that computes in lower precision casts by itself."""
        return self.dtype

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        label: Tensor | None = None,
        guidance: Tensor | None = None,
        *,
        conditioning: Conditioning | None = None,
    ) -> Tensor:
        """Return the module's raw output.

        Args:
            z: Noisy samples (B, *shape), or the engine's (B, C, H, W).
            logsnr: Noise levels (B,).
            label: Classes, int64 (B,).
            guidance: Not used.
            conditioning: If given, its label replaces `label`. The rest of it is for pdfast's own
                networks.

        Returns:
            Raw output, of z's shape; for x_eps with twice the channels.
        """
        label = label if conditioning is None else conditioning.label
        if self.net.training:  # a module as passed by the caller; copies are in evaluation mode
            self.net.eval()
        z = z.to(self.dtype)
        # A contiguous copy, as modules take views of their input and write into it.
        inside = z.reshape(len(z), *self.shape).clone(memory_format=torch.contiguous_format)
        out: Tensor = self.net(inside, logsnr.to(z), label)
        return out.reshape(len(z), -1, *z.shape[2:])

    def to_stored(self, images: Tensor) -> Tensor:
        """Return samples (N, C, H, W) as (N, H, W, C), float32."""
        return to_floats(images)

    def films_at_angle(self, phi: Tensor) -> Tensor:
        """Raise NotImplementedError, since custom networks have no FiLM table."""
        raise NotImplementedError

    def remove_dropout(self) -> None:
        """Do nothing, since the module runs in evaluation mode."""

    def set_checkpoint(self, on: bool) -> None:
        """Do nothing, since checkpointing is up to the module."""

    def describe(self) -> dict[str, Any]:
        """Return the contents of config.json."""
        return {
            "network": OWN,
            "shape": list(self.shape),
            "parameterization": self.parameterization,
            "schedule": self.schedule.describe(),
            "num_classes": self.num_classes,
            "clip": None if self.clip is None else list(self.clip),
            "steps": self.steps,
            "classes": list(self.class_names),
        }

    def weights(self) -> dict[str, Tensor]:
        """Return the module's state_dict; tied tensors are copied, one for each of their names.

        Raises:
            UsageError: The state_dict holds something other than tensors.
        """
        seen: set[int] = set()
        found = {}
        for name, tensor in self.net.state_dict().items():
            check(
                isinstance(tensor, Tensor),
                f"the module's state_dict holds {name}, which is not a tensor and cannot be "
                "saved: make it a buffer",
            )
            place = tensor.untyped_storage().data_ptr()
            found[name] = tensor.clone() if place in seen and tensor.numel() else tensor
            seen.add(place)
        return found


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a sample's shape as a tuple of ints."""
    sizes = tuple(shape) if isinstance(shape, Sequence) else ()
    check(
        bool(sizes) and all(type(size) is int and size >= 1 for size in sizes),
        f"shape must be that of one sample, such as (1, 64), not {shape!r}",
    )
    return sizes


def _interval(clip: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = map(float, clip)
    except (TypeError, ValueError):
        low = high = math.nan
    check(
        -math.inf < low < high < math.inf,
        f"clip must be (low, high), finite and rising, or None, not {clip!r}",
    )
    return low, high


def kind_of(module: object) -> dict[str, Any]:
    """Return the device and dtype of a module, as keyword arguments.

    Args:
        module: The module of a custom network.

    Raises:
        UsageError: `module` is not a plain nn.Module, a parameter has no values yet, or the
            parameters are not all float32 or all float64.
    """
    if not isinstance(module, nn.Module) or isinstance(module, Model):
        raise UsageError(f"a custom network is an nn.Module, not {type(module).__name__}")
    if type(module).__module__.startswith("diffusers."):
        raise UsageError(
            f"{type(module).__name__} is a model of diffusers, whose output is no tensor: import "
            "its pipeline (pdfast import FOLDER --from diffusers), or wrap it in an nn.Module that "
            "returns its .sample"
        )
    params = dict(module.named_parameters())
    floats = [t for t in (*params.values(), *module.buffers()) if t.is_floating_point()]
    first = floats[0] if floats else torch.empty(0)
    for name, p in params.items():
        check(
            not p.is_meta and not is_lazy(p),
            f"the module's parameter {name} holds no values yet: initialise the module (a lazy "
            "layer by calling it once)",
        )
        check(
            p.dtype in (torch.float32, torch.float64),
            f"the module's parameter {name} is {name_of(p.dtype)}: keep parameters in float32, and "
            "let the module cast where it computes in lower precision",
        )
        check(
            p.dtype == first.dtype,
            f"the module's parameter {name} is {name_of(p.dtype)}, others {name_of(first.dtype)}: "
            "give all parameters one dtype",
        )
    return {"dtype": first.dtype, "device": first.device}


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype without "torch."."""
    return str(dtype).removeprefix("torch.")
