"""Settings of a server and its limits: one immutable value, checked when it is made, before anything is
opened.

Every limit bounds something that a client could otherwise make grow: bytes of a message, rows of a batch,
calls at once, streams at once, unanswered batches of a stream. What is over a limit is answered
RESOURCE_EXHAUSTED at once; nothing queues without an end. A wrong setting is a ConfigError that names the
setting, its value and what it may be.

What all clients share cannot be used up by some of them, over the native transport: a connection may have
twice what is still free of it and no more, a peer (an IPv4 address, the /64 of an IPv6 one, all of a Unix
socket) eight times that. So whoever has much is refused first, and a ninth is left to others than the
greediest peer. Each limit says who can use it up, and who is refused then. Over grpcio they bound the whole,
without shares.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import ConfigError

DEFAULT_LISTEN = "localhost:50051"
ADMIN_SOCKET = "admin.sock"
TRANSPORTS = ("native", "grpcio")
OBSERVE_ACKS = ("applied", "durable")
SOCKET_MODE = 0o600  # of a Unix socket's file: its owner's alone
# sockaddr_un.sun_path, its ending zero not counted.
MAX_SOCKET_PATH_BYTES = 107


@dataclass(frozen=True)
class Address:
    """Where to listen: `host:port`, `[v6]:port` (port 0: any free one), or `unix:path`.

    mode: permission bits of the socket's file at `path`; who may write to it may connect.
    """

    host: str = ""
    port: int = 0
    path: Path | None = None
    mode: int = SOCKET_MODE

    @classmethod
    def parse(cls, text: str, setting: str) -> Address:
        if text.startswith("unix:"):
            path = Path(text.removeprefix("unix:").removeprefix("//") or ".").absolute()
            n_bytes = len(os.fsencode(path))
            if n_bytes > MAX_SOCKET_PATH_BYTES:
                raise ConfigError(
                    f"{setting}: the socket's path {path} has {n_bytes} bytes and a socket's has at most "
                    f"{MAX_SOCKET_PATH_BYTES}; give a shorter one with unix:PATH",
                    setting=setting,
                )
            return cls(path=path)
        host, colon, port = text.rpartition(":")
        if not colon or not host or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
            raise ConfigError(
                f"{setting} is {text!r}; it is host:port (port 0 for any), [v6 address]:port or unix:PATH",
                setting=setting,
            )
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def with_port(self, port: int) -> Address:
        return dataclasses.replace(self, port=port)

    @property
    def is_loopback(self) -> bool:
        return self.path is not None or self.host in ("localhost", "::1") or self.host.startswith("127.")

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Tls:
    """PEM files. With `client_ca`, clients must show a certificate that it signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class Limits:
    """What clients may ask for."""

    # Of one call. Nobody is refused for another's.
    max_message_bytes: int = 16 << 20  # of one request and of one reply
    max_batch_events: int = 1 << 20  # events of a batch, key sets of a read
    max_call_bytes: int = 256 << 20  # memory that one request may take when decoded
    durable_wait_s: float = 60.0  # a write waits so long for the disk, and is answered without it then
    # Of one connection. Whoever uses it up waits (HTTP/2 has it so) or is refused alone.
    max_streams_per_connection: int = 100  # HTTP/2 streams, that is calls at once
    stream_window: int = 8  # batches of one IngestStream that are applied and not answered yet
    # Clients that ping more often are disconnected. The Python client pings every 30 s of silence.
    min_ping_interval_ms: int = 10_000
    # Calls at once, by kind, so that those of one kind leave the others alone. A call has a place from its
    # message (a stream and what Python answers: from its headers) to its answer. Used up by whoever sends
    # faster than is answered, from many connections; those are refused, by shares.
    max_concurrent_calls: int = 1024  # of reads that wait or are large; as many of writes
    max_streams: int = 1024  # of the hot methods; an idle one costs 2 KB (grpcio: two threads)
    max_other_calls: int = 256  # what Python answers: schema, heaviest values, reflection
    max_watches: int = 4096  # Health.Watch; Health.Check takes no place at all
    # Connections. Used up by whoever opens many. Where there is no room for one more, an idle one of a peer
    # that has many goes for it (GOAWAY: its client connects again when it has something to say); one that has
    # a call under way never does. Refused is who has more than others, or comes when nobody is idle. Over
    # grpcio all further ones are. It is clipped to the descriptors that there are.
    max_connections: int = 4096
    # Memory for requests not run and replies not taken, and 1 KB of each open stream (native). Used up by
    # whoever sends without an end or takes no replies; refused by shares, and an eighth is divided among
    # max_connections, for each its part whatever others hold. request_s, stall_s and min_rate_bytes give it
    # back.
    max_connection_bytes: int = 64 << 20  # held for one connection
    max_buffered_bytes: int = 1 << 30  # held for all of them
    # Time (native). Whoever is slower is alone in what it loses.
    handshake_s: float = 10.0  # TLS and SETTINGS of a connection, and a header block; then it is closed
    # TLS handshakes that a peer may begin in a second; further ones wait, and are closed where that is longer
    # than handshake_s.
    handshake_rate: int = 200
    request_s: float = 60.0  # a request that has begun, whatever its deadline, besides a second for
    min_rate_bytes: int = 16 << 10  # each of these of it, and for replies where more than 64 KB wait
    stall_s: float = 60.0  # a client that takes nothing of what waits for it is closed
    # An idle connection costs 20 KB and a descriptor, and connecting anew costs its client's next call a
    # round trip: there is no hurry, and where there is, the longest idle go first (see max_connections). What
    # the hour ends is what nobody uses any more: pools that were too large once, proxies' leftovers. 0:
    # never.
    max_connection_idle_s: float = 3600.0
    max_connection_age_s: float = 0.0  # then it is drained, so that clients spread anew; 0: never
    # Calls that go on so long after that are ended, but not writes that wait for the disk: those have a
    # second more. Longer than durable_wait_s, then none of them is cut.
    connection_age_grace_s: float = 90.0


