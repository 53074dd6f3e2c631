"""Addresses → listening gRPC ports: TLS, Unix sockets' modes, and the words when it cannot be.

A Unix socket is created under a umask that gives it no more than its mode from its first moment. A socket
that a dead server left is replaced; one that somebody answers on is not, nor is any other file. At its end a
server takes away the file that it made, and no other that is there by then.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import socket
import ssl
import stat
from pathlib import Path

import grpc

from featurestore.config import Address, Tls
from featurestore.errors import ConfigError

_log = logging.getLogger("featurestore.server")

# Ours alone, so that a port in use is an error and not a port shared with whoever has it.
OWN_PORT = ("grpc.so_reuseport", 0)
# Connections that wait to be taken; the system may allow fewer (net.core.somaxconn).
BACKLOG = 4096
# How often any free port is looked for that is free in every family.
PORT_TRIES = 10
# What localhost is, whether or not a machine's hosts file knows (RFC 6761, 6.3); grpcio has it so too.
LOOPBACK: dict[int, str] = {socket.AF_INET6: "::1", socket.AF_INET: "127.0.0.1"}


def bind(server: grpc.Server, address: Address, papers: Papers | None, setting: str) -> Address:
    """Adds the port to the server; returns the address with the port that was bound."""
    if address.path is not None:
        _bind_file(server, address, address.path, papers, setting)
        return address
    hosts = _hosts(address, setting)
    if len(hosts) > 1:
        # gRPC is content where one of them has the port, and another program may have it at the others.
        made = _listening(hosts, address, 1, setting)
        address = address.with_port(_port(made))
        _close(made)
    return address.with_port(_add(server, address, papers, setting))


def _bind_file(
    server: grpc.Server, address: Address, path: Path, papers: Papers | None, setting: str
) -> None:
    """gRPC listens on a name of its own: it removes whatever has that name some time after its server was
    stopped, and by then another server's socket may have the public one."""
    _clear(path, setting)
    own = path.with_name(f".{secrets.token_hex(4)}")
    mask = os.umask(0o777 & ~address.mode)
    try:
        _add(server, address, papers, setting, at=Address(path=own))
    finally:
        os.umask(mask)
    try:
        own.chmod(address.mode)
        path.hardlink_to(own)
    except OSError as error:
        raise _cannot(address, setting, f" ({error.strerror or error})") from error
    finally:
        own.unlink(missing_ok=True)


def sockets(address: Address, n: int, setting: str) -> tuple[list[list[socket.socket]], Address]:
    """Listening sockets for n loops, a list each, non-blocking; and the address with the port that was bound.

    A host with several addresses (localhost: ::1 and 127.0.0.1) gets a socket for each, all with one port.
    TCP sockets of several loops share the port through SO_REUSEPORT, and the kernel spreads connections
    over them; a Unix socket is one, which the loops share.
    """
    if address.path is not None:
        _clear(address.path, setting)
        return [[each] for each in _unix_sockets(address.path, address.mode, n, setting)], address
    made = _listening(_hosts(address, setting), address, n, setting)
    return [list(of_loop) for of_loop in zip(*made, strict=True)], address.with_port(_port(made))


def _listening(hosts: dict[int, str], address: Address, n: int, setting: str) -> list[list[socket.socket]]:
    """n sockets for each family that the machine has, all with one port; ConfigError where that cannot be."""
    for _ in range(PORT_TRIES - 1 if address.port == 0 else 0):
        with contextlib.suppress(OSError):  # a port that is free in one family need not be so in the other
            return _of_every_family(hosts, address.port, n)
    try:
        return _of_every_family(hosts, address.port, n)
    except OSError as error:
        raise _cannot(address, setting, f" ({_not_bound(error, address.port)})") from error


def _hosts(address: Address, setting: str) -> dict[int, str]:
    """A numeric address by family."""
    if address.host == "localhost":
        return LOOPBACK
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise _cannot(address, setting, f" ({error.strerror or error})") from error
    return {int(family): str(place[0]) for family, _, _, _, place in reversed(found)}


def _of_every_family(hosts: dict[int, str], port: int, n: int) -> list[list[socket.socket]]:
    """n sockets for each family that the machine has, all with one port."""
    made: list[list[socket.socket]] = []
    try:
        for family in sorted(hosts, reverse=True):  # IPv6 first: its port is then asked of IPv4
            try:
                made.append(_tcp_sockets(family, hosts[family], port, n))
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and (made or len(hosts) > 1):
                    continue  # a machine without IPv6
                raise
            port = _port(made)
        if not made:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except OSError:
        _close(made)
        raise
    return made


def _close(made: list[list[socket.socket]]) -> None:
    for of_family in made:
        for each in of_family:
            each.close()


