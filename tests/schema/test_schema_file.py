"""The schema file: what it compiles to, its defaults and limits, and the message for each mistake."""

import dataclasses
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore.schema
from featurestore.core.state import State
from featurestore.errors import SchemaError
from featurestore.plan import (
    Aggregate,
    ColumnPlan,
    EntityPlan,
    FeaturePlan,
    FieldPlan,
    Kind,
    Part,
    Plan,
    TimePlan,
    TouchPlan,
)
from featurestore.schema import compile_schema, load

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

CARD_FRAUD = """\
version: 1
name: card-fraud
events:
  transaction:
    time: tx_datetime              # the field that carries event time; {field: ts, unit: ms} for a number
    fields: {customer_id: key, terminal_id: key, tx_amount: number, tx_fraud: number}
views:
  customer:
    event: transaction
    key: customer_id               # shorthand for {customer_id: customer_id}: entity name → field
    windows: [1d, 7d, 30d]
    features: [count, mean(tx_amount)]
  terminal:
    event: transaction
    key: terminal_id
    windows: [1d, 7d, 30d]
    offset: 7d
    features: [count, mean(tx_fraud)]
services:
  fraud: [customer.*, terminal.*]
"""

# Every test below changes one place of this file.
LOGIN = """\
version: 1
name: logins
events:
  login:
    time: {field: ts, unit: ms}
    fields:
      account: key
      ip: key
      country: string
      score: number
      is_robot: bool
views:
  account:
    event: login
    key: account
    windows: [10m, 1h]
    features:
      - count
      - mean(score)
services:
  takeover: [account.*]
"""


def changed(old: str, new: str, base: str = LOGIN) -> str:
    assert base.count(old) == 1, f"{old!r} must name one place"
    return base.replace(old, new)


def with_features(*features: str, view: str = "") -> Plan:
    """The plan of LOGIN with these features, and with `view` added to its only view."""
    listed = "".join(f"\n      - {feature}" for feature in features)
    source = changed("\n      - count\n      - mean(score)", listed)
    return compile_schema(changed("    key: account\n", f"    key: account\n{view}", source))


def refusal(source: str) -> SchemaError:
    with pytest.raises(SchemaError) as caught:
        compile_schema(source, path="login.yaml")
    return caught.value


# Plans


def test_the_card_fraud_schema_compiles_to_this_plan() -> None:
    plan = compile_schema(CARD_FRAUD)
    assert (plan.version, plan.name, plan.source) == (1, "card-fraud", CARD_FRAUD)
    assert plan.entities == (
        EntityPlan(entity_id=1, parts=("customer_id",), keep_keys=False),
        EntityPlan(entity_id=2, parts=("terminal_id",), keep_keys=False),
    )
    (event,) = plan.events
    assert (event.event_id, event.name, event.time) == (1, "transaction", TimePlan("tx_datetime", "iso"))
    assert event.fields == (
        FieldPlan("customer_id", Kind.TEXT, is_key=True),
        FieldPlan("terminal_id", Kind.TEXT, is_key=True),
        FieldPlan("tx_amount", Kind.NUMBER, is_key=False),
        FieldPlan("tx_fraud", Kind.NUMBER, is_key=False),
    )
    assert (event.lateness_ms, event.id_field, event.dedupe_ms) == (HOUR_MS, None, 0)
    assert event.touches == (TouchPlan(0, (0,)), TouchPlan(1, (1,)))
    assert plan.programs == ()

    customer, terminal = plan.views
    assert (customer.view_id, customer.name, customer.event, customer.entity) == (1, "customer", 0, 0)
    assert (customer.where, customer.offset_ms, customer.floor_ms) == (None, 0, None)
    assert customer.keep_ms == 30 * DAY_MS + HOUR_MS
    assert (customer.exact_events, customer.max_error, customer.max_entries) == (1000, 0.01, 4096)
    assert (customer.values, customer.filters) == ((2,), ())
    assert customer.columns == (ColumnPlan(value=0, filter=None, parts=Part.SUM | Part.EXTREMES),)
    assert (customer.has_lifetime, customer.lifetime_idle_ms) == (False, 400 * DAY_MS)
    assert (terminal.view_id, terminal.entity, terminal.offset_ms) == (2, 1, 7 * DAY_MS)
    assert terminal.keep_ms == 37 * DAY_MS + HOUR_MS
    assert (terminal.values, terminal.columns) == ((3,), customer.columns)

    assert [feature.name for feature in plan.features] == [
        "customer.count_1d",
        "customer.count_7d",
        "customer.count_30d",
        "customer.mean_tx_amount_1d",
        "customer.mean_tx_amount_7d",
        "customer.mean_tx_amount_30d",
        "terminal.count_1d",
        "terminal.count_7d",
        "terminal.count_30d",
        "terminal.mean_tx_fraud_1d",
        "terminal.mean_tx_fraud_7d",
        "terminal.mean_tx_fraud_30d",
    ]
    assert dataclasses.replace(plan.features[1], meaning=None) == FeaturePlan(
        name="customer.count_7d",
        view=0,
        aggregate=Aggregate.COUNT,
        column=None,
        window_ms=7 * DAY_MS,
        exclude_self=False,
    )
    assert plan.features[1].meaning is not None and len(plan.features[1].meaning) == 16
    assert (plan.features[9].view, plan.features[9].aggregate, plan.features[9].column) == (
        1,
        Aggregate.MEAN,
        0,
    )
    (service,) = plan.services
    assert (service.name, service.features) == ("fraud", tuple(range(12)))
    assert (plan.next_event_id, plan.next_entity_id, plan.next_view_id) == (2, 3, 3)


