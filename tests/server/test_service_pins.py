"""Pins over both transports: a request with a fingerprint is answered in the order that it stands for, or
refused with the name of what is gone; and a running client keeps what it first read.
"""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import grpc
import pytest
from house import SCHEMA, T0, House, Serving, batch, event, field, keys, observe, play, read, status_of

from featurestore.cli import main
from featurestore.client import AdminClient, Client, Pin
from featurestore.errors import SchemaMismatchError
from featurestore.v1 import admin_service_pb2 as admin_pb
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import registry_service_pb2 as registry_pb
from featurestore.v1 import types_pb2 as types

TURNED = SCHEMA.replace("[ip.*, account.*, pair.*]", "[pair.*, account.*, ip.*]")
KEYS = {"ip": "1.2.3.4", "account": 596, "track": "t"}


def get_schema(house: House, fingerprint: int | None = None) -> registry_pb.ServiceSchema:
    request = registry_pb.GetSchemaRequest(service="abuse", fingerprint=fingerprint)
    (service,) = house.registry.GetSchema(request).services
    return service


def test_a_reorder_under_a_running_client_moves_no_value(house: House) -> None:
    """It did: the client followed, and other values stood at the same places."""
    house.hot.Ingest(batch(*(play(T0 + i, ms_played=float(i)) for i in range(5))))
    with Client(str(house.server.address)) as client:
        before = client.get("abuse", KEYS, as_of=T0 + 4)
        house.engine.apply_schema(TURNED, allow=["order"])
        after = client.get("abuse", KEYS, as_of=T0 + 4)
        assert (after.names, after.values.tolist()) == (
            before.names,
            pytest.approx(before.values, nan_ok=True),
        )
        assert after.pin == before.pin
        assert client.get_many("abuse", [KEYS] * 3, as_of=T0 + 4)[2].names == before.names
        seen = client.observe("play", {"ts": T0 + 4, **KEYS, "ms_played": 1.0}, "abuse", peek=True)
        assert seen.vector is not None and seen.vector.pin == before.pin
        with Client(str(house.server.address)) as other:
            turned = other.get("abuse", KEYS, as_of=T0 + 4)
        assert turned.names != before.names and sorted(turned.names) == sorted(before.names)
        assert turned.to_dict() == pytest.approx(before.to_dict(), nan_ok=True)
        assert [feature.name for feature in client.refresh().services["abuse"].features] == list(turned.names)
        assert client.get("abuse", KEYS, as_of=T0 + 4).names == turned.names


def test_the_wire_says_which_vector_it_is_and_serves_any_that_there_was(house: House) -> None:
    house.hot.Ingest(batch(play(), play()))
    first = get_schema(house)
    house.engine.apply_schema(TURNED, allow=["order"])
    second = get_schema(house)
    assert first.fingerprint != second.fingerprint
    assert get_schema(house, first.fingerprint) == first
    assert get_schema(house, second.fingerprint) == second
    found = {}
    for service in (first, second):
        asked = house.hot.GetFeatures(read(keys(**KEYS), fingerprint=service.fingerprint)).vectors
        peeked = house.hot.Observe(observe(play(), peek=True, fingerprint=service.fingerprint)).vectors
        assert {asked.fingerprint, peeked.fingerprint} == {service.fingerprint}
        assert asked.width == peeked.width == len(service.features)
        names = [feature.name for feature in service.features]
        found[service.fingerprint] = dict(zip(names, map(str, asked.values), strict=True))
        streamed = house.hot.GetFeaturesStream(
            iter([pb.GetFeaturesStreamRequest(read=read(keys(**KEYS), fingerprint=service.fingerprint))])
        )
        assert next(streamed).read.vectors.fingerprint == service.fingerprint
    assert found[first.fingerprint] == found[second.fingerprint]
    assert list(found[first.fingerprint]) != list(found[second.fingerprint])
    assert house.hot.GetFeatures(read(keys(**KEYS))).vectors.fingerprint == second.fingerprint


