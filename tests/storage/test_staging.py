"""Names of staged files: no two are equal, and leftovers differ from files still being written."""

import errno
import fcntl
import os
import time

import pytest

from pdfast.console.progress import Screen
from pdfast.runs.run import Run
from pdfast.storage import files, processes, staging
from pdfast.storage.processes import Process

DEAD = 2**22 - 1  # above any process number in use here
HERE = processes.this()
ELSEWHERE = HERE._replace(machine="0" * 8)  # the same number, of another host or container


def name(owner, kind="tmp", final="made", drawn="89abcdef"):
    return f".{owner}-{drawn}.{kind}.{final}"


def test_no_two_names_are_alike(tmp_path):
    names = {staging.beside(tmp_path / "a.png", "tmp").name for _ in range(100)}
    assert len(names) == 100
    assert all(staging.is_left(n) and n.endswith(".tmp.a.png") for n in names)
    pid = os.fork()
    if not pid:  # which shares whatever its parent has drawn
        (tmp_path / "child").write_text(staging.beside(tmp_path / "a.png", "tmp").name)
        os._exit(0)
    os.waitpid(pid, 0)
    child = (tmp_path / "child").read_text()
    assert child not in names
    assert child.startswith(f".{pid}-{HERE.machine}-")


def test_a_process_is_known_by_more_than_its_number():
    assert Process.parse(str(HERE)) == HERE
    assert HERE.is_here()
    assert HERE.is_alive()
    assert not HERE._replace(start=str(int(HERE.start) - 1)).is_alive()  # another had the number
    assert not HERE._replace(pid=DEAD).is_alive()
    assert not ELSEWHERE.is_here()
    with pytest.raises(ValueError, match="does not name a process"):
        Process.parse("12")


def test_the_machine_is_told_apart_by_boot_and_namespace(monkeypatch):
    def machine():
        processes._machine.cache_clear()
        return processes._machine()

    found = [machine(), machine()]
    for namespace in ("pid:[1]", "pid:[2]"):
        monkeypatch.setattr(os, "readlink", lambda _, n=namespace: n)
        found.append(machine())
    monkeypatch.undo()
    assert found[0] == found[1] == machine()
    assert len(set(found)) == 3


@pytest.fixture
def folder(tmp_path):
    """Write a folder with a result, and leftovers of every kind beside it."""
    files.write(tmp_path / "made", {}, {"t.json": {"n": 1}})
    (tmp_path / ".hidden.file").write_text("not ours")
    return tmp_path


def left(folder):
    return {path.name for path in folder.iterdir()} - {"made", ".hidden.file"}


def test_sweep_clears_what_a_killed_process_left(folder):
    number = os.getppid()
    alive = HERE._replace(pid=number, start=processes._start(number))
    dead, reused = alive._replace(pid=DEAD), alive._replace(start="1")
    for owner in (dead, reused, HERE):  # HERE: interrupted in a former call
        (folder / name(owner)).mkdir()
        (folder / name(owner, "old")).mkdir()
        (folder / name(owner, final="report.json")).write_text("{")
    kept = {name(alive), name(alive, final="x.png")}
    (folder / name(alive)).mkdir()
    (folder / name(alive, final="x.png")).write_text("half")
    staging.sweep(folder)
    assert left(folder) == kept
    staging.sweep(folder, locked=True)
    assert left(folder) == kept


def test_sweep_knows_the_names_of_version_0_1_0(folder):
    alive = os.getppid()
    (folder / f".{DEAD}.tmp.made").mkdir()
    (folder / f".{DEAD}.old.made").mkdir()
    (folder / f".{alive}.tmp.made").mkdir()
    (folder / f".{DEAD}.tmp.report.json").write_text("{")
    (folder / f".{10**30}.tmp.report.json").write_text("{")
    for final in ("gone", "lost"):
        (folder / final).mkdir()
    (folder / "gone").rename(folder / f".{DEAD}.old.gone")
    (folder / "lost").rename(folder / f".{alive}.old.lost")  # its number is another's by now
    staging.sweep(folder)
    assert left(folder) == {f".{alive}.tmp.made", "gone", "lost"}


def test_what_was_set_aside_counts_again_where_nothing_came_in_its_place(folder):
    (folder / "made").rename(folder / name(ELSEWHERE, "old"))
    staging.sweep(folder)
    assert (folder / "made" / "t.json").is_file()
    assert not left(folder)


def test_what_another_machine_left_is_cleared_once_nobody_can_be_at_it(folder):
    """Its processes cannot be checked: a day without a change, or the folder's lock, decides."""
    fresh, stale = name(ELSEWHERE), name(ELSEWHERE, drawn="00000000")
    busy = name(ELSEWHERE, drawn="11111111")  # an old folder that is being filled
    for path in (fresh, stale, busy):
        (folder / path).mkdir()
        (folder / path / "weights").write_text("half")
    yesterday = time.time() - staging.ABANDONED - 1
    for path in (folder / stale / "weights", folder / stale, folder / busy):
        os.utime(path, (yesterday, yesterday))
    staging.sweep(folder)
    assert left(folder) == {fresh, busy}
    staging.sweep(folder, locked=True)
    assert not left(folder)


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_run_that_is_taken_up_on_another_machine(tiny, tmp_path, monkeypatch, has_locks):
    """A killed container's half-written state is removed, unless another may be writing it."""
    with Run(tmp_path / "run", tiny, Screen(quiet=True)).start() as run:
        run.save_state(0, 1, 1.0, {})
    state = tmp_path / "run" / "state"
    half = state / name(ELSEWHERE, final="round-00-update-000000002")
    half.mkdir()
    if not has_locks:

        def none(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", none)
    Run(tmp_path / "run", tiny, Screen(quiet=True)).start().__exit__(None, None, None)
    assert half.exists() is not has_locks
    assert (state / "round-00-update-000000001").is_dir()
