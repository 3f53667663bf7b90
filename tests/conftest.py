"""Shared fixtures, and the rule that only GPU and optional peers may be skipped."""

import signal

import pytest
import torch

from pdfast.config.schema import Config
from pdfast.config.serialization import from_table
from pdfast.cost import timing
from pdfast.distillation import rounds

MAY_SKIP = {"gpu", "apex", "xformers"}
# Distances after each round are of one batch: with 256 images they took a third of a tiny run. The
# processes of forked.py and test_full_disk.py do the same.
rounds.MONITOR_IMAGES = 64
timing.SECONDS, timing.LEAST = 0.4, 0.03  # seconds of a dry run's measurements


def pytest_configure(config):
    torch.set_num_threads(1)  # since two workers share two cores


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    torch.manual_seed(0)  # so that a test's draws do not depend on earlier tests


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    marks = {mark.name for mark in item.iter_markers()}
    if report.skipped and not marks & MAY_SKIP:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which only {sorted(MAY_SKIP)} may be"


def pytest_terminal_summary(terminalreporter):
    """Report compiled kernels' registers and shared memory, and emulated kernels' instructions."""
    made = {}
    for report in terminalreporter.getreports("passed"):
        for key, value in report.user_properties:
            if key == "machine code":
                made.setdefault(value[0], []).append(value[1:])
            elif key == "instructions":
                terminalreporter.write_line(value)
    for name, usages in sorted(made.items()):
        registers, shared = zip(*usages, strict=True)
        terminalreporter.write_line(
            f"{name}: {min(registers)}-{max(registers)} registers, "
            f"at most {max(shared)} bytes of static shared memory, no spills"
        )


@pytest.fixture(autouse=True, scope="session")
def data_cache(tmp_path_factory):
    """A cache folder for tests alone, whose disk resolves times of change to 20 ms."""
    from pdfast.data import prepare

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(prepare, "SETTLED", 2 * 10**7)
        yield


@pytest.fixture
def handlers():
    """Restore signal handlers and the stop flag after a test that runs the command line."""
    from pdfast.distributed import signals

    before = {s: signal.getsignal(s) for s in signals.CAUGHT}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
    signals._requested = 0


TINY = {
    "name": "tiny",
    "log_every": 4,
    "save_every": 5,
    "model": {
        "image_size": 8,
        "channels": 1,
        "ch": 8,
        "emb_ch": 16,
        "ch_mult": [1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [4],
        "groups": 4,
    },
    "train": {"updates": 12, "batch": 4, "lr": 1e-3, "warmup": 2, "ema_decay": 0.9},
    "distill": {"start_steps": 8, "rounds": 2, "updates": 6, "batch": 4, "lr": 1e-3},
    "eval": {"steps": [2, 4], "baseline_steps": 8, "num": 64},
}


@pytest.fixture
def tiny() -> Config:
    """A run of seconds: digits, 8 -> 2 steps, a few updates each."""
    return from_table(Config, TINY)


@pytest.fixture
def classes(tiny):
    """A class-conditional run whose teacher is trained with label dropout."""
    from engine_cases import changed

    few = {"steps": (2,), "baseline_steps": 2}
    return changed(tiny, model={"num_classes": 10, "label_dropout": 0.25}, eval=few)


@pytest.fixture
def guides(classes):
    """A class-conditional run with guided students."""
    from engine_cases import changed

    return changed(classes, model={"guidance": (0.0, 4.0)}, eval={"guidance": 1.0})


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """An uninterrupted tiny run, to be copied and not changed."""
    import pdfast

    path = tmp_path_factory.mktemp("straight") / "run"
    pdfast.distill(from_table(Config, TINY), out=path, quiet=True)
    return path


@pytest.fixture(scope="session")
def server():
    """The command line without its imports, with signals at chosen events; see forked.py."""
    from forked import Server

    with Server() as running:
        yield running


@pytest.fixture
def tiny_toml(tmp_path, tiny):
    """The tiny run's config as a TOML file."""
    from pdfast.config.schema import dump_config

    path = tmp_path / "tiny.toml"
    path.write_text(dump_config(tiny))
    return path


@pytest.fixture
def write_state(tmp_path):
    """Write a training state of `flax_files.net()` with changed parameters; return its path."""
    import flax_files as ff

    def write(changes=None, **keys):
        state = ff.state(ff.net(), **keys)
        for path, change in (changes or {}).items():
            old = None if change is ... else ff.get(state["ema_params"], path)
            ff.put(state["ema_params"], path, change if change is ... else change(old))
        (tmp_path / "state.flax").write_bytes(ff.pack(state))
        return tmp_path / "state.flax"

    return write
