"""Where the public port listens: Unix sockets, IPv4, IPv6, names that are both; and what cannot be had."""

from __future__ import annotations

import errno
import os
import queue
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import transports
from house import House, Serving, config, needs_ipv6, observe, play

from featurestore.config import Address
from featurestore.errors import ConfigError
from featurestore.server import listener
from featurestore.server.serve import Server, open_store
from featurestore.v1 import feature_store_service_pb2_grpc as pb_grpc
from featurestore.v1 import types_pb2 as types


def is_answered(target: str) -> bool:
    """Whether a call to this very address is."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(target, options) as channel:
        hot = pb_grpc.FeatureStoreServiceStub(channel)
        try:
            return bool(hot.Observe(observe(play()), timeout=20).outcome == types.OUTCOME_ACCEPTED)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            return False


class NoPort:
    """What gRPC's server does where it cannot bind: it does not say why."""

    def add_insecure_port(self, at: str) -> int:
        raise RuntimeError(f"Failed to bind to address {at}")


def bound_by_grpc(at: Address) -> object:
    server: Any = NoPort()
    return listener._add(server, at, None, "listen")


def port_of(house: House) -> int:
    return house.server.address.port


# ---- TCP


@needs_ipv6
@pytest.mark.parametrize("taken", ["127.0.0.1", "::1"])
def test_a_port_that_one_family_has_no_more_is_in_use(tmp_path: Path, serving: Serving, taken: str) -> None:
    """Else clients would come to whichever server their resolver names first."""
    family = socket.AF_INET6 if ":" in taken else socket.AF_INET
    with socket.create_server((taken, 0), family=family) as other:
        at = f"localhost:{other.getsockname()[1]}"
        with (
            pytest.raises(ConfigError, match=rf"listen: cannot listen on {at} \(the port is in use\)"),
            serving(tmp_path, listen=at),
        ):
            pass


