"""What a schema does not declare any more is kept for its grace, and taken back whole by the schema before.

The oracle of a change that is undone is a store that never changed: the same digest, and the same values of
every vector that is still served. The schemas and their readings are those of reference/schema_pairs.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import schema_pairs
from reference.pairs_store import START_MS, read, send
from storage import store_retired

from featurestore.columns import event_columns, text_column
from featurestore.core.batch import EventBatch
from featurestore.core.plan import CompiledPlan
from featurestore.engine import Engine
from featurestore.errors import ConfigError, SchemaError
from featurestore.plan import Plan
from featurestore.schema import compile_schema
from featurestore.schema.changes import changes_of
from featurestore.schema.retired import without_the_past

GOLDEN = Path(__file__).parents[1] / "golden"
ALL = ("drop", "reset", "narrow", "order", "erase", "clock")
HOUR_MS = 3_600_000
SCHEMA = """\
version: 1
name: retired
events:
  play: {time: {field: at, unit: ms}, fields: {account: key, ip: key, ms: number}}
  login: {time: {field: at, unit: ms}, fields: {account: key, ok: number}}
views:
  plays: {event: play, key: account, windows: [1m, 1h], features: [count, sum(ms)]}
  ips: {event: play, key: ip, windows: [1h], features: [count, distinct(account)]}
  logins: {event: login, key: account, windows: [1h], features: [count]}
derived:
  plays.mean: plays.sum_ms_1h / plays.count_1h
services:
  all: [plays.*, ips.*, logins.*]
  some: [plays.count_1m]
