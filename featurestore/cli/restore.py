"""`featurestore restore`: makes a store of a backup."""

from __future__ import annotations

import argparse

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json

DESCRIPTION = """\
Makes a store in the new directory DIR of the backup BACKUP, after reading all of the backup: one that has
problems is refused. The store is durable when the command returns, and `serve --data DIR` opens it."""

EPILOG = """\
examples:
  featurestore restore /backups/monday /var/lib/featurestore"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("backup", metavar="BACKUP", help="a backup, or the data directory of a stopped store")
    parser.add_argument("directory", metavar="DIR", help="where to make the store: new, or empty")
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> Exit:
    from featurestore.storage.check import restore

    position = restore(arguments.backup, arguments.directory)
    if arguments.output == "json":
        print_json({"directory": arguments.directory, "position": position})
    else:
        print(f"{arguments.directory}: restored up to position {position:,}")
    return Exit.OK
