"""A proxy in the environment: what is on this machine is never reached through it, and whoever cannot get
through it to another is told by which variable."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.client import AdminClient
from featurestore.client.channel import PROXY_VARIABLES, is_loopback
from featurestore.errors import ConfigError, UnavailableError

from .conftest import MakeClient
from .fake_server import FakeServer

T0 = 1_522_540_800_000
EVENTS = {"tx_datetime": [T0] * 4, "customer_id": list("abcd"), "terminal_id": list("abcd")}
VARIABLES = (*PROXY_VARIABLES, "all_proxy", *(name.upper() for name in (*PROXY_VARIABLES, "all_proxy")))


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a proxy that turns everyone away: its port is bound, and nobody listens there. No variable
    names it yet."""
    for name in (*VARIABLES, "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://user:hidden@127.0.0.1:{bound.getsockname()[1]}"


def port_of(server: FakeServer) -> str:
    return server.target.rpartition(":")[2]


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_server_on_this_machine_is_reached_past_the_proxy(
    server: FakeServer, make_client: MakeClient, proxy: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy)
    client = make_client(f"localhost:{port_of(server)}", retry_s=0.0)
    assert client.schema().name == "card-fraud"
    assert client.ingest("transaction", EVENTS).accepted == 4
    with (
        AdminClient(f"localhost:{port_of(server)}", timeout_s=5.0) as admin,
        pytest.raises(ConfigError, match="does not know this call"),  # which only the server can say
    ):
        admin.stats()


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "dns:///localhost:{}", "ipv4:127.0.0.1:{}"])
def test_so_it_is_by_whatever_address_names_it(
    server: FakeServer, make_client: MakeClient, proxy: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    assert make_client(address.format(port_of(server))).schema().name == "card-fraud"


def test_so_it_is_by_a_socket_in_the_file_system(
    make_client: MakeClient, proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("grpc_proxy", proxy)
    server = FakeServer(f"unix:{tmp_path}/server.sock")
    try:
        assert make_client(f"unix:{tmp_path}/server.sock").schema().name == "card-fraud"
    finally:
        server.stop()


def test_so_it_is_for_a_command(server: FakeServer, proxy: str, tmp_path: Path) -> None:
    file = tmp_path / "tx.csv"
    file.write_text("tx_datetime,customer_id,terminal_id,tx_amount,note\n" + f"{T0},a,b,1,\n" * 4)
    done = subprocess.run(
        [sys.executable, "-m", "featurestore", "ingest", str(file), "--event", "transaction",
         "--server", f"localhost:{port_of(server)}", "--wait", "0"],
        env={**os.environ, **dict.fromkeys(VARIABLES, proxy)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, len(server.events)) == (0, 4), done.stderr


@pytest.mark.parametrize("variable", PROXY_VARIABLES)
def test_whoever_is_not_let_through_is_told_by_which_variable(
    make_client: MakeClient, proxy: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy)
    with pytest.raises(UnavailableError, match=f"cannot reach .*; {variable} is set: ") as failed:
        make_client("store.invalid:50051").schema()
    assert "hidden" not in str(failed.value)
    with (
        AdminClient("store.invalid:50051", timeout_s=20.0) as admin,
        pytest.raises(UnavailableError, match=f"; {variable} is set: "),
    ):
        admin.stats()


def test_so_is_whoever_waits_for_a_proxy_that_does_not_answer(
    make_client: MakeClient, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UnavailableError, match=r"did not answer in time.*; https_proxy is set: "):
            make_client("store.invalid:50051", timeout_s=0.5).schema()


def test_the_first_that_is_set_counts_and_an_empty_one_is_none(
    make_client: MakeClient, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(UnavailableError, match="; https_proxy is set: "):
        make_client("store.invalid:50051").schema()
    monkeypatch.setenv("grpc_proxy", "")
    with pytest.raises(UnavailableError) as failed:
        make_client("store.invalid:50052").schema()
    assert "proxy" not in str(failed.value)
    assert "store.invalid" in str(failed.value).partition("(")[2], "gRPC asked for the name itself"


def test_nobody_speaks_of_a_proxy_where_none_is_between(
    make_client: MakeClient, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(UnavailableError, match="cannot reach") as failed:
            make_client(f"127.0.0.1:{bound.getsockname()[1]}").schema()
    assert "proxy" not in str(failed.value)


@pytest.mark.parametrize(
    "target",
    [
        "localhost:50051", "LocalHost:50051", "localhost.:50051", "store.localhost:50051", "127.0.0.1:50051",
        "127.255.0.9:50051", "[::1]:50051", "[::ffff:127.0.0.1]:50051", "0.0.0.0:50051", "[::]:50051",
        "unix:/run/store.sock", "unix:///run/store.sock", "unix:store.sock", "unix-abstract:store",
        "dns:localhost:50051", "dns:///localhost:50051", "dns://8.8.8.8/localhost:50051",
        "ipv4:127.0.0.1:50051,127.0.0.2:50051", "ipv6:[::1]:50051", "ipv6:///[::1]:50051",
    ],
)  # fmt: skip
def test_these_are_on_this_machine(target: str) -> None:
    assert is_loopback(target)


@pytest.mark.parametrize(
    "target",
    [
        "store:50051", "store.example:50051", "localhost.example:50051", "notlocalhost:50051",
        "128.0.0.1:50051", "126.127.0.1:50051", "[::2]:50051", "[2001:db8::1]:50051", "10.0.0.1:50051",
        "127.0.0.1.example:50051", "dns:///store.example:50051", "dns://127.0.0.1/store.example:50051",
        "ipv4:127.0.0.1:50051,10.0.0.1:50051", "ipv6:[2001:db8::1]:50051", "xds:///localhost.example",
    ],
)  # fmt: skip
def test_and_these_are_not(target: str) -> None:
    assert not is_loopback(target)
