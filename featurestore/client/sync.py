"""`Client`: the calls of `calls.py` over blocking gRPC."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from featurestore.client import forks
from featurestore.client.calls import (
    INGEST_STREAM,
    Call,
    Calls,
    Reply,
    Send,
    checked_producer,
    checked_timeout_s,
)
from featurestore.client.channel import MAX_MESSAGE_BYTES, MAX_REPLY_BYTES, Line, Tls, checked_target
from featurestore.client.failures import (
    ENDED,
    Attempts,
    Backoff,
    Code,
    Failure,
    OnWait,
    Patience,
    nothing_sent,
)
from featurestore.client.replies import (
    Ack,
    HeavyList,
    IngestReport,
    Observed,
    Pin,
    Producer,
    Schema,
    Vector,
    Vectors,
)
from featurestore.client.requests import KeySets, Time
from featurestore.client.sequences import SourceSequences, Ticket
from featurestore.client.upload import MAX_WINDOW, Batch, OnProgress, OnRefused, Upload, items_of
from featurestore.errors import FeatureStoreError

R = TypeVar("R")


class Client:
    """Writes events and reads vectors. Thread-safe: make one and share it.

        with Client("localhost:50051") as client:
            seen = client.observe("transaction", {"customer_id": 596, "tx_amount": 12.5, ...}, "fraud")
            vector = client.get("fraud", {"customer_id": 596, "terminal_id": 3156})
            vector["customer.count_1d"]

    timeout_s          deadline of a call with all its retries, of `ingest` of each batch's answer. A read is
                       tried five times within it, an `observe` until it is over
    producer, epoch    who writes. By default a random name, which makes retries exact. A name of one's own
                       makes a restart exact too: a program that sends the same writes in the same order again
                       is answered DUPLICATE for those that are in. One live client per name; a higher epoch
                       fences off all clients with a lower one, and begins anew
    tls                None: plain text
    retry_s            how long `ingest` keeps trying to begin, and while no batch is answered
    max_message_bytes  of a request; the server has a limit too
    max_reply_bytes    of a reply; one that is larger is an error, and not taken into memory

    expect             which vector each of these services is to be: a model's Pin, by the service's name. The
                       first call that reads any service asks for all of them
    follow             read a service as it has become, where what it was cannot be served any more

    A vector keeps its order: what a client reads of a service stays what it first read, however the schema
    changes, for as long as the store can answer it. Where it cannot, the call raises SchemaMismatchError,
    which names the feature that is gone; `refresh` takes the service as it is.

    The connection is kept while nothing is asked: it is pinged every 30 s of silence, and made anew where no
    answer comes within 10 s.

    A process that is forked with a client may use it: it connects anew, and writes under a random name of
    its own. A name that was given is the parent's, and a write of the child's is a ConfigError. So is all
    that the child asks if an ingest was under way in another thread, if an AsyncClient had been used or if
    the environment has GRPC_ENABLE_FORK_SUPPORT=0: there gRPC would hang, and the child must be spawned. A
    fork waits for the calls of other threads, up to 5 s. Where those use gRPC otherwise, spawn, too.

    Failures are featurestore.errors: UnavailableError (cannot be reached, too slow, or answers what was not
    asked), LimitError (the server is at a limit), StorageError (its disk or its files failed),
    InvalidEventError, UnknownNameError, SequenceError, each with the server's words. Of a write `applied`
    says what is known: False, nothing of it was applied; None, that is not known (OutcomeUnknownError where
    the server did not answer), and `ticket` is what finishes it.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = 10.0,
        producer: str | None = None,
        epoch: int | None = None,
        tls: Tls | None = None,
        retry_s: float = 60.0,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        backoff: Backoff = Backoff(),  # noqa: B008  frozen
        expect: Mapping[str, Pin] | None = None,
        follow: bool = False,
    ) -> None:
        self.target = checked_target(target)
        self.timeout_s, self.retry_s = checked_timeout_s(timeout_s), retry_s
        self._max_message_bytes, self._backoff = max_message_bytes, backoff
        self._calls = Calls(producer, epoch, expect, follow)
        self._line = Line(target, max_message_bytes, max_reply_bytes, tls)

    @property
    def producer(self) -> str:
        """The name that writes carry."""
        return self._calls.producer

    def ticket(self) -> Ticket:
        """A ticket for one `observe`, to be kept before anything is sent: whoever has it, or its text, can
        finish that write, from this client or another, in this process or another: as long as the store
        knows it and, under a name of one's own, before 1,024 later writes: see `Ticket`.
        """
        return self._calls.ticket()

    def observe(
        self,
        event: str,
        fields: Mapping[str, Any],
        service: str | None = None,
        *,
        peek: bool = False,
        bounds: bool = False,
        ack: Ack | None = None,
        pin: Pin | None = None,
        ticket: Ticket | str | None = None,
        timeout_s: float | None = None,
    ) -> Observed:
        """Applies one event and reads a service at the event's time.

        fields   by name, the time field among them: in its unit, or a datetime (naive means UTC)
        peek     answer as if it had been applied, and apply nothing
        bounds   also read the bounds of each value
        pin      read this vector of the service, whatever it is by now
        ack      when to answer: once it is applied, which a power cut may undo, or once it is on disk; None:
                 as `serve --observe-ack` says, by default when applied. Where it is to be on disk and is
                 not just before the deadline, it is answered as applied: see Observed.ack
        ticket   of `ticket()` or of an error, or the text of one: with the same event it is applied once,
                 however often and from wherever it is sent, and answered DUPLICATE from the second time on;
                 what became of it the first time (late, refused) is not kept. Another event under it is an
                 InvalidEventError; once its number or its epoch cannot be judged any more (see `Ticket`) a
                 SequenceError; once the store has forgotten it, 15 minutes after it was sent or 7 days if
                 its client has a name, it is applied again. By default each call has one of its own

        An error whose `applied` is None has a `ticket`: whether the event was applied is not known, and
        `observe(..., ticket=error.ticket)` finishes it. To send it without, or with another, is safe only
        where `applied` is False.
        """
        return self._run(
            self._calls.observe(
                event, fields, service, peek=peek, bounds=bounds, ack=ack, pin=pin, ticket=ticket
            ),
            timeout_s,
        )

    def get(
        self,
        service: str,
        keys: Mapping[str, Any],
        as_of: Time | None = None,
        bounds: bool = False,
        *,
        pin: Pin | None = None,
        timeout_s: float | None = None,
    ) -> Vector:
        """One vector. A part that is not given makes the features that need it UNAVAILABLE.

        as_of   ms since the epoch, a datetime or ISO 8601 text; None: the store's now. A number that is a
                time of these days in seconds is an InvalidEventError
        pin     read this vector of the service, whatever it is by now
        """
        return self._run(self._calls.get(service, keys, as_of, bounds, pin), timeout_s)

    def get_many(
        self,
        service: str,
        keys: KeySets,
        as_of: Any = None,
        bounds: bool = False,
        *,
        pin: Pin | None = None,
        timeout_s: float | None = None,
    ) -> Vectors:
        """A vector per key set: a list of dicts, or columns (mapping of arrays, Arrow table, data frame).

        `as_of` is one time for all, or one for each. Many are read in several calls, so without `as_of` the
        later ones may be read at a later now; `timeout_s` is the deadline of each of the calls.
        """
        return self._run(self._calls.get_many(service, keys, as_of, bounds, pin), timeout_s)

    def heaviest(
        self,
        service: str,
        keys: Mapping[str, Any],
        as_of: Time | None = None,
        *,
        pin: Pin | None = None,
        timeout_s: float | None = None,
    ) -> list[HeavyList]:
        """The lists that a service's shares and entropies of top(...) are of: raw values, with their counts.

        Those whose key is not given are left out.

        pin     of this vector of the service, or of the one that is expected; else of what the service is now
        """
        return self._run(self._calls.heaviest(service, keys, as_of, pin), timeout_s)

    def get_producer(self, name: str) -> Producer:
        """What the store remembers of a producer. Raises UnknownNameError where that has written nothing, or
        has been silent for so long that it is forgotten (see `Ticket`).

        A consumer of a partition, in Kafka say, whose tickets have the offset as their sequence, need keep no
        offset itself: however it ended, `get_producer` says where the store is, and each message counts once.

            name = "orders/3"
            try:
                at = client.get_producer(name).resume_at()
            except UnknownNameError:
                at = 0
            for message in partition.from_offset(at):
                client.observe("order", message.value, ticket=Ticket(name, 1, message.offset))

        Two at once count nothing twice either, while both keep to one epoch: an offset is one ticket.
        """
        return self._run(self._calls.get_producer(name), None)

    def refresh(self) -> Schema:
        """Reads each service as it is now from here on, in its order; those that `expect` names stay as they
        are expected."""
        return self._run(self._calls.refresh(), None)

    def schema(self, *, wait: bool = False, on_wait: OnWait | None = None) -> Schema:
        """What the store serves, asked for anew.

        wait, on_wait   a server that cannot be reached is waited for, as `ingest` does
        """
        return self._run(self._calls.schema(is_patient=wait), None, on_wait)

    def ingest(
        self,
        event: str,
        columns: Any,
        *,
        batch_events: int = 32768,
        window: int = 8,
        ack: Ack | None = None,
        source: str | None = None,
        on_progress: OnProgress | None = None,
        on_refused: OnRefused | None = None,
        on_wait: OnWait | None = None,
    ) -> IngestReport:
        """Streams many events, each counted once however often a batch must be sent again.

        columns       a mapping of arrays by field name, an Arrow table, a data frame (pandas; with pyarrow
                      also polars, a DuckDB relation, and whatever has Arrow's PyCapsule interface), or an
                      iterator of such (each item begins a batch of its own). Columns that the schema does not
                      declare are ignored where every declared one is there; beside one that is missing, or
                      where a `key` is, that is an error (InvalidEventError)
        batch_events  events per batch
        window        batches sent and not yet answered: at most that many are held in memory
        source        a name for this data that holds for good. Sent again under the same name, by whatever
                      client, batches that are in are skipped, however many there are: so an ingest that was
                      cut short is resumed by doing it again. The data, batch_events and the schema's fields
                      must be the same; where a batch differs it is refused (InvalidEventError), not counted
                      twice
        on_progress   called with the report so far after each answer
        on_refused    called with each refused event: its Refusal, the item of `columns` that it came in, and
                      its row in that; items are held until they are answered
        on_wait       called with the error and the seconds left before each wait for a server that cannot be
                      reached, or does not answer: `retry_s` after the first it is raised

        Where the data cannot be read to its end, what came before is answered first; then the error is raised
        as it was. An error whose `applied` is None is finished by the same data under the same `source`; its
        `ticket` is the batch's, not one for `observe`.
        """
        with nothing_sent():
            plan = self._run(self._calls.event(event, is_patient=True), None, on_wait)
            numbers = self._calls.sequences
            upload = Upload(
                plan,
                numbers if source is None else SourceSequences(checked_producer(source), self._calls.epoch),
                batch_events=batch_events,
                window=window,
                ack=ack,
                max_message_bytes=self._max_message_bytes,
                patience=self._patience(self.timeout_s, on_wait),
                on_progress=on_progress,
                on_refused=on_refused,
            )
        items = items_of(columns, batch_events)
        with upload.until_its_end():
            while (failure := self._stream(upload, items)) is not None:
                time.sleep(upload.wait_after(failure, self.target))
        return upload.report

    def _stream(self, upload: Upload, items: Iterator[Any]) -> Failure | None:
        """Sends and takes answers on one stream until all is done (None) or the stream fails."""
        messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        with forks.LONG_CALL, _Stream(self._line.stream(INGEST_STREAM), messages) as stream:
            for first in upload.unanswered()[:1]:
                messages.put(first.message)
                reply = stream.reply(self.timeout_s)
                if isinstance(reply, Failure):
                    return reply
                if (failure := upload.answered(reply)) is not None:
                    return failure
            for batch in upload.unanswered():
                messages.put(batch.message)
            while True:
                while not upload.is_full and (cut := _next_batch(upload, items)) is not None:
                    messages.put(cut.message)
                if upload.is_idle:
                    for more in stream.end(self.timeout_s):
                        upload.answered(more)
                    return None
                reply = stream.reply(self.timeout_s)
                if isinstance(reply, Failure):
                    return reply
                if (failure := upload.answered(reply)) is not None:
                    return failure

    def close(self) -> None:
        """Ends all calls of this client."""
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _patience(self, try_s: float, on_wait: OnWait | None) -> Patience:
        return Patience(try_s, self.retry_s, self._backoff, self.target, on_wait)

    def _run(self, call: Call[R], timeout_s: float | None, on_wait: OnWait | None = None) -> R:
        """Does what a call wants sent, until it has its result."""
        try:
            wanted = next(call)
            while True:
                try:
                    reply = self._send(wanted, self.timeout_s if timeout_s is None else timeout_s, on_wait)
                except FeatureStoreError as error:
                    wanted = call.throw(error)
                else:
                    wanted = call.send(reply)
        except StopIteration as done:
            result: R = done.value
            return result

    def _send(self, wanted: Send, timeout_s: float, on_wait: OnWait | None) -> Reply:
        attempts: Attempts | Patience
        if wanted.is_patient:
            attempts = self._patience(timeout_s, on_wait)
        else:
            attempts = Attempts(timeout_s, self._backoff, wanted.is_numbered)
        method: Callable[..., bytes] = self._line.unary(wanted.method.value)
        while True:
            try:
                with forks.CALL:
                    reply = method(wanted.message, timeout=attempts.begin())
            except grpc.RpcError as error:
                failure = Failure.of(error)
                wait_s = attempts.wait_after(failure)
                if wait_s is None:
                    raise failure.error(
                        self.target,
                        reading=wanted.of_a_vector,
                        writing=wanted.is_numbered,
                        unknown=isinstance(attempts, Attempts) and attempts.is_unknown,
                    ) from error
                time.sleep(wait_s)
            else:
                return Reply(reply, attempts.made)


