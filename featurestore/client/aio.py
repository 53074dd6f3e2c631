"""`AsyncClient`: the calls of `calls.py` over grpc.aio."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from featurestore.client import forks
from featurestore.client.calls import (
    INGEST_STREAM,
    Call,
    Calls,
    Method,
    Reply,
    Send,
    checked_producer,
    checked_timeout_s,
)
from featurestore.client.channel import MAX_MESSAGE_BYTES, MAX_REPLY_BYTES, Tls, checked_target, options
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
from featurestore.client.upload import Batch, OnProgress, OnRefused, Upload, items_of
from featurestore.errors import ConfigError, FeatureStoreError

R = TypeVar("R")


class AsyncClient:
    """`Client` for asyncio: the same arguments, calls and errors, each call awaited.

        async with AsyncClient("localhost:50051") as client:
            vector = await client.get("fraud", {"customer_id": 596, "terminal_id": 3156})

    It may be made anywhere, also before any event loop runs. It belongs to the loop of its first use: from
    another one every call and `close` is a ConfigError. In a process that was forked after any AsyncClient
    was used none works, nor does a Client: use them in the child only, or spawn it (ConfigError).
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
        self._options = options(target, max_message_bytes, max_reply_bytes, tls)
        self._credentials = None if tls is None else tls.credentials()
        self._binding = threading.Lock()
        self._line: _Line | None = None
        self._of_parent: _Line | None = None
        forks.watch(self, AsyncClient._forked)

    def _forked(self) -> None:
        self._of_parent = self._line or self._of_parent  # kept: to close it would be to call gRPC
        self._line = None
        self._binding = threading.Lock()

    @property
    def producer(self) -> str:
        """The name that writes carry."""
        return self._calls.producer

    def ticket(self) -> Ticket:
        """See Client.ticket."""
        return self._calls.ticket()

    async def observe(
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
        """See Client.observe. Cancelled, as by asyncio.wait_for, it leaves no error that would have a ticket:
        limit it by timeout_s, or take a `ticket()` first.
        """
        return await self._run(
            self._calls.observe(
                event, fields, service, peek=peek, bounds=bounds, ack=ack, pin=pin, ticket=ticket
            ),
            timeout_s,
        )

    async def get(
        self,
        service: str,
        keys: Mapping[str, Any],
        as_of: Time | None = None,
        bounds: bool = False,
        *,
        pin: Pin | None = None,
        timeout_s: float | None = None,
    ) -> Vector:
        """See Client.get."""
        return await self._run(self._calls.get(service, keys, as_of, bounds, pin), timeout_s)

    async def get_many(
        self,
        service: str,
        keys: KeySets,
        as_of: Any = None,
        bounds: bool = False,
        *,
        pin: Pin | None = None,
        timeout_s: float | None = None,
    ) -> Vectors:
        """See Client.get_many."""
        return await self._run(self._calls.get_many(service, keys, as_of, bounds, pin), timeout_s)

    async def heaviest(
        self,
        service: str,
        keys: Mapping[str, Any],
        as_of: Time | None = None,
        *,
        pin: Pin | None = None,
        timeout_s: float | None = None,
    ) -> list[HeavyList]:
        """See Client.heaviest."""
        return await self._run(self._calls.heaviest(service, keys, as_of, pin), timeout_s)

    async def get_producer(self, name: str) -> Producer:
        """See Client.get_producer."""
        return await self._run(self._calls.get_producer(name), None)

    async def refresh(self) -> Schema:
        """See Client.refresh."""
        return await self._run(self._calls.refresh(), None)

    async def schema(self, *, wait: bool = False, on_wait: OnWait | None = None) -> Schema:
        """See Client.schema."""
        return await self._run(self._calls.schema(is_patient=wait), None, on_wait)

    async def ingest(
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
        """See Client.ingest; `columns` may also be an asynchronous iterator.

        Batches are read and packed in a thread, one at a time, so that the event loop goes on.
        """
        with nothing_sent():
            plan = await self._run(self._calls.event(event, is_patient=True), None, on_wait)
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
        items = _items(columns, batch_events)
        with upload.until_its_end():
            while (failure := await self._stream(upload, items)) is not None:
                await asyncio.sleep(upload.wait_after(failure, self.target))
        return upload.report

    async def _stream(self, upload: Upload, items: AsyncIterator[Any]) -> Failure | None:
        """Sends and takes answers on one stream until all is done (None) or the stream fails."""
        call = self._bound().ingest_stream()
        try:
            for first in upload.unanswered()[:1]:
                await self._in_time(call.write(first.message))
                await self._take_answer(call, upload)
            for batch in upload.unanswered():
                await self._in_time(call.write(batch.message))
            while True:
                while not upload.is_full and (cut := await _next_batch(upload, items)) is not None:
                    await self._in_time(call.write(cut.message))
                if upload.is_idle:
                    await self._in_time(call.done_writing())
                    while (more := await self._in_time(call.read())) is not grpc.aio.EOF:
                        upload.answered(more)
                    return None
                await self._take_answer(call, upload)
        except _Ended as end:
            return end.failure
        except TimeoutError:
            return Failure(Code.DEADLINE_EXCEEDED, f"no answer to a batch within {self.timeout_s:g} s")
        except grpc.RpcError as error:
            return Failure.of(error)
        except asyncio.InvalidStateError:  # the stream ended while a batch was being written to it
            code = await call.code()
            if code is Code.OK:
                return ENDED
            return Failure.made(code, await call.details(), await call.trailing_metadata())
        finally:
            call.cancel()

    async def _take_answer(self, call: Any, upload: Upload) -> None:
        reply = await self._in_time(call.read())
        failure = ENDED if reply is grpc.aio.EOF else upload.answered(reply)
        if failure is not None:
            raise _Ended(failure)

    async def _in_time(self, what: Any) -> Any:
        return await asyncio.wait_for(what, self.timeout_s)

    async def close(self) -> None:
        """Ends all calls of this client."""
        if self._line is not None:
            await self._bound().channel.close()

    async def __aenter__(self) -> Self:
        self._bound()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _bound(self) -> _Line:
        """The channel, which is made by whoever comes first."""
        loop = asyncio.get_running_loop()
        with self._binding:
            if self._line is None:
                forks.begin(aio=True)
                self._line = _Line(loop, self.target, self._options, self._credentials)
        if self._line.loop is not loop:
            raise ConfigError(
                f"this AsyncClient of {self.target} belongs to another event loop, the one of its first use; "
                "make one for each loop, or call asyncio.run once, around all that uses it"
            )
        return self._line

    def _patience(self, try_s: float, on_wait: OnWait | None) -> Patience:
        return Patience(try_s, self.retry_s, self._backoff, self.target, on_wait)

    async def _run(self, call: Call[R], timeout_s: float | None, on_wait: OnWait | None = None) -> R:
        """Does what a call wants sent, until it has its result."""
        self._bound()  # before it has begun
        try:
            wanted = next(call)
            while True:
                try:
                    reply = await self._send(
                        wanted, self.timeout_s if timeout_s is None else timeout_s, on_wait
                    )
                except FeatureStoreError as error:
                    wanted = call.throw(error)
                else:
                    wanted = call.send(reply)
        except StopIteration as done:
            result: R = done.value
            return result
        finally:
            call.close()  # of a task that was cancelled: what the call holds is given back now

    async def _send(self, wanted: Send, timeout_s: float, on_wait: OnWait | None) -> Reply:
        attempts: Attempts | Patience
        if wanted.is_patient:
            attempts = self._patience(timeout_s, on_wait)
        else:
            attempts = Attempts(timeout_s, self._backoff, wanted.is_numbered)
        method = self._bound().methods[wanted.method]
        while True:
            try:
                reply = await method(wanted.message, timeout=attempts.begin())
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
                await asyncio.sleep(wait_s)
            else:
                return Reply(reply, attempts.made)


class _Line:
    """A channel and what it calls, in the event loop that runs where it is made."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        target: str,
        made: list[tuple[str, int | str]],
        credentials: grpc.ChannelCredentials | None,
    ) -> None:
        self.loop = loop
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(target, made)
        else:
            self.channel = grpc.aio.secure_channel(target, credentials, made)
        self.methods: dict[Method, Any] = {
            method: self.channel.unary_unary(method.value) for method in Method
        }
        self.ingest_stream: Any = self.channel.stream_stream(INGEST_STREAM)


async def _next_batch(upload: Upload, items: AsyncIterator[Any]) -> Batch | None:
    """The next one to send; None where it ends, pauses or breaks (Upload.broken): with whatever
    error, even one that a stream could have ended in.
    """
    while upload.broken is None and upload.goes_on():
        try:
            batch = await asyncio.to_thread(upload.cut)
            if batch is not None:
                return batch
            item = await anext(items, None)
            if item is None:
                return None
            await asyncio.to_thread(upload.feed, item)
        except Exception as error:
            upload.broken = error
    return None


class _Ended(Exception):
    """A stream is over that answers were waited for on, without an error of gRPC's."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self.failure = failure


async def _items(columns: Any, batch_events: int) -> AsyncIterator[Any]:
    if isinstance(columns, AsyncIterable):
        async for one in columns:
            for item in items_of(one, batch_events):
                yield item
        return
    items = items_of(columns, batch_events)
    while (item := await asyncio.to_thread(next, items, None)) is not None:
        yield item
