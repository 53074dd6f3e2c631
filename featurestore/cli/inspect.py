"""`featurestore inspect`: what a store is and holds, without opening it."""

from __future__ import annotations

import argparse
from typing import Any

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json

DESCRIPTION = """\
Says what the store in DIR is and holds: its identity, its schema, the rows of its last checkpoint and the
journal after it. Nothing is written. The store must not be open: stop the server first, or give a backup."""

EPILOG = """\
examples:
  featurestore inspect /var/lib/featurestore
  featurestore inspect backup-1 -o json | jq .journal.last_position"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("directory", metavar="DIR", help="the store's data directory, or a backup")
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> Exit:
    from featurestore.storage.check import inspect

    found = inspect(arguments.directory)
    if arguments.output == "json":
        print_json(found)
    else:
        print("\n".join(as_lines(found)))
    return Exit.OK


def as_lines(found: dict[str, Any]) -> list[str]:
    rows, journal, schema = found["rows"], found["journal"], found["schema"]
    named = "no schema yet" if schema is None else f"schema {schema['name']}, version {schema['version']}"
    lines = [
        f"{found['directory']}: store {found['store_id']}, format {found['version']}, {found['clock']} clock",
        f"  {named}",
        f"rows, up to position {rows['position']:,}",
        f"  {rows['rows']:,} rows of {rows['record_bytes']:,} bytes in {len(rows['shards'])} shards",
        f"  {rows['file_bytes']:,} bytes of file, {rows['free_bytes']:,} of them free",
        *_sketch_lines(found["sketches"]),
        f"journal, positions {journal['first_position']:,} to {journal['last_position']:,}",
        f"  {journal['batches']:,} batches of {journal['events']:,} events, {journal['schemas']:,} schemas, "
        f"{journal['forgets']:,} forgets, {journal['producer_changes']:,} changes of producers",
    ]
    lines += [
        f"  {segment['name']}  {segment['file_bytes']:,} bytes, {segment['frames']:,} frames"
        for segment in journal["segments"]
    ]
    if journal["torn"]:
        lines.append(
            f"  torn at its end, as a crash leaves it: {journal['torn']}; the next start cuts it off"
        )
    return lines


def _sketch_lines(sketches: list[dict[str, Any]]) -> list[str]:
    lines = ["sketches, of all shards"] if sketches else []
    for each in sketches:
        saturated = each["saturated_counters"]
        lines.append(
            f"  {each['view']}  {each['memory_bytes']:,} bytes, {each['depth']} x {each['width']:,} cells "
            f"a shard, {each['filled_share']:.1%} filled; N {each['weight']:,.0f}, at most "
            f"{each['greatest_weight']:,.0f} in a shard"
            + (f"; {saturated:,} counters SATURATED" if saturated else "")
        )
    return lines
