"""What the store is measured against: servers that answer at once, and Redis.

    null_grpc.cc      gRPC C++, asynchronous
    null_nghttp2.c    HTTP/2 alone: the least that a gRPC server over nghttp2 can cost
    velocity.lua      the store's windows in Redis, beside a plain GET

The null server in Python, over grpcio, is benches.process.serve_null. Each runs in a process of its own, on
the cores that its starter is bound to, and ends with it. What is not installed is a native.NotInstalled.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benches import load, native
from benches.workload import Events

HERE = Path(__file__).parent
LUA = (HERE / "velocity.lua").read_bytes()


@dataclass(frozen=True)
class Peer:
    target: str
    pid: int


@contextmanager
def null_nghttp2(reply: bytes) -> Iterator[Peer]:
    program = native.program(HERE / "null_nghttp2.c", ["libnghttp2"], "nghttp2/nghttp2.h", "libnghttp2-dev")
    with _running([str(program), reply.hex()]) as peer:
        yield peer


@contextmanager
def null_grpc(path: str, reply: bytes) -> Iterator[Peer]:
    program = native.program(HERE / "null_grpc.cc", ["grpc++"], "grpcpp/grpcpp.h", "libgrpc++-dev")
    with _running([str(program), path, reply.hex()]) as peer:
        yield peer


@contextmanager
def _running(command: list[str]) -> Iterator[Peer]:
    """A program that prints its port and runs until its standard input ends."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Peer(f"127.0.0.1:{int(process.stdout.readline())}", process.pid)
        finally:
            process.stdin.close()
            process.wait(10)


@contextmanager
def redis(directory: Path) -> Iterator[Peer]:
    """A Redis that writes nothing to the disk."""
    program = shutil.which("redis-server")
    if program is None:
        raise native.NotInstalled("there is no redis-server here: apt-get install redis-server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    with subprocess.Popen([program, *settings, "--dir", str(directory)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if b"Ready to accept connections" in line:
                    break
            else:
                raise RuntimeError("redis-server did not start")
            yield Peer(f"127.0.0.1:{port}", process.pid)
        finally:
            process.terminate()
            process.wait(10)


def filling(chunks: Iterable[Events], n_events: int = 1_000) -> Iterator[bytes]:
    """Commands that put events where velocity.lua finds them, n_events in each."""
    script = b"for i = 1, #ARGV, 3 do redis.call('ZADD', ARGV[i], ARGV[i + 1], ARGV[i + 2]) end"
    first = 1 << 40  # beyond what INCR counts to: ids stay different
    for chunk in chunks:
        *keys, seconds = chunk.columns
        texts = [bytes(column.data) for column in keys]
        for lo in range(0, chunk.times.size, n_events):
            words: list[bytes] = []
            for i in range(lo, min(lo + n_events, chunk.times.size)):
                member = b"%d:%d" % (first + i, seconds[i])
                for text, column in zip(texts, keys, strict=True):
                    at = column.offsets
                    words += (text[at[i] : at[i + 1]], b"%d" % chunk.times[i], member)
            yield load.redis_command(b"EVAL", script, b"0", *words)
        first += chunk.times.size


def load_script(peer: Peer) -> bytes:
    """The SHA-1 that EVALSHA calls velocity.lua by."""
    load.run_redis(peer.target, [load.redis_command(b"SCRIPT", b"LOAD", LUA)], count=1)
    return hashlib.sha1(LUA, usedforsecurity=False).hexdigest().encode()