def test_the_example_in_the_documentation_works_as_it_stands() -> None:
    assert featurestore.schema.__doc__ is not None
    source = textwrap.dedent(featurestore.schema.__doc__.split("\n\n")[1])
    plan = compile_schema(source)
    assert plan.services[0].name == "fraud"
    commented = {
        "lateness: 1h",
        "exact_events: 1000",
        "max_error: 0.01",
        "max_entries: 4096",
        "lifetime_idle: 400d",
    }
    lines = [line for line in source.splitlines() if not any(default in line for default in commented)]
    assert len(lines) == len(source.splitlines()) - len(commented)
    defaults = compile_schema("\n".join(lines))
    assert (defaults.views, defaults.events) == (plan.views, plan.events)


def test_every_aggregate_keeps_what_its_value_and_bounds_need() -> None:
    needs = {
        "sum": Part.SUM,
        "mean": Part.SUM | Part.EXTREMES,
        "min": Part.EXTREMES,
        "max": Part.EXTREMES,
        "stddev": Part.MOMENTS | Part.EXTREMES,
        "first": Part.FIRST | Part.EXTREMES,
        "last": Part.LAST | Part.EXTREMES,
    }
    for aggregate, parts in needs.items():
        plan = with_features(f"{aggregate}(score)")
        assert plan.views[0].columns == (ColumnPlan(0, None, parts),)
        assert plan.features[0].name == f"account.{aggregate}_score_10m"
        assert plan.features[0].aggregate is Aggregate[aggregate.upper()]
    (column,) = with_features(*[f"{aggregate}(score)" for aggregate in needs]).views[0].columns
    assert column.parts == Part.SUM | Part.EXTREMES | Part.MOMENTS | Part.FIRST | Part.LAST


def test_plain_counts_and_times_need_no_column_and_filtered_ones_one_per_filter() -> None:
    plain = with_features("count", "since_first", "since_last")
    assert plain.views[0].columns == ()
    assert {feature.column for feature in plain.features} == {None}
    plan = with_features(
        '{name: robots, aggregate: count, where: "is_robot"}',
        '{name: since_robot, aggregate: since_last, where: "(is_robot)"}',
        '{name: since_first_low, aggregate: since_first, where: "score<1"}',
        '{name: low, aggregate: sum(score), where: "score < 1"}',
        "sum(score)",
    )
    view = plan.views[0]
    assert [plan.programs[index].source for index in view.filters] == ["is_robot", "score < 1"]
    assert view.columns == (
        ColumnPlan(value=None, filter=0, parts=Part.LAST),
        ColumnPlan(value=None, filter=1, parts=Part.FIRST),
        ColumnPlan(value=0, filter=None, parts=Part.SUM),
        ColumnPlan(value=0, filter=1, parts=Part.SUM),
    )
    assert [feature.column for feature in plan.features[::2]] == [0, 0, 1, 3, 2]
    (counted,) = with_features('{name: robots, aggregate: count, where: "is_robot"}').views[0].columns
    assert counted == ColumnPlan(value=None, filter=0, parts=Part(0))


def test_a_column_may_be_of_a_bool() -> None:
    plan = with_features("mean(is_robot)", "{name: low, aggregate: min(score), where: is_robot}")
    assert plan.views[0].values == (4, 3)  # is_robot before score: by name, wherever they are declared


def test_a_filter_is_compiled_once_for_all_views_of_an_event() -> None:
    second = "  other: {event: login, key: ip, where: score>5, windows: [1h], features: [count]}\nservices:"
    source = changed(
        "services:", second, changed("    key: account\n", "    key: account\n    where: score > 5\n")
    )
    plan = compile_schema(source)
    assert [view.where for view in plan.views] == [0, 0]
    assert [program.source for program in plan.programs] == ["score > 5"]


def test_a_feature_may_have_its_own_name_windows_and_self() -> None:
    plan = with_features(
        "since_last", "{name: burst, aggregate: count, windows: [30s, lifetime], self: exclude}", "count"
    )
    assert [(f.name, f.window_ms, f.exclude_self) for f in plan.features] == [
        ("account.since_last_10m", 600_000, True),
        ("account.since_last_1h", HOUR_MS, True),
        ("account.burst_30s", 30_000, True),
        ("account.burst_lifetime", 0, True),
        ("account.count_10m", 600_000, False),
        ("account.count_1h", HOUR_MS, False),
    ]
    assert plan.views[0].has_lifetime
    assert plan.views[0].keep_ms == 2 * HOUR_MS  # of the longest window; a lifetime keeps no log
    (included, _) = with_features("{aggregate: since_last, self: include}").features
    assert not included.exclude_self