@pytest.mark.parametrize(
    ("listen", "reached", "not_reached"),
    [
        ("127.0.0.1:0", ["127.0.0.1", "localhost"], ["[::1]"]),
        pytest.param("[::1]:0", ["[::1]", "localhost"], ["127.0.0.1"], marks=needs_ipv6),
        pytest.param("localhost:0", ["127.0.0.1", "[::1]", "localhost"], [], marks=needs_ipv6),
        ("0.0.0.0:0", ["127.0.0.1", "127.0.0.2"], []),
        pytest.param("[::]:0", ["127.0.0.1", "[::1]"], [], marks=needs_ipv6),
    ],
)
def test_it_is_reached_where_it_listens_and_nowhere_else(
    tmp_path: Path, serving: Serving, listen: str, reached: list[str], not_reached: list[str]
) -> None:
    """Any free port is one port, whatever the name stands for."""
    with serving(tmp_path, listen=listen) as house:
        assert str(house.server.address) == f"{listen.removesuffix(':0')}:{port_of(house)}"
        for host in reached:
            assert is_answered(f"{host}:{port_of(house)}"), host
        for host in not_reached:
            assert not is_answered(f"{host}:{port_of(house)}"), host


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
@pytest.mark.parametrize("shares", [False, True], ids=["alone", "that is shared"])
@pytest.mark.parametrize("loop_threads", [1, 2])
def test_a_port_in_use_is_refused(
    tmp_path: Path, serving: Serving, host: str, shares: bool, loop_threads: int
) -> None:
    """Also one whose owner would share it: calls meant for one would reach the other."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, reuse_port=shares) as taken:
        address = Address(host, taken.getsockname()[1])
        with (
            pytest.raises(ConfigError) as raised,
            serving(tmp_path, listen=str(address), loop_threads=loop_threads),
        ):
            pass
    assert str(raised.value).startswith(f"listen: cannot listen on {address} (the port is in use); stop")
    with serving(tmp_path, listen=str(address), loop_threads=loop_threads):
        assert is_answered(str(address)), "it is free again, and the store as well"


@pytest.mark.parametrize("loop_threads", [1, 2])
def test_a_second_server_is_refused_and_the_first_goes_on(
    tmp_path: Path, serving: Serving, loop_threads: int
) -> None:
    with serving(tmp_path / "a", loop_threads=loop_threads) as house:
        for host in ("127.0.0.1", "localhost"):
            with (
                pytest.raises(ConfigError, match="the port is in use"),
                serving(tmp_path / host, listen=f"{host}:{port_of(house)}", loop_threads=loop_threads),
            ):
                pass
        assert is_answered(str(house.server.address))


def test_a_port_may_be_had_again_at_once(tmp_path: Path, serving: Serving) -> None:
    """Whatever the connections of the one before have left in the system."""
    with serving(tmp_path) as house:
        address = str(house.server.address)
        assert is_answered(address)
    for _ in range(3):
        with serving(tmp_path, listen=address):
            assert is_answered(address)


@pytest.mark.parametrize("listen", ["192.0.2.1:0", "no-such-host.invalid:0"])
def test_an_address_that_is_not_ours_says_so(tmp_path: Path, serving: Serving, listen: str) -> None:
    with (
        pytest.raises(ConfigError, match=f"listen: cannot listen on {listen}"),
        serving(tmp_path, listen=listen),
    ):
        pass


@needs_ipv6
def test_any_free_port_is_looked_for_until_both_families_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which port is free in IPv6 says nothing of IPv4."""
    tried: list[int] = []
    plain = listener._tcp_socket

    def taken_at_first(family: int, host: str, port: int, *, shared: bool) -> socket.socket:
        if family == socket.AF_INET and len(tried) < 3:
            tried.append(port)
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        return plain(family, host, port, shared=shared)

    monkeypatch.setattr(listener, "_tcp_socket", taken_at_first)
    made, bound = listener.sockets(Address("localhost", 0), 2, "listen")
    try:
        assert len(tried) == 3
        assert [len(of_loop) for of_loop in made] == [2, 2]
        assert {each.getsockname()[1] for of_loop in made for each in of_loop} == {bound.port}
    finally:
        for each in (each for of_loop in made for each in of_loop):
            each.close()
    tried.clear()
    with pytest.raises(ConfigError, match="the port is in use"):
        listener.sockets(Address("localhost", bound.port), 1, "listen")
    assert tried == [bound.port], "one that was named is asked for once"


@pytest.mark.parametrize("ask", [lambda at: listener.sockets(at, 1, "listen"), bound_by_grpc])
def test_where_no_port_is_free_none_is_said_to_be_in_use(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[Address], object]
) -> None:
    """The system has one word for both."""

    def none_free(*_: object) -> None:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr(socket.socket, "bind", none_free)
    with pytest.raises(ConfigError) as raised:
        ask(Address("127.0.0.1", 0))
    assert str(raised.value) == (
        "listen: cannot listen on 127.0.0.1:0 (no port is free until some connections have ended); "
        "give another address"
    )


