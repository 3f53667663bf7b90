"""Mutated files for every reader of foreign files: `python fuzzing.py EXAMPLES SEED`.

Most mutations change what is inside a container (headers, names, shapes, offsets, types, JSON,
opcodes) and then correct its checksums and lengths ("sealed"), so that they reach the code behind
the checksums; the others change bytes blindly. Each file must give a valid result, or a PdfastError
of one line, within `SECONDS` of work.
"""

import faulthandler
import io
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import hypothesis
import numpy as np
import torch
from foreign import cifar, idx, image_zip, packed, shard, tar
from hypothesis import strategies as st
from mutations import TEXTS, blind, changed, number
from PIL import Image
from sealed_edm import EDM, sealed_edm
from sealed_files import (
    BIN_BATCHES,
    FONT,
    LABELS,
    PY_BATCHES,
    SAMPLES,
    sealed_cifar_100,
    sealed_cifar_bin,
    sealed_cifar_py,
    sealed_font,
    sealed_idx,
    sealed_npz,
    sealed_png,
    sealed_shard,
    sealed_toml,
    sealed_zip,
    wrapped,
)
from sealed_statistics import ABOUT, sealed_statistics

from pdfast.config.schema import CONFIG_DIR, DataConfig, NetConfig, load_config
from pdfast.data import prepare
from pdfast.data.dataset import load_dataset
from pdfast.errors import PdfastError
from pdfast.evaluation import statistics_file
from pdfast.evaluation.frechet import frechet_distance
from pdfast.interop.edm.load import load_edm
from pdfast.models.checkpoint import load_model, save_model
from pdfast.models.model import Model
from pdfast.storage.files import seal

SECONDS = 5.0
SUFFIXES = (  # of the pictures that are mutated
    *(".png", ".jpeg", ".webp", ".bmp", ".gif", ".tiff", ".avif", ".jp2", ".ppm", ".tga", ".pcx"),
    *(".sgi", ".qoi", ".ico", ".icns", ".dds", ".dib"),
)


class TooSlow(BaseException):
    """An example worked for longer than SECONDS. No `except Exception` hides it."""


def too_slow(signum, frame):
    """Handle SIGPROF."""
    raise TooSlow


# ------------------------------------------------------------------------------------------
# The kinds of files
GREY = NetConfig(image_size=8, channels=1, num_classes=3)
SMALL = NetConfig(
    image_size=8, channels=1, ch=8, emb_ch=8, ch_mult=(1,), num_res_blocks=1, groups=4
)  # fmt: skip


