"""How much of what grpcio can do at all does GetFeatures keep?

Measured: unary calls a second of the whole store (three entities, 30 values, skewed keys) and of a handler
that answers any bytes with a reply of the same length at once, on grpcio servers with the same settings,
each in a process of its own, under the same client processes, in turns. Both as throughput (clients and
server share the machine's cores) and as the server's own CPU time per call, which clients cannot blur. Not
measured: a compiled client, a network.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from pytest_benchmark.fixture import BenchmarkFixture

from benches import process, requests
from benches.process import Calls, Remote, running

N_CLIENTS = 2
THREADS_PER_CLIENT = 4


def calls(clients: list[Remote], target: str, method: str, messages: list[bytes], seconds: float) -> Calls:
    for client in clients:
        client.start("call", target, method, messages, seconds)
    done: list[Calls] = [client.result() for client in clients]
    return Calls(
        sum(each.n for each in done),
        [s for each in done for s in each.latencies_s],
        sum(each.checksum for each in done) & 0xFFFFFFFF,
    )


def bench_get_features(
    benchmark: BenchmarkFixture,
    size: Callable[[float, float], float],
    found: Callable[[str], None],
    tmp_path: Path,
) -> None:
    n_keys, seconds = int(size(500, 500_000)), size(0.1, 2.0)
    messages = requests.reads(int(size(50, 5_000)), n_keys, seed=3)
    rates: dict[str, list[float]] = {"store": [], "null": []}
    cpu_us: dict[str, list[float]] = {"store": [], "null": []}
    checksum = 0
    with ExitStack() as stack:
        store = stack.enter_context(running(process.serve_store, tmp_path / "store", "process", n_keys))
        clients = [stack.enter_context(running(process.load, THREADS_PER_CLIENT)) for _ in range(N_CLIENTS)]
        target = store.ask("target")
        reply = b"\0" * store.ask("reply_bytes", messages[0])
        null = stack.enter_context(running(process.serve_null, reply))
        both = {"store": (store, target, process.READ), "null": (null, null.ask("target"), process.NULL)}

        def turn() -> None:
            nonlocal checksum
            first = len(rates["null"]) % 2  # whoever goes first in one turn goes last in the next
            for name, (server, where, method) in list(both.items())[:: -1 if first else 1]:
                before = server.ask("cpu_s")
                done = calls(clients, where, method, messages, seconds)
                cpu_us[name].append((server.ask("cpu_s") - before) / done.n * 1e6)
                rates[name].append(done.n / seconds)
                if name == "store":
                    checksum = done.checksum

        turn()  # connects, fills caches
        for lists in (rates, cpu_us):
            for each in lists.values():
                each.clear()
        benchmark.pedantic(turn, rounds=int(size(1, 7)))
    throughput = median(a / b for a, b in zip(rates["store"], rates["null"], strict=True))
    cpu = median(b / a for a, b in zip(cpu_us["store"], cpu_us["null"], strict=True))
    benchmark.extra_info.update(throughput_of_null=throughput, cpu_of_null=cpu)
    found(
        f"{throughput:.0%} of the null handler's throughput ({median(rates['store']):.0f} of "
        f"{median(rates['null']):.0f} calls/s); server CPU {median(cpu_us['store']):.1f} and "
        f"{median(cpu_us['null']):.1f} us per call, that is {cpu:.0%}; checksum {checksum:08x}"
    )
