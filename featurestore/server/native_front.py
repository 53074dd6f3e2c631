"""The hot methods on our own transport, and Python's handlers beside them on the same port.

Threads. Loops read, answer hot calls and write; none takes the GIL, nor waits for a lock that long work
holds. Workers, without the GIL too, run what would hold a loop up. One more thread, the desk, takes what
needs Python: words for failures, and calls of all other methods, which it hands to a pool.

    a hot call: Observe, Ingest, GetFeatures and the streams    loop_threads
    one that is large                                           worker_threads; they give way to all others
    one that would wait: for a row, for a batch                 one more for reads, one for writes
    TLS handshakes                                              one more, which gives way
    Health.Check and Health.Watch                               loop_threads; they take no place of others
    everything else: registry, reflection, lists                a pool of read_threads + MOST_REFLECTIONS

Handlers are those of grpcio, found through `add_generic_rpc_handlers`, and know no difference: a
context has what they use of grpc.ServicerContext.
"""

from __future__ import annotations

import abc
import functools
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc

from featurestore import niceness
from featurestore.config import Address, ServeConfig, Tls
from featurestore.errors import ConfigError
from featurestore.server import dispatcher as hot
from featurestore.server import listener
from featurestore.server.dispatcher import Dispatcher
from featurestore.server.grpc_front import HEALTH, SERVICE, Streams
from featurestore.server.handlers import Aborted, log_unexpected, methods_of
from featurestore.server.host import (
    CANCEL,
    CHECK,
    HANDSHAKES,
    LARGE,
    MESSAGE,
    READS,
    START,
    WATCH,
    WRITES,
    Host,
)
from featurestore.server.loop import Loop
from featurestore.server.status import APPLIED, ERROR_CLASS, Status, applied_of, status_of, words_of
from featurestore.server.tls import TlsContext

PYTHON = -1  # in place of a method of the dispatcher
LOOK_AT_PAPERS_S = 1.0
MOST_REFLECTIONS = 32  # calls of it at once: each keeps a thread for as long as it lives

_HOT = (
    ("Observe", hot.OBSERVE, False),
    ("Ingest", hot.INGEST, False),
    ("GetFeatures", hot.READ, False),
    ("IngestStream", hot.INGEST_STREAM, True),
    ("GetFeaturesStream", hot.READ_STREAM, True),
)
_HEALTH = (("Check", CHECK, False), ("Watch", WATCH, True))

_log = logging.getLogger("featurestore.server")


class _Context(grpc.ServicerContext):  # type: ignore[misc,unused-ignore]
    """One call for its handler: what ours, health's and reflection's use of grpc.ServicerContext."""

    def __init__(self, deadline_s: float | None) -> None:
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self._is_over = False
        self._code, self._details = Status.OK, ""
        self._kind, self._applied = "", "no"

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        self.set_code(code)
        self.set_details(details)
        raise Aborted

    def abort_with_status(self, status: Any) -> NoReturn:
        self.set_trailing_metadata(status.trailing_metadata or ())
        self.abort(status.code, status.details)

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = Status(code.value[0])

    def set_details(self, details: str) -> None:
        self._details = details

    def set_trailing_metadata(self, trailing_metadata: Sequence[tuple[str, str]]) -> None:
        given = dict(trailing_metadata)
        self._kind, self._applied = given.get(ERROR_CLASS, ""), given.get(APPLIED, "no")

    def send_initial_metadata(self, initial_metadata: Any) -> None:
        pass

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def peer(self) -> str:
        return ""

    def peer_identities(self) -> None:
        return None

    def peer_identity_key(self) -> None:
        return None

    def auth_context(self) -> dict[str, Any]:
        return {}

    def is_active(self) -> bool:
        return not self._is_over

    def time_remaining(self) -> float | None:
        return None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())

    def cancel(self) -> None:
        self.end(Status.CANCELLED, "the server has ended the call")

    def add_callback(self, callback: Callable[[], None]) -> bool:
        with self._lock:
            if not self._is_over:
                self._callbacks.append(callback)
            return not self._is_over

    @abc.abstractmethod
    def end(self, status: Status, words: str, kind: str = "", applied: str = "no") -> None:
        """Ends the call, unless it is over."""

    def over(self) -> bool:
        """Marks the call as over, once: False for whoever comes later. Then its callbacks run."""
        with self._lock:
            if self._is_over:
                return False
            self._is_over = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
        return True


