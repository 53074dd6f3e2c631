"""The store of tests/golden/store_top_v1: rows of kind 8 and 9 (core/top), and what it must say for ever.

python -m storage.store_top_v1 DIRECTORY     makes one like it (with an id, a secret and salts of its own)
"""

from __future__ import annotations

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
    fields: {track: key, ip: key, seconds: number}
views:
  track:
    event: play
    key: track
    windows: [6h, 1d]
    exact_events: 16
    top_counters: 8
    features: [{aggregate: "top(ip, 2)"}, {aggregate: "top(seconds, 3)"}, hour_entropy]
services:
  tracks: [track.*]
"""
START_MS = 1_700_000_000_000
TRACKS = ["few", "many"]

#: Per track (value, lower, upper) by the service's order of names; "few" is exact, "many" was merged.
EXPECTED: dict[str, list[tuple[float, float, float]]] = {
    "track.top_ip_share_6h": [(0.4, 0.4, 0.4), (0.5072463768115942, 0.4444444444444444, 0.5428571428571428)],
    "track.top_ip_share_1d": [(0.4, 0.4, 0.4), (0.5, 0.5, 0.5)],
    "track.top_ip_entropy_6h": [(1.0, 1.0, 1.0), (0.3033748360864146, 0.286396956115957, 0.322756959897398)],
    "track.top_ip_entropy_1d": [
        (1.0, 1.0, 1.0),
        (0.12068101401352394, 0.12068101401352394, 0.12068101401352394),
    ],
    "track.top_seconds_share_6h": [
        (0.6, 0.6, 0.6),
        (0.34782608695652173, 0.3055555555555556, 0.38235294117647056),
    ],
    "track.top_seconds_share_1d": [
        (0.6, 0.6, 0.6),
        (0.3333333333333333, 0.3333333333333333, 0.3333333333333333),
    ],
    "track.top_seconds_entropy_6h": [
        (0.9709505944546684, 0.9709505944546684, 0.9709505944546684),
        (1.5840531434935379, 1.5763232787880423, 1.5849625017211564),
    ],
    "track.top_seconds_entropy_1d": [
        (0.9709505944546684, 0.9709505944546684, 0.9709505944546684),
        (1.584962500721156, 1.584962500721156, 1.584962500721156),
    ],
    "track.hour_entropy_6h": [
        (0.9709505944546684, 0.9709505944546684, 0.9709505944546684),
        (2.686029297375499, 2.633822148005887, 2.6940969182677326),
    ],
    "track.hour_entropy_1d": [
        (0.9709505944546684, 0.9709505944546684, 0.9709505944546684),
        (4.380890964047545, 4.380890964047545, 4.380890964047545),
    ],
}


def batch(
    engine: Engine, tracks: list[str], ips: list[str], seconds: list[float], at: list[int]
) -> EventBatch:
    event = engine.state.plan.events[0]
    data = {"at": at, "track": tracks, "ip": ips, "seconds": seconds}
    return EventBatch(event, 0, *event_columns(event, data))


def make(directory: Path) -> None:
    with Engine.open(directory, schema=SCHEMA, clock="event", n_shards=2, segment_bytes=4096) as engine:
        few = range(5)
        engine.observe(
            batch(
                engine,
                ["few"] * 5,
                [["10.0.0.1", "2001:db8::1", "ü" * 70][i % 3] for i in few],
                [0.5, -0.0, 0.0, 0.5, 0.5],
                [START_MS + 66_000_000 + 1_000_000 * i for i in few],
            )
        )
        many = range(120)
        engine.observe(
            batch(
                engine,
                ["many"] * 120,
                [f"10.0.0.{1 if i % 2 else i}" for i in many],
                [float(i % 3) for i in many],
                [START_MS + 600_000 * i - (i % 5 == 0) * 900_000 for i in many],
            )
        )
        engine.checkpoint()


def answers(engine: Engine) -> dict[str, list[tuple[float, float, float]]]:
    plan = engine.state.plan
    vectors = engine.read(0, {"track": text_column(TRACKS)[0]}, len(TRACKS), bounds=True)
    names = [plan.features[index].name for index in plan.services[0].features]
    return {
        name: [
            (float(vectors.values[row][i]), float(vectors.lower[row][i]), float(vectors.upper[row][i]))
            for row in range(len(TRACKS))
        ]
        for i, name in enumerate(names)
    }


if __name__ == "__main__":
    make(Path(sys.argv[1]))
