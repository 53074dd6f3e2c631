"""Which transport carries the public port: our own (native_front) where it was built, grpcio (grpc_front)
everywhere.

Both are handed the same dispatcher and the same handlers, and the same tests hold both.
"""

from __future__ import annotations

import importlib.util
import threading
from typing import Protocol

from featurestore.config import Address, ServeConfig, Tls
from featurestore.errors import ConfigError
from featurestore.server.dispatcher import Dispatcher
from featurestore.server.grpc_front import GrpcioFront, Streams
from featurestore.server.handlers import Handlers


class Front(Handlers, Protocol):
    """A transport of the public port. Handlers are added first."""

    name: str
    streams: Streams

    def serve_health(self, services: tuple[str, ...]) -> None: ...
    def bind(self, address: Address, tls: Tls | None, setting: str) -> Address: ...
    def start(self) -> None: ...
    def read_papers(self) -> None: ...
    def stop(self, grace_s: float) -> threading.Event: ...
    def close(self) -> None: ...
    def counts(self) -> dict[str, int]: ...
    def refusals(self) -> dict[tuple[str, str], int]: ...


def available() -> tuple[str, ...]:
    """The transports of this build, the one that is the default first."""
    is_built = importlib.util.find_spec("featurestore.server.loop") is not None
    return ("native", "grpcio") if is_built else ("grpcio",)


def libraries() -> tuple[str, ...]:
    """What the native transport runs on, with versions; () where it was not built."""
    if available()[0] != "native":
        return ()
    from featurestore.server.host import nghttp2_library  # noqa: PLC0415 - not in every build
    from featurestore.server.tls import openssl_library  # noqa: PLC0415

    return nghttp2_library(), openssl_library()


def front(dispatcher: Dispatcher, config: ServeConfig) -> Front:
    """The transport that the config names, or the default. Raises ConfigError for one that was not built."""
    name = config.transport or available()[0]
    if name not in available():
        raise ConfigError(
            "transport is 'native', which was not built: install libnghttp2-dev and libssl-dev and build "
            "again, or use grpcio; `featurestore doctor` tells more",
            setting="transport",
        )
    if name == "grpcio":
        return GrpcioFront(dispatcher, config)
    from featurestore.server.native_front import NativeFront  # noqa: PLC0415 - not in every build

    return NativeFront(dispatcher, config)
