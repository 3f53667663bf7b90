"""Import of diffusers' pipelines: refused files and mutated files."""

import json
import random
import resource
import shutil
from pathlib import Path

import diffusers_files as df
import mutations
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

import pdfast
from pdfast.cli.main import main
from pdfast.config.schema import NetConfig
from pdfast.errors import PdfastError, UsageError
from pdfast.interop.diffusers.load import load_diffusers
from pdfast.models.model import Model

INDEX, UNET = "model_index.json", "unet/config.json"
SCHEDULER = "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
Q = "mid_block.attentions.0.to_q.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A valid pipeline."""
    logging.disable_progress_bar()
    return df.save(tmp_path_factory.mktemp("good") / "p")


@pytest.fixture
def folder(good, tmp_path):
    """A copy of the valid pipeline, for a test to damage."""
    return shutil.copytree(good, tmp_path / "p")


def change(file, **values):
    """Change values of a JSON file; a value of ... removes its key."""
    table = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in table.items() if v is not ...}))


def refused(folder, file, *said, kind=UsageError):
    """Assert that the import fails with one sentence that has the file and all the texts."""
    with pytest.raises(PdfastError) as error:
        load_diffusers(str(folder))
    assert type(error.value) is kind or kind is PdfastError
    text = str(error.value)
    assert text.startswith(str(folder / file))
    for part in said:
        assert part in text
    assert "\n" not in text


