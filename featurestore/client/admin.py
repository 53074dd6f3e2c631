"""`AdminClient`: what an operator may ask of a store, over its own listener. Blocking, one call at a time.

Nothing is retried: these calls are made by people who see what happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import grpc

from featurestore.client.channel import MAX_MESSAGE_BYTES, Tls, checked_target, options
from featurestore.client.failures import Code, Failure
from featurestore.client.requests import mapped, set_value
from featurestore.errors import SchemaError
from featurestore.v1 import admin_service_pb2 as admin_pb
from featurestore.v1.admin_service_pb2_grpc import AdminServiceStub


class AdminClient:
    """Replies are the messages of proto/featurestore/v1/admin_service.proto; failures are
    featurestore.errors.

    target      `unix:DIR/admin.sock` of the data directory, or an address where the server has one
    timeout_s   a checkpoint or a backup of a large store takes minutes
    """

    def __init__(self, target: str, *, timeout_s: float = 600.0, tls: Tls | None = None) -> None:
        self.target, self.timeout_s = checked_target(target), timeout_s
        made = options(MAX_MESSAGE_BYTES, tls)
        if tls is None:
            self._channel = grpc.insecure_channel(target, made)
        else:
            self._channel = grpc.secure_channel(target, tls.credentials(), made)
        self._stub = AdminServiceStub(self._channel)

    def apply_schema(self, source: str, path: str, *, dry_run: bool) -> admin_pb.ApplySchemaResponse:
        """Serves this schema from now on, or only says what it would change. SchemaError where it may not."""
        request = admin_pb.ApplySchemaRequest(source=source, path=path, dry_run=dry_run)
        reply: admin_pb.ApplySchemaResponse = self._call(self._stub.ApplySchema, request, about_schema=True)
        return reply

    def stats(self) -> admin_pb.StatsResponse:
        reply: admin_pb.StatsResponse = self._call(self._stub.Stats, admin_pb.StatsRequest())
        return reply

    def checkpoint(self) -> admin_pb.CheckpointResponse:
        reply: admin_pb.CheckpointResponse = self._call(self._stub.Checkpoint, admin_pb.CheckpointRequest())
        return reply

    def forget(self, parts: Mapping[str, Any]) -> admin_pb.ForgetResponse:
        """Returns when the key is nowhere in the store's files any more."""
        request = admin_pb.ForgetRequest()
        for name, value in mapped(parts, "a key maps the names of its parts to values").items():
            set_value(request.parts.add(name=name), value, f"key {name}")
        reply: admin_pb.ForgetResponse = self._call(self._stub.Forget, request)
        return reply

    def backup(self, directory: str) -> admin_pb.BackupResponse:
        """`directory` is on the server's machine and must not exist yet."""
        reply: admin_pb.BackupResponse = self._call(
            self._stub.Backup, admin_pb.BackupRequest(directory=directory)
        )
        return reply

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Any, request: Any, *, about_schema: bool = False) -> Any:
        try:
            return method(request, timeout=self.timeout_s)
        except grpc.RpcError as error:
            failure = Failure.of(error)
            if about_schema and failure.code in (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION):
                raise SchemaError(failure.details) from error
            raise failure.error(self.target) from error
