"""What does a change cost? This checkout and another one, in turns.

    FEATURESTORE_BENCH_OTHER=../before pytest benches/bench_against.py --headline

The other is a checkout that was built in place (`python setup.py build_ext --inplace`), 0063fa3 or later;
without one this checkout is compared with itself, which says how much is chance. Each runs in a process of
its own, which stays. A turn is a short window of each, and whoever goes first in one goes last in the next,
so that a machine that grows slow slows both. What counts is the median of the ratios of the two in a turn,
beside their quartiles.

Measured: CPU time of State.observe on one thread, an event of three entities with a count and a sum each, and
with a distinct count as well, keys by Zipf and uniform; and of the server's process, all of its threads, per
call (GetFeatures, Observe: one key set or event, 30 values) or batch of an IngestStream, in a closed loop,
with the latency and the calls a second that its client sees. A server that finds more calls at once takes
less time for each, so how many are there together is part of what varies. Not measured: what either does at
its most (bench_events, bench_transport).

The checksum is of the work: digests of this checkout's states, and the replies to every read, which must be
the other's too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches import load, native, process, requests
from benches.bench_transport import INGEST_STREAM, OBSERVE, READ, Subject
from benches.process import CLIENT, SERVER, bound_to

HERE = Path(__file__).resolve().parent.parent
OTHER = Path(os.environ.get("FEATURESTORE_BENCH_OTHER") or HERE).resolve()
STREAMS, CONNECTIONS = 16, 2

Found = Callable[[str], None]
Size = Callable[[float, float], float]


class Checkout:
    """The process that runs a checkout's part (benches/checkout.py)."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child

    def ask(self, *command: Any) -> Any:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(command) + "\n")
        self._child.stdin.flush()
        line = self._child.stdout.readline()
        assert line, "it ended; what it said is on standard error"
        return json.loads(line)


