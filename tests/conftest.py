"""Settings and fixtures of all tests: threads, order, no network, tiny checkpoints written once per process."""

from __future__ import annotations

import os
from pathlib import Path

# These are set before torch and the client of the Hub are imported, which read them once.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads of two processes would compete for the cores
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import gc
import logging
import random
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings
from skipped_tests import how_to_run

from mllm.packages import import_packages

# The suite tries the same examples in every run. `pytest --hypothesis-profile=explore` draws new ones.
settings.register_profile("suite", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("suite")

pytest_plugins = ["command_fixtures"]
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


SLOW_FILES = ("tests/pipeline/", "tests/run/", "tests/test_")
"""Tests of whole runs. They start first, so that the last minutes are shared evenly by all processes."""


FREEZE_AT = 20_000
"""Number of objects that survived full garbage collections, from which later ones no longer visit them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-families", action="store_true", help="test rare model families, too")
    parser.addoption("--record-families", action="store_true", help="write the results that mllm show families prints")


def pytest_configure(config: pytest.Config) -> None:
    """Import the packages, except in the process that only hands out tests."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    import_packages()
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # pytest adds its handlers to each logger that does not propagate, six times per test: 60 of PyTorch took 1 ms.
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch") and isinstance(logger, logging.Logger):
            logger.propagate = True


def pytest_collection_finish() -> None:
    """Let garbage collections during the tests be rare and not visit modules and collected tests."""
    gc.set_threshold(10_000, 20, 20)
    gc.freeze()


def pytest_runtest_logfinish() -> None:
    """Let them not visit what survives a test, either, mostly modules: Trainer collects garbage at each start."""
    if len(gc.get_objects(generation=2)) > FREEZE_AT:
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(SLOW_FILES))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report.longrepr for report in terminalreporter.getreports("skipped")]
    if line := how_to_run([str(place[2]) for place in skipped if isinstance(place, tuple)]):
        terminalreporter.write_line(line)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Forget the files that earlier tests were warned of: a process names a limited number of files, each once."""
    if notices := sys.modules.get("mllm.dataset.readers.notices"):
        notices._noticed.clear()
        notices._counts.clear()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    seed_generators()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    seed_generators()


def seed_generators() -> None:
    """Seed the global generators, so that a test draws equal numbers alone and after any other tests."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # libraries draw from it
    torch = sys.modules["torch"]  # imported in pytest_configure
    torch.default_generator.manual_seed(0)
    # `torch.manual_seed` would format the call stack for each kind of device that is not initialized: 1 ms per fixture.
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(scope="session", autouse=True)
def files_in_the_page_cache() -> Iterator[None]:
    """Do not wait for the disk: files of tests need not survive a power failure. A run waits 50 times.

    Runs in other processes, which tests kill, wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def write_tiny(family: str, folder: Path) -> Path:
    """Write a tiny checkpoint."""
    from mllm.tiny import checkpoints

    return checkpoints.write_tiny(family, folder)


@pytest.fixture(scope="session")
def tiny_medgemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Gemma 3 with images; read only."""
    return write_tiny("medgemma", tmp_path_factory.mktemp("tiny") / "medgemma")


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny LLaVA; read only."""
    return write_tiny("llava", tmp_path_factory.mktemp("tiny") / "llava")


@pytest.fixture(scope="session")
def tiny_qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Qwen2-VL; read only."""
    return write_tiny("qwen2_vl", tmp_path_factory.mktemp("tiny") / "qwen2_vl")


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Gemma 3n with images of 96 pixels; read only."""
    return write_tiny("gemma3n-student", tmp_path_factory.mktemp("tiny") / "gemma3n-student")


@pytest.fixture(scope="session")
def tiny_medsiglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny SigLIP of 112 pixels; read only."""
    return write_tiny("medsiglip", tmp_path_factory.mktemp("tiny") / "medsiglip")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images, chat templates and annotations; skips the test if it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED
