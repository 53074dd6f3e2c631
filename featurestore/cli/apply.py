"""`featurestore apply`: change the schema of a live store."""

from __future__ import annotations

import argparse
from pathlib import Path

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.reaching import add_admin_arguments, admin_of
from featurestore.errors import StorageError

DESCRIPTION = """\
Has a live store serve another schema from now on: new views begin to count (their windows are WARMING until
full, their lifetimes for good), those that are gone are dropped with their state, all others go on
undisturbed. What a view's state consists of (key, filter, columns, offset, error settings) cannot be changed
under its name: use a new one.

The server checks the file against the schema it serves; a mistake is named with its line and changes
nothing."""

EPILOG = """\
examples:
  featurestore apply card-fraud.yaml --admin unix:/var/lib/featurestore/admin.sock --dry-run
  featurestore apply card-fraud.yaml --admin unix:/var/lib/featurestore/admin.sock

exit code 1 means that the schema is wrong or may not follow the one being served; nothing was changed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("schema", metavar="SCHEMA", help="the schema file")
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")
    add_admin_arguments(parser)
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> Exit:
    try:
        source = Path(arguments.schema).read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot read {arguments.schema}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StorageError(f"cannot read {arguments.schema}: it is not UTF-8 ({error})") from error
    with admin_of(arguments) as admin:
        reply = admin.apply_schema(source, arguments.schema, dry_run=arguments.dry_run)
    added, removed = list(reply.added_features), list(reply.removed_features)
    if arguments.output == "json":
        print_json(
            {
                "version": reply.version,
                "dry_run": arguments.dry_run,
                "position": reply.position,
                "added_features": added,
                "removed_features": removed,
            }
        )
        return Exit.OK
    for sign, names in (("+", added), ("-", removed)):
        for name in names:
            print(f"{sign} {name}")
    would = "would be" if arguments.dry_run else "is"
    print(f"schema version {reply.version} {would} served; {len(added)} features new, {len(removed)} gone")
    return Exit.OK
