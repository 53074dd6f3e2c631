"""`featurestore replay`: history in, training set out."""

from __future__ import annotations

import argparse
import sys

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.progress import Progress
from featurestore.errors import ConfigError

DESCRIPTION = """\
For each event of the types to emit, or for each point in time, the vector that would have been served: a
training set that says exactly what will be. Inputs are merged by the time of their events; the clock is
theirs, so the same inputs and options give the same bytes every time.

With --arrival FIELD, when each event came, they are merged by that, and it is the wall's clock: lateness,
max_future, duplicates and expiry are then those of a live store.

Behind the last event of an input its features count none, as a store would that is sent none. Where rows go
on for a window of it or longer it is said: nobody knows whether there were none or they are missing. What is
not to be learnt from, --emit-until leaves out.

FILE with --event E is short for --input E=FILE --emit E, but one file is taken as it stands, in order or not
(unless --spill sorts it), and its rows are those of the output: of a duplicate what Observe answers when it
is repeated, of events that are late or refused the plain read at their time. Values that are not there are
NaN; those that are WARMING are what was seen so far, be it 0, as the store answers: coverage, or --statuses,
tells them."""

EPILOG = """\
columns of the output, in this order:
  event, the event type (not of points), and time, in UTC
  the ones named by --keep; of points all, unless some are named. Parquet keeps their types. From CSV and JSON
  lines they are text as it stands in the file, except fields that the schema declares number: float64
  one float64 per feature of the service; with --bounds also <feature>.lower and <feature>.upper, with
  --statuses <feature>.status: 1 PRESENT, 2 NOT_FOUND, 3 WARMING, 4 UNAVAILABLE
  coverage, the least over the row's features: 1 where all that they say was surely seen
  outcome (not of points): accepted, late, duplicate, refused_type, …

inputs:
  TYPE=FILES is an event type of the schema and its files: a path, a pattern in quotes, a folder, or several
  of these with commas between. Each is in order of time, or all are sorted with --spill DIR. Among equal
  times the order is that of the inputs, then of files (by name, in a folder), then of rows.

examples:
  featurestore replay tx.parquet --schema card-fraud.yaml --event transaction --service fraud \\
      --keep transaction_id,tx_fraud --out train.parquet
  featurestore replay --schema risk.yaml --service risk --input login='login/*.parquet' \\
      --input play=play.csv --emit login --arrival received_at --complete-from beginning \\
      --statuses --out train.parquet
  featurestore replay --schema risk.yaml --service risk --input login=login --input play=play.csv \\
      --points labelled.parquet --out points.parquet
  zcat log-*.csv.gz | featurestore replay - --format csv --schema web.yaml --event request \\
      --service abuse --bounds --out vectors.csv.gz

exit code 3 means that the output is whole but some events were refused (with --allow-refused it is 0), or
more were late, or refused for their time, than accepted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="one file of events: CSV, JSON lines or Parquet, also .gz or .zst; - for a pipe",
    )
    parser.add_argument("--schema", required=True, metavar="F", help="the schema file")
    parser.add_argument("--event", metavar="E", help="the event type that FILE holds")
    parser.add_argument("--service", required=True, metavar="S", help="the service whose vectors are wanted")
    parser.add_argument(
        "--out", required=True, metavar="O", help="where to: .parquet, .csv, .csv.gz or .csv.zst"
    )
    parser.add_argument(
        "--input", action="append", default=[], metavar="TYPE=FILES", help="events of a type; may be repeated"
    )
    parser.add_argument(
        "--emit",
        action="append",
        default=[],
        metavar="TYPE",
        help="a row for each such event; may be repeated",
    )
    parser.add_argument(
        "--points", metavar="FILE", help="instead, a row for each of these: key parts, time, columns to keep"
    )
    parser.add_argument(
        "--points-time",
        default="time",
        metavar="FIELD",
        help="their column of times: FIELD or FIELD:UNIT, with s, ms, us, ns or iso (default: time:iso)",
    )
    parser.add_argument(
        "--points-delimiter",
        default=",",
        metavar="C",
        help="what separates their cells, of CSV: one character, or \\t for a tab (default: a comma)",
    )
    parser.add_argument(
        "--emit-from", metavar="T", help="no rows of what comes before T: ISO 8601, or ms since the epoch"
    )
    parser.add_argument(
        "--emit-until", metavar="T", help="no rows of what comes from T on: where an input ends before others"
    )
    parser.add_argument(
        "--arrival",
        metavar="FIELD",
        help="when each event came: FIELD or FIELD:UNIT (default: its time's unit)",
    )
    parser.add_argument(
        "--complete-from",
        metavar="T",
        help="from when on the inputs have every event, or beginning: there was none before. Else features "
        "are WARMING until they have seen their window",
    )
    parser.add_argument(
        "--unfed",
        choices=("refuse", "unavailable"),
        default="refuse",
        help="of features that no input feeds: an error, or NaN (default: refuse)",
    )
    parser.add_argument(
        "--keep", metavar="A,B", help="columns of the inputs to hand through, separated by commas"
    )
    parser.add_argument("--bounds", action="store_true", help="also write the bounds of every value")
    parser.add_argument("--statuses", action="store_true", help="also write the status of every value")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after the first N events")
    parser.add_argument(
        "--spill", metavar="DIR", help="sort inputs that are not in order, with room for them in DIR"
    )
    parser.add_argument(
        "--secret",
        metavar="FILE",
        help="the secret of a store (DIR/secret), for its estimates (default: all zero)",
    )
    parser.add_argument(
        "--allow-future", action="store_true", help="take events that are dated, or came, later than today"
    )
    parser.add_argument(
        "--format", metavar="FMT", help="csv, jsonl or parquet (.gz, .zst), where the name does not say"
    )
    parser.add_argument(
        "--delimiter",
        default=",",
        metavar="C",
        help="what separates the cells of CSV inputs: one character, or \\t for a tab (default: a comma)",
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="threads of the engine (default: 1)"
    )
    parser.add_argument(
        "--allow-refused", action="store_true", help="exit with 0 even if events were refused"
    )
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="show a bar on standard error (default: if it is a terminal)",
    )
    add_output_argument(parser)


def run(arguments: argparse.Namespace) -> Exit:
    inputs = _inputs(arguments)
    # heavy: numpy, pyarrow, the engine
    from featurestore.files.paths import stored_bytes_of
    from featurestore.training import replay

    shown = arguments.file or ", ".join(inputs)
    files = [path for paths in inputs.values() for path in paths]
    size = stored_bytes_of(files + ([arguments.points] if arguments.points else []))
    with Progress(shown, size, arguments.progress) as bar:
        done = replay(
            inputs,
            arguments.schema,
            arguments.service,
            out=arguments.out,
            points=arguments.points,
            points_time=arguments.points_time,
            points_delimiter=arguments.points_delimiter,
            emit=arguments.emit,
            emit_from=arguments.emit_from,
            emit_until=arguments.emit_until,
            keep=None if arguments.keep is None else [name for name in arguments.keep.split(",") if name],
            arrival=arguments.arrival,
            complete_from=arguments.complete_from,
            unfed=arguments.unfed,
            bounds=arguments.bounds,
            statuses=arguments.statuses,
            order="time" if arguments.file is None else "file",
            spill=arguments.spill,
            secret=arguments.secret,
            limit=arguments.limit,
            threads=arguments.threads,
            allow_future=arguments.allow_future,
            stated_format=arguments.format,
            delimiter=arguments.delimiter,
            progress=bar.update,
        )
    for line in done.lines():
        print(line, file=sys.stderr)
    print(
        f"{done.n_rows:,} rows of {done.n_features} features to {arguments.out} in {done.seconds:.1f} s, "
        f"{done.events_per_second:,.0f} events/s",
        file=sys.stderr,
    )
    if arguments.output == "json":
        print_json(
            {
                **done.to_dict(),
                "out": arguments.out,
                "seconds": round(done.seconds, 3),
                "events_per_second": round(done.events_per_second),
            }
        )
    is_refused = done.n_refused and not arguments.allow_refused
    return Exit.REFUSED if is_refused or done.is_mostly_late else Exit.OK


def _inputs(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Event types and their files, in the order given."""
    if arguments.file is not None:
        if arguments.event is None:
            raise ConfigError("--event says which event type FILE holds")
        if arguments.input or arguments.emit or arguments.points:
            raise ConfigError(
                "FILE with --event is an input by itself; with --input, --emit or --points name it so"
            )
        return {arguments.event: [arguments.file]}
    if arguments.event is not None or not arguments.input:
        raise ConfigError("name FILE and its --event, or --input TYPE=FILES")
    inputs: dict[str, list[str]] = {}
    for text in arguments.input:
        name, _, files = text.partition("=")
        if not name or not files:
            raise ConfigError(f"--input is {text!r}; it is TYPE=FILES")
        inputs.setdefault(name, []).append(files)
    return inputs
