"""The music part of the demo: made-up traffic through a real server, and simple rules beside its labels.

    feed   ten minutes' events, type by type, in through a client
    read   for every one of them the vector of its keys as of their end, over gRPC: a sweep, as a moderator's
           job does it. (A classifier would have each event's own from Observe, one call an event.)
    judge  each rule on these vectors; only then are the labels looked at

Labels and roles never reach the store: they are no columns of the schema.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from featurestore.client import AdminClient, Client
from featurestore.config import ServeConfig
from featurestore.demo.rules import NAIVE, RULES, Judged
from featurestore.demo.traffic import Chunk, Traffic
from featurestore.errors import ConfigError
from featurestore.server.serve import Server, open_store
from featurestore.storage.directory import entries

STEP_MS = 600_000
OnHour = Callable[[int, int], None]  # hours that are done, events so far

# What a service is asked with: the parts of its keys, which have the names of the event's fields.
KEYS = {
    "play": ("account", "track", "uploader", "ip"),
    "signup": ("ip", "device"),
    "login": ("account", "ip"),
    "action": ("account", "target"),
}


@dataclass(frozen=True)
class MusicResult:
    """What the rules found, and what the store says it did."""

    traffic: Traffic
    events: dict[str, Counter[str]]  # by type, then by label; all labels
    judged: tuple[Judged, ...]
    naive: Judged
    rows: int
    row_bytes: int
    vectors_read: int
    feed_seconds: float
    read_seconds: float
    seconds: float


def schema_text() -> str:
    return (resources.files(__package__) / "music.yaml").read_text(encoding="utf-8")


def run(
    keep: Path | None, traffic: Traffic, *, on_hour: OnHour = lambda _hours, _events: None
) -> MusicResult:
    """Runs on a new store in `keep`, or in a temporary directory that is gone afterwards."""
    if keep is not None and keep.exists() and entries(keep):
        raise ConfigError(f"--keep: {keep} is not empty; name a directory that does not exist yet")
    judged, naive = tuple(Judged(rule) for rule in RULES), Judged(NAIVE)
    events: dict[str, Counter[str]] = {event: Counter() for event in KEYS}
    feed_s = read_s = 0.0
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="featurestore-demo-") as scratch:
        config = ServeConfig(
            data=Path(scratch) / "store" if keep is None else keep,
            schema=schema_text(),
            schema_path="music.yaml",
            listen="127.0.0.1:0",
            admin=f"unix:{scratch}/admin.sock",
            clock="merged",
            history="none",
        )
        with open_store(config) as engine:
            with (
                Server(engine, config) as server,
                Client(str(server.address)) as client,
                AdminClient(str(server.admin_address)) as admin,
            ):
                for hours, chunk in enumerate(traffic.hours(), 1):
                    for part in chunk.parts(STEP_MS):
                        began_part_s = time.monotonic()
                        _feed(client, part)
                        fed_s = time.monotonic()
                        _read_and_judge(client, part, (*judged, naive))
                        feed_s, read_s = feed_s + fed_s - began_part_s, read_s + time.monotonic() - fed_s
                    for event, some in chunk.events.items():
                        events[event].update(some.label_counts())
                    on_hour(hours, sum(each.total() for each in events.values()))
                stats = admin.stats()
            if keep is not None:
                engine.checkpoint()
    return MusicResult(
        traffic=traffic,
        events=events,
        judged=judged,
        naive=naive,
        rows=stats.rows,
        row_bytes=stats.row_bytes,
        vectors_read=stats.vectors_read,
        feed_seconds=feed_s,
        read_seconds=read_s,
        seconds=time.monotonic() - began_s,
    )


def _feed(client: Client, chunk: Chunk) -> None:
    for event, some in chunk.events.items():
        if some.n_events:
            report = client.ingest(event, some.columns)
            if report.accepted != some.n_events:
                raise AssertionError(f"{event}: {report.accepted} of {some.n_events} events were accepted")


def _read_and_judge(client: Client, chunk: Chunk, judged: tuple[Judged, ...]) -> None:
    for event, some in chunk.events.items():
        if not some.n_events:
            continue
        keys: dict[str, Any] = {part: some.columns[part] for part in KEYS[event]}
        vectors = client.get_many(event, keys, chunk.end_ms - 1)
        for one in judged:
            if one.rule.event == event:
                one.add(some, vectors.names, vectors.values)