class _Call(_Context):
    """A call of a method that Python answers."""

    def __init__(
        self,
        front: NativeFront,
        key: tuple[int, int, int],
        handler: grpc.RpcMethodHandler[Any, Any],
        deadline_s: float | None,
    ) -> None:
        super().__init__(deadline_s)
        self._front, self._key, self._handler = front, key, handler
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.is_streaming = handler.request_streaming
        self.is_handled = False  # from when it is given to the pool until the handler has returned
        self._is_told = False  # the host knows that it has ended
        self._n_messages = self._n_bytes = 0  # taken, and not given back to the host's budget

    # -- the desk's side

    def take(self, message: bytes | None) -> None:
        """What the client has sent; None: that was all."""
        if message is not None:
            with self._lock:
                if self._is_told:
                    self._front.host.next(self._key, len(message))
                    return
                self._n_messages += 1
                self._n_bytes += len(message)
        self._messages.put(message)

    def cancelled(self) -> None:
        """Nobody waits for the answer any more."""
        self.over()
        if not self.is_handled:
            self._tell(Status.CANCELLED)

    # -- the handler's side

    def end(self, status: Status, words: str, kind: str = "", applied: str = "no") -> None:
        if self.over():
            self._tell(status, words, kind, applied)
            self._front.forget(self._key)
        self._messages.put(None)

    def _tell(self, status: Status, words: str = "", kind: str = "", applied: str = "no") -> None:
        """Once for every call: until then the host counts it as under way, even if its client has gone."""
        with self._lock:
            is_told, self._is_told = self._is_told, True
        if not is_told:
            self._front.host.end(
                self._key,
                status,
                words,
                kind,
                is_unknown=applied != "no",
                n_messages=self._n_messages,
                n_bytes=self._n_bytes,
            )

    def _give_back(self, n_bytes: int) -> None:
        """A message that is done with: the client may send the next."""
        with self._lock:
            if self._is_told:
                return
            self._n_messages -= 1
            self._n_bytes -= n_bytes
            self._front.host.next(self._key, n_bytes)

    def requests(self) -> Iterator[Any]:
        take = self._handler.request_deserializer or bytes
        while (message := self._messages.get()) is not None:
            yield take(message)
            self._give_back(len(message))

    def run(self) -> None:
        """The handler, from beginning to end, on a thread of the pool."""
        try:
            if self.is_active():
                self._answer()
        except Aborted:
            self.end(self._code, self._details, self._kind, self._applied)
        except Exception as error:
            log_unexpected(error)
            self.end(status_of(error), words_of(error), applied=applied_of(error))
        finally:
            self.is_handled = False
            if not self.is_active():
                self._tell(Status.CANCELLED)

    def _answer(self) -> None:
        handler = self._handler
        behaviour = (
            (handler.stream_stream or handler.stream_unary)
            if handler.request_streaming
            else (handler.unary_stream or handler.unary_unary)
        )
        request = self.requests() if handler.request_streaming else self._only_request()
        if getattr(behaviour, "experimental_non_blocking", False):
            behaviour(request, self, self._send)  # it goes on when it sends None
            return
        replies = behaviour(request, self)
        for reply in replies if handler.response_streaming else (replies,):
            if not self.is_active():
                return
            self._reply(reply)
        self.end(self._code, self._details, self._kind, self._applied)

    def _only_request(self) -> Any:
        message = self._messages.get()
        if message is None:
            raise Aborted
        return (self._handler.request_deserializer or bytes)(message)

    def _reply(self, reply: Any) -> None:
        if self._code is Status.OK:
            self._front.host.reply(self._key, (self._handler.response_serializer or bytes)(reply))

    def _send(self, reply: Any) -> None:
        if reply is None:
            self.end(self._code, self._details, self._kind, self._applied)
        elif self.is_active():
            self._reply(reply)


