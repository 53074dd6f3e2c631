"""Many events to the server, each counted once: batches, the window of unanswered ones, what came back.

No input or output here; a client drives it:

    feed ──► cut ──► [ window: sent, not answered ] ──► answered ──► report
                              │        ▲
                              └─ resend ┘   after a failure, the same bytes with the same numbers

Batches are cut by row numbers from what is fed, so the same data gives the same batches. Rows that cannot be
sent (a text where a number belongs) are refused here, by the same rules and in the same words as the
server's, and left out of their batch; a batch that would be larger than a message may be is halved. At most
`window` batches are in memory: nothing is cut while that many are unanswered. A source that breaks ends the
upload as its end would, and then raises: so the report says what is in, and a retry does not take a broken
source for one that has ended.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featurestore.client import wire
from featurestore.client.failures import Code, Failure, Patience, nothing_sent
from featurestore.client.replies import Ack, IngestReport, Refusal
from featurestore.client.requests import is_arrow, is_pandas, named_columns, sliced, wire_ack
from featurestore.client.sequences import SourceSequences, Ticket
from featurestore.columns import Column, TextColumn, event_columns
from featurestore.errors import (
    ConfigError,
    FeatureStoreError,
    InvalidEventError,
    LimitError,
    OutcomeUnknownError,
    UnavailableError,
)
from featurestore.exported import is_exported, tables_of
from featurestore.outcome import Outcome
from featurestore.plan import EventPlan
from featurestore.refusals import OF_THE_TIME, refused_field, why
from featurestore.v1 import feature_store_service_pb2 as service_pb

MAX_BATCH_EVENTS = 1 << 20  # the server's
MAX_WINDOW = 512
MAX_REFUSALS = 1000  # kept in the report, and told in words
ANEW = "; they may be in too: sent anew without a source, which would tell, they count again"

OnProgress = Callable[[IngestReport], None]
# One refused event, the item of the source that it came in, and its row there.
OnRefused = Callable[[Refusal, Any, int], None]


class Numbers(Protocol):
    """Where batches get their numbers from."""

    def take(self) -> Ticket: ...
    def give_back(self, ticket: Ticket) -> None: ...


@dataclass(frozen=True)
class Batch:
    """Sent and not yet answered."""

    ticket: Ticket
    message: bytes  # an IngestStreamRequest
    begin: int  # rows of the caller's data, from begin to before end
    end: int
    rows: NDArray[np.int64]  # of each event sent
    refused: list[Refusal]  # the others, refused here
    item: Any  # they are of, and the row of its first: only where refused events are handed on
    item_begin: int


@dataclass(frozen=True)
class _Canonical:
    """Events as columns, not yet cut."""

    begin: int  # row of the first
    times: NDArray[np.int64]
    columns: list[Column]
    outcomes: NDArray[np.uint8]
    item: Any  # that they are of; None where nothing of it will be told


class Upload:
    def __init__(
        self,
        event: EventPlan,
        numbers: Numbers,
        *,
        batch_events: int,
        window: int,
        ack: Ack | None,
        max_message_bytes: int,
        patience: Patience,
        on_progress: OnProgress | None,
        on_refused: OnRefused | None = None,
    ) -> None:
        if not 1 <= batch_events <= MAX_BATCH_EVENTS:
            raise ConfigError(
                f"batch_events is {batch_events}; it must be from 1 to {MAX_BATCH_EVENTS}",
                setting="batch_events",
            )
        if not 1 <= window <= MAX_WINDOW:
            raise ConfigError(f"window is {window}; it must be from 1 to {MAX_WINDOW} batches")
        self.report = IngestReport()
        self.broken: Exception | None = None  # what the source ended in, raised when all before is answered
        self._event, self._numbers = event, numbers
        self._batch_events, self._window = batch_events, window
        self._ack, self._max_message_bytes = ack, max_message_bytes
        self._patience, self._on_progress, self._on_refused = patience, on_progress, on_refused
        # Unless each is handed on, those behind are only counted.
        self._max_listed = wire.MAX_REFUSALS if on_refused is None else batch_events
        self._n_told = 0
        self._fed: _Canonical | None = None
        self._ranges: deque[tuple[int, int]] = deque()  # of what was fed, to be cut
        self._unanswered: deque[Batch] = deque()
        self._next_row = 0
        self._is_paused = False  # nothing is read on before what was sent is answered
        self._is_unknown = False  # whether one of those unanswered was applied
        self._is_begun = False  # whether any was sent

    # ---- in

    def feed(self, item: Any) -> None:
        """More events: a mapping, table or frame, or a chunk of a file. What was fed before has been cut.

        A chunk of no events is a file that more is waited for of: who knows how long, so answers come first.
        """
        is_chunk = _is_chunk(item)
        self._is_paused = is_chunk and item.n_events == 0
        if self._is_paused:
            return
        if is_chunk:
            times, columns, outcomes = item.event_columns(self._event)
        else:
            times, columns, outcomes = event_columns(self._event, item)
        is_needed = self._on_refused is not None or bool(outcomes.any())
        self._fed = _Canonical(self._next_row, times, columns, outcomes, item if is_needed else None)
        n = len(times)
        step = self._batch_events
        self._ranges.extend((begin, min(begin + step, n)) for begin in range(0, n, step))
        self._next_row += n

    @property
    def is_full(self) -> bool:
        return len(self._unanswered) >= self._window

    @property
    def is_idle(self) -> bool:
        """Nothing is waiting for an answer."""
        return not self._unanswered

    def goes_on(self) -> bool:
        """Whether more may be read: not while something sent before a pause is unanswered."""
        self._is_paused = self._is_paused and not self.is_idle
        return not self._is_paused

    def cut(self) -> Batch | None:
        """The next batch, now waiting for its answer; None where more must be fed first."""
        while self._ranges and self._fed is not None:
            begin, end = self._ranges.popleft()
            refused = np.flatnonzero(self._fed.outcomes[begin:end])
            kept = None if refused.size == 0 else np.flatnonzero(self._fed.outcomes[begin:end] == 0) + begin
            n_kept = end - begin - refused.size
            columns = self._encoded(begin, end, kept) if n_kept else b""
            if len(columns) + 1024 > self._max_message_bytes and n_kept > 1:
                middle = begin + (end - begin) // 2
                self._ranges.extendleft([(middle, end), (begin, middle)])
                continue
            if len(columns) + 1024 > self._max_message_bytes:
                row, most = self._fed.begin + begin, self._max_message_bytes
                raise LimitError(f"row {row} alone is larger than max_message_bytes ({most})")
            refusals = [self._refusal(self._fed, begin + i) for i in refused.tolist()]
            ticket = (
                self._numbers.take()
            )  # also for a batch without events: numbers follow from the rows only
            rows = (np.arange(begin, end) if kept is None else kept) + self._fed.begin
            batch = Batch(
                ticket,
                self._message(ticket, columns),
                self._fed.begin + begin,
                self._fed.begin + end,
                rows,
                refusals,
                None if self._on_refused is None else self._fed.item,
                self._fed.begin,
            )
            if not n_kept:
                self._numbers.give_back(ticket)
                self._count(batch, [])
                continue
            self._unanswered.append(batch)
            self._is_begun = True
            return batch
        self._fed = None
        return None

    def _refusal(self, fed: _Canonical, i: int) -> Refusal:
        """Of event i, which cannot be sent."""
        outcome = Outcome(int(fed.outcomes[i]))
        if self._n_told >= MAX_REFUSALS and self._on_refused is None:
            return Refusal(fed.begin + i, outcome, reason=outcome.reason)
        self._n_told += 1
        if _is_chunk(fed.item):
            field, value = fed.item.why_refused(self._event, i)
        else:
            field, value = refused_field(self._event, dict(named_columns(fed.item)), i)
        return Refusal.of(fed.begin + i, why(outcome, self._event, field, value))

    def _refusal_there(self, batch: Batch, sent: service_pb.Refusal) -> Refusal:
        """Of an event that the server refused."""
        outcome = wire.outcome_of(sent.reason)
        value = None
        if sent.field in ("", self._event.time.field) and outcome in OF_THE_TIME:
            times = wire.message_of(service_pb.IngestStreamRequest, batch.message).batch.columns.times_ms
            value = str(np.datetime64(times[sent.index], "ms")) + "Z"
        return Refusal.of(int(batch.rows[sent.index]), why(outcome, self._event, sent.field or None, value))

    def _message(self, ticket: Ticket, columns: bytes) -> bytes:
        head = service_pb.IngestRequest(
            event_type=self._event.name,
            producer=ticket.producer,
            epoch=ticket.epoch,
            sequence=ticket.sequence,
            ack=wire_ack(self._ack),
            max_refusals=0 if self._on_refused is None else self._max_listed,
        ).SerializeToString()
        return wire.length_field(wire.STREAMED_BATCH, head, columns)

    def _encoded(self, begin: int, end: int, kept: NDArray[np.int64] | None) -> bytes:
        assert self._fed is not None  # noqa: S101  cut holds it
        named: list[tuple[str, Column]] = []
        for field, column in zip(self._event.fields, self._fed.columns, strict=True):
            if isinstance(column, TextColumn):
                named.append(
                    (field.name, sliced(column, begin, end) if kept is None else _chosen(column, kept))
                )
            else:
                named.append((field.name, column[begin:end] if kept is None else column[kept]))
        times = self._fed.times[begin:end] if kept is None else self._fed.times[kept]
        return wire.event_columns(times, named)

    # ---- out and back

    def unanswered(self) -> list[Batch]:
        """What to send again on a new stream, in order.

        The first is sent alone and its answer waited for: a server at its limit is not flooded, and what it
        says of that batch is heard even where a failed write behind it would hide it (grpc#36066).
        """
        return list(self._unanswered)

    def answered(self, message: bytes) -> Failure | None:
        """One IngestStreamResponse: it answers the oldest batch that is unanswered. A Failure where that is
        applied and not durable, as it was to be: sent again, it is answered once the disk has it.
        """
        waiting = self._unanswered[0] if self._unanswered else None
        try:
            reply = wire.decode_ingested(
                message,
                sequence=None if waiting is None else waiting.ticket.sequence,
                n_events=0 if waiting is None else len(waiting.rows),
                position=self.report.position,
                max_refusals=self._max_listed,
            )
        except UnavailableError as error:
            raise self._explained(OutcomeUnknownError(str(error))) from error
        ack = wire.ack_of(reply.ack)
        if ack is not None and self._ack is not None and ack < self._ack:
            return Failure(
                Code.UNAVAILABLE,
                "a batch was applied and not on disk when its time was over",
                said="unknown",
            )
        batch = self._unanswered.popleft()
        self._numbers.give_back(batch.ticket)
        self._is_unknown &= bool(self._unanswered)
        self._patience.succeeded()
        report = self.report
        refused_there: list[Refusal] = []
        if reply.duplicate_batch:
            report.already_applied += len(batch.rows)
        else:
            report.accepted += reply.accepted
            report.late += reply.late
            report.partly_late += reply.partly_late
            report.shed += reply.shed
            report.duplicate += reply.duplicate
            report.refused += reply.refused
            refused_there = [self._refusal_there(batch, one) for one in reply.refusals]
        report.position = reply.position
        if ack is not None:
            report.ack = ack if report.ack is None else min(report.ack, ack)
        report.batches += 1
        self._count(batch, refused_there)
        return None

    def _count(self, batch: Batch, refused_there: list[Refusal]) -> None:
        report = self.report
        report.events += batch.end - batch.begin
        report.refused += len(batch.refused)
        report.unsent += len(batch.refused)
        refusals = sorted(batch.refused + refused_there, key=lambda one: one.row)
        report.refusals += refusals[: MAX_REFUSALS - len(report.refusals)]
        if self._on_refused is not None:
            for one in refusals:
                self._on_refused(one, batch.item, one.row - batch.item_begin)
        if self._on_progress is not None:
            self._on_progress(self.report)

    # ---- when it fails

    def wait_after(self, failure: Failure, target: str) -> float:
        """Seconds to wait before sending again; or the exception that ends the upload."""
        self._is_unknown |= self._leaves_unknown(failure)
        wait_s = self._patience.wait_after(failure)
        if wait_s is None:
            raise self._explained(failure.error(target, writing=not self.is_idle, unknown=self._is_unknown))
        self.report.retries += 1
        return wait_s

    def _leaves_unknown(self, failure: Failure) -> bool:
        """Whether one of those unanswered may have been applied. A stream ends in one batch; of those before
        it the answers may be lost, which gRPC drops behind an error, whatever is said of that one."""
        if self.is_idle or failure.is_unsent:
            return False
        if len(self._unanswered) > 1:
            return True
        # The one that was refused is the only one there is: what the server applied before it, it answered.
        return failure.code is not Code.INVALID_ARGUMENT and failure.applied is None

    def _explained(self, error: FeatureStoreError) -> FeatureStoreError:
        """The same error with where it happened in it."""
        if not self._unanswered:
            return error
        batch = self._unanswered[0]
        ticket = batch.ticket
        size = batch.end - batch.begin
        is_known = error.applied is False
        again = "" if isinstance(self._numbers, SourceSequences) or is_known else ANEW
        made = type(error)(
            f"{error}; the first {batch.begin} rows are in, it happened in the {size} after them "
            f"(producer {ticket.producer!r}, epoch {ticket.epoch}, sequence {ticket.sequence}){again}"
        )
        made.applied, made.ticket = error.applied, None if is_known else ticket
        return made

    @contextlib.contextmanager
    def until_its_end(self) -> Iterator[None]:
        """Sending and taking answers happens inside. Raises what the source ended in, and gives the numbers
        back of what will not be sent again."""
        try:
            yield
            if self.broken is not None:
                raise self.broken
        except FeatureStoreError as error:
            if self._is_begun:
                raise
            with nothing_sent():
                raise error
        finally:
            for batch in self._unanswered:
                self._numbers.give_back(batch.ticket)
            self._unanswered.clear()


def items_of(columns: Any, batch_events: int) -> Iterator[Any]:
    """What `ingest` was given as an iterator of what `Upload.feed` takes.

    Tables and frames are cut first, so that one of many rows is never made canonical as a whole.
    """
    if is_arrow(columns):
        for begin in range(0, columns.num_rows, batch_events):
            yield columns.slice(begin, batch_events)
    elif is_pandas(columns):
        for begin in range(0, len(columns), batch_events):
            yield columns.iloc[begin : begin + batch_events]
    elif isinstance(columns, Mapping) or _is_chunk(columns):
        yield columns
    elif is_exported(columns) and not isinstance(columns, Iterator):
        yield from tables_of(columns, batch_events)
    elif isinstance(columns, Iterable) and not isinstance(columns, str | bytes):
        for item in columns:
            if is_arrow(item) or is_pandas(item) or is_exported(item):
                yield from items_of(item, batch_events)
            else:
                yield item
    else:
        raise InvalidEventError(
            "events are columns: a mapping of arrays, an Arrow table, a data frame, or an iterator of such; "
            f"found {type(columns).__name__}"
        )


def _is_chunk(item: Any) -> bool:
    """Of a file (featurestore.files). By its type: a frame's columns may be its attributes, too."""
    return hasattr(type(item), "event_columns")


def _chosen(column: TextColumn, rows: NDArray[np.int64]) -> TextColumn:
    """The texts of these rows."""
    offsets = column.offsets.astype(np.int64)
    lengths = np.diff(offsets)[rows]
    ends = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    # each byte's place: its text's beginning, plus how far it is into the text
    places = np.repeat(offsets[:-1][rows] - ends[:-1], lengths) + np.arange(ends[-1])
    present = None if column.present is None else column.present[rows]
    return TextColumn(ends.astype(np.uint32), column.data[places], present)
