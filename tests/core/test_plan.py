"""A plan whose indexes lead where the compiled code must not go: refused before anything runs on it."""

from __future__ import annotations

import dataclasses

import pytest

from featurestore.core.plan import CompiledPlan
from featurestore.plan import EntityPlan, EventPlan, Plan, Program, TouchPlan, ViewPlan, needs_field
from featurestore.schema import compile_schema
from featurestore.schema.expression import FieldType, compile_condition

PLAN = compile_schema("""
version: 1
name: plan
events:
  play:
    time: {field: ts, unit: ms}
    ids: {id: id, dedupe: 60s}
    fields: {account: key, ms: number, id: string}
views:
  account: {event: play, key: account, windows: [10s], features: [count, sum(ms)], where: ms > 0}
services:
  all: [account.*]
""")
TEXT = next(i for i, field in enumerate(PLAN.events[0].fields) if field.name == "account")
NUMBER = next(i for i, field in enumerate(PLAN.events[0].fields) if field.name == "ms")
TOO_WIDE = dataclasses.replace(PLAN.events[0], fields=PLAN.events[0].fields * 30_000)


def event(**changes: object) -> Plan:
    changed: EventPlan = dataclasses.replace(PLAN.events[0], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(PLAN, events=(changed,))


def view(**changes: object) -> Plan:
    changed: ViewPlan = dataclasses.replace(PLAN.views[0], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(PLAN, views=(changed,))


def with_key_of(n_parts: int) -> Plan:
    """An entity beside the others that no event feeds: a read may give its parts all the same."""
    parts = tuple(f"p{i:03}" for i in range(n_parts))
    return dataclasses.replace(PLAN, entities=(*PLAN.entities, EntityPlan(9, parts, False)))


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (event(id_field=NUMBER), "id is not text"),
        (event(id_field=len(PLAN.events[0].fields)), "id field"),
        (event(touches=(TouchPlan(0, (NUMBER,)),)), "key is not text"),
        (dataclasses.replace(view(where=None), programs=(), events=(TOO_WIDE,)), "65,535 fields"),
        (view(values=(TEXT,)), "not a number"),
        (view(values=(99,)), "99 does not exist"),
        (view(event=1), "unknown event type"),
        (view(entity=1), "unknown entity"),
        (with_key_of(257), "more than 256 parts"),
        (event(dedupe_floor_ms=1 << 63), "dedupe floor"),
        (view(since_ms=1 << 63), "since"),
    ],
)
def test_it_is_refused(plan: Plan, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CompiledPlan(plan)


def test_one_that_leads_nowhere_wrong_is_taken() -> None:
    CompiledPlan(PLAN)
    CompiledPlan(with_key_of(256))


@pytest.mark.parametrize(
    ("where", "needs"),
    [
        ("u is not null", True),
        ("not u is null", True),
        ("u != 'x'", True),
        ("u not in ('x')", True),
        ("not (u == 'x' or n > 0)", True),
        ("n > 0 and u == 'x'", True),
        ("u == 'x' or u == v and n > 1", True),
        ("n * 2 > 1", False),
        ("u == 'x' or n > 0", False),
        ("u is null", False),
        ("u is null or u == 'x'", False),
        ("not (u is null and n > 0)", False),
        ("v is not null", False),
        ("true", False),
    ],
)
def test_whether_an_event_without_a_field_can_pass_a_filter(where: str, needs: bool) -> None:
    fields = {"u": FieldType.KEY, "v": FieldType.STRING, "n": FieldType.NUMBER}
    assert needs_field(Program(0, where, compile_condition(where, fields).ops), 0) == needs


@pytest.mark.parametrize("where", ["n + 1 > m", "min(n, m) > 0", "-n < m / 2", "n in (1, 2)", "n == n"])
def test_a_filter_needs_whatever_it_computes_from(where: str) -> None:
    condition = compile_condition(where, {"n": FieldType.NUMBER, "m": FieldType.NUMBER})
    program = Program(0, where, condition.ops)
    assert [needs_field(program, field) for field in (0, 1)] == [True, "m" in where]