_RANGES: dict[str, tuple[float, float]] = {
    "max_message_bytes": (1 << 10, (1 << 31) - 1),
    "max_batch_events": (1, 1 << 20),
    "max_call_bytes": (1 << 16, 1 << 40),
    "max_concurrent_calls": (1, 1 << 16),
    "max_streams": (1, 1 << 16),
    "max_other_calls": (1, 1 << 12),
    "max_watches": (1, 1 << 16),
    "max_streams_per_connection": (1, 1 << 20),
    "stream_window": (1, 1 << 10),
    "min_ping_interval_ms": (0, 1 << 31),
    "durable_wait_s": (0.001, 86400.0),
    "max_connections": (1, 1 << 20),
    "max_connection_bytes": (1 << 16, 1 << 40),
    "max_buffered_bytes": (1 << 20, 1 << 45),
    "handshake_s": (0.1, 3600.0),
    "handshake_rate": (1, 1 << 20),
    "request_s": (0.1, 86400.0),
    "stall_s": (0.1, 86400.0),
    "min_rate_bytes": (1, 1 << 30),
    "max_connection_idle_s": (0.0, 86400.0 * 365),
    "max_connection_age_s": (0.0, 86400.0 * 365),
    "connection_age_grace_s": (0.0, 86400.0),
    "loop_threads": (1, 6),
    "worker_threads": (1, 256),
    "read_threads": (1, 256),
    "write_threads": (1, 256),
    "engine_threads": (1, 64),
    "max_memory_bytes": (0, 1 << 50),
    "dedupe_memory_bytes": (0, 1 << 50),
    "producer_memory_bytes": (0, 1 << 50),
    "checkpoint_every_s": (0.1, 86400.0),
    "checkpoint_journal_bytes": (1 << 20, 1 << 50),
    "drain_s": (0.0, 3600.0),
}


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class ServeConfig:
    """All that `serve` needs.

    data: the store's directory. schema: text of a schema to apply at start, None for the one the store has.
    listen: public address; `tls` for it. listen_mode: permission bits of its file where that is a Unix
    socket, None for 0600. admin: address of the operator's listener, None for DIR/admin.sock;
    over TCP it needs `admin_tls` with a client CA. metrics: address of the Prometheus listener, None for
    none.
    """

    data: Path
    schema: str | None = None
    schema_path: str | None = None
    listen: str = DEFAULT_LISTEN
    listen_mode: int | None = None
    tls: Tls | None = None
    admin: str | None = None
    admin_tls: Tls | None = None
    metrics: str | None = None
    clock: str | None = None  # of a new store: "wall", "event" or "merged"
    clock_back: bool = False  # set a wall clock back that is ahead of the machine's
    history: str | None = None  # of a new store: "none" or "unknown"
    durability: str = "group"
    observe_ack: str = "applied"  # of an Observe that asks for none: see OBSERVE_ACKS
    engine_threads: int = 1  # that apply one large batch together
    max_memory_bytes: int = 0  # of rows; 0: no limit
    dedupe_memory_bytes: int = 0  # of event ids; 0: see dedupe_bytes
    producer_memory_bytes: int = 0  # of what is remembered of producers; 0: see producer_bytes
    checkpoint_every_s: float = 60.0
    checkpoint_journal_bytes: int = 1 << 30
    transport: str | None = None  # "native" or "grpcio"; None: native, where it was built
    loop_threads: int = 1  # native: each reads, answers and writes
    read_threads: int = 8
    worker_threads: int = 2  # native: for messages that would keep a loop from others
    write_threads: int = 16  # grpcio: Observe and Ingest, which wait for the disk
    drain_s: float = 10.0  # that calls in flight get at the end
    limits: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self) -> None:
        for settings in (self, self.limits):
            for field in dataclasses.fields(settings):
                if field.name in _RANGES:
                    _check_range(field.name, getattr(settings, field.name))
        if self.transport not in (None, *TRANSPORTS):
            raise ConfigError(
                f"transport is {self.transport!r}; it is {' or '.join(TRANSPORTS)}", setting="transport"
            )
        if self.observe_ack not in OBSERVE_ACKS:
            raise ConfigError(
                f"observe_ack is {self.observe_ack!r}; it is {' or '.join(OBSERVE_ACKS)}",
                setting="observe_ack",
            )
        for tls, name in ((self.tls, "tls"), (self.admin_tls, "admin_tls")):
            if tls is not None:
                _check_files(tls, name)
        _check_mode(self.listen_mode, self.listen)
        public, admin, metrics = self.public_address, self.admin_address, self.metrics_address
        if admin.path is None and (self.admin_tls is None or self.admin_tls.client_ca is None):
            raise ConfigError(
                f"admin is {admin}: over TCP it needs a certificate, a key and a client CA (mutual TLS), "
                "because whoever reaches it may delete and copy everything; or leave it a Unix socket",
                setting="admin",
            )
        if metrics is not None and metrics.path is not None:
            raise ConfigError(f"metrics is {metrics}; it is host:port", setting="metrics")
        fixed = [str(a) for a in (public, admin, metrics) if a is not None and (a.path is not None or a.port)]
        if len(set(fixed)) < len(fixed):
            raise ConfigError(f"two listeners have the same address ({', '.join(fixed)}); give each its own")

    @property
    def dedupe_bytes(self) -> int:
        """Memory for event ids, beside that of rows: what is set, else a quarter of max_memory_bytes where
        that is set, else an eighth of the machine's."""
        if self.dedupe_memory_bytes:
            return self.dedupe_memory_bytes
        return self.max_memory_bytes // 4 or _machine_bytes() // 8

    @property
    def producer_bytes(self) -> int:
        """Memory for producers, beside that of rows: what is set, else a thirty-second of max_memory_bytes,
        or of the machine's where that is not set, and at least 64 MiB."""
        return self.producer_memory_bytes or max(64 << 20, (self.max_memory_bytes or _machine_bytes()) // 32)

    @property
    def public_address(self) -> Address:
        address = Address.parse(self.listen, "listen")
        return address if self.listen_mode is None else dataclasses.replace(address, mode=self.listen_mode)

    @property
    def admin_address(self) -> Address:
        if self.admin is None:
            return Address.parse(f"unix:{self.data / ADMIN_SOCKET}", "admin")
        return Address.parse(self.admin, "admin")

    @property
    def metrics_address(self) -> Address | None:
        return None if self.metrics is None else Address.parse(self.metrics, "metrics")


def _check_range(name: str, value: float) -> None:
    least, most = _RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigError(f"{name} is {value!r}; it is {least:,.16g} to {most:,.16g}", setting=name)


def _check_mode(mode: int | None, listen: str) -> None:
    if mode is None:
        return
    if isinstance(mode, bool) or not isinstance(mode, int) or not 0 <= mode <= 0o777:
        text = f"0{mode:o}" if type(mode) is int and mode >= 0 else repr(mode)
        raise ConfigError(
            f"listen_mode is {text}; it is an octal mode of at most 0777, such as 0660", setting="listen_mode"
        )
    if not listen.startswith("unix:"):
        raise ConfigError(
            f"listen_mode is 0{mode:o}, and {listen} is no file that could have a mode; listen on unix:PATH, "
            "or leave the mode out",
            setting="listen_mode",
        )


def _check_files(tls: Tls, name: str) -> None:
    for what, path in (("certificate", tls.certificate), ("key", tls.key), ("client CA", tls.client_ca)):
        if path is not None and not os.access(path, os.R_OK):
            raise ConfigError(
                f"{name}: the {what} {path} cannot be read; give a PEM file that this user may read"
            )
