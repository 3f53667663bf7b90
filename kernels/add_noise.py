"""add_noise: from the data set to z_t and the network's input, with every draw of a batch.

Fused: the batch's Philox words (which image, whether mirrored, which time), the gather and its
scaling to [-1, 1], the noise (Philox, Box-Muller), z_t = alpha x + sigma eps, the rounding to the
network's dtype, and the target of training on data. Bytes per element: 1 (uint8) + 4 (z_t) + s
(z_in, unless s is 4) + 4 (y, only in training on data); eager PyTorch moves 730, int64 words and
float64 normals among them. Bound: float64 arithmetic, about 50 operations per normal: a few
microseconds a batch on GPUs with much of it (data centre), tens elsewhere. Loses: to noise drawn
ahead on another stream, if this launch were ever the bottleneck.

Float streams go in 16-byte accesses when H W C divides by 16. The data set's pixels, gathered and
perhaps mirrored, are read one by one, 4 bytes each where they are float32. Where only some images
of a set may be drawn, a table has their numbers, and a program reads one of them. Images are drawn
independently, or without replacement by shuffle.py. The round, the number of steps N and the number
of teacher steps that each of them merges may lie on the device, as 24 bytes that each program
reads: a captured launch then serves every round.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pdfast.config.names import Parameterization
from pdfast.kernels import philox, runtime
from pdfast.kernels.angles import combine, divide, sincos
from pdfast.kernels.calls import STEPS
from pdfast.kernels.library import LIBRARY, define
from pdfast.kernels.parameterizations import PREDICTIONS, prediction_of_data
from pdfast.kernels.philox import Stream, normal_pair, scaled_word, uniform_from, words_at
from pdfast.kernels.registry import Op, Stage, register
from pdfast.kernels.runtime import tl, triton
from pdfast.kernels.shuffle import ROUNDS, shuffled, shuffled_at

BLOCK = 1024


class Noised(NamedTuple):
    """A batch of B noisy images: the result of `add_noise`."""

    z_t: Tensor
    """Noisy images (B, C, H, W), float32, or float64 where the network is float64."""
    z_in: Tensor
    """z_t in the network's dtype; the tensor `z_t` itself if the dtypes are the same."""
    phi_t: Tensor
    """Angles of z_t in radians, float64 (B,)."""
    phi_mid: Tensor
    """Angles half a step earlier, or one merged step earlier, float64 (B,). Equal to phi_t where
    that step reaches the end of the student's step, and in continuous time."""
    is_last_step: Tensor
    """Whether the student's step ends at s = 0, as the sampler's last step does, bool (B,); false
    in continuous time."""
    chosen: Tensor
    """Numbers of the drawn images in the set, int64 (B,)."""
    spare: Tensor
    """One more uniform number in (0, 1) per image, float64 (B,), from bits not used elsewhere."""
    y: Tensor | None
    """Target of training on data, (B, C, H, W), of the dtype of z_t; or None."""
    phi_next: Tensor | None = None
    """Angles where the student's steps end, float64 (B,), if steps are merged; or None."""


