"""Sets are prepared once, on all cores, in one shared file; no incomplete file is left."""

import json
import os
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
from foreign import picture
from PIL import Image

from pdfast.cli.main import main
from pdfast.config.schema import DataConfig, NetConfig
from pdfast.console.progress import Screen
from pdfast.data import digest, prepare, sources
from pdfast.data.dataset import load_dataset
from pdfast.data.readers import decoding, npz
from pdfast.data.readers.pictures import pixels
from pdfast.data.readers.reading import Wanted
from pdfast.distributed import memory
from pdfast.errors import PdfastError, Stopped, UsageError

NET = NetConfig(image_size=8, channels=3)
CLASSES = NetConfig(image_size=8, channels=3, num_classes=3)
NUM = 24

pytestmark = pytest.mark.usefixtures("handlers")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return the cache folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pdfast"


@pytest.fixture
def folder(tmp_path):
    """Write two dozen pictures of 12x16 in three classes."""
    rng = np.random.default_rng(0)
    for n in range(NUM):
        path = tmp_path / "set" / f"class{n % 3}" / f"{n:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(rng.integers(0, 256, (12, 16, 3), np.uint8)))
    return tmp_path / "set"


def decoded(folder, method="bicubic"):
    """Decode the pictures of a folder one by one."""
    wanted = Wanted(8, 3, method=method)
    found = sources.find(str(folder), wanted)
    return np.stack([pixels(name, file, wanted, 3) for name, file in found.files(0)])


def load(folder, net=NET, **more):
    return load_dataset(DataConfig(source=str(folder), **more), net)


def count_decoded(monkeypatch):
    """Return a list that collects the names of pictures decoded from now on."""
    names, real = [], decoding.pixels

    def counted(name, *args):
        names.append(name)
        return real(name, *args)

    monkeypatch.setattr(decoding, "pixels", counted)
    return names


def stop_after(monkeypatch, num, error):
    """Have the check for signals raise once, after so many pictures are in the file."""
    real = prepare._Work._poll

    def poll(self):
        if self._done >= num:
            raise error
        real(self)

    monkeypatch.setattr(prepare._Work, "_poll", poll)


# ------------------------------------------------------------------------------------------
# Once


def test_a_set_is_prepared_once_and_mapped(folder, cache, monkeypatch):
    names = count_decoded(monkeypatch)
    first = load(folder, CLASSES)
    assert len(names) == NUM
    assert np.array_equal(first.images, decoded(folder))
    assert first.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert first.names == ("class0", "class1", "class2")
    (made,) = cache.iterdir()  # and no part of it
    assert made.name.startswith("prepared-")
    again = load(folder, CLASSES)
    assert len(names) == NUM
    assert np.array_equal(again.images, first.images)
    assert digest.known(again).digest == digest.known(first).digest
    with np.load(made) as arrays:
        about = json.loads(str(arrays["about"]))
    assert about["class_counts"] == {"0": 8, "1": 8, "2": 8}
    assert (about["num"], about["images_sha256"]) == (NUM, first.digest.images)


@pytest.mark.parametrize("change", ["another picture", "one more", "one less", "another size"])
def test_a_set_that_changed_is_prepared_anew(folder, cache, monkeypatch, change):
    before = load(folder).images.numpy().copy()
    path, net = folder / "class0" / "00.png", NET
    if change == "another picture":
        path.write_bytes(picture(np.zeros((12, 16, 3), np.uint8)))
    elif change == "one more":
        (folder / "class0" / "zz.png").write_bytes(path.read_bytes())
    elif change == "one less":
        path.unlink()
    else:
        net = NetConfig(image_size=4, channels=3, attn_resolutions=())
    after = load(folder, net).images.numpy()
    assert not np.array_equal(after, before)
    if net == NET:
        assert np.array_equal(after, decoded(folder))
    assert len(list(cache.iterdir())) == 2


