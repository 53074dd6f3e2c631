"""The lists of heaviest values over a real channel: GetHeaviest, both clients, `featurestore get --lists`."""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from house import HOUR_MS, SCHEMA, T0, House, Serving, batch, event, keys, status_of

from featurestore.cli import main
from featurestore.client import AsyncClient, Client, HeavyList, Status
from featurestore.errors import ConfigError, SchemaMismatchError
from featurestore.v1 import admin_service_pb2 as admin
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import registry_service_pb2 as registry

TOP = """\
  heavy:
    event: play
    key: ip
    windows: [1h, 2h]
    exact_events: 32
    top_counters: 8
    features: ["top(track, 2)", {name: long, aggregate: "top(ms_played, 3)", windows: [1h]}, hour_entropy]
services:
  heavy: [heavy.*]
  first: [heavy.top_track_share_1h, account.count_1h]
"""
SOURCE = SCHEMA.replace("services:\n", TOP)
LONG = "x" * 4096


def plays(house: House, tracks: list[str], ip: str = "1.2.3.4", at: int = T0) -> None:
    house.hot.Ingest(
        batch(
            *(
                event(at + i, ip=ip, account=1, track=track, ms_played=float(len(track)))
                for i, track in enumerate(tracks)
            )
        )
    )


def fed(house: House) -> None:
    plays(house, ["old"], ip="9.9.9.9", at=T0 - 3 * HOUR_MS)
    plays(house, ["ü", "ü", "b", "ü", "cc"])


def read(house: House, service: str = "heavy", **parts: object) -> pb.GetHeaviestResponse:
    return house.hot.GetHeaviest(pb.GetHeaviestRequest(service=service, key_set=keys(**parts)))


def test_lists_have_texts_numbers_and_counts(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, schema=SOURCE) as house:
        fed(house)
        reply = read(house, ip="1.2.3.4")
        assert [each.name for each in reply.lists] == [
            "heavy.top_track_1h",
            "heavy.top_track_2h",
            "heavy.long_1h",
        ]
        tracks = reply.lists[0]
        assert (tracks.status, tracks.total, tracks.total_lower, tracks.total_upper) == (1, 5, 5, 5)
        assert (tracks.values[0].text, tracks.values[0].count) == ("ü", 3)
        assert (tracks.values[0].lower, tracks.values[0].upper) == (3, 3)
        assert tracks.values[1].text in ("b", "cc") and tracks.rest_upper == 1
        assert [(value.number, value.count) for value in reply.lists[2].values] == [(1.0, 4), (2.0, 1)]
        assert [each.name for each in read(house, "first", ip="1.2.3.4").lists] == ["heavy.top_track_1h"]


def test_what_is_not_there(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, schema=SOURCE) as house:
        fed(house)
        empty = read(house, ip="8.8.8.8").lists[0]
        assert (empty.status, len(empty.values), empty.rest_upper) == (2, 0, 0)
        assert not read(house, account=1).lists  # the key was not given
        code, words = status_of(lambda: read(house, "heavi", ip="a"))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert "heavi" in words and "heavy" in words
        code, words = status_of(lambda: read(house, home="a"))
        assert "home" in words and "account, ip, track" in words
        with house.admin() as operator:
            operator.Forget(admin.ForgetRequest(parts=keys(ip="1.2.3.4").parts))
        assert not read(house, ip="1.2.3.4").lists[0].values


def test_a_fingerprint_that_is_not_the_services_is_a_failed_precondition(
    tmp_path: Path, serving: Serving
) -> None:
    with serving(tmp_path, schema=SOURCE) as house:
        fed(house)
        (service,) = house.registry.GetSchema(registry.GetSchemaRequest(service="heavy")).services
        request = pb.GetHeaviestRequest(
            service="heavy", key_set=keys(ip="1.2.3.4"), fingerprint=service.fingerprint
        )
        assert house.hot.GetHeaviest(request) == read(house, ip="1.2.3.4")
        for wrong in (service.fingerprint ^ 1, 0):
            request.fingerprint = wrong
            code, words = status_of(lambda: house.hot.GetHeaviest(request))
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert "service 'heavy' is not the vector" in words
        counts = house.server.dispatcher.counts()["methods"]["GetHeaviest"]
        assert (counts["calls"], counts["failed"]) == (4, {9: 2})
        assert sum(n for _, n in counts["latencies"]) == 4
        assert 0 < counts["seconds"] < 60


def test_get_schema_says_how_long_the_lists_are(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, schema=SOURCE) as house:
        (service,) = house.registry.GetSchema(registry.GetSchemaRequest(service="heavy")).services
        with Client(str(house.server.address)) as client:
            known = client.schema().services
        said = {feature.name: feature.k for feature in service.features}
        assert said == {
            "heavy.top_track_share_1h": 2, "heavy.top_track_share_2h": 2,
            "heavy.top_track_entropy_1h": 2, "heavy.top_track_entropy_2h": 2,
            "heavy.long_share_1h": 3, "heavy.long_entropy_1h": 3,
            "heavy.hour_entropy_1h": 0, "heavy.hour_entropy_2h": 0,
        }  # fmt: skip
        assert {feature.name: feature.k or 0 for feature in known["heavy"].features} == said
        assert [feature.k for feature in known["first"].features] == [2, None]