@pytest.mark.parametrize("number", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
def test_localhost_needs_no_ipv6(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    plain = listener._tcp_socket

    def without_ipv6(family: int, host: str, port: int, *, shared: bool) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(number, os.strerror(number))
        return plain(family, host, port, shared=shared)

    monkeypatch.setattr(listener, "_tcp_socket", without_ipv6)
    ((only,),), bound = listener.sockets(Address("localhost", 0), 1, "listen")
    with only:
        assert only.getsockname() == ("127.0.0.1", bound.port)


# ---- Unix sockets


@pytest.mark.parametrize("loop_threads", [1, 3])
def test_a_unix_socket_is_its_owners_alone_and_goes_with_the_server(
    tmp_path: Path, serving: Serving, loop_threads: int
) -> None:
    path = tmp_path / "public.sock"
    before = os.umask(0)
    try:
        with serving(tmp_path, listen=f"unix:{path}", loop_threads=loop_threads):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert is_answered(f"unix:{path}")
        assert not path.exists()
        assert os.umask(0) == 0, "it leaves the process's own as it was"
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [0o660, 0o600, 0o777])
@pytest.mark.parametrize("mask", [0, 0o077], ids=oct)
def test_a_unix_socket_has_the_mode_that_it_was_given(
    tmp_path: Path, serving: Serving, mode: int, mask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the process's own mask; and before it is given, nobody has more than the mode allows."""
    path = tmp_path / "public.sock"
    at_first: list[int] = []
    plain = Path.chmod

    def seen(self: Path, given: int, **how: bool) -> None:
        if self.parent == path.parent:  # gRPC's has another name at first
            at_first.append(stat.S_IMODE(self.stat().st_mode))
        plain(self, given, **how)

    monkeypatch.setattr(Path, "chmod", seen)
    tmp_path.joinpath("data").mkdir()
    before = os.umask(mask)
    try:
        with serving(tmp_path / "data", listen=f"unix:{path}", listen_mode=mode) as house:
            assert stat.S_IMODE(path.stat().st_mode) == mode
            assert stat.S_IMODE(house.server.admin_address.path.stat().st_mode) == 0o600
            assert is_answered(f"unix:{path}")
            assert [first & ~mode for first in at_first] == [0]
        assert os.umask(mask) == mask
    finally:
        os.umask(before)


def test_a_unix_socket_that_is_stale_is_replaced_and_others_are_left_alone(
    tmp_path: Path, serving: Serving
) -> None:
    path = tmp_path / "public.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving(tmp_path, listen=f"unix:{path}"):
        assert is_answered(f"unix:{path}")
        with (
            pytest.raises(ConfigError, match=f"listen: a server answers on {path} already"),
            serving(tmp_path / "second", listen=f"unix:{path}"),
        ):
            pass
        assert is_answered(f"unix:{path}")
    path.write_text("keep")
    with (
        pytest.raises(ConfigError, match=f"listen: {path} exists and is no socket"),
        serving(tmp_path, listen=f"unix:{path}"),
    ):
        pass
    assert path.read_text() == "keep"


def test_a_unix_socket_may_be_anothers_while_the_first_server_still_drains(
    tmp_path: Path, transport: str
) -> None:
    """Which leaves it to the other when its own end has come."""
    path = tmp_path / "public.sock"
    houses = []
    for name in ("first", "second"):
        chosen = config(tmp_path / name, listen=f"unix:{path}", drain_s=60, **transports.settings(transport))
        engine = open_store(chosen)
        houses.append((engine, Server(engine, chosen)))
    (_, first), (_, second) = houses
    first.start()
    stopper = threading.Thread(target=first.stop)
    held: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    with grpc.insecure_channel(f"unix:{path}") as channel:
        unfinished = channel.stream_unary("/featurestore.v1.FeatureStoreService/Ingest").future(
            iter(held.get, None)
        )
        next(channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=60))  # it has come by then
        stopper.start()
        while path.exists() and stopper.is_alive():
            time.sleep(0.01)
        second.start()
        assert stopper.is_alive()
        unfinished.cancel()
        held.put(None)
        stopper.join()
    assert is_answered(f"unix:{path}")
    second.stop()
    for engine, _ in houses:
        engine.close()


@pytest.mark.parametrize("by", ["public", "admin"])
def test_a_server_that_stops_leaves_the_socket_that_has_taken_its_name(
    tmp_path: Path, transport: str, by: str
) -> None:
    """However late gRPC clears up behind it."""
    paths = {name: tmp_path / f"{name}.sock" for name in ("public", "admin")}
    at = {"listen": f"unix:{paths['public']}", "admin": f"unix:{paths['admin']}"}
    chosen = config(tmp_path / "data", **at, **transports.settings(transport))
    engine = open_store(chosen)
    server = Server(engine, chosen)
    server.start()
    paths[by].unlink()
    with socket.socket(socket.AF_UNIX) as others:
        others.bind(str(paths[by]))
        server.stop()
        engine.close()
        assert sorted(tmp_path.glob("*.sock")) == [paths[by]]
        assert not list(tmp_path.glob(".*"))
