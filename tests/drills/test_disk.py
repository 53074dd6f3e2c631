"""The disk drill: volumes filled by a stranger and by the store itself, in any order, with restarts.

Whatever happens, writes are refused rather than lost, a checkpoint can be written and the store opened and
read with not a byte free, and when the stranger has gone writes go on by themselves. What was acknowledged is
counted here, in a dictionary, and the store must have exactly that.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from volumes import fill, free_bytes, volume

from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine
from featurestore.errors import LimitError

SCHEMA = """\
version: 1
name: filling
events:
  play:
    time: {field: at, unit: ms}
    lateness: 1h
    fields: {account: key, seconds: number, note: string}
views:
  account:
    event: play
    key: account
    exact_events: 4
    features:
      - {aggregate: count, windows: [1h, lifetime]}
      - {aggregate: sum(seconds), windows: [1h]}
services:
  plays: [account.*]
"""
START_MS = 1_700_000_000_000
N_EVENTS = 1000
NOTE_BYTES = 2000  # in the journal only
PATIENCE_S = 60


class Drill:
    """A store on a volume, a stranger beside it, and what the store has acknowledged."""

    def __init__(self, place: Path, n_accounts: int, seed: int) -> None:
        self.place, self.n_accounts = place, n_accounts
        self.random = random.Random(seed)
        self.counts = Counter[str]()
        self.sequence = self.n_refused = 0
        self.stranger = place / "stranger"
        self.engine = self.open()

    def open(self) -> Engine:
        engine = Engine.open(self.place / "store", schema=SCHEMA, clock="event", n_shards=8)
        engine.start_upkeep(checkpoint_every_s=3600.0)
        return engine

    def close(self) -> None:
        self.engine.close()

    def restart(self) -> None:
        self.engine.close()
        self.engine = self.open()
        self.check()

    def write(self) -> bool:
        """One batch; False where the store refuses it."""
        event = self.engine.state.plan.events[0]
        accounts = [f"account {self.random.randrange(self.n_accounts)}" for _ in range(N_EVENTS)]
        n = self.sequence + 1
        data = {
            "at": [START_MS + n] * N_EVENTS,
            "account": accounts,
            "seconds": [1.0] * N_EVENTS,
            "note": ["x" * NOTE_BYTES] * N_EVENTS,
        }
        try:
            self.engine.observe(
                EventBatch(event, 0, *event_columns(event, data)), producer=b"drill", epoch=1, sequence=n
            )
        except LimitError:
            self.n_refused += 1
            return False
        self.sequence = n
        self.counts.update(accounts)
        return True

    def write_much(self, n_bytes: int) -> None:
        """As much as would fill the volume; what is refused goes through by itself soon after."""
        until = self.sequence + n_bytes // (NOTE_BYTES * N_EVENTS)
        while self.sequence < until:
            self.write_soon()

    def write_soon(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.write():
            assert not self.engine.failed, self.engine.failure
            assert time.monotonic() < deadline, (
                f"writes do not resume; {free_bytes(self.place)} bytes are free"
            )
            time.sleep(0.02)

    def write_until_refused(self) -> None:
        """Beside a stranger who takes whatever the store lets go, unless it is too slow."""
        n_in_a_row = 0
        for _ in range(200):
            if self.write():
                n_in_a_row = 0
            else:
                n_in_a_row += 1
                fill(self.stranger)
                time.sleep(0.02)
            if n_in_a_row == 20:
                return

    def checkpoint(self) -> None:
        position, _ = self.engine.checkpoint()
        assert position == self.engine.state.position

    def check(self) -> None:
        accounts = sorted(self.counts)
        plan = self.engine.state.plan
        names = [plan.features[index].name for index in plan.services[0].features]
        vectors = self.engine.read(0, {"account": text_column(accounts)[0]}, len(accounts))
        found = vectors.values[:, names.index("account.count_lifetime")].tolist()
        assert found == [self.counts[account] for account in accounts]


@pytest.mark.parametrize(
    ("megabytes", "kind"), [(100, "tmpfs"), (100, "ext4"), (400, "tmpfs"), (400, "ext4"), (900, "ext4")]
)
def test_a_volume_that_fills_is_lived_with_and_every_count_is_exact(
    tmp_path: Path,
    megabytes: int,
    kind: str,
    drill_size: Callable[[int, int], int],
    measured: Callable[[str], None],
) -> None:
    if (megabytes, kind) != (100, "tmpfs") and drill_size(0, 1) == 0:
        pytest.skip("in full only: FEATURESTORE_DRILLS=full")
    n_bytes = megabytes << 20
    with ExitStack() as stack:
        place = stack.enter_context(volume(tmp_path / "volume", n_bytes, kind))
        drill = Drill(place, n_accounts=megabytes * 4, seed=megabytes)
        stack.callback(drill.close)
        n_full = 0
        drill.write()
        for _ in range(drill_size(1, 4)):
            steps = ["ourselves", "stranger", "stranger at once", "restart"]
            drill.random.shuffle(steps)
            for step in steps:
                if step == "ourselves":
                    drill.write_much(n_bytes * 3 // 2)
                elif step == "restart":
                    drill.restart()
                else:
                    drill.write_much(drill.random.randrange(n_bytes // 2))
                    fill(drill.stranger)
                    n_full += free_bytes(place) == 0
                    if step == "stranger":
                        drill.write_until_refused()
                    drill.checkpoint()
                    fill(drill.stranger)
                    drill.restart()
                    drill.checkpoint()
                    drill.stranger.unlink()
                    drill.write_soon()
        drill.check()
        drill.restart()
        measured(
            f"{megabytes} MB of {kind}: {sum(drill.counts.values()):,} events, {drill.n_refused} batches "
            f"refused and sent again, full to the last byte {n_full} times"
        )
        assert n_full
