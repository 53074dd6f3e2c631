"""What does the transport cost? Each call of the store beside servers that do nothing, and beside Redis.

Measured: with the server bound to one core and the load generator (benches/load) to another, everything in
one run and in turns:

    calls         GetFeatures and Observe (three entities, 30 values): one after the other; at most, in a
                  closed loop; in an open loop at half of that most, latency counted from when a call was due
    background    the latter while events are ingested and checkpoints written, beside null nghttp2 at the
                  same rate on the core of the same busy store
    python        GetFeatures one after the other from a grpcio client: to an idle server, and while the
                  generator sends others' calls, at shares of what the store over grpcio answers at most
    loops         GetFeatures over one loop thread and over two, on the same core: CPU per call
    ingest        columns on an IngestStream with group durability, in events a second

The peers answer the bytes of a real reply at once: null grpcio (the store's own settings), null gRPC C++ and
null nghttp2. Redis does a GET of as many bytes, and a script with the same windows over sorted sets; it has a
connection for each call under way. What a peer needs and this machine lacks is left out, and said. Server CPU
is that of its process, from the kernel: clients cannot blur it. Not measured: a network, TLS; in `ingest`
neither what a host takes to give a virtual machine memory that it never touched before (see bench_events).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches import load, native, peers, process, requests, workload
from benches.load import EventTimes
from benches.process import CLIENT, INGEST_STREAM, NULL, READ, SERVER, bound_to, cpu_s, running
from featurestore.client import AdminClient
from featurestore.v1 import feature_store_service_pb2 as pb

OBSERVE = "/featurestore.v1.FeatureStoreService/Observe"
CONNECTIONS, STREAMS = 8, 8
CHECKPOINT_EVERY_S = 0.5
OTHERS = (0.5, 0.8, 0.95)  # their calls, of the most that the store over grpcio answers
TIMEOUT_S = 60.0
GROWTH_BYTES = 1 << 30  # more than a store and its journal grow by in a turn
LEAST_RATE = 100.0  # so that some calls are due, however slow the machine is

Found = Callable[[str], None]
Size = Callable[[float, float], float]


@dataclass
class Subject:
    """One kind of call to one server, and what was found of it, a number a round."""

    name: str
    pid: int
    target: str
    path: str  # none of Redis
    messages: list[bytes]
    times: EventTimes | None = None
    found: dict[str, list[float]] = field(default_factory=dict)

    def note(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.found.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        return median(self.found[name])

    def text(self, *names: str) -> str:
        """Latencies in microseconds: p50 61 us, p99 88 us."""
        return ", ".join(f"{name.rpartition(' ')[2]} {self.median(name):,.0f} us" for name in names)

    def ratio(self, name: str, other: Subject) -> float:
        """Of the two in the same round."""
        return median(a / b for a, b in zip(self.found[name], other.found[name], strict=True))

    def call(self, *, connections: int = 1, streams: int = 1, **how: Any) -> dict[str, Any]:
        """What is not answered by the end, where others have the core, counts in the latency as long as it
        waited: no bench fails by the clock.
        """
        how["timeout_s"] = TIMEOUT_S
        if self.path:
            result = load.run(
                self.target, self.path, self.messages, times=self.times, connections=connections,
                streams=streams, cpus=CLIENT, **how,
            )  # fmt: skip
        else:
            result = load.run_redis(
                self.target, self.messages, connections=connections * streams, cpus=CLIENT, **how
            )
        assert set(result["statuses"]) <= {"OK", "UNANSWERED", "TIMEOUT"}, (self.name, result["failures"])
        return result


@dataclass
class House:
    """Every server there is, and the messages that they are asked."""

    n_keys: int
    reads: list[bytes]
    observes: list[bytes]
    observe_times: EventTimes
    ingests: list[bytes]
    ingest_times: EventTimes
    n_batch: int
    reply: bytes = b""
    checksum: int = 0  # of the replies to all reads, as the stores were filled: the same over each transport
    stores: dict[str, process.Served] = field(default_factory=dict)
    subjects: dict[str, Subject] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)

    def go_on(self) -> None:
        """Events of all kinds go on from the latest time that any of them has."""
        latest = max(self.observe_times.moved_ms, self.ingest_times.moved_ms)
        self.observe_times.moved_ms = self.ingest_times.moved_ms = latest

    def fresh(self, name: str) -> Subject | None:
        """One of which nothing was found yet."""
        return replace(self.subjects[name], found={}) if name in self.subjects else None

    def of(self, kind: str) -> list[Subject]:
        null = ["null grpcio", "null gRPC C++", "null nghttp2"]
        names = (
            [*null, "Redis GET", "Redis script, read"] if kind == "GetFeatures" else ["Redis script, event"]
        )
        names += [f"{kind} over {transport}" for transport in self.stores]
        return [one for one in map(self.fresh, names) if one is not None]


@pytest.fixture(scope="module")
def house(size: Size, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    n_keys, n_batch = int(size(500, 200_000)), int(size(256, 8_192))
    try:
        load.generator()
    except native.NotInstalled as lacking:
        pytest.skip(str(lacking))
    observes, observe_times = requests.observes(int(size(200, 50_000)), n_keys, seed=5)
    ingests = requests.ingests(int(size(16, 64)), n_batch, n_keys, seed=4)
    made = House(
        n_keys, requests.reads(int(size(100, 20_000)), n_keys, seed=3), observes, observe_times, ingests,
        requests.ingest_times(ingests, n_batch), n_batch,
    )  # fmt: skip
    with bound_to(CLIENT), ExitStack() as stack:
        start_all(made, stack, tmp_path_factory.mktemp("transport"))
        yield made


def start_all(house: House, stack: ExitStack, directory: Path) -> None:
    def add(name: str, *how: Any) -> None:
        house.subjects[name] = Subject(name, *how)

    for transport in process.transports():
        with bound_to(SERVER):
            where = stack.enter_context(process.served(directory / transport, transport, house.n_keys))
        house.stores[transport] = where
        add(f"GetFeatures over {transport}", where.pid, where.target, READ, house.reads)
        add(
            f"Observe over {transport}", where.pid, where.target, OBSERVE, house.observes,
            house.observe_times,
        )  # fmt: skip
    readers = [one for one in house.subjects.values() if one.path == READ]
    passes = [one.call(count=len(house.reads), connections=2, streams=4) for one in readers]
    (house.checksum,) = {each["checksum"] for each in passes}
    house.reply = one_reply(next(iter(house.stores.values())).target, READ, house.reads[0])
    with bound_to(SERVER):
        remote = stack.enter_context(running(process.serve_null, house.reply))
        add("null grpcio", remote.pid, remote.ask("target"), NULL, house.reads)
        for name, start in (
            ("null gRPC C++", partial(peers.null_grpc, READ, house.reply)),
            ("null nghttp2", partial(peers.null_nghttp2, house.reply)),
        ):
            try:
                peer = stack.enter_context(start())
            except native.NotInstalled as lacking:
                house.lacking.append(f"{name} is left out: {lacking}")
            else:
                add(name, peer.pid, peer.target, READ, house.reads)
        try:
            redis = stack.enter_context(peers.redis(directory))
        except native.NotInstalled as lacking:
            house.lacking.append(f"Redis is left out: {lacking}")
        else:
            add_redis(house, redis)


def add_redis(house: House, redis: peers.Peer) -> None:
    """As many bytes as a reply under one key, and the events that the stores were filled with."""

    def add(name: str, commands: list[bytes]) -> None:
        house.subjects[name] = Subject(name, redis.pid, redis.target, "", commands)

    script = peers.load_script(redis)
    load.run_redis(redis.target, [load.redis_command(b"SET", b"reply", house.reply)], count=1)
    filling = list(peers.filling(workload.first_events(house.n_keys, len(workload.ENTITIES), 3, seed=1)))
    load.run_redis(redis.target, filling, count=len(filling), timeout_s=60.0)
    now = str(workload.START_MS).encode()
    reads, events = [], []
    for message in house.reads:
        keys = [part.text.encode() for part in pb.GetFeaturesRequest.FromString(message).key_sets[0].parts]
        reads.append(load.redis_command(b"EVALSHA", script, b"3", *keys, now))
    for message in house.observes:
        event = pb.ObserveRequest.FromString(message).event
        *keys, seconds = event.fields
        words = [*(key.text.encode() for key in keys), b"%d" % event.time_ms, b"%d" % seconds.number]
        events.append(load.redis_command(b"EVALSHA", script, b"3", *words))
    add("Redis GET", [load.redis_command(b"GET", b"reply")])
    add("Redis script, read", reads)
    add("Redis script, event", events)


def one_reply(target: str, path: str, message: bytes) -> bytes:
    with grpc.insecure_channel(target) as channel:
        return bytes(channel.unary_unary(path)(message))


def table(found: Found, subjects: list[Subject], house: House) -> None:
    for line in house.lacking:
        found(line)
    for one in subjects:
        found(
            f"{one.name}: {one.median('peak'):,.0f} calls/s at most, {one.median('cpu_us'):.1f} us of CPU "
            f"(generator busy {one.median('busy'):.0%}); alone {one.text('p50', 'p99')}; at half of "
            f"the most {one.text('half p50', 'half p99', 'half p99.9')}"
        )


def turns(subjects: list[Subject], n: int) -> list[Subject]:
    """Whoever goes first in one turn goes last in the next."""
    return subjects[:: -1 if n % 2 else 1]


@pytest.mark.parametrize("kind", ["GetFeatures", "Observe"])
def bench_calls(benchmark: BenchmarkFixture, size: Size, found: Found, house: House, kind: str) -> None:
    subjects, seconds, warmup_s = house.of(kind), size(0.1, 2.0), size(0.02, 0.3)
    if kind == "Observe":
        subjects += [subject for subject in house.of("GetFeatures") if " over " in subject.name]
    done = 0

    def turn() -> None:
        nonlocal done
        for one in turns(subjects, done):
            house.go_on()
            alone = one.call(seconds=seconds, warmup_s=warmup_s)["latency_us"]
            house.go_on()
            before = cpu_s(one.pid)
            most = one.call(seconds=seconds, connections=CONNECTIONS, streams=STREAMS, warmup_s=warmup_s)
            cpu_us = (cpu_s(one.pid) - before) / (most["calls"] + most["warmup_calls"]) * 1e6
            house.go_on()
            half = one.call(
                seconds=seconds, connections=CONNECTIONS, streams=STREAMS, warmup_s=warmup_s,
                rate=max(most["calls_per_s"] / 2, LEAST_RATE),
            )["latency_us"]  # fmt: skip
            one.note(
                {"peak": most["calls_per_s"], "cpu_us": cpu_us, "busy": most["busy"], **alone}
                | {f"half {name}": value for name, value in half.items()}
            )
        done += 1

    benchmark.pedantic(turn, rounds=int(size(1, 5)))
    table(found, subjects, house)
    ours = [each for each in subjects if each.name.startswith(f"{kind} over ")]
    for one in ours:
        ratios = [
            f"{one.ratio('peak', other):.2f}x the calls of {other.name}, {one.ratio('p50', other):.2f}x its "
            f"p50, {one.ratio('p99', other):.2f}x its p99"
            for other in subjects
            if other not in ours
        ]
        found(f"{one.name}: {'; '.join(ratios)}")
        benchmark.extra_info[one.name] = {name: one.median(name) for name in one.found}
    found(f"checksum {house.checksum:08x}")


def bench_background(benchmark: BenchmarkFixture, size: Size, found: Found, house: House) -> None:
    """The null server stands on the core of the same busy store, and is called at the same rate."""
    null = "null nghttp2" if "null nghttp2" in house.subjects else "null grpcio"
    seconds, warmup_s, events_per_s = size(0.2, 4.0), size(0.05, 0.5), size(5_000, 100_000)
    done = 0
    pairs = {
        transport: [one for one in map(house.fresh, (f"GetFeatures over {transport}", null)) if one]
        for transport in house.stores
    }
    counts = dict.fromkeys(house.stores, 0)
    rates: dict[str, list[float]] = {transport: [] for transport in house.stores}

    def turn() -> None:
        nonlocal done
        for transport, pair in pairs.items():
            house.go_on()  # the more events a key has, the longer takes a read: the most is found anew
            most = pair[0].call(
                seconds=seconds / 2, connections=CONNECTIONS, streams=STREAMS, warmup_s=warmup_s
            )
            rate = max(most["calls_per_s"] / 2, LEAST_RATE)
            rates[transport].append(rate)
            for one in turns(pair, done):
                house.go_on()
                with busy(house, transport, events_per_s, seconds + 2 * warmup_s) as written:
                    calls = one.call(
                        seconds=seconds, warmup_s=warmup_s, rate=rate, connections=CONNECTIONS,
                        streams=STREAMS,
                    )  # fmt: skip
                counts[transport] += len(written)
                one.note(calls["latency_us"])
        done += 1

    benchmark.pedantic(turn, rounds=int(size(1, 5)))
    shown = ("p50", "p99", "p99.9", "max")
    for transport, (one, other) in pairs.items():
        found(
            f"GetFeatures over {transport} at {median(rates[transport]):,.0f} calls/s, with "
            f"{events_per_s:,.0f} events/s and {counts[transport]} checkpoints: {one.text(*shown)}; "
            f"{null} beside it {other.text(*shown)}; p99.9 is {one.ratio('p99.9', other):.2f}x"
        )
        benchmark.extra_info[transport] = {"p99.9": one.median("p99.9"), "ratio": one.ratio("p99.9", other)}
    found(f"checksum {house.checksum:08x}")


@contextmanager
def busy(house: House, transport: str, events_per_s: float, seconds: float) -> Iterator[list[int]]:
    """Events at this rate and checkpoints, for so long; the positions of the checkpoints."""
    written: list[int] = []
    failed: list[BaseException] = []
    store = house.stores[transport]

    def ingest() -> None:
        try:
            result = load.run(
                store.target, INGEST_STREAM, house.ingests, window=process.WINDOW, times=house.ingest_times,
                rate=events_per_s / house.n_batch, seconds=seconds, timeout_s=TIMEOUT_S, cpus=CLIENT,
                niceness=10,
            )  # fmt: skip
            assert set(result["statuses"]) <= {"OK", "UNANSWERED", "TIMEOUT"}, result["failures"]
        except BaseException as error:
            failed.append(error)

    def write() -> None:
        with AdminClient(store.admin) as admin:
            while thread.is_alive():
                written.append(admin.checkpoint().position)
                thread.join(CHECKPOINT_EVERY_S)

    thread = threading.Thread(target=ingest)
    writer = threading.Thread(target=write)
    thread.start()
    writer.start()
    try:
        yield written
    finally:
        thread.join()
        writer.join()
    if failed:
        raise failed[0]


def bench_python_client(benchmark: BenchmarkFixture, size: Size, found: Found, house: House) -> None:
    """Others' calls come at the same rate to each server. The generator shares the client's core, and gives
    way to it.
    """
    names = ["null grpcio", "null gRPC C++", "null nghttp2", *(f"GetFeatures over {t}" for t in house.stores)]
    subjects = [one for one in map(house.fresh, names) if one is not None]
    seconds, lead_s = size(0.1, 2.0), size(0.02, 0.2)
    grpcio = next(one for one in subjects if one.name == "GetFeatures over grpcio")
    others = {"connections": CONNECTIONS, "streams": STREAMS, "niceness": 10}
    most = grpcio.call(seconds=seconds, warmup_s=lead_s, **others)
    rates = {f"{share:.0%}": max(most["calls_per_s"] * share, LEAST_RATE) for share in OTHERS}
    done = 0
    with running(process.load, 1) as client, ThreadPoolExecutor(1) as pool:

        def ask(one: Subject, beside: str) -> None:
            calls = client.ask("call", one.target, one.path, one.messages, seconds)
            p50, p99 = np.quantile(calls.latencies_s, [0.5, 0.99]) * 1e6
            one.note({f"{beside} p50": float(p50), f"{beside} p99": float(p99)})

        def turn() -> None:
            nonlocal done
            for one in turns(subjects, done):
                ask(one, "idle")
                for beside, rate in rates.items():
                    sent = pool.submit(one.call, rate=rate, seconds=seconds + 2 * lead_s, **others)
                    time.sleep(lead_s)
                    ask(one, beside)
                    sent.result()
            done += 1

        turn()  # connects
        for each in subjects:
            each.found.clear()
        benchmark.pedantic(turn, rounds=int(size(1, 5)))
    for beside in ("idle", *rates):
        for one in subjects:
            found(
                f"from Python, others {beside} ({rates.get(beside, 0.0):,.0f} calls/s), {one.name}: "
                f"{one.text(f'{beside} p50', f'{beside} p99')}; "
                f"{one.ratio(f'{beside} p99', grpcio):.2f}x the p99 of the store over grpcio"
            )
    for one in subjects:
        benchmark.extra_info[one.name] = {name: one.median(name) for name in one.found}
    found(f"checksum {house.checksum:08x}")


def bench_ingest_stream(benchmark: BenchmarkFixture, size: Size, found: Found, house: House) -> None:
    seconds, warmup_s = size(0.2, 4.0), size(0.02, 0.5)
    subjects = {
        name: Subject(name, at.pid, at.target, INGEST_STREAM, house.ingests, house.ingest_times)
        for name, at in house.stores.items()
    }
    done = 0

    def turn() -> None:
        nonlocal done
        for one in turns(list(subjects.values()), done):
            house.go_on()
            process.touch(int(size(1 << 20, GROWTH_BYTES)))
            before = cpu_s(one.pid)
            result = one.call(window=process.WINDOW, seconds=seconds, warmup_s=warmup_s)
            n_events = (result["calls"] + result["warmup_calls"]) * house.n_batch
            events_per_s = result["calls_per_s"] * house.n_batch
            cpu_ns = (cpu_s(one.pid) - before) / n_events * 1e9
            one.note({"events_per_s": events_per_s, "cpu_ns": cpu_ns, **result["latency_us"]})
        done += 1

    benchmark.pedantic(turn, rounds=int(size(1, 5)))
    for transport, one in subjects.items():
        found(
            f"IngestStream over {transport}: {one.median('events_per_s') / 1e6:.2f} M events/s, durable, at "
            f"{one.median('cpu_ns'):.0f} ns of CPU; a batch of {house.n_batch} {one.text('p50', 'p99')}"
        )
        benchmark.extra_info[transport] = {"events_per_s": one.median("events_per_s")}
    found(f"checksum {house.checksum:08x}")


def bench_loops(benchmark: BenchmarkFixture, size: Size, found: Found, house: House, tmp_path: Path) -> None:
    """At the same rate, half of what one loop can: at its most a loop saves calls to the system that it has
    to make when less is due.
    """
    if "native" not in house.stores:
        pytest.skip("the native transport was not built")
    seconds, warmup_s = size(0.1, 2.0), size(0.02, 0.3)
    subjects = {}
    with ExitStack() as stack:
        for n in (1, 2):
            with bound_to(SERVER):
                where = stack.enter_context(
                    process.served(tmp_path / str(n), "native", house.n_keys, "--loop-threads", str(n))
                )
            one = Subject(f"{n} loops", where.pid, where.target, READ, house.reads)
            same = one.call(count=len(house.reads), connections=CONNECTIONS, streams=STREAMS)
            assert same["checksum"] == house.checksum
            subjects[n] = one
        most = subjects[1].call(seconds=seconds, connections=CONNECTIONS, streams=STREAMS, warmup_s=warmup_s)
        rate = max(most["calls_per_s"] / 2, LEAST_RATE)
        done = 0

        def turn() -> None:
            nonlocal done
            for one in turns(list(subjects.values()), done):
                before = cpu_s(one.pid)
                result = one.call(
                    seconds=seconds, connections=CONNECTIONS, streams=STREAMS, warmup_s=warmup_s, rate=rate
                )
                n_calls = result["calls"] + result["warmup_calls"]
                one.note({"cpu_us": (cpu_s(one.pid) - before) / n_calls * 1e6, **result["latency_us"]})
            done += 1

        benchmark.pedantic(turn, rounds=int(size(1, 7)))
    one, two = subjects[1], subjects[2]
    # A tiny run may take less than the kernel's clock shows.
    ratio = two.ratio("cpu_us", one) if min(one.found["cpu_us"]) > 0 else float("nan")
    found(
        f"GetFeatures at {rate:,.0f} calls/s: one loop {one.median('cpu_us'):.1f} us of CPU a call, two "
        f"{two.median('cpu_us'):.1f} us, {ratio:.2f}x; {one.text('p50', 'p99')} and {two.text('p50', 'p99')}"
    )
    benchmark.extra_info["ratio"] = ratio
    found(f"checksum {house.checksum:08x}")