UNET_FIELDS = {
    "no size": ({"sample_size": None}, "sample_size is null", "square"),
    "no square": ({"sample_size": [8, 16]}, "sample_size is [8, 16]"),
    "size": ({"sample_size": True}, "sample_size is true"),
    "channels": ({"in_channels": 4}, "out_channels is 3, and in_channels 4"),
    "four channels": ({"in_channels": 4, "out_channels": 4}, "in_channels is 4", "4 are lat"),
    "learned variance": ({"out_channels": 6}, "out_channels is 6, and in_channels 3"),
    "centred": ({"center_input_sample": True}, "center_input_sample is true", "false"),
    "fourier": ({"time_embedding_type": "fourier"}, 'time_embedding_type is "fourier"'),
    "learned": ({"time_embedding_type": "learned"}, "time_embedding_type is", "time_proj.weight"),
    "shift": ({"freq_shift": 2}, "freq_shift is 2, where pdfast has 0 or 1"),
    "activation": ({"act_fn": "relu"}, 'act_fn is "relu", where pdfast has silu or swish'),
    "scale": ({"mid_block_scale_factor": 2}, "mid_block_scale_factor is 2"),
    "no middle": ({"mid_block_type": None}, "mid_block_type is null"),
    "no attention": ({"add_attention": False}, "add_attention is false"),
    "classes": ({"class_embed_type": "timestep"}, 'class_embed_type is "timestep"'),
    "widths": (
        {"block_out_channels": [16, 24]},
        "block_out_channels is [16, 24]",
        "but in pdfast's",
    ),
    "no widths": ({"block_out_channels": []}, "block_out_channels is []"),
    "null widths": ({"block_out_channels": [0, 0]}, "block_out_channels is [0, 0]"),
    "blocks": (
        {"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]},
        "down_block_types is [",
        "AttnDownBlock2D",
    ),
    "levels": ({"down_block_types": ["DownBlock2D"]}, "down_block_types is [", "has 2 levels"),
    "attention": (
        {"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]},
        "up_block_types is [",
        "attention is not on",
    ),
    "mixed": (
        {"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]},
        "down_block_types is [",
        "resamples by convolutions here",
    ),
    "no norm": ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups is null"),
    "norm": ({"attn_norm_num_groups": 4}, "attn_norm_num_groups is 4", "norm_num_groups is 8"),
    "shift of scale": ({"resnet_time_scale_shift": "ada_group"}, 'is "ada_group"'),
    "groups": ({"norm_num_groups": 7}, "model.groups 7 does not divide a width of 16"),
    "eps": ({"norm_eps": "x"}, 'norm_eps is "x", not a number in 0 .. 1'),
    "heads": (
        {"attention_head_dim": 5},
        "model.head_dim 5 does not divide a width of 16 channels: choose a divisor of 16",
    ),
    "layers": ({"layers_per_block": 1.5}, "layers_per_block is 1.5, not a whole number"),
    "padding": ({"downsample_padding": 2}, "downsample_padding is 2"),
    "unknown": ({"timestep_scale": 3}, "timestep_scale is 3, a field that pdfast does not know"),
    "class": ({"_class_name": "UNet2DConditionModel"}, '_class_name is "UNet2DConditionModel"'),
}


@pytest.mark.parametrize("case", UNET_FIELDS)
def test_fields_of_the_network(folder, case):
    values, *said = UNET_FIELDS[case]
    change(folder / UNET, **values)
    refused(folder, UNET, *said)


SCHEDULER_FIELDS = {
    "class": ({"_class_name": "EulerDiscreteScheduler"}, '_class_name is "EulerDisc', "DDIMSch"),
    "thresholding": ({"thresholding": True}, "thresholding is true"),
    "variance": ({"variance_type": "learned_range"}, 'variance_type is "learned_range"'),
    "range": ({"clip_sample_range": 2.0}, "clip_sample_range is 2.0", "[-1, 1]"),
    "schedule": ({"beta_schedule": "sigmoid"}, 'beta_schedule is "sigmoid"', "trained_betas="),
    "predicts": ({"prediction_type": "flow_prediction"}, "prediction_type is", "v_prediction"),
    "timesteps": ({"num_train_timesteps": 10**9}, "num_train_timesteps is 1000000000", "8192"),
    "no timesteps": ({"num_train_timesteps": 1}, "num_train_timesteps is 1", "2 .. 8192"),
    "zero SNR": ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is true", "epsilon"),
    "nothing left": (
        {"trained_betas": [0.1, 1], "num_train_timesteps": 2},
        "trained_betas is [0.1, 1], and prediction_type epsilon",
    ),
    "few": ({"trained_betas": [0.1, 0.2]}, "trained_betas is [0.1, 0.2], 2 of them for 1000"),
    "text": ({"trained_betas": ["x"]}, 'trained_betas is ["x"], not a number in 0 .. 1'),
    "text for betas": ({"trained_betas": "x"}, 'trained_betas is "x", not a list'),
    "end": ({"beta_end": 1.5}, "beta_end is 1.5, not a number in 0 .. 1"),
    "unknown": ({"snr_shift": 0.5}, "snr_shift is 0.5, a field that pdfast does not know"),
}


@pytest.mark.parametrize("case", SCHEDULER_FIELDS)
def test_fields_of_the_scheduler(folder, case):
    values, *said = SCHEDULER_FIELDS[case]
    change(folder / SCHEDULER, **values)
    refused(folder, SCHEDULER, *said)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"beta_start": 0.1, "beta_end": 0.05}, "model.betas must rise"),
        (
            {"beta_start": 0.1, "rescale_betas_zero_snr": True, "prediction_type": "sample"},
            "model.betas must rise",
        ),
        ({"beta_start": 1e-12}, "alpha-bar must be below 1 and above 2e-9"),
        ({"beta_end": 0.5}, "alpha-bar must be below 1 and above 2e-9"),
    ],
)
def test_betas_that_are_no_schedule(folder, values, said):
    change(folder / SCHEDULER, **values)
    refused(
        folder, UNET, "scheduler_config.json describe a network that pdfast cannot represent", said
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, 'is "StableDiffusionPipeline", where pdfast'),
        ({"_class_name": ...}, "_class_name is null, where pdfast has DDPMPipeline or DDIMPip"),
        ({"unet": ["diffusers", "UNet1DModel"]}, 'unet is ["diffusers", "UNet1DModel"]'),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "a text-conditional network, and pdf"),
        ({"scheduler": ["diffusers", "PNDMScheduler"]}, "PNDMScheduler"),
        ({"scheduler": None}, "scheduler is null, not diffusers' DDPMScheduler or DDIMScheduler"),
    ],
)
def test_another_pipeline(folder, values, said):
    change(folder / INDEX, **values)
    refused(folder, INDEX, said)


