"""`featurestore get`: what a service says of some keys."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument
from featurestore.cli.reaching import add_server_arguments, client_of, columns, keys_of, printable
from featurestore.errors import ConfigError, InvalidEventError, StorageError

if TYPE_CHECKING:
    from featurestore.client import HeavyList, Pin, Vector

DESCRIPTION = """\
Reads one vector of a service, as a classifier would: a value per feature, and what the value means.

  PRESENT      the window holds at least one event; a count or sum with 0 between its bounds: perhaps
  NOT_FOUND    it certainly holds none: counts and sums are 0, other aggregates have no value
  WARMING      not all of the window has surely been seen: its view or the store is younger, or what is asked
               for lies ahead of the clock; the share that has stands behind
  UNAVAILABLE  it cannot be answered: its key was not given, its window begins before what is kept, a sum is
               beyond all numbers, or a mean (extreme, time, share) is of what may be no event"""

EPILOG = """\
examples:
  featurestore get --service fraud customer_id=596 terminal_id=3156
  featurestore get --pin model.pin.json customer_id=596 terminal_id=3156
  featurestore get --service fraud customer_id=596 --as-of 2018-07-01T12:00:00Z --bounds
  featurestore get --service fraud customer_id=596 -o json | jq '.features[] | select(.value > 10)'

