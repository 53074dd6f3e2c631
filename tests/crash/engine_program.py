"""A program that works on a whole store and says what it tries and what was acknowledged, for engine_truth.py
to judge.

    python -m crash.engine_program DIRECTORY DURABILITY N_BATCHES

Threads send batches, most of them with a producer and a sequence, some with event ids only; a batch that
failed is sent again, in the same process or after the next start. Meanwhile checkpoints are written, schemas
change and keys are forgotten. What a batch holds follows from its thread and number, so the checker can make
it again.

Lines, on a pipe or standard output and as markers of a trace, each in one write. OP is `b THREAD NUMBER`,
`s VERSION` or `f KEY TRY`:

    plan JSON                          what opening found to be served
    recovered POSITION DIGEST COUNTS   what opening found; COUNTS is JSON, lifetime counts by key
    try OP                             about to be sent
    ack OP POSITION [JSON]             acknowledged; its last position (0: not told), the plan of a schema
    again OP                           acknowledged as a duplicate
    checkpoint POSITION                written, and everything up to there is durable
    failed ERROR                       it gave up: a restart is due
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from reference.timeless import timeless_digest

from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine
from featurestore.errors import FeatureStoreError, LimitError
from featurestore.plan import Plan
from featurestore.schema import compile_schema

from . import shim

T = TypeVar("T")

N_THREADS = 3
N_SHARDS = 4
SEGMENT_BYTES = 16 << 10
START_MS = 1_700_000_000_000
USERS = 5  # few, so that their logs are merged
ACCEPTED, DUPLICATE = 0, 2

SCHEMA = """
version: 1
name: crash
events:
  play:
    time: {{field: ts, unit: ms}}
    lateness: 1h
    fields: {{user: key, track: key, seconds: number}}
  login:
    time: {{field: ts, unit: ms}}
    lateness: 1h
    ids: {{id: login_id, dedupe: 2h}}
    fields: {{login_id: key, user: key}}
views:
  user:
    event: play
    key: user
    exact_events: 8
    features:
    - {{aggregate: count, windows: [60s, 10m, lifetime]}}
    - {{aggregate: sum(seconds), windows: [60s, 10m]}}
  track: {{event: play, key: {{user: user, track: track}}, features: [{{aggregate: count, windows: [60s]}}]}}
  pair:
    event: play
    key: [user, track]
    store: sketch
    epsilon: 0.05
    features: [{{aggregate: count, windows: [60s, 10m]}}, {{aggregate: sum(seconds), windows: [10m]}}]
  login:
    event: login
    key: user
    exact_events: 8
    features: [{{aggregate: count, windows: [10m, lifetime]}}]
  again_{version}:
    event: play
    key: track
    store: sketch
    epsilon: 0.05
    features: [{{aggregate: count, windows: [5m]}}]
  extra_{version}:
    event: play
    key: track
    exact_events: 8
    features: [{{aggregate: mean(seconds), windows: [5m, lifetime]}}]
services:
  counts: [user.count_lifetime, login.count_lifetime]
  all: ["user.*", "track.*", "pair.*", "login.*", "again_{version}.*", "extra_{version}.*"]
