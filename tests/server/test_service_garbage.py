"""Bytes that are no message, to methods that Python answers: the sender's fault, told to the sender alone."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import grpc
import pytest
from house import House

from featurestore.server import handlers
from featurestore.server.log import RateLimit

Code = grpc.StatusCode
HOT, REGISTRY = "/featurestore.v1.FeatureStoreService/", "/featurestore.v1.RegistryService/"
HEALTH, ADMIN = "/grpc.health.v1.Health/", "/featurestore.v1.AdminService/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
GARBAGE = [b"\xff", b"\x0a", b"\x08", b"\x0a\x02\xff\xfe", b"\x0b" * 40]  # b"\x0a\2\xff\xfe": no UTF-8
PRIVATE = "customer 4711"
UNARY = [REGISTRY + "GetSchema", HOT + "GetHeaviest", HEALTH + "Check"]


def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    """How it fails, whether when it is made or when its answers are taken."""
    with pytest.raises(grpc.RpcError) as raised:
        for _ in call() or ():
            pass
    return raised.value.code(), raised.value.details()


def refused(code: grpc.StatusCode, words: str) -> bool:
    return code is Code.INVALID_ARGUMENT and "bytes are not the message of this method" in words


@pytest.mark.parametrize("message", GARBAGE)
def test_bytes_that_are_no_message_are_an_invalid_argument_and_not_in_the_log(
    house: House, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], message: bytes
) -> None:
    caplog.set_level(logging.DEBUG)
    for method in UNARY:
        call = house.channel.unary_unary(method)
        if message.startswith(b"\x0a\x02") and method == HOT + "GetHeaviest":
            continue  # a service of that name, to the runtime: it leaves UTF-8 to whoever reads it
        assert refused(*failure(lambda call=call: call(message, timeout=10))), method
    watch = house.channel.unary_stream(HEALTH + "Watch")
    assert refused(*failure(lambda: watch(message, timeout=10)))
    reflect = house.channel.stream_stream(REFLECTION)
    assert refused(*failure(lambda: reflect(iter([message]), timeout=10)))
    with grpc.insecure_channel(str(house.server.admin_address)) as channel:
        for name in ("ApplySchema", "Forget", "DropProducer", "ResetProducer", "Backup"):
            call = channel.unary_unary(ADMIN + name)
            assert refused(*failure(lambda call=call: call(message, timeout=10))), name
    assert caplog.text == ""
    assert capfd.readouterr().err == ""
    whole = house.channel.unary_unary(REGISTRY + "GetSchema")
    assert whole(b"", timeout=10), "and the next call is answered"


def test_what_nobody_raised_on_purpose_is_logged_without_its_words_and_not_told(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError(PRIVATE)

    replies = type("_", (), {"__contains__": broken})()
    prepared = dataclasses.replace(house.server._registry._prepared, replies=replies)
    monkeypatch.setattr(house.server._registry, "_prepared", prepared)
    call = house.channel.unary_unary(REGISTRY + "GetSchema")
    code, words = failure(lambda: call(b"", timeout=10))
    assert (code, words) == (Code.INTERNAL, "internal error; the server's log has it")
    assert "a call failed: KeyError" in caplog.text
    assert "_get_schema" in caplog.text
    assert PRIVATE not in caplog.text + words


def test_a_flood_from_one_place_is_counted_and_not_written() -> None:
    now_s = 0.0
    limit = RateLimit(most=3, every_s=60.0, clock=lambda: now_s)
    written: list[str] = []

    def log(line: int, words: str, *args: Any) -> None:
        record = logging.LogRecord("featurestore.server", logging.ERROR, "a.py", line, words, args, None)
        if limit.filter(record):
            written.append(record.getMessage())

    for i in range(1000):
        log(1, "call %d failed", i)
    log(2, "something else at %d %%", 100)
    assert written == [
        "call 0 failed",
        "call 1 failed",
        "call 2 failed (more from here within 60 s are counted, not written)",
        "something else at 100 %",
    ]
    now_s = 60.0
    log(1, "call %s failed", "%d")
    log(1, "call 1001 failed")
    assert written[4:] == ["call %d failed (997 more from here were not written)", "call 1001 failed"]


def test_a_chain_of_errors_is_told_by_kinds_and_places(caplog: pytest.LogCaptureFixture) -> None:
    try:
        try:
            raise KeyError("secret 1")
        except KeyError as error:
            raise ValueError("secret 2") from error
    except ValueError as error:
        handlers.log_unexpected(error)
    assert "a call failed: ValueError\n" in caplog.text
    assert "caused by KeyError\n" in caplog.text
    assert 'raise KeyError("secret 1")' in caplog.text, "the code is told, and no value"
    assert caplog.text.count("secret") == 2