@dataclass(frozen=True, kw_only=True)
class NoiseOptions:
    """The draws that `add_noise` makes, as numbers on the host.

    Raises:
        TypeError: `net_dtype` is not a floating-point dtype.
        ValueError: A number is out of its range.
    """

    seed: int
    """Seed of all draws, 0 .. 2^32 - 1."""
    round_: int
    """Round of the distillation, 0 .. 2^24 - 1."""
    num: int
    """Images to draw, at positions first .. first + num - 1 of the global batch."""
    first: int = 0
    """Position of the first image in the global batch."""
    num_steps: int = 0
    """N of the times u = (i + 1) / N with i ~ U{0 .. N-1}; 0: continuous time, u ~ U(0, 1)."""
    merged: int = 0
    """Number r of teacher steps that each of the N steps merges; 0: no merging.

    Times are then u = (k + 1) / rN with k ~ U{0 .. rN-1}; the middle time is k / rN, and the
    student's step ends at floor(k / r) / N. Without merging, times and ends are those of the N
    steps, and the middle time is halfway.
    """
    flip: bool = False
    """Whether to mirror half of the images, by draw."""
    parameterization: Parameterization | None = None
    """Parameterization of the target of training on data; None: no target."""
    net_dtype: torch.dtype = torch.float32
    """Dtype of the network's input; float64 makes all results float64."""
    fixed: bool = False
    """Whether to draw from the streams of the fixed batch."""
    population: int = 0
    """Size of the set, if it lies elsewhere and the given images are those that `draw_indices`
    draws from it, in order; otherwise 0. All results are as if the whole set were given."""
    shuffled_by: int = 0
    """Size of the global batch, to draw images without replacement; 0: independent draws.

    Position p in the batch of update k holds draw k * shuffled_by + p, below 2^62, of
    `shuffle.shuffled`. It changes the choice of images and nothing else.
    """

    def __post_init__(self) -> None:
        if self.parameterization is not None:
            runtime.check_choice("parameterization", self.parameterization, Parameterization)
        if self.net_dtype not in runtime.FLOATS:
            raise TypeError(f"net_dtype must be a floating-point type, not {self.net_dtype}")
        limits = {"seed": 2**32, "round_": 2**24, "num_steps": 2**31, "first": 2**31}
        limits["merged"] = 2**31 // max(1, self.num_steps) if self.num_steps else 1
        for name, end in (limits | {"population": 2**31, "shuffled_by": 2**40 + 1}).items():
            if not 0 <= getattr(self, name) < end:
                raise ValueError(f"{name} must be in 0 .. {end - 1}, not {getattr(self, name)}")
        if self.num < 1:
            raise ValueError(f"num must be at least 1, not {self.num}")


def add_noise(
    images: Tensor,
    schedule: tuple[float, float] | Tensor,
    update: int | Tensor,
    options: NoiseOptions,
    rows: Tensor | None = None,
    phase: Tensor | None = None,
) -> Noised:
    """Draw images and times as `options` say, and diffuse: z_t = alpha x + sigma eps.

    Args:
        images: The set (M, C, H, W): uint8, scaled here to [-1, 1], or float32, taken as it is.
        schedule: (a, b) of phi = a u + b; or the angles at u = k / rN, float64 (rN + 1,), with
            r = 2 if no steps are merged.
        update: Update whose batch is drawn; an int64 tensor (1,) must be on the device of `images`.
        options: The draws to make.
        rows: Numbers of the images that may be drawn, int64 (n,); None: all of them.
        phase: Round, N and r on the device of `images`, int64 (3,), in place of those in `options`
            (r only if the options' is not 0); only in discrete time. Angles after the first rN + 1
            are then not read.

    Returns:
        The noisy images, their angles and the draws.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: A tensor has the wrong shape or device, `rows` is empty, or the options do not
            fit the other arguments.
    """
    runtime.check_tensor("images", images, (torch.uint8, torch.float32))
    if isinstance(update, int):
        update = torch.tensor([update], device=images.device)
    runtime.check_tensor("update", update, (torch.int64,), (1,), images)
    a, b, angles = (0.0, 0.0, schedule) if isinstance(schedule, Tensor) else (*schedule, None)
    if angles is not None:
        # Only the device knows how many angles a phase needs.
        fine = (options.merged or 2) * options.num_steps
        size = (fine + 1,) if phase is None else (angles.numel(),)
        runtime.check_tensor("schedule", angles, (torch.float64,), size, images)
        if not options.num_steps:
            raise ValueError("num_steps must be at least 1 where the schedule is a table of angles")
    if rows is not None:
        size = (rows.numel(),) if isinstance(rows, Tensor) else ()
        runtime.check_tensor("rows", rows, (torch.int64,), size, images)
        if not len(rows):
            raise ValueError("rows must hold at least one number")
    if phase is not None:
        runtime.check_tensor("phase", phase, (torch.int64,), (3,), images)
        if not options.num_steps:
            raise ValueError("num_steps must be at least 1 where a phase is given")
    o = options
    if o.population and len(images) != o.num:
        raise ValueError(f"with a population, images must be the {o.num} drawn, not {len(images)}")
    z_t, z_in, phi_t, phi_mid, is_last_step, chosen, spare, y, phi_next = add_noise_op(
        images, a, b, angles, o.num_steps, o.seed, o.round_, update, o.first, o.num, o.flip,
        o.parameterization, o.net_dtype, o.fixed, o.population, rows, o.shuffled_by, phase,
        o.merged,
    )  # fmt: skip
    same = o.net_dtype == z_t.dtype
    z_in, y_or_none = z_t if same else z_in, y if o.parameterization else None
    ends = phi_next if o.merged else None
    return Noised(z_t, z_in, phi_t, phi_mid, is_last_step, chosen, spare, y_or_none, ends)