def test_a_key_has_four_ways_to_be_written() -> None:
    def entity(key: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
        plan = compile_schema(changed("key: account\n", f"key: {key}\n"))
        (touch,) = plan.events[0].touches
        return plan.entities[0].parts, touch.fields

    assert entity("account") == (("account",), (0,))
    assert entity("[ip, account]") == (("account", "ip"), (0, 1))
    assert entity("{source: ip, account: account}") == (("account", "source"), (0, 1))
    assert entity("{a: ip, b: account}") == (("a", "b"), (1, 0))
    assert entity("[]") == ((), ())


def test_views_of_the_same_parts_share_an_entity_whatever_feeds_them() -> None:
    plan = compile_schema(
        changed("views:", "  signup: {time: at, fields: {addr: key, who: key}}\nviews:").replace(
            "services:",
            """\
  signups: {event: signup, key: {ip: addr}, windows: [1d], features: [count]}
  ips: {event: login, key: ip, windows: [1d], features: [count]}
  pairs: {event: login, key: [ip, account], windows: [1d], features: [count]}
  same_pairs: {event: login, key: [account, ip], windows: [1d], features: [count]}
services:""",
        )
    )
    assert [entity.parts for entity in plan.entities] == [("account",), ("ip",), ("account", "ip")]
    assert [view.entity for view in plan.views] == [0, 1, 1, 2, 2]
    assert plan.events[0].touches == (TouchPlan(0, (0,)), TouchPlan(1, (1,)), TouchPlan(2, (0, 1)))
    assert plan.events[1].touches == (TouchPlan(1, (0,)),)


def test_the_time_field_is_no_column_and_the_id_field_always_one() -> None:
    ids = "    ids: {id: login_id, dedupe: 2h}\n    fields:"
    event = compile_schema(changed("    fields:", ids)).events[0]
    assert (event.id_field, event.dedupe_ms) == (5, 2 * HOUR_MS)
    assert event.fields[5] == FieldPlan("login_id", Kind.TEXT, is_key=False)
    declared = compile_schema(
        changed("    fields:", "    ids: {id: ip}\n    lateness: 0s\n    fields:\n      ts: number")
    )
    assert [field.name for field in declared.events[0].fields] == [
        "account",
        "ip",
        "country",
        "score",
        "is_robot",
    ]
    assert (declared.events[0].id_field, declared.events[0].dedupe_ms) == (1, HOUR_MS)
    assert declared.events[0].lateness_ms == 0
    iso = compile_schema(
        changed("{field: ts, unit: ms}", "ts").replace("account: key\n", "account: key\n      ts: string\n")
    )
    assert iso.events[0].time == TimePlan("ts", "iso")


def test_max_entries_follows_exact_events() -> None:
    def entries(view: str) -> tuple[int, int]:
        plan = with_features("count", view=view)
        return plan.views[0].exact_events, plan.views[0].max_entries

    assert entries("    exact_events: 32\n") == (32, 4096)
    assert entries("    exact_events: 4000\n") == (4000, 8000)
    assert entries("    exact_events: 1048576\n") == (1 << 20, 1 << 21)
    assert entries("    exact_events: 4000\n    max_entries: 4000\n") == (4000, 4000)


def test_keep_keys_names_entities_by_their_parts() -> None:
    pair = "  pair: {event: login, key: [ip, account], windows: [1h], features: [count]}\nservices:"
    source = changed("services:", pair)
    assert [entity.keep_keys for entity in compile_schema(source).entities] == [False, False]
    kept = compile_schema(source + "keep_keys: [[ip, account]]\n")
    assert [entity.keep_keys for entity in kept.entities] == [False, True]
    kept = compile_schema(source + "keep_keys: [account, [account, ip]]\n")
    assert [entity.keep_keys for entity in kept.entities] == [True, True]


def test_a_service_has_its_own_order_and_need_not_exist() -> None:
    plan = compile_schema(changed("[account.*]", "[account.mean_score_1h, account.count_10m]"))
    assert plan.services[0].features == (3, 0)
    assert compile_schema(LOGIN[: LOGIN.index("services:")]).services == ()


def test_a_service_fingerprint_says_which_numbers_come_in_which_order() -> None:
    def fingerprint(source: str) -> str:
        return compile_schema(source).services[0].fingerprint

    base = fingerprint(LOGIN)
    assert len(base) == 16
    assert int(base, 16) >= 0
    assert (
        fingerprint(
            changed(
                "[account.*]",
                "[account.count_10m, account.count_1h, account.mean_score_10m, account.mean_score_1h]",
            )
        )
        == base
    )
    assert fingerprint(changed("    windows:", "    max_error: 0.1\n    windows:")) == base
    different = [
        changed(
            "[account.*]",
            "[account.count_1h, account.count_10m, account.mean_score_10m, account.mean_score_1h]",
        ),
        changed("[account.*]", "[account.count_10m]"),
        changed("key: account\n", "key: ip\n"),
        changed("    windows:", "    where: is_robot\n    windows:"),
        changed("    windows:", "    offset: 1h\n    windows:"),
        changed("- count", "- {aggregate: count, self: exclude}"),
        changed("- count", "- {name: count, aggregate: count, where: is_robot}"),
        changed("[10m, 1h]", "[600s, 1h]"),
        changed("- mean(score)", "- {name: mean_score, aggregate: max(score)}"),
        changed("- mean(score)", "- {name: mean_score, aggregate: mean(is_robot)}"),
    ]
    assert len({base, *map(fingerprint, different)}) == 1 + len(different)


def test_words_that_yaml_would_guess_at_are_names_here() -> None:
    source = LOGIN.replace("account", "no").replace("score", "on").replace("country", "null_")
    plan = compile_schema(source)
    assert plan.features[0].name == "no.count_10m"
    assert plan.features[2].name == "no.mean_on_10m"


def test_features_in_another_order_change_no_column() -> None:
    features = [
        "sum(score)",
        "count",
        "mean(is_robot)",
        "{name: low, aggregate: max(score), where: score < 1}",
    ]
    plan, reordered = with_features(*features), with_features(*features[::-1])
    assert plan.views[0] == reordered.views[0]


def test_a_plan_survives_json() -> None:
    for source in (CARD_FRAUD, textwrap.dedent(featurestore.schema.__doc__.split("\n\n")[1])):
        plan = compile_schema(source, now_ms=1)
        assert Plan.from_json(plan.to_json()) == plan
        assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()


# Mistakes


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        # The schema
        ("version: 1\n", "", 1, "the schema has no version; begin it with `version: 1`"),
        ("version: 1", "version: 2", 1, "version 2 of the schema format is not known; this one is 1"),
        ("version: 1", "version: '1'", 1, 'version must be a whole number, not the text "1"'),
        ("version: 1", "version: one", 1, "version must be a whole number, not one"),
        ("name: logins\n", "", 1, "the schema has no name"),
        (
            "name: logins",
            "name: log ins",
            2,
            "the schema's name must be up to 64 letters, digits and . _ -, not log ins",
        ),
        ("name: logins", "name:", 2, "the schema's name must be a word, not nothing"),
        ("services:", "service:", 20, "unknown setting service in the schema; did you mean services?"),
        ("name: logins", "name: logins\nname: again", 3, "name is given twice; it is already on line 2"),
        # Events
        ("    time: {field: ts, unit: ms}\n", "", 5, "event login has no time"),
        (
            "{field: ts, unit: ms}",
            "{field: ts, unit: min}",
            5,
            "unit of time of event login must be one of s, ms, us, ns, iso, not min",
        ),
        (
            "{field: ts, unit: ms}",
            "{unit: ms}",
            5,
            "time of event login has no field; write {field: ts, unit: ms}",
        ),
        (
            "{field: ts, unit: ms}",
            "{field: ts, units: ms}",
            5,
            "unknown setting units in time of event login; did you mean unit?",
        ),
        ("{field: ts, unit: ms}", "[ts]", 5, "time of event login must be a word, not a list"),
        ("{field: ts, unit: ms}", "2ts", 5, "time of event login must be up to 64 letters, digits and _"),
        (
            "{field: ts, unit: ms}",
            "score",
            5,
            "time field score of event login is declared number; where it is a number, write",
        ),
        (
            "{field: ts, unit: ms}",
            "{field: country, unit: s}",
            5,
            "time field country of event login is declared string; with unit s",
        ),
        ("  login:\n", "  Login:\n", 4, "event Login: a name is up to 64 lower-case letters, digits and _"),
        (
            "score: number",
            "score: float",
            10,
            "type of field score of event login must be one of key, string, number, bool",
        ),
        (
            "score: number",
            "sc-ore: number",
            10,
            "field sc-ore of event login: a name is up to 64 letters, digits and _",
        ),
        (
            "score: number",
            "score: [number]",
            10,
            "type of field score of event login must be a word, not a list",
        ),
        (
            "score: number",
            f"{'s' * 65}: number",
            10,
            f"field {'s' * 65} of event login: a name is up to 64 letters",
        ),
        (
            "    fields:",
            "    latenes: 1h\n    fields:",
            6,
            "unknown setting latenes in event login; did you mean lateness?",
        ),
        (
            "    fields:",
            "    lateness: 401d\n    fields:",
            6,
            "lateness of event login must be from 0s to 400d, not 401d",
        ),
        (
            "    fields:",
            "    lateness: 90\n    fields:",
            6,
            "lateness of event login must be a duration such as 30s, 10m, 1h or 7d, not 90",
        ),
        ("    fields:", "    ids: {dedupe: 1h}\n    fields:", 6, "ids of event login has no id"),
        ("    fields:", "    ids: ip\n    fields:", 6, "ids of event login must be a mapping, not ip"),
        (
            "    fields:",
            "    ids: {id: ip, dedupe: 0s}\n    fields:",
            6,
            "dedupe of event login must be from 1s to 400d",
        ),
        (
            "    fields:",
            "    ids: {id: ts}\n    fields:",
            6,
            "ids of event login: ts is the time field; an id needs its own",
        ),
        (
            "    fields:",
            "    ids: {id: score}\n    fields:",
            6,
            "score is declared number; an id is a key or a string",
        ),
        # Views
        ("    event: login\n", "", 14, "view account has no event"),
        ("event: login\n", "event: logn\n", 14, "unknown event logn in view account; did you mean login?"),
        ("    key: account\n", "", 14, "view account has no key"),
        ("key: account\n", "key:\n", 15, "key of view account is empty; one row for everything is `key: []`"),
        (
            "key: account\n",
            "key: acount\n",
            15,
            "unknown field acount in view account; did you mean account?",
        ),
        (
            "key: account\n",
            "key: country\n",
            15,
            "country is declared string; declare it `country: key` in event login",
        ),
        ("key: account\n", "key: ts\n", 15, "field ts in view account is the time of event login"),
        ("key: account\n", "key: [ip, ip]\n", 15, "key of view account names ip twice"),
        (
            "key: account\n",
            "key: {a-b: ip}\n",
            15,
            "key part a-b of view account: a name is up to 64 letters",
        ),
        ("key: account\n", "key: {a: [ip]}\n", 15, "key of view account must be a word, not a list"),
        ("  account:\n", "  account.x:\n", 13, "view account.x: a name is up to 64 lower-case letters"),
        (
            "    windows:",
            "    lateness: 1h\n    windows:",
            16,
            "lateness in view account: it is a setting of the event type",
        ),
        (
            "    windows:",
            "    wher: is_robot\n    windows:",
            16,
            "unknown setting wher in view account; did you mean where?",
        ),
        (
            "    windows:",
            "    where: skore > 1\n    windows:",
            16,
            "where of view account, column 1: unknown field skore; did you mean score?",
        ),
        ("    windows:", "    where: ts > 1\n    windows:", 16, "unknown field ts"),
        (
            "    windows:",
            "    where: [is_robot]\n    windows:",
            16,
            "where of view account must be a word, not a list",
        ),
        ("    windows:", "    offset: -1h\n    windows:", 16, "offset of view account must be a duration"),
        (
            "    windows:",
            "    exact_events: 0\n    windows:",
            16,
            "exact_events of view account must be from 1 to 1048576, not 0",
        ),
        (
            "    windows:",
            "    exact_events: 1e3\n    windows:",
            16,
            "exact_events of view account must be a whole number, not 1e3",
        ),
        (
            "    windows:",
            "    exact_events: 1048577\n    windows:",
            16,
            "must be from 1 to 1048576, not 1048577",
        ),
        (
            "    windows:",
            "    max_error: 0\n    windows:",
            16,
            "max_error of view account must be above 0 and at most 0.5, not 0",
        ),
        (
            "    windows:",
            "    max_error: 0.51\n    windows:",
            16,
            "must be above 0 and at most 0.5, not 0.51",
        ),
        (
            "    windows:",
            "    max_error: nan\n    windows:",
            16,
            "max_error of view account must be a number, not nan",
        ),
        (
            "    windows:",
            "    max_entries: 255\n    windows:",
            16,
            "max_entries of view account is 255, fewer than its 1000 exact_events",
        ),
        (
            "    windows:",
            "    lifetime_idle: 0s\n    windows:",
            16,
            "lifetime_idle of view account must be from 1s to 4000d",
        ),
        # Windows
        ("[10m, 1h]", "[]", 16, "windows of view account is empty; fill it or leave it out"),
        ("[10m, 1h]", "1h", 16, "windows of view account must be a list such as [10m, 1h, lifetime], not 1h"),
        (
            "[10m, 1h]",
            "[500ms]",
            16,
            "window of view account must be a duration such as 30s, 10m, 1h or 7d, not 500ms",
        ),
        ("[10m, 1h]", "[1.5h]", 16, "must be a duration such as 30s, 10m, 1h or 7d, not 1.5h"),
        ("[10m, 1h]", "[01h]", 16, "must be a duration such as 30s, 10m, 1h or 7d, not 01h"),
        ("[10m, 1h]", "[0s]", 16, "window of view account must be from 1s to 400d, not 0s"),
        ("[10m, 1h]", "[401d]", 16, "window of view account must be from 1s to 400d, not 401d"),
        ("[10m, 1h]", "[1h, 60m]", 16, "window 60m of view account is the same as 1h"),
        ("[10m, 1h]", "[1h, 1h]", 16, "window 1h of view account is given twice"),
        (
            "    windows: [10m, 1h]\n",
            "",
            17,
            "feature count of view account has no windows; give them to it or to the view",
        ),
        (
            "[10m, 1h]",
            "[lifetime]\n    offset: 1h",
            14,
            "view account has an offset, and lifetime features take none",
        ),
        # Features
        ("- count", "- cuont", 18, "unknown aggregate cuont in view account; did you mean count?"),
        ("- count", "- Count", 18, "unknown aggregate Count in view account; did you mean count?"),
        (
            "- count",
            "- count(score)",
            18,
            "count in view account is of events and takes no field; where score is present is",
        ),
        ("- count", "- mean", 18, "mean in view account needs a field: mean(field)"),
        ("- count", "- mean()", 18, "mean in view account needs a field: mean(field)"),
        (
            "- count",
            "- mean(score",
            18,
            "an aggregate in view account must be like count or mean(amount), not mean(score",
        ),
        ("- count", "- mean(skore)", 18, "unknown field skore in view account; did you mean score?"),
        ("- count", "- mean(country)", 18, "country is declared string; mean needs a number or a bool"),
        ("- count", "- last(account)", 18, "account is declared key; last needs a number or a bool"),
        ("- count", "- max(ts)", 18, "field ts in view account is the time of event login"),
        (
            "- count",
            "- count\n      - count",
            19,
            "feature account.count_10m is declared twice, first on line 18",
        ),
        (
            "- count",
            "- {name: mean_score, aggregate: count}",
            19,
            "feature account.mean_score_10m is declared twice, first on line 18",
        ),
        ("- count", "- {name: short, where: is_robot}", 18, "a feature of view account has no aggregate"),
        (
            "- count",
            "- {aggregate: count, where: is_robot}",
            18,
            "a feature of view account has a where but no name",
        ),
        (
            "- count",
            "- {name: Short, aggregate: count}",
            18,
            "feature Short of view account: a name is up to 64 lower-case",
        ),
        (
            "- count",
            "- {name: s, aggregate: count, where: scor > 1}",
            18,
            "where of feature s of view account, column 1: unknown field scor",
        ),
        (
            "- count",
            "- {aggregate: count, self: no}",
            18,
            "self of feature count must be one of include, exclude, not no",
        ),
        (
            "- count",
            "- {aggregate: count, windows: [60s, 1m]}",
            18,
            "window 1m of feature count of view account is the same as 60s",
        ),
        (
            "- count",
            "- {aggregate: count, window: 1h}",
            18,
            "unknown setting window in a feature of view account; did you mean windows?",
        ),
        ("- count", "- [count]", 18, "a feature of view account must be a mapping, not a list"),
        ("- count", "-", 18, "aggregate in view account must be a word, not nothing"),
        # Services
        ("[account.*]", "[]", 21, "service takeover is empty; fill it or leave it out"),
        (
            "[account.*]",
            "account.*",
            21,
            "service takeover must be a list such as [customer.*, terminal.count_1d], not account.*",
        ),
        (
            "[account.*]",
            "[account]",
            21,
            "account in service takeover is not view.feature or view.*; all of its features are account.*",
        ),
        ("[account.*]", "[acount.*]", 21, "unknown view acount in service takeover; did you mean account?"),
        (
            "[account.*]",
            "[account.cont_1h]",
            21,
            "unknown feature account.cont_1h in service takeover; did you mean account.count_1h?",
        ),
        (
            "[account.*]",
            "[account.count_1h, account.*]",
            21,
            "account.count_1h is twice in service takeover, first on line 21",
        ),
        ("  takeover:", "  take-over:", 21, "service take-over: a name is up to 64 lower-case letters"),
        (
            "[account.*]\n",
            "[account.*]\nkeep_keys: [acount]\n",
            22,
            "keep_keys: no view has the key acount; did you mean account?",
        ),
        (
            "[account.*]\n",
            "[account.*]\nkeep_keys: [account, account]\n",
            22,
            "keep_keys names account twice",
        ),
        # YAML
        ("name: logins", "name: &n logins", 2, "YAML anchors and aliases (n) are not used here"),
        ("name: logins", "name: *n", 2, "YAML anchors and aliases (n) are not used here"),
        (
            "name: logins",
            "name: !!python/name:os.system x",
            2,
            "YAML tags (tag:yaml.org,2002:python/name:os.system) are not used here",
        ),
        ("name: logins", "[a]: logins", 2, "the key of a mapping is a word, not a list"),
        ("name: logins", "name: [[[[[[[[[[[[[[[[[[x]]]]]]]]]]]]]]]]]]", 2, "nested more than 16 levels deep"),
        ("name: logins", "name: [logins", 3, "not valid YAML: "),
        ("name: logins", "name: a\x07b", 2, "not valid YAML: the character U+0007 is not allowed"),
        ("name: logins", 'name: "\\U00110000"', None, "not valid YAML: "),
        ("name: logins", "name: \ud800", 2, "the schema holds a lone surrogate"),
        (
            "[account.*]\n",
            "[account.*]\n---\nversion: 1\n",
            22,
            "a schema is one YAML document; leave out what follows `---`",
        ),
    ],
)
def test_a_mistake_has_its_line_and_what_was_meant(
    old: str, new: str, line: int | None, problem: str
) -> None:
    error = refusal(changed(old, new))
    at = "login.yaml: " if line is None else f"login.yaml:{line}: "
    assert any(each.startswith(at) and problem in each for each in str(error).splitlines()), str(error)