"""


def without(schema: str, *starts: str) -> str:
    """The text without the lines that begin so."""
    lines = [line for line in schema.splitlines() if not line.strip().startswith(starts)]
    return "\n".join(lines) + "\n"


SMALL = without(SCHEMA, "ips:", "logins:", "login:", "plays.mean:", "derived:", "some:").replace(
    "[plays.*, ips.*, logins.*]", "[plays.count_1m]"
)


def names_in(plan: Plan, part: str) -> list[Any]:
    return [each.parts if part == "entities" else each.name for each in getattr(plan, part)]


def dropped(schema: schema_pairs.Schema, rng: random.Random) -> schema_pairs.Schema:
    """Less of it: views, windows, features, services, derived features, an event type with its views."""
    after = copy.deepcopy(schema)
    for _ in range(rng.randint(1, 4)):
        what = rng.choice(("view", "window", "feature", "service", "derived", "event"))
        names = [name for name in after["views"] if name != "base"]
        view = after["views"][rng.choice(names)] if names else None
        if what == "view" and names:
            del after["views"][rng.choice(names)]
        elif what == "window" and view and len(view["windows"]) > 1:
            view["windows"].remove(rng.choice(view["windows"]))
        elif what == "feature" and view and len(view["features"]) > 1:
            del view["features"][rng.choice(list(view["features"]))]
        elif what == "service" and len(after["services"]) > 1:
            del after["services"][rng.choice(list(after["services"]))]
        elif what == "derived" and after["derived"]:
            del after["derived"][rng.choice(list(after["derived"]))]
        elif what == "event" and "login" in after["events"]:
            del after["events"]["login"]
            views = after["views"].items()
            after["views"] = {name: view for name, view in views if view["event"] != "login"}
    schema_pairs.mend(after)
    return after


@pytest.mark.parametrize("seed", range(20))
def test_who_undoes_it_within_the_grace_has_a_store_that_never_changed(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    schema = schema_pairs.made(rng)
    for event in schema["events"].values():
        event["time"] = ["ts", "ms"]
    text, names = schema_pairs.written(schema), list(schema["events"])
    turned = copy.deepcopy(schema)
    turned["services"]["another"] = ["base.count_1h"]
    rngs = (random.Random(-seed), random.Random(-seed))
    Engine.open(tmp_path / "changed", schema=text, clock="merged", history="none", n_shards=2).close()
    shutil.copytree(tmp_path / "changed", tmp_path / "twin")
    with Engine.open(tmp_path / "changed") as changed, Engine.open(tmp_path / "twin") as twin:
        applied = 0
        less = schema
        for _ in range(rng.choice((1, 3))):
            for engine, each in zip((changed, twin), rngs, strict=True):
                send(engine, each, 40, names)
            less = dropped(less, rng)
            version = changed.state.plan.version
            plan = changed.apply_schema(schema_pairs.written(less), allow=ALL, grace_ms=HOUR_MS)
            applied += plan.version != version
            assert changed.apply_schema(schema_pairs.written(less), grace_ms=0) is changed.state.plan
            for engine, each in zip((changed, twin), rngs, strict=True):
                send(engine, each, 40, names)
            by_twin = {
                (each.name, each.fingerprint): read(twin, number)
                for number, each in enumerate(twin.state.plan.served)
            }
            served = {(each.name, each.fingerprint): n for n, each in enumerate(plan.served)}
            assert by_twin.keys() <= served.keys()
            for vector, (values, statuses) in by_twin.items():
                found = read(changed, served[vector])
                np.testing.assert_array_equal(found[0], values)
                np.testing.assert_array_equal(found[1], statuses)
        if applied:
            plan = changed.apply_schema(text, allow=ALL, grace_ms=0)
            applied += 1
            assert plan.declared == plan
        for number in range(applied):  # each takes a position
            twin.apply_schema(schema_pairs.written((turned, schema)[number % 2]), allow=ALL)
        assert changed.state.plan.views == twin.state.plan.views
        assert changed.state.digest() == twin.state.digest()
    with Engine.open(tmp_path / "changed") as changed:  # from the journal, with the same decisions
        assert changed.state.digest() == twin.state.digest()


@pytest.mark.parametrize("seed", range(10))
def test_whatever_follows_whatever_the_plan_is_whole(seed: int) -> None:
    """Over many edits with graces of all lengths: what is declared is what a store without any grace has, the
    plan can be served and written, and once all is over nothing is left."""
    rng = random.Random(seed)
    schema = schema_pairs.made(rng)
    plan = compile_schema(schema_pairs.written(schema))
    compiled, now_ms, retired = CompiledPlan(plan, None), START_MS, 0
    for _ in range(40):
        now_ms += rng.randrange(HOUR_MS)
        if plan.retired_ms is not None and plan.retired_ms <= now_ms and rng.random() < 0.7:
            plan = without_the_past(plan, now_ms)
            compiled = CompiledPlan(plan, compiled)
        after = schema_pairs.edited(schema, rng)
        grace_ms = rng.choice((0, HOUR_MS, 5 * HOUR_MS))
        text = schema_pairs.written(after)
        times = {"now_ms": now_ms, "server_ms": now_ms, "until_ms": now_ms + grace_ms}
        try:
            made = compile_schema(text, previous=plan, **times)
        except SchemaError:
            continue
        schema, before, plan = after, plan, made
        compiled = CompiledPlan(plan, compiled)
        retired += plan.retired_ms is not None
        assert Plan.from_json(plan.to_json()) == plan
        assert compile_schema(text, previous=plan, **{**times, "until_ms": now_ms}) is plan
        fresh = compile_schema(text)
        for part in ("all_features", "events", "entities"):
            assert names_in(plan.declared, part) == names_in(fresh, part)
        assert {each.fingerprint for each in plan.services} == {each.fingerprint for each in fresh.services}
        for service in plan.services:
            assert plan.vector(service.name) is not None
        if grace_ms and made is not before:  # what was served is, unless it cannot be fed any more
            served = {(each.name, each.fingerprint) for each in plan.served}
            is_fed = not any(change.kind.name in ("RESET", "CLOCK") for change in changes_of(before, plan))
            assert not is_fed or all((each.name, each.fingerprint) in served for each in before.services)
    assert retired > 5
    last = without_the_past(plan, now_ms + 40 * 24 * HOUR_MS)
    assert last.retired_ms is None
    assert last == replace(plan.declared, version=plan.version + 1)


def opened(path: Path, schema: str) -> Engine:
    return Engine.open(path, schema=schema, clock="merged", history="none", n_shards=2)


def test_what_is_not_declared_is_counted_and_served_to_who_has_its_fingerprint(tmp_path: Path) -> None:
    with opened(tmp_path, SCHEMA) as engine:
        plan = engine.state.plan
        all_, some = (int(service.fingerprint, 16) for service in plan.services)
        small = engine.apply_schema(SMALL, allow=ALL, grace_ms=HOUR_MS)
        assert [event.name for event in small.declared.events] == ["play"]
        assert [view.name for view in small.declared.views] == ["plays"]
        assert small.vector("some") is None, "nobody is given what is gone without asking for it"
        for name, fields in {"play": {"ip": ["x"], "ms": [5.0]}, "login": {"ok": [1.0]}}.items():
            index = next(index for index, event in enumerate(small.events) if event.name == name)
            columns = event_columns(small.events[index], {"at": [START_MS], "account": ["a"], **fields})
            engine.observe(EventBatch(small.events[index], index, *columns), producer=b"", sequence=0)
        number = small.vector("all", all_)
        assert number is not None
        names = [small.all_features[index].name for index in small.served[number].features]
        values = dict(zip(names, read(engine, number)[0], strict=True))
        assert values["logins.count_1h"] == values["ips.distinct_account_1h"] == 1
        assert values["plays.sum_ms_1h"] == 5
        assert read(engine, small.vector("some", some))[0].tolist() == [1]


def test_after_the_grace_it_is_gone_as_if_there_had_been_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path, SCHEMA) as engine:
        all_ = int(engine.state.plan.services[0].fingerprint, 16)
        plan = engine.apply_schema(SMALL, allow=ALL, grace_ms=300)
        assert not engine.let_go()
        time.sleep(0.35)
        with caplog.at_level("INFO"):
            assert engine.let_go()
        assert "features that were kept for their grace are gone" in caplog.text
        assert not engine.let_go()
        left = engine.state.plan
        assert left.version == plan.version + 1
        assert left == replace(plan.declared, version=plan.version + 1, pins=left.pins)
        assert left.vector("all", all_) is None and left.vector("some") is None
        assert [pin.service for pin in left.pins] == ["all"], "remembered, to say which feature is gone"
        back = engine.apply_schema(SCHEMA)
        assert {view.view_id for view in back.views} - {view.view_id for view in plan.views}
    with Engine.open(tmp_path) as engine:
        assert engine.state.plan == back


def test_upkeep_lets_it_go(tmp_path: Path) -> None:
    with opened(tmp_path, SCHEMA) as engine:
        engine.start_upkeep()
        engine.apply_schema(SMALL, allow=ALL, grace_ms=100)
        until = time.monotonic() + 30
        while engine.state.plan.retired_ms is not None:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert not engine.failed


def test_what_is_back_says_so(tmp_path: Path) -> None:
    with opened(tmp_path, SCHEMA) as engine:
        before = engine.apply_schema(SMALL, allow=ALL, grace_ms=HOUR_MS)
        after = engine.apply_schema(SCHEMA, dry_run=True)
        found = {each.subject: each.after for each in changes_of(before, after)}
        assert found["view ips"] == found["view logins"] == "as it was"


def test_what_cannot_be_fed_goes_at_once() -> None:
    """A field of another type, and another key by the same parts."""
    plan = compile_schema(SCHEMA)
    times = {"now_ms": START_MS, "server_ms": START_MS, "until_ms": START_MS + HOUR_MS}
    other_type = SMALL.replace("ip: key,", "ip: string,")
    after = compile_schema(other_type, previous=plan, **times)
    assert "ips" not in {view.name for view in after.views}
    assert "logins" in {view.name for view in after.views}
    others = "  others: {event: play, key: {ip: account}, windows: [1h], features: [count]}"
    other_key = without(SCHEMA, "ips:").replace("ips.*, ", "").replace("views:", f"views:\n{others}")
    after = compile_schema(other_key, previous=plan, **times)
    assert "ips" not in {view.name for view in after.views}


def test_a_field_that_is_gone_is_taken_while_what_reads_it_is_kept() -> None:
    less = without(SCHEMA, "ips:").replace("ips.*, ", "").replace(", ip: key", "")
    times = {"now_ms": START_MS, "server_ms": START_MS, "until_ms": START_MS + HOUR_MS}
    plan = compile_schema(less, previous=compile_schema(SCHEMA), **times)
    event = plan.events[0]
    assert [field.name for field in event.fields] == ["account", "ms", "ip"]
    assert [field.name for field in plan.declared.events[0].fields] == ["account", "ms"]
    columns = {"at": [START_MS], "account": ["a"], "ms": [1.0]}
    event_columns(event, {**columns, "other": ["x"]})  # who sends all that is declared may send more


@pytest.mark.parametrize("grace_ms", [-1, 31 * 24 * HOUR_MS])
def test_a_grace_out_of_range_is_refused(tmp_path: Path, grace_ms: int) -> None:
    with opened(tmp_path, SCHEMA) as engine, pytest.raises(ConfigError, match="from 0 to 30 days"):
        engine.apply_schema(SMALL, allow=ALL, grace_ms=grace_ms)


class TestFormats:
    """The plan of a store says what is retired, and until when."""

    def test_the_golden_store_serves_what_was_let_go_until_its_time(self, tmp_path: Path) -> None:
        path = tmp_path / "store"
        shutil.copytree(GOLDEN / "store_retired_v1", path)
        all_, some = (int(each.fingerprint, 16) for each in compile_schema(store_retired.SCHEMA).services)
        with Engine.open(path) as engine:
            plan = engine.state.plan
            assert [view.name for view in plan.views] == ["plays", "ips"]
            keys = {"account": text_column(["anna"])[0], "ip": text_column(["::1"])[0]}
            found = {}
            for name, fingerprint in (("all", all_), ("some", some)):
                number = plan.vector(name, fingerprint)
                assert number is not None
                at = np.array([store_retired.START_MS + 3], np.int64)
                found[name] = engine.read(number, keys, 1, as_of=at).values[0].tolist()
            assert found == {"all": [3.0, 3.0], "some": [2.0]}
            ends_ms = plan.retired_ms
            assert ends_ms is not None
            assert engine.let_go() == (ends_ms <= time.time() * 1000)

    def test_an_independent_reader_finds_it_in_the_journal(self) -> None:
        segments = sorted((GOLDEN / "store_retired_v1" / "journal").iterdir())
        data = b"".join(segment.read_bytes() for segment in segments)
        plans = [
            json.JSONDecoder().raw_decode(data[at:].decode("utf-8", "replace"))[0]
            for at in range(len(data))
            if data.startswith(b'{"entities"', at) or data.startswith(b'{"derived"', at)
        ]
        first, newest = plans[0], plans[-1]
        assert "retired_ms" not in json.dumps(first) and "declared_keep_ms" not in json.dumps(first)
        plays, ips = newest["views"]
        assert (plays["keep_ms"], plays["declared_keep_ms"]) == (3_660_000, 3_610_000)
        ends_ms = ips["retired_ms"]
        marked = {
            (kind, each.get("name") or each.get("service") or tuple(each["parts"]))
            for kind in ("events", "entities", "views", "features", "pins")
            for each in newest[kind]
            if each.get("retired_ms") == ends_ms
        }
        assert marked == {
            ("entities", ("ip",)),
            ("views", "ips"),
            ("features", "ips.long_10s"),
            ("features", "plays.count_1m"),
            ("features", "plays.sum_ms_1m"),
            ("pins", "some"),
        }
        fields = newest["events"][0]["fields"]
        assert [(each["name"], each.get("retired_ms")) for each in fields] == [
            ("account", None),
            ("ms", None),
            ("ip", ends_ms),
        ]
