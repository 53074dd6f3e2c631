"""How a client reaches a server: the address, TLS, and what the channel is told.

An address is `host:port`, `unix:/path/to.sock`, or anything else that gRPC resolves (`dns:///name:port`).

What is on this machine is never reached through a proxy, whatever the environment says: a proxy elsewhere
would connect to itself. Anything else goes the way that gRPC takes, and an error names the variable.

A connection is pinged every KEEPALIVE_MS in which nothing came, idle or not: routers that translate addresses
and firewalls forget one that is silent, and tell neither side, so that the next call would wait in vain.

A channel is its process's own: it is made at the first call, and made anew in a process that is forked.
"""

from __future__ import annotations

import ipaddress
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from featurestore.client import forks
from featurestore.errors import ConfigError

MAX_MESSAGE_BYTES = 16 << 20  # the server's own limit unless it was told another
MAX_REPLY_BYTES = 64 << 20  # several times the largest that is asked for: 2**18 values with bounds are 8 MB

# Pings find out that a silent peer is gone, and keep the way to it known. A server turns away clients that
# ping more often than it allows: ours allows one in 10 s unless told otherwise (serve --min-ping-interval).
KEEPALIVE_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000
FIRST_RECONNECT_MS = 100
LONGEST_RECONNECT_MS = 2_000  # gRPC would wait up to two minutes for a server that restarts in seconds

# In which gRPC looks for a proxy, in its order: the first that is set counts, and an empty one means none. It
# reads neither all_proxy nor names in capitals.
PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")


@dataclass(frozen=True)
class Tls:
    """Certificates as PEM files. Without `ca` the system's roots are trusted; `cert` and `key` are the
    client's."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    server_name: str | None = None  # to check instead of the address's host

    def credentials(self) -> grpc.ChannelCredentials:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("a client's certificate and its key are given together")
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca), certificate_chain=_read(self.cert), private_key=_read(self.key)
        )


def _read(path: str | None) -> bytes | None:
    try:
        return None if path is None else Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def checked_target(target: str) -> str:
    """The address, or ConfigError where it lacks what gRPC would only miss later."""
    if not isinstance(target, str):
        raise ConfigError(f"an address is text such as localhost:50051, not {target!r}")
    if target.startswith(("http://", "https://", "grpc://", "grpcs://")):
        raise ConfigError(f"{target!r}: write host:port alone; whether TLS is spoken is a setting of its own")
    if target.startswith("unix:"):
        if not target.removeprefix("unix:").strip("/"):
            raise ConfigError(f"{target!r} names no socket; write unix:/path/to.sock")
    elif "://" not in target and not target.rpartition(":")[2].isdecimal():
        raise ConfigError(f"{target!r} has no port; write host:port, such as localhost:50051")
    return target


def is_loopback(target: str) -> bool:
    """Whether all that an address names is on this machine, as far as it can be told without asking for a
    name: localhost and the names below it (RFC 6761), 127.0.0.0/8, ::1, a socket in the file system; and
    the unspecified address, through which a client reaches its own machine."""
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    # dns:name:port, dns:///name:port, dns://server/name:port, ipv4:a:port,b:port, or no scheme
    names = rest.rpartition("/")[2] if scheme in ("dns", "ipv4", "ipv6") else target
    return all(_is_own_host(_host_of(name)) for name in names.split(","))


def _host_of(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, colon, _ = address.rpartition(":")
    return host if colon else address


def _is_own_host(host: str) -> bool:
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified


def proxy_variable(target: str) -> str | None:
    """The variable by which gRPC takes a proxy to reach `target`, unless `no_proxy` exempts it; None where no
    proxy is between. Its value is nobody's business: it may hold a password."""
    if is_loopback(target):
        return None
    first = next((name for name in PROXY_VARIABLES if name in os.environ), None)
    return first if first is not None and os.environ[first] else None


def options(
    target: str, max_message_bytes: int, max_reply_bytes: int, tls: Tls | None
) -> list[tuple[str, int | str]]:
    for name, size in (("max_message_bytes", max_message_bytes), ("max_reply_bytes", max_reply_bytes)):
        if not isinstance(size, int) or not 0 < size < 1 << 31:
            raise ConfigError(f"{name} is {size!r}; it must be from 1 to 2**31 - 1", setting=name)
    given: list[tuple[str, int | str]] = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_reply_bytes),  # also once it is decompressed
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),  # else gRPC pings an idle peer far more rarely
        ("grpc.initial_reconnect_backoff_ms", FIRST_RECONNECT_MS),
        ("grpc.min_reconnect_backoff_ms", LONGEST_RECONNECT_MS),  # how long one attempt to connect may take
        ("grpc.max_reconnect_backoff_ms", LONGEST_RECONNECT_MS),
        # By a resolver's service config: "no", said of its second try, would hide what the first did.
        ("grpc.enable_retries", 0),
    ]
    if is_loopback(target):
        given.append(("grpc.enable_http_proxy", 0))
    if tls is not None and tls.server_name is not None:
        given.append(("grpc.ssl_target_name_override", tls.server_name))
    return given


class Line:
    """The channel of a blocking client. Thread-safe."""

    def __init__(self, target: str, max_message_bytes: int, max_reply_bytes: int, tls: Tls | None) -> None:
        self._target = target
        self._options = options(target, max_message_bytes, max_reply_bytes, tls)
        self._credentials = None if tls is None else tls.credentials()
        self._channel: grpc.Channel | None = None
        self._of_parent: grpc.Channel | None = None
        self._unary: dict[str, Any] = {}
        self._lock = threading.Lock()
        forks.watch(self, Line._forked)

    def _forked(self) -> None:
        self._of_parent = self._channel or self._of_parent  # kept: to close it would be to call gRPC
        self._channel, self._unary = None, {}
        self._lock = threading.Lock()

    def unary(self, method: str) -> Any:
        """To be called within forks.CALL, with the message's bytes and a timeout."""
        found = self._unary.get(method)
        if found is None:
            found = self._unary[method] = self._opened().unary_unary(method)
        return found

    def stream(self, method: str) -> Any:
        """To be called within forks.LONG_CALL, with an iterator of messages."""
        return self._opened().stream_stream(method)

    def close(self) -> None:
        """Ends all its calls. It cannot be used any more, but in a child of this process."""
        if self._channel is not None:
            self._channel.close()

    def _opened(self) -> grpc.Channel:
        with self._lock:
            if self._channel is None:
                forks.begin()
                if self._credentials is None:
                    self._channel = grpc.insecure_channel(self._target, self._options)
                else:
                    self._channel = grpc.secure_channel(self._target, self._credentials, self._options)
            return self._channel
