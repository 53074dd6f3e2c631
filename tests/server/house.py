"""A store and its server on free ports, with the generated stubs in front: what the service's tests talk
to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from featurestore.config import Limits, ServeConfig
from featurestore.engine import Engine
from featurestore.server.serve import Server, open_store
from featurestore.v1 import admin_service_pb2_grpc as admin_grpc
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import feature_store_service_pb2_grpc as pb_grpc
from featurestore.v1 import registry_service_pb2_grpc as registry_grpc
from featurestore.v1 import types_pb2 as types

HOUR_MS = 3_600_000
T0 = 1_522_540_800_000  # 2018-04-01

SCHEMA = """\
version: 1
name: abuse
events:
  play:
    time: {field: ts, unit: ms}
    fields: {ip: key, account: key, track: key, ms_played: number}
  like:
    time: {field: at, unit: ms}
    fields: {ip: key, like_id: string}
    ids: {id: like_id, dedupe: 1h}
views:
  ip:
    event: play
    key: ip
    windows: [10m, 1h]
    features: [count, mean(ms_played), since_last]
  account:
    event: play
    key: account
    windows: [1h]
    features: [count, sum(ms_played)]
  pair:
    event: play
    key: [ip, track]
    windows: [1h]
    features: [count]
  likes:
    event: like
    key: ip
    windows: [1h]
    features: [count]
services:
  abuse: [ip.*, account.*, pair.*]
  likes: [likes.*]
"""


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="needs ::1")


def field(name: str, value: Any) -> types.Field:
    if isinstance(value, bool):
        return types.Field(name=name, flag=value)
    if isinstance(value, int):
        return types.Field(name=name, integer=value)
    if isinstance(value, float):
        return types.Field(name=name, number=value)
    return types.Field(name=name, text=value)


def event(time_ms: int | None = T0, **values: Any) -> types.Event:
    return types.Event(time_ms=time_ms, fields=[field(name, value) for name, value in values.items()])


def play(time_ms: int = T0, ip: str = "1.2.3.4", account: Any = 596, ms_played: float = 30.0) -> types.Event:
    return event(time_ms, ip=ip, account=account, track="t1", ms_played=ms_played)


def observe(
    sent: types.Event, event_type: str = "play", service: str = "abuse", **more: Any
) -> pb.ObserveRequest:
    return pb.ObserveRequest(event_type=event_type, event=sent, service=service, **more)


def batch(*rows: types.Event, event_type: str = "play", **more: Any) -> pb.IngestRequest:
    return pb.IngestRequest(event_type=event_type, rows=rows, **more)


def keys(**parts: Any) -> types.KeySet:
    return types.KeySet(parts=[field(name, value) for name, value in parts.items()])


def read(*key_sets: types.KeySet, service: str = "abuse", **more: Any) -> pb.GetFeaturesRequest:
    return pb.GetFeaturesRequest(service=service, key_sets=key_sets, **more)


@dataclasses.dataclass
class House:
    engine: Engine
    server: Server
    channel: grpc.Channel

    def __post_init__(self) -> None:
        self.hot = pb_grpc.FeatureStoreServiceStub(self.channel)
        self.registry = registry_grpc.RegistryServiceStub(self.channel)

    @contextlib.contextmanager
    def admin(self) -> Iterator[admin_grpc.AdminServiceStub]:
        with grpc.insecure_channel(str(self.server.admin_address)) as channel:
            yield admin_grpc.AdminServiceStub(channel)

    def names(self, service: str = "abuse") -> list[str]:
        plan = self.engine.state.plan
        (found,) = (s for s in plan.services if s.name == service)
        return [plan.all_features[index].name for index in found.features]

    def values(self, vectors: types.Vectors, row: int = 0, service: str = "abuse") -> dict[str, float]:
        values = vectors.values[row * vectors.width : (row + 1) * vectors.width]
        return dict(zip(self.names(service), values, strict=True))


def config(directory: Path, **settings: Any) -> ServeConfig:
    limits = Limits(**{n: settings.pop(n) for n in list(settings) if n in Limits.__dataclass_fields__})
    defaults: dict[str, Any] = {"schema": SCHEMA, "clock": "event", "listen": "localhost:0", "drain_s": 5.0}
    return ServeConfig(data=directory / "store", limits=limits, **{**defaults, **settings})


# The fixture `serving`: `opened`, over the transport that the test runs over.
Serving = Callable[..., contextlib.AbstractContextManager[House]]


@contextlib.contextmanager
def opened(directory: Path, **settings: Any) -> Iterator[House]:
    chosen = config(directory, **settings)
    engine = open_store(chosen)
    try:
        with (
            Server(engine, chosen) as server,
            grpc.insecure_channel(str(server.address)) as channel,
        ):
            yield House(engine, server, channel)
    finally:
        engine.close()


def status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """How a call that must fail fails."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError("the call succeeded")