"""


def schema_of(version: int) -> str:
    """Every version gives up the view that the one before it added."""
    return SCHEMA.format(version=version)


@functools.cache
def compiled_first() -> Plan:
    return compile_schema(schema_of(1))


def key_of(number: int, i: int) -> str:
    return f"user-{(number * 7 + i) % USERS}"


def ghost_of(thread: int, number: int) -> str | None:
    """A key of this batch alone, to be forgotten once the batch is acknowledged."""
    return f"ghost-{thread}-{number}." if number % 9 == 4 else None


def is_login(number: int) -> bool:
    return number % 4 == 3


def size_of(thread: int, number: int) -> int:
    return 1 + (thread + number) % 4 + (30 if number % 31 == 30 else 0)


def users_of(thread: int, number: int) -> list[str]:
    users = [key_of(number, i) for i in range(size_of(thread, number))]
    ghost = ghost_of(thread, number)
    return [*users[1:], ghost] if ghost else users


def batch_of(plan: Plan, thread: int, number: int) -> EventBatch:
    """Batch `number` of a thread, for the plan being served."""
    n = size_of(thread, number)
    users = users_of(thread, number)
    data: dict[str, list[object]] = {
        "ts": [START_MS + 1000 * number + 10 * i + thread for i in range(n)],
        "user": list(users),
    }
    if is_login(number):
        data["login_id"] = [f"{thread}-{number}-{i}" for i in range(n)]
    else:
        data["track"] = [f"track-{(number + i) % 40}" for i in range(n)]
        data["seconds"] = [float((number * 31 + i) % 200) for i in range(n)]
    name = "login" if is_login(number) else "play"
    index = [event.name for event in plan.events].index(name)
    return EventBatch(plan.events[index], index, *event_columns(plan.events[index], data))


def producer_of(thread: int, number: int) -> dict[str, object]:
    """Logins of two threads have no producer: their ids must do."""
    if is_login(number) and thread:
        return {}
    # A new epoch now and then, as after a restart of the sender; sequences go on.
    return {"producer": f"sender {thread}".encode(), "epoch": number // 100, "sequence": number}


@dataclass
class Intentions:
    """What the next process is to do: known to whoever reads its lines."""

    next_number: dict[int, int] = field(default_factory=lambda: dict.fromkeys(range(N_THREADS), 0))
    version: int = 1
    forgets: list[tuple[str, int]] = field(default_factory=list)
    """Keys whose Forget was tried and not acknowledged, and how often."""


def open_engine(directory: Path, durability: str = "group", *, create: bool = False) -> Engine:
    return Engine.open(
        directory,
        schema=schema_of(1) if create else None,
        clock="event",
        durability=durability,
        n_shards=N_SHARDS,
        segment_bytes=SEGMENT_BYTES,
        checkpoint_part_bytes=1,
        create=create,
    )


def counts_of(engine: Engine) -> dict[str, list[float]]:
    """Lifetime counts of plays and logins, by user."""
    users = [f"user-{i}" for i in range(USERS)]
    service = [service.name for service in engine.state.plan.services].index("counts")
    vectors = engine.read(service, {"user": text_column(users)[0]}, len(users))
    return {user: list(map(float, row)) for user, row in zip(users, vectors.values, strict=True)}


_saying = threading.Lock()


def say(text: str, fd: int = 1) -> None:
    with _saying:  # plans are longer than what a pipe takes in one piece
        shim.mark_here(text)
        os.write(fd, f"{text}\n".encode())


class Work:
    """The threads of one process on one store."""

    def __init__(self, engine: Engine, todo: Intentions, n_batches: int, out: Callable[[str], None]) -> None:
        self.engine, self.todo, self.n_batches, self.say = engine, todo, n_batches, out
        self.ghosts = list(todo.forgets)
        self.failed: list[BaseException] = []
        self.done = threading.Event()

    def run(self) -> None:
        senders = [threading.Thread(target=self.guard, args=(self.send, t)) for t in range(N_THREADS)]
        others = [
            threading.Thread(target=self.guard, args=(work,)) for work in (self.checkpoint, self.change)
        ]
        for thread in senders + others:
            thread.start()
        for thread in senders:
            thread.join()
        self.done.set()
        for thread in others:
            thread.join()
        if self.failed:
            error = self.failed[0]
            self.say(f"failed {type(error).__name__}: {error}".replace("\n", " ")[:500])

    def guard(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            self.failed.append(error)
            self.done.set()

    def retried(self, call: Callable[[], T]) -> T:
        """No space is waited out; what else fails ends the process."""
        while True:
            try:
                return call()
            except LimitError:
                self.say("full")
                if self.done.wait(0.05) and self.failed:
                    raise

    def send(self, thread: int) -> None:
        first = self.todo.next_number[thread]
        for number in range(first, first + self.n_batches):
            if self.done.is_set():
                return
            self.say(f"try b {thread} {number}")
            while True:
                batch = batch_of(self.engine.state.plan, thread, number)
                try:
                    _, position = self.retried(
                        lambda b=batch, n=number: self.engine.observe(b, **producer_of(thread, n))
                    )
                    break
                except FeatureStoreError as error:
                    if "declared differently" not in str(error):
                        raise
            outcomes = set(map(int, batch.outcomes))
            if outcomes == {DUPLICATE}:
                self.say(f"again b {thread} {number}")
            else:
                assert outcomes == {ACCEPTED}, outcomes
                self.say(f"ack b {thread} {number} {position}")
                if number % 7 == 6:  # the reply was lost: the sender tries again, and is told so
                    again = batch_of(self.engine.state.plan, thread, number)
                    self.retried(lambda b=again, n=number: self.engine.observe(b, **producer_of(thread, n)))
                    assert set(map(int, again.outcomes)) == {DUPLICATE}
            ghost = ghost_of(thread, number)
            if ghost:
                self.ghosts.append((ghost, 0))

    def checkpoint(self) -> None:
        while not self.done.wait(0.004):
            position, _ = self.retried(self.engine.checkpoint)
            self.say(f"checkpoint {position}")
            self.engine.state.sweep()

    def change(self) -> None:
        version, turn = self.todo.version, 0
        while not self.done.wait(0.01):
            turn += 1
            if self.ghosts and turn % 3:
                key, n_tries = self.ghosts.pop(0)
                self.say(f"try f {key} {n_tries}")
                try:
                    _, position = self.engine.forget({"user": key})
                except LimitError:  # the tombstone may be there, and the next one is another
                    self.say("full")
                    self.ghosts.insert(0, (key, n_tries + 1))
                    continue
                self.say(f"ack f {key} {n_tries} {position}")
            else:
                version += 1
                self.say(f"try s {version}")
                plan = self.retried(
                    lambda v=version: self.engine.apply_schema(schema_of(v), allow=("drop", "order"))
                )
                self.say(f"ack s {version} 0 {plan.to_json()}")


def work(
    directory: Path, durability: str, n_batches: int, todo: Intentions, out: Callable[[str], None]
) -> int:
    """Opens the store and works on it; 0, or 3 when a disk failed."""
    try:
        with open_engine(directory, durability) as engine:
            out(f"plan {engine.state.plan.to_json()}")
            counts = json.dumps(counts_of(engine))
            out(f"recovered {engine.state.position} {timeless_digest(engine.state)} {counts}")
            running = Work(engine, todo, n_batches, out)
            running.run()
            if not running.failed:
                out("closing")
    except FeatureStoreError as error:
        out(f"failed {type(error).__name__}: {error}".replace("\n", " ")[:500])
        return 3
    if running.failed:
        return 3
    out("closed")
    return 0


def main() -> None:
    directory = Path(sys.argv[1])
    started = time.monotonic()
    if not (directory / "store.json").exists():
        open_engine(directory, create=True).close()
        say(f"created {time.monotonic() - started:.3f}")
    os._exit(work(directory, sys.argv[2], int(sys.argv[3]), Intentions(), say))


if __name__ == "__main__":
    main()