def test_a_feature_that_is_gone_is_named(house: House) -> None:
    first = get_schema(house)
    fewer = SCHEMA.replace("windows: [10m, 1h]", "windows: [1h]")
    assert fewer != SCHEMA
    with house.admin() as admin:
        request = admin_pb.ApplySchemaRequest(source=fewer, dry_run=True)
        (broken,) = admin.ApplySchema(request).pins_broken
        assert (broken.service, broken.fingerprint) == ("abuse", first.fingerprint)
        assert broken.missing == "ip.count_10m"
        assert not admin.ApplySchema(admin_pb.ApplySchemaRequest(source=TURNED, dry_run=True)).pins_broken
    house.engine.apply_schema(fewer, allow=["drop", "order"])
    calls = [
        lambda: house.hot.GetFeatures(read(keys(**KEYS), fingerprint=first.fingerprint)),
        lambda: house.hot.Observe(observe(play(), fingerprint=first.fingerprint)),
        lambda: get_schema(house, first.fingerprint),
    ]
    for call in calls:
        code, words = status_of(call)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "'abuse'" in words and "ip.count_10m is gone" in words
    code, words = status_of(lambda: house.hot.GetFeatures(read(keys(**KEYS), fingerprint=7)))
    assert (code, "nor remembered" in words) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    house.engine.apply_schema(SCHEMA, allow=["order"])
    assert house.hot.GetFeatures(read(keys(**KEYS), fingerprint=first.fingerprint)).vectors.width == len(
        first.features
    )


def test_a_model_that_cannot_have_its_vector_learns_it_before_the_first(house: House) -> None:
    target = str(house.server.address)
    with Client(target) as client:
        vector = client.get("abuse", KEYS)
        pin = vector.pin
    assert pin is not None
    house.engine.apply_schema(TURNED, allow=["order"])
    with Client(target, expect={"abuse": pin}) as client:
        assert client.get("abuse", KEYS).names == vector.names
        client.refresh()
        assert client.get("abuse", KEYS).names == vector.names, "what is expected stays so"
    with Client(target) as client:
        assert client.get("abuse", KEYS).names != vector.names
        assert client.get("abuse", KEYS, pin=pin).names == vector.names
        assert client.get_many("abuse", [KEYS], pin=pin).pin == pin
    fewer = TURNED.replace("windows: [10m, 1h]", "windows: [1h]")
    house.engine.apply_schema(fewer, allow=["drop", "order"])
    with Client(target, expect={"abuse": pin}) as client:
        for call in (lambda: client.get("abuse", KEYS), lambda: client.get("likes", {"ip": "a"})):
            with pytest.raises(SchemaMismatchError, match=r"ip\.count_10m is gone"):
                call()
        with pytest.raises(SchemaMismatchError):
            client.observe("play", {"ts": T0, **KEYS}, "abuse")
    assert house.engine.stats()["events_accepted"] == 0


