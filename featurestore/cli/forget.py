"""`featurestore forget`: delete one key from a live store and all its files."""

from __future__ import annotations

import argparse

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.reaching import add_admin_arguments, admin_of, keys_of

DESCRIPTION = """\
Deletes the row of one key with all that was counted of it, the key itself where keys are kept, and the
journal up to now; returns when no file of the store holds them any more: a tombstone is journaled, a
checkpoint taken past it, and the older journal deleted. Later events of the key start empty.

What rows of other keys hold of it stays until it is older than their windows, and of lifetimes for good:
longer keys that it is a part of (forget each of them, too), its text in their lists of the most frequent
values, its hash in their distinct counts. A view with `store: sketch` keeps nothing of single keys, so
nothing can be taken out of it: what a key added stays, without its name.

Give all parts of one entity's key; together they say which entity is meant. Backups taken before still hold
it."""

EPILOG = """\
examples:
  featurestore forget customer_id=596 --admin unix:/var/lib/featurestore/admin.sock
  featurestore forget ip=10.0.0.1 track=t-17 --admin unix:/var/lib/featurestore/admin.sock"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("keys", nargs="+", metavar="NAME=VALUE", help="the parts of the key")
    add_admin_arguments(parser)
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> Exit:
    keys = keys_of(arguments.keys)
    with admin_of(arguments) as admin:
        reply = admin.forget(keys)
    if arguments.output == "json":
        print_json({"keys": keys, "found": reply.found, "position": reply.position})
    else:
        said = "forgotten" if reply.found else "nothing was kept of it; whatever the journal held is gone too"
        print(f"{' '.join(arguments.keys)}: {said}")
    return Exit.OK