@contextmanager
def running(root: Path) -> Iterator[Checkout]:
    environment = os.environ | {"PYTHONPATH": str(root)}  # before whatever is installed
    with bound_to(SERVER):
        child = subprocess.Popen(
            [sys.executable, "-P", str(HERE / "benches/checkout.py")],
            cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
    try:
        yield Checkout(child)
    finally:
        assert child.stdin is not None
        child.stdin.close()
        child.wait(60)


@pytest.fixture
def both(tmp_path: Path) -> Iterator[dict[str, Checkout]]:  # it outlives their servers
    """This one last, since a mapping keeps its order: a turn that is not reversed begins with the other."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(running(root)) for name, root in (("other", OTHER), ("this", HERE))}


class Ratios:
    """this / other, of one quantity, a number a turn."""

    def __init__(self) -> None:
        self._each: list[float] = []

    def note(self, turn: dict[str, float]) -> None:
        self._each.append(turn["this"] / turn["other"])

    @property
    def quartiles(self) -> list[float]:
        return quantiles(self._each, n=4)

    def __str__(self) -> str:
        low, middle, high = self.quartiles
        return f"{middle:.3f} ({low:.3f} to {high:.3f}, {len(self._each)} turns)"


def in_turns(n: int, checkouts: Iterable[str]) -> Iterator[list[str]]:
    for turn in range(n):
        yield list(checkouts)[:: -1 if turn % 2 else 1]


@pytest.mark.parametrize("keys", ["skewed", "uniform"])
def bench_events(
    benchmark: BenchmarkFixture, size: Size, found: Found, both: dict[str, Checkout], keys: str
) -> None:
    n_events, n_warm = int(size(1_000, 65_536)), int(size(1, 5))
    kinds = {"plain": Ratios(), "distinct": Ratios()}
    for checkout in both.values():
        checkout.ask("fill", int(size(1_000, 300_000)))

    def turns(n: int, *, counted: bool) -> None:
        for order in in_turns(n, both):
            for name in order:
                both[name].ask("make", n_events, keys == "uniform")
            for kind, ratios in kinds.items():
                seconds = {name: both[name].ask("run", kind) for name in order}
                if counted:
                    ratios.note(seconds)

    turns(n_warm, counted=False)
    benchmark.pedantic(turns, (int(size(2, 200)),), {"counted": True})
    found("CPU time of events, this to the other: " + ", ".join(f"{kind} {r}" for kind, r in kinds.items()))
    benchmark.extra_info.update({kind: ratios.quartiles for kind, ratios in kinds.items()})
    found(f"checksum {' '.join(both['this'].ask('digest'))}")


def cpu_ns(pid: int) -> int:
    """Of all threads: /proc/PID/stat has only hundredths of a second."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


KINDS = ("GetFeatures", "Observe", "IngestStream")


@pytest.fixture(params=["native", "grpcio"])
def subjects(
    request: pytest.FixtureRequest, size: Size, both: dict[str, Checkout], tmp_path: Path
) -> dict[str, dict[str, Subject]]:
    """By checkout and kind: calls of a server of each, on a store of its own with the same events."""
    if request.param not in process.transports():
        pytest.skip(f"the transport {request.param} was not built")
    try:
        load.generator()
    except native.NotInstalled as lacking:
        pytest.skip(str(lacking))
    n_keys, n_batch = int(size(500, 100_000)), int(size(256, 8_192))
    reads = requests.reads(int(size(100, 20_000)), n_keys, seed=3)
    made = {}
    for name, checkout in both.items():
        target, pid = checkout.ask("serve", str(tmp_path / name), request.param, n_keys)
        observes, observe_times = requests.observes(int(size(200, 20_000)), n_keys, seed=5)
        ingests = requests.ingests(int(size(8, 32)), n_batch, n_keys, seed=4)
        times = requests.ingest_times(ingests, n_batch)
        made[name] = {
            "GetFeatures": Subject(name, pid, target, READ, reads),
            "Observe": Subject(name, pid, target, OBSERVE, observes, observe_times),
            "IngestStream": Subject(name, pid, target, INGEST_STREAM, ingests, times),
        }
    return made


def go_on(of_checkout: dict[str, Subject]) -> None:
    """Events of both kinds go on from the latest time that either has."""
    moved = [subject.times for subject in of_checkout.values() if subject.times is not None]
    for each in moved:
        each.moved_ms = max(one.moved_ms for one in moved)


def window(subject: Subject, seconds: float) -> dict[str, float]:
    before = cpu_ns(subject.pid)
    if subject.path == INGEST_STREAM:
        result = subject.call(window=process.WINDOW, seconds=2 * seconds)
    else:
        result = subject.call(seconds=seconds, connections=CONNECTIONS, streams=STREAMS)
    used = (cpu_ns(subject.pid) - before) / result["calls"]
    return {"CPU": used, "p50": result["latency_us"]["p50"], "calls/s": result["calls_per_s"]}


@pytest.mark.parametrize("kind", KINDS)
def bench_calls(
    benchmark: BenchmarkFixture, size: Size, found: Found, subjects: dict[str, dict[str, Subject]], kind: str
) -> None:
    seconds = size(0.05, 0.3)
    ratios = {what: Ratios() for what in ("CPU", "p50", "calls/s")}

    def turns(n: int, *, counted: bool) -> None:
        for order in in_turns(n, subjects):
            seen = {}
            for name in order:
                go_on(subjects[name])
                seen[name] = window(subjects[name][kind], seconds)
            for what, each in ratios.items():
                if counted:
                    each.note({name: values[what] for name, values in seen.items()})

    with bound_to(CLIENT):
        reads = [each["GetFeatures"] for each in subjects.values()]
        (checksum,) = {
            each.call(count=len(each.messages), connections=2, streams=4)["checksum"] for each in reads
        }
        turns(int(size(1, 3)), counted=False)
        benchmark.pedantic(turns, (int(size(2, 100)),), {"counted": True})
    found("this to the other: " + ", ".join(f"{what} {each}" for what, each in ratios.items()))
    benchmark.extra_info.update({what: each.quartiles for what, each in ratios.items()})
    found(f"checksum {checksum:08x}")
