"""The service as it is called from Node with `@grpc/grpc-js`, an HTTP/2 and gRPC of other makers than ours.

Its packages come from npm: see npm.py.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import npm
import pytest

from transport.calls import T0
from transport.process import Process

REPOSITORY = Path(__file__).resolve().parents[2]
PROTO = REPOSITORY / "proto"
HOT, REGISTRY = "FeatureStoreService", "RegistryService"

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask(server: Process) -> Iterator[Ask]:
    """ask(**command) → what one client in Node, on one connection, says of it: see node/client.js."""
    files = sorted(str(path) for path in PROTO.rglob("*_service.proto"))
    command, environment = npm.node("client.js", server.address, str(PROTO), *files)
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdin is not None
    assert child.stdout is not None

    def one(**command: Any) -> dict[str, Any]:
        child.stdin.write(json.dumps(command) + "\n")
        child.stdin.flush()
        line = child.stdout.readline()
        assert line, "the client has ended"
        return json.loads(line)

    yield one
    child.stdin.close()
    assert child.wait(30) == 0
    child.stdout.close()


def play(ip: str, n: int = 0) -> dict[str, Any]:
    return {"time_ms": T0 + n, "fields": [{"name": "ip", "text": ip}]}


def batch(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"event_type": "play", "rows": rows, **more}


def read(*ips: str, service: str = "abuse") -> dict[str, Any]:
    return {"service": service, "key_sets": [{"parts": [{"name": "ip", "text": ip}]} for ip in ips]}


def test_what_is_written_is_read(ask: Ask) -> None:
    written = ask(service=HOT, method="Ingest", request=batch(play("node"), play("node", 1)))
    assert (written["code"], written["replies"][0]["accepted"]) == (0, 2)
    assert written["replies"][0]["ack"] == "ACK_DURABLE"
    seen = ask(service=HOT, method="Observe", request={"event_type": "play", "event": play("node", 2)})
    assert (seen["code"], seen["replies"][0]["outcome"]) == (0, "OUTCOME_ACCEPTED")
    vectors = ask(service=HOT, method="GetFeatures", request=read("node", "nobody"))["replies"][0]["vectors"]
    width = vectors["width"]
    assert (vectors["rows"], vectors["values"][0], vectors["values"][width]) == (2, 3, 0)


def test_methods_that_are_not_hot(ask: Ask) -> None:
    schema = ask(service=REGISTRY, method="GetSchema", request={})
    assert (schema["code"], schema["replies"][0]["name"]) == (0, "transport")


def test_a_large_request_and_a_large_reply(ask: Ask) -> None:
    """Some megabytes each, in the client's frames and windows."""
    ips = [f"large-{i}" for i in range(20_000)]
    written = ask(service=HOT, method="Ingest", request=batch(*(play(ip) for ip in ips)))
    assert written["replies"][0]["accepted"] == 20_000
    vectors = ask(service=HOT, method="GetFeatures", request=read(*ips))["replies"][0]["vectors"]
    assert vectors["rows"] == 20_000
    assert vectors["values"][:: vectors["width"]] == [1] * 20_000


def test_many_calls_at_once(ask: Ask, transport: str) -> None:
    """More than the streams of a connection, again and again: none is refused to a client that keeps to their
    number. gRPC core counts streams that are over until it has freed them and refuses then; its own clients
    try again by themselves, others once, and then it is for who calls.
    """
    for _ in range(10):
        left = 200
        for _ in range(1 if transport == "native" else 20):
            done = ask(service=HOT, method="GetFeatures", request=read("node"), times=left)
            refused = [end for end in done["ends"] if end["code"]]
            assert {end["details"] for end in refused} <= {"Stream refused by server"}
            assert len(done["replies"]) == left - len(refused)
            left = len(refused)
            if left == 0:
                break
            time.sleep(0.1)
        assert left == 0


def test_metadata_is_let_be(ask: Ask) -> None:
    metadata = {"x-trace": "abc", "x-trace-bin": "AAECAwQ="}
    assert ask(service=HOT, method="GetFeatures", request=read("node"), metadata=metadata)["code"] == 0


def test_streams_are_answered_in_order(ask: Ask) -> None:
    requests = [{"batch": batch(play("streamed", i), sequence=i)} for i in range(100)]
    written = ask(service=HOT, method="IngestStream", requests=requests)
    assert written["code"] == 0
    assert [reply["batch"]["sequence"] for reply in written["replies"]] == list(range(100))
    requests = [{"read": read(*["streamed"] * n)} for n in range(1, 30)]
    seen = ask(service=HOT, method="GetFeaturesStream", requests=requests)
    assert [reply["read"]["vectors"]["rows"] for reply in seen["replies"]] == list(range(1, 30))
    assert seen["replies"][0]["read"]["vectors"]["values"][0] == 100


def test_a_stream_without_requests(ask: Ask) -> None:
    assert ask(service=HOT, method="GetFeaturesStream", requests=[]) == {
        "replies": [], "code": 0, "details": "", "error": "",
    }  # fmt: skip


def test_a_status_comes_with_its_words_and_our_class(ask: Ask) -> None:
    failed = ask(service=HOT, method="GetFeatures", request=read(service="abüse 100% ☃"))
    assert (failed["code"], failed["error"], failed["replies"]) == (3, "UnknownNameError", [])
    assert "'abüse 100% ☃'" in failed["details"]
    assert ask(service=REGISTRY, method="GetSchema", request={"service": "x"})["code"] == 5
    unknown = ask(service="AdminService", method="Stats", request={})
    assert unknown["code"] == 12, "it is not served to the public"


def test_a_status_ends_a_stream_after_its_answers(ask: Ask) -> None:
    requests = [{"batch": batch(play("s"))}, {"batch": {"event_type": "plai"}}, {"batch": batch(play("s"))}]
    failed = ask(service=HOT, method="IngestStream", requests=requests)
    assert (failed["code"], len(failed["replies"]), failed["error"]) == (3, 1, "UnknownNameError")


def test_a_write_that_waits_for_the_disk_is_answered_before_its_deadline(server: Process, ask: Ask) -> None:
    with server.held_disk():
        seen = ask(service=HOT, method="Ingest", request=batch(play("late")), deadline_ms=200)
        assert (seen["code"], seen["replies"][0]["ack"]) == (0, "ACK_APPLIED")
        assert ask(service=HOT, method="GetFeatures", request=read("late"))["code"] == 0


def test_a_deadline_ends_a_stream_that_is_held_open(ask: Ask) -> None:
    request = {"read": read("node")}
    held = ask(service=HOT, method="GetFeaturesStream", requests=[request], hold=True, deadline_ms=500)
    assert (held["code"], len(held["replies"])) == (4, 1)


def test_a_deadline_that_is_far_changes_nothing(ask: Ask) -> None:
    assert ask(service=HOT, method="GetFeatures", request=read("node"), deadline_ms=60_000)["code"] == 0
