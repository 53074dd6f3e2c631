"""AdminService: what an operator may do. Served on a listener of its own, to whoever may open its socket or
shows a certificate.

Everything here is rare and may take long (Forget and Backup write checkpoints); calls queue on two threads,
at most MOST_CALLS of them, beside the hot path and not on it. What writes checkpoints gives way to it; a
change of schema does not, since calls wait for that.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc

from featurestore.engine import Engine
from featurestore.errors import ConfigError, InvalidEventError
from featurestore.niceness import nicely
from featurestore.plan import PinPlan, Plan
from featurestore.schema.changes import Change, changes_of
from featurestore.schema.document import shown
from featurestore.server.dispatcher import Dispatcher
from featurestore.server.handlers import OnGrpcio, abort
from featurestore.v1 import admin_service_pb2 as pb
from featurestore.v1 import admin_service_pb2_grpc as pb_grpc
from featurestore.v1 import types_pb2 as types

SERVICE = "featurestore.v1.AdminService"
THREADS = 2
MOST_CALLS = 8
MOST_CONNECTIONS = 64
DEFAULT_GRACE_MS = 3_600_000  # that what a schema does not declare any more is kept
MOST_LOGGED = 100  # changes of a schema, in one line
PRODUCERS, MOST_PRODUCERS = 1_000, 10_000  # of a page

Reply = TypeVar("Reply")

_log = logging.getLogger("featurestore.server")


class Admin(pb_grpc.AdminServiceServicer):
    """The operator's calls on one store."""

    def __init__(self, engine: Engine, dispatcher: Dispatcher) -> None:
        self._engine, self._dispatcher = engine, dispatcher
        self._began = time.monotonic()
        self._changing = threading.Lock()  # from one schema to the next, so that a reply tells its own change

    def add_to(self, server: grpc.Server) -> None:
        add: Any = pb_grpc.add_AdminServiceServicer_to_server  # generated, without types
        add(self, OnGrpcio(server))

    def ApplySchema(
        self, request: pb.ApplySchemaRequest, context: grpc.ServicerContext
    ) -> pb.ApplySchemaResponse:
        return _answer(context, lambda: self._apply_schema(request))

    def ListPins(self, request: pb.ListPinsRequest, context: grpc.ServicerContext) -> pb.ListPinsResponse:
        return _answer(context, self._list_pins)

    def Stats(self, request: pb.StatsRequest, context: grpc.ServicerContext) -> pb.StatsResponse:
        return _answer(context, self._stats)

    def Checkpoint(
        self, request: pb.CheckpointRequest, context: grpc.ServicerContext
    ) -> pb.CheckpointResponse:
        return _answer(context, lambda: nicely(self._checkpoint))

    def Forget(self, request: pb.ForgetRequest, context: grpc.ServicerContext) -> pb.ForgetResponse:
        return _answer(context, lambda: nicely(lambda: self._forget(request)))

    def ListProducers(
        self, request: pb.ListProducersRequest, context: grpc.ServicerContext
    ) -> pb.ListProducersResponse:
        return _answer(context, lambda: self._list_producers(request))

    def DropProducer(
        self, request: pb.DropProducerRequest, context: grpc.ServicerContext
    ) -> pb.DropProducerResponse:
        return _answer(
            context, lambda: pb.DropProducerResponse(position=self._engine.drop_producer(request.name))
        )

    def ResetProducer(
        self, request: pb.ResetProducerRequest, context: grpc.ServicerContext
    ) -> pb.ResetProducerResponse:
        return _answer(
            context,
            lambda: pb.ResetProducerResponse(
                position=self._engine.reset_producer(request.name, request.epoch, request.sequence)
            ),
        )

    def AcceptClock(
        self, request: pb.AcceptClockRequest, context: grpc.ServicerContext
    ) -> pb.AcceptClockResponse:
        return _answer(context, self._accept_clock)

    def ChangeClock(
        self, request: pb.ChangeClockRequest, context: grpc.ServicerContext
    ) -> pb.ChangeClockResponse:
        return _answer(context, lambda: self._change_clock(request))

    def Backup(self, request: pb.BackupRequest, context: grpc.ServicerContext) -> pb.BackupResponse:
        return _answer(context, lambda: nicely(lambda: self._backup(request)))

    def _apply_schema(self, request: pb.ApplySchemaRequest) -> pb.ApplySchemaResponse:
        with self._changing:
            before = self._engine.state.plan
            plan = self._engine.apply_schema(
                request.source,
                path=request.path or None,
                dry_run=request.dry_run,
                allow=[_words(kind) for kind in request.allow],
                expect_version=request.expect_version if request.HasField("expect_version") else None,
                grace_ms=request.grace_ms if request.HasField("grace_ms") else DEFAULT_GRACE_MS,
            )
            changes = changes_of(before, plan)
            had, has = ([feature.name for feature in p.declared.all_features] for p in (before, plan))
            is_changed = plan.version != before.version and not request.dry_run
            if is_changed:
                _log_applied(plan.version, changes, request.note)
            return pb.ApplySchemaResponse(
                version=plan.version,
                position=self._engine.schema_position if is_changed else 0,
                added_features=[name for name in has if name not in set(had)],
                removed_features=[name for name in had if name not in set(has)],
                changes=[_change(each) for each in changes],
                pins_broken=_broken(before.declared, plan.declared),
                kept_until_ms=plan.retired_ms,
            )

    def _list_pins(self) -> pb.ListPinsResponse:
        plan = self._engine.state.plan
        current = {
            service.name: PinPlan(
                service.name,
                service.fingerprint,
                tuple(plan.all_features[index].name for index in service.features),
                (),
            )
            for service in plan.services
        }
        response = pb.ListPinsResponse()
        for name in dict.fromkeys([*current, *(pin.service for pin in plan.pins)]):
            now = current.get(name)
            for pin in (now, *(each for each in plan.pins if each.service == name)):
                if pin is None:
                    continue
                calls, per_s, ago_s = self._dispatcher.asked_of(pin.service, pin.fingerprint)
                response.pins.add(
                    service=pin.service,
                    fingerprint=int(pin.fingerprint, 16),
                    features=pin.names,
                    current=pin is now,
                    missing="" if pin is now else plan.missing(pin) or "",
                    calls=calls,
                    calls_per_s=per_s,
                    asked_ms_ago=None if ago_s is None else int(ago_s * 1000),
                )
        return response

    def _stats(self) -> pb.StatsResponse:
        stats = {name: n for name, n in self._engine.stats().items() if n is not None}
        names = pb.StatsResponse.DESCRIPTOR.fields_by_name
        known = {name: stats[name] for name in names if name in stats}
        response = pb.StatsResponse(clocks_ms=self._engine.state.nows_ms, **known)
        response.row_bytes = stats["used_bytes"]
        response.uptime_ms = int((time.monotonic() - self._began) * 1000)
        return response

    def _accept_clock(self) -> pb.AcceptClockResponse:
        leap_ms = self._engine.accept_clock()
        _log.info("the wall clock is believed as it is; it had leapt %.1f s ahead", leap_ms / 1000)
        return pb.AcceptClockResponse(leap_ms=leap_ms)

    def _change_clock(self, request: pb.ChangeClockRequest) -> pb.ChangeClockResponse:
        changes = {
            pb.CLOCK_CHANGE_WALL: (self._engine.set_wall_clock, "is the server's from here on"),
            pb.CLOCK_CHANGE_BACK: (self._engine.set_clock_back, "is set back to the server's"),
        }
        if request.change not in changes:
            raise ConfigError(f"change is {request.change}, which is no change of a clock")
        change, words = changes[request.change]
        position = change(allow=[_words(kind) for kind in request.allow])
        if position is not None:
            _log.warning("the store's clock %s; position %d", words, position)
        return pb.ChangeClockResponse(position=position or 0)

    def _checkpoint(self) -> pb.CheckpointResponse:
        began = time.monotonic()
        position, n_bytes = self._engine.checkpoint()
        took_s = time.monotonic() - began
        last = self._engine.last_checkpoint
        return pb.CheckpointResponse(
            position=position,
            rows_written=0 if last is None else last.rows,
            bytes_written=n_bytes,
            duration_ms=int(took_s * 1000),
        )

    def _forget(self, request: pb.ForgetRequest) -> pb.ForgetResponse:
        found, position = self._engine.forget(key_texts(request.parts))
        return pb.ForgetResponse(found=found, position=position)

    def _list_producers(self, request: pb.ListProducersRequest) -> pb.ListProducersResponse:
        if request.page_size > MOST_PRODUCERS:
            raise ConfigError(f"page_size is {request.page_size}; it is at most {MOST_PRODUCERS}, or 0")
        found, following = self._engine.producers(request.after, at_least=request.page_size or PRODUCERS)
        return pb.ListProducersResponse(
            producers=[
                pb.RememberedProducer(
                    name=(each.name or b"").decode(errors="replace"),
                    epoch=each.epoch,
                    sequence=each.sequence,
                    heard_ms=each.heard_ms,
                    made_up=each.made_up,
                )
                for each in found
            ],
            next=following or 0,
        )

    def _backup(self, request: pb.BackupRequest) -> pb.BackupResponse:
        target = Path(request.directory)
        if not target.is_absolute():
            raise ConfigError(
                f"directory is {request.directory!r}; give an absolute path on the server's machine"
            )
        position = self._engine.backup(target)
        n_bytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        return pb.BackupResponse(position=position, bytes_written=n_bytes)


