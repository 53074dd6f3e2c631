"""Every hot method's answers over a real channel, and the same answers from the engine called directly."""

from __future__ import annotations

import math
import random
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from house import HOUR_MS, SCHEMA, T0, House, Serving, batch, event, keys, observe, play, read

from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine
from featurestore.v1 import admin_service_pb2 as admin_pb
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import types_pb2 as types

PRESENT, NOT_FOUND, WARMING, UNAVAILABLE = 1, 2, 3, 4


def statuses(vectors: types.Vectors) -> list[int]:
    return list(vectors.statuses) or [PRESENT] * len(vectors.values)


def warmed(house: House) -> None:
    """An hour has passed since the first event, so that nothing is WARMING."""
    house.hot.Ingest(batch(play(T0 - 2 * HOUR_MS, ip="9.9.9.9", account=1)))


def test_observe_applies_and_reads_at_the_event(house: House) -> None:
    warmed(house)
    first = house.hot.Observe(observe(play(T0, ms_played=10.0)))
    assert first.outcome == types.OUTCOME_ACCEPTED
    assert first.ack == types.ACK_APPLIED
    second = house.hot.Observe(observe(play(T0 + 1000, ms_played=20.0)))
    assert second.position == first.position + 1
    values = house.values(second.vectors)
    assert values["ip.count_10m"] == 2
    assert values["ip.mean_ms_played_1h"] == 15.0
    assert values["account.sum_ms_played_1h"] == 30.0
    assert values["pair.count_1h"] == 2
    assert values["ip.since_last_1h"] == 1000, "since_last excludes the event itself"
    assert set(statuses(second.vectors)) == {PRESENT}


def test_observe_without_a_service_only_applies(house: House) -> None:
    reply = house.hot.Observe(observe(play(), service=""))
    assert reply.outcome == types.OUTCOME_ACCEPTED
    assert not reply.HasField("vectors")


def test_observes_wait_for_the_disk_where_the_server_was_told_so(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, observe_ack="durable") as house:
        reply = house.hot.Observe(observe(play()))
        assert reply.ack == types.ACK_DURABLE
        assert house.engine.journal.durable_position >= reply.position
        assert house.hot.Observe(observe(play(), ack=types.ACK_APPLIED)).ack == types.ACK_APPLIED


def test_peek_answers_what_observe_then_answers_and_leaves_no_trace(house: House) -> None:
    house.hot.Ingest(batch(play(T0), play(T0 + 5)))
    sent = play(T0 + 10)
    position = house.engine.state.position
    digest = house.engine.state.digest()
    asked = observe(sent, bounds=True, coverage=True)
    peeked = house.hot.Observe(observe(sent, bounds=True, coverage=True, peek=True))
    assert house.engine.state.digest() == digest
    assert peeked.ack == types.ACK_UNSPECIFIED
    assert peeked.position == position
    observed = house.hot.Observe(asked)
    assert observed.position == position + 1
    assert peeked.outcome == observed.outcome
    assert peeked.vectors.SerializeToString() == observed.vectors.SerializeToString()


def test_ack_says_what_was_reached(tmp_path: Path, serving: Serving) -> None:
    for durability, by_default in (("group", types.ACK_DURABLE), ("process", types.ACK_APPLIED)):
        with serving(tmp_path / durability, durability=durability) as house:
            assert house.hot.Observe(observe(play())).ack == types.ACK_APPLIED
            assert house.hot.Ingest(batch(play())).ack == by_default
            for wanted in (types.ACK_APPLIED, types.ACK_DURABLE):
                reply = house.hot.Observe(observe(play(), ack=wanted))
                assert reply.ack == wanted
                assert house.hot.Ingest(batch(play(), ack=wanted)).ack == wanted
            assert house.engine.journal.durable_position >= reply.position + 1


