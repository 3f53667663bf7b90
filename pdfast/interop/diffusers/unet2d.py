"""diffusers' `UNet2DModel` and scheduler as the [model] of a config, field by field.

Every field that matters is either converted or must have a value that pdfast's network implements.
Omitted fields have diffusers' defaults. An unknown field is refused, since it may mean anything.
"""

from typing import Any

from pdfast.config.model import MAX_TIMESTEPS
from pdfast.config.schema import NetConfig
from pdfast.config.serialization import from_table
from pdfast.diffusion import betas
from pdfast.errors import UsageError
from pdfast.interop.diffusers.export import PLAIN_BLOCKS, PREDICTS
from pdfast.interop.diffusers.pipeline import (
    Pipeline,
    Table,
    either,
    one_of,
    refusal,
    shown,
)

# Converted fields, with diffusers' defaults.
UNET: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "predict_epsilon": None,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "rescale_betas_zero_snr": False,
}
# Fields that must have one of these values; the first is diffusers' default.
UNET_IS: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}
SCHEDULER_IS: dict[str, tuple[Any, ...]] = {
    "thresholding": (False,),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
# Ignored: how diffusers' samplers choose timesteps and end, which pdfast's do otherwise, and an
# array type that old versions noted.
SAMPLING = {
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "tensor_format",
}
# What EMAModel adds to the configuration of averaged weights; only optimization_step is used.
EMA = {
    "decay",
    "min_decay",
    "optimization_step",
    "update_after_step",
    "use_ema_warmup",
    "inv_gamma",
    "power",
}
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")  # kinds that pdfast computes
PARAMETERIZATIONS = {predicts: parameterization for parameterization, predicts in PREDICTS.items()}


class Fields:
    """The values of a table, with diffusers' defaults for omitted fields."""

    def __init__(self, table: Table, taken: dict[str, Any], fixed: dict[str, Any]) -> None:
        self.table = table
        self.values = taken | table.values
        known = taken.keys() | fixed.keys() | (EMA if taken is UNET else SAMPLING)
        for key, value in table.values.items():
            if key not in known and value is not None and not key.startswith("_"):
                raise refusal(table, key, value, "a field that pdfast does not know")
        for key, allowed in fixed.items():
            one_of(table, key, allowed, default=allowed[0])

    def refuse(self, key: str, why: str) -> UsageError:
        """Return the error for a field's value."""
        return refusal(self.table, key, self.values[key], why)

    def one(self, key: str, known: tuple[Any, ...]) -> Any:
        """Return a value that must be one of `known`."""
        return one_of(self.table, key, known, self.values[key])

    def whole(self, key: str, null: int | None = None) -> int:
        """Return a whole number above 0; for a JSON null, `null` if that is given."""
        value = self.values[key]
        if value is None and null is not None:
            return null
        return self._checked(key, value, (int,), 2**30)  # type: ignore[return-value]

    def number(self, key: str, most: float = 1.0) -> float:
        """Return a number from 0 to `most`."""
        return float(self._checked(key, self.values[key], (int, float), most, least=0))

    def all(self, key: str, kinds: tuple[type, ...], most: float) -> list[Any]:
        """Return a list of 1 to 8192 numbers of the given types, from 0 to `most`."""
        value = self.values[key]
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_TIMESTEPS:
            raise self.refuse(key, f"not a list of 1 to {MAX_TIMESTEPS} numbers")
        return [self._checked(key, item, kinds, most, least=0) for item in value]

    def _checked(
        self, key: str, value: Any, kinds: tuple[type, ...], most: float, least: int = 1
    ) -> int | float:
        if type(value) not in kinds or not least <= value <= most:
            what = "a number" if float in kinds else "a whole number"
            raise self.refuse(key, f"not {what} in {least} .. {most:,}")
        return value  # type: ignore[no-any-return]


def network(pipeline: Pipeline) -> dict[str, Any]:
    """Return the fields of NetConfig from the network's configuration, without the embedding.

    Raises:
        UsageError: pdfast's network does not have what a field asks for.
    """
    fields = Fields(pipeline.unet, UNET, UNET_IS)
    size, channels = _size(fields), fields.whole("in_channels")
    if fields.whole("out_channels") != channels:
        raise fields.refuse("out_channels", f"and in_channels {channels}: they must be the same")
    if channels not in (1, 3):
        raise fields.refuse(
            "in_channels", "where pdfast's pictures have 1 (grey) or 3 (colour); 4 are latents"
        )
    widths = fields.all("block_out_channels", (int,), 2**16)
    if any(width == 0 or width % widths[0] for width in widths):
        raise fields.refuse(
            "block_out_channels",
            "but in pdfast's network each width must be a multiple of the first",
        )
    film = fields.one("resnet_time_scale_shift", ("default", "scale_shift")) == "scale_shift"
    groups = fields.whole("norm_num_groups")
    asked = fields.values["attn_norm_num_groups"]
    if asked != groups and (asked is not None or film):
        why = "leaves the middle's attention without a norm" if asked is None else "differs"
        raise fields.refuse("attn_norm_num_groups", f"which {why}: norm_num_groups is {groups}")
    attended, resample = _blocks(fields, len(widths))
    conv = resample == "conv"
    head_dim = fields.whole("attention_head_dim", null=0)
    return {
        "image_size": size,
        "channels": channels,
        "num_classes": fields.whole("num_class_embeds", null=0),
        "ch": widths[0],
        "emb_ch": fields.whole("time_embedding_dim", null=4 * widths[0]),
        "ch_mult": tuple(width // widths[0] for width in widths),
        "num_res_blocks": fields.whole("layers_per_block"),
        "attn_resolutions": tuple(sorted(size >> level for level in attended)),
        "num_heads": 0 if head_dim else 1,
        "head_dim": head_dim,
        "groups": groups,
        "norm_eps": fields.number("norm_eps"),
        "film": film,
        "resample": resample,
        "downsample_padding": fields.one("downsample_padding", (0, 1)) if conv else 1,
        "dropout": fields.number("dropout"),
    }


def _size(fields: Fields) -> int:
    """Return the height and width of the images, which must be equal."""
    value = fields.values["sample_size"]
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if type(value) is not int or not 1 <= value <= 2**16:
        raise fields.refuse("sample_size", "where pdfast's images are square: a whole number")
    return value


def _blocks(fields: Fields, levels: int) -> tuple[list[int], str]:
    """Return the levels with attention, and the one way in which all levels resample."""
    attended, ways = [], set()
    for way, key in enumerate(("down_block_types", "up_block_types")):
        names = fields.values[key]
        kinds = {blocks[way]: kind for kind, blocks in PLAIN_BLOCKS.items()}
        attention = ("AttnDownBlock2D", "AttnUpBlock2D")[way]
        if not isinstance(names, list) or len(names) != levels:
            raise fields.refuse(key, f"where block_out_channels has {levels} levels")
        known = (attention, *kinds)
        if any(name not in known for name in names):
            raise fields.refuse(key, f"where pdfast has {either(known)}")
        by_level = names if way == 0 else names[::-1]
        attended.append([n for n, name in enumerate(by_level) if name == attention])
        # The last level on the way down and the first on the way up keep the size.
        resampling = by_level[:-1] if way == 0 else by_level[1:]
        asked = fields.one(("downsample_type", "upsample_type")[way], tuple(PLAIN_BLOCKS))
        ways |= {kinds.get(name, asked) for name in resampling}
    if attended[0] != attended[1]:
        raise fields.refuse("up_block_types", "where attention is not on down_block_types' levels")
    if len(ways) > 1:
        raise fields.refuse(
            "down_block_types",
            "which, with up_block_types, downsample_type and upsample_type, resamples by "
            "convolutions here and in residual blocks there: pdfast has one of them",
        )
    return attended[0], ways.pop() if ways else "resnet"


def embedding(pipeline: Pipeline) -> tuple[dict[str, Any], bool]:
    """Return the fields of NetConfig for the time embedding, and whether cosines come first in it.

    A learned table gives no fields: the caller compares it with this network's embedding.
    """
    fields = Fields(pipeline.unet, UNET, UNET_IS)
    if fields.one("time_embedding_type", ("positional", "learned")) == "learned":
        return {}, False
    shift = fields.one("freq_shift", (0, 1))
    flipped = fields.one("flip_sin_to_cos", (True, False))
    return {"embedding": "timestep", "freq_shift": shift}, flipped


def averaged_over(pipeline: Pipeline) -> int | None:
    """Return how many updates diffusers' EMAModel averaged the weights over; None if not known."""
    updates = pipeline.unet.values.get("optimization_step")
    return updates if type(updates) is int else None


def _predicts(fields: Fields) -> str:
    """Return `prediction_type`, or the value that its predecessor `predict_epsilon` stands for.

    Today's diffusers ignores the old key, and takes a network that predicts x for one of eps.
    """
    given = fields.table.values
    old = fields.one("predict_epsilon", (None, True, False))
    if old is None:
        return str(fields.one("prediction_type", tuple(PARAMETERIZATIONS)))
    meant = "epsilon" if old else "sample"
    if given.get("prediction_type", meant) != meant:
        raise fields.refuse(
            "predict_epsilon",
            f"which says {meant}, and prediction_type is {shown(given['prediction_type'])}: remove "
            "the one that is wrong",
        )
    return meant


def schedule(pipeline: Pipeline) -> tuple[dict[str, Any], bool]:
    """Return the fields of NetConfig from the scheduler, and whether its own sampler clips.

    Raises:
        UsageError: pdfast does not have what a field asks for.
    """
    fields = Fields(pipeline.scheduler, SCHEDULER, SCHEDULER_IS)
    parameterization = PARAMETERIZATIONS[_predicts(fields)]
    clips = fields.one("clip_sample", (True, False))
    if clips and fields.values["clip_sample_range"] != 1:
        raise fields.refuse("clip_sample_range", "where pdfast's images are in [-1, 1]")
    steps = fields.whole("num_train_timesteps")
    if not 2 <= steps <= MAX_TIMESTEPS:
        raise fields.refuse("num_train_timesteps", f"where pdfast has 2 .. {MAX_TIMESTEPS}")
    found: dict[str, Any] = {"parameterization": parameterization, "timesteps": steps}
    if fields.values["trained_betas"] is not None:
        given = fields.all("trained_betas", (int, float), 1)
        if len(given) != steps:
            raise fields.refuse("trained_betas", f"{len(given)} of them for {steps} timesteps")
        found |= {"schedule": "trained_betas", "betas": tuple(map(float, given))}
    else:
        kind = fields.values["beta_schedule"]
        if kind not in BETAS:
            raise fields.refuse(
                "beta_schedule",
                f"where pdfast has {either(BETAS)}: save the scheduler with "
                "trained_betas=scheduler.betas.tolist()",
            )
        ends = () if kind == "squaredcos_cap_v2" else ("beta_start", "beta_end")
        found |= {"schedule": kind, "betas": tuple(fields.number(key) for key in ends)}
    rescales = fields.one("rescale_betas_zero_snr", (False, True))
    if parameterization == "eps" and (rescales or found["betas"][-1:] == (1.0,)):
        raise fields.refuse(
            "rescale_betas_zero_snr" if rescales else "trained_betas",
            "and prediction_type epsilon: eps does not determine the image where alpha is 0",
        )
    if rescales:
        whole = betas.rescaled(betas.betas(from_table(NetConfig, found, "model.")))
        found |= {"schedule": "trained_betas", "betas": tuple(whole.tolist())}
    return found, clips
