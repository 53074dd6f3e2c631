"""The `derived` section: what it compiles to, what a service makes of it, what may change, how it says no."""

import json
from dataclasses import replace

import pytest

from featurestore.core.state import State
from featurestore.errors import SchemaError
from featurestore.plan import Plan
from featurestore.schema import compile_schema

LOGIN = """\
version: 1
name: logins
events:
  login:
    time: {field: ts, unit: ms}
    fields: {account: key, ip: key, failed: bool}
views:
  ip:
    event: login
    key: ip
    windows: [10m, 1h]
    features: [count, sum(failed)]
  account:
    event: login
    key: account
    windows: [1h]
    features: [count]
derived:
  ip.failed_share_1h: {value: ip.sum_failed_1h / ip.count_1h, else: 0}
  risk.burst: (ip.count_10m+0)*6/(ip.count_1h)
  risk.both: max(risk.burst, ip.failed_share_1h)
services:
  takeover: [risk.both, account.count_1h]
  everything: [ip.*, risk.*]
"""
FEATURES = ["ip.count_10m", "ip.count_1h", "ip.sum_failed_10m", "ip.sum_failed_1h", "account.count_1h"]
DERIVED = ["ip.failed_share_1h", "risk.burst", "risk.both"]


def changed(old: str, new: str, base: str = LOGIN) -> str:
    assert base.count(old) == 1, f"{old!r} must name one place"
    return base.replace(old, new)


VIEWS, _, _ = LOGIN.partition("derived:\n")


def with_derived(*lines: str, services: str = "s: [ip.*]") -> str:
    """The views of LOGIN and these derived features, from line 19 on."""
    derived = "".join(f"  {line}\n" for line in lines)
    return f"{VIEWS}derived:\n{derived}services:\n  {services}\n"


def refusal(source: str) -> str:
    with pytest.raises(SchemaError) as caught:
        compile_schema(source, path="login.yaml")
    return str(caught.value)


def names(plan: Plan, indexes: tuple[int, ...]) -> list[str]:
    return [plan.all_features[index].name for index in indexes]


def fingerprints(source: str) -> dict[str, str]:
    return {service.name: service.fingerprint for service in compile_schema(source).services}


def test_a_derived_feature_compiles_to_a_program_over_its_operands() -> None:
    plan = compile_schema(LOGIN)
    assert [feature.name for feature in plan.features] == FEATURES
    share, burst, both = plan.derived
    assert (share.name, share.source, share.by_zero) == (DERIVED[0], "ip.sum_failed_1h / ip.count_1h", 0.0)
    assert names(plan, share.operands) == ["ip.sum_failed_1h", "ip.count_1h"]
    assert [(op.code, op.field) for op in share.ops] == [("load_number", 0), ("load_number", 1), ("div", -1)]
    assert (burst.source, burst.by_zero) == ("(ip.count_10m + 0) * 6 / ip.count_1h", None)
    assert (both.source, names(plan, both.operands)) == (
        "max(risk.burst, ip.failed_share_1h)",
        ["risk.burst", "ip.failed_share_1h"],
    )


def test_operands_come_first_in_the_plan_whatever_the_order_of_the_file() -> None:
    lines = [f"a.x{i}: a.x{i + 1} + 1" for i in range(200)] + ["a.x200: ip.count_1h"]
    plan = compile_schema(with_derived(*lines))
    for position, feature in enumerate(plan.derived):
        assert all(operand < len(plan.features) + position for operand in feature.operands)
    assert compile_schema(with_derived(*lines[::-1])).derived == plan.derived


def test_a_star_takes_the_derived_features_of_its_name_after_those_of_the_view() -> None:
    plan = compile_schema(LOGIN)
    takeover, everything = plan.services
    assert names(plan, takeover.features) == ["risk.both", "account.count_1h"]
    assert names(plan, everything.features) == [*FEATURES[:4], *DERIVED]


