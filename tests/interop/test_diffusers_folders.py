"""Folders of diffusers other than a whole pipeline: shards, variants, networks alone, averages."""

import hashlib
import json
import random
import shutil
from pathlib import Path

import diffusers_files as df
import mutations
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from diffusers.training_utils import EMAModel
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

from pdfast.cli.main import main
from pdfast.errors import PdfastError, UsageError
from pdfast.interop.diffusers import weights
from pdfast.interop.diffusers.load import load_diffusers
from pdfast.models.checkpoint import load_model

pytestmark = pytest.mark.usefixtures("handlers")
INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@pytest.fixture(scope="module")
def net():
    return df.unet()


@pytest.fixture(scope="module")
def good(net, tmp_path_factory):
    """A pipeline with its weights in one file."""
    return df.save(tmp_path_factory.mktemp("good") / "p", net)


def sharded(good, to, net, variant=None):
    """Write the pipeline with weights of 100 KB per file; return the network's folder."""
    shutil.copytree(good, to)
    shutil.rmtree(to / "unet")
    net.save_pretrained(to / "unet", max_shard_size="100KB", variant=variant)
    assert len(list((to / "unet").glob("*.safetensors"))) > 2
    return to / "unet"


def same(a, b):
    """Return whether two models have equal configs and identical weights."""
    ours, theirs = a.net.state_dict(), b.net.state_dict()
    return a.cfg == b.cfg and all(torch.equal(ours[k], theirs[k]) for k in ours.keys() | theirs)


def refused(said, *args, kind=PdfastError):
    """Assert that the import fails with one sentence that matches `said`."""
    with pytest.raises(kind) as error:
        load_diffusers(*map(str, args[:1]), None, *args[1:])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------
# Weights


def test_shards(good, net, tmp_path):
    expected = load_diffusers(str(good)).model
    unet = sharded(good, tmp_path / "p", net)
    found = load_diffusers(str(tmp_path / "p"))
    assert same(found.model, expected)
    facts, shards = found.pipeline.weights.facts(), sorted(unet.glob("*.safetensors"))
    assert (facts["file"], facts["sha256"]) == (INDEX, digest(unet / INDEX))
    assert facts["shards"] == {file.name: digest(file) for file in shards}


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_shards_that_are_not_as_their_index_says(good, net, tmp_path):
    unet = sharded(good, tmp_path / "p", net)
    index, shards = json.loads((unet / INDEX).read_text()), sorted(unet.glob("*.safetensors"))
    listed = index["weight_map"]

    def refuse(said, **values):
        (unet / INDEX).write_text(json.dumps(index | values))
        refused(said, tmp_path / "p")

    refuse("has no weight_map", weight_map=[])
    refuse("has no weight_map", weight_map={})
    for name in ("../x.safetensors", "/etc/passwd", "diffusion_pytorch_model-1.bin", 3, None):
        refuse("which is no diffusion_pytorch_model-", weight_map=listed | {"conv_in.bias": name})
    absent = "diffusion_pytorch_model-9.safetensors"
    refuse(
        f"{absent} is missing, and {INDEX} names it", weight_map=listed | {"conv_in.bias": absent}
    )
    refuse("lacks tensor more", weight_map=listed | {"more": shards[0].name})
    first = next(name for name, file in listed.items() if file == shards[0].name)
    fewer = {name: file for name, file in listed.items() if name != first}
    refuse(f"holds tensor {first}", weight_map=fewer)
    many = {str(k): f"diffusion_pytorch_model-{k}.safetensors" for k in range(1001)}
    refuse("names 1001 files, where 1000 is the most", weight_map=many)
    (unet / INDEX).write_text(json.dumps(index))
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:-5])
    refused(f"{shards[1].name} cannot be read", tmp_path / "p")
    shards[1].write_bytes(whole)
    shutil.copy(good / "unet" / weights.WEIGHTS, unet)
    refused(f"holds both {weights.WEIGHTS} and {INDEX}: remove", tmp_path / "p", kind=UsageError)


