"""`featurestore ingest`: a file of events to a server, each counted once."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import secrets
import shlex
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
    from featurestore.client import Client, IngestReport, Refusal
    from featurestore.files import EventReader
    from featurestore.files.rejects import Rejects
    from featurestore.plan import EventPlan

DESCRIPTION = """\
Streams files of events to a server. Each event is counted once: a batch whose answer got lost is sent again
under the same number, and the server applies a number once. A server that cannot be reached is waited for,
before the first batch as between any two.

The numbers belong to the file's content. So a run that was cut short (Ctrl-C, a server gone for long) is
resumed by running the same command again: batches that are in are skipped. And a file that is in already,
under whatever name, is not counted a second time, unless --epoch is raised.

A file that was changed is another file to the server. One that stopped at a broken line is repaired and sent
again with the --producer that the message names. Of one that has grown send only what is new, or declare ids
in the schema. Of several files each goes by itself: one that cannot be read to its end is told, and does not
keep the others from being sent."""

EPILOG = """\
what resumes:
  a file       by its content; --batch-events must be the same and so must the schema's fields of the event.
               Where they are not, the server refuses the batch rather than count it twice
  a pipe (-)   only with --producer NAME, a name that stands for this data and no other; then batches are cut
               by their number of events alone, and not by --flush-every

examples:
  featurestore ingest tx.parquet --event transaction --server localhost:50051
  zcat log-*.csv.gz | featurestore ingest - --format csv --event request --producer log-2024-05
  featurestore ingest 'logs/*.csv.zst' more.csv --event request --delimiter ';' --rejects refused.csv
  tail -F access.jsonl | featurestore ingest - --format jsonl --event request
  featurestore ingest tx.csv --event transaction -o json | jq '.refusals[].row'

exit code 3 means that all is in but some events were refused; with --allow-refused it is 0. Rows are
numbered from 1, the first event of the file; a header is not a row. Those that are refused unsent, because a
cell cannot be read, are in no count or metric of the server.