def test_a_service_needs_what_its_derived_features_need_once_and_after_its_own() -> None:
    plan = compile_schema(LOGIN)
    needed = names(plan, plan.needed_for(plan.services[0].features))
    assert needed[:2] == ["risk.both", "account.count_1h"]
    assert sorted(needed[2:]) == [
        "ip.count_10m",
        "ip.count_1h",
        "ip.failed_share_1h",
        "ip.sum_failed_1h",
        "risk.burst",
    ]
    assert plan.needed_for(()) == ()


# Change


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("*6/", "*7/"),
        ("else: 0}", "else: 1}"),
        ("{value: ip.sum_failed_1h / ip.count_1h, else: 0}", "ip.sum_failed_1h / ip.count_1h"),
        ("sum_failed_1h / ip.count_1h", "sum_failed_1h / ip.count_10m"),
        # What an operand means is part of the meaning, however far down.
        ("    features: [count, sum(failed)]", "    where: failed\n    features: [count, sum(failed)]"),
    ],
)
def test_a_changed_definition_changes_the_fingerprint_of_every_service_that_lists_it(
    old: str, new: str
) -> None:
    before, after = fingerprints(LOGIN), fingerprints(changed(old, new))
    assert before["takeover"] != after["takeover"]
    assert before["everything"] != after["everything"]


def test_what_does_not_change_the_meaning_changes_no_fingerprint() -> None:
    assert fingerprints(
        changed("(ip.count_10m+0)*6/(ip.count_1h)", "((ip.count_10m + 0) * 6) / ip.count_1h")
    ) == (fingerprints(LOGIN))
    unused = changed("services:", "  other.one: ip.count_1h * 2\nservices:")
    assert fingerprints(unused) == fingerprints(LOGIN)


def test_a_definition_may_change_where_there_is_state_and_nothing_starts_anew() -> None:
    first = compile_schema(LOGIN, now_ms=1_000)
    second = compile_schema(changed("*6/", "*7/"), previous=first, now_ms=9_000)
    assert second.version == 2
    assert (second.features, second.views) == (first.features, first.views)
    assert second.derived[1].source == "(ip.count_10m + 0) * 7 / ip.count_1h"
    without = changed("  risk.both: max(risk.burst, ip.failed_share_1h)\n", "", changed("[risk.both, ", "["))
    third = compile_schema(without, previous=second, now_ms=9_000)
    assert [feature.name for feature in third.derived] == DERIVED[:2]
    assert compile_schema(LOGIN + "# a comment\n", previous=first, now_ms=9_000) is first


def test_a_plan_survives_json_and_one_from_before_derived_features_still_loads() -> None:
    plan = compile_schema(LOGIN)
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["derived"][0]["by_zero"] == 0.0
    plain = compile_schema(f"{VIEWS}services:\n  s: [ip.*]\n")
    assert "derived" not in json.loads(
        plain.to_json()
    )  # byte for byte what was written before there were any
    assert Plan.from_json(plain.to_json()) == plain
    assert plain.derived == ()


