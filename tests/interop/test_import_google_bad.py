"""Import of the authors' checkpoints: refused files and mutated files."""

import copy
import dataclasses
import io
import pickle
import random
import resource
import sys
from pathlib import Path

import flax_files as ff
import msgpack
import numpy as np
import pytest

from pdfast.cli.main import main
from pdfast.config.schema import Config, dump_config
from pdfast.errors import PdfastError, UsageError
from pdfast.interop.google.flax import FlaxFile
from pdfast.interop.google.load import load_google
from pdfast.models.checkpoint import load_model

OTHERS = [*ff.ARCHITECTURES, {"ch": 8, "emb_ch": 4}, {"num_heads": 4, "parameterization": "x_eps"}]


@pytest.mark.parametrize("apart", [1, 2])
@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_another_config_is_refused_with_the_flags_that_fit(tmp_path, capsys, number, apart):
    """The flags that the message names give the right network."""
    fields, asked = OTHERS[number], OTHERS[number - apart]
    model = ff.net(**fields)
    (tmp_path / "f").write_bytes(ff.pack(ff.state(model)))
    (tmp_path / "a.toml").write_text(
        dump_config(Config(model=dataclasses.replace(ff.SMALL, **asked)))
    )
    command = ["import", str(tmp_path / "f"), "--from", "google", "--out", str(tmp_path / "model")]
    command += ["--config", str(tmp_path / "a.toml")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"pdfast: {tmp_path / 'f'} is not of the config's network: it")
    command += error.split(", pass ")[1].split()
    assert main(command) == 0
    assert ff.same(load_model(tmp_path / "model"), model)


def test_other_heads_are_not_reshaped_away(tmp_path):
    """They have as many elements, so the published loader would sample nonsense."""
    (tmp_path / "f").write_bytes(ff.pack(ff.state(ff.net(num_heads=2))))
    message = (
        r"its parameter down_1\.attn_0/q/kernel has shape \(8, 2, 4\), not \(8, 1, 8\); "
        r".* pass --model\.num-heads 2$"
    )
    with pytest.raises(UsageError, match=message):
        load_google(tmp_path / "f", ff.CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_in/bias": ...}, "it has no parameter conv_in/bias; "),
        ({"down_0.block_0": ...}, "it has no parameter down_0.block_0/norm1/scale; "),
        ({"norm_out/bias": lambda old: {"x": old}}, "it has no parameter norm_out/bias; "),
        (
            {"down_0.downsample": lambda old: old["conv1"]},
            "it has no parameter down_0.downsample/norm1/scale; no field of [model] explains that",
        ),
        (
            {"dense1": lambda old: {**old, "extra": ff.Array(np.ones(2, np.float32))}},
            "it has a parameter dense1/extra, which the config's network lacks; no field",
        ),
        (
            {"norm_out/scale": lambda old: ff.Array(np.ones(5, np.float32))},
            "its parameter norm_out/scale has shape (5,), not (4,); no field of [model] explains",
        ),
        (
            {"norm_out/scale": lambda old: ff.Array(np.ones((0, 3), np.float32))},
            "its parameter norm_out/scale has shape (0, 3), not (4,)",
        ),
    ],
)
def test_other_networks_are_refused(write_state, changes, message):
    with pytest.raises(UsageError) as error:
        load_google(write_state(changes), ff.CONFIG)
    assert message in str(error.value)
    assert str(error.value).isprintable()


