"""A plan whose indexes lead where the compiled code must not go: refused before anything runs on it."""

from __future__ import annotations

import dataclasses

import pytest

from featurestore.core.plan import CompiledPlan
from featurestore.plan import EntityPlan, EventPlan, Plan, TouchPlan, ViewPlan
from featurestore.schema import compile_schema

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
