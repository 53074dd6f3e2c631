"""`featurestore demo`: real logs in, the addresses that stand out, out."""

from __future__ import annotations

import argparse
import math
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.cli import demo_music
from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.generate import add_traffic_arguments, traffic_of
from featurestore.cli.get import as_dict as vector_as_dict
from featurestore.cli.progress import Progress
from featurestore.cli.reaching import columns
from featurestore.errors import ConfigError

if TYPE_CHECKING:
    from featurestore.client import Vector
    from featurestore.demo.run import Found, FoundGroup, LogResult, Result

DESCRIPTION = """\
Starts a server on a store of its own in a temporary directory and feeds it two real logs over gRPC: 1,121
lines of an SSH server's (2017) and 10,000 requests to a web server (2015), which come out of order. Then it
reads, for every event, the vector that a classifier would have been given, and shows the addresses whose
velocities are beyond what 95 of 100 addresses ever reach, each at its worst moment.

The logs and the schema (demo.yaml, with comments that explain it) are part of the package.

With --music, instead: made-up traffic of a music service with five kinds of abuse in it, labelled, through
the schema music.yaml; one simple rule for each kind, how much of it the rule finds, and which honest people
it takes for it."""

EPILOG = """\
examples:
  featurestore demo
  featurestore demo --keep demo-store        then serve it and ask it yourself; it says how
  featurestore demo -o json | jq '.logs[0].groups[].addresses[].keys.ip'
  featurestore demo --music --users 500 --days 3 --strength 4"""

WIDTH = 120  # of a line where the output is no terminal
NARROWEST = 12  # of the last column, where paths are cut to fit
UNIT_BYTES = 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "--keep", metavar="DIR", help="put the store into this new directory, and leave it there"
    )
    parser.add_argument(
        "--top", type=int, default=3, metavar="N", help="addresses to show for each reason (default: 3)"
    )
    parser.add_argument("--music", action="store_true", help="made-up traffic of a music service instead")
    add_traffic_arguments(parser.add_argument_group("with --music"))
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> Exit:
    if not 1 <= arguments.top <= 1000:
        raise ConfigError(f"--top is {arguments.top}; it must be from 1 to 1000")
    keep = None if arguments.keep is None else Path(arguments.keep)
    if arguments.music:
        return _run_music(arguments, keep)
    # heavy: numpy, grpc, the engine
    from featurestore.demo.run import run as run_demo

    result = run_demo(keep, n_each=arguments.top, on_step=_say_step)
    if arguments.output == "json":
        print_json(as_dict(result, keep))
    else:
        print("\n".join([*as_lines(result), "", *next_lines(result, keep)]))
    return Exit.OK


def _run_music(arguments: argparse.Namespace, keep: Path | None) -> Exit:
    from featurestore.demo.music import run as run_music

    traffic = traffic_of(arguments)
    with Progress("demo", 24 * traffic.days, None, unit="h") as bar:
        result = run_music(keep, traffic, on_hour=bar.update)
    if arguments.output == "json":
        print_json(demo_music.as_dict(result, arguments.top, keep))
    else:
        lines = demo_music.as_lines(result, arguments.top)
        print("\n".join([*lines, "", *demo_music.next_lines(result, command_name(), keep)]))
    return Exit.OK


def _say_step(text: str) -> None:
    if sys.stderr.isatty():
        print(f"… {text}", file=sys.stderr)


@dataclass(frozen=True)
class Column:
    """One column of the table: two lines of heading, and how to make its cell of a vector."""

    over: str
    head: str
    cell: Callable[[Vector], str]


def _count(over: str, head: str, feature: str) -> Column:
    return Column(over, head, lambda vector: _bounded(vector, feature, lambda value: f"{value:,.0f}"))


def _megabytes(over: str, head: str, feature: str) -> Column:
    return Column(
        over, head, lambda vector: _bounded(vector, feature, lambda value: f"{value / UNIT_BYTES:,.1f}")
    )