def raw(**parts):
    """Return a function that changes an array's shape, dtype, data or ext type."""

    def change(old):
        for key, value in parts.items():
            setattr(old, key, value(old) if callable(value) else value)
        return old

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (raw(dtype="object"), "an array of dtype b'object', where numbers are expected"),
        (raw(dtype="<f4"), "an array of dtype b'<f4', where numbers are expected"),
        (raw(dtype=7), "an array that is not (shape, dtype, bytes)"),
        (raw(dtype="float64"), "432 bytes for shape (3, 3, 3, 4) of float64"),
        (raw(dtype="int32"), "conv_in/kernel is torch.int32, where an array of floats is expected"),
        (raw(shape=[3, 3, 3, -4]), "an array whose shape is not whole numbers"),
        (raw(shape=[3, 3, 3, 4.0]), "an array whose shape is not whole numbers"),
        (raw(shape=[1] * 40), "40 exceeds max_array_len(32)"),
        (raw(shape=[2**40, 2**40]), "432 bytes for shape"),
        (raw(data=b""), "0 bytes for shape (3, 3, 3, 4) of float32"),
        (raw(data=lambda old: old.data[:-1]), "431 bytes for shape"),
        (raw(code=42), "ext type 42, where arrays have 1"),
        (raw(code=2), "ext type 2, where arrays have 1"),
        (lambda old: msgpack.ExtType(1, b"\x93"), "incomplete"),
        (lambda old: msgpack.ExtType(1, b"\x92\x90\xa1x"), "not (shape, dtype, bytes)"),
        (lambda old: None, "conv_in/kernel is NoneType, where an array of floats is expected"),
        (lambda old: "x", "conv_in/kernel is str, where an array of floats is expected"),
        (lambda old: [1] * 99, "99 exceeds max_array_len(32)"),
        (lambda old: ff.Array(np.float32(1)), "conv_in/kernel is float, where an array"),
        (lambda old: {"a b": old}, "has a key that is no plain name in ema_params/conv_in/kernel"),
        (lambda old: {1: old}, "has a key that is no plain name"),
        (lambda old: {**old.chunked(108), "shape": {"0": 7}}, "chunks that do not fill"),
        (lambda old: {**old.chunked(108), "shape": {"1": 108}}, "a shape that is not numbered"),
        (lambda old: {**old.chunked(108), "shape": None}, "a shape that is not numbered"),
        (lambda old: {**old.chunked(108), "chunks": {}}, "chunks that do not fill"),
        (lambda old: {**old.chunked(108), "chunks": {"0": 1}}, "not arrays of one dtype"),
        (lambda old: {**old.chunked(108), "chunks": {"x": old}}, "chunks that are not numbered"),
        (lambda old: {ff.CHUNKED: True, "chunks": {}}, "a chunked array without a shape"),
    ],
)
def test_wrong_arrays_are_refused(write_state, change, message):
    path = write_state({"conv_in/kernel": change})
    with pytest.raises(PdfastError) as error:
        load_google(path, ff.CONFIG)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "conv_in" in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e300])
def test_numbers_that_are_not_finite_are_refused(write_state, value):
    array = np.full((3, 3, 3, 4), value)
    with pytest.raises(PdfastError, match=r"not finite, or not in float32: parameter conv_in/kern"):
        load_google(write_state({"conv_in/kernel": lambda old: ff.Array(array)}), ff.CONFIG)


def nested(depth):
    """{"a": {"a": ...}}."""
    return {"a": nested(depth - 1)} if depth else 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"ema_params": ...},
            r"has no ema_params, .* \(its keys: step, optimizer, num_sample_st",
        ),
        ({"ema_params": None}, "ema_params is NoneType, where an array of floats is expected"),
        ({"ema_params": {}}, "it has no parameter dense0/kernel"),
        ({"ema_params": nested(300)}, "is nested more than 8 deep in ema_params/a/a"),
        ({"optimizer": nested(300)}, None),
        ({"num_sample_steps": 2.5}, "num_sample_steps is not a whole number"),
        ({"num_sample_steps": ff.Array(np.ones(3))}, "num_sample_steps is not a whole number"),
        ({"step": "x"}, "step is not a whole number"),
        ({"num_sample_steps": 2**40}, "more than distill.start_steps 8192: pass --steps 0 if"),
    ],
)
def test_wrong_states(write_state, keys, message):
    path = write_state(**keys)
    if message is None:
        assert ff.same(load_google(path, ff.CONFIG).model, ff.net())
        return
    with pytest.raises(PdfastError, match=message):
        load_google(path, ff.CONFIG)