def test_what_changes_no_image_is_no_reason_to_prepare_anew(folder, cache):
    """Another file in the folder is reported as skipped; unusable images are too, or refused."""
    (one,) = damage(folder, 1)
    assert load(folder, skip_bad=True).left_out == (
        f"images that cannot be used: 1 ({one} is not a readable image)"
    )
    (folder / "notes.dat").write_bytes(b"")
    said = load(folder, skip_bad=True).left_out
    assert said.startswith("files of kinds that are not read: 1 (notes.dat); images that cannot")
    with pytest.raises(UsageError, match=f"^1 image cannot be used, {one} is not a readable"):
        load(folder)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("at", ["00.png", "23.png"])
def test_a_file_that_goes_while_it_is_prepared(at, folder, tmp_path, monkeypatch, capsys):
    """Before it is read, or at some time, since pictures are decoded in parallel."""
    real = decoding.pixels

    def pixels(name, *args):
        if name.endswith(at):
            (folder / "class0" / "00.png").unlink()
        return real(name, *args)

    monkeypatch.setattr(decoding, "pixels", pixels)
    assert main(["data", str(folder), "--size", "8", "--out", str(tmp_path / "a.npz")]) == 2
    assert "set was changed while it was read: run it again" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["set"]


def test_a_cache_folder_that_cannot_be_written_is_named(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(PdfastError, match=r"or set XDG_CACHE_HOME to a folder on another disk$"):
        load(folder)


def test_of_two_at_a_time_one_works_and_the_other_waits(folder, cache, monkeypatch):
    names, found = count_decoded(monkeypatch), []
    threads = [
        threading.Thread(target=lambda: found.append(load(folder).images.numpy())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == NUM
    assert len(found) == 3
    assert all(np.array_equal(images, found[0]) for images in found)
    assert len(list(cache.iterdir())) == 1


def test_a_file_that_another_process_makes_is_left_alone(folder, tmp_path, capsys):
    out = tmp_path / "set.npz"
    with prepare._locked(prepare._part(out), wait=False):
        code = main(["data", str(folder), "--size", "8", "--out", str(out)])
    assert code == 1
    assert "is being written by another process: wait for it to end" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------
# Stopped and killed


def test_a_stopped_preparation_goes_on(folder, cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "FEW", 1)
        patch.setattr(decoding, "threads", lambda: 1)
        stop_after(patch, 10, Stopped(2, "10 of 24 images are prepared"))
        with pytest.raises(Stopped, match="10 of 24"):
            load(folder, CLASSES)
    assert sorted(path.suffix for path in cache.iterdir()) == [".json", ".part"]
    names, said = count_decoded(monkeypatch), []
    monkeypatch.setattr(Screen, "say", lambda self, text: said.append(text))
    made = load(folder, CLASSES)
    assert len(names) == NUM - 10
    assert said[0].startswith(f"preparing 24 images of {folder} in {cache / 'prepared-'}")
    assert said[1:] == [f"{folder}: 10 of 24 images were prepared before; preparing the rest"]
    assert np.array_equal(made.images, decoded(folder))
    assert [path.suffix for path in cache.iterdir()] == [".npz"]


def test_a_killed_preparation_goes_on_from_what_is_on_the_disk(folder, cache, monkeypatch):
    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "FEW", 1)
        patch.setattr(prepare, "SAVED_EVERY", -1.0)  # after every picture
        stop_after(patch, 10, Killed())
        with pytest.raises(Killed):
            load(folder)
    names = count_decoded(monkeypatch)
    made = load(folder)
    assert len(names) == NUM - 10
    assert np.array_equal(made.images, decoded(folder))


@pytest.mark.parametrize("error", ["stopped", "killed"])
@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_a_preparation_that_ends_while_images_are_moved(
    folder, tmp_path, monkeypatch, error, duplicates
):
    """Once duplicates are dropped, a resumed call would misread the part, so it is not kept."""
    first, second = folder / "class0" / "00.png", folder / "class0" / "03.png"
    second.write_bytes(first.read_bytes())
    whole, out = decoded(folder), tmp_path / "set.npz"
    order = prepare.Order(str(folder), Wanted(8, 3), duplicates)
    found = sources.find(str(folder), order.wanted)
    key = prepare.key_of(order, found, settle=True)
    screen = Screen(quiet=True)

    class Killed(BaseException):
        pass

    def ended(*args):
        raise Stopped(2, "stopped") if error == "stopped" else Killed

    with monkeypatch.context() as patch:
        patch.setattr(prepare.NpzFile, "finish", ended)
        patch.setattr(prepare, "SAVED_EVERY", -1.0)
        with pytest.raises((Stopped, Killed)):
            prepare.make(order, found, out, screen, key)
    names = count_decoded(monkeypatch)
    prepare.make(order, found, out, screen, key)
    kept = np.delete(np.arange(NUM), 1 if duplicates == "drop" else [])
    with np.load(out) as arrays:
        assert np.array_equal(arrays["images"], whole[kept])
    assert len(names) == (NUM if duplicates == "drop" else 0)


def test_of_another_set_no_part_is_used(folder, tmp_path, monkeypatch):
    """A part in the same place is ignored if its source has changed meanwhile."""
    out = tmp_path / "set.npz"
    args = ["data", str(folder), "--size", "8", "--duplicates", "keep", "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "FEW", 1)
        time.sleep(0.03)  # so that the files are old enough to be known again
        stop_after(patch, 10, Stopped(2, "stopped"))
        assert main(args) == 130
    assert prepare._part(out).is_file()
    (folder / "class0" / "00.png").write_bytes(picture(np.zeros((12, 16, 3), np.uint8)))
    assert main(args) == 0
    with np.load(out) as arrays:
        assert np.array_equal(arrays["images"], decoded(folder))


def test_a_source_that_changes_while_it_is_read_is_refused(folder, cache, monkeypatch):
    real = decoding.pixels

    def pixels(name, *args):
        if name.endswith("23.png"):
            (folder / "class0" / "00.png").write_bytes(b"")
        return real(name, *args)

    monkeypatch.setattr(decoding, "pixels", pixels)
    with pytest.raises(UsageError, match="set was changed while it was read: run it again"):
        load(folder)
    assert not any(cache.iterdir())


# ------------------------------------------------------------------------------------------
# What cannot be


def test_a_disk_that_is_too_small_is_refused_at_once(folder, cache, monkeypatch):
    names = count_decoded(monkeypatch)
    full = prepare.shutil.disk_usage("/")._replace(free=2 * 10**6)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda path: full)
    load(folder)  # 5 kB
    monkeypatch.setattr(prepare, "SPARE", 2 * 10**6)
    (folder / "class0" / "zz.png").write_bytes((folder / "class0" / "00.png").read_bytes())
    with pytest.raises(UsageError) as error:
        load(folder)
    assert str(error.value).startswith(
        f"{folder} takes 0.0 GB as images of 8x8, and the disk of {cache} has 0.0 GB free: free "
    )
    assert len(names) == NUM
    assert len(list(cache.iterdir())) == 1


def damage(folder, num):
    paths = sorted(folder.rglob("*.png"))[2 : 2 + num]
    for path in paths:
        path.write_bytes(b"no picture")
    return paths


def test_unreadable_pictures_are_refused_by_their_names(folder, cache):
    (one,) = damage(folder, 1)
    fix = "skip such images with --skip-bad (data.skip_bad)"
    with pytest.raises(UsageError) as error:
        load(folder)
    assert str(error.value) == f"{one} is not a readable image: repair or remove it, or {fix}"
    other = sorted(folder.rglob("*.png"))[5]
    Image.new("I;16", (8, 8)).save(other)
    with pytest.raises(UsageError) as error:
        load(folder)
    names = [path.relative_to(folder) for path in (one, other)]
    assert str(error.value) == (
        f"2 of the first 24 images of {folder} cannot be used: {names[0]} (is not a readable "
        f"image), {names[1]} (has more than 8 bits per channel: save it with 8); repair or remove "
        "them, or skip them with --skip-bad (data.skip_bad)"
    )
    paths = damage(folder, 12)
    with pytest.raises(UsageError) as error:
        load(folder)
    said = str(error.value)
    names = ", ".join(str(path.relative_to(folder)) for path in paths[:10])
    assert said == (
        f"10 of the first 12 images of {folder} cannot be used: {names} (each is not a readable "
        "image); repair or remove them, or skip them with --skip-bad (data.skip_bad)"
    )
    assert not any(cache.iterdir())


def test_skipped_pictures_are_counted_and_listed(folder, tmp_path, capsys):
    """The others keep their labels; a black picture is not mistaken for a missing one."""
    black = folder / "class2" / "23.png"
    black.write_bytes(picture(np.zeros((12, 16, 3), np.uint8)))
    whole, paths = decoded(folder), damage(folder, 12)
    made = load(folder, CLASSES, skip_bad=True)
    kept = np.r_[0:2, 14:NUM]
    assert np.array_equal(made.images, whole[kept])
    assert made.labels.tolist() == [0, 0] + [1, 1] + [2] * 8
    out = tmp_path / "set.npz"
    assert main(["data", str(folder), "--size=8", "--labels", "--skip-bad", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "12 images of 8x8x3, 3 classes (0 class0: 2, 1 class1: 2, 2 class2: 8)" in said
    assert f"left out: images that cannot be used: 12 ({paths[0]} is not a readable image" in said
    with np.load(out) as arrays:
        bad = json.loads(str(arrays["about"]))["unusable"]
        assert arrays["class_names"].tolist() == ["class0", "class1", "class2"]
    assert [text.split()[0] for text in bad] == list(map(str, paths))


# ------------------------------------------------------------------------------------------
# Large arrays


@pytest.fixture
def large(monkeypatch):
    """Make images count as large from 1 kB on."""
    monkeypatch.setattr(npz, "MAPPED", 1000)


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (20, 8, 8, 3), np.uint8)


def test_a_stored_set_is_mapped(tmp_path, images, large, cache, monkeypatch):
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(20) % 3)
    read = load(tmp_path / "a.npz", CLASSES)
    assert np.array_equal(read.images, images)
    assert read.checksum is not None
    assert read.labels.tolist() == (np.arange(20) % 3).tolist()
    assert not cache.exists()
    monkeypatch.undo()
    small = load(tmp_path / "a.npz", CLASSES)
    assert small.checksum is None
    assert digest.known(read).digest == digest.known(small).digest


def test_a_damaged_byte_of_a_mapped_set_is_found(tmp_path, images, large):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.tile(images, (9, 1, 1, 1)))  # more than zipfile reads ahead
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.npz is damaged: the CRC-32 of its images is not"):
        digest.known(load(path))
    with pytest.raises(UsageError, match=r"a\.npz is damaged"):
        sources.find(str(path), Wanted(8, 3))


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_deflated_set_is_prepared(tmp_path, images, large, cache, order):
    """A transposed array cannot be read image by image, so it is read whole."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=np.asarray(images, order=order), labels=np.arange(20) % 3)
    read = load(path, CLASSES)
    assert np.array_equal(read.images, images)
    assert read.labels.tolist() == (np.arange(20) % 3).tolist()
    assert cache.exists() == (order == "C")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"a\.npz is not a readable \.npz file"):
        load(path, CLASSES)


def test_names_of_classes_are_read(tmp_path, images):
    names = np.array(["cat", "dog", "\u732b"])
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(20) % 3, class_names=names)
    assert load(tmp_path / "a.npz", CLASSES).names == ("cat", "dog", "\u732b")
    assert load(tmp_path / "a.npz").names == ()
    np.savez(tmp_path / "b.npz", images=images, labels=np.arange(20) % 3, class_names=np.arange(3))
    with pytest.raises(UsageError, match=r"`class_names` must be texts of shape \(K,\), not int64"):
        load(tmp_path / "b.npz", CLASSES)


# ------------------------------------------------------------------------------------------
# Resizing, and memory


def by_area(image, size):
    """Return the mean of what each pixel covers, in whole numbers and fractions."""
    side = len(image)
    found = np.empty((size, size, image.shape[2]), np.uint8)
    for row in range(size):
        for column in range(size):
            for channel in range(image.shape[2]):
                total = Fraction(0)
                for y in range(side):
                    for x in range(side):
                        total += (
                            _overlap(row, y, side, size)
                            * _overlap(column, x, side, size)
                            * int(image[y, x, channel])
                        )
                found[row, column, channel] = round(total * Fraction(size, side) ** 2)
    return found


def _overlap(pixel, other, side, size):
    """Return how much of a small image's pixel lies on a large one's, in widths of the latter."""
    start, end = Fraction(pixel * side, size), Fraction((pixel + 1) * side, size)
    return max(Fraction(0), min(end, other + 1) - max(start, other))


@pytest.mark.parametrize(("side", "size"), [(7, 3), (8, 4), (5, 5), (4, 6)])
def test_area_is_the_mean_of_what_a_pixel_covers(side, size):
    image = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    found = pixels("", image, Wanted(size, 3, method="area"), 3)
    assert np.array_equal(found, by_area(image, size))


def test_area_crops_as_published(folder):
    """The area method rounds the crop's offset down on each side of the subtraction.

    For 12x17 the square begins at 17 // 2 - 12 // 2 = 2; the other method has 2.5, rounded to 2.
    For 13x16 it begins at 16 // 2 - 13 // 2 = 2; the other method has 1.
    """
    for shape, left in (((12, 17), 2), ((13, 16), 2)):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 1), np.uint8)
        side = shape[0]
        found = pixels("", image, Wanted(4, 1, method="area"), 1)
        assert np.array_equal(found, by_area(image[:, left : left + side], 4))
    assert np.array_equal(load(folder, resize="area").images, decoded(folder, "area"))
    assert not np.array_equal(load(folder, resize="area").images, load(folder).images)


@pytest.mark.parametrize(
    ("groups", "limits", "least"),
    [
        ("0::/a/b\n", {"a/memory.max": "3000", "a/b/memory.max": "max"}, 3000),
        ("0::/a/b\n", {"a/memory.max": "3000", "a/b/memory.max": "2000"}, 2000),
        ("0::/not/seen\n", {"memory.max": "4000"}, 4000),
        ("4:cpu,memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "5000"}, 5000),
        ("4:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "5000"}, None),
        ("0::/a\n", {"a/memory.max": "max"}, None),
    ],
)
def test_the_limit_is_the_control_groups(tmp_path, monkeypatch, groups, limits, least):
    for name, text in limits.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    (tmp_path / "own").write_text(groups)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "OWN", tmp_path / "own")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory.limit() == (machine if least is None else least)


def test_own_memory_is_that_of_no_file(tmp_path, monkeypatch):
    status = tmp_path / "status"
    status.write_text("VmHWM:\t 9000 kB\nRssAnon:\t 1234 kB\nRssFile:\t 5678 kB\n")
    monkeypatch.setattr(memory, "STATUS", status)
    assert memory.own() == 1234 * 1024
    status.unlink()  # as on another system
    assert memory.own() > 10**7


def test_a_picture_of_one_size_is_written_as_it_is(tmp_path):
    """Grey and colour, from a file and from an array."""
    for channels in (1, 3):
        image = np.random.default_rng(channels).integers(0, 256, (8, 8, channels), np.uint8)
        Image.fromarray(image[..., 0] if channels == 1 else image).save(tmp_path / "a.png")
        for held in (image, tmp_path / "a.png"):
            assert np.array_equal(pixels("a", held, Wanted(8, channels), channels), image)


def test_images_are_counted_as_they_are_read(folder, tmp_path):
    """With the chosen reading of folders, and without broken links."""
    root = tmp_path / "root"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        (root / split / "a.png").write_bytes((folder / "class0" / "00.png").read_bytes())
    assert sources.count(DataConfig(source=str(root))) is None  # refused, as the run would be
    assert sources.count(DataConfig(source=str(root), labels="top")) == 2
    (folder / "class0" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert sources.count(DataConfig(source=str(folder))) is None
    assert sources.count(DataConfig(source=str(folder), skip_bad=True)) == NUM


def test_a_dry_run_says_what_the_prepared_set_takes(folder, cache, tmp_path, capsys):
    (tmp_path / "a.toml").write_text(
        f'[data]\nsource = "{folder}"\n[model]\nimage_size = 8\nchannels = 3\nch = 8\nemb_ch = 8\n'
        "ch_mult = [1]\nnum_res_blocks = 1\nattn_resolutions = []\ngroups = 4\n"
        "[train]\nupdates = 2\nbatch = 2\n[eval]\nsteps = [2]\nbaseline_steps = 2\nnum = 64\n"
    )
    assert main(["train", "--config", str(tmp_path / "a.toml"), "--dry-run"]) == 0
    assert f"disk, once: 1 MB of prepared images in {cache}\n" in capsys.readouterr().out
    assert not cache.exists()


@pytest.mark.parametrize(("size", "told"), [(12, False), (13, True)])
def test_pictures_that_are_enlarged_are_told_of(folder, cache, size, told, capsys):
    net = NetConfig(image_size=size, channels=3, ch_mult=(1,))
    load_dataset(DataConfig(source=str(folder)), net, Screen())
    text = (
        f"warning: 24 of the first 24 images of {folder} are smaller than 13x13, and are enlarged"
    )
    assert (text in capsys.readouterr().out) == told


def test_sub_folders_that_could_be_classes_are_told_of(folder, cache, tmp_path, capsys):
    """A run says it, also of a set that was prepared before, and so does `pdfast data`."""
    told = "classes: 3 sub-folders (class0, class1, class2) are not used: "
    text = (
        f'[data]\nsource = "{folder}"\nhorizontal_flip = true\n[model]\nimage_size = 8\nch = 8\n'
        "emb_ch = 8\nch_mult = [1]\nnum_res_blocks = 1\nattn_resolutions = []\ngroups = 4\n"
        "[train]\nupdates = 2\nbatch = 2\nwarmup = 0\n[eval]\nsteps = [2]\nbaseline_steps = 2\n"
    )
    (tmp_path / "a.toml").write_text(text)
    for out in ("a", "b"):
        args = ["--config", str(tmp_path / "a.toml"), "--out", str(tmp_path / out)]
        assert main(["train", *args, "--threads", "1"]) == 0
        said = capsys.readouterr().out
        fix = "pass --model.num-classes 3 and a new --out for a model with these classes"
        assert f"{told}{fix}\n" in said
        assert "as 8x8 colour, none held out, without classes, mirrored at random\n" in said
    args = ["data", str(folder), "--size", "8", "--out"]
    assert main([*args, str(tmp_path / "a.npz")]) == 0
    assert f"{told}add --labels to keep them\n" in capsys.readouterr().out
    assert main([*args, str(tmp_path / "b.npz"), "--labels"]) == 0
    assert told not in capsys.readouterr().out


def test_runs_within_a_source_are_no_pictures_of_it(folder):
    """Samples of a run are ignored if the run lies inside its own source folder."""
    before = load(folder, CLASSES)
    run = folder / "runs" / "tiny"
    (run / "samples").mkdir(parents=True)
    for name in ("config.toml", "metrics.jsonl"):
        (run / name).write_text("")
    (run / "samples" / "compare.png").write_bytes((folder / "class0" / "00.png").read_bytes())
    after = load(folder, CLASSES)
    assert after.names == before.names
    assert after.labels.tolist() == before.labels.tolist()
    assert after.left_out == "folders of pdfast's runs: 1 (runs)"


def test_a_set_is_not_written_into_its_source(folder, capsys):
    out = folder / "sub" / "set.npz"
    assert main(["data", str(folder), "--size", "8", "--out", str(out)]) == 2
    assert f"--out {out} lies in {folder}, where its contact sheet would be" in (
        capsys.readouterr().err
    )
    assert not out.parent.exists()


def test_a_table_of_labels_that_leads_nowhere_is_refused(folder):
    (folder / "dataset.json").symlink_to("/nowhere/dataset.json")
    for skip_bad in (False, True):
        with pytest.raises(
            UsageError, match=r"dataset\.json, the labels of the pictures, is a link"
        ):
            load(folder, CLASSES, skip_bad=skip_bad)


def test_two_labels_of_one_picture_are_refused(folder):
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.png"))]
    table = folder / "dataset.json"
    table.write_text(json.dumps({"labels": [[name, 0] for name in [*names, names[0]]]}))
    assert load(folder, CLASSES).labels.tolist() == [0] * NUM  # the same twice
    table.write_text(json.dumps({"labels": [*([name, 0] for name in names), [names[0], 2]]}))
    with pytest.raises(UsageError) as error:
        load(folder, CLASSES)
    assert str(error.value) == f"{table} has two labels for {names[0]}, 0 and 2: keep one"