def test_ingest_in_rows_and_in_columns_says_the_same(tmp_path: Path, serving: Serving) -> None:
    columns = types.EventColumns(
        times_ms=[T0, T0 + 1, T0 + 2],
        columns=[
            types.NamedColumn(name="ip", texts=types.TextColumn(data=b"abb", lengths=[1, 1, 1])),
            types.NamedColumn(name="account", integers=types.IntegerColumn(values=[1, 2, 2])),
            types.NamedColumn(name="ms_played", numbers=types.NumberColumn(values=[1.0, 2.0, 3.0])),
        ],
    )
    rows = [
        event(T0 + i, ip=ip, account=account, ms_played=i + 1.0)
        for i, (ip, account) in enumerate([("a", 1), ("b", 2), ("b", 2)])
    ]
    answers = []
    for name, request in (
        ("columns", pb.IngestRequest(event_type="play", columns=columns)),
        ("rows", batch(*rows)),
    ):
        with serving(tmp_path / name) as house:
            reply = house.hot.Ingest(request)
            assert reply.accepted == 3
            vectors = house.hot.GetFeatures(read(keys(ip="b", account=2)))
            answers.append((reply.SerializeToString(), vectors.SerializeToString()))
    assert answers[0] == answers[1]


def test_refused_late_and_duplicate_events_are_told_apart_by_index_and_reason(house: House) -> None:
    house.hot.Ingest(batch(play(T0 + 10 * HOUR_MS)))
    reply = house.hot.Ingest(
        batch(
            play(T0 + 10 * HOUR_MS),
            play(T0),  # late: more than an hour of window and an hour of lateness behind
            event(None, ip="a"),
            event(T0 + 10 * HOUR_MS, ip="a", ms_played=math.nan),
            event(T0 + 10 * HOUR_MS, ip=1.5),
            event(T0 + 10 * HOUR_MS, ip="x" * 4097),
            event(T0 + 10 * HOUR_MS, ip=True),
            event(10**15, ip="a"),
        )
    )
    assert (reply.accepted, reply.late, reply.duplicate, reply.refused) == (1, 1, 0, 6)
    assert [(r.index, r.reason) for r in reply.refusals] == [
        (2, types.OUTCOME_REFUSED_NO_TIME),
        (3, types.OUTCOME_REFUSED_NOT_FINITE),
        (4, types.OUTCOME_REFUSED_KEY),
        (5, types.OUTCOME_REFUSED_KEY_TOO_LONG),
        (6, types.OUTCOME_REFUSED_TYPE),
        (7, types.OUTCOME_REFUSED_TIME_RANGE),
    ]
    assert [r.field for r in reply.refusals] == ["ts", "ms_played", "ip", "ip", "ip", "ts"]
    late = house.hot.Observe(observe(play(T0)))
    assert late.outcome == types.OUTCOME_LATE
    assert late.ack == types.ACK_UNSPECIFIED
    assert set(statuses(late.vectors)) == {UNAVAILABLE}, "its windows begin before what is kept"


def test_an_id_is_not_cut_where_another_string_would_be(house: House) -> None:
    """Two that begin alike are two."""
    long = "x" * 4097
    like = event(T0, ip="a", like_id=long)
    assert house.hot.Observe(observe(like, "like", "likes")).outcome == types.OUTCOME_REFUSED_KEY_TOO_LONG
    columns = types.EventColumns(
        times_ms=[T0],
        columns=[
            types.NamedColumn(name="like_id", texts=types.TextColumn(data=long.encode(), lengths=[len(long)]))
        ],
    )
    reply = house.hot.Ingest(pb.IngestRequest(event_type="like", columns=columns))
    assert [one.reason for one in reply.refusals] == [types.OUTCOME_REFUSED_KEY_TOO_LONG]


