"""What the store is measured against: do null servers answer gRPC, and does Redis count the same windows?"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest

from benches import load, native, peers, workload
from featurestore.core.state import State

METHOD = "/load.Test/Call"
REPLY = bytes(range(256)) * 2
SERVERS = {"nghttp2": partial(peers.null_nghttp2, REPLY), "grpc": partial(peers.null_grpc, METHOD, REPLY)}

try:
    load.generator()
except native.NotInstalled as lacking:
    pytest.skip(str(lacking), allow_module_level=True)


@pytest.mark.parametrize("name", SERVERS)
def test_a_null_server_answers_the_same_bytes_to_everything(name: str) -> None:
    start: Callable[[], AbstractContextManager[peers.Peer]] = SERVERS[name]
    try:
        with start() as peer:
            with grpc.insecure_channel(peer.target) as channel:
                call = channel.unary_unary(METHOD)
                assert [call(message) for message in (b"", b"a", b"b" * 100_000)] == [REPLY] * 3
            result = load.run(peer.target, METHOD, [b"a"], connections=3, streams=50, count=2_000)
    except native.NotInstalled as lacking:
        pytest.skip(str(lacking))
    assert result["statuses"] == {"OK": 2_000}
    assert result["reply_bytes"] == 2_000 * len(REPLY)


class Redis:
    """Its protocol, as far as one bulk string goes."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self.connection = socket.create_connection((host, int(port)), timeout=30)
        self.replies = self.connection.makefile("rb")

    def ask(self, *words: bytes) -> bytes:
        self.connection.sendall(load.redis_command(*words))
        line = self.replies.readline()
        assert line[:1] == b"$", line
        return self.replies.read(int(line[1:]) + 2)[:-2]

    def close(self) -> None:
        self.replies.close()
        self.connection.close()


@pytest.fixture
def redis(tmp_path: Path) -> peers.Peer:
    try:
        with peers.redis(tmp_path) as peer:
            yield peer
    except native.NotInstalled as lacking:
        pytest.skip(str(lacking))


def test_redis_commands_are_answered_and_their_errors_counted(redis: peers.Peer) -> None:
    stored = load.run_redis(redis.target, [load.redis_command(b"SET", b"k", b"v" * 70_000)], count=1)
    got = load.run_redis(redis.target, [load.redis_command(b"GET", b"k")], connections=3, count=30)
    kinds = [[b"PING"], [b"INCR", b"n"], [b"GET", b"none"], [b"LRANGE", b"none", b"0", b"1"], [b"NONSENSE"]]
    mixed = load.run_redis(redis.target, [load.redis_command(*words) for words in kinds], count=10)
    assert stored["statuses"] == {"OK": 1}
    assert stored["reply_bytes"] == len(b"+OK\r\n")
    assert got["statuses"] == {"OK": 30}
    assert got["reply_bytes"] == 30 * (70_000 + len(b"$70000\r\n\r\n"))
    assert mixed["statuses"] == {"OK": 8, "ERROR": 2}
    (failure,) = mixed["failures"]
    assert (failure["status"], failure["calls"]) == ("ERROR", 2)
    assert failure["message"].startswith("ERR unknown command")


def test_the_script_counts_the_windows_that_the_store_counts(redis: peers.Peer) -> None:
    """Events over ten days, so that each window loses some; what was filled in first is seen too."""
    n_keys, n_events = 8, 400
    plan = workload.plan()
    state = State(plan, secret=bytes(16))
    first = list(workload.first_events(n_keys, len(workload.ENTITIES), 3, seed=1))
    for some in first:
        state.observe(some.batch(plan))
    drawn = workload.skewed_events(n_events, n_keys, seed=2)
    rng = np.random.default_rng(3)
    times = workload.START_MS + np.sort(rng.integers(0, 10 * workload.DAY_MS, n_events))
    events = workload.Events(times, drawn.columns)
    expected = state.observe(events.batch(plan), 0).values

    filling = list(peers.filling(first, 7))
    load.run_redis(redis.target, filling, count=len(filling))
    script = peers.load_script(redis)
    *keys, seconds = events.columns
    client = Redis(redis.target)
    try:
        for i in range(n_events):
            names = [bytes(c.data[c.offsets[i] : c.offsets[i + 1]]) for c in keys]
            asked = [b"EVALSHA", script, b"3", *names, b"%d" % times[i]]
            assert len(client.ask(*asked)) == 240
            values = struct.unpack("<30d", client.ask(*asked, b"%d" % seconds[i]))
            assert values == tuple(expected[i])
    finally:
        client.close()
    assert len(np.unique(expected)) > 100
