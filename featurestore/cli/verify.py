"""`featurestore verify`: reads everything in a store and names what is wrong."""

from __future__ import annotations

import argparse

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json

DESCRIPTION = """\
Reads everything in the store in DIR: every checksum, every row, every frame of the journal, and whether they
belong together. Names each problem on a line. Nothing is written. The store must not be open: stop the server
first, or give a backup."""

EPILOG = """\
examples:
  featurestore verify /backups/monday && echo sound
  featurestore verify /var/lib/featurestore -o json | jq -r .problems[]

exit code 1 means that there are problems."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("directory", metavar="DIR", help="the store's data directory, or a backup")
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> Exit:
    from featurestore.storage.check import verify

    problems = list(verify(arguments.directory))
    if arguments.output == "json":
        print_json({"directory": arguments.directory, "problems": problems})
    else:
        print("\n".join(problems) if problems else f"{arguments.directory}: sound")
    return Exit.ERROR if problems else Exit.OK