@pytest.mark.parametrize("shards", [False, True])
def test_a_variant(shards, good, net, tmp_path, capsys):
    """The imported weights are the file's float16 values, in float32."""
    half = df.unet().half()
    if shards:
        unet = sharded(good, tmp_path / "p", half, "fp16")
        assert (unet / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
    else:
        shutil.copytree(good, tmp_path / "p")
        shutil.rmtree(tmp_path / "p" / "unet")
        half.save_pretrained(tmp_path / "p" / "unet", variant="fp16")
    args = ["import", str(tmp_path / "p"), "--from", "diffusers", "--out", str(tmp_path / "m")]
    assert main(args) == 2
    assert "but variants: pass --variant fp16" in capsys.readouterr().err
    assert main([*args, "--variant", "fp16"]) == 0
    assert "its weights are float16 in the file, and float32 in" in capsys.readouterr().out
    model = load_model(tmp_path / "m")
    assert torch.equal(model.net.conv_out.weight, half.conv_out.weight.float())
    assert not torch.equal(model.net.conv_out.weight, net.conv_out.weight)
    refused("but variants: pass --variant fp16", tmp_path / "p", "bf16", kind=UsageError)
    refused("--variant '../x' is no variant", tmp_path / "p", "../x", kind=UsageError)
    refused("weights without a variant: omit --variant", good, "fp16", kind=UsageError)


def test_what_the_hub_is_asked_for_in_variants():
    assert weights.on_hub(None) == [
        weights.WEIGHTS,
        INDEX,
        "diffusion_pytorch_model-?????-of-?????.safetensors",
    ]
    assert "diffusion_pytorch_model.fp16-?????-of-?????.safetensors" in weights.on_hub("fp16")
    assert weights.WEIGHTS not in weights.on_hub("fp16")


# ------------------------------------------------------------------------------------------
# A network alone


def test_a_network_alone(good, net, tmp_path, capsys):
    """--scheduler takes the scheduler's file, its folder, or a pipeline's folder."""
    expected = load_diffusers(str(good)).model
    alone = tmp_path / "out" / "checkpoint-5" / "unet"
    net.save_pretrained(alone)
    file = good / "scheduler" / "scheduler_config.json"
    for scheduler in (file, good / "scheduler", good):
        found = load_diffusers(str(alone), scheduler=scheduler)
        assert same(found.model, expected)
    assert (found.pipeline.name, found.pipeline.own) == ("UNet2DModel", None)
    refused(
        "is of a network without a scheduler: pass --scheduler, the scheduler_config.json that it "
        "was trained with or its folder",
        alone,
        kind=UsageError,
    )
    shutil.copytree(good / "scheduler", tmp_path / "out" / "scheduler")
    refused(f"or its folder, as {tmp_path / 'out' / 'scheduler'}", alone, kind=UsageError)
    nowhere = tmp_path / "nowhere"
    refused("there is no scheduler_config.json; in", alone, None, nowhere, kind=UsageError)
    refused("omit --scheduler", good, None, file, kind=UsageError)
    said = "no model_index.json (networks in it, which need --scheduler: unet: name one)"
    refused(said, alone.parent, kind=UsageError)
    other = tmp_path / "s.json"
    other.write_text(json.dumps({"_class_name": "PNDMScheduler"}))
    refused('_class_name is "PNDMScheduler"', alone, None, other, kind=UsageError)
    args = ["import", "f", "--from", "google", "--config", "cifar10", "--out", str(tmp_path / "m")]
    for more in (["--variant", "fp16"], ["--scheduler", "s"], ["--null-class", "3"]):
        assert main([*args, *more]) == 2
        assert "are for --from diffusers" in capsys.readouterr().err


def test_averages(good, tmp_path, capsys):
    """Import the folder `unet_ema` that diffusers' training scripts write."""
    net = df.unet()
    ema = EMAModel(net.parameters(), 0.5, model_cls=UNet2DModel, model_config=net.config)
    with torch.no_grad():
        for _ in range(3):
            for p in net.parameters():
                p.add_(0.1)
            ema.step(net.parameters())
    folder = tmp_path / "checkpoint-3" / "unet_ema"
    ema.save_pretrained(folder)
    assert "optimization_step" in json.loads((folder / "config.json").read_text())
    args = ["import", str(folder), "--from", "diffusers", "--out", str(tmp_path / "m")]
    assert main([*args, "--scheduler", str(good)]) == 0
    assert "its weights are EMAModel's averages over 3 updates" in capsys.readouterr().out
    model = load_model(tmp_path / "m")
    names = [name for name, _ in net.named_parameters()]
    average = dict(zip(names, ema.shadow_params, strict=True))
    assert torch.equal(model.net.conv_out.weight, average["conv_out.weight"])
    assert not torch.equal(model.net.conv_out.weight, net.conv_out.weight)
    facts = json.loads((tmp_path / "m" / "manifest.json").read_text())["imported"]
    assert (facts["pipeline"], facts["averaged_over"]) == ("UNet2DModel", 3)
    assert facts["source"] == "unet_ema"


# ------------------------------------------------------------------------------------------
# The old key of the scheduler


@pytest.mark.parametrize(
    ("values", "predicts"),
    [
        ({"predict_epsilon": True}, "eps"),
        ({"predict_epsilon": False}, "x"),
        ({"predict_epsilon": None, "prediction_type": "v_prediction"}, "v"),
        ({"predict_epsilon": False, "prediction_type": "sample"}, "x"),
        ({"predict_epsilon": False, "prediction_type": "epsilon"}, "says sample, and prediction_"),
        ({"predict_epsilon": True, "prediction_type": "v_prediction"}, "says epsilon, and pred"),
        ({"predict_epsilon": 1}, "predict_epsilon is 1, where pdfast has null, true or false"),
    ],
)
def test_predict_epsilon(values, predicts, good, tmp_path):
    shutil.copytree(good, tmp_path / "p")
    file = tmp_path / "p" / "scheduler" / "scheduler_config.json"
    table = json.loads(file.read_text())
    table.pop("prediction_type")
    file.write_text(json.dumps(table | values))
    if len(predicts) > 3:
        refused(predicts, tmp_path / "p", kind=UsageError)
        return
    assert load_diffusers(str(tmp_path / "p")).model.parameterization == predicts


# ------------------------------------------------------------------------------------------
# Numbers of steps


def test_steps_that_do_not_divide_are_not_ddims(tmp_path):
    """64 steps of 1000 timesteps, and 50, differ from DDIM as docs/teachers.md says."""
    fields = {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    df.save(tmp_path / "p", df.unet(gain=4.0), DDIMScheduler(**fields), DDPMPipeline)
    model, pipe = load_diffusers(str(tmp_path / "p")).model, df.opened(tmp_path / "p")
    apart = {}
    for steps in (50, 64):
        ours = model.sample(4, steps, noise=df.noise(model))
        apart[steps] = df.apart(ours, df.by_pipeline(pipe, steps))
    print(apart)
    assert apart[50] < 1e-5
    assert apart[64] > 0.01


def test_mutated_indices_are_read_or_refused(good, net, tmp_path):
    """30 mutated indices: each gives the model or one sentence."""
    unet, expected = sharded(good, tmp_path / "p", net), load_diffusers(str(good)).model
    whole, rng, lines = (unet / INDEX).read_bytes(), random.Random(0), []
    for k in range(30):
        content = bytearray(whole)
        if k % 2:
            table = json.loads(whole)
            key = rng.choice(list(table["weight_map"]))
            table["weight_map"][key] = mutations.value(rng, table["weight_map"][key])
            content = json.dumps(table, default=str).encode()
        else:
            content[rng.randrange(len(content))] = rng.randrange(256)
        (unet / INDEX).write_bytes(content)
        try:
            assert same(load_diffusers(str(tmp_path / "p")).model, expected)
        except PdfastError as error:
            lines.append(str(error).count("\n"))
    assert len(lines) > 5
    assert not any(lines)


def test_other_layers_of_shards_cannot_be_swapped(good, net, tmp_path):
    """A shard of a network of other shapes is refused by the tensor's name."""
    unet = sharded(good, tmp_path / "p", net)
    shard = sorted(unet.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    name = min(tensors)
    tensors[name] = torch.zeros(3)
    save_file(tensors, Path(shard))
    refused(f"does not fit {unet / 'config.json'}: tensor {name}", tmp_path / "p")