def test_the_words_of_the_message_are_those_of_the_issue() -> None:
    error = refusal(changed("mean(tx_amount)", "mean(tx_amnt)", CARD_FRAUD))
    assert str(error) == "login.yaml:12: unknown field tx_amnt in view customer; did you mean tx_amount?"
    assert (error.path, error.line) == ("login.yaml", 12)


@pytest.mark.parametrize("section", ["events", "views", "services"])
@pytest.mark.parametrize("nothing", ["", "{}", "~"])
def test_an_empty_section_is_refused(section: str, nothing: str) -> None:
    lines = LOGIN.splitlines(keepends=True)
    begin = lines.index(f"{section}:\n")
    end = next((n for n in range(begin + 1, len(lines)) if not lines[n].startswith(" ")), len(lines))
    source = "".join([*lines[:begin], f"{section}: {nothing}\n", *lines[end:]])
    assert f"login.yaml:{begin + 1}: section {section} is empty" in str(refusal(source))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("", "the schema is empty; it begins with `version: 1`"),
        ("# nothing but this\n", "the schema is empty; it begins with `version: 1`"),
        ("~", "a schema is a mapping that begins with `version: 1`, not nothing"),
        ("- version: 1\n", "a schema is a mapping that begins with `version: 1`, not a list"),
        ("version 1\n", "a schema is a mapping that begins with `version: 1`, not version 1"),
    ],
)
def test_what_is_no_mapping_is_no_schema(source: str, problem: str) -> None:
    assert str(refusal(source)) == f"login.yaml:1: {problem}"


