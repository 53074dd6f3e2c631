"""Addresses → listening gRPC ports: TLS, sockets of mode 0600, and the words when it cannot be.

A Unix socket is created under a umask that leaves it to its owner from its first moment. A socket that a dead
server left is replaced; one that somebody answers on is not, nor is any other file.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
from pathlib import Path

import grpc

from featurestore.config import Address, Tls
from featurestore.errors import ConfigError

# Ours alone, so that a port in use is an error and not a port shared with whoever has it.
OWN_PORT = ("grpc.so_reuseport", 0)


def bind(server: grpc.Server, address: Address, tls: Tls | None, setting: str) -> Address:
    """Adds the port to the server; returns the address with the port that was bound."""
    if address.path is not None:
        _clear(address.path, setting)
        mask = os.umask(0o177)
        try:
            _add(server, address, tls, setting)
        finally:
            os.umask(mask)
        address.path.chmod(0o600)
        return address
    return address.with_port(_add(server, address, tls, setting))


def unbind(address: Address) -> None:
    """Removes a socket's file, when its server has stopped."""
    if address.path is not None:
        address.path.unlink(missing_ok=True)


def _add(server: grpc.Server, address: Address, tls: Tls | None, setting: str) -> int:
    credentials = None if tls is None else _credentials(tls, setting)
    try:
        if credentials is None:
            return int(server.add_insecure_port(str(address)))
        return int(server.add_secure_port(str(address), credentials))
    except RuntimeError as error:
        raise ConfigError(
            f"{setting}: cannot listen on {address}{_why(address)}; "
            "stop what listens there, or give another address",
            setting=setting,
        ) from error


def _credentials(tls: Tls, setting: str) -> grpc.ServerCredentials:
    _check_pem(tls, setting)
    ca = None if tls.client_ca is None else tls.client_ca.read_bytes()
    pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
    return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=ca is not None)


def _check_pem(tls: Tls, setting: str) -> None:
    """gRPC would fail to listen, or turn every client away, without a word of why."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # the password: no key with one can be used, and nobody is asked for it
        context.load_cert_chain(tls.certificate, tls.key, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{setting}: the certificate {tls.certificate} and the key {tls.key} cannot be used ({error}); "
            "give PEM files that belong together, the key without a password",
            setting=setting,
        ) from error
    try:
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
    except OSError as error:
        raise ConfigError(
            f"{setting}: the client CA {tls.client_ca} cannot be used ({error}); give a PEM file",
            setting=setting,
        ) from error


def _why(address: Address) -> str:
    """gRPC does not say why it could not bind; the system does, asked again."""
    if address.path is not None:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.bind(str(address.path))
            except OSError as error:
                return f" ({error.strerror or error})"
        address.path.unlink(missing_ok=True)
        return ""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address.host, address.port))
        except OSError as error:
            return (
                " (the port is in use)"
                if error.errno == errno.EADDRINUSE
                else f" ({error.strerror or error})"
            )
    return ""


def _clear(path: Path, setting: str) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConfigError(
                f"{setting}: {path} exists and is no socket; give another path", setting=setting
            )
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{setting}: cannot use {path}: {error.strerror}", setting=setting) from error
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise ConfigError(
                f"{setting}: cannot tell whether {path} is in use: {error.strerror or error}",
                setting=setting,
            ) from error
    raise ConfigError(
        f"{setting}: a server answers on {path} already; stop it, or give another path", setting=setting
    )
