"""What the commands that talk to a server share: its address, TLS, keys written as `name=value`, tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from featurestore.errors import ConfigError

if TYPE_CHECKING:
    from featurestore.client import AdminClient, Client, Tls

DEFAULT_SERVER = "localhost:50051"


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server",
        default=DEFAULT_SERVER,
        metavar="ADDR",
        help=f"host:port or unix:/path of the server (default: {DEFAULT_SERVER})",
    )
    _add_tls_arguments(parser)


def add_admin_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument(
        "--admin",
        required=required,
        metavar="ADDR",
        help="the server's admin listener: unix:DIR/admin.sock of its data directory, or host:port with TLS",
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="give up after S seconds (default: 600)"
    )
    _add_tls_arguments(parser)


def _add_tls_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("TLS (plain text without any of these)")
    group.add_argument("--tls", action="store_true", help="trust the system's certificate authorities")
    group.add_argument("--tls-ca", metavar="PEM", help="trust this certificate authority")
    group.add_argument("--tls-cert", metavar="PEM", help="this client's certificate, with --tls-key")
    group.add_argument("--tls-key", metavar="PEM", help="its private key")


def _tls(arguments: argparse.Namespace) -> Tls | None:
    from featurestore.client import Tls

    given = (arguments.tls_ca, arguments.tls_cert, arguments.tls_key)
    return Tls(*given) if arguments.tls or any(given) else None


def client_of(
    arguments: argparse.Namespace,
    *,
    producer: str | None = None,
    epoch: int | None = None,
    retry_s: float = 0.0,
) -> Client:
    from featurestore.client import Client

    return Client(
        arguments.server,
        timeout_s=checked_timeout_s(arguments.timeout),
        producer=producer,
        epoch=epoch,
        tls=_tls(arguments),
        retry_s=retry_s,
    )


def admin_of(arguments: argparse.Namespace) -> AdminClient:
    from featurestore.client import AdminClient

    return AdminClient(arguments.admin, timeout_s=checked_timeout_s(arguments.timeout), tls=_tls(arguments))


def checked_timeout_s(timeout_s: float) -> float:
    if not 0 < timeout_s <= 86_400:
        raise ConfigError(f"--timeout is {timeout_s:g}; it must be above 0 and at most 86400 seconds")
    return timeout_s


def keys_of(words: Sequence[str]) -> dict[str, str]:
    """`customer_id=596` as {"customer_id": "596"}: a number and its decimal text are one key."""
    keys: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise ConfigError(f"{word!r} is not a key; write name=value, such as customer_id=596")
        if name in keys:
            raise ConfigError(f"the key {name} is given twice")
        keys[name] = value
    return keys


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Rows as aligned lines, two blanks between columns; `right` says which columns are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:>{width}}" if i in right else f"{cell:<{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def printable(text: str, most: int = 120) -> str:
    """For a terminal, to which what comes from senders must not speak; `most` letters of it."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[:most])
