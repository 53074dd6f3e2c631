"""The stores of tests/golden/store_spread_v1 and _v2: what merged entries keep of spread, in layouts 0 and 1,
and decayed sums of kinds 10 and 11.

python -m storage.store_spread DIRECTORY     makes one like the second (with an id, a secret and salts of its
                                             own)
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine

SCHEMA = """\
version: 1
name: golden
events:
  play:
    time: {field: at, unit: ms}
    lateness: 1h
    fields: {account: key, x: number}
views:
  account:
    event: play
    key: account
    exact_events: 4
    max_error: 0.5
    windows: [10m]
    features:
      - {aggregate: stddev(x), windows: [10m, lifetime]}
      - interval_mean
      - interval_cv
      - "decayed_sum(x, 1h)"
services:
  plays: [account.*]
"""
START_MS = 1_700_000_000_000
#: Per account: the values, one each (minute, less a second now and then).
VALUES = {
    "plain": [1.0, 2.5, -3.0, 7.0, 0.5, 2.0, 9.0, 1.0, 4.0, 4.0],
    "tiny": [1e-160, 3e-160, 2e-160, 7e-160, 1e-160, 5e-160, 2e-160, 2e-160, 4e-160, 9e-160],
    "huge": [1e200, 1.5e308, -3e200, 1.5e308, 2e200, 0.0, 5.0, 1e200, 1e308, 1.0],
}
ACCOUNTS = list(VALUES)
N = 10


def times(account: str) -> list[int]:
    """Like a clock, but for the plain one."""
    late = [0, 300, 0, 1_000, 77, 0, 0, 512, 3, 0] if account == "plain" else [0] * N
    return [START_MS + 60_000 * i + late[i] for i in range(N)]


def make(directory: Path) -> None:
    with Engine.open(directory, schema=SCHEMA, clock="event", n_shards=1, segment_bytes=4096) as engine:
        event = engine.state.plan.events[0]
        rows = sorted(
            (at, account, x)
            for account, values in VALUES.items()
            for at, x in zip(times(account), values, strict=True)
        )
        data = {"at": [r[0] for r in rows], "account": [r[1] for r in rows], "x": [r[2] for r in rows]}
        engine.observe(EventBatch(event, 0, *event_columns(event, data)))
        engine.checkpoint()


def answers(engine: Engine) -> dict[str, list[tuple[float, float, float, int]]]:
    """Per feature and account (value, lower, upper, status), as of the newest event."""
    plan = engine.state.plan
    vectors = engine.read(0, {"account": text_column(ACCOUNTS)[0]}, len(ACCOUNTS), bounds=True)
    assert vectors.lower is not None and vectors.upper is not None
    names = [plan.features[index].name for index in plan.services[0].features]
    return {
        name: [
            (
                float(vectors.values[i, j]),
                float(vectors.lower[i, j]),
                float(vectors.upper[i, j]),
                int(vectors.statuses[i, j]),
            )
            for i in range(len(ACCOUNTS))
        ]
        for j, name in enumerate(names)
    }


def _stddev(values: list[float]) -> float:
    greatest = max(map(abs, values))
    scaled = [v / greatest for v in values]
    mean = math.fsum(scaled) / len(scaled)
    return greatest * math.sqrt(math.fsum((v - mean) ** 2 for v in scaled) / len(scaled))


def truths() -> dict[str, list[float]]:
    """By definition. The decayed sum of the third is beyond all numbers: NaN."""
    gaps = [[b - a for a, b in zip(times(k)[:-1], times(k)[1:], strict=True)] for k in ACCOUNTS]
    means = [sum(each) / len(each) for each in gaps]
    now = max(times(ACCOUNTS[0]))
    fading = [
        math.fsum(x * 2.0 ** ((at - now) / 3_600_000) for at, x in zip(times(k), VALUES[k], strict=True))
        if k != "huge"
        else math.nan
        for k in ACCOUNTS
    ]
    spread = [_stddev(VALUES[k]) for k in ACCOUNTS]
    return {
        "account.stddev_x_10m": spread,
        "account.stddev_x_lifetime": spread,
        "account.interval_mean_10m": means,
        "account.interval_cv_10m": [
            _stddev([float(g) for g in each]) / mean for each, mean in zip(gaps, means, strict=True)
        ],
        "account.decayed_sum_x_1h": fading,
    }


if __name__ == "__main__":
    make(Path(sys.argv[1]))
