"""`featurestore stats`: what a live store holds and has done."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from typing import Any

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.reaching import add_admin_arguments, admin_of, columns

DESCRIPTION = """\
Counts and ages of a live store, read without stopping anything. Events, batches and vectors are counted since
the server started; rows, bytes and positions are as of now."""

EPILOG = """\
examples:
  featurestore stats --admin unix:/var/lib/featurestore/admin.sock
  featurestore stats --admin unix:/var/lib/featurestore/admin.sock -o json | jq .rows"""

NAMES = (
    "schema_version",
    "events_accepted",
    "events_partly_late",
    "events_shed",
    "events_untouched",
    "events_late",
    "events_duplicate",
    "events_refused",
    "batches_duplicate",
    "vectors_read",
    "rows",
    "row_bytes",
    "max_memory_bytes",
    "sketches",
    "sketch_bytes",
    "ids",
    "id_bytes",
    "dedupe_memory_bytes",
    "ids_on_disk",
    "id_reads",
    "id_reads_in_vain",
    "id_reads_failed",
    "producers",
    "producers_made_up",
    "producer_bytes",
    "producer_bytes_made_up",
    "max_producer_bytes",
    "producers_refused",
    "producers_forgotten",
    "position",
    "durable_position",
    "checkpoint_position",
    "checkpoint_age_ms",
    "checkpoint_room_bytes",
    "last_position",
    "journal_bytes",
    "now_ms",
    "server_ms",
    "leap_ms",
    "uptime_ms",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add_admin_arguments(parser)
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> Exit:
    with admin_of(arguments) as admin:
        reply = admin.stats()
    numbers: dict[str, Any] = {name: getattr(reply, name) for name in NAMES}
    for name in ("now_ms", "last_position"):  # before the first event; where nothing limits it
        if not reply.HasField(name):
            numbers[name] = None
    if reply.checkpoint_age_ms < 0:
        numbers["checkpoint_age_ms"] = None
    clocks_ms = dict(sorted(reply.clocks_ms.items()))
    if arguments.output == "json":
        print_json({**numbers, "clocks_ms": clocks_ms})
    else:
        rows = [row(name, value) for name, value in numbers.items()]
        rows += [[f"clock of {event}", row("now_ms", ms)[1]] for event, ms in clocks_ms.items()]
        print("\n".join(columns(rows, right=[1])))
    return Exit.OK


def row(name: str, value: Any) -> list[str]:
    """Name and value for people: thousands apart, times as dates, durations in days and clock time."""
    words = name.removesuffix("_ms").replace("_", " ")
    if value is None:
        return [words, "none"]
    if name in {"now_ms", "server_ms"}:
        now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=value)
        return [words, now.isoformat(" ", "milliseconds")]
    if name.endswith("_ms"):
        return [words, str(timedelta(seconds=value // 1000))]
    return [words, f"{value:,}"]
