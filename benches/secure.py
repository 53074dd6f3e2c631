"""A right client over TLS, which `benches.load` does not speak: calls that are due at a constant rate, on one
connection.

In Python, so that what it adds to a latency is some 100 microseconds: for ratios of latencies above that.
"""

from __future__ import annotations

import select
import socket
import ssl
import subprocess
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hpack
import numpy as np
from hyperframe import frame as frames

from benches.adversary import LARGEST_WINDOW, block, greeting, headers, message, serialized
from benches.load import LoadError

DATA, HEADERS, RST_STREAM, GOAWAY = 0, 1, 3, 7
END_STREAM = 1
FRAME_BYTES = 9
PREFIX_BYTES = 5
READ_BYTES = 1 << 16


class Paper(NamedTuple):
    """Files in PEM: a certificate for localhost that vouches for itself, and its key."""

    certificate: Path
    key: Path


def paper(directory: Path) -> Paper:
    """Made anew. Raises FileNotFoundError where there is no `openssl` command."""
    made = Paper(directory / "certificate.pem", directory / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", made.key, "-out", made.certificate, "-subj", "/CN=localhost", "-days", "2",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


class Connection:
    """One, on which a method is called, any number of times at once."""

    def __init__(self, target: str, trusted: Path, path: str, timeout_s: float = 10.0) -> None:
        host, _, port = target.rpartition(":")
        context = ssl.create_default_context(cafile=str(trusted))
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection((host, int(port)), timeout_s)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = context.wrap_socket(plain, server_hostname="localhost")
        opened = greeting(INITIAL_WINDOW_SIZE=LARGEST_WINDOW)
        opened += serialized(frames.WindowUpdateFrame(0, window_increment=LARGEST_WINDOW - 65_535))
        self._socket.sendall(opened + serialized(frames.SettingsFrame(0), "ACK"))
        self._fields = block(path)
        self._decoder = hpack.Decoder()
        self._rest = b""
        self._bodies: dict[int, bytes] = {}
        self.timeout_s = timeout_s
        self._next = 1

    def close(self) -> None:
        self._socket.close()

    def send(self, body: bytes) -> int:
        """The number of the stream that it went out on."""
        number, self._next = self._next, self._next + 2
        self._bodies[number] = b""
        self._socket.settimeout(self.timeout_s)
        self._socket.sendall(headers(number, self._fields) + message(number, body, "END_STREAM"))
        return number

    def replies(self, wait_s: float) -> Iterator[tuple[int, str, bytes]]:
        """What comes within this time, as it is there: stream, gRPC's status, body."""
        self._socket.settimeout(0)
        if not self._socket.pending() and not select.select([self._socket], [], [], wait_s)[0]:
            return
        try:
            while got := self._socket.recv(READ_BYTES):
                self._rest += got
                yield from self._whole()
        except ssl.SSLWantReadError:
            return
        raise LoadError("the server has closed the connection")

    def _whole(self) -> Iterator[tuple[int, str, bytes]]:
        while len(self._rest) >= FRAME_BYTES:
            end = FRAME_BYTES + int.from_bytes(self._rest[:3], "big")
            if len(self._rest) < end:
                return
            kind, flags = self._rest[3], self._rest[4]
            number = int.from_bytes(self._rest[5:9], "big")
            payload, self._rest = self._rest[FRAME_BYTES:end], self._rest[end:]
            if kind == DATA:
                self._bodies[number] += payload
            elif kind == HEADERS:
                named = dict(self._decoder.decode(payload))
                if flags & END_STREAM:
                    yield number, str(named.get("grpc-status")), self._bodies.pop(number)[PREFIX_BYTES:]
            elif kind == RST_STREAM:
                del self._bodies[number]
                yield number, "RESET", b""
            elif kind == GOAWAY:
                raise LoadError(f"the server ends the connection: {payload[8:]!r}")


def run(
    made: Connection,
    messages: Sequence[bytes],
    *,
    rate: float | None = None,
    seconds: float = 0.0,
    count: int = 0,
    warmup_s: float = 0.0,
) -> dict[str, Any]:
    """As `benches.load.run`, and with the same names, as far as they are needed: statuses, latency_us, lag_us
    and checksum (the sum of the replies' CRC32s). Without a rate, one call after the other.
    """
    due_at: dict[int, float] = {}
    latencies: list[float] = []
    lags: list[float] = []
    statuses: dict[str, int] = {}
    checksum = n_sent = 0
    began = time.monotonic()
    counted_from, end = began + warmup_s, began + warmup_s + seconds
    deadline = end + made.timeout_s
    while True:
        now = time.monotonic()
        if now > deadline:
            raise LoadError(f"{len(due_at)} calls were not answered in {made.timeout_s} s")
        due = began + n_sent / rate if rate else now
        is_over = n_sent >= count if count else due >= end
        if is_over and not due_at:
            break
        if not is_over and now >= due and (rate or not due_at):
            due_at[made.send(messages[n_sent % len(messages)])] = due
            lags.append(now - due)
            n_sent += 1
            continue
        wait_s = made.timeout_s if is_over or not rate else due - now
        for number, status, body in made.replies(wait_s):
            at = due_at.pop(number)
            if at >= counted_from:
                latencies.append(time.monotonic() - at)
                name = "OK" if status == "0" else status
                statuses[name] = statuses.get(name, 0) + 1
                checksum = checksum + zlib.crc32(body) & 0xFFFFFFFF
    return {
        "statuses": statuses,
        "latency_us": _percentiles_us(latencies),
        "lag_us": _percentiles_us(lags),
        "checksum": checksum,
    }


def _percentiles_us(seconds: list[float]) -> dict[str, float]:
    found = np.percentile(seconds or [0.0], [50, 90, 99, 99.9], method="higher") * 1e6
    return dict(zip(("p50", "p90", "p99", "p99.9"), map(float, found), strict=True))
