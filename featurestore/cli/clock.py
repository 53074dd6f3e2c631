"""`featurestore clock`: what time it is for a store, to believe a wall clock that has leapt, and to change
the store's."""

from __future__ import annotations

import argparse
from pathlib import Path

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.reaching import add_admin_arguments, admin_of, columns
from featurestore.cli.stats import row
from featurestore.config import ServeConfig
from featurestore.errors import ConfigError

DESCRIPTION = """\
A wall clock that is set ahead (by hand, or by a broken time server) would expire all that a store holds, and
make every event by an honest clock late. So the server follows it only as far as time has passed since it
started, and a minute. Where it leaps further, a store of the wall clock takes no writes until the clock is
set right; its log says so, and the metric `featurestore_clock_ahead_seconds`. A machine whose hypervisor
paused it for longer, or that started before its clock was set, looks the same: accept it then.

  show    says what the server's clock, the store's and that of each event type are
  accept  the leap is right, the clock was wrong before: writes go on, and what is older than its windows by
          the clock as it is now expires
  wall    a store whose clock events moved (event, merged) goes live: its clock is the server's from here on,
          for good. What it has seen stays so; what is older than its windows by then expires. Refused while
          an event type's clock is more than 10 s ahead of the server's
  back    the server's clock was ahead of the truth, was believed, and is right again: the store's, which
          never goes back by itself, is set back to it, so that events are late by it no more. Nothing counts
          as seen before then: windows are WARMING until they have passed, lifetimes for good; events older
          than that are refused where they have ids; sketches, distinct counts, lists and decayed sums begin
          anew. A server that does not start for this does with `featurestore serve --clock-back`

wall and back change what is read, so they need consent: --allow clock."""

EPILOG = """\
examples:
  featurestore clock show --admin unix:/var/lib/featurestore/admin.sock
  featurestore clock accept --admin unix:/var/lib/featurestore/admin.sock
  featurestore clock wall --data /var/lib/featurestore --allow clock
  featurestore clock back --admin unix:/var/lib/featurestore/admin.sock --allow clock"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    actions = parser.add_subparsers(dest="action", metavar="show|accept|wall|back", required=True)
    for name, summary, run_it in (
        ("show", "say what time it is", _show),
        ("accept", "believe a wall clock that has leapt ahead", _accept),
        ("wall", "have the store go by the server's clock from here on", _wall),
        ("back", "set the store's clock back to the server's, which was wrong", _back),
    ):
        action = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        action.set_defaults(run_it=run_it)
        if name == "wall":
            action.add_argument("--data", metavar="DIR", help="the directory of a store that nobody serves")
        add_admin_arguments(action, required=name != "wall")
        if name in ("wall", "back"):
            action.add_argument(
                "--allow", metavar="KINDS", default="", help="clock: without, nothing is changed"
            )
        add_output_argument(action)


def run(arguments: argparse.Namespace) -> Exit:
    arguments.run_it(arguments)
    return Exit.OK


def _show(arguments: argparse.Namespace) -> None:
    with admin_of(arguments) as admin:
        reply = admin.stats()
    now_ms = reply.now_ms if reply.HasField("now_ms") else None
    clocks_ms = dict(sorted(reply.clocks_ms.items()))
    if arguments.output == "json":
        print_json(
            {
                "server_ms": reply.server_ms,
                "leap_ms": reply.leap_ms,
                "now_ms": now_ms,
                "clocks_ms": clocks_ms,
            }
        )
        return
    rows = [["server", row("server_ms", reply.server_ms)[1]], ["store", row("now_ms", now_ms)[1]]]
    rows += [[event, row("now_ms", ms)[1]] for event, ms in clocks_ms.items()]
    print("\n".join(columns(rows)))
    if reply.leap_ms:
        print(f"the machine's clock is {reply.leap_ms / 1000:,.1f} s further ahead than time has passed")


def _accept(arguments: argparse.Namespace) -> None:
    with admin_of(arguments) as admin:
        reply = admin.accept_clock()
    if arguments.output == "json":
        print_json({"leap_ms": reply.leap_ms})
    elif reply.leap_ms:
        print(f"the wall clock is believed, {reply.leap_ms / 1000:,.1f} s ahead of where it was expected")
    else:
        print("the wall clock had not leapt; nothing has changed")


def _wall(arguments: argparse.Namespace) -> None:
    if (arguments.data is None) == (arguments.admin is None):
        raise ConfigError("give --data of a store that nobody serves, or --admin of the server that does")
    allow = _words_of(arguments.allow)
    if arguments.data is None:
        with admin_of(arguments) as admin:
            position = admin.set_wall_clock(allow=allow).position
    else:
        from featurestore.server.serve import open_store

        with open_store(ServeConfig(data=Path(arguments.data))) as engine:
            position = engine.set_wall_clock(allow=allow) or 0
    _changed(arguments, position, "the store's clock is the server's from here on")


def _back(arguments: argparse.Namespace) -> None:
    with admin_of(arguments) as admin:
        position = admin.set_clock_back(allow=_words_of(arguments.allow)).position
    _changed(arguments, position, "the store's clock is set back to the server's")


def _changed(arguments: argparse.Namespace, position: int, words: str) -> None:
    if arguments.output == "json":
        print_json({"position": position})
    elif position:
        print(f"{words}; position {position}")
    else:
        print("the store's clock was so already; nothing has changed")


def _words_of(allow: str) -> list[str]:
    return [kind for kind in allow.split(",") if kind]
