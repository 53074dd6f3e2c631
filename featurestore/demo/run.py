"""The run: a store of its own, a server on it, both logs in through a client, vectors back out.

    feed     each log in one upload, then the SSH log once more, as a client does that never got its answer:
             the schema declares ids, so the second time changes nothing
    read     for every event the vector of its keys at its time (GetFeatures with as_of)
    confirm  for every address that stands out its vector once more, alone, with bounds

All numbers come out of the store: counts from its statistics, velocities from vectors.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurestore.client import AdminClient, Client, Vector
from featurestore.config import ServeConfig
from featurestore.demo import scout
from featurestore.demo.logs import LOGS, SSH, Columns, Log, Watched, read, schema_text
from featurestore.errors import ConfigError
from featurestore.server.serve import Server, open_store
from featurestore.storage.directory import entries

OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """An address at its worst moment. `vector` has bounds."""

    keys: dict[str, str]
    at: str  # as the log has it: ISO 8601, UTC
    vector: Vector


@dataclass(frozen=True)
class FoundGroup:
    watched: Watched
    usual: float
    found: tuple[Found, ...]


@dataclass(frozen=True)
class LogResult:
    log: Log
    n_events: int
    n_addresses: int
    n_out_of_order: int
    groups: tuple[FoundGroup, ...]


@dataclass(frozen=True)
class Result:
    """What the demo found, and what the store says it did."""

    logs: tuple[LogResult, ...]
    accepted: int
    late: int
    duplicate: int
    refused: int
    rows: int
    row_bytes: int
    vectors_read: int
    feed_seconds: float
    read_seconds: float
    seconds: float


def run(keep: Path | None, *, n_each: int = 3, on_step: OnStep = lambda _: None) -> Result:
    """Runs the demo on a new store in `keep`, or in a temporary directory that is gone afterwards."""
    if keep is not None and keep.exists() and entries(keep):
        raise ConfigError(f"--keep: {keep} is not empty; name a directory that does not exist yet")
    with tempfile.TemporaryDirectory(prefix="featurestore-demo-") as scratch:
        config = ServeConfig(
            data=Path(scratch) / "store" if keep is None else keep,
            schema=schema_text(),
            schema_path="demo.yaml",
            listen="127.0.0.1:0",
            admin=f"unix:{scratch}/admin.sock",  # a short path, wherever the store is
            clock="event",
            history="none",
        )
        began_s = time.monotonic()
        with open_store(config) as engine:
            with (
                Server(engine, config) as server,
                Client(str(server.address)) as client,
                AdminClient(str(server.admin_address)) as admin,
            ):
                on_step(f"a store in {config.data}, served on {server.address}")
                columns = {log.event: read(log) for log in LOGS}
                feed_seconds = _feed(client, columns, on_step)
                began_read_s = time.monotonic()
                logs = tuple(_look(client, log, columns[log.event], n_each, on_step) for log in LOGS)
                read_seconds = time.monotonic() - began_read_s
                stats = admin.stats()
            if keep is not None:
                engine.checkpoint()
        return Result(
            logs=logs,
            accepted=stats.events_accepted,
            late=stats.events_late,
            duplicate=stats.events_duplicate,
            refused=stats.events_refused,
            rows=stats.rows,
            row_bytes=stats.row_bytes,
            vectors_read=stats.vectors_read,
            feed_seconds=feed_seconds,
            read_seconds=read_seconds,
            seconds=time.monotonic() - began_s,
        )


def _feed(client: Client, columns: dict[str, Columns], on_step: OnStep) -> float:
    began_s = time.monotonic()
    for log in LOGS:
        report = client.ingest(log.event, columns[log.event])
        on_step(f"{log.file}: {report.accepted:,} of {report.events:,} events accepted")
    report = client.ingest(SSH.event, columns[SSH.event])
    on_step(f"{SSH.file} again: {report.duplicate:,} of {report.events:,} events known already")
    return time.monotonic() - began_s


def _look(client: Client, log: Log, columns: Columns, n_each: int, on_step: OnStep) -> LogResult:
    keys: dict[str, Any] = {part: columns[field] for part, field in log.keys.items()}
    times = [str(cell) for cell in columns["ts"]]
    addresses = [str(cell) for cell in next(iter(keys.values()))]
    vectors = client.get_many(log.service, keys, times)
    on_step(f"{log.file}: {len(vectors):,} vectors read, one at the time of each event")
    groups = tuple(
        FoundGroup(
            group.watched,
            group.usual,
            tuple(_confirm(client, log, keys, times, peak.event) for peak in group.peaks),
        )
        for group in scout.groups(addresses, vectors, log.watched, n_each)
    )
    return LogResult(log, len(times), len(set(addresses)), _out_of_order(times), groups)


def _confirm(client: Client, log: Log, keys: dict[str, Any], times: list[str], event: int) -> Found:
    """The vector of one event's keys at its time, with bounds. A key that the event lacks is not given."""
    given = {part: str(cells[event]) for part, cells in keys.items() if cells[event] is not None}
    return Found(given, times[event], client.get(log.service, given, times[event], bounds=True))


def _out_of_order(times: list[str]) -> int:
    """How many are older than one before them. ISO 8601 texts of one form sort as their times do."""
    newest, n = "", 0
    for at in times:
        n += at < newest
        newest = max(newest, at)
    return n
