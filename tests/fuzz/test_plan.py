"""The plan as the journal and a checkpoint keep it: JSON that says which memory is read and written, and how.

It is damaged as text, and as what it says: an index, a count, a type that the schema's compiler does not
write.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from featurestore.columns import TextColumn
from featurestore.core.batch import EventBatch
from featurestore.core.state import State
from featurestore.errors import CorruptRecordError, FeatureStoreError
from featurestore.plan import Kind, Plan
from featurestore.schema import compile_schema
from featurestore.storage.checkpoint import parse_plan
from fuzz import trial
from fuzz.mutations import damaged_json
from fuzz.stores import SCHEMA, SECRET, START_MS
from fuzz.trial import Trial

FIRST = compile_schema(SCHEMA)
SECOND = compile_schema(
    re.sub(r"\[10s, 60s\]", "[10s, 120s]", SCHEMA).replace("keep_keys: [account]", ""),
    previous=FIRST,
    now_ms=START_MS,
)
SMALL = """
version: 1
name: small
events: {e: {time: ts, fields: {k: key, x: number, s: string}}}
views:
  v:
    event: e
    key: k
    where: x > 1 and s in ("a", "b") or s is null
    windows: [1m]
    features: [count, mean(x), {name: up, aggregate: max(x), where: not x < 0}]
services: {all: [v.*]}
"""
SAMPLES = [plan.to_json().encode() for plan in (FIRST, SECOND, compile_schema(SMALL))]


def texts(n: int) -> TextColumn:
    return TextColumn(np.arange(n + 1, dtype=np.uint32), np.frombuffer(b"abcdefgh"[:n], np.uint8), None)


def check_plan(data: bytes) -> None:
    """What is taken for a plan can be run: events of every type, and a read of every service."""
    plan = parse_plan(data, "here")
    assert Plan.from_json(plan.to_json()) == plan
    state = State(plan, n_shards=2, secret=SECRET)
    n = 4
    for index, event in enumerate(plan.events):
        columns = [
            texts(n) if field.kind == Kind.TEXT else np.arange(n, dtype=np.float64) for field in event.fields
        ]
        for turn in range(2):
            times = np.arange(START_MS + turn * 30_000, START_MS + turn * 30_000 + n, dtype=np.int64)
            batch = EventBatch(event, index, times, columns)
            state.observe(batch, 0 if plan.services else None, now_ms=START_MS + turn * 30_000, bounds=True)
    parts = {part: texts(n) for entity in plan.entities for part in entity.parts}
    for service in range(len(plan.services)):
        state.read(service, parts, n, now_ms=START_MS, bounds=True)
    State.restore(plan, state.snapshot())
    state.sweep()


@pytest.mark.parametrize(
    "one",
    [
        Trial("plan as text", SAMPLES, check_plan, (CorruptRecordError,), rounds=2000, budget_bytes=64 << 20),
        Trial(
            "plan",
            SAMPLES,
            check_plan,
            (CorruptRecordError,),
            rounds=5000,
            budget_bytes=64 << 20,
            damage=damaged_json,
        ),
    ],
    ids=lambda one: one.name,
)
def test_a_damaged_plan_is_refused_or_can_be_run(one: Trial) -> None:
    trial.run(one)


def test_a_plan_that_is_no_json_is_named() -> None:
    for text in (b"", b"[]", b"{", b"7", b"[" * 100_000, b"\xff", b'{"entities": 5}'):
        with pytest.raises(FeatureStoreError, match="here: is no plan that this version runs"):
            parse_plan(text, "here")
