"""A client that has nothing to say for a while: its connection is kept, by whatever is between as well."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import transports
from transport.frames import PREFACE, Flag, Kind

from featurestore.client import channel
from featurestore.config import Limits, ServeConfig
from featurestore.server.serve import Server, open_store

from .conftest import MakeClient

SCHEMA = """\
version: 1
name: idle
events:
  play:
    time: {field: ts, unit: ms}
    fields: {ip: key}
views:
  ip:
    event: play
    key: ip
    windows: [1h]
    features: [count]
services:
  abuse: [ip.*]
"""
# The client's interval and the server's limit, in the proportion that they have by default.
KEEPALIVE_MS = 900
MIN_PING_INTERVAL_MS = Limits.min_ping_interval_ms * KEEPALIVE_MS // channel.KEEPALIVE_MS


class Relay:
    """What is between a client and a server: it carries their bytes and counts their frames.

    pings: of the client. goaways: of the server. n_connections: that were made.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.target = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.pings = self.goaways = self.n_connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listening.accept()
                self.n_connections += 1
                host, _, port = self._server.rpartition(":")
                server = socket.create_connection((host, int(port)))
                self._ends += [client, server]
                for come, go, skip, seen in (
                    (client, server, len(PREFACE), self._of_client),
                    (server, client, 0, self._of_server),
                ):
                    threading.Thread(target=self._carry, args=(come, go, skip, seen), daemon=True).start()

    def _of_client(self, kind: int, flags: int) -> None:
        self.pings += kind == Kind.PING and not flags & Flag.ACK

    def _of_server(self, kind: int, _flags: int) -> None:
        self.goaways += kind == Kind.GOAWAY

    def _carry(
        self, come: socket.socket, go: socket.socket, skip: int, seen: Callable[[int, int], None]
    ) -> None:
        ahead = bytearray()
        with contextlib.suppress(OSError):
            while data := come.recv(1 << 16):
                go.sendall(data)
                ahead += data
                while len(ahead) >= skip + 9:
                    n_bytes = int.from_bytes(ahead[skip : skip + 3])
                    if len(ahead) < skip + 9 + n_bytes:
                        break
                    seen(ahead[skip + 3], ahead[skip + 4])
                    del ahead[: skip + 9 + n_bytes]
                    skip = 0
            go.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in (self._listening, *self._ends):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def served(tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(channel, "KEEPALIVE_MS", KEEPALIVE_MS)
    settings = ServeConfig(
        data=tmp_path / "store", schema=SCHEMA, listen="127.0.0.1:0", clock="event",
        limits=Limits(min_ping_interval_ms=MIN_PING_INTERVAL_MS), **transports.settings(transport),
    )  # fmt: skip
    engine = open_store(settings)
    with Server(engine, settings) as server:
        yield server
    engine.close()


def test_an_idle_client_pings_and_no_more_often_than_the_server_allows(
    served: Server, make_client: MakeClient
) -> None:
    """Translators of addresses forget a connection that nobody uses, and tell neither side."""
    relay = Relay(str(served.address))
    try:
        client = make_client(relay.target)
        assert client.schema().name == "idle"
        before = relay.pings
        until = time.monotonic() + 60
        while relay.pings - before < 4 and time.monotonic() < until:
            time.sleep(0.05)
        assert relay.pings - before >= 4
        assert client.get("abuse", {"ip": "a"}) is not None
        assert (relay.n_connections, relay.goaways) == (1, 0)
    finally:
        relay.close()


def test_by_default_it_keeps_well_below_what_a_server_allows() -> None:
    """Pings bunch where a network stalls."""
    assert 2 * Limits().min_ping_interval_ms <= channel.KEEPALIVE_MS