def test_an_event_that_something_it_matches_has_dropped_already_says_so(
    tmp_path: Path, serving: Serving
) -> None:
    """By every way that an event can come, in the metrics and in the counts."""
    of_account = "windows: [1h]\n    features: [count, sum"
    schema = SCHEMA.replace(of_account, of_account.replace("1h", "1h, 30d"))
    with serving(tmp_path, schema=schema, metrics="localhost:0") as house, house.admin() as admin:
        told = [house.hot.Observe(observe(play(T0 + 10 * HOUR_MS + i))).partly_late for i in range(2)]
        assert told == [False, False]
        rows = [play(T0), play(T0 + 10 * HOUR_MS), play(T0 - 1000 * HOUR_MS), play(T0 + 1)]
        peeked = house.hot.Observe(observe(rows[0], peek=True))
        late = house.hot.Observe(observe(rows[0]))
        assert [(each.outcome, each.partly_late) for each in (peeked, late)] == [
            (types.OUTCOME_ACCEPTED, True)
        ] * 2
        assert house.values(late.vectors)["account.count_1h"] == 1
        asked = batch(*rows, producer="p", epoch=1, sequence=1)
        reply = house.hot.Ingest(asked)
        assert (reply.accepted, reply.partly_late, reply.late) == (3, 2, 1)
        again = house.hot.Ingest(asked)
        assert (again.duplicate_batch, again.accepted, again.partly_late) == (True, 0, 0)
        streamed = pb.IngestStreamRequest(batch=batch(*rows[:3]))
        (answer,) = house.hot.IngestStream(iter([streamed]))
        assert (answer.batch.accepted, answer.batch.partly_late, answer.batch.late) == (2, 1, 1)
        assert admin.Stats(admin_pb.StatsRequest()).events_partly_late == 4
        text = urllib.request.urlopen(f"http://{house.server.metrics_address}/metrics").read().decode()
        assert 'featurestore_events_partly_late_total{event="play"} 4.0' in text
        assert 'featurestore_events_partly_late_total{event="like"} 0.0' in text
        more = schema.replace("events:", "events:\n  aa: {time: {field: ts, unit: ms}, fields: {ip: key}}")
        admin.ApplySchema(admin_pb.ApplySchemaRequest(source=more))
        assert house.engine.state.partly_late == {"aa": 0, "play": 4, "like": 0}, "by name, not by place"


def test_an_id_counts_once_and_its_duplicate_is_acknowledged(house: House) -> None:
    like = event(T0, ip="a", like_id="l-1")
    first = house.hot.Observe(observe(like, "like", "likes"))
    again = house.hot.Observe(observe(like, "like", "likes", ack=types.ACK_DURABLE))
    assert (first.outcome, again.outcome) == (types.OUTCOME_ACCEPTED, types.OUTCOME_DUPLICATE)
    assert again.position == first.position
    assert again.ack == types.ACK_DURABLE, "what it repeats is on disk"
    assert house.values(again.vectors, service="likes")["likes.count_1h"] == 1
    without = house.hot.Ingest(batch(event(T0, ip="a"), event_type="like"))
    assert [r.reason for r in without.refusals] == [types.OUTCOME_REFUSED_NO_ID]


def test_a_batch_sent_again_is_acknowledged_and_not_applied(house: House) -> None:
    request = batch(play(), play(T0 + 1), producer="p", epoch=1, sequence=7)
    first, again = house.hot.Ingest(request), house.hot.Ingest(request)
    assert (first.accepted, first.duplicate_batch, first.sequence) == (2, False, 7)
    assert (again.accepted, again.duplicate_batch, again.sequence) == (0, True, 7)
    assert again.ack == types.ACK_DURABLE
    assert again.position == first.position
    values = house.values(house.hot.GetFeatures(read(keys(ip="1.2.3.4"))).vectors)
    assert values["ip.count_1h"] == 2


def test_an_empty_batch_is_accepted(house: House) -> None:
    reply = house.hot.Ingest(batch())
    assert (reply.accepted, reply.ack) == (0, types.ACK_UNSPECIFIED)


