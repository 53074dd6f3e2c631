"""A wrong setting is refused before anything is opened, in words that name it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featurestore.config import Address, Limits, ServeConfig, Tls
from featurestore.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:50051", Address("localhost", 50051)),
        ("10.0.0.1:0", Address("10.0.0.1", 0)),
        ("[::1]:7", Address("::1", 7)),
        ("unix:/run/fs.sock", Address(path=Path("/run/fs.sock"))),
        ("unix:///run/fs.sock", Address(path=Path("/run/fs.sock"))),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    address = Address.parse(text, "listen")
    assert address == expected
    assert Address.parse(str(address), "listen") == address


@pytest.mark.parametrize(
    "text", ["", "localhost", ":1", "host:", "host:x", "host:65536", "host:-1", "unix:/" + "x" * 200]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="listen"):
        ServeConfig(data=Path("d"), listen=text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"read_threads": 0}, "read_threads is 0; it is 1 to 256"),
        ({"read_threads": True}, "read_threads is True"),
        ({"drain_s": -1}, "drain_s is -1"),
        ({"checkpoint_every_s": float("nan")}, "checkpoint_every_s is nan"),
        ({"admin": "localhost:1"}, "mutual TLS"),
        (
            {"listen": "unix:/s", "listen_mode": 0o1660},
            "listen_mode is 01660; it is an octal mode of at most",
        ),
        ({"listen": "unix:/s", "listen_mode": -1}, "listen_mode is -1; it is"),
        ({"listen": "unix:/s", "listen_mode": True}, "listen_mode is True; it is"),
        ({"listen": "unix:/s", "listen_mode": "0660"}, "listen_mode is '0660'; it is"),
        ({"listen": "[::1]:7", "listen_mode": 0o660}, "listen_mode is 0660, and [::1]:7 is no file"),
        ({"metrics": "unix:/m"}, "it is host:port"),
        ({"metrics": "localhost:50051"}, "two listeners have the same address"),
        (
            {"tls": Tls(Path("/nowhere/c.pem"), Path("/nowhere/k.pem"))},
            "the certificate /nowhere/c.pem cannot be read",
        ),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as failure:
        ServeConfig(data=Path("d"), **settings)
    assert words in str(failure.value)


@pytest.mark.parametrize(
    "limit", ["max_message_bytes", "max_batch_events", "max_concurrent_calls", "max_streams", "stream_window"]
)
def test_limits_are_checked(limit: str) -> None:
    with pytest.raises(ConfigError, match=limit):
        ServeConfig(data=Path("d"), limits=Limits(**{limit: 0}))


def test_admin_over_tcp_needs_a_client_ca(tmp_path: Path) -> None:
    for name in ("c", "k", "ca"):
        (tmp_path / name).write_text("")
    one_sided, mutual = (
        Tls(tmp_path / "c", tmp_path / "k"),
        Tls(tmp_path / "c", tmp_path / "k", tmp_path / "ca"),
    )
    with pytest.raises(ConfigError, match="client CA"):
        ServeConfig(data=tmp_path, admin="localhost:1", admin_tls=one_sided)
    assert ServeConfig(data=tmp_path, admin="localhost:1", admin_tls=mutual).admin_address.port == 1


def test_the_admin_socket_is_in_the_data_directory() -> None:
    assert ServeConfig(data=Path("/data/x")).admin_address.path == Path("/data/x/admin.sock")


def test_who_is_near() -> None:
    for text, is_near in (
        ("localhost:1", True),
        ("127.0.0.9:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("10.0.0.1:1", False),
    ):
        assert Address.parse(text, "listen").is_loopback is is_near
