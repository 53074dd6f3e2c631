"""What do others notice while somebody attacks? The latency of a right client, calm and beside each attack.

Measured: GetFeatures (three entities, 30 values) in an open loop at a modest rate on one connection, latency
counted from when a call was due. In each round three windows, in turns:

    calm         nobody else is there
    attacked     an attacker does one thing to the same server, at a stated rate, and comes back when it is
                 thrown out (benches/adversary.py says what each does)
    elsewhere    the same attacker does the same to null nghttp2, which has the server's core with it

What counts is the ratio of the 99th percentiles, attacked to calm, of each round: the median of the rounds.
The server is bound to one core; the right client and the attacker share the other, the attacker with the
lowest priority. Its system calls still delay the right client now and then, and the kernel hands what it
writes to the server's socket in its time, not the server's. `elsewhere` is for that: what is as slow there is
not the store's doing. `late`: how long after it was due the right client sent a call, which no server causes.
Where other work goes on beside it, all but the attacker may be put before that: `chrt --fifo 10 pytest …`.

What became of the attacker is told by itself (connections that were ended) and by the server's own counts;
what it cost the server by its memory, before the first attack and after the last one. The right client must
be answered, always, and the memory be back within a fifth.

Over TLS (bench_hellos) the right client is in Python, and connected before the attack: it has the attacker's
address, which gets so many handshakes a second. There is nothing to compare the server with.
Not measured: attackers that fill the network or all of a core, as calls that are right can too.
"""

from __future__ import annotations

import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches import adversary, load, native, peers, process, requests, secure
from benches.process import CLIENT, READ, SERVER, Remote, bound_to, cpu_s, running

STREAMS = 32
TIMEOUT_S = 60.0
CONNECTIONS = ("refused", "evicted", "calmed", "stalled", "slow", "broken")
HANDSHAKES = ("failed", "delayed", "refused")
METRICS = ("--metrics-listen", "localhost:0")
BACK_S = 10.0  # in which memory is given back
SLACK_BYTES = 8 << 20  # of small servers, whose memory is mostly Python's

Found = Callable[[str], None]
Size = Callable[[float, float], float]


@dataclass
class Scene:
    """One server, one attacker, and another server for it to attack."""

    transport: str
    store: process.Served
    null: peers.Peer | None
    attacker: Remote
    reads: list[bytes]
    secured: secure.Connection | None = None  # where it speaks TLS: the right client's, who stays
    checksum: int = 0

    def read(self, **how: Any) -> dict[str, Any]:
        """What a right client sees; how: as `load.run` takes it."""
        if self.secured is not None:
            return secure.run(self.secured, self.reads, **how)
        return load.run(
            self.store.target, READ, self.reads, streams=STREAMS, timeout_s=TIMEOUT_S, cpus=CLIENT, **how
        )

    def pass_over_all(self) -> int:
        """The checksum of the replies to every message once."""
        return int(self.read(count=len(self.reads))["checksum"])

    def resident_bytes(self) -> int:
        return process.resident_bytes(self.store.pid)

    def target_of(self, attack: str) -> str:
        if attack not in adversary.OF_METRICS:
            return self.store.target
        assert self.store.metrics is not None
        return self.store.metrics.split("/")[2]

    def counts(self) -> Counter[str]:
        """What the server has done to connections so far; grpcio does not tell."""
        assert self.store.metrics is not None
        with urllib.request.urlopen(self.store.metrics, timeout=TIMEOUT_S) as reply:  # noqa: S310  our own
            lines = [line for line in reply.read().decode().splitlines() if line[0] != "#"]
        told = dict(line.removeprefix("featurestore_").rsplit(" ", 1) for line in lines)
        names = {f"connections_{name}_total": name for name in CONNECTIONS} | {
            "stream_resets_total": "resets",
            "streams_reset_total": "streams reset",
            "calls_turned_away_total": "turned away",
        }
        names |= {f"tls_handshakes_{what}_total": f"handshakes {what}" for what in HANDSHAKES}
        return Counter({name: int(float(told[key])) for key, name in names.items() if key in told})


