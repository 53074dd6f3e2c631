"""`featurestore ingest`: a file of events to a server, each counted once."""

from __future__ import annotations

import argparse
import hashlib
import secrets
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.cli.exits import Exit
from featurestore.cli.frame import add_output_argument, print_json
from featurestore.cli.progress import Progress
from featurestore.cli.reaching import add_server_arguments, client_of
from featurestore.errors import (
    ConfigError,
    FeatureStoreError,
    InvalidEventError,
    SequenceError,
    StorageError,
    UnknownNameError,
)

if TYPE_CHECKING:
    from featurestore.client import IngestReport, Refusal
    from featurestore.files import EventReader

DESCRIPTION = """\
Streams a file of events to a server. Each event is counted once: a batch whose answer got lost is sent again
under the same number, and the server applies a number once. A server that cannot be reached is waited for,
before the first batch as between any two.

The numbers belong to the file's content. So a run that was cut short (Ctrl-C, a server gone for long) is
resumed by running the same command again: batches that are in are skipped. And a file that is in already,
under whatever name, is not counted a second time, unless --epoch is raised.

A file that was changed is another file to the server. One that stopped at a broken line is repaired and sent
again with the --producer that the message names. Of one that has grown send only what is new, or declare ids
in the schema."""

EPILOG = """\
what resumes:
  a file       by its content; --batch-events must be the same and so must the schema's fields of the event.
               Where they are not, the server refuses the batch rather than count it twice
  a pipe (-)   only with --producer NAME, a name that stands for this data and no other; then batches are cut
               by their number of events alone, and not by --flush-every

examples:
  featurestore ingest tx.parquet --event transaction --server localhost:50051
  zcat log-*.csv.gz | featurestore ingest - --format csv --event request --producer log-2024-05
  tail -F access.jsonl | featurestore ingest - --format jsonl --event request
  featurestore ingest tx.csv --event transaction -o json | jq '.refusals[].row'

exit code 3 means that all is in but some events were refused; with --allow-refused it is 0. Rows are
numbered from 1, the first event of the file; a header is not a row. Those that are refused unsent, because a
cell cannot be read, are in no count or metric of the server."""