def test_independent_mistakes_come_together_and_those_that_follow_from_them_do_not() -> None:
    source = changed("mean(score)", "mean(skore)\n      - mena(score)", changed("[account.*]", "[acount.*]"))
    source = changed("    windows:", "    max_eror: 1\n    windows:", source)
    assert str(refusal(source)).splitlines() == [
        "login.yaml:16: unknown setting max_eror in view account; did you mean max_error?",
        "login.yaml:20: unknown field skore in view account; did you mean score?",
        "login.yaml:21: unknown aggregate mena in view account; did you mean mean?",
    ]
    broken_event = changed("score: number", "score: numbr")
    assert len(str(refusal(broken_event)).splitlines()) == 1


def test_a_flood_of_mistakes_is_cut() -> None:
    for flood in (
        LOGIN + "".join(f"\nx{n}: 1" for n in range(50)),
        LOGIN + "".join(f"\n  s{n}: [account.x]" for n in range(50)),
        changed("- count", "- count" + "\n      - cuont" * 50),
    ):
        lines = str(refusal(flood)).splitlines()
        assert len(lines) == 21
        assert lines[-1] == "and more mistakes after these"


def test_a_part_of_a_key_is_one_field_within_an_event_type() -> None:
    second = "  other: {event: login, key: {account: ip}, windows: [1h], features: [count]}\nservices:"
    message = str(refusal(changed("services:", second)))
    assert (
        "key part account of view other is field ip, but in view account of the same event it is account"
        in message
    )


