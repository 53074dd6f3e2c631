"""The hot methods on grpcio: raw bytes to the dispatcher and back, no message object in between.

Threads. Reads have threads of their own and so have writes, because a write waits for the disk and must not
keep reads waiting. A stream keeps a thread for as long as it lives, and one more than allowed is turned away
at once. Whoever watches the server's health keeps none.

    GetFeatures                             read_threads
    Observe, Ingest                         write_threads
    streams, reflection, everything else    read_threads + max_streams
    IngestStream                            a reader thread each besides

IngestStream pipelines: its reader applies the next batch while the one before waits for its sync, at most
`stream_window` ahead. Answers go out in the order of the batches. At drain a stream ends with UNAVAILABLE
between two batches: every batch that was applied is answered first.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc

from featurestore.config import Address, Limits, ServeConfig, Tls
from featurestore.errors import FeatureStoreError, LimitError, UnavailableError
from featurestore.server import dispatcher as hot
from featurestore.server import listener
from featurestore.server.dispatcher import Dispatcher
from featurestore.server.handlers import OnGrpcio, abort, add_methods
from featurestore.server.health import Health

SERVICE = "featurestore.v1.FeatureStoreService"
HEALTH = "grpc.health.v1.Health"
Begun = tuple[bytes, int, int, int]  # of Dispatcher.begin
MOST_MS = (1 << 31) - 1  # that an option may have
ANSWER_S, ANSWER_SHARE = 0.001, 0.05  # of a call's time, whichever is more: left for the way of its answer


def options(limits: Limits) -> list[tuple[str, int]]:
    """Of a grpc.Server."""
    times = {
        "grpc.max_connection_idle_ms": limits.max_connection_idle_s,
        "grpc.max_connection_age_ms": limits.max_connection_age_s,
        "grpc.max_connection_age_grace_ms": limits.connection_age_grace_s,
    }
    return [
        listener.OWN_PORT,
        *((name, min(round(seconds * 1000), MOST_MS)) for name, seconds in times.items() if seconds),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        # Streams that are over count until their calls are freed, so that a busy server refuses some to
        # clients that keep to the number; nothing of them was read, they may be called again. Without that
        # protection (grpc.http.overload_protection) streams opened and reset take the room of others' calls.
        ("grpc.max_concurrent_streams", limits.max_streams_per_connection),
        ("grpc.max_metadata_size", 8 << 10),
        # Clients may ping, and be found dead by pings, but not flood.
        ("grpc.http2.min_ping_interval_without_data_ms", limits.min_ping_interval_ms),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]


def most_calls(limits: Limits) -> int:
    """Of all kinds together: grpcio knows no kinds. What stays (streams, watches) is bounded below it."""
    return 2 * limits.max_concurrent_calls + limits.max_other_calls + limits.max_streams + limits.max_watches


def _on(pool: ThreadPoolExecutor, handler: Callable[..., bytes]) -> Callable[..., bytes]:
    """grpcio runs a handler that has this attribute on the pool it names."""
    pooled: Any = handler
    pooled.experimental_thread_pool = pool
    return handler


class Streams:
    """Counts the streams under way, and ends them when the server drains."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._stops: set[Callable[[], object]] = set()
        self._draining = False

    @contextlib.contextmanager
    def slot(self, context: grpc.ServicerContext, stop: Callable[[], object]) -> Iterator[None]:
        """For the life of a stream; aborts it where there is no room. `stop` is called at drain, from another
        thread.
        """
        error: FeatureStoreError | None = None
        with self._lock:
            if self._draining:
                error = UnavailableError(
                    "the server is shutting down; try again, here in a moment or elsewhere"
                )
            elif len(self._stops) >= self._most:
                error = LimitError(
                    f"{self._most} streams are open, as many as may be; close one, or use unary calls"
                )
            else:
                self._stops.add(stop)
        if error is not None:
            error.applied = False
            abort(context, error)
        try:
            yield
        finally:
            with self._lock:
                self._stops.discard(stop)

    def drain(self) -> None:
        with self._lock:
            self._draining = True
            stops = list(self._stops)
        for stop in stops:
            stop()


_SHUTTING_DOWN = (
    "the server is shutting down; all batches that were applied have been answered: go on elsewhere"
)


