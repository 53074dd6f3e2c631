from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from transport.calls import GET, OK, call, read
from transport.frames import STRICT, Manners, Wire
from transport.process import Process

# Whoever is not named here has none but the best.
MANNERS = {"grpcio": Manners(hangs_up=True, words_for_reset=True)}

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