# Limits


def test_limits_of_a_view() -> None:
    with_features("count", view="    where: is_robot\n").to_json()
    seconds = [f"{n}s" for n in range(1, 34)]
    at_most = f"- {{aggregate: count, windows: [{', '.join(seconds[:32])}]}}"
    assert len(compile_schema(changed("- count\n      - mean(score)", at_most)).features) == 32
    beyond = f"- {{aggregate: count, windows: [{', '.join(seconds)}]}}"
    assert "view account has 33 windows, more than 32" in str(
        refusal(changed("- count\n      - mean(score)", beyond))
    )

    def filtered(n_filters: int, aggregates: list[str]) -> list[str]:
        return [
            f"{{name: f{n}_{index}, aggregate: {aggregate}, where: score > {n}}}"
            for n in range(n_filters)
            for index, aggregate in enumerate(aggregates)
        ]

    assert len(with_features(*filtered(48, ["count"])).views[0].filters) == 48
    with pytest.raises(SchemaError, match="49 different where of features, more than 48"):
        with_features(*filtered(49, ["count"]))
    assert len(with_features(*filtered(32, ["count", "sum(score)"])).views[0].columns) == 64
    with pytest.raises(SchemaError, match=r"66 columns \(pairs of field and where\), more than 64"):
        with_features(*filtered(33, ["count", "sum(score)"]))


