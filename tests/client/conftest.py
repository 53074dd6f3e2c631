from __future__ import annotations

from collections.abc import Iterator

import pytest

from featurestore.client import Client
from featurestore.client.failures import Backoff

from .fake_server import FakeServer

FAST = Backoff(first_s=0.001, longest_s=0.02)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.target, backoff=FAST, timeout_s=5) as client:
        yield client