def draw_indices(options: NoiseOptions, update: int, rows: Tensor | None = None) -> Tensor:
    """Return the numbers of the images that `add_noise` draws from a set.

    Args:
        options: The draws to make. Those of times and noise play no part.
        update: Update whose batch is drawn.
        rows: Numbers of the images that may be drawn, int64 (n,) on the CPU; None: all of the
            `population`.

    Returns:
        Numbers in 0 .. population - 1, int64 (num,) on the CPU.

    Raises:
        ValueError: There are no images to draw from.
    """
    o = options
    key, _ = _keys(o.seed, o.round_, o.fixed)
    number, of = torch.tensor(update), o.population if rows is None else len(rows)
    if of < 1:
        raise ValueError("there are no images to draw from: population is 0, or rows is empty")

    if o.shuffled_by:
        drawn = _shuffled(number, o.shuffled_by, o.first, o.num, of, key)
    else:
        drawn = philox.index_below(philox.words(key, number, o.first, o.num)[:, 0], of)
    return drawn if rows is None else rows[drawn]


# ------------------------------------------------------------------------------------------
# Reference


def to_float(images: Tensor) -> Tensor:
    """Scale uint8 to float32 in [-1, 1]; return float32 images as they are."""
    return images if images.dtype == torch.float32 else divide(images.float(), 127.5) - 1.0


def diffuse(x: Tensor, eps: Tensor, phi: Tensor) -> Tensor:
    """Return z_t = alpha x + sigma eps, for phi (B,) in radians."""
    return combine((phi.cos(), x), (phi.sin(), eps))


def _keys(seed: int, round_: int, fixed: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the keys of the batch's words and of its noise."""
    streams = (Stream.FIXED, Stream.FIXED_NOISE) if fixed else (Stream.BATCH, Stream.NOISE)
    return philox.key_of(seed, streams[0], round_), philox.key_of(seed, streams[1], round_)


def _shuffled(
    update: Tensor, batch: int, first: int, num: int, of: int, key: tuple[int, int | Tensor]
) -> Tensor:
    """Draw without replacement for positions first .. first + num - 1 of an update's batch."""
    positions = torch.arange(first, first + num, device=update.device)
    return shuffled(positions.add_(update.reshape(()), alpha=batch), of, key)


def add_noise_reference(
    images: Tensor,
    schedule: tuple[float, float] | Tensor,
    update: Tensor,
    options: NoiseOptions,
    rows: Tensor | None = None,
    phase: Tensor | None = None,
    *,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Compute the fields of `Noised`, without z_in, in plain PyTorch.

    The arguments are those of `add_noise`; `update` is a tensor, and `dtype` is that of z_t and y.

    Returns:
        z_t, phi_t, phi_mid, is_last_step, chosen, spare, y and phi_next.
    """
    o, shape = options, (images.shape[1], images.shape[2], images.shape[3])
    block = torch.arange(-1, philox.blocks_of(shape), device=update.device)  # -1: the batch's words
    num_steps: int | Tensor = o.num_steps
    merged: int | Tensor = o.merged
    batch_key: tuple[int, int | Tensor]
    if phase is None:
        batch_key, noise_key = _keys(o.seed, o.round_, o.fixed)
        key = o.seed, torch.where(block < 0, batch_key[1], noise_key[1])
    else:
        round_, num_steps, merged = phase.unbind()
        batch_key, noise_key = _keys(o.seed, 0, o.fixed)
        key = o.seed, torch.where(block < 0, batch_key[1], noise_key[1]).add_(round_ << 8)
        batch_key = o.seed, key[1][0]
    words = philox.words_of(key, update, o.first, o.num, block.clamp_(min=0))
    of = (o.population or len(images)) if rows is None else len(rows)
    if o.shuffled_by:
        chosen = _shuffled(update, o.shuffled_by, o.first, o.num, of, batch_key)
    else:
        chosen = philox.index_below(words[:, 0], of)
    if rows is not None:
        chosen = rows[chosen]
    x = to_float(images if o.population else images[chosen]).to(dtype)
    if o.flip:
        x = torch.where((words[:, 1] & 1).bool()[:, None, None, None], x.flip(3), x)
    eps = philox.normal_images(words[:, 4:], shape).to(dtype)
    phi_next = None
    if o.num_steps and o.merged:
        fine = num_steps * merged
        k = philox.index_below(words[:, 2], fine)
        i = k // merged
        is_last_step = i == 0
        if isinstance(schedule, Tensor):
            phi_t, phi_mid, phi_next = schedule[k + 1], schedule[k], schedule[i * merged]
        else:
            a, b = schedule
            phi_t, phi_mid = (a * divide(n.double(), fine) + b for n in (k + 1, k))
            phi_next = a * divide(i.double(), num_steps) + b
        phi_mid = torch.where(k == i * merged, phi_t, phi_mid)
    elif o.num_steps:
        i = philox.index_below(words[:, 2], num_steps)
        is_last_step = i == 0
        if isinstance(schedule, Tensor):
            phi_t, phi_mid = schedule[2 * i + 2], schedule[2 * i + 1]
        else:
            (a, b), i = schedule, i.double()
            phi_t = a * divide(i + 1, num_steps) + b
            phi_mid = a * divide(i + 0.5, num_steps) + b
    else:
        assert not isinstance(schedule, Tensor)
        a, b = schedule
        phi_t = a * philox.uniform_of(words[:, 2], words[:, 3]) + b
        phi_mid, is_last_step = phi_t.clone(), torch.zeros_like(chosen, dtype=torch.bool)
    predicted = o.parameterization
    y = None if predicted is None else PREDICTIONS[predicted].of_data(x, eps, phi_t)
    spare = ((words[:, 1] >> 1).double() + 0.5) / 2**31
    return diffuse(x, eps, phi_t), phi_t, phi_mid, is_last_step, chosen, spare, y, phi_next


# ------------------------------------------------------------------------------------------
# Registered op


@define()
def add_noise_op(
    images: Tensor,
    a: float,
    b: float,
    angles: Tensor | None,
    num_steps: int,
    seed: int,
    round_: int,
    update: Tensor,
    first: int,
    num: int,
    flip: bool,
    parameterization: str | None,
    net_dtype: torch.dtype,
    fixed: bool,
    population: int = 0,
    rows: Tensor | None = None,
    shuffled_by: int = 0,
    phase: Tensor | None = None,
    merged: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run `add_noise` on checked arguments; outputs that were not asked for are empty."""
    outputs = _outputs(images, num, parameterization, net_dtype, merged)
    z_t, z_in, phi_t, phi_mid, is_last_step, chosen, spare, y, phi_next = outputs
    if not runtime.uses_triton(images.device, net_dtype):
        options = NoiseOptions(
            seed=seed,
            round_=round_,
            num=num,
            first=first,
            num_steps=num_steps,
            merged=merged,
            flip=flip,
            parameterization=parameterization,  # type: ignore[arg-type]
            net_dtype=net_dtype,
            fixed=fixed,
            population=population,
            shuffled_by=shuffled_by,
        )
        schedule = (a, b) if angles is None else angles
        args = (images, schedule, update, options, rows, phase)
        results = add_noise_reference(*args, dtype=z_t.dtype)
        filled = (z_t, phi_t, phi_mid, is_last_step, chosen, spare, y, phi_next)
        for output, result in zip(filled, results, strict=True):
            if result is not None:
                output.copy_(result)
        if z_in.numel():
            z_in.copy_(z_t)
        return outputs
    batch_key, noise_key = _keys(seed, round_ if phase is None else 0, fixed)
    size = images[0].numel()
    runtime.launch(
        add_noise_kernel,
        (num, runtime.cdiv(size, BLOCK)),
        images.device,
        runtime.channels_last(images),
        None if angles is None else angles.contiguous(),
        None if rows is None else rows.contiguous(),
        None if phase is None else phase.contiguous(),
        update,
        z_t,
        z_in,
        y,
        phi_t,
        phi_mid,
        is_last_step.view(torch.uint8),
        chosen,
        spare,
        phi_next,
        size,
        (population or len(images)) if rows is None else len(rows),
        num_steps,
        merged,
        first,
        shuffled_by,
        seed,
        batch_key[1],
        noise_key[1],
        a=a,
        b=b,
        width=images.shape[3],
        channels=images.shape[1],
        gathered=population > 0,
        flip=flip,
        continuous=num_steps == 0,
        merges=merged > 0,
        parameterization=parameterization or "none",
        writes_z_in=z_in.numel() > 0,
        rounds=ROUNDS if shuffled_by else 0,
        block=BLOCK,
    )
    return outputs


@torch.library.register_fake(add_noise_op, lib=LIBRARY)
def _fake_outputs(
    images: Tensor,
    a: float,
    b: float,
    angles: Tensor | None,
    num_steps: int,
    seed: int,
    round_: int,
    update: Tensor,
    first: int,
    num: int,
    flip: bool,
    parameterization: str | None,
    net_dtype: torch.dtype,
    fixed: bool,
    population: int = 0,
    rows: Tensor | None = None,
    shuffled_by: int = 0,
    phase: Tensor | None = None,
    merged: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _outputs(images, num, parameterization, net_dtype, merged)


def _outputs(
    images: Tensor, num: int, parameterization: str | None, net_dtype: torch.dtype, merged: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    state = torch.float64 if net_dtype == torch.float64 else torch.float32

    def empty(dtype: torch.dtype, needed: bool = True) -> Tensor:
        if not needed:
            return images.new_empty(0, dtype=dtype)
        shape, layout = (num, *images.shape[1:]), torch.channels_last
        return torch.empty(shape, dtype=dtype, device=images.device, memory_format=layout)

    def vector(dtype: torch.dtype) -> Tensor:
        return images.new_empty(num, dtype=dtype)

    return (
        empty(state),
        empty(net_dtype, net_dtype != state),
        vector(torch.float64),
        vector(torch.float64),
        vector(torch.bool),
        vector(torch.int64),
        vector(torch.float64),
        empty(state, parameterization is not None),
        images.new_empty(num if merged else 0, dtype=torch.float64),
    )


# ------------------------------------------------------------------------------------------
# Triton


DRAWN_BY = ["num_images", "num_steps", "merged", "first", "batch", "seed", "batch_key", "noise_key"]


@triton.jit(do_not_specialize=DRAWN_BY)  # their values change, the code does not
def add_noise_kernel(
    images,  # the set (M, H, W, C), uint8 or float32; with `gathered` only the drawn images
    angles,  # angles at u = k / rN, float64 (rN + 1,); None: phi = a u + b
    rows,  # numbers of the images that may be drawn, int64 (num_images,); None: all
    phase,  # round, N and r, int64 (3,); None: those of the arguments
    update,  # update whose batch is drawn, int64 (1,)
    z_t,  # output: noisy images (num, H, W, C), float32
    z_in,  # output: z_t in the network's dtype; unused where `writes_z_in` is false
    y,  # output: target of training on data (num, H, W, C), float32; unused without one
    phi_t,  # output: angles of z_t, float64 (num,)
    phi_mid,  # output: angles in the middle of the steps, float64 (num,)
    is_last_step,  # output: whether the step ends at s = 0, uint8 (num,)
    index,  # output: numbers of the drawn images, int64 (num,)
    spare,  # output: one more uniform number per image, float64 (num,)
    phi_next,  # output: angles where merged steps end, float64 (num,); unused without `merges`
    size,  # elements of an image, H W C
    num_images,  # number of images that may be drawn
    num_steps,  # N
    merged,  # r; 0: no merging
    first,  # position of the first image in the global batch
    batch,  # size of the global batch, where images are drawn without replacement
    seed,  # first number of both keys
    batch_key,  # second number of the key of the batch's words
    noise_key,  # second number of the key of the noise
    a: tl.constexpr,  # a of phi = a u + b
    b: tl.constexpr,  # b of phi = a u + b
    width: tl.constexpr,  # W
    channels: tl.constexpr,  # C
    gathered: tl.constexpr,  # whether `images` holds the drawn images, in order
    flip: tl.constexpr,  # whether to mirror half of the images
    continuous: tl.constexpr,  # whether u ~ U(0, 1)
    merges: tl.constexpr,  # whether steps are merged
    parameterization: tl.constexpr,  # prediction whose target is made, or "none"
    writes_z_in: tl.constexpr,  # whether to write z_in
    rounds: tl.constexpr,  # rounds of the shuffle; 0: independent draws
    block: tl.constexpr,  # elements of a program
):
    """Diffuse `block` elements of image n, in (H, W, C) order, in program (n, tile)."""
    n, tile = tl.program_id(0), tl.program_id(1)
    number, position = tl.load(update), n + first
    if phase is not None:
        round_bits = tl.load(phase) << 8
        batch_key, noise_key = batch_key + round_bits, noise_key + round_bits
        num_steps, merged = tl.load(phase + 1), tl.load(phase + 2)
    w_0, w_1, w_2, w_3 = words_at(number, position, n * 0, seed, batch_key)
    mirrored = (w_1 & 1) != 0
    if rounds:
        chosen = shuffled_at(number * batch + position, num_images, seed, batch_key, rounds)
    else:
        chosen = scaled_word(w_0, num_images)
    if rows is not None:
        chosen = tl.load(rows + chosen)
    if continuous:
        angle = a * uniform_from(w_2, w_3) + b
        angle_mid, is_last = angle, w_2 != w_2
    elif merges:
        k = scaled_word(w_2, num_steps * merged)
        i = k // merged
        is_last = i == 0
        if angles is None:
            fine = (num_steps * merged).to(tl.float64)
            angle = a * ((k.to(tl.float64) + 1.0) / fine) + b
            angle_mid = a * (k.to(tl.float64) / fine) + b
            angle_next = a * (i.to(tl.float64) / num_steps) + b
        else:
            angle, angle_mid = tl.load(angles + k + 1), tl.load(angles + k)
            angle_next = tl.load(angles + i * merged)
        angle_mid = tl.where(k == i * merged, angle, angle_mid)
    else:
        i = scaled_word(w_2, num_steps)
        if angles is None:
            angle = a * ((i.to(tl.float64) + 1.0) / num_steps) + b
            angle_mid = a * ((i.to(tl.float64) + 0.5) / num_steps) + b
        else:
            angle, angle_mid = tl.load(angles + 2 * i + 2), tl.load(angles + 2 * i + 1)
        is_last = i == 0
    if tile == 0:
        tl.store(phi_t + n, angle)
        tl.store(phi_mid + n, angle_mid)
        tl.store(is_last_step + n, is_last.to(tl.uint8))
        tl.store(index + n, chosen)
        if merges:
            tl.store(phi_next + n, angle_next)
        tl.store(spare + n, ((w_1 >> 1).to(tl.float64) + 0.5) / 2147483648.0)

    fourth: tl.constexpr = block // 4
    quads = tile * fourth + tl.arange(0, fourth)
    w_0, w_1, w_2, w_3 = words_at(number, position, quads, seed, noise_key)
    e_0, e_1 = normal_pair(w_0, w_1)
    e_2, e_3 = normal_pair(w_2, w_3)
    eps = tl.interleave(tl.interleave(e_0, e_2), tl.interleave(e_1, e_3))

    element = tile * block + tl.arange(0, block)
    mask = element < size
    pixel = element
    if flip:
        column = element // channels % width
        pixel = tl.where(mirrored, element + (width - 1 - 2 * column) * channels, element)
    source = n.to(tl.int64) if gathered else chosen
    x = tl.load(images + source * size + pixel, mask=mask, other=0)
    if x.dtype == tl.uint8:
        x = tl.div_rn(x.to(tl.float32), 127.5) - 1.0
    sin, cos = sincos(angle)
    sin, cos = sin.to(tl.float32), cos.to(tl.float32)
    z = cos * x + sin * eps
    out = n.to(tl.int64) * size + element
    tl.store(z_t + out, z, mask=mask)
    if writes_z_in:
        tl.store(z_in + out, z.to(z_in.dtype.element_ty), mask=mask)
    if parameterization != "none":
        tl.store(y + out, prediction_of_data(x, eps, cos, sin, parameterization), mask=mask)


register(
    Op(
        name="add_noise",
        stage=Stage.BATCH,
        op=add_noise_op,
        kernels=(add_noise_kernel,),
        kind=STEPS,
        gathers=True,
    )
)
