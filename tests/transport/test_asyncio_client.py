"""The service as it is called with grpcio's asyncio client: many calls of one connection at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import grpc
import pytest

from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import feature_store_service_pb2_grpc as pb_grpc
from featurestore.v1 import types_pb2 as types
from transport.calls import T0, play
from transport.process import Process

Stub = pb_grpc.FeatureStoreServiceStub
Run = Callable[[Callable[[Stub], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def run(server: Process) -> Run:
    """Runs a coroutine function with a stub on a channel of its own."""

    def runs(test: Callable[[Stub], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            async with grpc.aio.insecure_channel(server.address) as channel:
                await asyncio.wait_for(test(Stub(channel)), 60)

        asyncio.run(whole())

    return runs


def written(*ips: str, **more: Any) -> pb.IngestRequest:
    return pb.IngestRequest(event_type="play", rows=[play(ip, T0) for ip in ips], **more)


def asked(*ips: str, service: str = "abuse") -> pb.GetFeaturesRequest:
    key_sets = [types.KeySet(parts=[types.Field(name="ip", text=ip)]) for ip in ips]
    return pb.GetFeaturesRequest(service=service, key_sets=key_sets)


async def code_of(call: Awaitable[Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return failure.value.code()


def test_calls_at_once_get_each_its_own_answer(run: Run) -> None:
    async def test(hot: Stub) -> None:
        await asyncio.gather(*(hot.Ingest(written(*[f"at-once-{n}"] * n)) for n in range(1, 101)))
        replies = await asyncio.gather(*(hot.GetFeatures(asked(f"at-once-{n}")) for n in range(1, 101)))
        assert [reply.vectors.values[0] for reply in replies] == list(range(1, 101))

    run(test)


def test_streams_at_once_are_answered_each_in_its_order(run: Run) -> None:
    async def one(hot: Stub, name: str) -> None:
        async def requests() -> AsyncIterator[pb.IngestStreamRequest]:
            for sequence in range(50):
                yield pb.IngestStreamRequest(batch=written(name, sequence=sequence))
                await asyncio.sleep(0)

        answered = [reply.batch.sequence async for reply in hot.IngestStream(requests())]
        assert answered == list(range(50))

    async def test(hot: Stub) -> None:
        await asyncio.gather(*(one(hot, f"stream-{i}") for i in range(8)))
        counted = await hot.GetFeatures(asked(*(f"stream-{i}" for i in range(8))))
        assert list(counted.vectors.values[:: counted.vectors.width]) == [50] * 8

    run(test)


def test_a_stream_is_a_conversation(run: Run) -> None:
    async def test(hot: Stub) -> None:
        call = hot.GetFeaturesStream()
        for n in range(1, 20):
            await call.write(pb.GetFeaturesStreamRequest(read=asked(*["a"] * n)))
            assert (await call.read()).read.vectors.rows == n
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK

    run(test)


def test_statuses_and_words(run: Run) -> None:
    async def test(hot: Stub) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await hot.GetFeatures(asked(service="abüse"))
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "'abüse'" in failure.value.details()
        assert failure.value.trailing_metadata()["featurestore-error"] == "UnknownNameError"

    run(test)


def test_deadlines_have_writes_answered_that_wait_and_nothing_else(server: Process, run: Run) -> None:
    async def test(hot: Stub) -> None:
        with server.held_disk():
            waiting = [hot.Ingest(written("x"), timeout=0.3) for _ in range(5)]
            await hot.GetFeatures(asked("x"))
            assert [reply.ack for reply in await asyncio.gather(*waiting)] == [1] * 5
        assert (await hot.Ingest(written("x"))).accepted == 1

    run(test)


def test_cancelled_calls_let_others_be(server: Process, run: Run) -> None:
    async def test(hot: Stub) -> None:
        with server.held_disk():
            calls = [hot.Ingest(written("cancelled")) for _ in range(5)]
            stream = hot.GetFeaturesStream()
            await stream.write(pb.GetFeaturesStreamRequest(read=asked("a")))
            assert (await stream.read()).read.vectors.rows == 1
            for call in [*calls, stream]:
                call.cancel()
            assert [await call.code() for call in calls] == [grpc.StatusCode.CANCELLED] * 5
            await hot.GetFeatures(asked("a"))

    run(test)