def test_limits_of_sections() -> None:
    fields = "".join(f"      f{n}: number\n" for n in range(252))
    assert "more than 256 fields in event login: 257" in str(
        refusal(changed("      account: key\n", f"      account: key\n{fields}"))
    )
    parts = ", ".join(f"p{n}: ip" for n in range(17))
    assert "has more than 16 parts: 17" in str(refusal(changed("key: account\n", f"key: {{{parts}}}\n")))
    views = "".join(
        f"  v{n}: {{event: login, key: ip, windows: [1h], features: [count]}}\n" for n in range(256)
    )
    assert "more than 256 views: 257" in str(refusal(changed("services:", f"{views}services:")))
    full = views[: views.index("  v120:")]
    State(compile_schema(changed("services:", f"{full}services:")))
    beyond = views[: views.index("  v121:")]
    assert "more than 120 views, distinct or top fields and half-lives with the key [ip]" in str(
        refusal(changed("services:", f"{beyond}services:"))
    )
    services = "".join(f"  s{n}: [account.*]\n" for n in range(256))
    assert "more than 256 services: 257" in str(refusal(LOGIN + services))
    events = "".join(f"  e{n}: {{time: ts}}\n" for n in range(256))
    assert "more than 256 events: 257" in str(refusal(changed("views:", f"{events}views:")))