rejects: FILE is of the format of the input and must not exist. CSV and JSON lines are written as rows are
refused, Parquet at the end. refused_row and refused_reason stand behind the columns of the input; FILE itself
is an input again, and these two are passed over. A run that goes on where another stopped has all rows that
are refused unsent once more, but of those that the server refused only its own."""

FLAGS = {"batch_events": "--batch-events", "epoch": "--epoch"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="CSV, JSON lines or Parquet, also .gz or .zst; a pattern in quotes, a folder; - for a pipe",
    )
    parser.add_argument("--event", required=True, metavar="E", help="the event type that they hold")
    add_server_arguments(parser)
    parser.add_argument(
        "--format", metavar="FMT", help="csv, jsonl or parquet (.gz, .zst), where the name does not say"
    )
    parser.add_argument(
        "--delimiter",
        default=",",
        metavar="C",
        help="what separates the cells of CSV: one character, or \\t for a tab (default: a comma)",
    )
    parser.add_argument(
        "--rejects",
        metavar="FILE",
        help="write refused rows there as they were, with number and reason, to be corrected and sent",
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
    from featurestore.client.catalog import event_plan
    from featurestore.files.paths import paths_of, stored_bytes_of
    from featurestore.files.rejects import Rejects

    if not 0 <= arguments.wait <= 86_400:
        raise ConfigError(f"--wait is {arguments.wait:g}; it must be from 0 to 86400 seconds")
    paths = [path for given in arguments.files for path in paths_of(given)]
    check_paths(arguments, paths)
    flush_s = flush_s_of(arguments, paths[0])
    done: list[_File] = []
    broken: list[FeatureStoreError] = []
    with (
        # its producer sends nothing: the batches have that of the source, under the same epoch
        client_of(arguments, producer="cli", epoch=arguments.epoch, retry_s=arguments.wait) as client,
        Progress(
            paths[0] if len(paths) == 1 else f"{len(paths)} files",
            stored_bytes_of(paths),
            arguments.progress,
        ) as bar,
        contextlib.ExitStack() as stack,
    ):
        rejects = None
        if arguments.rejects is not None:
            rejects = stack.enter_context(Rejects(arguments.rejects, arguments.delimiter))
        waits = _Waits(bar)
        plan = event_plan(client.schema(wait=True, on_wait=waits.tell), arguments.event)
        for path in paths:
            file = _File(path, done, bar)
            try:
                file.send(arguments, client, plan, waits=waits, flush_s=flush_s, rejects=rejects)
            except FeatureStoreError as error:
                file.error = str(error)
                if len(paths) == 1 or not file.is_broken:  # else the others may well be sound
                    tell(arguments, done, rejects, bar)
                    raise
                bar.say(f"{path}: {error}")
                broken.append(error)
            except BaseException:
                tell(arguments, done, rejects, bar)
                raise
            if len(paths) > 1 and not file.error:
                bar.say(f"{path}: " + "\n".join(lines(file.report, file.seconds, rate=False)))
    tell(arguments, done, rejects, bar)
    if broken:
        raise type(broken[0])(
            f"{len(broken)} of {len(paths)} files could not be read to their end, the first: {broken[0]}"
        )
    is_refused = any(file.report.refused for file in done)
    return Exit.REFUSED if is_refused and not arguments.allow_refused else Exit.OK


def check_paths(arguments: argparse.Namespace, paths: list[str]) -> None:
    if not paths:
        raise ConfigError("no file is named")
    if len(paths) == 1:
        return
    if "-" in paths:
        raise ConfigError("a pipe (-) is ingested alone")
    if arguments.producer is not None:
        raise ConfigError(
            f"--producer stands for one file, and these are {len(paths)}: each has a name of its content"
        )


def tell(arguments: argparse.Namespace, done: list[_File], rejects: Rejects | None, bar: Progress) -> None:
    """What became of all files, on both outputs."""
    from featurestore.client import IngestReport

    if not done or (len(done) == 1 and done[0].error):
        return  # it has said where it stopped
    report = done[0].report if len(done) == 1 else IngestReport.together([file.report for file in done])
    seconds = sum(file.seconds for file in done)
    told = lines(report, seconds)
    if len(done) > 1:
        told[0] = f"{len(done)} files: {told[0]}"
    if rejects is not None and report.refused:
        rejects.close()
        missing = report.refused - rejects.n_rows
        told.insert(
            -1,
            f"  {rejects.n_rows:,} refused rows are in {rejects.path}"
            + (f", {missing:,} are not: the server did not list them" if missing else ""),
        )
    for line in told:
        bar.say(line)
    if arguments.output == "json":
        print_json(as_dict(report, done, arguments.epoch, seconds, rejects))


class _File:
    """One of the files, and what became of its events."""

    def __init__(self, path: str, done: list[_File], bar: Progress) -> None:
        from featurestore.client import IngestReport
        from featurestore.files.names import size_bytes_of

        self.path = path
        self.source = ""
        self.report = IngestReport()
        self.seconds = 0.0
        self.error: str | None = None
        self.is_broken = False  # it cannot be read to its end
        self._bar = bar
        self._before = (
            sum(size_bytes_of(file.path) or 0 for file in done),
            sum(file.report.events for file in done),
        )
        done.append(self)

    def send(
        self,
        arguments: argparse.Namespace,
        client: Client,
        plan: EventPlan,
        *,
        waits: _Waits,
        flush_s: float | None,
        rejects: Rejects | None,
    ) -> None:
        """Raises what ended it."""
        from featurestore.client import Ack
        from featurestore.files import open_events

        began_s = time.monotonic()
        self.is_broken = True
        with open_events(
            self.path,
            plan,
            stated_format=arguments.format,
            flush_s=flush_s,
            delimiter=arguments.delimiter,
            whole=rejects is not None,
        ) as reader:
            if rejects is not None:
                rejects.check(self.path, arguments.format, reader.names)
            self.source = arguments.producer
            if self.source is None:
                self.source = source_of(self.path, arguments.event)
            self.is_broken = False
            read = _Read(reader, arguments.batch_events)

            def show(so_far: IngestReport) -> None:
                self.report = so_far
                waits.are_over()
                n_bytes, n_events = self._before
                self._bar.update(n_bytes + read.stored_bytes, n_events + so_far.events)

            def reject(refusal: Refusal, chunk: Any, at: int) -> None:
                rejects.add(chunk.rows, at, refusal.row + 1, refusal.reason)  # type: ignore[union-attr]

            try:
                client.ingest(
                    arguments.event,
                    read,
                    batch_events=arguments.batch_events,
                    ack=None if arguments.ack is None else Ack[arguments.ack.upper()],
                    source=self.source,
                    on_progress=show,
                    on_refused=None if rejects is None else reject,
                    on_wait=waits.tell,
                )
            except ConfigError:
                raise
            except BaseException as error:
                self.is_broken = error is read.broken
                self.error = str(error) or type(error).__name__
                how = again(
                    arguments,
                    self.path,
                    self.source,
                    error,
                    is_broken=self.is_broken,
                    is_begun=self.report.events > 0,
                )
                self._bar.say(f"stopped after {self.report.events:,} events{how}")
                raise
            finally:
                self.seconds = time.monotonic() - began_s


def flush_s_of(arguments: argparse.Namespace, path: str) -> float | None:
    """How often what has come through a pipe is sent, however little; None where it is a file, or resumed."""
    given: float | None = arguments.flush_every
    if given is not None and not 0.01 <= given <= 86_400:
        raise ConfigError(f"--flush-every is {given:g}; it must be from 0.01 to 86400 seconds")
    if given is not None and (path != "-" or arguments.producer is not None):
        what = "a file is read as fast as it goes" if path != "-" else "with --producer it is resumed"
        raise ConfigError(
            f"--flush-every is of a pipe that is not resumed, and {what}: its batches are cut by their events"
        )
    if path != "-" or arguments.producer is not None:
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
    arguments: argparse.Namespace,
    path: str,
    source: str,
    error: BaseException,
    *,
    is_broken: bool,
    is_begun: bool,
) -> str:
    """How to go on, as the end of a sentence."""
    if is_broken and not is_begun:
        return ", none is in: repair the file and run the command again"
    if path == "-" and arguments.producer is None:
        return ", they are in: a pipe without --producer cannot be resumed"
    if is_broken:
        return (
            f", they are in: repair the file and go on with --producer {shlex.quote(source)}; "
            "as long as what stands before the broken place stays as it is, it is not counted twice"
        )
    if isinstance(error, InvalidEventError | SequenceError | UnknownNameError):  # so it would end again
        return ""
    return ": run the same command again to go on; what is in is not counted twice"


def lines(report: IngestReport, seconds: float, *, rate: bool = True) -> list[str]:
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
    speed = f"{seconds:.1f} s, {report.events / max(seconds, 1e-9):,.0f} events/s{ack}{retries}"
    return [", ".join(counts), *reasons, *([speed] if rate else [])]


def as_dict(
    report: IngestReport, done: list[_File], epoch: int, seconds: float, rejects: Rejects | None
) -> dict[str, Any]:
    made = _rows_from_one(report)
    if len(done) > 1:
        made["refusals"] = [
            {"file": file.path, **one} for file in done for one in _rows_from_one(file.report)["refusals"]
        ]
    return {
        **made,
        "producer": done[0].source if len(done) == 1 else None,
        "epoch": epoch,
        "files": [
            {
                **_counts_of(file.report),
                "file": file.path,
                "producer": file.source or None,
                "error": file.error,
            }
            for file in done
        ],
        "rejects": None if rejects is None else {"file": rejects.path, "rows": rejects.n_rows},
        "seconds": round(seconds, 3),
        "events_per_second": round(report.events / max(seconds, 1e-9)),
    }


def _counts_of(report: IngestReport) -> dict[str, Any]:
    return {name: value for name, value in report.to_dict().items() if name != "refusals"}


def _rows_from_one(report: IngestReport) -> dict[str, Any]:
    made = report.to_dict()
    made["refusals"] = [{**one, "row": one["row"] + 1} for one in made["refusals"]]
    return made
