"""The whole store under kill -9: at random times with batches in flight, at failpoints, while recovering.

A round forks (nothing is imported anew), opens the store that the last round left, works on it with several
threads, and dies. What the next round recovers is compared with everything acknowledged: see engine_truth.py.
"""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from featurestore.storage import failpoint

from . import engine_program as program
from .engine_truth import Known, Truth
from .image import run_apart
from .rounds import scaled

FAILPOINTS = [
    *("journal.mid_frame:9", "journal.before_sync:7", "journal.after_sync:8", "journal.allocate:2"),
    *(
        "journal.roll:2",
        "journal.rolled:2",
        "journal.truncate:3",
        "checkpoint.part:8",
        "checkpoint.mid:3",
        "checkpoint.committed:3",
    ),
    *("compact.copied:2", "compact.swapped:2", "schema.journaled:2", "forget.journaled:2"),
    "forget.checkpointed:1",
]


@dataclass
class Ended:
    lines: list[str]
    status: int
    """As os.waitpid gives it."""

    @property
    def was_killed(self) -> bool:
        return os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGKILL


def run(
    directory: Path,
    todo: program.Intentions,
    *,
    armed: str = "",
    kill_after_s: float | None = None,
    from_start: bool = False,
    n_batches: int = 100_000,
    timeout_s: float = 30.0,
) -> Ended:
    """One process on the store, forked; killed so long after it recovered (`from_start`: after its start)."""
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_fd)
        status = 1
        try:
            failpoint.arm(armed)
            status = program.work(
                directory, "group", n_batches, todo, lambda text: program.say(text, write_fd)
            )
        except BaseException as error:
            program.say(f"broken {type(error).__name__}: {error}".replace("\n", " "), write_fd)
        finally:
            os._exit(status)
    os.close(write_fd)
    data, deadline = bytearray(), time.monotonic() + timeout_s
    due = time.monotonic() + (kill_after_s or 0) if from_start else None
    try:
        while True:
            if due is None and kill_after_s is not None and b"\nrecovered " in data:
                due = time.monotonic() + kill_after_s
            until = deadline if due is None else due
            if time.monotonic() >= until:
                break
            if select.select([read_fd], [], [], until - time.monotonic())[0]:
                piece = os.read(read_fd, 1 << 16)
                if not piece:
                    break
                data += piece
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    while piece := os.read(read_fd, 1 << 16):
        data += piece
    os.close(read_fd)
    lines = bytes(data).decode().split("\n")[:-1]  # a line without its end was cut off: nobody saw it
    broken = [line for line in lines if line.startswith("broken")]
    assert not broken, broken
    return Ended(lines, status)


class Rounds:
    """Runs rounds on one store; each is judged by what the next one recovers."""

    def __init__(self, directory: Path) -> None:
        assert not (why := run_apart(lambda: program.open_engine(directory, create=True).close(), 60)), why
        self.directory = directory
        self.truth = Truth(directory)
        self.known = Known()
        self.how = "after its creation"
        self.n_kills = self.n_acknowledged = self.n_in_flight = self.n_again = self.n_forgotten = 0

    def go(self, how: str, **options: object) -> Ended:
        before = self.known
        ended = run(self.directory, self.truth.todo(before), **options)  # type: ignore[arg-type]
        known = Known.of(ended.lines)
        if known.recovered is None:  # it died before it could tell: what is known is still to be judged
            before.tried += known.tried
        else:
            self.truth.advance(before, known.recovered, self.how)
            self.known = known
            strange = [op for op in known.again if op not in self.truth.done]
            assert not strange, f"{how}: called duplicates, and never applied: {strange}"
        self.how = how
        self.n_kills += ended.was_killed
        self.n_acknowledged += len(known.acknowledged)
        self.n_again += len(known.again)
        self.n_in_flight += len(set(known.tried) - set(known.acknowledged) - known.again)
        forgotten = [op[1] for op in known.acknowledged if op[0] == "f"]
        self.n_forgotten += len(forgotten)
        assert not (left := self.truth.remains(forgotten)), f"{how}: forgotten, and still there: {left}"
        return ended

    def finish(self) -> None:
        """The last process is not killed, and what it leaves is judged too."""
        ended = self.go("ended by itself", n_batches=3)
        assert ended.lines[-1] == "closed", ended.lines[-3:]
        self.go("after a clean end", n_batches=0)
        assert not self.truth.remains(self.truth.forgotten)

    def __str__(self) -> str:
        return (
            f"{self.n_kills} kills: {self.n_acknowledged} operations acknowledged and there once, "
            f"{self.n_in_flight} in flight ({self.n_again} of them found applied), {self.n_forgotten} forgets"
        )


@pytest.fixture
def rounds(tmp_path: Path) -> Iterator[Callable[[], Rounds]]:
    yield lambda: Rounds(tmp_path / "store")


def test_kills_at_random_times_lose_and_double_nothing(
    rounds: Callable[[], Rounds], measured: Callable[[str], None]
) -> None:
    coin = random.Random(1)
    store = rounds()
    for number in range(scaled(200)):
        after_s = coin.uniform(0.0, 0.1)
        if number % 5 == 4:
            store.go(
                f"round {number}: killed {after_s:.3f} s after its start",
                kill_after_s=after_s,
                from_start=True,
            )
        else:
            store.go(f"round {number}: killed {after_s:.3f} s after it recovered", kill_after_s=after_s)
    store.finish()
    measured(f"kill -9 under load: {store}")
    assert store.n_kills == scaled(200)
    assert store.n_acknowledged > store.n_kills


def test_kills_at_every_failpoint_lose_and_double_nothing(
    rounds: Callable[[], Rounds], measured: Callable[[str], None]
) -> None:
    store = rounds()
    names = [place.partition(":")[0] for place in FAILPOINTS]
    # The second in test_producers_kill.py, the third in tests/test_ids_on_disk.py, where nothing is written;
    # the last in tests/test_clock_store.py.
    elsewhere = ["recovery.mid", "producer.journaled", "ids.unread", "clock.journaled"]
    assert sorted([*names, *elsewhere]) == sorted(failpoint.NAMES)
    for place in FAILPOINTS:
        ended = store.go(f"killed at {place}", armed=f"{place}=kill")
        assert ended.was_killed, f"{place} was not reached: {ended.lines[-3:]}"
        if place.startswith("journal.mid_frame"):  # there is a torn tail now
            ended = store.go("killed at recovery.mid", armed="recovery.mid=kill")
            assert ended.was_killed
            assert Known.of(ended.lines).recovered is None
    store.finish()
    measured(f"kill -9 at each of {len(failpoint.NAMES)} failpoints: {store}")
