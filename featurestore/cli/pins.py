"""`featurestore pins`: the vectors that services are and were, and who still asks for them."""

from __future__ import annotations

import argparse
from typing import Any

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.reaching import add_admin_arguments, admin_of, columns
from featurestore.errors import ConfigError, StorageError, UnknownNameError

DESCRIPTION = """\
A service is a vector: its features in their order. When it becomes another, a live store remembers what it
was, the last eight vectors of each service; who asks for one by its fingerprint, as client libraries do for
the one that they first read, is answered in its order for as long as every feature of it is there and means
what it meant.

The list has of each service the current vector first. It says how many features each has, whether it is
served (or the first feature that is gone), how often it was read since the server started, how often a second
over the last minute, and how long ago last: an old pin that is still read has a client that runs on it. The
answer of `featurestore apply F --dry-run` says which vectors a change of schema breaks."""

EPILOG = """\
examples:
  featurestore pins --admin unix:/var/lib/featurestore/admin.sock
  featurestore pins --admin unix:/var/lib/featurestore/admin.sock --save fraud=model.pin.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "--save",
        metavar="S=F",
        help="also write the current vector of service S to file F: the pin of a model trained on it",
    )
    add_admin_arguments(parser)
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> Exit:
    service, _, path = (arguments.save or "").partition("=")
    if arguments.save is not None and not (service and path):
        raise ConfigError(f"save is {arguments.save!r}; it is SERVICE=FILE", setting="save")
    with admin_of(arguments) as admin:
        found = list(admin.pins().pins)
    if service:
        _save(service, path, found)
    if arguments.output == "json":
        print_json({"pins": [_as_dict(each) for each in found]})
        return Exit.OK
    rows = [["service", "pin", "features", "served", "calls", "calls/s", "last"], *map(_row, found)]
    print("\n".join(columns(rows, right=[2, 4, 5])))
    return Exit.OK


def _save(service: str, path: str, found: list[Any]) -> None:
    from featurestore.client import Pin

    for each in found:
        if each.service == service and each.current:
            try:
                Pin(service, each.fingerprint, tuple(each.features)).save(path)
            except OSError as error:
                raise StorageError(f"cannot write {path}: {error.strerror}") from error
            return
    known = ", ".join(dict.fromkeys(each.service for each in found)) or "none"
    raise UnknownNameError(f"there is no service {service!r}; there is {known}")


def _as_dict(each: Any) -> dict[str, object]:
    return {
        "service": each.service,
        "fingerprint": f"{each.fingerprint:016x}",
        "features": list(each.features),
        "current": each.current,
        "served": not each.missing,
        "missing": each.missing or None,
        "calls": each.calls,
        "calls_per_s": each.calls_per_s,
        "asked_ms_ago": each.asked_ms_ago if each.HasField("asked_ms_ago") else None,
    }


def _row(each: Any) -> list[str]:
    served = f"no: {each.missing}" if each.missing else "current" if each.current else "yes"
    last = f"{each.asked_ms_ago / 1000:.0f} s ago" if each.HasField("asked_ms_ago") else "-"
    pin = f"{each.fingerprint:016x}"
    rate = f"{each.calls_per_s:.2f}"
    return [each.service, pin, str(len(each.features)), served, str(each.calls), rate, last]