def _words(kind: int) -> str:
    """As Engine.apply_schema knows a ChangeKind of the wire."""
    if kind not in pb.ChangeKind.values():
        raise ConfigError(f"allow has {kind}, which is no kind of change")
    name: str = pb.ChangeKind.Name(kind)
    return name.removeprefix("CHANGE_KIND_").lower()


def _change(change: Change) -> pb.Change:
    return pb.Change(
        kind=f"CHANGE_KIND_{change.kind.name}",
        subject=change.subject,
        before=change.before,
        after=change.after,
        consent=change.needs_consent,
        line=change.line,
    )


def _broken(before: Plan, after: Plan) -> list[pb.BrokenPin]:
    """The vectors that were served before and are so no more."""
    served = {(each.name, each.fingerprint) for each in after.served}
    pins = {(pin.service, pin.fingerprint): pin for pin in after.pins}
    broken = []
    for each in before.served:
        if (each.name, each.fingerprint) not in served:
            pin = pins.get((each.name, each.fingerprint))
            missing = "" if pin is None else after.missing(pin) or ""
            broken.append(
                pb.BrokenPin(service=each.name, fingerprint=int(each.fingerprint, 16), missing=missing)
            )
    return broken


def _log_applied(version: int, changes: Sequence[Change], note: str) -> None:
    """What was changed, and by whom, is in the log for whoever finds a value that is not what it was."""
    named = [f"{each.kind.name} {each.subject}" for each in changes[:MOST_LOGGED]]
    if len(changes) > MOST_LOGGED:
        named.append(f"and {len(changes) - MOST_LOGGED} more")
    by = f" ({shown(note)})" if note else ""
    _log.info("schema version %d is served from now on%s: %s", version, by, "; ".join(named))


def _answer(context: grpc.ServicerContext, work: Callable[[], Reply]) -> Reply:
    try:
        return work()
    except Exception as error:
        abort(context, error)


def key_texts(parts: Iterable[types.Field]) -> dict[str, str]:
    """Key parts by name, as the texts that they mean."""
    texts: dict[str, str] = {}
    for part in parts:
        kind = part.WhichOneof("kind")
        if part.name in texts:
            raise InvalidEventError(f"key part {part.name!r} is given twice; give it once")
        if kind == "text":
            texts[part.name] = part.text
        elif kind == "integer":
            texts[part.name] = str(part.integer)
        elif kind == "number" and part.number.is_integer():
            texts[part.name] = str(int(part.number))
        else:
            raise InvalidEventError(f"key part {part.name!r} is neither text nor an integer")
    return texts
