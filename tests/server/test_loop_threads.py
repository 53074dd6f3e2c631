"""Several loop threads of the native transport: one server, whichever of them a connection is with."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import transports
from house import HOUR_MS, T0, House, batch, event, keys, observe, opened, play, read
from transport.calls import (
    GET,
    GET_STREAM,
    INGEST,
    INGEST_STREAM,
    OBSERVE,
    OK,
    call,
    fields,
    reply_of,
    request,
)
from transport.frames import Wire, headers
from transport.process import eventually

from featurestore.v1 import feature_store_service_pb2 as pb

pytestmark = transports.needs_native

LOOPS = (1, 2, 3)


def serving(directory: Path, loop_threads: int, **settings: object) -> object:
    return opened(directory, transport="native", loop_threads=loop_threads, **settings)


def channels(house: House, n: int) -> list[grpc.Channel]:
    """A connection each."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return [grpc.insecure_channel(str(house.server.address), options) for _ in range(n)]


def n_connections(house: House) -> list[int]:
    return [loop.n_connections for loop in house.server.front._loops]


def requests() -> Iterator[tuple[str, list[bytes]]]:
    """A fixed set: writes and reads of all kinds, right and wrong, small, and too large to be run between two
    looks at the sockets.
    """
    addresses = [f"10.0.0.{i}" for i in range(20)]
    for i, ip in enumerate(addresses):
        seen = play(T0 + i * HOUR_MS // 8, ip=ip, account=i % 3, ms_played=i / 7)
        yield OBSERVE, [observe(seen).SerializeToString()]
        yield (
            INGEST,
            [
                batch(
                    *(play(T0 + j, ip=ip) for j in range(i)), producer="p", sequence=i + 1
                ).SerializeToString()
            ],
        )
        yield GET, [read(*(keys(ip=each, account=i) for each in addresses[: i + 1])).SerializeToString()]
    large = batch(*(play(T0 + i, ip=addresses[i % 20], ms_played=i / 3) for i in range(3000)))
    yield INGEST, [large.SerializeToString()]
    yield INGEST, [batch(play(), producer="p", sequence=3).SerializeToString()]
    yield INGEST, [batch(event(None, ip="a"), play(ip=""), event_type="play").SerializeToString()]
    yield INGEST, [batch(play(), event_type="plai").SerializeToString()]
    yield GET, [read(*(keys(ip=each) for each in addresses * 100)).SerializeToString()]
    yield GET, [read(keys(ip="a"), service="abus").SerializeToString()]
    yield GET, [b"\xff\xff\xff"]
    yield "/featurestore.v1.RegistryService/GetSchema", [b""]
    yield "/featurestore.v1.RegistryService/Nothing", [b""]
    yield (
        INGEST_STREAM,
        [
            pb.IngestStreamRequest(batch=batch(play(T0 + i, ip=ip), sequence=i + 1)).SerializeToString()
            for i, ip in enumerate(addresses)
        ],
    )
    yield (
        GET_STREAM,
        [pb.GetFeaturesStreamRequest(read=read(keys(ip=ip))).SerializeToString() for ip in addresses],
    )


def answers(directory: Path, loop_threads: int) -> list[object]:
    """Each request by a connection other than the one before it."""
    found: list[object] = []
    with serving(directory, loop_threads) as house:
        made = channels(house, 16)
        for channel in made:
            grpc.channel_ready_future(channel).result(60)
        assert sum(n_connections(house)) >= 16
        for (path, messages), channel in zip(requests(), itertools.cycle(made)):
            try:
                found.append(list(channel.stream_stream(path)(iter(messages), timeout=60)))
            except grpc.RpcError as error:
                found.append((error.code(), error.details(), tuple(error.trailing_metadata())))
        for channel in made:
            channel.close()
    return found


def test_answers_are_the_same_to_the_last_bit(tmp_path: Path) -> None:
    one, two, three = (answers(tmp_path / str(n), n) for n in LOOPS)
    assert len(one) == len(list(requests()))
    assert sum(isinstance(answer, list) for answer in one) >= 65, "most of them succeed"
    assert two == one
    assert three == one


@pytest.mark.parametrize("loop_threads", [2, 3])
def test_connections_are_spread_over_the_loops(tmp_path: Path, loop_threads: int) -> None:
    """By the kernel, as it likes; that all of 64 were with one loop would be a fault."""
    with serving(tmp_path, loop_threads) as house:
        wires = [Wire(str(house.server.address)) for _ in range(64)]
        assert sum(n_connections(house)) == house.server.front.counts()["connections_now"] == 64
        assert all(n < 64 for n in n_connections(house))
        for wire in wires:
            wire.close()
        eventually(lambda: not any(n_connections(house)), "all are closed")


@pytest.mark.parametrize("loop_threads", LOOPS)
@pytest.mark.parametrize("on", ["127.0.0.1:0", "unix"])
def test_the_limit_of_connections_is_that_of_all_loops_together(
    tmp_path: Path, loop_threads: int, on: str
) -> None:
    """Wherever they are: as many as may be are served, and no more."""
    listen = f"unix:{tmp_path}/public.sock" if on == "unix" else on
    with serving(tmp_path, loop_threads, listen=listen, max_connections=10) as house:
        wires = [Wire(str(house.server.address)) for _ in range(9)]  # of one peer; the tenth is for another
        for wire in wires:  # each has a call, so that none goes for others
            wire.send(headers(1, wire.block(fields(GET_STREAM))))
            wire.barrier()
        assert sum(n_connections(house)) == 9
        for _ in range(5):
            with Wire(str(house.server.address), greet=False) as late:
                late.closed()
        counts = house.server.front.counts()
        assert (counts["connections"], counts["refused"], counts["connections_now"]) == (9, 5, 9)
        for wire in wires:
            wire.barrier()
            wire.close()


@pytest.mark.parametrize("loop_threads", [2, 3])
@pytest.mark.parametrize("on", ["localhost:0", "unix"])
def test_drain_ends_what_every_loop_has(tmp_path: Path, loop_threads: int, on: str) -> None:
    """Streams with UNAVAILABLE, connections with GOAWAY; what was applied was answered."""
    listen = f"unix:{tmp_path}/public.sock" if on == "unix" else on
    with serving(tmp_path, loop_threads, listen=listen, drain_s=600.0) as house:
        made = channels(house, 12)
        idle = [Wire(str(house.server.address)) for _ in range(12)]
        answered: list[int] = []
        codes: list[grpc.StatusCode] = []
        flowing = threading.Barrier(len(made) + 1)

        def write(channel: grpc.Channel) -> None:
            message = pb.IngestStreamRequest(batch=batch(play())).SerializeToString()
            n = 0
            try:
                for _ in channel.stream_stream(INGEST_STREAM)(itertools.repeat(message)):
                    n += 1
                    if n == 3:
                        flowing.wait(60)
            except grpc.RpcError as error:
                codes.append(error.code())
            answered.append(n)

        writers = [threading.Thread(target=write, args=(channel,), daemon=True) for channel in made]
        for writer in writers:
            writer.start()
        flowing.wait(60)
        house.server.stop()
        for writer in writers:
            writer.join(60)
        assert codes == [grpc.StatusCode.UNAVAILABLE] * len(made)
        assert sum(answered) == house.engine.stats()["events_accepted"]
        assert not any(n_connections(house))
        for wire in idle:
            wire.closed()
            assert wire.goaways
            wire.close()
        for channel in made:
            channel.close()


# ---- large replies


def test_a_large_reply_leaves_the_loop_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others' calls get through while it is made, by a worker that is held here, and between its pieces."""
    from featurestore.server.native_front import NativeFront

    gate, work = threading.Event(), NativeFront._work_at_large
    monkeypatch.setattr(NativeFront, "_work_at_large", lambda front: gate.wait(60) and work(front))
    body = read(*[keys(ip="1.2.3.4", account=596, track="t1")] * 180).SerializeToString()
    small = read(keys(ip="1.2.3.4")).SerializeToString()
    assert len(body) < 8 << 10
    with (
        serving(tmp_path, 1) as house,
        Wire(str(house.server.address)) as large,
        Wire(str(house.server.address)) as other,
    ):
        numbers = itertools.count(1, 2)
        large.send(*(request(large, number, GET, body) for number in range(1, 101, 2)))
        eventually(lambda: house.server.front.counts()["large"] == 50, "they are with the worker")
        for _ in range(50):
            assert call(other, next(numbers), GET, small).status == OK
        assert not any(large.stream(number).body for number in range(1, 101, 2))
        gate.set()
        n_between = 0
        while not all(large.stream(number).is_over for number in range(1, 101, 2)):
            assert large.read_some(30, 8 << 10)
            assert call(other, next(numbers), GET, small).status == OK
            n_between += 1
        replies = [reply_of(large.stream(number)).message for number in range(1, 101, 2)]
        assert len(set(replies)) == 1
        assert n_between > 50