@dataclass
class Window:
    """What was seen in one: latencies in microseconds, the server's share of its core."""

    latency_us: dict[str, float]
    late_us: float
    server: float
    not_ok: int


@pytest.fixture(scope="module", params=["native", "grpcio"])
def scene(
    request: pytest.FixtureRequest, size: Size, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    if request.param not in process.transports():
        pytest.skip(f"the transport {request.param} was not built")
    n_keys = int(size(500, 200_000))
    reads = requests.reads(int(size(100, 20_000)), n_keys, seed=3)
    with bound_to(CLIENT), ExitStack() as stack:
        with bound_to(SERVER):
            try:
                load.generator()
                null = stack.enter_context(peers.null_nghttp2(bytes(200)))
            except native.NotInstalled as lacking:
                pytest.skip(str(lacking))
            directory = tmp_path_factory.mktemp("attacked")
            served = process.served(directory, request.param, n_keys, *METRICS)
            store = stack.enter_context(served)
        attacker = stack.enter_context(running(adversary.serve, reads[:100]))
        made = Scene(request.param, store, null, attacker, reads)
        made.checksum = made.pass_over_all()
        yield made


@pytest.fixture(scope="module", params=["native", "grpcio"])
def secured(
    request: pytest.FixtureRequest, size: Size, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    if request.param not in process.transports():
        pytest.skip(f"the transport {request.param} was not built")
    n_keys = int(size(500, 200_000))
    reads = requests.reads(int(size(100, 2_000)), n_keys, seed=3)
    directory = tmp_path_factory.mktemp("secured")
    try:
        paper = secure.paper(directory)
    except FileNotFoundError:
        pytest.skip("needs the openssl command to make a certificate")
    flags = ["--tls-cert", str(paper.certificate), "--tls-key", str(paper.key)]
    with bound_to(CLIENT), ExitStack() as stack:
        with bound_to(SERVER):
            store = stack.enter_context(
                process.served(directory / "store", request.param, n_keys, *flags, *METRICS)
            )
        attacker = stack.enter_context(running(adversary.serve, reads[:100]))
        client = secure.Connection(store.target, paper.certificate, READ, TIMEOUT_S)
        stack.callback(client.close)
        made = Scene(request.param, store, None, attacker, reads, client)
        made.checksum = made.pass_over_all()
        yield made


def window(scene: Scene, rate: float, seconds: float, warmup_s: float) -> Window:
    cpu_before, began = cpu_s(scene.store.pid), time.monotonic()
    result = scene.read(rate=rate, seconds=seconds, warmup_s=warmup_s)
    share = (cpu_s(scene.store.pid) - cpu_before) / (time.monotonic() - began)
    not_ok = sum(n for status, n in result["statuses"].items() if status != "OK")
    return Window(result["latency_us"], result["lag_us"]["p99"], share, not_ok)


@pytest.mark.parametrize("name", adversary.ATTACKS)
def bench_attack(benchmark: BenchmarkFixture, size: Size, found: Found, scene: Scene, name: str) -> None:
    measure(benchmark, size, found, scene, name=name, rate=size(200.0, 2_000.0))


@pytest.mark.parametrize("name", adversary.SECURED)
def bench_hellos(benchmark: BenchmarkFixture, size: Size, found: Found, secured: Scene, name: str) -> None:
    measure(benchmark, size, found, secured, name=name, rate=size(100.0, 300.0))


def measure(
    benchmark: BenchmarkFixture, size: Size, found: Found, scene: Scene, *, name: str, rate: float
) -> None:
    seconds, warmup_s = size(0.1, 1.5), size(0.05, 0.3)
    lead_s = size(0.02, 0.2)  # the attack has begun when the right client does, and goes on after it
    damage: list[dict[str, Any]] = []
    counted: Counter[str] = Counter()

    def beside(target: str) -> tuple[Window, dict[str, Any]]:
        scene.attacker.start("attack", target, name, warmup_s + seconds + 2 * lead_s)
        time.sleep(lead_s)
        seen = window(scene, rate, seconds, warmup_s)
        return seen, scene.attacker.result()

    def attacked() -> Window:
        before = scene.counts()
        seen, done = beside(scene.target_of(name))
        damage.append(done)
        counted.update(scene.counts() - before)
        return seen

    takes: dict[str, Callable[[], Window]] = {
        "calm": lambda: window(scene, rate, seconds, warmup_s),
        "attacked": attacked,
    }
    if scene.null is not None:
        target = scene.null.target
        takes["elsewhere"] = lambda: beside(target)[0]
    windows: dict[str, list[Window]] = {kind: [] for kind in takes}
    before = scene.resident_bytes()

    def turn() -> None:
        for kind in list(takes)[:: -1 if len(damage) % 2 else 1]:
            windows[kind].append(takes[kind]())

    benchmark.pedantic(turn, rounds=int(size(1, 5)))
    assert scene.pass_over_all() == scene.checksum, "afterwards it answers as before"
    most = max(before * 1.2, before + SLACK_BYTES)
    given_back_by = time.monotonic() + BACK_S
    while (after := scene.resident_bytes()) > most and time.monotonic() < given_back_by:
        time.sleep(0.1)
    found(
        f"{scene.transport}, {name}: {told(windows, damage, counted)}; memory {before / 1e6:,.0f} → "
        f"{after / 1e6:,.0f} MB"
    )
    if scene.transport == "native":  # grpcio knows no shares
        assert not sum(one.not_ok for one in windows["attacked"]), "the right client is answered"
    benchmark.extra_info["p99 ratio"] = ratio(windows, "attacked", "p99")
    found(f"checksum {scene.checksum:08x}")


def ratio(windows: dict[str, list[Window]], kind: str, percentile: str) -> float:
    """To the calm window of the same round."""
    pairs = zip(windows[kind], windows["calm"], strict=True)
    return median(one.latency_us[percentile] / calm.latency_us[percentile] for one, calm in pairs)


def told(windows: dict[str, list[Window]], damage: list[dict[str, Any]], counted: Counter[str]) -> str:
    def us(kind: str, percentile: str) -> str:
        return f"{median(one.latency_us[percentile] for one in windows[kind]):,.0f}"

    def ratios(kind: str) -> str:
        return f"{ratio(windows, kind, 'p99'):.2f}x (p99.9 {ratio(windows, kind, 'p99.9'):.2f}x)"

    def of_all(key: str) -> float:
        return sum(each[key] for each in damage)

    late = " → ".join(f"{median(one.late_us for one in windows[kind]):,.0f}" for kind in ("calm", "attacked"))
    share = " → ".join(f"{median(one.server for one in windows[kind]):.0%}" for kind in ("calm", "attacked"))
    ends = ", ".join(f"{n:,} {what}" for what, n in counted.items() if n) or "none of them counted"
    seconds, first = of_all("seconds"), damage[0]
    elsewhere = f"; elsewhere {ratios('elsewhere')}" if "elsewhere" in windows else ""
    lines = [
        f"p99 {us('calm', 'p99')} → {us('attacked', 'p99')} us, {ratios('attacked')}{elsewhere}",
        f"late p99 {late} us",
        f"server busy {share}",
        f"attacker: {of_all('sent') / seconds:,.0f} of {first['aimed_per_s']:,.0f} {first['unit']}/s, "
        f"{of_all('bytes_out') / seconds / 1e6:.2f} MB/s out and "
        f"{of_all('bytes_in') / seconds / 1e6:.2f} in, {of_all('cpu_s') / seconds:.0%} of its core; "
        f"{of_all('opened'):,.0f} connections, {of_all('ended'):,.0f} ended; the server counts: {ends}",
    ]
    n_not_ok = sum(one.not_ok for one in windows["attacked"])
    if n_not_ok:
        lines.append(f"{n_not_ok} calls of the right client were not answered OK")
    return "; ".join(lines)
