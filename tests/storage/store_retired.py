"""The store of tests/golden/store_retired_v1: a view, a service and a window that the schema let go, in their
grace, with an event of each.

python -m storage.store_retired DIRECTORY     makes one like it (with an id, a secret and salts of its own)
"""

from __future__ import annotations

import sys
from pathlib import Path

from featurestore.columns import event_columns
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine

SCHEMA = """\
version: 1
name: golden
events:
  play: {time: {field: at, unit: ms}, fields: {account: key, ip: key, ms: number}}
views:
  plays: {event: play, key: account, windows: [10s, 1m], features: [count, sum(ms)]}
  ips: {event: play, key: ip, windows: [10s], features: [{name: long, aggregate: count, where: ms > 1}]}
services:
  all: [plays.count_10s, plays.count_1m]
  some: [ips.long_10s]
"""
LESS = """\
version: 1
name: golden
events:
  play: {time: {field: at, unit: ms}, fields: {account: key, ms: number}}
views:
  plays: {event: play, key: account, windows: [10s], features: [count, sum(ms)]}
services:
  all: [plays.count_10s]
"""
START_MS = 1_700_000_000_000
GRACE_MS = 3_600_000


def make(directory: Path) -> None:
    with Engine.open(
        directory, schema=SCHEMA, clock="merged", history="none", n_shards=2, segment_bytes=4096
    ) as engine:
        for i in range(1, 4):
            kind = engine.state.plan.events[0]
            fields = {"at": [START_MS + i], "account": ["anna"], "ip": ["::1"], "ms": [float(i)]}
            engine.observe(EventBatch(kind, 0, *event_columns(kind, fields)))
            if i == 1:
                engine.apply_schema(LESS, allow=["drop", "narrow", "order"], grace_ms=GRACE_MS)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
