"""A server from start to end: open the store, listen, wait for a signal or a failure, drain, close.

Start: the store is recovered before any port is bound, so whoever can connect is served. Both listeners are
bound or none. Drain: health says NOT_SERVING and ends its watchers, streams end between two batches, new
calls are turned away (GOAWAY), calls in flight get `drain_s`, then a last checkpoint, so that the next start
replays nothing.
Failure: when writes are over (a disk failed), the server drains the same way without the checkpoint and the
process exits with EXIT_FAILED: a restart finds everything that was acknowledged in the journal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType, TracebackType
from typing import Any, Self

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from featurestore.config import Address, ServeConfig, Tls
from featurestore.engine import Engine
from featurestore.errors import ConfigError, FeatureStoreError
from featurestore.server import (
    admin,
    descriptors,
    grpc_front,
    heaviest,
    listener,
    metrics,
    registry,
    transport,
)
from featurestore.server.dispatcher import Dispatcher
from featurestore.v1 import feature_store_service_pb2

EXIT_OK = 0
EXIT_FAILED = 1
# How often the waiting server looks whether the store still takes writes.
LOOK_EVERY_S = 0.2
# Calls beside those that run: the native transport's that have failed hold theirs until there are words.
SPARE_CALLS = 256
# What other daemons take for "read your files anew" or "say how you are": nothing to die of.
HARMLESS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_log = logging.getLogger("featurestore.server")


class _Reflection(reflection.ReflectionServicer):  # type: ignore[misc,unused-ignore]
    """Reflection calls are streams too, and count as such. It knows the proto files whose classes are
    imported, which for the hot service nothing else in a server does.
    """

    def __init__(self, names: tuple[str, ...], streams: grpc_front.Streams) -> None:
        super().__init__(names)
        self._streams = streams

    def ServerReflectionInfo(self, requests: Iterable[Any], context: Any) -> Iterator[Any]:
        with self._streams.slot(context, context.cancel):
            yield from super().ServerReflectionInfo(requests, context)


class Server:
    """Serves an open store. `start`, `wait`, `stop`; or a context manager. The store stays its caller's, to
    be closed after.

    engine: the store. address, admin_address, metrics_address: where it listens, with the ports that were
    bound.
    """

    def __init__(self, engine: Engine, config: ServeConfig) -> None:
        config = dataclasses.replace(config, limits=descriptors.clipped(config.limits))
        self.engine, self._config = engine, config
        self._wanted = threading.Event()  # somebody wants it to stop
        self._papers_wanted = False  # somebody wants the certificates read anew
        self._stopped = False
        limits = config.limits
        self.dispatcher = Dispatcher(
            engine,
            max_calls=config.read_threads + config.write_threads + 2 * limits.max_streams + SPARE_CALLS,
            max_message_bytes=limits.max_message_bytes,
            max_rows=limits.max_batch_events,
            max_call_bytes=limits.max_call_bytes,
            observe_ack=config.observe_ack,
        )
        self._registry = registry.Registry(engine)
        self.front = transport.front(self.dispatcher, config)
        self._admin_pool = ThreadPoolExecutor(admin.THREADS, "featurestore-admin")
        admins = dataclasses.replace(limits, max_connections=admin.MOST_CONNECTIONS)
        self._admin_papers = None if config.admin_tls is None else listener.Papers(config.admin_tls, "admin")
        self._admin = grpc.server(
            self._admin_pool, options=grpc_front.options(admins), maximum_concurrent_rpcs=admin.MOST_CALLS
        )
        self._metrics: metrics.MetricsListener | None = None
        self._add_services()
        self.address = config.public_address
        self.admin_address = config.admin_address
        self._files: list[listener.SocketFile] = []

    def _add_services(self) -> None:
        self._registry.add_to(self.front)
        heaviest.Heaviest(self.engine, self.dispatcher).add_to(self.front)
        admin.Admin(self.engine, self.dispatcher).add_to(self._admin)
        self.front.serve_health((grpc_front.SERVICE, registry.SERVICE))
        hot = feature_store_service_pb2.DESCRIPTOR.services_by_name["FeatureStoreService"].full_name
        names = (hot, registry.SERVICE, grpc_front.HEALTH, reflection.SERVICE_NAME)
        reflected = _Reflection(names, self.front.streams)
        add: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server  # generated, without types
        add(reflected, self.front)

    def start(self) -> None:
        """Binds the listeners and serves. Raises ConfigError where an address cannot be had; nothing listens
        then.
        """
        config = self._config
        try:
            self.admin_address = listener.bind(self._admin, config.admin_address, self._admin_papers, "admin")
            self._own(self.admin_address)
            self.address = self.front.bind(config.public_address, config.tls, "listen")
            self._own(self.address)
            if config.metrics_address is not None:
                collector = metrics.StoreCollector(self.engine, self.dispatcher, self.front)
                self._metrics = metrics.MetricsListener(config.metrics_address, collector)
        except BaseException:
            self.stop(0)
            raise
        if config.tls is None and not self.address.is_loopback:
            _log.warning(
                "%s is reachable from other machines without TLS: whoever reaches it may read and write",
                self.address,
            )
        self._admin.start()
        self.front.start()

    def _own(self, bound: Address) -> None:
        if bound.path is not None:
            self._files.append(listener.SocketFile(bound.path))

    @property
    def metrics_address(self) -> Address | None:
        return None if self._metrics is None else self._metrics.address

    def request_stop(self) -> None:
        """Ends `wait`; for signal handlers."""
        self._wanted.set()

    def request_papers(self) -> None:
        """Has `wait` read the TLS certificates anew; for signal handlers."""
        self._papers_wanted = True

    def wait(self) -> bool:
        """Blocks until a stop is requested (True) or the store has failed (False)."""
        while not self._wanted.wait(LOOK_EVERY_S):
            if self.engine.failed:
                return False
            if self._papers_wanted:
                self._papers_wanted = False
                self._read_papers()
        return not self.engine.failed

    def _read_papers(self) -> None:
        listeners: list[tuple[Tls, Callable[[], None]]] = []
        if self._config.tls is not None:
            listeners.append((self._config.tls, self.front.read_papers))
        if self._admin_papers is not None:
            listeners.append((self._admin_papers.tls, self._admin_papers.recall))
        if not listeners:
            _log.info("SIGHUP: no listener has a certificate that could be read anew")
        for tls, read in listeners:
            try:
                read()
                _log.info("SIGHUP: the certificate %s was read anew", tls.certificate)
            except (ConfigError, OSError) as error:
                _log.error("SIGHUP: the certificate stays as it was: %s", error)

    def stop(self, drain_s: float | None = None) -> None:
        """Drains and lets every port go; when it returns, no thread is in the dispatcher. Once is enough."""
        if self._stopped:
            return
        self._stopped = True
        grace_s = self._config.drain_s if drain_s is None else drain_s
        for file in self._files:
            file.remove()
        endings = [server.stop(grace_s) for server in (self.front, self._admin)]
        for ending in endings:
            ending.wait()
        self.front.close()
        self._admin_pool.shutdown()
        if self._metrics is not None:
            self._metrics.close()
        self._registry.close()
        self.dispatcher.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def open_store(config: ServeConfig) -> Engine:
    """The store that a config describes, recovered, with its upkeep not started yet."""
    return Engine.open(
        config.data,
        schema=config.schema,
        schema_path=config.schema_path,
        clock=config.clock,
        clock_back=config.clock_back,
        history=config.history,
        durability=config.durability,
        threads=config.engine_threads,
        max_memory_bytes=config.max_memory_bytes,
        dedupe_memory_bytes=config.dedupe_bytes,
        producer_memory_bytes=config.producer_bytes,
    )


def serve(config: ServeConfig, *, on_ready: Any = None) -> int:
    """Runs a server in this process's main thread until SIGTERM, SIGINT or a failure; returns the process's
    exit code.

    on_ready(server) is called when it listens. A second signal ends the process at once, which loses nothing
    acknowledged. SIGHUP has TLS certificates read anew, once it listens; SIGUSR1 and SIGUSR2 do nothing.
    """
    descriptors.raise_limit()
    with _ignoring(HARMLESS):
        return _serve(config, on_ready)


@contextlib.contextmanager
def _ignoring(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(config: ServeConfig, on_ready: Any) -> int:
    engine = open_store(config)
    try:
        _log_recovered(engine)
        server = Server(engine, config)
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def on_signal(number: int, frame: FrameType | None) -> None:
            for each in before:
                signal.signal(each, signal.SIG_DFL)
            server.request_stop()

        for number in before:
            signal.signal(number, on_signal)
        signal.signal(signal.SIGHUP, lambda _number, _frame: server.request_papers())
        try:
            server.start()
            engine.start_upkeep(
                checkpoint_every_s=config.checkpoint_every_s,
                checkpoint_journal_bytes=config.checkpoint_journal_bytes,
                on_failure=lambda error: _log.error("the store has failed: %s", error),
                on_filling=_log_filling,
                on_shedding=_log_shedding,
                on_shortage=lambda why: _log_shortage(why, engine),
                on_leap=lambda leap_ms: _log_leap(leap_ms, engine),
            )
            if config.transport is None and server.front.name != "native":
                _log.warning(
                    "the native transport was not built: grpcio serves; `featurestore doctor` says why"
                )
            _log.info("listening on %s; admin on %s", server.address, server.admin_address)
            if on_ready is not None:
                on_ready(server)
            is_sound = server.wait()
            if is_sound:
                _log.info("told to stop: calls in flight get %g s", config.drain_s)
            server.stop()
        finally:
            server.stop(0)
            for number, handler in before.items():
                signal.signal(number, handler)
    except BaseException:
        engine.close()
        raise
    if not is_sound:
        _log.error("the store takes no more writes; restart the server: nothing acknowledged is lost")
    try:
        engine.close(checkpoint=is_sound)
    except FeatureStoreError as error:  # the store is closed all the same
        _log.error("no last checkpoint: %s; the next start replays the journal instead", error)
        return EXIT_FAILED
    if is_sound:
        _log.info("stopped; the checkpoint is at position %d", engine.checkpoint_position)
    return EXIT_OK if is_sound else EXIT_FAILED


def _log_filling(what: str, used: int, cap: int) -> None:
    _log.warning(
        "%s is %d %% full (%d of %d bytes): at its cap %s; give it more, or shorten what it is kept for",
        what,
        used * 100 // cap if cap else 100,
        used,
        cap,
        "keys without a row are shed" if what == "max_memory" else "events are refused",
    )


def _log_shedding(whether: bool) -> None:
    if whether:
        _log.warning(
            "memory is at max_memory: keys that have a row go on, those that have none are shed "
            "(shed_total), and what is asked of them is WARMING"
        )
    else:
        _log.info("no key was shed for a minute")


def _log_shortage(why: str | None, engine: Engine) -> None:
    if why is None:
        _log.info("no shortage of space, descriptors or memory for a minute; writes and checkpoints go on")
        return
    space = os.statvfs(engine.directory.path)
    _log.warning(
        "%s; %d MiB are free in %s; until it is over writes %s",
        why,
        space.f_bavail * space.f_frsize >> 20,
        engine.directory.path,
        "are refused" if engine.refuses_writes else "go on and the journal grows",
    )


def _log_leap(leap_ms: int, engine: Engine) -> None:
    if leap_ms == 0:
        _log.info("the wall clock is believed again")
        return
    _log.warning(
        "the wall clock has leapt %.1f s further ahead than time has passed%s, until it is set right or "
        "`featurestore clock accept`",
        leap_ms / 1000,
        ": no event is taken" if engine.clock == "wall" else "",
    )


def _log_recovered(engine: Engine) -> None:
    found = engine.recovered
    _log.info(
        "%s: opened in %.2f s: %d rows of the checkpoint at position %d, then %d frames of the journal to "
        "position %d",
        engine.directory.path,
        found.seconds,
        found.rows,
        found.checkpoint_position,
        found.frames,
        engine.state.position,
    )
    if found.torn is not None:
        _log.warning("the end of the journal was cut off, as a crash leaves it: %s", found.torn)
