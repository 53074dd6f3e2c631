"""What one schema changes of another, by kind and name, against a judge that knows no plan."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from reference import schema_pairs

from featurestore.errors import ConfigError, ConsentError, SchemaError
from featurestore.plan import Plan
from featurestore.schema import compile_schema
from featurestore.schema.changes import (
    Change,
    ChangeKind,
    changes_of,
    kinds_of,
    missing_consent,
    require_consent,
)

N_PAIRS = 400


def test_every_change_is_named_with_its_kind_and_nothing_else_is() -> None:
    seen: Counter[str] = Counter()
    for seed in range(N_PAIRS):
        rng = random.Random(seed)
        before = schema_pairs.made(rng)
        after = schema_pairs.edited(before, rng)
        first = compile_schema(schema_pairs.written(before))
        refused = schema_pairs.refused(before, after)
        if refused:
            with pytest.raises(SchemaError) as caught:
                compile_schema(schema_pairs.written(after), previous=first)
            mistakes = str(caught.value).splitlines()
            named = {line.split(" has state")[0].split("view ")[1].split(".")[0] for line in mistakes}
            assert named == refused, (seed, schema_pairs.written(before), schema_pairs.written(after))
            seen["refused"] += 1
            continue
        plan = compile_schema(schema_pairs.written(after), previous=first)
        found = changes_of(first, plan)
        pairs = [(each.kind.name, each.subject) for each in found]
        wanted = schema_pairs.judged(before, after)
        assert set(pairs) == wanted, (seed, schema_pairs.written(before), schema_pairs.written(after))
        assert len(pairs) == len(set(pairs)), "each is named once"
        assert bool(found) == (plan is not first)
        # The same after it was stored, and of what was stored.
        assert changes_of(Plan.from_json(first.to_json()), Plan.from_json(plan.to_json())) == found
        seen.update({kind for kind, _ in pairs})
    assert set(seen) == {"refused", *(kind.name for kind in ChangeKind)}
    assert min(seen.values()) > N_PAIRS // 100, seen


BASE = """\
version: 1
name: changes
events:
  play: {time: ts, fields: {ip: key, track: key, ms: number}}
views:
  ip: {event: play, key: ip, windows: [1h, 1d], features: [count, sum(ms), "top(track, 5)"]}
  pair: {event: play, key: [ip, track], windows: [1h], features: [count], store: sketch}
derived:
  ip.rest: {value: ip.count_1h / ip.count_1d, else: 0}
services:
  abuse: [ip.*]
"""


def changes(*edits: tuple[str, str]) -> list[Change]:
    text = BASE
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    first = compile_schema(BASE)
    return list(changes_of(first, compile_schema(text, previous=first)))


def lines(*edits: tuple[str, str]) -> list[str]:
    return [" ".join(each.line.split()) for each in changes(*edits)]


def test_a_reorder_inside_a_view_is_one_of_the_service_that_lists_it_by_a_star() -> None:
    assert lines(("[count, sum(ms),", "[sum(ms), count,")) == [
        "> service abuse: order ORDER was ip.count_1h at 0, is at 2"
    ]


def test_a_feature_that_comes_before_others_moves_them_and_one_behind_them_does_not() -> None:
    front, behind = ("[count, sum(ms),", "[distinct(track), count, sum(ms),"), ("[ip.*]", "[ip.*, pair.*]")
    assert lines(front)[-1] == "> service abuse: order ORDER was ip.count_1h at 0, is at 2"
    assert lines(behind) == ["+ service abuse: members FREE pair.count_1h"]


def test_a_structure_that_starts_empty_under_the_same_names_is_reset() -> None:
    assert {(each.kind.name, each.subject) for each in changes(("top(track, 5)", "top(track, 6)"))} == {
        ("RESET", f"ip.top_track_{part}_{window}") for window in ("1h", "1d") for part in ("share", "entropy")
    }
    assert [(each.kind.name, each.subject) for each in changes((", store: sketch", ""))] == [
        ("RESET", "pair.count_1h")
    ]


def test_a_formula_has_no_state() -> None:
    assert lines(("else: 0", "else: 1")) == [
        "~ ip.rest FREE was ip.count_1h / ip.count_1d, else 0, is ip.count_1h / ip.count_1d, else 1"
    ]


def test_a_sum_of_a_live_view_is_a_second_view_beside_it() -> None:
    with pytest.raises(SchemaError, match="declare a second view of this key beside it"):
        changes(("sum(ms),", "sum(ms), stddev(ms),"))


def test_consent_is_by_kind_and_the_refusal_lists_what_it_is_for() -> None:
    found = changes(("windows: [1h, 1d]", "windows: [1h]"), ("ip.count_1h / ip.count_1d", "ip.count_1h * 2"))
    assert missing_consent(found) == [ChangeKind.DROP, ChangeKind.NARROW, ChangeKind.ORDER]
    assert missing_consent(found, kinds_of(["drop", "order"])) == [ChangeKind.NARROW]
    require_consent(found, kinds_of(["drop", "order", "narrow"]), "a.yaml")
    require_consent(changes(("else: 0", "else: 1")), [], None)
    with pytest.raises(ConsentError) as caught:
        require_consent(found, kinds_of(["drop"]), "a.yaml")
    words = str(caught.value)
    assert words.startswith("a.yaml: ")
    assert "~ view ip: windows" in words and "> service abuse: order" in words and "DROP" not in words
    assert "--allow narrow,order" in words


@pytest.mark.parametrize("word", ["free", "DROP", "", "all"])
def test_what_is_no_kind_of_consent_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="it is of drop, reset, narrow, order, erase, clock"):
        kinds_of([word])