def _share(over: str, head: str, of: str, others: tuple[str, ...]) -> Column:
    """`of` as a share of the sum of `others`."""

    def cell(vector: Vector) -> str:
        whole = sum(vector[name] for name in others)
        return f"{vector[of] / whole:.0%}" if whole else ""

    return Column(over, head, cell)


TABLES = {
    "ssh": (
        _count("failed", "10m", "ssh_ip.failed_10m"),
        _count("", "1h", "ssh_ip.failed_1h"),
        _count("", "1d", "ssh_ip.failed_1d"),
        _count("unknown", "users 1d", "ssh_ip.unknown_user_1d"),
        _count("got", "in 1d", "ssh_ip.accepted_1d"),
        _share("share", "failed", "ssh_ip.failed_1d", ("ssh_ip.failed_1d", "ssh_ip.accepted_1d")),
        _count("on this", "user 1d", "ssh_user.failed_1d"),
    ),
    "web": (
        _count("requests", "1h", "web_ip.requests_1h"),
        _count("", "1d", "web_ip.requests_1d"),
        _count("errors", "1h", "web_ip.errors_1h"),
        _count("", "1d", "web_ip.errors_1d"),
        _share("share", "errors", "web_ip.errors_1d", ("web_ip.requests_1d",)),
        _megabytes("MB", "1h", "web_ip.bytes_1h"),
        _count("this", "page 1d", "web_page.requests_1d"),
    ),
}


def _bounded(vector: Vector, feature: str, shown: Callable[[float], str]) -> str:
    """The value; its bounds where it is not exact; `-` where there is none."""
    i = vector.names.index(feature)
    value = float(vector.values[i])
    if math.isnan(value) or vector.lower is None or vector.upper is None:
        return "-"
    lower, upper = shown(float(vector.lower[i])), shown(float(vector.upper[i]))
    return shown(value) if lower == upper else f"{lower}..{upper}"


def _status(vector: Vector) -> str:
    """Of the whole vector: how much of the longest window has been seen where not all of it, else PRESENT."""
    covered = [
        float(share)
        for share, name in zip(vector.coverage, vector.status_names, strict=True)
        if name == "WARMING"
    ]
    return f"WARMING {min(covered):.0%}" if covered else "PRESENT"


def as_lines(result: Result) -> list[str]:
    lines: list[str] = []
    for log in result.logs:
        lines += [*_table(log), ""]
    vectors = [found.vector for log in result.logs for group in log.groups for found in group.found]
    return [*lines, *legend(vectors), "", *_summary(result)]


def _table(result: LogResult) -> list[str]:
    """All groups of one log in one table, so that their columns stand under each other."""
    shape = TABLES[result.log.service]
    other_part = list(result.log.keys)[1]
    found = [one for group in result.groups for one in group.found]
    rows = [
        ["", "", *(column.over for column in shape), ""],
        ["address", "as of (UTC)", *(column.head for column in shape), "status"],
        *(_row(one, shape) for one in found),
    ]
    aligned = columns(rows, right=range(2, 2 + len(shape)))
    start = 2 + max(map(len, aligned))
    others = ["", other_part, *(one.keys.get(other_part, "(none given)") for one in found)]
    room = max(shutil.get_terminal_size((WIDTH, 0)).columns - start, NARROWEST)
    over, head, *body = (
        f"{line:<{start}}{_cut(other, room)}".rstrip() for line, other in zip(aligned, others, strict=True)
    )
    lines = [f"{result.log.title}: {result.n_events:,} events of {result.n_addresses:,} addresses"]
    lines += [over, head]
    for group in result.groups:
        lines.append(f"those who {group.watched.means} ({_usual(group)})")
        lines += body[: len(group.found)]
        del body[: len(group.found)]
    return lines


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1] + "…"


def _usual(group: FoundGroup) -> str:
    is_bytes = "bytes" in group.watched.feature
    usual = f"{group.usual / UNIT_BYTES:.1f} MB" if is_bytes else f"{group.usual:.0f}"
    return f"95 % of addresses: at most {usual}"