@pytest.mark.parametrize("part", ["vae", "vqvae", "text_encoder"])
def test_networks_of_latents_and_of_text(folder, part):
    """A part in the index or beside the network tells what the network works on."""
    on = "text, too" if part == "text_encoder" else "latents, not pixels"
    said = f" is a pipeline with a {part}: its network works on {on}, and pdfast distils networks"
    change(folder / INDEX, **{part: [None, None]})  # how diffusers writes a part that is absent
    load_diffusers(str(folder))
    change(folder / INDEX, **{part: ["diffusers", "X"]}, _class_name="StableDiffusionPipeline")
    refused(folder, "", said)
    change(folder / INDEX, **{part: ...}, _class_name="DDPMPipeline")
    load_diffusers(str(folder))
    (folder / part).mkdir()
    (folder / part / "config.json").write_text("{}")
    refused(folder, "", said)
    with pytest.raises(UsageError, match=said):
        load_diffusers(str(folder / "unet"), scheduler=folder)
    (folder / INDEX).rename(folder / "renamed.json")  # a folder of models that are no pipeline
    load_diffusers(str(folder / "unet"), scheduler=folder)


# ------------------------------------------------------------------------------------------
# Files


def test_no_pipeline(folder, tmp_path, capsys):
    for name, said in (
        ("nowhere", "nowhere does not exist: name a pipeline's folder, or its id on the hub"),
        (f"p/{INDEX}", "is a file, in .*/p: name a pipeline's folder"),
        ("p/scheduler", "has no model_index.json; the pipeline is .*/p$"),
    ):
        with pytest.raises(UsageError, match=said):
            load_diffusers(str(tmp_path / name))
    for name, table in (("a", {"_class_name": "UNet2DModel"}), ("b", {"_class_name": "VQModel"})):
        (tmp_path / "all" / name).mkdir(parents=True)
        (tmp_path / "all" / name / "config.json").write_text(json.dumps(table))
    shutil.copytree(folder, tmp_path / "all" / "pipe")
    pdfast.save(load_diffusers(str(folder)).model, tmp_path / "all" / "model")
    said = "(pipelines in it: pipe; networks in it, which need --scheduler: a: name one)"
    refused(tmp_path / "all", "", "is no diffusers pipeline", said)
    refused(tmp_path / "all" / "model", "", "is already a pdfast model: pass it to pdfast distill")
    shutil.rmtree(tmp_path / "all")
    (folder / SCHEDULER).unlink()
    refused(folder, "", "is not a complete pipeline: it has no scheduler/scheduler_config.json")
    import_it = ["import", str(folder), "--from", "diffusers", "--out", str(tmp_path / "out")]
    for more, said in (
        (["--config", "cifar10"], "--config and its fields are for --from google"),
        (["--model.ch", "96"], "--config and its fields are for --from google"),
        (["--steps", "-1"], "--steps must be in 0 .."),
        ([], "is not a complete pipeline"),
    ):
        assert main([*import_it, *more]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p"]


def test_what_is_there_is_kept(folder, tmp_path, capsys):
    args = ["import", str(folder), "--from", "diffusers", "--out", str(tmp_path / "out")]
    (tmp_path / "out.toml").write_text("mine")
    assert main(args) == 2
    assert "out.toml already exists" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "out.toml").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert main(args) == 2
    assert "out already exists" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]
    assert main([*args[:-1], str(tmp_path / "new"), "--steps", "2000"]) == 2
    assert "--steps 2000 is more than the 1000 timesteps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("diffusion_pytorch_model.bin", "is pickled, and loading it could run code in it"),
        ("diffusion_pytorch_model.safetensors.other", "(but diffusion_pytorch_model.safetensors.o"),
        ("diffusion_pytorch_model.fp16.safetensors", "but variants: pass --variant fp16"),
        ("other", "has no diffusion_pytorch_model.safetensors"),
    ],
)
def test_weights_in_other_files(folder, name, said):
    (folder / WEIGHTS).rename(folder / "unet" / name)
    refused(folder, "unet", said)