class NativeFront:
    """The public port on our own transport. `add_generic_rpc_handlers` first, as with a grpc.Server;
    then `bind`, `start`, `stop`, and `close` when its end has come.
    """

    name = "native"

    def __init__(self, dispatcher: Dispatcher, config: ServeConfig) -> None:
        self._dispatcher, self._config = dispatcher, config
        self.streams = Streams(MOST_REFLECTIONS)
        self._handlers: list[grpc.RpcMethodHandler[Any, Any]] = []
        self._targets = [(f"/{SERVICE}/{name}", method, streams, streams) for name, method, streams in _HOT]
        self._targets += [(f"/{HEALTH}/{name}", method, False, streams) for name, method, streams in _HEALTH]
        self._services: tuple[str, ...] = ()
        self._calls: dict[tuple[int, int, int], _Call] = {}
        self._pool = ThreadPoolExecutor(config.read_threads + MOST_REFLECTIONS, "featurestore-read")
        self._loops: list[Loop] = []
        self._sockets: list[list[socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._helpers: list[threading.Thread] = []
        self._tls: TlsContext | None = None
        self._papers: listener.Papers | None = None
        self._ended = threading.Event()
        self.host: Any = None

    # -- what grpcio's generated code calls

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[Any]) -> None:
        for service, handlers in methods_of(generic_rpc_handlers):
            for name, handler in handlers.items():
                self._handlers.append(handler)
                self._targets.append(
                    (f"/{service}/{name}", PYTHON, handler.request_streaming, handler.response_streaming)
                )

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        pass  # they are those that came before

    def serve_health(self, services: tuple[str, ...]) -> None:
        """Before `start`: of these, and of the server as a whole."""
        self._services = ("", *services)

    # -- from start to end

    def bind(self, address: Address, tls: Tls | None, setting: str) -> Address:
        """Listens, and returns the address with its port. Raises ConfigError where it cannot be had."""
        if tls is not None:
            self._papers = listener.Papers(tls, setting)  # before they are read: what comes after is seen
            self._papers.check()
            self._tls = TlsContext(tls.certificate, tls.key, tls.client_ca)
        self._sockets, bound = listener.sockets(address, self._config.loop_threads, setting)
        return bound

    def start(self) -> None:
        config = self._config
        self.host = Host(
            self._dispatcher,
            self._targets,
            config.limits,
            services=self._services,
            n_loops=len(self._sockets),
        )
        self._loops = [Loop(self.host, sockets, self._tls) for sockets in self._sockets]
        self._helpers = [_thread(self._work_at_large, "worker") for _ in range(config.worker_threads)]
        self._helpers.append(_thread(functools.partial(self.host.work, READS), "reads"))
        self._helpers.append(_thread(functools.partial(self.host.work, WRITES), "writes"))
        self._helpers.append(_thread(self._desk, "desk"))
        if self._papers is not None and self._tls is not None:
            watch = functools.partial(self._watch_papers, self._tls, self._papers)
            self._helpers.append(_thread(watch, "certificates"))
            self._helpers.append(_thread(self._shake_hands, "handshakes"))
        self._threads = [_thread(loop.run, "loop") for loop in self._loops]

    def stop(self, grace_s: float) -> threading.Event:
        """Drains; what is left after grace_s is closed as it is. The event is set when nothing is served any
        more.
        """
        self.streams.drain()
        ended = self._ended
        if not self._threads:
            self._close_sockets()
            ended.set()
            return ended
        for loop in self._loops:
            loop.drain()
        threading.Thread(
            target=self._end, args=(grace_s, ended), name="featurestore-drain", daemon=True
        ).start()
        return ended

    def _end(self, grace_s: float, ended: threading.Event) -> None:
        until = time.monotonic() + grace_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        for loop in self._loops:
            loop.stop()
        for thread in self._threads:
            thread.join()
        self._close_sockets()
        ended.set()

    def _close_sockets(self) -> None:
        for each in self._sockets:
            for listening in each:
                listening.close()

    def close(self) -> None:
        """After `stop`: when it returns, no thread is in the dispatcher."""
        if self.host is None:
            self._pool.shutdown()
            return
        for call in list(self._calls.values()):
            call.take(None)
            call.cancelled()
        self._pool.shutdown()
        self.host.close()
        for thread in self._helpers:
            thread.join()
        for loop in self._loops:
            loop.close()

    def counts(self) -> dict[str, int]:
        """Of connections; see host.Host.counts."""
        return {} if self.host is None else self.host.counts()

    def refusals(self) -> dict[tuple[str, str], int]:
        """Calls turned away, by reason and kind; see host.Host.refusals."""
        return {} if self.host is None else self.host.refusals()

    def _work_at_large(self) -> None:
        niceness.give_way(niceness.LARGE_MESSAGES)
        self.host.work(LARGE)

    def _shake_hands(self) -> None:
        niceness.give_way(niceness.HANDSHAKES)
        self.host.work(HANDSHAKES)

    def read_papers(self) -> None:
        """Reads the certificates anew, whether or not they seem to have changed. Raises ConfigError, and
        those in use stay, where they cannot be used."""
        if self._papers is not None and self._tls is not None:
            self._papers.have_changed()  # what is read now is nothing to be told of again
            self._papers.check()
            self._tls.reload()

    def _watch_papers(self, tls: TlsContext, papers: listener.Papers) -> None:
        """Certificates that were replaced serve connections to come."""
        while not self._ended.wait(LOOK_AT_PAPERS_S):
            if papers.have_changed():
                try:
                    tls.reload()
                    _log.info("the certificate %s was read anew", tls.certificate)
                except (ConfigError, OSError) as error:
                    _log.error("the certificate was changed and stays as it was: %s", error)

    # -- the desk

    def _desk(self) -> None:
        n_ours = len(_HOT) + len(_HEALTH)
        while (errand := self.host.take()) is not None:
            kind, key, target, message, deadline_s = errand
            if kind == START:
                call = _Call(self, key, self._handlers[target - n_ours], deadline_s)
                self._calls[key] = call
                if call.is_streaming:
                    self._handle(call)
                continue
            found = self._calls.get(key)
            if found is None:
                if message is not None:
                    self.host.next(key, len(message))
                continue
            found.take(message if kind == MESSAGE else None)
            if kind == CANCEL:
                self.forget(key)
                try:
                    self._pool.submit(found.cancelled)  # its callbacks are others'
                except RuntimeError:  # the pool is shut down
                    found.cancelled()
            elif kind == MESSAGE and not found.is_streaming:
                self._handle(found)  # not before: a client that sends none would hold a thread

    def _handle(self, call: _Call) -> None:
        call.is_handled = True
        try:
            self._pool.submit(call.run)
        except RuntimeError:  # the pool is shut down: so is everything
            call.is_handled = False

    def forget(self, key: tuple[int, int, int]) -> None:
        self._calls.pop(key, None)


def _thread(run: Callable[[], object], name: str) -> threading.Thread:
    thread = threading.Thread(target=run, name=f"featurestore-{name}", daemon=True)
    thread.start()
    return thread
