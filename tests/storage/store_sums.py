"""The stores of tests/golden/store_sums_v1 and _v2: sums of merged entries, of two words and of three.

python -m storage.store_sums DIRECTORY     makes one like the second (id, secret and salts of its own)

`decoded` reads what a row keeps of them by FORMAT.md, without the code under test.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine

from .row_records import unpack

SCHEMA = """\
version: 1
name: golden
events:
  sale:
    time: {field: at, unit: ms}
    lateness: 1h
    fields: {shop: key, x: number}
views:
  shop:
    event: sale
    key: shop
    exact_events: 4
    max_error: 0.5
    windows: [10m]
    features:
      - {aggregate: sum(x), windows: [10m, lifetime]}
      - {aggregate: mean(x), windows: [10m, lifetime]}
services:
  sales: [shop.*]
"""
START_MS = 1_700_000_000_000
#: Per shop: the values, one a second.
VALUES = {
    "prices": [19.99, 5.01, 0.1, 0.2, 0.3, 7.45, 120.0, 3.33, 0.07, 1e-3],
    "refunded": [0.1, 0.2, 0.3, 7.7, 19.99, -0.3, -7.7, -0.2, -19.99, -0.1],
    "apart": [1e200, 1e150, 1e100, 1e50, 1.0, -1e200, -1e150, 3.0, 1e-50, 5.0],
    "once": [0.1],
}
SHOPS = list(VALUES)
#: Whose sum two doubles cannot say: what adding to the third word lost is not known.
ROUNDED = "apart"
WIDE, LIFETIME, THIRD_WORD = 1, 2, 4


def make(directory: Path) -> None:
    with Engine.open(
        directory, schema=SCHEMA, clock="event", history="none", n_shards=1, segment_bytes=4096
    ) as engine:
        event = engine.state.plan.events[0]
        rows = sorted((START_MS + 1000 * i, shop, x) for shop in SHOPS for i, x in enumerate(VALUES[shop]))
        data = {"at": [r[0] for r in rows], "shop": [r[1] for r in rows], "x": [r[2] for r in rows]}
        engine.observe(EventBatch(event, 0, *event_columns(event, data)))
        engine.checkpoint()


def answers(engine: Engine) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Per feature and shop (lower, value, upper), as of the newest event."""
    plan = engine.state.plan
    vectors = engine.read(0, {"shop": text_column(SHOPS)[0]}, len(SHOPS), bounds=True)
    assert vectors.lower is not None and vectors.upper is not None
    return {
        (plan.features[index].name, shop): (
            float(vectors.lower[i, j]),
            float(vectors.values[i, j]),
            float(vectors.upper[i, j]),
        )
        for j, index in enumerate(plan.services[0].features)
        for i, shop in enumerate(SHOPS)
    }


def truth(feature: str, shop: str) -> Fraction:
    exactly = sum(map(Fraction, VALUES[shop]), Fraction(0))
    return exactly / len(VALUES[shop]) if "mean" in feature else exactly


def decoded(shard: bytes) -> Iterator[tuple[int, int, int, Fraction, bool]]:
    """Of each merged log its kind, its layout, its events, the sum of its entries, and whether that was
    rounded."""
    for payload in unpack(shard).values():
        _, n_logs, _ = struct.unpack_from("<HHI", payload)
        at = 8
        for _ in range(n_logs):
            _, kind, layout, n, _, words = struct.unpack_from("<HBBIII", payload, at)
            at += 16
            entries = [payload[at + 8 * words * i : at + 8 * words * (i + 1)] for i in range(n)]
            at += 8 * words * n
            if kind not in (WIDE, LIFETIME):
                continue
            total, events, rounded = Fraction(0), 0, False
            for entry in entries:
                _, _, counted, _, above, below, *rest = struct.unpack_from("<4q3d", entry)
                events += counted
                total += Fraction(above) - abs(Fraction(below))
                if layout & THIRD_WORD:
                    total += Fraction(rest[0])
                    rounded |= bool(struct.unpack_from("<Q", entry, 40)[0] >> 63)
            yield kind, layout, events, total, rounded


if __name__ == "__main__":
    make(Path(sys.argv[1]))