many key sets, one JSON object a line, in and out:
  echo '{"customer_id": 596, "terminal_id": 3156}' | featurestore get --service fraud --keys-from - -o json"""

KEY_SETS_PER_CALL = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("keys", nargs="*", metavar="NAME=VALUE", help="the key's parts, such as ip=10.0.0.1")
    parser.add_argument("--service", metavar="S", help="the service to read; with --pin it is the pin's")
    parser.add_argument(
        "--pin",
        metavar="F",
        help="the vector that a model was trained on, of a file that Pin.save or `featurestore pins` wrote: "
        "read it, or fail where it cannot be served any more",
    )
    parser.add_argument(
        "--keys-from", metavar="F", help="read key sets from a file of JSON lines; - for standard input"
    )
    parser.add_argument(
        "--as-of",
        metavar="T",
        help="the time to read at: ISO 8601 (UTC unless it says otherwise) or ms, not seconds, since 1970 "
        "(default: now)",
    )
    parser.add_argument("--bounds", action="store_true", help="also read lower and upper bounds")
    parser.add_argument(
        "--lists",
        action="store_true",
        help="also list the most frequent values, of top(...), with their counts",
    )
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="S", help="give up after S seconds (default: 10)"
    )
    add_server_arguments(parser)
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> Exit:
    if arguments.keys and arguments.keys_from is not None:
        raise ConfigError("give keys as NAME=VALUE or --keys-from, not both")
    as_of = as_of_of(arguments.as_of)
    pin = None if arguments.pin is None else _pin(arguments.pin)
    if pin is None and arguments.service is None:
        raise ConfigError("give --service, or --pin")
    service = arguments.service if pin is None or arguments.service else pin.service
    with client_of(arguments) as client:
        if arguments.keys_from is None:
            keys = keys_of(arguments.keys)
            vector = client.get(service, keys, as_of, arguments.bounds, pin=pin)
            lists = client.heaviest(service, keys, as_of, pin=pin) if arguments.lists else None
            if arguments.output == "json":
                print(json.dumps(as_dict(keys, vector, lists), indent=2, ensure_ascii=False, allow_nan=False))
            else:
                print("\n".join([*as_lines(vector), *list_lines(lists or [])]))
            return Exit.OK
        first = True
        for some in _together(key_sets(arguments.keys_from)):
            vectors = client.get_many(service, some, as_of, arguments.bounds, pin=pin)
            for keys, vector in zip(some, vectors, strict=True):
                lists = client.heaviest(service, keys, as_of, pin=pin) if arguments.lists else None
                if arguments.output == "json":
                    print(json.dumps(as_dict(keys, vector, lists), ensure_ascii=False, allow_nan=False))
                    continue
                print("" if first else "\n", end="")
                print(" ".join(f"{name}={value}" for name, value in keys.items()))
                print("\n".join(f"  {line}" for line in [*as_lines(vector), *list_lines(lists or [])]))
                first = False
    return Exit.OK


def _pin(path: str) -> Pin:
    from featurestore.client import Pin

    return Pin.load(path)


def _together(sets: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while some := list(islice(sets, KEY_SETS_PER_CALL)):
        yield some


def as_of_of(text: str | None) -> int | str | None:
    """Milliseconds where it is a whole number, else the text."""
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        return text


def key_sets(path: str) -> Iterator[dict[str, Any]]:
    """One JSON object a line; empty lines are skipped."""
    name = "standard input" if path == "-" else path
    try:
        file = sys.stdin.buffer if path == "-" else Path(path).open("rb")  # noqa: SIM115  closed below
    except OSError as error:
        raise StorageError(f"cannot open {path}: {error.strerror}") from error
    try:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                keys = json.loads(line.decode())
            except UnicodeDecodeError as error:
                raise InvalidEventError(f"{name}, line {number}: not UTF-8 ({error})") from error
            except ValueError as error:
                raise InvalidEventError(f"{name}, line {number}: not JSON ({error})") from error
            if not isinstance(keys, dict) or any(isinstance(value, dict | list) for value in keys.values()):
                raise InvalidEventError(
                    f'{name}, line {number}: expected an object of keys such as {{"customer_id": 596}}'
                )
            yield keys
    finally:
        if file is not sys.stdin.buffer:
            file.close()


def as_dict(
    keys: Mapping[str, Any], vector: Vector, lists: Sequence[HeavyList] | None = None
) -> dict[str, Any]:
    """Plain JSON; a value that is not there is null."""
    features = []
    for i, name in enumerate(vector.names):
        feature = {"name": name, "value": number(vector.values[i]), "status": vector.status_names[i]}
        if vector.lower is not None and vector.upper is not None:
            feature |= {"lower": number(vector.lower[i]), "upper": number(vector.upper[i])}
        if vector.status_names[i] == "WARMING":
            feature["coverage"] = round(float(vector.coverage[i]), 6)
        features.append(feature)
    found: dict[str, Any] = {"keys": dict(keys), "now_ms": vector.now_ms, "features": features}
    if lists is not None:
        found["lists"] = [
            {
                "name": each.name,
                "status": each.status.name,
                **({"coverage": round(each.coverage, 6)} if each.status.name == "WARMING" else {}),
                "total": each.total,
                "total_lower": each.total_lower,
                "total_upper": each.total_upper,
                "rest_upper": each.rest_upper,
                "values": [
                    {"value": one.value, "count": one.count, "lower": one.lower, "upper": one.upper}
                    for one in each.values
                ],
            }
            for each in lists
        ]
    return found


def list_lines(lists: Sequence[HeavyList]) -> list[str]:
    """A table per list, each after an empty line."""
    lines: list[str] = []
    for each in lists:
        status = each.status.name
        if status == "WARMING":
            status += f" ({each.coverage:.0%} covered)"
        rows = [[each.name, "count", "lower", "upper"]]
        for one in each.values:
            value = f"(not kept, {one.hash:016x})" if one.value is None else printable(str(one.value))
            rows.append([value, shown(one.count), str(one.lower), str(one.upper)])
        rows.append(["each of the others", "", "0", str(each.rest_upper)])
        rows.append(["all events", shown(each.total), str(each.total_lower), str(each.total_upper)])
        lines += ["", *columns(rows, right=range(1, 4)), status]
    return lines


def number(value: float) -> float | None:
    """JSON has no NaN and no infinities; a bound that is infinite is no bound."""
    return float(value) if math.isfinite(value) else None


def as_lines(vector: Vector) -> list[str]:
    head = ["feature", "value", *(["lower", "upper"] if vector.lower is not None else []), "status"]
    rows = [head]
    for i, name in enumerate(vector.names):
        status = vector.status_names[i]
        if status == "WARMING":
            status += f" ({vector.coverage[i]:.0%} covered)"
        bounds = []
        if vector.lower is not None and vector.upper is not None:
            bounds = [shown(vector.lower[i]), shown(vector.upper[i])]
        rows.append([name, shown(vector.values[i]), *bounds, status])
    return columns(rows, right=range(1, len(head) - 1))


def shown(value: float) -> str:
    """Enough digits to compare two by eye; `-` for no value."""
    return "-" if math.isnan(value) else f"{value:.10g}"