def zipped():
    """A zip archive, as numpy's .npz and PyTorch's files are."""
    out = io.BytesIO()
    np.savez(out, a=np.ones(2))
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no flax file: it does not begin with a map"),
        (b"\x93abc", "is no flax file"),
        (b"{}\n", "is no flax file"),
        (zipped(), "is a zip archive, as .npz files and PyTorch's pickled weights are"),
        (pickle.dumps({"ema_params": 1}), "is a pickle, which is never loaded"),
        (b"\x1f\x8b\x08\0", "is gzipped: unpack it first"),
        (b"\x80", "has no ema_params"),
        (b"\x80\xc0", "has 1 more bytes after its end"),
        (b"\x81\xc1\0", "is not what flax writes"),
        (b"\xdf\xff\xff\xff\xff", "is cut short"),
        (b"\x81\xaaema_params\xdf\xff\xff\xff\xff\xa1a", "is cut short in ema_params"),
        (b"\x81\xaaema_params\xc9\x7f\xff\xff\xff\x01ab", "is cut short in ema_params"),
        (b"\x81\xa1x" + b"\x91" * 5000, "is not what flax writes in x: StackError"),
        (b"\x81\xaaema_params\xdd\x7f\xff\xff\xff", "exceeds max_array_len"),
        (2 * (b"\x82\xa4step\x01\xa4step\x01",)[0], "has 13 more bytes after its end"),
        (b"\x82\xa4step\x01\xa4step\x01", "has its key step twice: put a whole copy in its place"),
        (b"\x81\xaaema_params\x82\xa1a\x81\xa1b\x01\xa1a\x01", "a/b is int, where an array"),
    ],
)
def test_foreign_files(tmp_path, capsys, content, message):
    (tmp_path / "f").write_bytes(content)
    args = ["import", str(tmp_path / "f"), "--from", "google", "--config", "digits"]
    assert main([*args, "--out", str(tmp_path / "model")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"pdfast: {tmp_path / 'f'} ") or "f: " in error
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_a_parameter_that_occurs_twice_is_refused(tmp_path):
    content = b"\x81\xaaema_params\x82" + 2 * (b"\xa1a" + ff.pack(ff.Array(np.ones(2))))
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(PdfastError, match="holds the parameter a twice"):
        load_google(tmp_path / "f", ff.CONFIG)


def test_every_cut_is_noticed(write_state):
    path = write_state()
    content = path.read_bytes()
    for length in random.Random(0).sample(range(1, len(content)), 20):
        path.write_bytes(content[:length])
        with pytest.raises(PdfastError, match=r"is cut short|incomplete"):
            load_google(path, ff.CONFIG)


def test_a_leaf_over_the_limit_is_refused(write_state):
    """A declared size is refused wherever it is, before memory is allocated for it."""
    path = write_state(optimizer=ff.Array(np.zeros(5000)))
    list(FlaxFile(path, {"step"}, 2**16).leaves())
    with pytest.raises(PdfastError, match="has something of over 20000 bytes in optimizer"):
        list(FlaxFile(path, {"step"}, 20_000).leaves())
    path = write_state({"conv_in/kernel": lambda old: old.chunked(100, 8)})
    with pytest.raises(PdfastError, match="chunks of more than 420 bytes together"):
        list(FlaxFile(path, {"ema_params"}, 420).leaves())


def test_command_line(write_state, tmp_path, capsys, monkeypatch):
    path = write_state()
    (tmp_path / "a.toml").write_text(dump_config(ff.CONFIG))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note.txt").write_text("mine")
    good = {"--from": "google", "--config": str(tmp_path / "a.toml"), "--out": str(tmp_path / "m")}

    def fails(message, source=path, **changes):
        flags = good | {f"--{key}": value for key, value in changes.items()}
        args = [arg for pair in flags.items() if pair[1] is not None for arg in pair]
        assert main(["import", str(source), *map(str, args)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("pdfast: ")
        assert error.count("\n") == 1
        assert message in error

    fails("--config is missing: the file does not describe its network", config=None)
    fails("cannot tell which library wrote", **{"from": None})
    fails("--from cannot be 'x' (choices: diffusers, edm, google)", **{"from": "x"})
    fails("import needs --out PATH", out=None)
    fails("does not exist", source=tmp_path / "absent")
    fails("is a folder, not a file", source=tmp_path)
    fails("copy it here first, with gsutil cp", source="gs://bucket/x")
    fails("full already exists: choose another --out", out=tmp_path / "full")
    fails("a.toml already exists", out=tmp_path / "a.toml")
    fails("--steps must be in 0 .. 1048576", steps=-1)
    fails("--steps must be in 0 .. 1048576", steps=2**21)
    monkeypatch.setitem(sys.modules, "msgpack", None)
    fails("reading flax's files needs the package msgpack: pip install msgpack")
    assert not (tmp_path / "m").exists()
    assert (tmp_path / "full" / "note.txt").read_text() == "mine"


# ------------------------------------------------------------------------------------------
# Mutated files

LEAST = dataclasses.replace(ff.SMALL, ch_mult=(1,), attn_resolutions=())
STATE = ff.state(ff.net(ch_mult=(1,), attn_resolutions=()))
NUMBERS = [-1, 0, 1, 2, 3, 7, 31, 32, 33, 255, 2**16, 2**31 - 1, 2**32, 2**40, 2**63, 2**64 - 1]
VALUES = [*NUMBERS, None, True, 0.5, float("nan"), "", "x", "\x1b[2J", b"", b"\xff" * 9, [], {}]
VALUES += [[1] * 33, [[]] * 9, {"a": {}}, {1: 2}, msgpack.ExtType(1, b""), msgpack.ExtType(7, b"x")]
VALUES += [msgpack.Timestamp(1, 2), msgpack.ExtType(1, b"\x93" * 2000), "x" * 300, "\0", "é"]
DTYPES = ["float16", "bfloat16", "float64", "int64", "object", "O", "<f4", "V8", "complex64", "", 1]


def mutated(rng):
    """A state with one to three things wrong inside it."""
    state = copy.deepcopy(STATE)
    for _ in range(rng.choice([1, 1, 2, 3])):
        table = state
        while True:
            key = rng.choice(list(table) or ["x"])
            inner = table.get(key)
            if not isinstance(inner, dict) or not inner or rng.random() < 0.1:
                break
            table = inner
        how = rng.choice(["value", "remove", "rename", "array", "array", "array", "chunks"])
        if isinstance(inner, ff.Array) and how == "array":
            part = rng.choice(["shape", "shape", "dtype", "data", "code"])
            if part == "shape":
                other = [*inner.shape, rng.choice(NUMBERS)]
                rng.shuffle(other)
                inner.shape = rng.choice([other, other[1:], rng.choice(VALUES), [1, *inner.shape]])
            elif part == "dtype":
                inner.dtype = rng.choice(DTYPES)
            elif part == "data":
                n = rng.randrange(len(inner.data) + 9)
                inner.data = rng.choice(
                    [inner.data[:n], inner.data + bytes(n), 7, rng.randbytes(n)]
                )
            else:
                inner.code = rng.choice([0, 1, 2, 3, 3, 127])
        elif isinstance(inner, ff.Array) and how == "chunks" and isinstance(inner.data, bytes):
            size = len(inner.data) // 4
            cut = rng.randrange(size + 1)
            flat = ff.Array(np.frombuffer(inner.data[: 4 * size], np.float32))
            table[key] = flat.chunked(cut, size - cut)
            if rng.random() < 0.8:
                table[key][rng.choice(["shape", "chunks"])][rng.choice("01x")] = rng.choice(VALUES)
        elif how == "remove":
            table.pop(key, None)
        elif how == "rename":
            name = rng.choice([*table, *VALUES[-5:], "kernel", ff.CHUNKED, 3, "a/b", "x" * 101])
            table[name] = table.pop(key, None)
        else:
            table[key] = rng.choice(VALUES)
    return ff.pack(state)


def blind(rng, content):
    """Alter, cut, repeat or insert bytes anywhere."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.choice([rng.randrange(len(content) + 1), rng.randrange(200)])
        length = rng.choice([1, 2, 4, 40, 1000])
        how = rng.choice(["set", "set", "set", "cut", "remove", "double", "insert"])
        if how == "set":
            content[at : at + 1] = bytes([rng.choice([0x80, 0xC1, 0xC9, 0xDD, 0xDF, 0xFF])])
        elif how == "cut":
            del content[at:]
        elif how == "remove":
            del content[at : at + length]
        else:
            content[at:at] = content[at : at + length] if how == "double" else b"\xdf" * length
    return bytes(content)


def fuzz(path, examples, seed):
    """Return how many files were read and how many refused, within 300 MB of memory."""
    read = refused = 0
    good = ff.pack(STATE)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + 300 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        for number in range(examples):
            rng = random.Random(f"{seed} {number}")
            path.write_bytes(mutated(rng) if rng.random() < 0.6 else blind(rng, good))
            try:
                found = load_google(path, Config(model=LEAST))
                read += 1
                assert all(p.isfinite().all() for p in found.model.parameters())
            except PdfastError as error:
                refused += 1
                text = str(error)
                assert text.isprintable(), text
                assert text.startswith(str(path)), text
                assert len(text) < 1000, text
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    return read, refused


def test_mutated_files(tmp_path):
    read, refused = fuzz(tmp_path / "f", 60, seed=1)
    assert read > 3
    assert refused > 30


@pytest.mark.slow
def test_many_mutated_files(tmp_path):
    read, refused = fuzz(tmp_path / "f", 1000, seed=2)
    print(f"{read} read, {refused} refused")
    assert read > 100
    assert refused > 500