# Mistakes


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a.b: ip.cuont_1h / 2", "unknown feature ip.cuont_1h; did you mean ip.count_1h?"),
        ("a.b: count_1h / 2", "unknown feature count_1h; did you mean ip.count_1h?"),
        ("a.b: other", "unknown feature other; known: a.b, account.count_1h"),
        ("a.b: 1 + 2", "there is no feature in this formula"),
        ("a.b: ip.count_1h +", "expected a feature or a number, found the end"),
        ("a.b: ip.count_1h ip.count_10m", "expected the end or an operator, found ip.count_10m"),
        (
            "a.b: ip.count_1h > 3",
            "> has no place in a formula, which knows + - * /, min(), max(), parentheses",
        ),
        ("a.b: ip.count_1h = 3", "= has no place in a formula"),
        ("a.b: ip.count_1h and true", "and has no place in a formula"),
        ("a.b: ip.count_1h + 'x'", "'x' has no place in a formula"),
        ("a.b: ip.count_1h % 2", "% is not part of the language"),
        ("a.b: min(ip.count_1h)", "min takes two values or more"),
        ("a.b: mean(ip.count_1h, 1)", "unknown feature mean"),
        ("a.b: ip.count_1h * 9007199254740993", "9007199254740993 cannot be held exactly"),
        ("a.b: a.b + 1", "derived feature a.b is derived from itself"),
        ("ip.count_1h: 2 * ip.count_10m", "derived feature ip.count_1h has the name of a feature of view ip"),
        ("share: ip.count_1h", "derived feature share is named like any feature, view.feature"),
        ("A.b: ip.count_1h", "derived feature A.b: a name is up to 64 lower-case letters"),
        ("a.b.c: ip.count_1h", "derived feature a.b.c: a name is up to 64 lower-case letters"),
        ("a.b: [ip.count_1h]", "derived feature a.b is a formula such as ip.failed_1h / ip.count_1h"),
        ("a.b:", "derived feature a.b is a formula such as"),
        (
            "a.b: {value: ip.count_1h, els: 0}",
            "unknown setting els in derived feature a.b; did you mean else?",
        ),
        ("a.b: {else: 0}", "derived feature a.b has no value"),
        ("a.b: {value: ip.count_1h, else: nan}", "else of derived feature a.b must be a number, not nan"),
        ("a.b: {value: ip.count_1h, else: 1e999}", "else of derived feature a.b must be a number, not 1e999"),
        (
            "a.b: {value: ip.count_1h, else: '0'}",
            'else of derived feature a.b must be a number, not the text "0"',
        ),
        ("a.b: {value: ip.count_1h, else: ip.count_1h}", "else of derived feature a.b must be a number"),
    ],
)
def test_a_mistake_is_named_with_its_line(line: str, problem: str) -> None:
    message = refusal(with_derived("ok.fine: ip.count_1h * 2", line))
    assert message.startswith("login.yaml:20: ")
    assert problem in message


def test_a_mistake_is_pointed_at() -> None:
    assert refusal(with_derived("a.b: ip.count_1h / (ip.cuont_10m + 1)")).split("\n") == [
        "login.yaml:19: derived feature a.b, column 16: unknown feature ip.cuont_10m; "
        "did you mean ip.count_10m?",
        "    ip.count_1h / (ip.cuont_10m + 1)",
        "                   ^",
    ]


def test_a_circle_is_named_from_its_first_feature_in_the_file() -> None:
    lines = ["d.out: d.b + 1", "d.a: d.b * 2", "d.b: d.c - ip.count_1h", "d.c: d.a / 3"]
    message = refusal(with_derived(*lines))
    assert message == (
        "login.yaml:20: derived features need each other in a circle: d.a needs d.b needs d.c needs d.a"
    )


def test_independent_mistakes_are_reported_together() -> None:
    message = refusal(with_derived("a.b: ip.nothing", "a.c: a.b + 1", "nodot: ip.count_1h", "a.d: 7"))
    assert [line[:13] for line in message.split("\n") if line.startswith("login.yaml")] == [
        "login.yaml:19",
        "login.yaml:21",
        "login.yaml:22",
    ]


def test_a_service_may_not_need_more_than_a_vector_holds() -> None:
    lines = [f"d.x{i}: ip.count_1h * {i}" for i in range(4096)]
    message = refusal(with_derived(*lines, services="s: [d.*]"))
    assert message.endswith("service s has more than 4096 features with all that its derived ones need: 4097")
    assert "more than 4096 derived features: 4097" in refusal(with_derived(*lines, "d.y: ip.count_1h"))


def test_an_operand_out_of_its_place_is_refused_where_a_plan_is_compiled() -> None:
    plan = compile_schema(LOGIN)
    for wrong in (len(FEATURES), -1):
        first = replace(plan.derived[0], operands=(wrong, 1))
        with pytest.raises(ValueError, match="an operand is not a feature before it"):
            State(replace(plan, derived=(first, *plan.derived[1:])))
