from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from featurestore.client import AsyncClient, Client
from featurestore.client.failures import Backoff

from .fake_server import FakeServer

FAST = Backoff(first_s=0.001, longest_s=0.02)


class Blocking:
    """An AsyncClient whose calls block, so that one test holds for both clients."""

    def __init__(self, target: str, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client: AsyncClient = self._loop.run_until_complete(self._made(target, settings))

    @staticmethod
    async def _made(target: str, settings: dict[str, Any]) -> AsyncClient:
        return AsyncClient(target, **settings)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if not asyncio.iscoroutinefunction(value):
            return value
        return lambda *args, **named: self._loop.run_until_complete(value(*args, **named))

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


MakeClient = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


@pytest.fixture(params=["sync", "asyncio"])
def make_client(request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    made: list[Any] = []

    def make(target: str, **settings: Any) -> Any:
        kind = Client if request.param == "sync" else Blocking
        made.append(kind(target, **{"backoff": FAST, "timeout_s": 5.0, **settings}))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(server: FakeServer, make_client: MakeClient) -> Any:
    return make_client(server.target)
