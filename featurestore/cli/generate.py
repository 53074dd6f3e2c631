"""`featurestore generate`: made-up traffic of a music service, labelled, into files."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.progress import Progress
from featurestore.errors import ConfigError, StorageError
from featurestore.storage.directory import entries

if TYPE_CHECKING:
    from featurestore.demo.traffic import Traffic

DESCRIPTION = """\
Writes made-up traffic of a music service into DIR, one file per event type (play, signup, login, action), in
time order: honest people with their habits, and five kinds of abuse among them. The columns are those of the
schema music.yaml, which is written beside them, and two that the schema does not know: `label` (benign,
play_farm, follow_ring, comment_spam, signup_farm or account_takeover) and `role`, which says more: an office,
a sleeper, a farm on many ips.

The same arguments write the same events on every machine. Memory is that of the people and of one hour."""

EPILOG = """\
examples:
  featurestore generate traffic --users 10000 --days 14
  featurestore replay traffic/play.parquet --schema traffic/music.yaml --event play --service play \\
      --keep label,role --out train.parquet
  featurestore demo --music        the same traffic through a server, and simple rules beside the labels"""

FORMATS = ("parquet", "csv", "csv.gz", "csv.zst")
WRITTEN_EVENTS = 100_000  # at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("directory", metavar="DIR", help="a directory that does not exist yet, or is empty")
    add_traffic_arguments(parser)
    parser.add_argument(
        "--format", choices=FORMATS, default="parquet", help="of the files (default: parquet)"
    )
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show a bar on standard error (default: if it is a terminal)",
    )
    add_output_argument(parser)


def add_traffic_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--users", type=int, default=2000, metavar="N", help="honest people (default: 2000)")
    parser.add_argument("--days", type=int, default=7, metavar="N", help="how long (default: 7)")
    parser.add_argument(
        "--strength",
        type=float,
        default=1.0,
        metavar="X",
        help="groups of attackers of each kind per 1000 people (default: 1; 0: none)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="other traffic (default: 1)")


def traffic_of(arguments: argparse.Namespace) -> Traffic:
    from featurestore.demo.traffic import Traffic

    return Traffic(arguments.users, arguments.days, arguments.strength, arguments.seed)


def run(arguments: argparse.Namespace) -> Exit:
    traffic = traffic_of(arguments)
    directory = Path(arguments.directory)
    if directory.exists() and (not directory.is_dir() or entries(directory)):
        raise ConfigError(f"{directory} is there and not empty; name a directory that does not exist yet")
    # heavy: numpy, pyarrow
    from featurestore.demo.music import schema_text
    from featurestore.demo.traffic import EVENTS, LABELS
    from featurestore.files.writing import TableWriter, open_table

    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {directory}: {error.strerror or error}") from error
    counts = {event: dict.fromkeys(LABELS, 0) for event in EVENTS}
    n_done = n_hours = 0
    with (
        Progress(str(directory), 24 * traffic.days, arguments.progress, unit="h") as bar,
        contextlib.ExitStack() as stack,
    ):
        writers: dict[str, TableWriter] = {}
        for chunk in traffic.chunks(WRITTEN_EVENTS):
            for event, some in chunk.events.items():
                columns = some.labelled_columns()
                if event not in writers:
                    path = str(directory / f"{event}.{arguments.format}")
                    writers[event] = stack.enter_context(open_table(path, columns))
                writers[event].write_columns(columns)
                for label, n in some.label_counts().items():
                    counts[event][label] += n
            n_done += chunk.n_events
            n_hours += chunk.n_hours
            bar.update(n_hours, n_done)
    try:  # last: where the rest failed, the directory is as empty as it was, and may be given again
        (directory / "music.yaml").write_text(schema_text(), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {directory / 'music.yaml'}: {error.strerror or error}") from error
    print(f"{n_done:,} events in {directory}", file=sys.stderr)
    if arguments.output == "json":
        print_json({"directory": str(directory), "seed": traffic.seed, "events": counts})
    else:
        for event, of in counts.items():
            others = [f"{n:,} {label}" for label, n in of.items() if n and label != "benign"]
            print(f"{event}.{arguments.format}: {', '.join([f'{sum(of.values()):,} events', *others])}")
    return Exit.OK
