"""`featurestore producers`: who is remembered to have written, and what an operator may change of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.reaching import add_admin_arguments, admin_of, columns, printable
from featurestore.errors import ConfigError

DESCRIPTION = """\
A live store remembers of each producer its epoch and its newest sequences, so that a batch that is sent again
counts once. A producer is forgotten after 7 days of silence, or 15 minutes where a client made its name up.

  list    says who is remembered
  drop    forgets one at once. A batch of it that is sent again afterwards counts again
  reset   says where one goes on, after another has written under its name with a higher epoch or sequence
          and so fenced it off. Its client says in its error which epoch and sequence it sends. What it sends
          again from up to the sequence given here is refused, since nobody can tell whether it had counted

Both are journaled, and answered when they are on disk."""

EPILOG = """\
examples:
  featurestore producers list --admin unix:/var/lib/featurestore/admin.sock
  featurestore producers drop ingest-7 --admin unix:/var/lib/featurestore/admin.sock
  featurestore producers reset ingest-1 --epoch 3 --sequence 1841 \\
      --admin unix:/var/lib/featurestore/admin.sock"""

LAST_NUMBER = (1 << 63) - 1
MOST_LETTERS = 255  # of a name: it must be there in full, to be given to `drop`


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    actions = parser.add_subparsers(dest="action", metavar="list|drop|reset", required=True)

    def add(name: str, summary: str, run_it: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        action.set_defaults(run_it=run_it)
        return action

    listed = add("list", "say who is remembered", _list)
    dropped = add("drop", "forget a producer: what it sends again counts again", _drop)
    reset = add("reset", "say where a producer goes on that another has fenced off", _reset)
    for action in (dropped, reset):
        action.add_argument("name", metavar="NAME", help="the producer, as `list` has it")
    for word in ("epoch", "sequence"):
        reset.add_argument(
            f"--{word}",
            required=True,
            type=int,
            metavar="N",
            help="the epoch that it goes on in" if word == "epoch" else "the last one that it has used there",
        )
    for action in (listed, dropped, reset):
        add_admin_arguments(action)
        add_output_argument(action)


def run(arguments: argparse.Namespace) -> Exit:
    arguments.run_it(arguments)
    return Exit.OK


def _list(arguments: argparse.Namespace) -> None:
    with admin_of(arguments) as admin:
        found = sorted(admin.producers(), key=lambda each: each.name)
    if arguments.output == "json":
        print_json({"producers": [_as_dict(each) for each in found]})
        return
    rows = [["producer", "name", "epoch", "sequence", "heard"], *map(_row, found)]
    print("\n".join(columns(rows, right=[2, 3])))


def _as_dict(each: Any) -> dict[str, object]:
    return {
        "name": each.name or None,
        "made_up": each.made_up,
        "epoch": each.epoch,
        "sequence": each.sequence,
        "heard_ms": each.heard_ms if each.HasField("heard_ms") else None,
    }


def _row(each: Any) -> list[str]:
    heard = "not known"
    if each.HasField("heard_ms"):
        heard = datetime.fromtimestamp(each.heard_ms / 1000, UTC).isoformat(" ", "seconds")
    return [
        printable(each.name, MOST_LETTERS) if each.name else "(not known yet)",
        "made up" if each.made_up else "given",
        str(each.epoch),
        str(each.sequence),
        heard,
    ]


def _drop(arguments: argparse.Namespace) -> None:
    with admin_of(arguments) as admin:
        reply = admin.drop_producer(arguments.name)
    if arguments.output == "json":
        print_json({"name": arguments.name, "position": reply.position})
    else:
        print(
            f"{printable(arguments.name, MOST_LETTERS)}: forgotten; a batch that it sends again counts again"
        )


def _reset(arguments: argparse.Namespace) -> None:
    for word in ("epoch", "sequence"):
        if not 0 <= getattr(arguments, word) <= LAST_NUMBER:
            raise ConfigError(f"--{word} is {getattr(arguments, word)}; it is from 0 to {LAST_NUMBER}")
    with admin_of(arguments) as admin:
        reply = admin.reset_producer(arguments.name, epoch=arguments.epoch, sequence=arguments.sequence)
    if arguments.output == "json":
        print_json(
            {
                "name": arguments.name,
                "epoch": arguments.epoch,
                "sequence": arguments.sequence,
                "position": reply.position,
            }
        )
    else:
        print(
            f"{printable(arguments.name, MOST_LETTERS)}: goes on in epoch {arguments.epoch} "
            f"above sequence {arguments.sequence}"
        )
