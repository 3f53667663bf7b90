"""Import of NVlabs/edm's network pickles: refused files, and that none of their code is run."""

import io
import pickle
import struct
import warnings

import edm_files as ef
import numpy as np
import pytest
import torch

from pdfast.cli.main import main
from pdfast.errors import PdfastError, UsageError
from pdfast.interop.edm import pickled
from pdfast.interop.edm.load import load_edm
from pdfast.interop.edm.storages import numbers

# ------------------------------------------------------------------------------------------
# Pickles that ask for more


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_that_calls_is_refused_by_name(tmp_path, protocol):
    """A call that would leave a trace is not made."""
    call = ef.Call("os.mkdir", str(tmp_path / "trace"))
    (tmp_path / "a.pkl").write_bytes(ef.dumped({"ema": call}, call, protocol=protocol))
    with pytest.raises(PdfastError, match=r"a\.pkl asks for os\.mkdir, so it is refused") as caught:
        load_edm(tmp_path / "a.pkl")
    assert "has run nothing in the file" in str(caught.value)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", [
    "builtins.eval", "builtins.getattr", "torch.load", "torch.hub.load", "importlib.import_module",
    "torch._utils._rebuild_device_tensor_from_numpy", "torch.nn.modules.linear.Linear",
    "numpy.core.multiarray._reconstruct", "torch_utils.persistence._src_to_module",
    "collections.OrderedDict.fromkeys", "_codecs.encode", "copyreg._reconstructor",
])  # fmt: skip
def test_other_names_are_refused(tmp_path, name):
    """Other names are refused, whether the pickle calls them or only names them."""
    module, _, last = name.rpartition(".")
    named = f"c{module}\n{last}\n".encode()
    for how in (b"", b")R", b")\x81", b"(tR"):
        content = b"\x80\x04}\x8c\x03ema" + named + how + b"s."
        (tmp_path / "a.pkl").write_bytes(content)
        with pytest.raises(PdfastError, match="asks for " + name.replace(".", r"\.")):
            load_edm(tmp_path / "a.pkl")


@pytest.mark.parametrize(("content", "message"), [
    (b"(ios\ngetpid\n.", r"asks for os\.getpid"),
    (b"cos\nget\\qpid\n.", r"asks for os\.get\\qpid"),
    (b"\x80\x02X\x01\x00\x00\x00aQ.", r"an object from outside the file \(opcode BINPERSID\)"),
    (b"Pa\n.", r"asks for an object from outside the file \(opcode PERSID\)"),
    (b"\x80\x02\x82\x01.", r"asks for an object from outside the file \(opcode EXT1\)"),
    (b"\x80\x04\x8c\x02os\x8c\x06getpid\x93.", r"asks for os\.getpid"),
    (b"\x80\x04]\x8c\x06getpid\x93.", "a module or class name in it is not text"),
    (b"\x80\x02]}b.", "gives a state to list"),
    (b"\x80\x02}}\x8c\x01aK\x01sb.", "gives a state to dict"),
    (b"\x80\x02))R.", "calls something that is not a function or class"),
    (b"\x80\x02})\x81.", "something that is not a class"),
    (b"\x80\x02})K\x01s.", "neither a text nor a whole number"),
    (b"\x80\x02}(K\x01u.", "a key without a value"),
    (b"\x80\x02]K\x01K\x02s.", "fills list as if it were dict"),
    (b"\x80\x02(K\x010.", "is not a complete pickle"),
    (b"\x80\x02Nr\xff\xff\xff\x7f.", "fills memo slot 2147483647 by opcode 3"),
    (b"\x80\x02h\x05.", "takes memo slot 5, which is empty"),
    (b"\x80\x02NN.", "ends with more than one object"),
    (b"\x80\x02N.N", "1 bytes follow its end"),
    (b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\x00\x00.", "expected 281474976710655 bytes"),
    (b"\x80\x04X\xff\xff\xff\x7fab.", "expected 2147483647 bytes"),
    (b"\x80\x02\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01.", "more than 64 bits"),
    (b"", "is not a complete pickle"),
    (b"PK\3\4", "a zip archive"),
    (b"\x80\x02N.", "holds no network under 'ema'"),
    (b"\x80\x02" + b"(" * 1000 + b".", "is not a complete pickle"),
])  # fmt: skip
def test_opcodes_that_theirs_have_not(tmp_path, content, message):
    (tmp_path / "a.pkl").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as pickletools warns of a backslash
        with pytest.raises(PdfastError, match=message):
            load_edm(tmp_path / "a.pkl")


def test_a_pickle_of_too_many_opcodes(tmp_path, monkeypatch):
    monkeypatch.setattr(pickled, "MOST_OPCODES", 1000)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([[] for _ in range(1000)]))
    with pytest.raises(PdfastError, match="more than 1000 opcodes"):
        load_edm(tmp_path / "a.pkl")


