"""Derived features over a real channel: GetSchema, Observe, GetFeatures, ApplySchema."""

from __future__ import annotations

import math
from pathlib import Path

import grpc
import pytest
from house import HOUR_MS, SCHEMA, T0, House, Serving, batch, keys, observe, play, read, status_of

from featurestore.client import Client
from featurestore.v1 import admin_service_pb2 as admin
from featurestore.v1 import registry_service_pb2 as registry
from featurestore.v1 import types_pb2 as types

DERIVED = """\
derived:
  risk.ip_share_1h: {value: ip.count_1h / account.count_1h, else: -1}
  risk.recent_1h: ip.count_10m / ip.count_1h
services:
  risk: [risk.*]
  mixed: [account.*, risk.recent_1h]
"""
PRESENT, NOT_FOUND, WARMING, UNAVAILABLE = 1, 2, 3, 4


def schema(exact_events: int = 256) -> str:
    limits = (
        f"    exact_events: {exact_events}\n    max_error: 0.5\n    max_entries: {max(8, exact_events)}\n"
    )
    source = SCHEMA.replace("    key: ip\n    windows: [10m", f"    key: ip\n{limits}    windows: [10m")
    return source.replace("services:\n", DERIVED)


def warmed(house: House) -> None:
    house.hot.Ingest(batch(play(T0 - 2 * HOUR_MS, ip="9.9.9.9", account=1)))


def test_get_schema_says_what_is_derived_from_what_and_which_keys_it_needs(
    tmp_path: Path, serving: Serving
) -> None:
    with serving(tmp_path, schema=schema()) as house:
        reply = house.registry.GetSchema(registry.GetSchemaRequest(service="risk"))
        (risk,) = reply.services
        share, recent = risk.features
        assert (share.name, share.aggregate) == ("risk.ip_share_1h", registry.AGGREGATE_DERIVED)
        assert (share.formula, share.by_zero) == ("ip.count_1h / account.count_1h", -1)
        assert (recent.formula, recent.HasField("by_zero")) == ("ip.count_10m / ip.count_1h", False)
        assert (list(share.parts), list(recent.parts)) == (["account", "ip"], ["ip"])
        assert list(risk.parts) == ["account", "ip"]
        assert not share.excludes_self
        with Client(str(house.server.address)) as client:
            feature = client.schema().services["risk"].features[0]
        assert (feature.aggregate, feature.formula, feature.by_zero, feature.window_ms) == (
            "derived",
            "ip.count_1h / account.count_1h",
            -1.0,
            None,
        )


def test_get_schema_says_at_which_confidence_bounds_hold(tmp_path: Path, serving: Serving) -> None:
    """Certain for what is counted, 95 % for what is estimated, and for a formula what its parts leave."""
    features = "count, mean(ms_played), since_last"
    more = f"{features}, distinct(account), distinct(track), decayed_count(1h)"
    source = SCHEMA.replace(features, more, 1).replace(
        "services:\n", "derived: {risk.spread: ip.distinct_account_1h / ip.distinct_track_1h}\nservices:\n"
    )
    with serving(
        tmp_path, schema=source.replace("services:\n", "services:\n  all: [ip.*, risk.*]\n")
    ) as house:
        (service,) = house.registry.GetSchema(registry.GetSchemaRequest(service="all")).services
        with Client(str(house.server.address)) as client:
            known = {feature.name: feature for feature in client.schema().services["all"].features}
    said = {feature.name: (feature.confidence, feature.half_life_ms) for feature in service.features}
    assert said["ip.count_1h"] == said["ip.since_last_1h"] == (1.0, 0)
    assert said["ip.distinct_account_1h"] == (0.95, 0)
    assert said["risk.spread"] == (pytest.approx(0.9), 0)
    (decayed,) = (name for name in said if "decayed" in name)
    assert said[decayed] == (1.0, HOUR_MS)
    assert {name: (f.confidence, f.half_life_ms or 0) for name, f in known.items()} == said
    assert known["ip.count_1h"].half_life_ms is None


