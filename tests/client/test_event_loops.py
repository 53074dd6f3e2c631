"""Which event loop an AsyncClient belongs to: the one that runs when it is first used."""

from __future__ import annotations

import asyncio

import pytest

from featurestore.client import AsyncClient, Schema
from featurestore.errors import ConfigError

from .fake_server import FakeServer

ROW = {"customer_id": [1], "terminal_id": [2], "tx_amount": [3.0], "note": ["n"], "tx_datetime": [1000]}


def test_a_client_is_made_before_any_loop_runs(server: FakeServer) -> None:
    """At the top of a module, say, or where frameworks make what a loop then uses."""
    client = AsyncClient(server.target)

    async def used() -> Schema:
        async with client:
            assert (await client.ingest("transaction", ROW)).accepted == 1
            return await client.schema()

    assert asyncio.run(used()).name == "card-fraud"


def test_a_client_may_be_made_in_one_loop_and_used_in_another(server: FakeServer) -> None:
    async def made() -> AsyncClient:
        return AsyncClient(server.target)

    client = asyncio.run(made())

    async def used() -> Schema:
        async with client:
            return await client.schema()

    assert asyncio.run(used()).name == "card-fraud"


def test_a_client_of_another_loop_says_so_and_sends_nothing(server: FakeServer) -> None:
    client = AsyncClient(server.target)

    async def used() -> None:
        await client.schema()

    async def entered() -> None:
        async with client:
            pass

    async def ingested() -> None:
        await client.ingest("transaction", ROW)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(used())
    sent = dict(server.calls)
    words = f"this AsyncClient of {server.target} belongs to another event loop"
    for wrong in (used, entered, ingested, client.close):
        with pytest.raises(ConfigError, match=words):
            asyncio.run(wrong())
    assert server.calls == sent
    loop.run_until_complete(used())
    loop.run_until_complete(client.close())
    loop.close()


def test_a_client_that_was_never_used_is_closed_all_the_same(server: FakeServer) -> None:
    asyncio.run(AsyncClient(server.target).close())
