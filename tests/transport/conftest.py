from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from transport.calls import GET, OK, call, read
from transport.frames import STRICT, Manners, Wire
from transport.process import Process

# Whoever is not named here has none but the best.
MANNERS = {"grpcio": Manners(hangs_up=True, words_for_reset=True)}

REPOSITORY = Path(__file__).resolve().parents[2]
NODE = Path(__file__).with_name("node")

Connect = Callable[..., Wire]
Start = Callable[..., Process]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "deviates(NAME=why): over this transport the test fails, which is known and may be so"
    )
    config.addinivalue_line("markers", "keeps(NAME=bytes): over this transport so much memory may be kept")


@pytest.fixture(autouse=True)
def _known_deviations(request: pytest.FixtureRequest, transport: str) -> None:
    for mark in request.node.iter_markers("deviates"):
        if transport in mark.kwargs:
            why = f"{transport}: {mark.kwargs[transport]}"
            request.applymarker(pytest.mark.xfail(strict=True, reason=why))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, transport: str) -> Iterator[Start]:
    """start(*flags, **of Process) → a server; it is ended with the module."""
    running: list[Process] = []

    def make(*flags: str, **how: Any) -> Process:
        running.append(Process(tmp_path_factory.mktemp("served"), transport, *flags, **how))
        return running[-1]

    yield make
    for process in running:
        process.end()


@pytest.fixture(scope="module")
def server(start: Start) -> Process:
    """One for all tests of a module, which must leave it well. Pings are not counted: tests send many."""
    return start("--min-ping-interval", "0s")


@pytest.fixture
def connect(server: Process) -> Iterator[Connect]:
    """connect(**of Wire) → a connection. At the end, whatever was said to it, the server serves others."""
    made: list[Wire] = []

    def make(**how: Any) -> Wire:
        made.append(Wire(server.address, manners=MANNERS.get(server.transport, STRICT), **how))
        return made[-1]

    yield make
    for wire in made:
        wire.close()
    assert server.is_running(), server.log.read_text()
    with Wire(server.address) as wire:
        assert call(wire, 1, GET, read("1.2.3.4")).status == OK


@pytest.fixture
def wire(connect: Connect) -> Wire:
    return connect()


def missing(why: str) -> None:
    if os.environ.get("FEATURESTORE_TEST_NODE") == "required":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """What clients of other makers come in, as node/package-lock.json has it: installed by npm into build/,
    once for each lock file. Where that cannot be done the tests skip and say so; with
    FEATURESTORE_TEST_NODE=required they fail.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        missing("needs node and npm (Debian: apt-get install nodejs npm)")
    lock = (NODE / "package-lock.json").read_bytes()
    directory = REPOSITORY / "build" / f"node-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not (directory / "installed").exists():
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(NODE / name, directory)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            missing(f"npm cannot install the packages of {NODE}: {done.stderr.strip()[-500:]}")
        (directory / "installed").touch()
    return directory / "node_modules"
