"""A schema applied to a store that has one: which ids and times go on, what is refused, what starts empty."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurestore.engine import Engine
from featurestore.errors import SchemaError
from featurestore.plan import Plan, ViewPlan
from featurestore.schema import compile_schema, expression, model

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

SIGNUP_EVENT = """\
  signup:
    time: ts
    fields: {ip: key}
"""
IP_VIEW = """\
  ip:
    event: login
    key: ip
    windows: [1h, lifetime]
    features: [count]
"""
SIGNUPS_VIEW = """\
  signups: {event: signup, key: ip, windows: [1h], features: [count]}
"""
BASE = f"""\
version: 1
name: logins
events:
  login:
    time: ts
    fields: {{account: key, ip: key, country: string, score: number, robot: bool}}
{SIGNUP_EVENT}\
views:
  account:
    event: login
    key: account
    where: not robot
    windows: [1h, 1d]
    features:
      - count
      - mean(score)
      - {{name: low, aggregate: count, where: score < 1}}
{IP_VIEW}\
{SIGNUPS_VIEW}\
services:
  all: [account.*]
"""
FIRST_MS = 1_700_000_000_000


def changed(old: str, new: str, base: str = BASE) -> str:
    assert base.count(old) == 1, f"{old!r} must name one place"
    return base.replace(old, new)


def first() -> Plan:
    return compile_schema(BASE, now_ms=FIRST_MS)


def applied(source: str, previous: Plan, *, days: int = 10) -> Plan:
    return compile_schema(source, previous=previous, now_ms=FIRST_MS + days * DAY_MS)


def view(plan: Plan, name: str) -> ViewPlan:
    return next(each for each in plan.views if each.name == name)


def test_a_first_schema_has_seen_everything_since_the_first_event_or_ever_where_that_is_stated() -> None:
    assert {each.since_ms for each in first().views} == {None}
    assert not any(each.from_beginning for each in first().events)
    stated = compile_schema(BASE, from_beginning=True)
    assert {each.since_ms for each in stated.views} == {None}
    assert all(each.from_beginning for each in stated.events)
    event = "  logout: {time: ts, fields: {ip: key}}\nviews:"
    after = applied(changed("views:", event), stated)
    assert {each.name: each.from_beginning for each in after.events} == {
        "login": True,
        "signup": True,
        "logout": False,  # nobody has stated anything of it
    }


@pytest.mark.parametrize(
    "source",
    [
        BASE,
        changed("where: not robot", "where: (not (robot))  # a comment"),
        changed("windows: [1h, 1d]", "exact_events: 1000\n    max_error: 0.010\n    windows: [1h, 1d]"),
        changed("key: account", "key: [account]"),
    ],
)
def test_a_schema_that_says_the_same_is_the_plan_there_was(source: str) -> None:
    plan = first()
    assert applied(source, plan) is plan
    assert applied(source, Plan.from_json(plan.to_json())) == plan
    assert compile_schema(source, previous=plan) is plan


def test_a_store_keeps_how_many_events_are_exact_when_the_default_becomes_another() -> None:
    """A store of before has 256 in its plan, and a schema file that does not say it."""
    before = first()
    before = Plan.from_json(
        before.to_json()
        .replace('"exact_events":1000', '"exact_events":256')
        .replace('\\"exact_events\\":1000', '\\"exact_events\\":256')
    )
    assert {each.exact_events for each in before.views} == {256}
    assert compile_schema(BASE, previous=before) is before
    added = "  fresh: {event: login, key: ip, windows: [1h], features: [count]}\nservices:"
    after = applied(changed("services:", added), before)
    assert {each.name: each.exact_events for each in after.views}["fresh"] == 1000
    assert {each.exact_events for each in after.views if each.name != "fresh"} == {256}
    with pytest.raises(SchemaError, match="exact_events was 256, is 1000"):
        applied(changed("windows: [1h, 1d]", "exact_events: 1000\n    windows: [1h, 1d]"), before)


def test_each_change_is_a_new_version() -> None:
    plan = first()
    second = applied(changed("account.*", "account.count_1h"), plan)
    third = applied(BASE, second)
    assert [plan.version, second.version, third.version] == [1, 2, 3]
    assert second.source == changed("account.*", "account.count_1h")


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("key: account\n", "key: ip\n", "key was account: account, is ip: ip"),
        ("key: account\n", "key: {who: account}\n", "key was account: account, is who: account"),
        ("where: not robot", "where: robot", "where was not robot, is robot"),
        ("    where: not robot\n", "", "where was not robot, is absent"),
        ("windows: [1h, 1d]", "windows: [1h, 1d]\n    offset: 7d", "offset was 0s, is 7d"),
        ("windows: [1h, 1d]", "windows: [1h, 1d]\n    exact_events: 32", "exact_events was 1000, is 32"),
        ("windows: [1h, 1d]", "windows: [1h, 1d]\n    max_error: 0.1", "max_error was 0.01, is 0.1"),
        ("windows: [1h, 1d]", "windows: [1h, 1d]\n    max_entries: 9999", "max_entries was 4096, is 9999"),
        ("windows: [1h, 1d]", "windows: [1h, 1d, lifetime]", "lifetime was not kept, is kept"),
        ("- mean(score)", "- stddev(score)", "without score (sum, extremes), with score (extremes, moments)"),
        ("- mean(score)", "- mean(score)\n      - sum(robot)", "columns with robot (sum)"),
        (
            "score < 1",
            "score < 2",
            "columns without events (count) where score < 1, with events (count) where score < 2",
        ),
        (
            "robot: bool",
            "robot: number",
            "types was robot: bool, score: number, is robot: number, score: number",
        ),
    ],
)
def test_a_view_keeps_what_its_state_was_made_of(old: str, new: str, what: str) -> None:
    source = changed(old, new)
    if "robot: number" in source:
        source = changed("where: not robot", "where: robot > 0", source)
    with pytest.raises(SchemaError) as caught:
        compile_schema(source, path="a.yaml", previous=first())
    message = str(caught.value)
    assert message.startswith("a.yaml:12: view account has state that does not fit this change: ")
    assert what in message
    assert "declare a second view of this key beside it" in message
    renamed = changed("\n  account:\n", "\n  account2:\n", source).replace("account.*", "account2.*")
    assert view(applied(renamed, first()), "account2").view_id == 4


FEWER = changed(
    "      - mean(score)\n      - {name: low, aggregate: count, where: score < 1}\n", "      - sum(score)\n"
)


def test_a_log_goes_on_with_what_no_feature_needs_any_more() -> None:
    """And so does what comes back; but not what was never kept, nor of a field that is gone."""
    plan = first()
    fewer = applied(FEWER, plan)
    assert view(fewer, "account").identity == view(plan, "account").identity
    assert view(fewer, "account").columns == view(plan, "account").columns
    assert [each.column for each in fewer.features if each.name.startswith("account.sum")] == [
        each.column for each in plan.features if each.name.startswith("account.mean")
    ]
    assert applied(FEWER, fewer) is fewer
    moved = applied(
        changed("{account: key, ip: key,", "{referrer: string, ip: key, account: key,", FEWER), fewer
    )
    assert view(moved, "account").values == (4,)
    low = moved.programs[view(moved, "account").filters[0]]
    assert (low.source, low.ops[0].field) == ("score < 1", 4)
    back = applied(BASE, moved)
    assert dataclasses.replace(view(back, "account"), view_id=0) == dataclasses.replace(
        view(plan, "account"), view_id=0
    )
    for old, new in [("sum(score)", "stddev(score)"), ("- sum(score)", "- count\n      - last(score)")]:
        with pytest.raises(SchemaError, match="declare a second view"):
            applied(
                changed(old, new, FEWER).replace("      - count\n      - count\n", "      - count\n"), fewer
            )
    count = changed("      - sum(score)\n", "", FEWER)
    with pytest.raises(SchemaError, match=r"without score \(sum, extremes\)"):
        applied(changed(", score: number", "", count), fewer)
    with pytest.raises(SchemaError, match=r"without score \(sum, extremes\)"):
        applied(changed("score: number", "score: string", count), fewer)
    once = changed("windows: [1h, lifetime]", "windows: [1h]")
    assert view(applied(once, plan), "ip").has_lifetime
    assert applied(BASE, applied(once, plan)).views == plan.views


def test_another_event_is_another_view() -> None:
    with pytest.raises(SchemaError, match="event was signup, is login"):
        applied(changed("{event: signup", "{event: login"), first())


def test_every_refused_view_is_named() -> None:
    source = changed("where: not robot", "where: robot", changed("key: ip\n", "key: account\n"))
    with pytest.raises(SchemaError) as caught:
        applied(source, first())
    assert [line.split(" has ")[0] for line in str(caught.value).splitlines()] == [
        "12: view account",
        "21: view ip",
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: changed("{account: key, ip: key,", "{referrer: string, ip: key, account: key,", s),
        lambda s: changed("country: string, ", "", s),
        lambda s: changed("country: string", "country: key", s),
        lambda s: changed("windows: [1h, 1d]", "windows: [10m, 1d]", s),
        lambda s: changed("windows: [1h, lifetime]", "windows: [1h, lifetime]\n    lifetime_idle: 30d", s),
        lambda s: changed(
            "    time: ts\n    fields: {acc", "    time: ts\n    lateness: 2h\n    fields: {acc", s
        ),
        lambda s: changed(
            "    time: ts\n    fields: {acc", "    time: at\n    ids: {id: n}\n    fields: {acc", s
        ),
        lambda s: changed(
            "      - count\n      - mean(score)\n", "      - mean(score)\n      - sum(score)\n", s
        ),
        lambda s: changed("name: low, aggregate: count", "name: few, aggregate: count, self: exclude", s),
        lambda s: changed("  all: [account.*]", "  some: [ip.*]\nkeep_keys: [ip]", s),
    ],
)
def test_what_touches_no_state_may_change(change: Callable[[str], str]) -> None:
    plan = first()
    second = applied(change(BASE), plan)
    assert second.version == 2
    assert [each.view_id for each in second.views] == [1, 2, 3]
    assert [each.identity for each in second.views] == [each.identity for each in plan.views]
    assert [each.event_id for each in second.events] == [1, 2]
    assert [(each.entity_id, each.parts) for each in second.entities] == [(1, ("account",)), (2, ("ip",))]


def test_moved_fields_move_their_indexes() -> None:
    second = applied(changed("{account: key, ip: key,", "{referrer: string, ip: key, account: key,"), first())
    assert view(second, "account").values == (4,)
    assert second.events[0].touches[0].fields == (2,)
    low = second.programs[view(second, "account").filters[0]]
    assert (low.source, low.ops[0].field) == ("score < 1", 4)


def test_what_is_removed_and_added_again_is_new_and_no_id_is_given_twice() -> None:
    plan = first()
    gone = applied(changed(IP_VIEW + SIGNUPS_VIEW, ""), plan)
    assert [each.name for each in gone.views] == ["account"]
    assert [each.parts for each in gone.entities] == [("account",)]
    back = applied(BASE, gone, days=20)
    assert [each.view_id for each in back.views] == [1, 4, 5]
    assert [each.entity_id for each in back.entities] == [1, 3]
    assert [each.event_id for each in back.events] == [1, 2]
    assert view(back, "ip").since_ms == FIRST_MS + 20 * DAY_MS + 1
    assert view(back, "account").since_ms is None
    assert (back.next_view_id, back.next_entity_id, back.next_event_id) == (6, 4, 3)

    no_event = applied(changed(SIGNUP_EVENT, "", changed(SIGNUPS_VIEW, "")), plan)
    assert [each.event_id for each in applied(BASE, no_event).events] == [1, 3]


def test_ids_follow_names_in_any_order() -> None:
    second = applied(changed("views:\n", f"views:\n{IP_VIEW}", changed(IP_VIEW, "")), first())
    assert [(each.name, each.view_id) for each in second.views] == [("ip", 2), ("account", 1), ("signups", 3)]
    assert [(each.parts, each.entity_id) for each in second.entities] == [(("ip",), 2), (("account",), 1)]


def test_new_views_have_seen_what_comes_and_new_features_of_old_ones_what_their_view_has() -> None:
    added = changed(
        "services:", "  fresh: {event: login, key: ip, windows: [1h], features: [count]}\nservices:"
    )
    added = changed("windows: [1h, 1d]", "windows: [1h, 2d]", added)
    now_ms = FIRST_MS + 10 * DAY_MS
    plan = compile_schema(added, previous=first(), now_ms=now_ms, ahead_ms=10_000)
    assert {each.name: each.since_ms for each in plan.views} == {
        "account": None,
        "ip": None,
        "signups": None,
        "fresh": now_ms + 10_001,
    }
    assert view(plan, "account").floor_ms is not None, "what its longer windows have not"
    later = compile_schema(BASE, previous=plan, now_ms=now_ms + DAY_MS)
    again = compile_schema(added, previous=later, now_ms=now_ms + 2 * DAY_MS)
    assert view(again, "fresh").since_ms == now_ms + 2 * DAY_MS + 1


def test_the_plan_of_a_store_from_before_views_said_since_when() -> None:
    """A view has seen what its first feature has, and nothing that may have been ahead of the clock then."""
    raw = json.loads(first().to_json())
    for each in raw["views"]:
        del each["since_ms"]
    for each in raw["events"]:
        del each["from_beginning"]
    since = {"account.count_1h": FIRST_MS, "ip.count_1h": None}
    for each in raw["features"]:
        each["live_since_ms"] = since.get(each["name"], FIRST_MS + DAY_MS)
    plan = Plan.from_json(json.dumps(raw))
    assert {each.name: each.since_ms for each in plan.views} == {
        "account": FIRST_MS + 10_001,
        "ip": None,
        "signups": FIRST_MS + DAY_MS + 10_001,
    }
    assert not any(each.from_beginning for each in plan.events)
    assert Plan.from_json(plan.to_json()) == plan
    del raw["features"][0]["live_since_ms"]
    with pytest.raises(KeyError):
        Plan.from_json(json.dumps(raw))


def test_a_view_that_keeps_longer_has_a_floor_that_only_rises() -> None:
    def windows(last: str) -> str:
        return changed("windows: [1h, 1d]", f"windows: [1h, {last}]")

    plan = first()
    assert view(plan, "account").keep_ms == DAY_MS + HOUR_MS
    longer = applied(windows("30d"), plan, days=10)
    assert view(longer, "account").keep_ms == 30 * DAY_MS + HOUR_MS
    assert view(longer, "account").floor_ms == FIRST_MS + 9 * DAY_MS - HOUR_MS
    assert {each.floor_ms for each in longer.views if each.name != "account"} == {None}

    # At day 11 the view keeps 30 days in name, but nothing before the floor.
    longest = applied(windows("60d"), longer, days=11)
    assert view(longest, "account").floor_ms == view(longer, "account").floor_ms
    shorter = applied(windows("2h"), longest, days=12)
    assert view(shorter, "account").floor_ms == view(longer, "account").floor_ms
    again = applied(windows("1d"), shorter, days=20)
    assert view(again, "account").floor_ms == FIRST_MS + 20 * DAY_MS - 3 * HOUR_MS

    assert view(compile_schema(windows("30d"), previous=plan), "account").floor_ms is None
    assert (
        view(compile_schema(windows("90d"), previous=again), "account").floor_ms
        == view(again, "account").floor_ms
    )


def test_more_lateness_raises_the_floor_of_every_view_of_the_event() -> None:
    source = changed("    time: ts\n    fields: {acc", "    time: ts\n    lateness: 2h\n    fields: {acc")
    second = applied(source, first())
    assert view(second, "account").floor_ms == FIRST_MS + 9 * DAY_MS - HOUR_MS
    assert view(second, "ip").floor_ms == FIRST_MS + 10 * DAY_MS - 2 * HOUR_MS
    assert view(second, "signups").floor_ms is None


def test_a_schema_of_another_name_is_for_another_store() -> None:
    with pytest.raises(SchemaError, match="this store holds the schema logins, not payments"):
        applied(changed("name: logins", "name: payments"), first())


def test_ids_run_out_loudly() -> None:
    plan = first()
    worn = Plan.from_json(plan.to_json().replace('"next_view_id":4', '"next_view_id":65535'))
    last = applied(changed("  ip:\n", "  ip2:\n"), worn)
    assert view(last, "ip2").view_id == 65535
    with pytest.raises(SchemaError, match="all of its 65535 ids"):
        applied(changed("  ip:\n", "  ip3:\n"), last)


def test_each_event_type_goes_by_its_own_clock() -> None:
    nows = {"login": FIRST_MS, "signup": FIRST_MS - 100 * DAY_MS}
    source = changed("windows: [1h], features: [count]}", "windows: [1h, 2h], features: [count]}")
    source = changed(
        "services:", "  fresh: {event: signup, key: ip, windows: [1h], features: [count]}\nservices:", source
    )
    longer = compile_schema(source, previous=first(), now_ms=nows)
    assert view(longer, "signups").floor_ms == nows["signup"] - 2 * HOUR_MS
    assert view(longer, "fresh").since_ms == nows["signup"] + 1
    silent = compile_schema(source, previous=first(), now_ms={"login": FIRST_MS})
    assert view(silent, "signups").floor_ms is None
    assert view(silent, "fresh").since_ms is None, "it is older than the first event of its type"


def test_a_longer_idle_ends_the_lifetimes_that_had_ended_before() -> None:
    plan = first()
    shorter = applied(changed(IP_VIEW, IP_VIEW + "    lifetime_idle: 10d\n"), plan, days=1)
    assert view(shorter, "ip").lifetime_floor_ms is None
    longer = applied(BASE, shorter, days=30)
    assert view(longer, "ip").lifetime_floor_ms == FIRST_MS + 20 * DAY_MS
    again = applied(changed(IP_VIEW, IP_VIEW + "    lifetime_idle: 3000d\n"), longer, days=31)
    assert view(again, "ip").lifetime_floor_ms == FIRST_MS + 20 * DAY_MS, "it grows only"
    assert view(Plan.from_json(again.to_json()), "ip") == view(again, "ip")


def test_a_plan_stored_before_there_were_lifetime_floors_and_key_epochs_is_read() -> None:
    text = first().to_json()
    assert (
        Plan.from_json(text.replace(',"lifetime_floor_ms":null', "").replace(',"key_epoch":0', "")) == first()
    )
    assert '"key_epoch":0' in text and '"lifetime_floor_ms":null' in text


def test_keys_that_are_kept_again_are_learned_anew() -> None:
    plan, epochs = first(), []
    for days, keep in enumerate([True, True, False, True]):
        plan = applied(BASE + "keep_keys: [ip]\n" if keep else BASE, plan, days=days)
        entity = next(each for each in plan.entities if each.parts == ("ip",))
        epochs.append((entity.keep_keys, entity.key_epoch))
    assert epochs == [(True, 1), (True, 1), (False, 1), (True, 2)]


STRICTER = """\
version: 1
name: made-before
events:
  tx: {time: {field: at, format: "%Y-%m"}, fields: {ip: key, c: string}}
views:
  ip:
    event: tx
    key: ip
    windows: [1h]
    features: [count, {name: empty, aggregate: count, where: 'c == ""'}]
services: {s: [ip.*]}
"""


def test_a_store_goes_on_with_a_schema_that_would_be_refused_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`serve --schema` with the file that the store was made with, after the rules became stricter."""

    def unchecked(self: Any, token: Any) -> Any:
        return self._text_piece(token.text[1:-1], token.at)

    path = tmp_path / "store"
    with monkeypatch.context() as before:
        before.setattr(expression._Compiler, "_text", unchecked)
        before.setattr(model, "_time_format", lambda node, what, unit: node.text)
        with Engine.open(path, schema=STRICTER) as engine:
            plan = engine.state.plan
    with pytest.raises(SchemaError, match="an empty text is absent"):
        compile_schema(STRICTER.replace('"%Y-%m"', '"%Y-%m-%d"'))
    for schema in (None, STRICTER):
        with Engine.open(path, schema=schema) as engine:
            assert engine.state.plan == plan
    with pytest.raises(SchemaError, match="does not say which day it is"):
        Engine.open(path, schema=STRICTER + "# touched\n")