FLAGS = {"batch_events": "--batch-events", "epoch": "--epoch"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "file", metavar="FILE", help="CSV, JSON lines or Parquet, also .gz or .zst; - for a pipe"
    )
    parser.add_argument("--event", required=True, metavar="E", help="the event type the file holds")
    add_server_arguments(parser)
    parser.add_argument(
        "--format", metavar="FMT", help="csv, jsonl or parquet (.gz, .zst), where the name does not say"
    )
    parser.add_argument(
        "--batch-events",
        type=int,
        default=32768,
        metavar="N",
        help="events sent and acknowledged together (default: 32768)",
    )
    parser.add_argument(
        "--flush-every",
        type=float,
        metavar="S",
        help="of a pipe: send what has come after S seconds, however few (default: 1, with --producer never)",
    )
    parser.add_argument(
        "--producer", metavar="NAME", help="who sends, instead of a name made from the file's content"
    )
    parser.add_argument(
        "--epoch", type=int, default=1, metavar="N", help="raise it to count the same file anew (default: 1)"
    )
    parser.add_argument(
        "--ack",
        choices=("applied", "durable"),
        help="acknowledge before or after the disk has it (default: as the server was told)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="send a batch again that is not answered within S seconds (default: 30)",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=60.0,
        metavar="S",
        help="give up after S seconds without an answer from the server (default: 60; 0: at once)",
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
    # heavy: numpy, grpc, pyarrow
    from featurestore.client import Ack, IngestReport
    from featurestore.client.catalog import event_plan
    from featurestore.files import open_events
    from featurestore.files.names import size_bytes_of

    began_s = time.monotonic()
    ack = None if arguments.ack is None else Ack[arguments.ack.upper()]
    report = IngestReport()
    if not 0 <= arguments.wait <= 86_400:
        raise ConfigError(f"--wait is {arguments.wait:g}; it must be from 0 to 86400 seconds")
    flush_s = flush_s_of(arguments)
    with (
        # its producer sends nothing: the batches have that of the source, under the same epoch
        client_of(arguments, producer="cli", epoch=arguments.epoch, retry_s=arguments.wait) as client,
        Progress(arguments.file, size_bytes_of(arguments.file), arguments.progress) as bar,
    ):
        waits = _Waits(bar)
        plan = event_plan(client.schema(wait=True, on_wait=waits.tell), arguments.event)
        with open_events(arguments.file, plan, stated_format=arguments.format, flush_s=flush_s) as reader:
            read = _Read(reader, arguments.batch_events)
            if arguments.producer is None:
                source = source_of(arguments.file, arguments.event)
            else:
                source = arguments.producer

            def show(so_far: IngestReport) -> None:
                nonlocal report
                report = so_far
                waits.are_over()
                bar.update(read.stored_bytes, so_far.events)

            try:
                client.ingest(
                    arguments.event,
                    read,
                    batch_events=arguments.batch_events,
                    ack=ack,
                    source=source,
                    on_progress=show,
                    on_wait=waits.tell,
                )
            except ConfigError:
                raise
            except BaseException as error:
                how = again(
                    arguments, source, error, is_broken=error is read.broken, is_begun=report.events > 0
                )
                print(f"stopped after {report.events:,} events{how}", file=sys.stderr)
                raise
    seconds = time.monotonic() - began_s
    for line in lines(report, seconds):
        print(line, file=sys.stderr)
    if arguments.output == "json":
        print_json(as_dict(report, source, arguments.epoch, seconds))
    return Exit.REFUSED if report.refused and not arguments.allow_refused else Exit.OK


def flush_s_of(arguments: argparse.Namespace) -> float | None:
    """How often what has come through a pipe is sent, however little; None where it is a file, or resumed."""
    given: float | None = arguments.flush_every
    if given is not None and not 0.01 <= given <= 86_400:
        raise ConfigError(f"--flush-every is {given:g}; it must be from 0.01 to 86400 seconds")
    if given is not None and (arguments.file != "-" or arguments.producer is not None):
        what = (
            "a file is read as fast as it goes" if arguments.file != "-" else "with --producer it is resumed"
        )
        raise ConfigError(
            f"--flush-every is of a pipe that is not resumed, and {what}: its batches are cut by their events"
        )
    if arguments.file != "-" or arguments.producer is not None:
        return None
    return 1.0 if given is None else given


class _Waits:
    """Says that we wait for the server, once each time."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._is_told = bar, False

    def tell(self, error: FeatureStoreError, left_s: float) -> None:
        if not self._is_told:
            self._bar.say(f"{error}; it is tried for {left_s:.0f} s more, Ctrl-C ends that")
        self._is_told = True

    def are_over(self) -> None:
        self._is_told = False


class _Read:
    """The chunks of the file, and how many of its bytes they were so far."""

    def __init__(self, reader: EventReader, batch_events: int) -> None:
        self.stored_bytes = 0
        self.broken: FeatureStoreError | None = None  # why the file could not be read to its end
        self._chunks = reader.chunks(batch_events)

    def __iter__(self) -> Iterator[Any]:
        try:
            for chunk in self._chunks:
                self.stored_bytes = chunk.stored_bytes
                yield chunk
        except FeatureStoreError as error:
            self.broken = error
            raise


def source_of(path: str, event: str) -> str:
    """The name that the file's batches are numbered under: its whole content and what it is sent as.

    Neither the path nor the time it was changed: those say nothing of what is in it. A pipe has no content to
    read ahead, so its name is a random one: it is counted once, and cannot be resumed.
    """
    if path == "-" or not Path(path).is_file():
        return f"pipe-{secrets.token_hex(16)}"
    try:
        with Path(path).open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    return f"file-{hashlib.sha256(content.digest() + event.encode()).hexdigest()[:32]}"


def again(
    arguments: argparse.Namespace, source: str, error: BaseException, *, is_broken: bool, is_begun: bool
) -> str:
    """How to go on, as the end of a sentence."""
    if is_broken and not is_begun:
        return ", none is in: repair the file and run the command again"
    if arguments.file == "-" and arguments.producer is None:
        return ", they are in: a pipe without --producer cannot be resumed"
    if is_broken:
        return (
            f", they are in: repair the file and go on with --producer {shlex.quote(source)}; "
            "as long as what stands before the broken place stays as it is, it is not counted twice"
        )
    if isinstance(error, InvalidEventError | SequenceError | UnknownNameError):  # so it would end again
        return ""
    return ": run the same command again to go on; what is in is not counted twice"


def lines(report: IngestReport, seconds: float) -> list[str]:
    """For people: one line of counts, one for each field and reason to refuse, one for how fast."""
    parts = [
        f"{count:,} of them {what}"
        for count, what in (
            (report.partly_late, "partly late"),
            (report.shed, "with keys that found no room"),
        )
        if count
    ]
    partly = f" ({', '.join(parts)})" if parts else ""
    counts = [f"{report.events:,} events: {report.accepted:,} accepted{partly}"]
    counts += [
        f"{count:,} {name}"
        for name, count in (
            ("late", report.late),
            ("duplicate", report.duplicate),
            ("refused" + (f" ({report.unsent:,} of them unsent)" if report.unsent else ""), report.refused),
            ("in already", report.already_applied),
        )
        if count
    ]
    from featurestore.files.tally import also  # heavy: numpy

    by_reason: dict[Any, list[Refusal]] = {}
    for one in report.refusals:
        by_reason.setdefault((one.outcome, one.field), []).append(one)
    reasons = [
        f"  refused: row {first.row + 1}, {first.reason or first.outcome.reason}"
        + also([one.row + 1 for one in others])
        for first, *others in by_reason.values()
    ]
    ack = "" if report.ack is None else f", {report.ack.name.lower()}"
    retries = f", {report.retries} retries" if report.retries else ""
    return [
        ", ".join(counts),
        *reasons,
        f"{seconds:.1f} s, {report.events / max(seconds, 1e-9):,.0f} events/s{ack}{retries}",
    ]


def as_dict(report: IngestReport, source: str, epoch: int, seconds: float) -> dict[str, Any]:
    made = report.to_dict()
    made["refusals"] = [{**one, "row": one["row"] + 1} for one in made["refusals"]]
    return {
        **made,
        "producer": source,
        "epoch": epoch,
        "seconds": round(seconds, 3),
        "events_per_second": round(report.events / max(seconds, 1e-9)),
    }
