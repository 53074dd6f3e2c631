"""The service as `buf curl` reaches it, which knows nothing of it but what the server's reflection says: the
gRPC and HTTP/2 of Connect and Go.

It comes in npm's @bufbuild/buf, a program for each platform: see npm.py.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import npm
import pytest

from transport.calls import GET, GET_SCHEMA, GET_STREAM, HEALTH, INGEST_STREAM, OBSERVE, T0
from transport.process import Process

CODE_SHIFT = 3  # its exit code is the status's number times eight
NOT_FOUND, INVALID_ARGUMENT = 5, 3

Curl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def buf() -> Path:
    program = npm.node_modules() / ".bin" / "buf"
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        npm.missing(f"buf does not run on this platform: {done.stderr.strip()[-500:]}")
    return program


@pytest.fixture
def curl(buf: Path, server: Process, tmp_path: Path) -> Curl:
    """curl(path, *flags, messages) → what buf curl says. It runs where none of our proto files are."""

    def run(path: str, *flags: str, messages: list[dict[str, Any]] | None = None) -> Any:
        command = [buf, "curl", "--http2-prior-knowledge", "--protocol", "grpc", *flags]
        given = None
        if messages is not None:
            command += ["--data", "@-"]
            given = "\n".join(map(json.dumps, messages))
        return subprocess.run(
            [*command, f"http://{server.address}{path}"],
            cwd=tmp_path, input=given, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def replies_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """All of them, of a call that went well."""
    assert done.returncode == 0, done.stderr
    decoder, text, found = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:].lstrip()
    return found


def reply_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    (only,) = replies_of(done)
    return only


def play(ip: str, n: int = 0) -> dict[str, Any]:
    return {"timeMs": str(T0 + n), "fields": [{"name": "ip", "text": ip}]}


def read(*ips: str, service: str = "abuse") -> dict[str, Any]:
    return {"service": service, "keySets": [{"parts": [{"name": "ip", "text": ip}]} for ip in ips]}


def test_reflection_lists_what_is_served(curl: Curl) -> None:
    done = curl("", "--list-methods")
    assert done.returncode == 0, done.stderr
    listed = {f"/{line}" for line in done.stdout.splitlines()}
    assert {OBSERVE, GET, INGEST_STREAM, GET_STREAM, GET_SCHEMA, HEALTH} <= listed
    assert not [path for path in listed if "AdminService" in path], "it is not served to the public"


def test_what_is_observed_is_read(curl: Curl) -> None:
    for n in range(2):
        seen = reply_of(curl(OBSERVE, messages=[{"eventType": "play", "event": play("buf", n)}]))
        assert (seen["outcome"], seen["ack"]) == ("OUTCOME_ACCEPTED", "ACK_APPLIED")
    vectors = reply_of(curl(GET, messages=[read("buf", "nobody")]))["vectors"]
    assert (vectors["rows"], vectors["values"][0], vectors["values"][vectors["width"]]) == (2, 2, 0)


def test_methods_that_are_not_hot(curl: Curl) -> None:
    assert reply_of(curl(GET_SCHEMA, messages=[{}]))["name"] == "transport"
    assert reply_of(curl(HEALTH, messages=[{}])) == {"status": "SERVING"}


def test_a_status_comes_with_its_words(curl: Curl) -> None:
    failed = curl(GET, messages=[read("buf", service="abüse 100% ☃")])
    assert failed.returncode == INVALID_ARGUMENT << CODE_SHIFT
    said = json.loads(failed.stderr)
    assert said["code"] == "invalid_argument"
    assert said["message"].startswith("unknown service 'abüse 100% ☃'")
    assert failed.stdout == ""
    unknown = curl(GET_SCHEMA, messages=[{"service": "x"}])
    assert unknown.returncode == NOT_FOUND << CODE_SHIFT
    assert json.loads(unknown.stderr)["code"] == "not_found"


def test_the_class_of_a_failure_is_among_the_trailers(curl: Curl) -> None:
    failed = curl(GET, "--verbose", messages=[read("buf", service="x")])
    assert re.search(r"^buf: < .*: UnknownNameError$", failed.stderr, re.MULTILINE), failed.stderr


def test_a_stream_of_both_sides(curl: Curl) -> None:
    batches = [
        {"batch": {"eventType": "play", "sequence": str(n), "rows": [play("streamed", n)]}}
        for n in range(1, 51)
    ]
    written = replies_of(curl(INGEST_STREAM, messages=batches))
    assert [reply["batch"]["sequence"] for reply in written] == [str(n) for n in range(1, 51)]
    seen = replies_of(curl(GET_STREAM, messages=[{"read": read(*["streamed"] * n)} for n in range(1, 20)]))
    assert [reply["read"]["vectors"]["rows"] for reply in seen] == list(range(1, 20))
    assert seen[0]["read"]["vectors"]["values"][0] == 50


def test_a_status_ends_a_stream_after_its_answers(curl: Curl) -> None:
    good = {"batch": {"eventType": "play", "rows": [play("s")]}}
    failed = curl(INGEST_STREAM, messages=[good, {"batch": {"eventType": "plai"}}, good])
    assert failed.returncode == INVALID_ARGUMENT << CODE_SHIFT
    assert json.loads(failed.stdout)["batch"]["accepted"] == "1"
    assert "plai" in json.loads(failed.stderr)["message"]
