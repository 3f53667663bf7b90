"""The network of an NVlabs/edm pickle, as the [model] of a config.

The architecture follows from the arguments of the network's constructor, which its record keeps.
Omitted arguments have the published constructor's defaults. The preconditioning's constants are
attributes of its record.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pdfast.config.edm import CONSTANTS, EDMNetConfig
from pdfast.config.names import Parameterization
from pdfast.config.schema import NetConfig
from pdfast.errors import PdfastError, UsageError
from pdfast.interop.edm.pickled import Record

PRECONDITIONINGS = {"VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}
PRECONDITIONINGS |= {"EDMPrecond": "edm"}
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0  # EDM's sampler; the network's range may be smaller
MISSING = object()

BOTH: dict[str, Any] = {  # defaults of both networks, in the constructors' order
    "img_resolution": MISSING,
    "in_channels": MISSING,
    "out_channels": MISSING,
    "label_dim": 0,
    "augment_dim": 0,
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "channel_mult_emb": 4,
    "num_blocks": 4,
    "attn_resolutions": [16],
    "dropout": 0.10,
    "label_dropout": 0,
}
SONG: dict[str, Any] = BOTH | {
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
ADM: dict[str, Any] = BOTH | {
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "num_blocks": 3,
    "attn_resolutions": [32, 16, 8],
}
HEAD_DIM = 64  # of ADM's attention
GROUPS, GROUP_CH = 32, 4  # of every GroupNorm: most groups, and least channels of a group


class Described(NamedTuple):
    """The network of a pickle."""

    cfg: NetConfig
    record: Record
    """Network inside the preconditioning."""
    own: Record
    """Preconditioning around the network."""


class Arguments:
    """The arguments that a network was made with, with the constructor's defaults."""

    def __init__(self, path: Path, record: Record, defaults: Mapping[str, Any]) -> None:
        self.what = f"{path}: {record.class_name[:100]}"
        args, named = (record.state.get(key) for key in ("_init_args", "_init_kwargs"))
        if type(args) is not tuple or type(named) is not dict:
            raise PdfastError(f"{self.what} does not keep the arguments that it was made with")
        positional = dict(zip(defaults, args, strict=False))
        unknown = [str(key) for key in named if key not in defaults or key in positional]
        if unknown or len(args) > len(defaults):
            more = unknown[0][:100] if unknown else f"{len(args)} arguments"
            raise UsageError(f"{self.what} was made with {more}, which pdfast does not know")
        self.values: dict[str, Any] = {**defaults, **positional, **named}

    def refusal(self, key: str, why: str) -> UsageError:
        """Return the error for an argument's value."""
        return UsageError(f"{self.what} has {key} {shown(self.values[key])}: {why}")

    def whole(self, key: str, least: int = 1) -> int:
        """Return a whole number, from `least` to 2^20."""
        return self._whole(key, self.values[key], least)

    def all(self, key: str, least: int = 1) -> tuple[int, ...]:
        """Return a list of whole numbers, each from `least` to 2^20."""
        value = self.values[key]
        if type(value) not in (list, tuple) or len(value) > 64:
            raise self.refusal(key, "a list of whole numbers is expected")
        return tuple(self._whole(key, item, least) for item in value)

    def share(self, key: str) -> float:
        """Return a number in [0, 1)."""
        value = self.values[key]
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise self.refusal(key, "a number from 0 to below 1 is expected")
        return float(value)

    def one(self, key: str, known: tuple[str, ...]) -> str:
        """Return a string that must be one of `known`."""
        value = self.values[key]
        if type(value) is not str or value not in known:
            raise self.refusal(key, f"pdfast's network has {' or '.join(known)}")
        return value

    def _whole(self, key: str, value: Any, least: int) -> int:
        if type(value) is not int or not least <= value <= 2**20:
            raise self.refusal(key, f"a whole number of at least {least} is expected")
        return value


def shown(value: Any) -> str:
    """Return a foreign value for a message, shortened."""
    if value is MISSING:
        return "(missing)"
    plain = isinstance(value, str | int | float) or value is None
    of_numbers = type(value) in (list, tuple) and all(type(v) in (int, float) for v in value)
    return repr(value)[:60] if plain or of_numbers else type(value).__name__


