"""`featurestore clock`: what time it is for a live store, and to believe a wall clock that has leapt."""

from __future__ import annotations

import argparse

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.reaching import add_admin_arguments, admin_of, columns
from featurestore.cli.stats import row

DESCRIPTION = """\
A wall clock that is set ahead (by hand, or by a broken time server) would expire all that a store holds, and
make every event by an honest clock late. So the server follows it only as far as time has passed since it
started, and a minute. Where it leaps further, a store of the wall clock takes no writes until the clock is
set right; its log says so, and the metric `featurestore_clock_ahead_seconds`. A machine whose hypervisor
paused it for longer, or that started before its clock was set, looks the same: accept it then.

  show    says what the server's clock, the store's and that of each event type are
  accept  the leap is right, the clock was wrong before: writes go on, and what is older than its windows by
          the clock as it is now expires"""

EPILOG = """\
examples:
  featurestore clock show --admin unix:/var/lib/featurestore/admin.sock
  featurestore clock accept --admin unix:/var/lib/featurestore/admin.sock"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    actions = parser.add_subparsers(dest="action", metavar="show|accept", required=True)
    for name, summary, run_it in (
        ("show", "say what time it is", _show),
        ("accept", "believe a wall clock that has leapt ahead", _accept),
    ):
        action = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        action.set_defaults(run_it=run_it)
        add_admin_arguments(action)
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