def test_many_key_sets_are_answered_in_order_with_a_status_each(house: House) -> None:
    warmed(house)
    for i in range(3):
        house.hot.Observe(observe(play(T0 + i, ip="known", account=i)))
    reply = house.hot.GetFeatures(
        read(
            keys(ip="known", account=2, track="t1"),
            keys(ip="unknown", account=2, track="t1"),
            keys(account="1"),
            keys(),
        )
    )
    vectors = reply.vectors
    assert (vectors.rows, vectors.width) == (4, len(house.names()))
    assert reply.now_ms == T0 + 2
    by_name = [
        dict(zip(house.names(), statuses(vectors)[i * vectors.width : (i + 1) * vectors.width], strict=True))
        for i in range(4)
    ]
    assert by_name[0]["ip.count_10m"] == PRESENT
    assert by_name[1]["ip.count_10m"] == NOT_FOUND
    assert by_name[1]["account.count_1h"] == PRESENT
    assert by_name[2]["ip.count_10m"] == UNAVAILABLE
    assert by_name[2]["pair.count_1h"] == UNAVAILABLE
    assert by_name[2]["account.count_1h"] == PRESENT, "596 and '596' are one key"
    assert set(by_name[3].values()) == {UNAVAILABLE}
    assert house.values(vectors, 0)["ip.count_10m"] == 3
    assert house.values(vectors, 1)["ip.count_10m"] == 0
    assert math.isnan(house.values(vectors, 1)["ip.mean_ms_played_1h"])
    assert math.isnan(house.values(vectors, 2)["ip.count_10m"])


def test_as_of_for_all_and_for_each(house: House) -> None:
    warmed(house)
    for i in range(4):
        house.hot.Ingest(batch(play(T0 + i * 600_000)))
    asked = keys(ip="1.2.3.4")
    at = T0 + 600_000
    for_all = house.hot.GetFeatures(read(asked, asked, as_of_ms=at)).vectors
    assert [house.values(for_all, row)["ip.count_10m"] for row in (0, 1)] == [1, 1]
    for_each = house.hot.GetFeatures(read(asked, asked, as_of_each_ms=[at - 1, at + 600_000])).vectors
    assert [house.values(for_each, row)["ip.count_1h"] for row in (0, 1)] == [1, 3]


def test_bounds_are_exact_or_enclose(tmp_path: Path, serving: Serving) -> None:
    schema = """\
version: 1
name: hot
events: {hit: {time: {field: ts, unit: ms}, fields: {k: key, x: number}}}
views: {v: {event: hit, key: k, windows: [1h], features: [count, sum(x)], exact_events: 16, max_error: 0.1}}
services: {s: [v.*]}
"""
    with serving(tmp_path, schema=schema) as house:
        sent = [event(T0 + i * 997, k="a", x=1.0) for i in range(5000)]
        house.hot.Ingest(batch(*sent, event_type="hit"))
        for k, expected in (("a", types.BOUNDS_CERTAIN), ("b", types.BOUNDS_EXACT)):
            vectors = house.hot.GetFeatures(read(keys(k=k), service="s", bounds=True)).vectors
            assert vectors.bounds == expected
        truth = sum(e.time_ms > T0 + 4999 * 997 - HOUR_MS for e in sent)
        vectors = house.hot.GetFeatures(read(keys(k="a"), service="s", bounds=True)).vectors
        for lower, upper in zip(vectors.lower, vectors.upper, strict=True):
            assert lower <= truth <= upper
            assert lower < upper


