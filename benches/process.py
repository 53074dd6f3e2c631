"""Processes of their own: a server to be measured, clients that load it, and what a process costs.

Servers and clients are spawned, never forked, because grpcio's threads do not survive a fork. Each answers
commands on a pipe, so that the bench decides what runs when.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benches import workload
from featurestore.config import Address, Limits, ServeConfig
from featurestore.engine import Engine
from featurestore.server import grpc_front, listener
from featurestore.server.dispatcher import READ as READ_METHOD
from featurestore.server.serve import Server

READ = "/featurestore.v1.FeatureStoreService/GetFeatures"
NULL = "/featurestore.bench.Null/Get"
INGEST = "/featurestore.v1.FeatureStoreService/Ingest"
INGEST_STREAM = "/featurestore.v1.FeatureStoreService/IngestStream"
SCHEMA = "/featurestore.v1.AdminService/GetSchema"
WINDOW = 8  # batches of a stream that may be unanswered
SERVE = [sys.executable, "-m", "featurestore", "serve"]
CORES = sorted(os.sched_getaffinity(0))
SERVER, CLIENT = {CORES[0]}, {CORES[-1]}  # where the bench binds what is measured, and all else
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_spawn = multiprocessing.get_context("spawn")


def resident_bytes(pid: int | str = "self") -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def touch(n_bytes: int) -> None:
    """Takes memory, writes to it and gives it back, before a store grows by as much: the host of a virtual
    machine gives memory at its first touch, and may take longer for that than what is measured.
    """
    np.ones(n_bytes, np.uint8)


@contextmanager
def bound_to(cores: set[int]) -> Iterator[None]:
    """What is started here stays on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


class Remote:
    """The other end of a process that answers commands."""

    def __init__(self, process: Any, pipe: Connection) -> None:
        self._process, self._pipe = process, pipe

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def start(self, *command: Any) -> None:
        self._pipe.send(command)

    def result(self) -> Any:
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ask(self, *command: Any) -> Any:
        self.start(*command)
        return self.result()


@contextmanager
def running(target: Callable[..., None], *arguments: Any) -> Iterator[Remote]:
    """A process that runs target(pipe, *arguments) until it is told to stop."""
    ours, theirs = _spawn.Pipe()
    process = _spawn.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Remote(process, ours)
    finally:
        ours.close()
        process.join(30)
        if process.is_alive():
            process.kill()


def answer(pipe: Connection, commands: dict[str, Callable[..., Any]]) -> None:
    """Carries out commands until the other end hangs up."""
    while True:
        try:
            name, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(commands[name](*arguments))
        except Exception as error:
            pipe.send(error)


# -- servers


def fill(engine: Engine, n_keys: int) -> None:
    """Gives each key of each entity three events."""
    plan = workload.plan()
    for some in workload.first_events(n_keys, len(workload.ENTITIES), 3, seed=1):
        engine.observe(some.batch(plan), wait=False)
    engine.wait(engine.state.position)
    engine.checkpoint()


def serve_store(pipe: Connection, directory: Path, durability: str, n_keys: int) -> None:
    """A store with n_keys keys of each entity, three events each, served on a free port."""
    config = ServeConfig(directory, listen="localhost:0", durability=durability, clock="event")
    with Engine.open(directory, schema=workload.SCHEMA, clock="event", durability=durability) as engine:
        fill(engine, n_keys)
        with Server(engine, config) as server:
            commands = {
                "target": lambda: str(server.address),
                "cpu_s": time.process_time,
                "reply_bytes": lambda message: len(server.dispatcher.call(READ_METHOD, message)),
                "position": lambda: engine.state.position,
                "checkpoint": lambda seconds: checkpoints(engine, seconds),
                "spin": spin,
            }
            answer(pipe, commands)


@cache
def transports() -> tuple[str, ...]:
    """What `featurestore serve --transport` may be in this build; one without that flag has grpcio."""
    done = subprocess.run([*SERVE, "--help"], capture_output=True, text=True, check=True)
    choices = re.search(r"--transport \{([a-z,]+)\}", done.stdout)
    return ("grpcio",) if choices is None else tuple(choices[1].split(","))


@dataclass(frozen=True)
class Served:
    """Where a store that was started as people start it is reached."""

    target: str
    admin: str
    pid: int
    metrics: str | None  # the address that Prometheus asks, if it is served