def test_observe_and_get_features_return_what_is_listed_and_no_operand(
    tmp_path: Path, serving: Serving
) -> None:
    with serving(tmp_path, schema=schema()) as house:
        warmed(house)
        house.hot.Ingest(batch(play(T0 - 1_800_000), play(T0 - 1_800_000, account=7)))
        observed = house.hot.Observe(observe(play(T0), service="risk", bounds=True)).vectors
        assert (observed.width, list(observed.values)) == (2, [3 / 2, 1 / 3])
        assert (observed.statuses, observed.bounds, list(observed.lower)) == (b"", types.BOUNDS_EXACT, [])
        got = house.hot.GetFeatures(read(keys(ip="1.2.3.4", account=596), service="risk")).vectors
        assert list(got.values) == [3 / 2, 1 / 3]
        mixed = house.hot.GetFeatures(
            read(keys(ip="1.2.3.4", account=596), keys(ip="never"), service="mixed")
        ).vectors
        assert mixed.width == 3
        assert list(mixed.values[:3]) == [2.0, 60.0, 1 / 3]
        assert list(mixed.statuses) == [PRESENT] * 3 + [UNAVAILABLE] * 2 + [NOT_FOUND]
        assert all(map(math.isnan, mixed.values[3:]))


def test_bounds_of_a_hot_key_hold_the_truth_on_the_wire(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, schema=schema(exact_events=2)) as house:
        warmed(house)
        times = [T0 - 90 * 60_000 + i * 47_000 for i in range(110)]
        for i in range(0, len(times), 10):
            house.hot.Ingest(batch(*(play(time) for time in times[i : i + 10])))
        as_of = times[-1]
        request = read(keys(ip="1.2.3.4", account=596), service="risk", bounds=True, as_of_ms=as_of)
        vectors = house.hot.GetFeatures(request).vectors
        assert vectors.bounds == types.BOUNDS_CERTAIN
        hour = sum(as_of - HOUR_MS < time <= as_of for time in times)
        minutes = sum(as_of - 600_000 < time <= as_of for time in times)
        # The account's count is exact, the ip's two are not.
        truths = [hour / hour, minutes / hour]
        for truth, value, lower, upper in zip(
            truths, vectors.values, vectors.lower, vectors.upper, strict=True
        ):
            assert lower < upper
            assert lower <= truth <= upper
            assert lower <= value <= upper
            assert upper - lower < 1.5 * truth


def test_else_and_a_missing_key_on_the_wire(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, schema=schema()) as house:
        warmed(house)
        house.hot.Ingest(batch(play(T0)))
        sets = [keys(ip="1.2.3.4", account=8), keys(ip="1.2.3.4"), keys(account=596)]
        vectors = house.hot.GetFeatures(read(*sets, service="risk")).vectors
        assert list(vectors.values)[:2] == [-1.0, 1.0]
        assert list(vectors.statuses) == [PRESENT, PRESENT, UNAVAILABLE, PRESENT, UNAVAILABLE, UNAVAILABLE]


def test_a_new_definition_has_another_fingerprint_and_the_old_one_is_refused(
    tmp_path: Path, serving: Serving
) -> None:
    with serving(tmp_path, schema=schema()) as house:
        before = house.registry.GetSchema(registry.GetSchemaRequest(service="risk")).services[0].fingerprint
        changed = schema().replace("ip.count_10m / ip.count_1h", "6 * ip.count_10m / ip.count_1h")
        with house.admin() as stub:
            reply = stub.ApplySchema(admin.ApplySchemaRequest(source=changed))
            assert (reply.version, list(reply.added_features)) == (2, [])
            more = changed.replace("services:\n", "  risk.more: risk.recent_1h + 1\nservices:\n")
            reply = stub.ApplySchema(admin.ApplySchemaRequest(source=more))
            assert list(reply.added_features) == ["risk.more"]
        code, _ = status_of(
            lambda: house.hot.GetFeatures(read(keys(ip="1.2.3.4"), service="mixed", fingerprint=before))
        )
        assert code == grpc.StatusCode.FAILED_PRECONDITION


def test_derived_features_survive_a_restart_of_the_store(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, schema=schema()) as house:
        warmed(house)
        house.hot.Ingest(batch(play(T0), play(T0 + 1, account=3)))
        request = read(keys(ip="1.2.3.4", account=596), service="risk", bounds=True)
        before = house.hot.GetFeatures(request)
    with serving(tmp_path, schema=None) as house:
        assert house.hot.GetFeatures(request) == before


@pytest.mark.parametrize("service", ["risk", "mixed"])
def test_peek_answers_what_observe_does(tmp_path: Path, service: str, serving: Serving) -> None:
    with serving(tmp_path, schema=schema()) as house:
        warmed(house)
        peeked = house.hot.Observe(observe(play(T0), service=service, peek=True, bounds=True)).vectors
        assert house.hot.Observe(observe(play(T0), service=service, bounds=True)).vectors == peeked