def test_who_asks_for_which_is_counted_across_changes(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = get_schema(house)
    for _ in range(3):
        house.hot.GetFeatures(read(keys(ip="a")))
    house.engine.apply_schema(TURNED, allow=["order"])
    house.hot.GetFeatures(read(keys(ip="a"), fingerprint=first.fingerprint))
    house.hot.Observe(observe(play()))
    with AdminClient(str(house.server.admin_address)) as admin:
        pins = {(each.service, each.current): each for each in admin.pins().pins}
    assert {key: each.calls for key, each in pins.items()} == {
        ("abuse", True): 1,
        ("abuse", False): 4,
        ("likes", True): 0,
    }
    assert pins["abuse", False].fingerprint == first.fingerprint
    assert list(pins["abuse", False].features) == [feature.name for feature in first.features]
    assert pins["abuse", True].HasField("asked_ms_ago") and not pins["likes", True].HasField("asked_ms_ago")
    rates = {key: each.calls_per_s for key, each in pins.items()}
    assert rates["abuse", True] > 0 and rates["likes", True] == 0
    # Served together; the one has been counted for as long as the house stands, the other since the change.
    assert 4 / 60 < rates["abuse", False] <= 4 and rates["abuse", True] <= 1
    path = tmp_path / "abuse.pin.json"
    words = ["pins", "--admin", str(house.server.admin_address)]
    assert main([*words, "--save", f"abuse={path}"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in table] == ["served", "current", "yes", "current"]
    assert [line.split()[4:6] for line in table[:1]] == [["calls", "calls/s"]]
    assert [float(line.split()[5]) > 0 for line in table[1:]] == [True, True, False]
    assert Pin.load(path).fingerprint == pins["abuse", True].fingerprint
    assert main([*words, "--save", f"abuses={path}"]) == 1
    assert main([*words, "--save", "abuse"]) == 2
    assert main([*words, "-o", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)["pins"]
    assert [each["calls_per_s"] > 0 for each in listed] == [True, True, False]
    house.engine.apply_schema(SCHEMA, allow=["order"])
    capsys.readouterr()
    get = ["get", "--server", str(house.server.address), "ip=a", "-o", "json"]
    assert main([*get, "--pin", str(path)]) == 0
    names = [feature["name"] for feature in json.loads(capsys.readouterr().out)["features"]]
    assert names == list(Pin.load(path).features)
    assert main(get) == 2, "neither a service nor a pin"


def test_the_metrics_count_the_calls_of_each_vector(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, metrics="localhost:0") as house:
        first = get_schema(house)
        house.engine.apply_schema(TURNED, allow=["order"])
        second = get_schema(house)
        for _ in range(2):
            house.hot.GetFeatures(read(keys(ip="a"), fingerprint=first.fingerprint))
        house.hot.Observe(observe(play()))
        text = urllib.request.urlopen(f"http://{house.server.metrics_address}/metrics").read().decode()
    for service, calls in ((first, 2.0), (second, 1.0)):
        labels = f'fingerprint="{service.fingerprint:016x}",service="abuse"'
        assert f"featurestore_vector_calls_total{{{labels}}} {calls}" in text


def test_lists_are_of_a_vector_too(house: House) -> None:
    first = get_schema(house)
    house.engine.apply_schema(TURNED, allow=["order"])
    request = pb.GetHeaviestRequest(
        service="abuse", key_set=types.KeySet(parts=[field("ip", "a")]), fingerprint=first.fingerprint
    )
    house.hot.GetHeaviest(request)
    request.fingerprint = 7
    assert status_of(lambda: house.hot.GetHeaviest(request))[0] is grpc.StatusCode.FAILED_PRECONDITION


def test_what_goes_is_served_to_its_pins_for_the_grace(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A view, an event type and a service: unlisted at once, and refused to whoever has no fingerprint."""
    fewer = tmp_path / "fewer.yaml"
    fewer.write_text(
        SCHEMA[: SCHEMA.index("  like:\n")]
        + SCHEMA[SCHEMA.index("views:\n") : SCHEMA.index("  likes:\n    event")].replace("[10m, 1h]", "[1h]")
        + "services:\n  abuse: [ip.*, account.*, pair.*]\n"
    )
    (likes,) = house.registry.GetSchema(registry_pb.GetSchemaRequest(service="likes")).services
    first = get_schema(house)
    like = batch(event(T0, like_id="a", ip="a"), event_type="like")
    assert house.hot.Ingest(like).accepted == 1
    house.hot.Ingest(batch(*(play(T0 + i) for i in range(5))))
    apply = ["apply", str(fewer), "--admin", str(house.server.admin_address), "--allow", "drop,order,narrow"]
    assert main([*apply, "--grace", "31d"]) == 2
    assert "from 0 to 30 days" in capsys.readouterr().err
    assert main([*apply, "--grace", "2h", "-o", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {each["service"] for each in said["pins_broken"]} == {"abuse", "likes"}
    assert "ip.count_10m" in said["removed_features"] and said["kept_until"].endswith("Z")

    whole = house.registry.GetSchema(registry_pb.GetSchemaRequest())
    assert [each.name for each in whole.event_types] == ["play"]
    assert [each.name for each in whole.services] == ["abuse"]
    code, words = status_of(lambda: house.hot.GetFeatures(read(keys(ip="a"), service="likes")))
    assert (code, "unknown service 'likes'" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, _ = status_of(lambda: house.registry.GetSchema(registry_pb.GetSchemaRequest(service="likes")))
    assert code is grpc.StatusCode.NOT_FOUND

    assert house.hot.Ingest(like).duplicate == 1, "its ids are known as before"
    asked = read(keys(ip="a"), service="likes", fingerprint=likes.fingerprint)
    assert list(house.hot.GetFeatures(asked).vectors.values) == [1.0]
    request = registry_pb.GetSchemaRequest(service="likes", fingerprint=likes.fingerprint)
    assert house.registry.GetSchema(request).services[0] == likes
    assert house.hot.GetFeatures(read(keys(**KEYS), fingerprint=first.fingerprint)).vectors.width == len(
        first.features
    )
    with AdminClient(str(house.server.admin_address)) as admin:
        pins = [(each.service, each.current, each.missing) for each in admin.pins().pins]
    assert pins == [("abuse", True, ""), ("abuse", False, ""), ("likes", False, "")]

    back = tmp_path / "back.yaml"
    back.write_text(SCHEMA)
    assert main(["apply", str(back), "--admin", str(house.server.admin_address), "--allow", "order"]) == 0
    assert "as it was" in capsys.readouterr().out
    assert list(house.hot.GetFeatures(read(keys(ip="a"), service="likes")).vectors.values) == [1.0]