def _port(made: list[list[socket.socket]]) -> int:
    return int(made[0][0].getsockname()[1])


def _tcp_sockets(family: int, host: str, port: int, n: int) -> list[socket.socket]:
    made: list[socket.socket] = []
    try:
        # Alone first: with SO_REUSEPORT we would share the port with whoever has it.
        made.append(_tcp_socket(family, host, port, shared=False))
        if n > 1:
            port = made[0].getsockname()[1]
            made.pop().close()
            made += [_tcp_socket(family, host, port, shared=True) for _ in range(n)]
        for each in made:
            each.listen(BACKLOG)
    except OSError:
        for each in made:
            each.close()
        raise
    return made


def _tcp_socket(family: int, host: str, port: int, *, shared: bool) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def _unix_sockets(path: Path, mode: int, n: int, setting: str) -> list[socket.socket]:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o777 & ~mode)
    try:
        made.setblocking(False)
        made.bind(str(path))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise _cannot(Address(path=path), setting, f" ({error.strerror or error})") from error
    finally:
        os.umask(mask)
    path.chmod(mode)
    return [made, *(made.dup() for _ in range(n - 1))]


def _cannot(address: Address, setting: str, why: str) -> ConfigError:
    any_port = address.path is None and address.port == 0  # where nothing can be stopped
    stop = "" if any_port else "stop what listens there, or "
    return ConfigError(
        f"{setting}: cannot listen on {address}{why}; {stop}give another address", setting=setting
    )


class SocketFile:
    """The file of a Unix socket that was bound here, to be removed before the server is stopped: while it
    listens, no other server takes the name."""

    def __init__(self, path: Path) -> None:
        self._path, self._made = path, path.lstat()

    def remove(self) -> None:
        """Unless it is another's by now, as after a deletion by hand."""
        try:
            if os.path.samestat(self._path.lstat(), self._made):
                self._path.unlink()
        except FileNotFoundError:
            pass


def _add(
    server: grpc.Server, address: Address, papers: Papers | None, setting: str, at: Address | None = None
) -> int:
    """Has gRPC listen on `address`, or `at` another in its place."""
    at = at or address
    credentials = None if papers is None else _credentials(papers)
    try:
        if credentials is None:
            return int(server.add_insecure_port(str(at)))
        return int(server.add_secure_port(str(at), credentials))
    except RuntimeError as error:
        raise _cannot(address, setting, _why(at)) from error


class Papers:
    """The files of the TLS settings of a listener, and whether they are others than when that was last
    asked."""

    def __init__(self, tls: Tls, setting: str) -> None:
        self.tls, self.setting = tls, setting
        self._paths = [path for path in (tls.certificate, tls.key, tls.client_ca) if path is not None]
        self._seen: list[tuple[int, int, int]] | None = self._look()

    def have_changed(self) -> bool:
        now = self._look()
        changed = now is not None and now != self._seen
        if changed:
            self._seen = now
        return changed

    def check(self) -> None:
        """Raises ConfigError where they cannot be used."""
        check_pem(self.tls, self.setting)

    def recall(self) -> None:
        """From now on they have changed, whatever they look like. Raises ConfigError, and then they have not,
        where they cannot be used."""
        self.check()
        self._seen = None

    def _look(self) -> list[tuple[int, int, int]] | None:
        """None where one is missing, as it is while it is replaced."""
        try:
            return [(s.st_ino, s.st_size, s.st_mtime_ns) for s in (path.stat() for path in self._paths)]
        except OSError:
            return None


def _credentials(papers: Papers) -> grpc.ServerCredentials:
    papers.check()
    tls = papers.tls

    def read() -> grpc.ServerCertificateConfiguration:
        ca = None if tls.client_ca is None else tls.client_ca.read_bytes()
        pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=ca)

    def read_if_changed() -> grpc.ServerCertificateConfiguration | None:
        """Asked at every handshake; None: as before."""
        if not papers.have_changed():
            return None
        try:
            papers.check()
            return read()
        except (ConfigError, OSError) as error:
            _log.error("the certificate was changed and stays as it was: %s", error)
            return None

    return grpc.dynamic_ssl_server_credentials(
        read(), read_if_changed, require_client_authentication=tls.client_ca is not None
    )


def check_pem(tls: Tls, setting: str) -> None:
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
            return f" ({_not_bound(error, address.port)})"
    return ""


def _not_bound(error: OSError, port: int) -> str:
    """Port 0 is any that is free: that it is in use means that none is."""
    if error.errno != errno.EADDRINUSE:
        return error.strerror or str(error)
    return "the port is in use" if port else "no port is free until some connections have ended"


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