def test_a_vector_holds_at_most_4096_features() -> None:
    windows = ", ".join(f"{n}s" for n in range(1, 33))
    aggregates = ["sum", "mean", "min", "max"]
    features = [f"{aggregate}(f{n})" for n in range(32) for aggregate in aggregates]
    fields = "".join(f"      f{n}: number\n" for n in range(32))
    source = changed("      account: key\n", f"      account: key\n{fields}", changed("10m, 1h", windows))
    full = changed("- count\n      - mean(score)", "\n      - ".join(["", *features])[7:], source)
    plan = compile_schema(full)
    assert len(plan.features) == len(plan.services[0].features) == 4096
    second = "  other: {event: login, key: ip, windows: [1h], features: [count]}\nservices:"
    assert "service takeover has more than 4096 features" in str(
        refusal(changed("services:", second, full).replace("[account.*]", "[account.*, other.*]"))
    )
    assert "more than 4096 features in view account" in str(
        refusal(changed("- sum(f0)", "- count\n      - sum(f0)", full))
    )


# Files


def test_a_file_is_loaded_with_its_name_in_messages(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(CARD_FRAUD, encoding="utf-8")
    assert load(path) == compile_schema(CARD_FRAUD)
    path.write_text("\ufeff" + CARD_FRAUD, encoding="utf-8")
    assert load(str(path)) == compile_schema(CARD_FRAUD)
    path.write_text(changed("offset", "ofset", CARD_FRAUD), encoding="utf-8")
    with pytest.raises(SchemaError) as caught:
        load(path)
    assert str(caught.value) == f"{path}:17: unknown setting ofset in view terminal; did you mean offset?"


def test_a_file_that_cannot_be_read_is_a_schema_error(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="cannot be read: No such file or directory") as caught:
        load(tmp_path / "missing.yaml")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(SchemaError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_a_file_that_is_not_utf8_or_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"version: 1\nname: caf\xe9\n")
    with pytest.raises(SchemaError) as caught:
        load(path)
    assert str(caught.value) == f"{path}:2: the schema is not UTF-8: byte 0xe9; save it as UTF-8"
    path.write_bytes(b"#" * (256 * 1024 + 1))
    with pytest.raises(SchemaError, match="larger than 256 KiB"):
        load(path)
    with pytest.raises(SchemaError, match="larger than 256 KiB"):
        compile_schema("é" * (128 * 1024 + 1))


def test_an_alias_bomb_and_a_nesting_bomb_are_refused_at_once() -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"a{n}: &a{n} [*a, *a]\n" for n in range(1000))
    assert "line" not in str(refusal(bomb))
    assert refusal(bomb).line == 1
    assert "nested more than 16 levels deep" in str(refusal("[" * 200_000))
    assert "nested more than 16 levels deep" in str(refusal("{a: " * 50_000))


def refused_or_sound(source: str) -> None:
    try:
        plan = compile_schema(source, path="f.yaml", now_ms=0)
    except SchemaError as error:
        assert str(error).startswith("f.yaml:")
        assert len(str(error)) < 10_000
        str(error).encode()
    else:
        assert Plan.from_json(plan.to_json()) == plan
        plan.to_json().encode()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_schema_is_refused_or_sound(data: st.DataObject) -> None:
    words = st.sampled_from(
        ["count", "[]", "{}", ":", "- ", "1h", "&a ", "*a", "!!x ", '"', "\n", "lifetime", "~", "a.b", "("]
    )
    source = data.draw(st.sampled_from([CARD_FRAUD, LOGIN]))
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(source)))
        end = min(len(source), begin + data.draw(st.integers(0, 12)))
        source = source[:begin] + data.draw(words | st.text(max_size=4)) + source[end:]
    refused_or_sound(source)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda content: content.decode("latin-1")))
def test_any_text_is_refused_or_sound(source: str) -> None:
    refused_or_sound(source)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_in_a_file_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with pytest.raises(SchemaError):
        load(path)
