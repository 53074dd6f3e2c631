"""One checkout's part of bench_against: `python -P checkout.py`, with the checkout's root as PYTHONPATH.

Commands are lines of JSON on standard input, a list each, and each is answered by a line of JSON:

    ["fill", n_keys]         two states, whose keys of each entity have three events each
    ["make", n, uniform]     the next n events, for both
    ["run", state]           feeds them to "plain" or "distinct"; seconds of CPU time
    ["digest"]               of both states
    ["serve", DIR, transport, n_keys]    a server on a store filled so; its address and process, until the end

What it imports from `benches` is the checkout's own: no more than what the oldest one compared with has.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import featurestore
from benches import process, workload
from benches.bench_events import SECRET, distinct_schema
from featurestore.core.state import State


class Checkout:
    def __init__(self, servers: ExitStack) -> None:
        self._servers = servers
        self._states: dict[str, State] = {}
        self._batches: dict[str, Any] = {}
        self._n_made = self._n_keys = 0

    def fill(self, n_keys: int) -> int:
        self._n_keys = n_keys
        self._states = {
            "plain": State(workload.plan(), secret=SECRET),
            "distinct": State(workload.plan(distinct_schema()), secret=SECRET),
        }
        for some in workload.first_events(n_keys, len(workload.ENTITIES), 3, seed=1):
            for state in self._states.values():
                state.observe(some.batch(state.plan))
        return self._states["plain"].position

    def make(self, n: int, uniform: bool) -> int:
        start = self._states["plain"].position
        some = workload.skewed_events(n, self._n_keys, seed=self._n_made, uniform=uniform, start=start)
        self._n_made += 1
        self._batches = {name: some.batch(state.plan) for name, state in self._states.items()}
        process.touch(64 << 20)
        return n

    def run(self, name: str) -> float:
        batch = self._batches.pop(name)
        began = time.thread_time()
        self._states[name].observe(batch)
        seconds = time.thread_time() - began
        if batch.outcomes.any():
            raise RuntimeError("events were not accepted")
        return seconds

    def digest(self) -> list[str]:
        return [state.digest().hex()[:8] for state in self._states.values()]

    def serve(self, directory: str, transport: str, n_keys: int) -> list[Any]:
        served = self._servers.enter_context(process.served(Path(directory), transport, n_keys))
        return [served.target, served.pid]


def main() -> None:
    root = Path(os.environ["PYTHONPATH"])
    if not Path(featurestore.__file__).is_relative_to(root):
        sys.exit(f"{root} is no checkout of featurestore")
    with ExitStack() as servers:
        checkout = Checkout(servers)
        commands = {
            "fill": checkout.fill,
            "make": checkout.make,
            "run": checkout.run,
            "digest": checkout.digest,
            "serve": checkout.serve,
        }
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            print(json.dumps(commands[name](*arguments)), flush=True)


if __name__ == "__main__":
    main()
