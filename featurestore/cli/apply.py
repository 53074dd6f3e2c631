"""`featurestore apply`: change the schema of a live store."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.quantities import seconds_of
from featurestore.cli.reaching import add_admin_arguments, admin_of
from featurestore.errors import StorageError

DESCRIPTION = """\
Has a live store serve another schema from now on, and says all that it changes, by kind:

  FREE     adds, or takes nothing away: anything new (its windows are WARMING until full, its lifetimes for
           good), longer windows, derived features. A new field of an event type is judged from now on:
           whoever sends that name with another type, or leaves it out beside undeclared ones, is refused
  DROP     a view goes with its state, a feature, a member of a service, a service, an event type, a field
  RESET    state begins anew
  NARROW   less is kept: shorter windows, lateness or lifetime_idle
  ORDER    other values at the same places of a service's vector, or of events sent by position
  ERASE    kept keys are erased
  CLOCK    time is read, or events are told apart, by something else

What goes is kept for --grace as it was: its events are counted, vectors that list it are served to who asks
by their fingerprint, and the file before, applied again, takes all of it back. Then it is freed.

Everything but FREE needs --allow: without it the change is refused, and nothing is changed. What a view's
state consists of (key, filter, columns, offset, error settings) cannot be changed under its name: declare a
second view beside it.

The server checks the file against the schema it serves; a mistake is named with its line and changes
nothing."""

EPILOG = """\
examples:
  featurestore apply card-fraud.yaml --admin unix:/var/lib/featurestore/admin.sock --dry-run
  featurestore apply card-fraud.yaml --admin unix:/var/lib/featurestore/admin.sock --allow drop,order \\
      --expect-version 12 --note 'anna: model 7'

exit code 1 means that the schema is wrong, may not follow the one being served, takes away what was not
allowed, or was made for another version; nothing was changed."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("schema", metavar="SCHEMA", help="the schema file")
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")
    parser.add_argument(
        "--allow",
        metavar="KINDS",
        default="",
        help="kinds of change that may be made, such as drop,order: those that --dry-run says are needed",
    )
    parser.add_argument(
        "--expect-version",
        type=int,
        metavar="N",
        help="change nothing unless the store serves version N: another may have been applied meanwhile",
    )
    parser.add_argument(
        "--grace",
        metavar="TIME",
        help="for so long what is not declared any more is kept as it was (default: 1h; at most 30d)",
    )
    parser.add_argument("--note", default="", metavar="TEXT", help="who and why, for the server's log")
    add_admin_arguments(parser)
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> Exit:
    try:
        source = Path(arguments.schema).read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot read {arguments.schema}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StorageError(f"cannot read {arguments.schema}: it is not UTF-8 ({error})") from error
    from featurestore.client.admin import kind_word

    with admin_of(arguments) as admin:
        reply = admin.apply_schema(
            source,
            arguments.schema,
            dry_run=arguments.dry_run,
            allow=[kind for kind in arguments.allow.split(",") if kind],
            expect_version=arguments.expect_version,
            note=arguments.note,
            grace_s=None if arguments.grace is None else seconds_of(arguments.grace, "--grace"),
        )
    kept_until = None
    if reply.HasField("kept_until_ms"):
        kept_until = (
            datetime.fromtimestamp(reply.kept_until_ms // 1000, UTC).isoformat().replace("+00:00", "Z")
        )
    needed = [kind_word(kind) for kind in sorted({each.kind for each in reply.changes if each.consent})]
    if arguments.output == "json":
        print_json(
            {
                "version": reply.version,
                "dry_run": arguments.dry_run,
                "position": reply.position,
                "added_features": list(reply.added_features),
                "removed_features": list(reply.removed_features),
                "changes": [
                    {
                        "kind": kind_word(change.kind).upper(),
                        "subject": change.subject,
                        "before": change.before,
                        "after": change.after,
                        "consent": change.consent,
                    }
                    for change in reply.changes
                ],
                "needs_allow": needed,
                "kept_until": kept_until,
                "pins_broken": [
                    {
                        "service": each.service,
                        "fingerprint": f"{each.fingerprint:016x}",
                        "missing": each.missing or None,
                    }
                    for each in reply.pins_broken
                ],
            }
        )
        return Exit.OK
    for change in reply.changes:
        print(change.line)
    for each in reply.pins_broken:
        why = f": {each.missing}" if each.missing else ""
        when = "" if kept_until is None else f" at {kept_until}"
        print(f"pin {each.service} {each.fingerprint:016x} breaks{when}{why}")
    if kept_until is not None:
        print(
            f"what is not declared any more is kept until {kept_until} at least: so long the schema before "
            "takes it back"
        )
    if arguments.dry_run and needed:
        print(f"needs --allow {','.join(needed)}")
    would = "would be" if arguments.dry_run else "is"
    print(f"schema version {reply.version} {would} served; {_count(len(reply.changes))}")
    return Exit.OK


def _count(n: int) -> str:
    return "nothing changes" if n == 0 else f"{n} change{'s' if n > 1 else ''}"