class _Ingest:
    """One IngestStream: the reader's side applies, the other waits and answers."""

    def __init__(self, dispatcher: Dispatcher, requests: Iterator[bytes], window: int) -> None:
        self._dispatcher, self._requests = dispatcher, requests
        self._answers: queue.SimpleQueue[Begun | BaseException | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(window)
        self._lock = (
            threading.Lock()
        )  # held from the decision to apply a batch until its answer is in the queue
        self._ended = False

    def start(self) -> None:
        threading.Thread(target=self._read, name="featurestore-ingest", daemon=True).start()

    def stop(self, error: BaseException | None = None) -> None:
        """Nothing is applied after this; what was is answered, then `error` ends the stream."""
        with self._lock:
            self._ended = True
            self._answers.put(error)
        self._room.release()

    def drain(self) -> None:
        error = UnavailableError(_SHUTTING_DOWN)
        error.applied = False  # of what is not answered
        self.stop(error)

    def _read(self) -> None:
        try:
            while self._take_one(next(self._requests, None)):
                pass
        except grpc.RpcError:  # cancelled: nobody is there to be answered
            self.stop()
        except Exception as error:
            self.stop(error)

    def _take_one(self, message: bytes | None) -> bool:
        if message is None:
            self.stop()
            return False
        self._room.acquire()
        with self._lock:
            if not self._ended:
                self._answers.put(self._dispatcher.begin(hot.INGEST_STREAM, message))
            return not self._ended

    def answers(self, context: grpc.ServicerContext, wait_s: Callable[[], float]) -> Iterator[bytes]:
        has_answered = False
        while True:
            answer = self._answers.get()
            if answer is None:
                return
            if isinstance(answer, BaseException):
                if has_answered and isinstance(answer, FeatureStoreError):
                    answer.applied = None  # clients drop what they have not read for an error
                abort(context, answer)
            try:
                reply = self._dispatcher.end(hot.INGEST_STREAM, *answer, timeout_s=wait_s())
            except Exception as error:
                abort(context, error)
            has_answered = True
            yield reply
            self._room.release()


class _Read:
    """One GetFeaturesStream. It only reads, so at drain an idle one is simply cancelled."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._is_idle = True
        self._is_draining = False

    def drain(self) -> None:
        with self._lock:
            self._is_draining = True
            if self._is_idle:
                self._context.cancel()

    def turn(self, idle: bool) -> None:
        with self._lock:
            self._is_idle = idle
            is_draining = self._is_draining
        if is_draining:
            abort(self._context, UnavailableError(_SHUTTING_DOWN))


class GrpcioFront:
    """The public port on grpcio. `add_generic_rpc_handlers` first, as with a grpc.Server; then `bind`,
    `start`, `stop`, and `close` when its end has come.
    """

    name = "grpcio"

    def __init__(self, dispatcher: Dispatcher, config: ServeConfig) -> None:
        limits = config.limits
        self._dispatcher, self._limits = dispatcher, limits
        self.streams = Streams(limits.max_streams)
        self._pool = ThreadPoolExecutor(config.read_threads + limits.max_streams, "featurestore-stream")
        self._readers = ThreadPoolExecutor(config.read_threads, "featurestore-read")
        self._writers = ThreadPoolExecutor(config.write_threads, "featurestore-write")
        self._health: Health | None = None
        self._papers: listener.Papers | None = None
        self._server = grpc.server(
            self._pool, options=options(limits), maximum_concurrent_rpcs=most_calls(limits)
        )
        added = OnGrpcio(self._server)
        self.add_generic_rpc_handlers = added.add_generic_rpc_handlers
        self.add_registered_method_handlers = added.add_registered_method_handlers
        self._add_hot()

    def _add_hot(self) -> None:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Observe": grpc.unary_unary_rpc_method_handler(self._writing(hot.OBSERVE)),
            "Ingest": grpc.unary_unary_rpc_method_handler(self._writing(hot.INGEST)),
            "GetFeatures": grpc.unary_unary_rpc_method_handler(self._reading()),
            "IngestStream": grpc.stream_stream_rpc_method_handler(self._ingest_stream),
            "GetFeaturesStream": grpc.stream_stream_rpc_method_handler(self._read_stream),
        }
        add_methods(self._server, SERVICE, handlers)

    def serve_health(self, services: tuple[str, ...]) -> None:
        """Before `start`: of these, and of the server as a whole."""
        self._health = Health(services, self._limits.max_watches)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self)

    def bind(self, address: Address, tls: Tls | None, setting: str) -> Address:
        """Listens, and returns the address with its port. Raises ConfigError where it cannot be had."""
        self._papers = None if tls is None else listener.Papers(tls, setting)
        return listener.bind(self._server, address, self._papers, setting)

    def read_papers(self) -> None:
        """Has the next handshake read the certificates anew, whether or not they seem to have changed. Raises
        ConfigError, and those in use stay, where they cannot be used."""
        if self._papers is not None:
            self._papers.recall()

    def start(self) -> None:
        self._server.start()

    def stop(self, grace_s: float) -> threading.Event:
        """Drains; what is left after grace_s is cut off. The event is set when nothing is served any more."""
        if self._health is not None:
            self._health.drain()
        self.streams.drain()
        ended: threading.Event = self._server.stop(grace_s)
        return ended

    def close(self) -> None:
        """After `stop`: when it returns, no thread is in the dispatcher."""
        for pool in (self._writers, self._readers, self._pool):
            pool.shutdown()

    def counts(self) -> dict[str, int]:
        """Of connections: grpcio tells nothing."""
        return {}

    def refusals(self) -> dict[tuple[str, str], int]:
        """Calls turned away: grpcio tells nothing."""
        return {}

    def _reading(self) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        call = self._dispatcher.call

        def read(message: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return call(hot.READ, message)
            except Exception as error:
                abort(context, error)

        return _on(self._readers, read)

    def _writing(self, method: int) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        call = self._dispatcher.call

        def write(message: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return call(method, message, self._waits(context)())
            except Exception as error:
                abort(context, error)

        return _on(self._writers, write)

    def _waits(self, context: grpc.ServicerContext) -> Callable[[], float]:
        """How long to wait for the disk, whenever it is asked: as long as the client does, less what an
        answer needs to be there in time.
        """
        most_s = self._limits.durable_wait_s
        left_s = context.time_remaining()
        if left_s is None:
            return lambda: most_s
        until_s = time.monotonic() + left_s - max(ANSWER_S, ANSWER_SHARE * left_s)
        return lambda: min(max(until_s - time.monotonic(), 0.0), most_s)

    def _ingest_stream(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        stream = _Ingest(self._dispatcher, requests, self._limits.stream_window)
        with self.streams.slot(context, stream.drain):
            stream.start()
            try:
                yield from stream.answers(context, self._waits(context))
            finally:
                stream.stop()

    def _read_stream(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        stream = _Read(context)
        with self.streams.slot(context, stream.drain):
            for message in requests:
                stream.turn(idle=False)
                try:
                    reply = self._dispatcher.call(hot.READ_STREAM, message)
                except Exception as error:
                    abort(context, error)
                yield reply
                stream.turn(idle=True)