# ------------------------------------------------------------------------------------------
# Storages


def stored(tensor):
    """The bytes that a plain pickle keeps of a tensor's storage."""
    typed = torch.storage.TypedStorage(
        wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True
    )
    return typed.__reduce__()[1][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
def test_a_storage_s_numbers(dtype):
    tensor = torch.arange(7).to(dtype)
    assert torch.equal(numbers(stored(tensor)), tensor)
    assert numbers(stored(tensor)).dtype == dtype
    assert numbers(stored(tensor[:0].clone())).shape == (0,)


def _other_magic(content):
    return b"\x80\x02K\x01." + content


def _asking(content):
    """The third pickle of a header, the machine's properties, makes a call."""
    at = content.index(b"protocol_version") - 11
    assert content[at : at + 2] == b"\x80\x02"
    return content[:at] + b"\x80\x02cos\ngetpid\n)R." + content[at:]


def _other_type(content):
    return content.replace(b"FloatStorage", b"_TypedStorage")


def _longer(content):
    """A storage that declares a length of 2^20 numbers in both places, and lacks them."""
    at = content.index(b"K\x07N") if b"K\x07N" in content else content.index(b"K\x07")
    content = content[:at] + b"J" + struct.pack("<i", 2**20) + content[at + 2 :]
    return content[: -8 - 28] + struct.pack("<q", 2**20) + content[-28:]


@pytest.mark.parametrize(("change", "message"), [
    (_other_magic, "torch.save did not write"),
    (_asking, "header uses REDUCE"),
    (_other_type, r"header asks for torch\._TypedStorage"),
    (_longer, "header holds 1048576"),
    (lambda content: content[:-1], "of 27 bytes that declares 7 numbers"),
    (lambda content: content + b"\0", "of 29 bytes that declares 7 numbers"),
    (lambda content: content[:200], "a storage"),
    (lambda content: b"PK\3\4" + content, "torch.save did not write"),
])  # fmt: skip
def test_what_is_no_storage(tmp_path, change, message):
    """Refused as bytes of their own, and in the import of a pickle that holds them."""
    content = change(stored(torch.arange(7.0)))
    with pytest.raises(ValueError, match=message):
        numbers(content)
    call = ef.Call("torch.storage._load_from_bytes", content)
    (tmp_path / "a.pkl").write_bytes(ef.dumped({"ema": call}, call))
    with pytest.raises(PdfastError, match=r"a\.pkl is not a complete pickle"):
        load_edm(tmp_path / "a.pkl")


@pytest.mark.parametrize(("offset", "size", "stride"), [
    (0, (8,), (1,)), (1, (7,), (1,)), (0, (2, 4), (4, 1)), (0, (2**39, 2**39), (0, 0)),
    (0, (8,), (0,)), (-1, (2,), (1,)), (0, (-1,), (1,)), (0, (2,), (-1,)), (0, (2,), ()),
    (0, (2.0,), (1,)),
    (0, (1,) * 9, (1,) * 9),
])  # fmt: skip
def test_a_tensor_beyond_its_storage(tmp_path, offset, size, stride):
    storage = ef.Call("torch.storage._load_from_bytes", stored(torch.arange(7.0)))
    tensor = ef.Call("torch._utils._rebuild_tensor_v2", storage, offset, size, stride, False, {})
    (tmp_path / "a.pkl").write_bytes(ef.dumped({"ema": tensor}, storage, tensor))
    with pytest.raises(PdfastError, match="it holds a tensor"):
        load_edm(tmp_path / "a.pkl")


# ------------------------------------------------------------------------------------------
# Networks


def _state(**values):
    def change(persisted):
        ef.inner(persisted)["state"].update(values)

    return change


def _argument(**values):
    def change(persisted):
        ef.inner(persisted)["state"]["_init_kwargs"].update(values)

    return change


def _tensor(made):
    """Return a pickle whose first weight of the embedding is replaced."""

    def change(persisted):
        layer = ef.inner(persisted)["state"]["_modules"]["map_layer0"].meta["state"]
        weight = layer["_parameters"]["weight"].detach()
        layer["_parameters"]["weight"] = made(weight)

    return change


def _without(persisted):
    del ef.inner(persisted)["state"]["_modules"]["map_layer0"]


def _more(persisted):
    ef.inner(persisted)["state"]["_buffers"]["more"] = torch.zeros(1)


def _block(persisted):
    encoder = ef.inner(persisted)["state"]["_modules"]["enc"]
    encoder._modules["8x8_block0"].meta["state"]["skip_scale"] = 1.0


def _meta(**values):
    return lambda persisted: persisted.meta.update(values)


@pytest.mark.parametrize(("change", "error", "message"), [
    (_meta(class_name="Generator"), UsageError, "holds a Generator, where pdfast knows VPPrecond"),
    (_meta(version=7), PdfastError, "are of version 7, not 6"),
    (_meta(type="function"), PdfastError, "a persistent object of another form"),
    (_meta(more=1), PdfastError, "a persistent object of another form"),
    (lambda p: ef.inner(p).update(class_name="UNet"), UsageError, "holds a UNet, where pdfast"),
    (_argument(decoder_type="skip"), UsageError, "decoder_type 'skip': pdfast's network has stand"),
    (_argument(encoder_type="skip"), UsageError, "encoder_type 'skip': pdfast's network has stand"),
    (_argument(model_channels="8"), UsageError, "model_channels '8': a whole number of at least 1"),
    (_argument(model_channels=10**9), UsageError, "model_channels 1000000000: a whole number"),
    (_argument(channel_mult=[]), UsageError, r"that pdfast cannot represent: model\.ch_mult"),
    (_argument(channel_mult=[1, 2]), PdfastError, "does not fit its own arguments: tensor dec"),
    (_argument(out_channels=6), UsageError, "out_channels 6: with EDMPrecond 3 are expected"),
    (_argument(in_channels=4, out_channels=4), UsageError, r"model\.channels must be 1"),
    (_argument(resample_filter=[1, 1, 1]), UsageError, r"model\.edm\.filter must hold an even"),
    (_argument(other=1), UsageError, "was made with other, which pdfast does not know"),
    (_state(_init_kwargs=None), PdfastError, "does not keep the arguments"),
    (_without, PdfastError, r"tensor map_layer0\.bias, which is missing"),
    (_more, PdfastError, "tensor more, which the network does not have"),
    (_block, PdfastError, r"enc\.8x8_block0 has no skip_scale 0\.707107, as SongUNet gives it"),
    (_tensor(lambda w: w[:, :2]), PdfastError, r"weight, of shape \(16, 2\), not \(16, 4\)"),
    (_tensor(lambda w: w * torch.inf), PdfastError, r"weight, which must hold finite floats"),
    (_tensor(lambda w: w.long()), PdfastError, r"weight, which must hold finite floats"),
    (_tensor(lambda w: "text"), PdfastError, r"map_layer0\.weight is no parameter"),
])  # fmt: skip
def test_what_is_no_network_of_theirs(tmp_path, change, error, message):
    persisted = ef.network("tiny")
    change(persisted)
    file = ef.write(tmp_path / "a.pkl", persisted)
    with pytest.raises(error, match=message):
        load_edm(file)


def test_another_filter_or_table_than_the_arguments(tmp_path):
    persisted = ef.network("ncsnpp")
    down = ef.inner(persisted)["state"]["_modules"]["enc"]._modules["4x4_down"].meta["state"]
    conv = down["_modules"]["conv0"].meta["state"]["_buffers"]
    conv["resample_filter"] = conv["resample_filter"].roll(1, 2)
    with pytest.raises(PdfastError, match=r"enc\.4x4_down\.conv0\.resample_filter is not the"):
        load_edm(ef.write(tmp_path / "a.pkl", persisted))
    persisted = ef.network("tiny", "iddpm")
    persisted.meta["state"]["_buffers"]["u"] = ef.levels(0.002)
    with pytest.raises(PdfastError, match="noise levels u are not those of its C_1"):
        load_edm(ef.write(tmp_path / "a.pkl", persisted))


def test_other_flags_and_files(tmp_path, capsys):
    file = ef.write(tmp_path / "a.pkl", ef.network("tiny", "vp"))
    command = ["import", str(file), "--from", "edm", "--out", str(tmp_path / "model")]
    for flags, message in (
        (
            ["--config", "digits"],
            "are for --from google: omit them, since a network pickle describes its network",
        ),
        (
            ["--model.ch", "8"],
            "are for --from google: omit them, since a network pickle describes its network",
        ),
        (["--model.parameterization", "x_eps"], "a network of NVlabs/edm takes v or x"),
        (["--model.parameterization", "x"], "VPPrecond predicts eps, and its first student is"),
        (["--steps", "-1"], "--steps must be in 0 .. "),
    ):
        assert main([*command, *flags]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    command[1] = str(tmp_path / "b.pkl")
    assert main(command) == 2
    assert "does not exist: name a network-snapshot" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "model").exists()


def test_a_zip_of_torch_save_is_told(tmp_path):
    out = io.BytesIO()
    torch.save({"ema": np.float64(1).item()}, out)
    (tmp_path / "a.pkl").write_bytes(out.getvalue())
    with pytest.raises(PdfastError, match=r"a zip archive, as torch\.save writes"):
        load_edm(tmp_path / "a.pkl")
