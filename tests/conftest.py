"""Shared by every test: where the real event data is, and what the data oracles measured.

The data is not part of the repository (its licences decide): it is read from `../shared/data` beside the
repository, or from FEATURESTORE_TEST_DATA. A test that needs a missing file skips and names it.
"""

from __future__ import annotations

import os

# Tests fork. Where other threads are in gRPC, its handlers leave the child without some locks and with others
# held: a quarter of such children died before their first line. What is forked here calls no gRPC. It reads
# this when it is imported.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from collections.abc import Callable
from pathlib import Path

import pytest
import transports
from _pytest.terminal import TerminalReporter
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("FEATURESTORE_TEST_DATA") or REPOSITORY.parent / "shared" / "data")

# One seed per commit, so that a failure seen once is seen again; `--hypothesis-profile=wide` searches anew.
settings.register_profile(
    "default", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile(
    "wide", parent=settings.get_profile("default"), derandomize=False, max_examples=2000
)
settings.load_profile("default")

_measured = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def data_file() -> Callable[[str], Path]:
    """The path of one real data file by its name; skips the test, naming the file, where it is missing."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.is_file():
            pytest.skip(f"needs {path}: put the data folder there or name it in FEATURESTORE_TEST_DATA")
        return path

    return find


@pytest.fixture(scope="session", params=transports.available())
def transport(request: pytest.FixtureRequest) -> str:
    """What carries the public port's calls: a test that asks for it runs once over each of this build."""
    return str(request.param)


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Says a line in the summary at the end of the run: what an oracle measured, not only that it passed."""
    return request.config.stash.setdefault(_measured, []).append


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    lines = terminalreporter.config.stash.get(_measured, [])
    if lines:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.line(line)
