"""The trial of a custom network before a run."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pdfast.config.names import OUTPUTS
from pdfast.config.serialization import check
from pdfast.diffusion.schedules import logsnr_of
from pdfast.errors import UsageError
from pdfast.models.custom import Network, name_of
from pdfast.storage.files import reason

Inputs = tuple[Tensor, Tensor, Tensor | None]  # z, logsnr and label
NUM = 4  # samples
FEWER = 3  # samples of the second call; has no common divisor with NUM
ALIKE = 0.02  # relative difference above that of rounding, also in bfloat16
NOTHING = 1e-3  # times z: the scale of the comparison for an output of zeros


def try_out(network: Network, learns: bool) -> None:
    """Run the network forward on two numbers of samples, and backward if it is to be trained.

    Args:
        network: The network.
        learns: Whether it is to be trained.

    Raises:
        UsageError: A call fails or gives a wrong result. The message says which.
    """
    own = network.weights()  # tries saving, and then loading
    _called("loading", "its own state_dict", lambda: network.copy().net.load_state_dict(own))
    inputs = _inputs(network)
    out = _output(network, inputs)
    _try_fewer(network, inputs, out.detach())
    if learns:
        _try_backward(network, out)


def _output(network: Network, inputs: Inputs) -> Tensor:
    """Return the module's output after checking its shape, its dtype and that it is finite."""
    z, logsnr, label = inputs
    num, shape, parameterization = len(z), network.shape, network.parameterization
    labels = "None" if label is None else f"({num},)"
    out = _called(
        "on",
        f"z {tuple(z.shape)}, logsnr ({num},) and label {labels}",
        lambda: network.net(z.clone(), logsnr.clone(), label),  # copies, as it may write into them
        "; it must take any number B of samples: z (B, {}), logsnr (B,) and label {}".format(
            ", ".join(map(str, shape)),
            "None"
            if label is None
            else f"(B,), int64, each sample's class in 0 .. {network.num_classes - 1}",
        ),
    )
    wanted = (num, shape[0] * OUTPUTS[parameterization].copies, *shape[1:])
    check(
        isinstance(out, Tensor),
        f"the module's output is of type {type(out).__name__}, where a tensor is needed",
    )
    check(
        out.shape == wanted,
        f"the module's output has shape {tuple(out.shape)}, where parameterization "
        f"{parameterization} of shape {shape} needs {wanted}",
    )
    check(
        out.dtype == z.dtype,
        f"the module's output is {name_of(out.dtype)}, its parameters {name_of(z.dtype)}: have it "
        "cast its output back",
    )
    finite = out.flatten(1).isfinite().all(1)
    check(
        bool(finite.all()),
        "the module's output holds numbers that are not finite, at logSNR "
        + ", ".join(f"{level:.3g}" for level in logsnr[~finite].tolist()),
    )
    return out  # type: ignore[no-any-return]


@torch.no_grad()
def _try_fewer(network: Network, inputs: Inputs, out: Tensor) -> None:
    """Refuse a module whose output for a sample depends on the other samples of the batch."""
    z, logsnr, label = inputs
    few = _output(network, (z[:FEWER], logsnr[:FEWER], None if label is None else label[:FEWER]))
    if _differs(few, out[:FEWER], z[:FEWER]):
        check(
            not _differs(_output(network, inputs), out, z),
            "the module's output differs between calls with the same input: in evaluation mode it "
            "must draw no random numbers and keep no state",
        )
        raise UsageError(
            f"the module's output for a sample differs between batches of {NUM} and {FEWER}: "
            "compute each output from its own z, logsnr and label alone, with no mean, norm or "
            "attention over the first axis"
        )


def _differs(a: Tensor, b: Tensor, z: Tensor) -> bool:
    apart, size, least = (x.double().flatten(1).norm(dim=1) for x in (a - b, b, NOTHING * z))
    return bool((apart > ALIKE * torch.maximum(size, least)).any())


def _inputs(network: Network) -> Inputs:
    """Return noise at four noise levels of the schedule, including pure noise, and classes."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(NUM, *network.shape, generator=generator)
    z = noise.to(network.device, network.dtype)
    u = torch.arange(1, NUM + 1, dtype=torch.float64, device=z.device) / NUM
    classes = network.num_classes
    label = torch.arange(NUM, device=z.device) % classes if classes else None
    return z, logsnr_of(network.schedule.phi(u)).to(z), label


def _try_backward(network: Network, out: Tensor) -> None:
    named = {name: p for name, p in network.net.named_parameters() if p.requires_grad}
    check(
        bool(named),
        "the module has no parameter that requires a gradient, so it cannot be trained: call "
        "requires_grad_(True) on it, or pass another one as student",
    )
    check(
        out.requires_grad,
        "the module's output has no gradient: do not detach it or compute it under no_grad",
    )

    def backward() -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(out.square().sum(), [*named.values()], allow_unused=True)

    for name, grad in zip(named, _called("backward from", "its output", backward), strict=True):
        check(
            grad is not None,
            f"the module's parameter {name} gets no gradient: freeze it with "
            "requires_grad_(False), or remove it",
        )
        check(
            bool(grad.isfinite().all()),
            f"the gradient of the module's parameter {name} is not finite",
        )


def _called(how: str, given: str, call: Callable[[], Any], fix: str = "") -> Any:
    """Call the user's code; turn its error into one sentence, chained to the original."""
    try:
        return call()
    except Exception as error:
        raise UsageError(
            f"the module failed {how} {given}: {type(error).__name__}: {reason(error)}{fix}"
        ) from error