def test_coverage_tells_how_warm_a_feature_is(house: House) -> None:
    house.hot.Ingest(batch(play(T0), play(T0 + HOUR_MS // 2 - 1)))
    vectors = house.hot.GetFeatures(read(keys(ip="1.2.3.4"), coverage=True)).vectors
    covered = dict(zip(house.names(), vectors.coverage, strict=True))
    assert covered["ip.count_1h"] == 0.5
    assert covered["ip.count_10m"] == 1.0
    assert WARMING in statuses(vectors)
    assert not house.hot.GetFeatures(read(keys(ip="1.2.3.4"))).vectors.coverage


def test_a_store_without_events_has_no_now(house: House) -> None:
    reply = house.hot.GetFeatures(read(keys(ip="a")))
    assert not reply.HasField("now_ms")
    house.hot.Ingest(batch(play(T0)))
    assert house.hot.GetFeatures(read(keys(ip="a"))).now_ms == T0


def test_a_reply_carries_the_fingerprint_that_get_schema_gives(house: House) -> None:
    from featurestore.v1 import registry_service_pb2 as registry

    schema = house.registry.GetSchema(registry.GetSchemaRequest())
    fingerprints = {service.name: service.fingerprint for service in schema.services}
    vectors = house.hot.GetFeatures(read(keys(ip="a"), fingerprint=fingerprints["abuse"])).vectors
    assert vectors.fingerprint == fingerprints["abuse"]


def test_no_key_sets_is_no_vectors(house: House) -> None:
    vectors = house.hot.GetFeatures(read()).vectors
    assert (vectors.rows, list(vectors.values)) == (0, [])


@pytest.mark.parametrize("seed", range(3))
def test_the_server_answers_what_the_engine_answers(tmp_path: Path, seed: int, serving: Serving) -> None:
    """The same steps through gRPC and by calling a second engine: replies equal bit for bit."""
    rng = random.Random(seed)
    with serving(tmp_path) as house:
        direct = Engine.open(tmp_path / "direct", schema=house.engine.state.plan.source, clock="event")
        try:
            _same_steps(rng, house, direct)
        finally:
            direct.close()


def _same_steps(rng: random.Random, house: House, direct: Engine) -> None:
    plan = direct.state.plan
    play_plan, now = plan.events[0], T0
    width = len(house.names())
    for _ in range(40):
        now += rng.randrange(0, 400_000)
        n = rng.randrange(1, 6)
        columns = {
            "ts": [now - rng.randrange(0, 3 * HOUR_MS) * (rng.random() < 0.3) for _ in range(n)],
            "ip": [rng.choice(["a", "b", "", "c"]) for _ in range(n)],
            "account": [rng.randrange(3) for _ in range(n)],
            "track": [rng.choice(["t", "u"]) for _ in range(n)],
            "ms_played": [rng.choice([1.5, -2.0, 1e6]) for _ in range(n)],
        }
        rows = [
            event(columns["ts"][i], **{name: columns[name][i] for name in columns if name != "ts"})
            for i in range(n)
        ]
        times, made, outcomes = event_columns(play_plan, columns)
        expected = EventBatch(play_plan, 0, times, made, outcomes)
        peek, bounds = rng.random() < 0.3, rng.random() < 0.5
        if n == 1:
            reply = house.hot.Observe(observe(rows[0], peek=peek, bounds=bounds))
            vectors, position = direct.observe(expected, 0, peek=peek, bounds=bounds)
            assert reply.outcome == {0: 3}.get(expected.outcomes[0], expected.outcomes[0])
            assert reply.position == position
            _same(reply.vectors, vectors, bounds)
        else:
            reply = house.hot.Ingest(batch(*rows))
            _, position = direct.observe(expected)
            assert (reply.accepted, reply.late) == (
                int(np.sum(expected.outcomes == 0)),
                int(np.sum(expected.outcomes == 1)),
            )
            assert reply.position == position
        asked = [{"ip": ip, "track": "t", "account": "1"} for ip in ("a", "b", "nobody")]
        as_of = [now - rng.randrange(0, HOUR_MS) for _ in asked] if rng.random() < 0.5 else None
        reply = house.hot.GetFeatures(read(*(keys(**k) for k in asked), bounds=bounds, as_of_each_ms=as_of))
        parts = {name: text_column([k[name] for k in asked])[0] for name in asked[0]}
        vectors = direct.read(
            0, parts, len(asked), as_of=None if as_of is None else np.array(as_of), bounds=bounds
        )
        assert reply.vectors.width == width
        _same(reply.vectors, vectors, bounds)
    assert house.engine.state.position == direct.state.position


def _same(got: types.Vectors, expected: object, bounds: bool) -> None:
    shape = (got.rows, got.width)
    sent = np.array(got.values).reshape(shape)
    np.testing.assert_array_equal(sent.view(np.uint64), expected.values.view(np.uint64))
    np.testing.assert_array_equal(np.array(statuses(got)).reshape(shape), expected.statuses)
    if bounds:
        lower = np.array(got.lower or got.values).reshape(shape)
        upper = np.array(got.upper or got.values).reshape(shape)
        np.testing.assert_array_equal(lower, expected.lower)
        np.testing.assert_array_equal(upper, expected.upper)