def test_damaged_files(folder):
    for name in (WEIGHTS, UNET, SCHEDULER, INDEX):
        whole = (folder / name).read_bytes()
        for content in (whole[: len(whole) // 2], b"", b"\xff" * 100):
            (folder / name).write_bytes(content)
            refused(folder, name, f"put a whole copy of {(folder / name).parent}", kind=PdfastError)
        (folder / name).write_bytes(whole)
    load_diffusers(str(folder))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda w: w.pop(Q), f"tensor {Q}, which is missing"),
        (lambda w: w.update(more=torch.zeros(1)), "tensor more, which the network does not have"),
        (lambda w: w.update({Q: torch.zeros(3)}), f"{Q}, of shape (3,), not (32, 32)"),
        (lambda w: w[Q].fill_(torch.nan), f"tensor {Q}, which must hold finite floats"),
        (lambda w: w.update({Q: w[Q].long()}), f"tensor {Q}, which must hold finite floats"),
        (lambda w: w.update({Q.replace("to_q", "query"): w[Q].clone()}), f"holds {Q} twice"),
    ],
)
def test_weights_that_do_not_fit(folder, spoil, said):
    weights = load_file(folder / WEIGHTS)
    spoil(weights)
    save_file(weights, folder / WEIGHTS)
    refused(folder, WEIGHTS, said, kind=PdfastError)


def test_our_own_file_beside_another_model(tmp_path):
    """pdfast.json is refused unless config, betas and the learned table match it."""
    logging.disable_progress_bar()
    cfg = NetConfig(
        image_size=8, ch=16, emb_ch=64, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,),
        groups=8,
    )  # fmt: skip
    out = tmp_path / "out"
    pdfast.export(Model(cfg, 4), out, quiet=True)
    own = json.loads((out / "pdfast.json").read_text())
    for changes, said in (
        ({"groups": 4}, "unet/config.json, which has another norm_num_groups"),
        (
            {"parameterization": "x"},
            "scheduler_config.json, which has another schedule or prediction type",
        ),
        (
            {"logsnr_min": -10.0},
            "scheduler_config.json, which has another schedule or prediction type",
        ),
        ({"parameterization": "x_eps"}, "does not describe any pipeline that pdfast exports"),
        ({"groups": 0}, "is not a model's configuration: model.groups must be in 1 .. 65536"),
    ):
        table = own | {"model": own["model"] | changes}
        (out / "pdfast.json").write_text(json.dumps(table))
        with pytest.raises(PdfastError, match=said.replace("(", r"\(")) as error:
            load_diffusers(str(out))
        assert str(error.value).startswith(str(out / "pdfast.json"))
    (out / "pdfast.json").write_text(json.dumps(own))
    weights = load_file(out / WEIGHTS)
    weights["time_proj.weight"] *= 0.9
    save_file(weights, out / WEIGHTS)
    with pytest.raises(
        UsageError, match=r"which has another time_proj.weight: if the pipeline was changed after"
    ):
        load_diffusers(str(out))
    (out / "pdfast.json").unlink()
    refused(out, UNET, 'time_embedding_type is "learned"', "are not pdfast's embedding of the")


def test_mutated_files_are_read_or_refused(tmp_path):
    """100 mutated files: each gives a model or one sentence, in bounded time and memory."""
    logging.disable_progress_bar()
    scheduler = DDIMScheduler(
        trained_betas=[0.01 * k for k in range(1, 21)], num_train_timesteps=20
    )
    folder = df.save(tmp_path / "p", scheduler=scheduler)
    rng, whole = random.Random(0), {n: (folder / n).read_bytes() for n in (INDEX, UNET, SCHEDULER)}
    whole[WEIGHTS] = (folder / WEIGHTS).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limits[1]))
    outcomes, lines = {"model": 0, "refused": 0}, []
    try:
        for _ in range(100):
            name = rng.choice([UNET, UNET, SCHEDULER, INDEX, WEIGHTS])
            (folder / name).write_bytes(fuzzing_of(rng, name, whole[name]))
            try:
                load_diffusers(str(folder))
                outcomes["model"] += 1
            except PdfastError as error:
                outcomes["refused"] += 1
                lines.append(str(error).count("\n"))
            (folder / name).write_bytes(whole[name])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert min(outcomes.values()) > 5
    assert not any(lines)


def fuzzing_of(rng, name, content):
    """Mutate a file: one value of its JSON, or a few of its bytes."""
    if name != WEIGHTS and rng.random() < 0.8:
        table = json.loads(content)
        key = rng.choice(list(table))
        table[key] = mutations.value(rng, table[key])
        return json.dumps(table, default=str).encode()
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 4])):
        # Only mutations of the header can make the weights invalid.
        content[rng.randrange(min(len(content), 3000))] = rng.randrange(256)
    return bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
