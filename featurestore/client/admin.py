"""`AdminClient`: what an operator may ask of a store, over its own listener. Blocking, one call at a time.

Nothing is retried: these calls are made by people who see what happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.protobuf.message import Message

from featurestore.client import forks, wire
from featurestore.client.channel import MAX_MESSAGE_BYTES, MAX_REPLY_BYTES, Line, Tls, checked_target
from featurestore.client.failures import Code, Failure
from featurestore.client.requests import mapped, set_value
from featurestore.errors import ConfigError, ConsentError, FeatureStoreError, SchemaError, StaleVersionError
from featurestore.plan import MAX_GRACE_MS
from featurestore.v1 import admin_service_pb2 as admin_pb

M = TypeVar("M", bound=Message)

SERVICE = "/featurestore.v1.AdminService/"

_OF_CONSENT: dict[grpc.StatusCode, type[FeatureStoreError]] = {Code.FAILED_PRECONDITION: ConsentError}
_OF_SCHEMAS = _OF_CONSENT | {
    Code.INVALID_ARGUMENT: SchemaError,
    Code.ABORTED: StaleVersionError,
}


class AdminClient:
    """Replies are the messages of proto/featurestore/v1/admin_service.proto; failures are
    featurestore.errors.

    target      `unix:DIR/admin.sock` of the data directory, or an address where the server has one
    timeout_s   a checkpoint or a backup of a large store takes minutes
    """

    def __init__(self, target: str, *, timeout_s: float = 600.0, tls: Tls | None = None) -> None:
        self.target, self.timeout_s = checked_target(target), timeout_s
        self._line = Line(target, MAX_MESSAGE_BYTES, MAX_REPLY_BYTES, tls)

    def apply_schema(
        self,
        source: str,
        path: str,
        *,
        dry_run: bool,
        allow: Iterable[str] = (),
        expect_version: int | None = None,
        note: str = "",
        grace_s: float | None = None,
    ) -> admin_pb.ApplySchemaResponse:
        """Serves this schema from now on, or only says what it would change. SchemaError where it may not:
        ConsentError where it takes something away, of a kind that `allow` does not name (drop, reset, narrow,
        order, erase, clock); StaleVersionError where the store serves another version than expect_version.

        note      who changes it and why, for the server's log
        grace_s   for so long what it does not declare any more is kept as it was, fed, and served to who asks
                  for a vector by its fingerprint; the schema before takes it back. At most 30 days; None: 1 h
        """
        if grace_s is not None and not 0 <= grace_s * 1000 <= MAX_GRACE_MS:
            raise ConfigError(f"grace is {grace_s:g} s; it is from 0 to 30 days", setting="grace")
        request = admin_pb.ApplySchemaRequest(
            source=source,
            path=path,
            dry_run=dry_run,
            allow=[_change_kind(word) for word in allow],
            expect_version=expect_version,
            note=note,
            grace_ms=None if grace_s is None else round(grace_s * 1000),
        )
        reply = self._call("ApplySchema", request, admin_pb.ApplySchemaResponse, means=_OF_SCHEMAS)
        if not reply.version:
            raise wire.unreadable("a schema without a version; it may have been applied")
        return reply

    def pins(self) -> admin_pb.ListPinsResponse:
        """The vectors that services are and were, of each the current one first."""
        return self._call("ListPins", admin_pb.ListPinsRequest(), admin_pb.ListPinsResponse)

    def stats(self) -> admin_pb.StatsResponse:
        return self._call("Stats", admin_pb.StatsRequest(), admin_pb.StatsResponse)

    def checkpoint(self) -> admin_pb.CheckpointResponse:
        return self._call("Checkpoint", admin_pb.CheckpointRequest(), admin_pb.CheckpointResponse)

    def forget(self, parts: Mapping[str, Any]) -> admin_pb.ForgetResponse:
        """Returns when no file of the store holds the key's row, nor the events that made it, any more. What
        rows of other keys hold of it (composite keys, lists, distinct counts) stays until their windows have
        passed."""
        request = admin_pb.ForgetRequest()
        for name, value in mapped(parts, "a key maps the names of its parts to values").items():
            set_value(request.parts.add(name=name), value, f"key {name}")
        return self._call("Forget", request, admin_pb.ForgetResponse)

    def producers(self) -> Iterator[admin_pb.RememberedProducer]:
        """Those that are remembered, in no order; a page is asked for when the one before has been taken."""
        request = admin_pb.ListProducersRequest()
        while True:
            page = self._call("ListProducers", request, admin_pb.ListProducersResponse)
            yield from page.producers
            if not page.next:
                return
            if page.next <= request.after:
                raise wire.unreadable("a page of producers that goes back; ask for them again")
            request.after = page.next

    def drop_producer(self, name: str) -> admin_pb.DropProducerResponse:
        """Nothing is remembered of it any more: what it sends again counts again."""
        request = admin_pb.DropProducerRequest(name=name)
        return self._call("DropProducer", request, admin_pb.DropProducerResponse)

    def reset_producer(self, name: str, *, epoch: int, sequence: int) -> admin_pb.ResetProducerResponse:
        """It goes on above this epoch and sequence, after another has fenced it off under its name."""
        for word, number in (("epoch", epoch), ("sequence", sequence)):
            if not 0 <= number < 1 << 63:
                raise ConfigError(f"{word} is {number}; it is from 0 to 2**63 - 1")
        request = admin_pb.ResetProducerRequest(name=name, epoch=epoch, sequence=sequence)
        return self._call("ResetProducer", request, admin_pb.ResetProducerResponse)

    def accept_clock(self) -> admin_pb.AcceptClockResponse:
        """The server's wall clock, which has leapt ahead, is right: writes go on by it."""
        return self._call("AcceptClock", admin_pb.AcceptClockRequest(), admin_pb.AcceptClockResponse)

    def set_wall_clock(self, *, allow: Iterable[str] = ()) -> admin_pb.ChangeClockResponse:
        """The store's clock, which events moved, is the server's from here on and for good. ConsentError
        unless `allow` names "clock"."""
        return self._change_clock(admin_pb.CLOCK_CHANGE_WALL, allow)

    def set_clock_back(self, *, allow: Iterable[str] = ()) -> admin_pb.ChangeClockResponse:
        """The store's clock, which went ahead with a server's that was wrong, is set back to what that is
        now. ConsentError unless `allow` names "clock"."""
        return self._change_clock(admin_pb.CLOCK_CHANGE_BACK, allow)

    def _change_clock(
        self, change: admin_pb.ClockChange, allow: Iterable[str]
    ) -> admin_pb.ChangeClockResponse:
        request = admin_pb.ChangeClockRequest(change=change, allow=[_change_kind(word) for word in allow])
        return self._call("ChangeClock", request, admin_pb.ChangeClockResponse, means=_OF_CONSENT)

    def backup(self, directory: str) -> admin_pb.BackupResponse:
        """`directory` is on the server's machine and must not exist yet."""
        request = admin_pb.BackupRequest(directory=directory)
        return self._call("Backup", request, admin_pb.BackupResponse)

    def close(self) -> None:
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self,
        method: str,
        request: Message,
        reply: type[M],
        *,
        means: Mapping[grpc.StatusCode, type[FeatureStoreError]] = MappingProxyType({}),
    ) -> M:
        """means: the errors of some codes, where a method has other than all have."""
        send = self._line.unary(SERVICE + method)  # bytes: gRPC would log what it cannot read
        try:
            with forks.CALL:
                answer = send(request.SerializeToString(), timeout=self.timeout_s)
        except grpc.RpcError as error:
            failure = Failure.of(error)
            if failure.code in means:
                raise means[failure.code](failure.details) from error
            raise failure.error(self.target) from error  # whether it changed something, nobody says
        return wire.message_of(reply, answer)


def kind_word(kind: int) -> str:
    """A kind of change as `allow` names it; "free" of what needs no consent."""
    if kind not in admin_pb.ChangeKind.values() or not kind:
        raise wire.unreadable(f"{kind} is no kind of change that this client knows")
    name: str = admin_pb.ChangeKind.Name(kind)
    return name.removeprefix("CHANGE_KIND_").lower()


def _change_kind(word: str) -> str:
    """Its name in the proto."""
    known = {kind_word(kind): kind for kind in admin_pb.ChangeKind.values()[2:]}
    if word not in known:
        raise ConfigError(f"allow is {word!r}; it is of {', '.join(known)}", setting="allow")
    name: str = admin_pb.ChangeKind.Name(known[word])
    return name