def _row(found: Found, shape: tuple[Column, ...]) -> list[str]:
    address = next(iter(found.keys.values()))
    at = found.at.removesuffix("Z").replace("T", " ")
    return [f"  {address}", at, *(column.cell(found.vector) for column in shape), _status(found.vector)]


def legend(vectors: list[Vector]) -> list[str]:
    """What the marks in the table mean, of those that occur."""
    lines = ["Each line is one vector, read over gRPC as of the address's worst moment."]
    if any(_is_bounded(vector) for vector in vectors):
        lines.append(
            "A number is exact. Two, as in 192..193, are bounds: of web_ip a row is exact up to 256 events."
        )
    names = {name for vector in vectors for name in vector.status_names}
    if "NOT_FOUND" in names:
        lines.append("0 is NOT_FOUND: the window certainly holds none.")
    if "UNAVAILABLE" in names:
        lines.append(
            "- is UNAVAILABLE, never a 0: it cannot be answered, here because the event names no user."
        )
    if "WARMING" in names:
        lines.append("WARMING: the store had seen only this share of the longest window by then.")
    return lines


def _is_bounded(vector: Vector) -> bool:
    """Some value of it is not exact."""
    return vector.lower is not None and vector.upper is not None and bool((vector.lower < vector.upper).any())


def _summary(result: Result) -> list[str]:
    n_out_of_order = sum(log.n_out_of_order for log in result.logs)
    return [
        f"{result.accepted:,} events accepted, {result.late:,} late, {result.duplicate:,} duplicates "
        f"(the SSH log was sent twice), {result.refused:,} refused, in {result.feed_seconds:.1f} s",
        f"{n_out_of_order:,} of them came out of order and are counted at their own time; "
        f"{result.rows:,} rows in {result.row_bytes / UNIT_BYTES:.1f} MB",
        f"{result.vectors_read:,} vectors read in {result.read_seconds:.1f} s; {result.seconds:.1f} s in all",
    ]


def next_lines(result: Result, keep: Path | None) -> list[str]:
    command = command_name()
    if keep is None:
        return [f"Next: {command} demo --keep demo-store    keeps the store, and says how to ask it yourself"]
    first = result.logs[0].groups[0].found[0]
    keys = " ".join(shlex.quote(f"{part}={value}") for part, value in first.keys.items())
    return [
        f"Next: {command} serve --data {shlex.quote(str(keep))} &",
        f"      {command} get --service {result.logs[0].log.service} {keys} --as-of {first.at} --bounds",
    ]


def command_name() -> str:
    """How the user called this program."""
    called = sys.argv[0]
    found = shutil.which("featurestore")
    if Path(called).name != "featurestore":
        return "python -m featurestore"
    is_on_path = found is not None and Path(found).resolve() == Path(called).resolve()
    return "featurestore" if is_on_path else shlex.quote(called)


def as_dict(result: Result, keep: Path | None) -> dict[str, Any]:
    return {
        "logs": [_log_as_dict(log) for log in result.logs],
        "events": {
            "accepted": result.accepted,
            "late": result.late,
            "duplicate": result.duplicate,
            "refused": result.refused,
        },
        "rows": result.rows,
        "row_bytes": result.row_bytes,
        "vectors_read": result.vectors_read,
        "seconds": round(result.seconds, 3),
        "store": None if keep is None else str(keep),
    }


def _log_as_dict(result: LogResult) -> dict[str, Any]:
    return {
        "file": result.log.file,
        "event": result.log.event,
        "service": result.log.service,
        "events": result.n_events,
        "addresses": result.n_addresses,
        "out_of_order": result.n_out_of_order,
        "groups": [
            {
                "feature": group.watched.feature,
                "means": group.watched.means,
                "usual": group.usual,
                "addresses": [
                    {"as_of": found.at, **vector_as_dict(found.keys, found.vector)} for found in group.found
                ],
            }
            for group in result.groups
        ],
    }