def _next_batch(upload: Upload, items: Iterator[Any]) -> Batch | None:
    """The next one to send; None where it ends, pauses or breaks (Upload.broken)."""
    while upload.broken is None and upload.goes_on():
        try:
            batch = upload.cut()
            if batch is not None:
                return batch
            item = next(items, None)
            if item is None:
                return None
            upload.feed(item)
        except Exception as error:
            upload.broken = error
    return None


class _Stream:
    """One IngestStream: gRPC takes `messages` from the queue, a thread puts the answers into another."""

    def __init__(self, method: Callable[..., Any], messages: queue.SimpleQueue[bytes | None]) -> None:
        self._messages = messages
        self._replies: queue.SimpleQueue[bytes | Failure] = queue.SimpleQueue()
        self._room = threading.Semaphore(MAX_WINDOW)  # a server that answers without end fills no memory
        self._call = method(iter(messages.get, None))
        self._thread = threading.Thread(target=self._take_replies, name="featurestore-ingest", daemon=True)
        self._thread.start()

    def _take_replies(self) -> None:
        try:
            for reply in self._call:
                self._room.acquire()
                self._replies.put(reply)
            self._replies.put(ENDED)
        except grpc.RpcError as error:
            self._replies.put(Failure.of(error))

    def reply(self, timeout_s: float) -> bytes | Failure:
        try:
            reply = self._replies.get(timeout=timeout_s)
        except queue.Empty:
            return Failure(Code.DEADLINE_EXCEEDED, f"no answer to a batch within {timeout_s:g} s")
        self._room.release()
        return reply

    def end(self, timeout_s: float) -> Iterator[bytes]:
        """No more messages; waits for the server to end its side too. Yields answers to nothing."""
        self._messages.put(None)
        self._thread.join(timeout_s)
        while not self._replies.empty():
            more = self._replies.get()
            if isinstance(more, bytes):
                yield more

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._messages.put(None)  # releases gRPC's thread, which may wait for a message
        self._call.cancel()  # does nothing where the stream has ended
        self._room.release(MAX_WINDOW)
        self._thread.join()
