"""`featurestore checkpoint`: have a live store write its rows to disk now."""

from __future__ import annotations

import argparse

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.reaching import add_admin_arguments, admin_of

DESCRIPTION = """\
Has a live store write what changed since its last checkpoint, and returns when that is on disk. The server
does so by itself; do it by hand before a planned restart, which then has little left to replay."""

EPILOG = """\
examples:
  featurestore checkpoint --admin unix:/var/lib/featurestore/admin.sock"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    add_admin_arguments(parser)
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> Exit:
    with admin_of(arguments) as admin:
        reply = admin.checkpoint()
    if arguments.output == "json":
        print_json(
            {
                "position": reply.position,
                "rows_written": reply.rows_written,
                "bytes_written": reply.bytes_written,
                "duration_ms": reply.duration_ms,
            }
        )
    else:
        print(
            f"checkpoint at position {reply.position}: {reply.rows_written:,} rows, "
            f"{reply.bytes_written:,} bytes in {reply.duration_ms / 1000:.1f} s"
        )
    return Exit.OK