def test_a_list_that_was_merged_says_between_what_its_counts_are(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, schema=SOURCE) as house:
        plays(house, ["old"], ip="9.9.9.9", at=T0 - 3 * HOUR_MS)
        tracks = [f"t{i}" if i % 2 else "hit" for i in range(400)]
        plays(house, tracks)
        tracks_1h = read(house, ip="1.2.3.4").lists[0]
        hit = tracks_1h.values[0]
        assert hit.text == "hit" and hit.lower <= 200 <= hit.upper
        assert tracks_1h.total_lower <= 400 <= tracks_1h.total_upper
        assert 1 <= tracks_1h.rest_upper < 200


def test_a_text_that_is_too_long_for_a_key_is_not_kept_and_one_of_4096_bytes_is(
    tmp_path: Path, serving: Serving
) -> None:
    with serving(tmp_path, schema=SOURCE) as house:
        plays(house, [LONG, LONG])
        assert read(house, ip="1.2.3.4").lists[0].values[0].text == LONG


def test_a_value_without_its_text_has_a_name_that_is_not_its_hash(tmp_path: Path, serving: Serving) -> None:
    """Whoever learns hashes of values can look for some that collide in sketches."""
    source = SOURCE.replace("top(track, 2)", "top(track, 20)").replace("top_counters: 8", "top_counters: 64")
    with serving(tmp_path, schema=source) as house:
        plays(house, [f"{i:02}" + LONG[2:] for i in range(20)])  # a key keeps 64 KiB of texts
        values = read(house, ip="1.2.3.4").lists[0].values
        names = [one.hash for one in values if not one.HasField("text")]
        assert len(values) == 20 and 4 <= len(names) < 8
        assert len({*names, 0}) == len(names) + 1
        assert {one.hash for one in values if one.HasField("text")} == {0}
        assert {one.hash for one in read(house, ip="1.2.3.4").lists[0].values} == {*names, 0}
        stored = house.server.engine.state.snapshot()
        assert LONG[2:].encode() in stored
        assert not any(struct.pack("<Q", name) in stored for name in names)


def test_clients_and_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], serving: Serving) -> None:
    with serving(tmp_path, schema=SOURCE) as house:
        fed(house)
        target = str(house.server.address)
        with Client(target) as client:
            lists = client.heaviest("heavy", {"ip": "1.2.3.4", "account": None})
            at_first = client.heaviest("heavy", {"ip": "1.2.3.4"}, as_of=T0)
        assert isinstance(lists[0], HeavyList) and lists[0].status is Status.PRESENT
        assert (lists[0].values[0].value, lists[0].values[0].count) == ("ü", 3.0)
        assert [(one.value, one.count) for one in at_first[0].values] == [("ü", 1.0)]

        async def ask() -> list[HeavyList]:
            async with AsyncClient(target) as client:
                return await client.heaviest("heavy", {"ip": "1.2.3.4"})

        assert asyncio.run(ask()) == lists
        command = ["get", "--server", target, "--service", "heavy", "ip=1.2.3.4", "--lists"]
        assert main([*command, "-o", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["lists"][0]["values"][0] == {"value": "ü", "count": 3.0, "lower": 3, "upper": 3}
        assert main(command) == 0
        shown = capsys.readouterr().out
        assert "heavy.top_track_1h" in shown and "each of the others" in shown


def test_values_do_not_speak_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], serving: Serving
) -> None:
    with serving(tmp_path, schema=SOURCE) as house:
        plays(house, ["\x1b[31mred\x07"])
        target = str(house.server.address)
        assert main(["get", "--server", target, "--service", "heavy", "ip=1.2.3.4", "--lists"]) == 0
        shown = capsys.readouterr().out
        assert "\x1b" not in shown and "\\x1b[31mred\\x07" in shown


def test_lists_are_those_of_the_pin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], serving: Serving
) -> None:
    """`get --pin F --lists` showed those of the service as it was by then."""
    with serving(tmp_path, schema=SOURCE) as house:
        fed(house)
        target, keys = str(house.server.address), {"ip": "1.2.3.4", "account": 1}
        with Client(target) as client:
            pin = client.get("first", keys).pin
            there = client.heaviest("first", keys)
        assert [one.name for one in there] == ["heavy.top_track_1h"]
        pinned = "first: [heavy.top_track_share_1h, account.count_1h]"
        assert pinned in SOURCE
        after = SOURCE.replace(pinned, "first: [account.count_1h]")
        house.engine.apply_schema(after, allow=["drop", "order"])
        with Client(target) as client, Client(target, expect={"first": pin}) as expecting:
            assert client.heaviest("first", keys) == []
            assert client.heaviest("first", keys, pin=pin) == expecting.heaviest("first", keys) == there
            with pytest.raises(SchemaMismatchError):
                client.heaviest("first", keys, pin=replace(pin, fingerprint=7))
            with pytest.raises(ConfigError, match="the pin of 'heavy' is one of 'first'"):
                client.heaviest("heavy", keys, pin=pin)

        async def ask() -> list[HeavyList]:
            async with AsyncClient(target) as client:
                return await client.heaviest("first", keys, pin=pin)

        assert asyncio.run(ask()) == there
        file = tmp_path / "model.pin.json"
        pin.save(file)
        command = ["get", "--server", target, "--pin", str(file), "ip=1.2.3.4", "--lists", "-o", "json"]
        assert main(command) == 0
        (found,) = json.loads(capsys.readouterr().out)["lists"]
        assert found["name"] == "heavy.top_track_1h"