class Kinds:
    """One method per kind of file: it writes a mutated file, and returns a function to load it."""

    def __init__(self, folder):
        self.folder = folder
        np.savez(folder / "good.npz", images=np.zeros((6, 8, 8, 1), np.uint8), labels=[0] * 6)
        self.npz_content = (folder / "good.npz").read_bytes()
        about = np.array(json.dumps(ABOUT))
        np.savez(folder / "statistics.npz", mu=np.zeros(4), sigma=np.eye(4), about=about)
        self.statistics_content = (folder / "statistics.npz").read_bytes()
        self.idx_content = idx(np.zeros((6, 8, 8), np.uint8))
        for suffix, pack in (("", bytes), (".gz", packed)):
            labels = pack(idx(np.array([0, 1, 2, 0, 1, 2], np.uint8)))
            (folder / f"a-labels-idx1-ubyte{suffix}").write_bytes(labels)
        torch.manual_seed(0)
        save_model(Model(SMALL), folder / "good")
        self.pictures = {}
        grey = Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12))
        for suffix in SUFFIXES:
            out = io.BytesIO()
            kind = Image.registered_extensions()[suffix]
            grey.convert("RGB" if kind in ("QOI", "JPEG2000") else "L").save(out, kind)
            self.pictures[suffix] = out.getvalue()
        (folder / "pictures").mkdir()
        (folder / "pictures" / "good.png").write_bytes(self.pictures[".png"])

    def _set(self, name, content, model):
        path = self.folder / name
        path.write_bytes(content)
        return lambda: check_set(load_dataset(DataConfig(source=str(path)), model), model)

    def npz(self, rng, sealed):
        """An .npz."""
        content = sealed_npz(rng) if sealed else blind(rng, self.npz_content)
        return self._set("a.npz", content, GREY)

    def statistics(self, rng, sealed):
        """Reference statistics."""
        path = self.folder / "a.npz"
        path.write_bytes(sealed_statistics(rng) if sealed else blind(rng, self.statistics_content))
        return lambda: check_statistics(statistics_file.read(path))

    def idx(self, rng, sealed):
        """A raw IDX file."""
        content = sealed_idx(rng) if sealed else blind(rng, self.idx_content)
        return self._set("a-images-idx3-ubyte", content, GREY)

    def idx_gz(self, rng, sealed):
        """A gzipped IDX file."""
        content = wrapped(rng, sealed_idx(rng)) if sealed else blind(rng, packed(self.idx_content))
        return self._set("a-images-idx3-ubyte.gz", content, GREY)

    def cifar_bin(self, rng, sealed):
        """CIFAR's binary archives; blind mutations change the tar, the .gz or both."""
        if sealed and rng.random() < 0.3:
            name = "cifar-100-binary.tar.gz"
            return self._set(name, sealed_cifar_100(rng), NetConfig(num_classes=100))
        content = sealed_cifar_bin(rng) if sealed else BLIND_BIN(rng)
        return self._set("cifar-10-binary.tar.gz", content, NetConfig(num_classes=10))

    def cifar_py(self, rng, sealed):
        """CIFAR-10's python archive."""
        content = sealed_cifar_py(rng) if sealed else BLIND_PY(rng)
        return self._set("cifar-10-python.tar.gz", content, NetConfig(num_classes=10))

    def zip(self, rng, sealed):
        """A zip of images."""
        content = sealed_zip(rng) if sealed else blind(rng, image_zip(SAMPLES, LABELS))
        return self._set("a.zip", content, GREY)

    def shard(self, rng, sealed):
        """A tar of images, or several in one file, perhaps compressed by gzip."""
        content = sealed_shard(rng) if sealed else blind(rng, shard(SAMPLES))
        return self._set("a.tar", content, rng.choice([GREY, SMALL]))

    def font(self, rng, sealed):
        """An emoji font."""
        path = self.folder / "a.ttf"
        path.write_bytes(sealed_font(rng) if sealed else blind(rng, FONT))
        return lambda: check_set(load_dataset(DataConfig(source=f"emoji:{path}"), SMALL), SMALL)

    def toml(self, rng, sealed):
        """A config."""
        path = self.folder / "a.toml"
        text = (CONFIG_DIR / "digits.toml").read_bytes()
        path.write_bytes(sealed_toml(rng) if sealed else blind(rng, text))
        return lambda: load_config(path)

    def model(self, rng, sealed):
        """A model directory."""
        path = self.folder / "model"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.folder / "good", path)
        file = path / rng.choice(["config.json", "model.safetensors"])
        content = file.read_bytes()
        if not sealed:
            file = rng.choice([file, path / "manifest.json"])
            file.write_bytes(blind(rng, file.read_bytes()))
            if rng.random() < 0.5 and file.name != "manifest.json":
                seal(path)
        elif file.suffix == ".json":
            table = json.loads(content)
            for _ in range(rng.choice([1, 1, 2])):
                table = changed(rng, table)
            if rng.random() < 0.1:
                file.write_text(rng.choice(["[" * 9000, '{"a":' * 9000, "1" * 5000, "NaN", "[]"]))
            else:
                file.write_text(json.dumps(table))
            seal(path)
        else:
            length = int.from_bytes(content[:8], "little")
            header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
            for _ in range(rng.choice([1, 1, 2])):
                header = self._header(rng, header)
            text = json.dumps(header).encode()
            length = number(rng, len(text)) % 2**64 if rng.random() < 0.1 else len(text)
            file.write_bytes(length.to_bytes(8, "little") + text + data)
            seal(path)
        return lambda: check_model(load_model(path))

    def _header(self, rng, header):
        """A safetensors header with one tensor's name, type, shape or place changed."""
        header = json.loads(json.dumps(header))
        name = rng.choice(list(header) or [""])
        how = rng.choice(["name", "dtype", "shape", "shape", "offsets", "offsets", "any"])
        entry = header.get(name)
        if how == "any" or not isinstance(entry, dict):
            return changed(rng, header)
        if how == "name":
            header[rng.choice([*TEXTS, *header])] = header.pop(name)
        elif how == "dtype":
            kinds = ["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "X"]
            entry["dtype"] = rng.choice(kinds)
        elif how == "shape" and isinstance(entry.get("shape"), list):
            entry["shape"] = changed(rng, entry["shape"])
        elif how == "offsets" and isinstance(entry.get("data_offsets"), list):
            entry["data_offsets"] = changed(rng, entry["data_offsets"])
        return header

    def edm(self, rng, sealed):
        """A network pickle of NVlabs/edm."""
        path = self.folder / "a.pkl"
        path.write_bytes(sealed_edm(rng) if sealed else blind(rng, EDM))
        return lambda: check_model(load_edm(path))

    def picture(self, rng, sealed):
        """A folder of pictures, one of them mutated."""
        suffix = ".png" if sealed else rng.choice(list(self.pictures))
        content = sealed_png(rng) if sealed else blind(rng, self.pictures[suffix])
        folder = self.folder / "pictures"
        for last in folder.glob("bad.*"):
            last.unlink()
        (folder / f"bad{suffix}").write_bytes(content)
        model = NetConfig(image_size=8, channels=1)
        return lambda: check_set(load_dataset(DataConfig(source=str(folder)), model), model)


def blind_archive(kind, batches):
    """Return a function that mutates a tar and compresses it, or mutates the compressed file."""
    plain = tar(cifar(kind, batches))

    def mutate(rng):
        content = blind(rng, plain) if rng.random() < 0.5 else plain
        wrap = packed(content)
        return wrap if content is not plain else blind(rng, wrap)

    return mutate


BLIND_BIN, BLIND_PY = blind_archive("bin", BIN_BATCHES), blind_archive("py", PY_BATCHES)


def check_set(data, model):
    """Check that a set is what the model asks for."""
    assert data.images.dtype == torch.uint8
    assert data.images.shape[1:] == (model.image_size, model.image_size, model.channels)
    assert len(data) >= 2
    assert data.images.is_contiguous()
    if model.num_classes:
        assert data.labels.dtype == torch.int64
        assert data.labels.shape == (len(data),)
        assert 0 <= data.labels.min() <= data.labels.max() < model.num_classes


def check_statistics(found):
    """Check that statistics are a mean and a covariance, with printable texts."""
    mean, cov = found.gaussian.mean, found.gaussian.cov
    assert mean.dtype == cov.dtype == torch.float64
    assert cov.shape == (found.width, found.width)
    assert mean.isfinite().all()
    assert torch.equal(cov, cov.T)
    assert np.isfinite(frechet_distance(found.gaussian, found.gaussian))
    rows = statistics_file.facts_of(Path("a"), found).rows("a")
    assert all(text.isprintable() for row in rows for text in row)


def check_model(model):
    """Check that a model has all its weights."""
    assert all(weight.device.type == "cpu" for weight in model.state_dict().values())


# ------------------------------------------------------------------------------------------
# Running

# Each kind's share of the examples, and the fraction of them that is sealed.
SHARES = {
    "npz": (0.10, 0.75),
    "statistics": (0.05, 0.75),
    "idx": (0.07, 0.6),
    "idx_gz": (0.1, 0.6),
    "cifar_bin": (0.1, 0.7),
    "cifar_py": (0.11, 0.7),
    "toml": (0.12, 0.7),
    "model": (0.1, 0.7),
    "edm": (0.04, 0.7),
    "picture": (0.05, 0.6),
    "zip": (0.06, 0.7),
    "shard": (0.06, 0.7),
    "font": (0.04, 0.7),
}
PICTURES = ("picture", "zip", "shard", "font")  # kinds whose decoded pictures may be large


def one(kind, kinds, rng, sealed, counts):
    """Try one example."""
    load = getattr(kinds, kind)(rng, sealed)
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        load()
        counts[kind, "accepted"] += 1
        counts[kind, "sealed and accepted"] += sealed
    except PdfastError as error:
        text = str(error)
        assert text.isprintable(), text
        assert str(kinds.folder) in text, text
        assert len(text) < 1100, text
        assert "memory" not in text, text  # none of these files is large
        counts[kind, "refused"] += 1
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    assert time.process_time() - start < SECONDS
    counts[kind, "sealed"] += sealed


def examples_of(kind, kinds, counts, examples, seed):
    """Return a function that tries this many files of a kind."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.integers(0, 2**63))
    def run(draw):
        rng = random.Random(draw)
        try:
            one(kind, kinds, rng, rng.random() < SHARES[kind][1], counts)
        except BaseException:
            print(f"{kind}: random.Random({draw})", file=sys.stderr)
            raise

    return run


def fuzz(examples, seed):
    """Try `examples` files; return the outcomes, by (kind, word)."""
    counts = Counter()
    before = signal.signal(signal.SIGPROF, too_slow)
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("error")  # readers raise, and do not warn
            warnings.filterwarnings("ignore", ".* is called .* now$", FutureWarning)
            kinds = Kinds(Path(folder))
            for kind, (share, _) in SHARES.items():
                start = time.perf_counter()
                examples_of(kind, kinds, counts, round(examples * share), seed)()
                counts[kind, "seconds"] = round(time.perf_counter() - start)
                counts[kind, "MB"] = peak()
    finally:
        signal.signal(signal.SIGPROF, before)
    return counts


def peak():
    """Return the most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def limited(megabytes):
    """Limit this process to so much memory above what it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    torch.set_num_threads(1)
    Image.init()
    limited(1500)
    prepare.SETTLED = 2 * 10**7  # as conftest.py sets it for tests in one process
    faulthandler.dump_traceback_later(1200, exit=True)  # C code may block signals
    fuzz(100, 0)  # warm up, so that imports and caches do not count as memory of a file
    base = peak()
    found = fuzz(int(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps({"MB before": base, "counts": [[*key, n] for key, n in found.items()]}))
