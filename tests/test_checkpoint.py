"""Model directories: whole or absent, verified, without pickle."""

import json
import os
import subprocess
import sys

import pytest
import torch

from pdfast import checkpoint
from pdfast.config import NetConfig
from pdfast.errors import PdfastError, UsageError
from pdfast.model import Model

CFG = NetConfig(
    image_size=8,
    channels=1,
    ch=8,
    emb_ch=16,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(4,),
    groups=4,
    head="both",
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
    assert set(manifest["sha256"]) == {"config.json", "model.safetensors"}
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
    assert name in str(error.value) or (name == "manifest.json" and damage == "flipped")
    assert "\n" not in str(error.value)


def test_what_is_no_model(tmp_path, saved):
    with pytest.raises(UsageError, match="there is no model directory"):
        checkpoint.load_model(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"not a model directory.*models inside it: model"):
        checkpoint.load_model(tmp_path)


def test_weights_of_another_config_are_refused(saved):
    _, path = saved
    tensors, tables, _ = checkpoint.read(path)
    tables["config.json"]["model"]["ch"] = 16
    checkpoint.write(path, tensors, tables)
    with pytest.raises(PdfastError, match=r"model\.safetensors does not fit config\.json: tensor"):
        checkpoint.load_model(path)
    tables["config.json"]["model"]["chh"] = 16
    checkpoint.write(path, tensors, tables)
    with pytest.raises(
        PdfastError, match=r"config\.json is not a model's configuration.*model\.ch"
    ):
        checkpoint.load_model(path)


def test_sweep_clears_what_a_killed_process_left(saved):
    _, path = saved
    folder, dead = path.parent, 2**22 - 1  # above any process number in use here
    (folder / f".model.{dead}.tmp").mkdir()
    (folder / f".model.{dead}.old").mkdir()
    (folder / f".model.{os.getppid()}.tmp").mkdir()  # of a living process
    (folder / ".hidden.file").write_text("not ours")
    path.with_name("gone").mkdir()
    path.with_name("gone").rename(folder / f".gone.{dead}.old")
    checkpoint.sweep(folder)
    left = sorted(p.name for p in folder.iterdir())
    assert left == sorted(["model", f".model.{os.getppid()}.tmp", ".hidden.file", "gone"])


WRITE = """
import resource, signal, sys
from pathlib import Path
from pdfast import checkpoint
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


def test_a_full_disk_leaves_the_old_model(saved):
    """The operating system refuses the write midway, as it does on a full disk."""
    model, path = saved
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 7, done.stderr
    assert "could not write" in done.stdout
    assert "nothing was changed" in done.stdout
    assert torch.equal(checkpoint.load_model(path).net.conv_out.bias, model.net.conv_out.bias)
    assert [p.name for p in path.parent.iterdir()] == ["model"]
