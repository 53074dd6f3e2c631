"""`featurestore backup`: copy a live store to a directory on its machine."""

from __future__ import annotations

import argparse

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.reaching import add_admin_arguments, admin_of
from featurestore.errors import ConfigError

DESCRIPTION = """\
Copies a live store, consistent at one position, to a directory on the *server's* machine that does not exist
yet. The copy is a data directory like any other: `featurestore serve --data` opens it. It holds the store's
secret, so keep it as safe as the store."""

EPILOG = """\
examples:
  featurestore backup /backup/fs-2024-05-01 --admin unix:/var/lib/featurestore/admin.sock"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("directory", metavar="DIR", help="absolute path on the server's machine")
    add_admin_arguments(parser)
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> Exit:
    if not arguments.directory.startswith("/"):
        raise ConfigError(f"{arguments.directory!r} is not absolute; it is a path on the server's machine")
    with admin_of(arguments) as admin:
        reply = admin.backup(arguments.directory)
    if arguments.output == "json":
        print_json(
            {
                "directory": arguments.directory,
                "position": reply.position,
                "bytes_written": reply.bytes_written,
            }
        )
    else:
        print(f"{arguments.directory}: position {reply.position}, {reply.bytes_written:,} bytes")
    return Exit.OK