@contextmanager
def served(directory: Path, transport: str, n_keys: int, *flags: str) -> Iterator[Served]:
    """`featurestore serve` over one of `transports()`, on a store as serve_store has it, with group
    durability; checkpoints only when it is asked. flags: further ones of `serve`.
    """
    with Engine.open(directory, schema=workload.SCHEMA, clock="event", durability="process") as engine:
        fill(engine, n_keys)
    settings = ["--data", str(directory), "--listen", "localhost:0", "--checkpoint-every", "86400s"]
    settings += ["-o", "json", "--log-level", "error", *flags]
    if len(transports()) > 1:
        settings += ["--transport", transport]
    with subprocess.Popen([*SERVE, *settings], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        try:
            ready = json.loads(child.stdout.readline())
            yield Served(ready["listen"], ready["admin"], child.pid, ready.get("metrics"))
        finally:
            child.terminate()
            child.wait(60)


def checkpoints(engine: Engine, seconds: float) -> int:
    """Checkpoints one after the other for so long; their number."""
    end, n = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        engine.checkpoint()
        n += 1
    return n


def spin(seconds: float) -> int:
    """Uses a core for so long, with neither the GIL nor anything of the store's; how often it went round."""
    end, n, data = time.monotonic() + seconds, 0, bytes(8 << 20)
    while time.monotonic() < end:
        zlib.crc32(data)
        n += 1
    return n


def serve_null(pipe: Connection, reply: bytes) -> None:
    """A grpcio server with the store's settings whose one method answers any bytes with the same reply."""
    limits = Limits()
    pool = ThreadPoolExecutor(ServeConfig.read_threads + limits.max_streams)
    server = grpc.server(
        pool, options=grpc_front.options(limits), maximum_concurrent_rpcs=grpc_front.most_calls(limits)
    )
    handlers = {"Get": grpc.unary_unary_rpc_method_handler(lambda message, context: reply)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("featurestore.bench.Null", handlers),)
    )
    server.add_registered_method_handlers("featurestore.bench.Null", handlers)
    address = listener.bind(server, Address("localhost", 0), None, "address")
    server.start()
    answer(pipe, {"target": lambda: str(address), "cpu_s": time.process_time})
    server.stop(0).wait()


# -- clients


@dataclass
class Calls:
    """What one client did: how many calls, their latencies, the sum of its replies' checksums."""

    n: int
    latencies_s: list[float]
    checksum: int


def load(pipe: Connection, n_threads: int) -> None:
    """Unary calls with raw bytes, from n_threads threads, one after the other in each."""
    channels: dict[str, grpc.Channel] = {}

    def call(target: str, method: str, messages: list[bytes], seconds: float) -> Calls:
        if target not in channels:
            channels[target] = grpc.insecure_channel(target)
            grpc.channel_ready_future(channels[target]).result(30)
        stub = channels[target].unary_unary(method)
        end = time.monotonic() + seconds
        each = [Calls(0, [], 0) for _ in range(n_threads)]

        def run(mine: Calls, first: int) -> None:
            at = first
            while (began := time.monotonic()) < end or mine.n == 0:
                reply = stub(messages[at % len(messages)])
                mine.latencies_s.append(time.monotonic() - began)
                mine.n += 1
                at += n_threads
                if mine.n == 1:
                    mine.checksum = zlib.crc32(reply)

        threads = [threading.Thread(target=run, args=(mine, i)) for i, mine in enumerate(each)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Calls(
            sum(mine.n for mine in each),
            [s for mine in each for s in mine.latencies_s],
            sum(mine.checksum for mine in each) & 0xFFFFFFFF,
        )

    answer(pipe, {"call": call})


def feed(pipe: Connection) -> None:
    """One IngestStream at a time, as fast as it is taken, with at most `window` batches unanswered."""
    channels: dict[str, grpc.Channel] = {}

    def stream(
        target: str, messages: list[bytes], seconds: float, window: int, pause_s: float
    ) -> tuple[int, float]:
        if target not in channels:
            channels[target] = grpc.insecure_channel(target)
            grpc.channel_ready_future(channels[target]).result(30)
        room = threading.Semaphore(window)
        began = time.monotonic()

        def requests() -> Iterator[bytes]:
            n = 0
            while time.monotonic() < began + seconds or n == 0:
                room.acquire()
                yield messages[n % len(messages)]
                n += 1
                if pause_s:
                    time.sleep(pause_s)

        n_answered = 0
        for _ in channels[target].stream_stream(INGEST_STREAM)(requests()):
            n_answered += 1
            room.release()
        return n_answered, time.monotonic() - began

    answer(pipe, {"stream": stream})
