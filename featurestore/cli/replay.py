"""`featurestore replay`: history in, training set out."""

from __future__ import annotations

import argparse
import sys

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.progress import Progress
from featurestore.errors import ConfigError

DESCRIPTION = """\
For each event of FILE, in file order, the vector that Observe would have returned: a training set that
says exactly what will be served. The clock is that of the events, so the same file gives the same values
every time.

The output has one row per event, also for those that were late, duplicates or refused: the row of a
duplicate is what Observe answers when it is repeated, that of the others the plain read at their time, and
--outcome adds a column that says which they were. Values that are not
there (nothing in the window to take a mean of) are NaN."""

EPILOG = """\
columns of the output, in this order:
  the ones named by --keep. Parquet keeps their types. From CSV and JSON lines they are text as it
  stands in the file, except fields that the schema declares number or bool, which are float64
  one float64 per feature of the service; with --bounds also <feature>.lower and <feature>.upper
  with --outcome: accepted, late, duplicate, refused_type, …

examples:
  featurestore replay tx.parquet --schema card-fraud.yaml --event transaction --service fraud \\
      --keep transaction_id,tx_fraud --out train.parquet
  zcat log-*.csv.gz | featurestore replay - --format csv --schema web.yaml --event request \\
      --service abuse --bounds --out vectors.csv.gz
  featurestore replay tx.csv --schema card-fraud.yaml --event transaction --service fraud \\
      --limit 10000 --out try.csv -o json | jq .events_per_second

exit code 3 means that the output is whole but some events were refused; with --allow-refused it is 0."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "file", metavar="FILE", help="CSV, JSON lines or Parquet, also .gz or .zst; - for a pipe"
    )
    parser.add_argument("--schema", required=True, metavar="F", help="the schema file")
    parser.add_argument("--event", required=True, metavar="E", help="the event type the file holds")
    parser.add_argument("--service", required=True, metavar="S", help="the service whose vectors are wanted")
    parser.add_argument(
        "--out", required=True, metavar="O", help="where to: .parquet, .csv, .csv.gz or .csv.zst"
    )
    parser.add_argument(
        "--keep", default="", metavar="A,B", help="columns of FILE to hand through, separated by commas"
    )
    parser.add_argument("--bounds", action="store_true", help="also write the bounds of every value")
    parser.add_argument("--outcome", action="store_true", help="also write what became of each event")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after the first N events")
    parser.add_argument(
        "--format", metavar="FMT", help="csv, jsonl or parquet (.gz, .zst), where the name does not say"
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
    if arguments.limit is not None and arguments.limit < 0:
        raise ConfigError(f"--limit is {arguments.limit}; it must not be negative")
    if not 1 <= arguments.threads <= 1024:
        raise ConfigError(f"--threads is {arguments.threads}; it must be from 1 to 1024")
    # heavy: numpy, pyarrow, the engine
    from featurestore import schema
    from featurestore.files.names import size_bytes_of
    from featurestore.replay import replay

    with Progress(arguments.file, size_bytes_of(arguments.file), arguments.progress) as bar:
        done = replay(
            arguments.file,
            schema.load(arguments.schema),
            arguments.event,
            arguments.service,
            arguments.out,
            keep=[name for name in arguments.keep.split(",") if name],
            bounds=arguments.bounds,
            outcome=arguments.outcome,
            limit=arguments.limit,
            threads=arguments.threads,
            stated_format=arguments.format,
            progress=bar.update,
        )
    for line in done.tally.lines():
        print(line, file=sys.stderr)
    print(
        f"{done.n_features} features each to {arguments.out} in {done.seconds:.1f} s, "
        f"{done.events_per_second:,.0f} events/s",
        file=sys.stderr,
    )
    if arguments.output == "json":
        print_json(
            {
                **done.tally.to_dict(),
                "out": arguments.out,
                "features": done.n_features,
                "seconds": round(done.seconds, 3),
                "events_per_second": round(done.events_per_second),
            }
        )
    return Exit.REFUSED if done.tally.n_refused and not arguments.allow_refused else Exit.OK