def described(path: Path, found: Any, parameterization: Parameterization) -> Described:
    """Describe the network under the key `ema` of a pickle.

    Args:
        path: The file, for messages.
        found: Content of the pickle.
        parameterization: "v" or "x", for a network with EDM's preconditioning. Networks with any
            other preconditioning predict eps.

    Raises:
        UsageError: The pickle holds no such network, or one that pdfast does not have.
        PdfastError: The network's record lacks its arguments or constants.
    """
    own = found.get("ema") if type(found) is dict else None
    if type(own) is not Record:
        raise UsageError(
            f"{path} holds no network under 'ema', so it is no network-snapshot of NVlabs/edm"
        )
    kind = PRECONDITIONINGS.get(own.class_name)
    modules = own.state.get("_modules")
    record = modules.get("model") if type(modules) is dict else None
    if kind is None or type(record) is not Record:
        raise UsageError(
            f"{path} holds a {own.class_name[:100]}, where pdfast knows "
            f"{', '.join(PRECONDITIONINGS)}, the preconditionings of NVlabs/edm, with a network"
        )
    makers = {"SongUNet": _song, "DhariwalUNet": _adm}
    if record.class_name not in makers:
        raise UsageError(
            f"{path} holds a {record.class_name[:100]}, where pdfast knows {' and '.join(makers)}"
        )
    arguments = Arguments(path, record, SONG if record.class_name == "SongUNet" else ADM)
    fields, edm = makers[record.class_name](arguments)
    channels = fields["channels"] * (2 if kind == "iddpm" else 1)  # iddpm's include variances
    if arguments.whole("out_channels") != channels:
        raise arguments.refusal("out_channels", f"with {own.class_name} {channels} are expected")
    numbers = tuple(_number(path, own, name) for name in CONSTANTS[kind])
    least, most = (_number(path, own, name) for name in ("sigma_min", "sigma_max"))
    if kind != "edm" and parameterization == "x":
        raise UsageError(
            f"{path}: a network with {own.class_name} predicts eps, and its first student is "
            "fitted to predict v: omit --model.parameterization"
        )
    try:
        cfg = NetConfig(
            **fields,
            embedding="noise",
            parameterization=parameterization if kind == "edm" else "eps",
            schedule="edm",
            sigmas=(max(SIGMA_MIN, least), min(SIGMA_MAX, most), RHO),
            edm=EDMNetConfig(preconditioning=kind, constants=numbers, **edm),  # type: ignore[arg-type]
        )
    except UsageError as error:
        raise UsageError(
            f"{path}: its {record.class_name} is a network that pdfast cannot represent: {error}"
        ) from None
    return Described(cfg, record, own)


def _number(path: Path, record: Record, name: str) -> float:
    """Return a number among a preconditioning's attributes."""
    value = record.state.get(name)
    if not isinstance(value, int | float) or math.isnan(value):
        raise PdfastError(f"{path}: {record.class_name} has no number {name}")
    return float(value)


def _shared(arguments: Arguments) -> dict[str, Any]:
    """Return the fields of NetConfig that SongUNet and DhariwalUNet share."""
    classes = arguments.whole("label_dim", least=0)
    arguments.whole("augment_dim", least=0)
    return {
        "image_size": arguments.whole("img_resolution"),
        "channels": arguments.whole("in_channels"),
        "num_classes": classes,
        "emb_ch": arguments.whole("model_channels") * arguments.whole("channel_mult_emb"),
        "num_res_blocks": arguments.whole("num_blocks"),
        "attn_resolutions": arguments.all("attn_resolutions"),
        "dropout": arguments.share("dropout"),
        "label_dropout": arguments.share("label_dropout") if classes else 0.0,
        "groups": GROUPS,
    }


def _song(arguments: Arguments) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of [model] and [model.edm] of a SongUNet: DDPM++ or NCSN++."""
    embedding = arguments.one("embedding_type", ("positional", "fourier"))
    encoder = arguments.one("encoder_type", ("standard", "residual"))
    arguments.one("decoder_type", ("standard",))
    ch, of_noise = arguments.whole("model_channels"), arguments.whole("channel_mult_noise")
    fields = _shared(arguments) | {
        "ch": ch,
        "ch_mult": arguments.all("channel_mult"),
        "norm_eps": 1e-6,
        "film": False,
    }
    return fields, {
        "noise_ch": 0 if of_noise == 1 else ch * of_noise,
        "fourier": embedding == "fourier",
        "class_first": bool(fields["num_classes"]),
        "group_ch": GROUP_CH,
        "residual_scale": math.sqrt(0.5),
        "attention_up": "last",
        "projection": True,
        "filter": arguments.all("resample_filter", least=0),
        "pyramid": encoder == "residual",
    }


def _adm(arguments: Arguments) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of [model] and [model.edm] of a DhariwalUNet: ADM."""
    ch, multiples = arguments.whole("model_channels"), arguments.all("channel_mult")
    first = multiples[0] if multiples else 1
    if any(multiple % first for multiple in multiples):
        raise arguments.refusal("channel_mult", "each must be a multiple of the first")
    fields = _shared(arguments) | {
        "ch": ch * first,  # the first convolution has the first level's width
        "ch_mult": tuple(multiple // first for multiple in multiples),
        "norm_eps": 1e-5,
        "num_heads": 0,
        "head_dim": HEAD_DIM,
        "freq_shift": 0,
    }
    return fields, {"noise_ch": 0 if first == 1 else ch, "group_ch": GROUP_CH}
