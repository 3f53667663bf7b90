"""Model directories: whole or absent, verified, without pickle."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pdfast.config.schema import NetConfig
from pdfast.errors import PdfastError, UsageError
from pdfast.models import checkpoint
from pdfast.models.model import Model
from pdfast.storage import files, model_dir

CFG = NetConfig(
    image_size=8,
    channels=1,
    ch=8,
    emb_ch=16,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(4,),
    groups=4,
    parameterization="x_eps",
)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = Model(CFG, steps=4)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    checkpoint.save_model(model, tmp_path / "model")
    return model, tmp_path / "model"


def test_round_trip(saved):
    model, path = saved
    loaded = checkpoint.load_model(path)
    assert (loaded.cfg, loaded.steps, loaded.training) == (CFG, 4, False)
    expected = model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in loaded.state_dict().items())
    z = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(z, torch.zeros(2)), model.eval()(z, torch.zeros(2)))
    assert sorted(f.name for f in path.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
    ]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["steps"] == 4
    assert set(manifest["files"]) == {"config.json", "model.safetensors"}
    assert {"pdfast", "torch", "threads"} <= set(manifest["versions"])


def test_a_model_is_replaced_whole(saved):
    model, path = saved
    with torch.no_grad():
        model.net.conv_out.bias += 1
    checkpoint.save_model(model, path)
    assert torch.equal(checkpoint.load_model(path).net.conv_out.bias, model.net.conv_out.bias)
    assert [p.name for p in path.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped"])
def test_damage_is_found_and_named(saved, name, damage):
    _, path = saved
    file = path / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(PdfastError) as error:
        checkpoint.load_model(path)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_model(tmp_path, saved):
    with pytest.raises(UsageError, match="there is no model directory"):
        checkpoint.load_model(tmp_path / "absent")
    for folder, name in (("pipe", "model_index.json"), ("pipe/unet", "config.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text('{"_class_name": "X"}')
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UsageError, match=r"not a model directory.*models inside it: model\)"):
        checkpoint.load_model(tmp_path)


@pytest.mark.parametrize(
    ("folder", "is_a", "command"),
    [
        ("pipe", "pipeline", "pipe --from diffusers --out NEW"),
        ("pipe/unet", "network", "pipe --from diffusers --out NEW"),
        ("alone", "network", "alone --from diffusers --scheduler SCHEDULER_FOLDER --out NEW"),
    ],
)
def test_a_folder_of_diffusers_is_to_be_imported(tmp_path, monkeypatch, folder, is_a, command):
    monkeypatch.chdir(tmp_path)
    for path in ("pipe/model_index.json", "pipe/unet/config.json", "alone/config.json"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UsageError) as error:
        checkpoint.load_model(folder)
    assert str(error.value) == (
        f"{folder} is a diffusers {is_a}, not a model directory: import it first, with pdfast "
        f"import {command}"
    )


def test_weights_of_another_config_are_refused(saved):
    _, path = saved
    tensors, tables, _ = files.read(path)
    tables["config.json"]["model"]["ch"] = 16
    files.write(path, tensors, tables)
    with pytest.raises(PdfastError, match=r"model\.safetensors does not fit config\.json: tensor"):
        checkpoint.load_model(path)
    for value, said in ((15, "model.ch must be even"), (None, "model.ch is missing")):
        tables["config.json"]["model"].pop("ch", None)
        tables["config.json"]["model"] |= {} if value is None else {"ch": value}
        files.write(path, tensors, tables)
        with pytest.raises(
            PdfastError, match=rf"config\.json is not a model's configuration: {said}"
        ):
            checkpoint.load_model(path)


WRITE = """
import resource, signal, sys
from pathlib import Path
from pdfast.models import checkpoint
from pdfast.storage import files
from pdfast.errors import PdfastError
path = Path(sys.argv[1])
model = checkpoint.load_model(path)
model.net.conv_out.bias.data += 1
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    checkpoint.save_model(model, path)
except PdfastError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(saved, value):
    model, path = saved
    with torch.no_grad():
        model.net.conv_out.weight[0, 0, 0, 0] = value
    checkpoint.save_model(model, path)
    message = r"model\.safetensors holds numbers that are not finite: tensor conv_out\.weight"
    with pytest.raises(PdfastError, match=message):
        checkpoint.load_model(path)


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float16), (torch.float32, torch.float64)])
def test_numbers_of_another_type_are_refused(saved, dtypes):
    _, path = saved
    tensors, tables, _ = files.read(path)
    weights = tensors["model.safetensors"]
    cast = {name: weights[name].to(dtypes[n % 2]) for n, name in enumerate(weights)}
    files.write(path, {"model.safetensors": cast}, tables)
    with pytest.raises(
        PdfastError, match=r"model\.safetensors must hold float32 or float64, not torch\.float"
    ):
        checkpoint.load_model(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_manifest_that_leaves_a_file_out_is_refused(saved, name):
    _, path = saved
    (path / name).unlink()
    files.seal(path)
    (path / name).write_text("anything")
    for look in (checkpoint.load_model, model_dir.verify):
        with pytest.raises(PdfastError, match=rf"manifest\.json does not list {name}"):
            look(path)


def test_a_full_disk_leaves_the_old_model(saved):
    """The operating system refuses the write midway, as on a full disk."""
    model, path = saved
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 7, done.stderr
    assert "could not write" in done.stdout
    assert "nothing was changed" in done.stdout
    assert torch.equal(checkpoint.load_model(path).net.conv_out.bias, model.net.conv_out.bias)
    assert [p.name for p in path.parent.iterdir()] == ["model"]
