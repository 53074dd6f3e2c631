"""Filters against an interpreter that takes one event at a time and knows no chunks, slots or columns."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.columns import TextColumn, text_column
from featurestore.core.batch import EventBatch
from featurestore.core.program import CompiledFormula, CompiledProgram
from featurestore.plan import DerivedPlan, EventPlan, FieldPlan, Kind, Op, Program, TimePlan

EVENT = EventPlan(
    event_id=1,
    name="play",
    time=TimePlan("ts", "ms"),
    fields=(
        FieldPlan("seconds", Kind.NUMBER, False),
        FieldPlan("price", Kind.NUMBER, False),
        FieldPlan("account", Kind.TEXT, True),
        FieldPlan("country", Kind.TEXT, False),
    ),
    lateness_ms=0,
    id_field=None,
    dedupe_ms=0,
    touches=(),
)
SECONDS, PRICE, ACCOUNT, COUNTRY = range(4)

Event = tuple[float | None, float | None, str | None, str | None]


def batch_of(events: list[Event]) -> EventBatch:
    columns: list[Any] = []
    for k, field in enumerate(EVENT.fields):
        values = [event[k] for event in events]
        if field.kind == Kind.NUMBER:
            columns.append(np.array([math.nan if v is None else v for v in values], np.float64))
        else:
            columns.append(text_column(values)[0])
    return EventBatch(EVENT, 0, np.zeros(len(events), np.int64), columns)


def program(*ops: Op) -> Program:
    return Program(0, "test", ops)


def run(ops: list[Op], events: list[Event]) -> list[int]:
    return CompiledProgram(program(*ops), EVENT).run(batch_of(events)).tolist()


# ---- the oracle: None is unknown


def both(a: bool | None, b: bool | None) -> bool | None:
    if a is False or b is False:
        return False
    return None if a is None or b is None else True


def negated(a: bool | None) -> bool | None:
    return None if a is None else not a


def finite(result: float) -> float | None:
    return result if math.isfinite(result) else None


# Of operands that are both known.
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: finite(a + b),
    "sub": lambda a, b: finite(a - b),
    "mul": lambda a, b: finite(a * b),
    "div": lambda a, b: finite(a / b) if b else None,
    "min": min,
    "max": max,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "text_eq": operator.eq,
    "text_ne": operator.ne,
}
LOGIC = {"and": both, "or": lambda a, b: negated(both(negated(a), negated(b)))}


def unary(op: Op, a: Any) -> Any:
    if op.code == "is_null":
        return a is None
    if a is None:
        return None
    if op.code == "neg":
        return -a
    return not a if op.code == "not" else a in (op.numbers if op.code == "in_numbers" else op.texts)


def pushed(op: Op, event: Event) -> Any:
    if op.code in ("load_number", "load_text"):
        value = event[op.field]
        return None if value == "" else value  # absent, in any field, from where it comes in
    if op.code == "text":
        return op.texts[0]
    return op.number if op.code == "number" else op.code == "true"


def interpret(ops: list[Op], event: Event) -> bool | None:
    stack: list[Any] = []
    for op in ops:
        if op.code in BINARY or op.code in LOGIC:
            b, a = stack.pop(), stack.pop()
            if op.code in LOGIC:
                stack.append(LOGIC[op.code](a, b))
            else:
                stack.append(None if a is None or b is None else BINARY[op.code](a, b))
        elif op.code in ("is_null", "neg", "not", "in_numbers", "in_texts"):
            stack.append(unary(op, stack.pop()))
        else:
            stack.append(pushed(op, event))
    (result,) = stack
    return result


# ---- programs and events from a few colliding values

NUMBERS = st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, 0.5, 1e308, -1e308, 5e-324, 3.0])
TEXTS = st.sampled_from(["", "a", "b", "ab", "ba", "é", "a\0", "x" * 40])
EVENTS = st.tuples(st.none() | NUMBERS, st.none() | NUMBERS, st.none() | TEXTS, st.none() | TEXTS)

number_ops = st.recursive(
    st.builds(lambda v: [Op("number", number=v)], NUMBERS)
    | st.builds(lambda f: [Op("load_number", field=f)], st.sampled_from([SECONDS, PRICE])),
    lambda inner: (
        st.builds(
            lambda a, b, code: [*a, *b, Op(code)],
            inner,
            inner,
            st.sampled_from(["add", "sub", "mul", "div", "min", "max"]),
        )
        | st.builds(lambda a: [*a, Op("neg")], inner)
    ),
    max_leaves=4,
)
text_ops = st.builds(lambda v: [Op("text", texts=(v,))], TEXTS) | st.builds(
    lambda f: [Op("load_text", field=f)], st.sampled_from([ACCOUNT, COUNTRY])
)
simple_truths = (
    st.builds(
        lambda a, b, code: [*a, *b, Op(code)],
        number_ops,
        number_ops,
        st.sampled_from(["eq", "ne", "lt", "le", "gt", "ge"]),
    )
    | st.builds(
        lambda a, b, code: [*a, *b, Op(code)], text_ops, text_ops, st.sampled_from(["text_eq", "text_ne"])
    )
    | st.builds(
        lambda a, v: [*a, Op("in_numbers", numbers=tuple(v))], number_ops, st.lists(NUMBERS, max_size=4)
    )
    | st.builds(lambda a, v: [*a, Op("in_texts", texts=tuple(v))], text_ops, st.lists(TEXTS, max_size=6))
    | st.builds(lambda a: [*a, Op("is_null")], number_ops | text_ops)
    | st.sampled_from([[Op("true")], [Op("false")]])
)
truth_ops = st.recursive(
    simple_truths,
    lambda inner: (
        st.builds(lambda a, b, code: [*a, *b, Op(code)], inner, inner, st.sampled_from(["and", "or"]))
        | st.builds(lambda a: [*a, Op("not")], inner)
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(ops=truth_ops, events=st.lists(EVENTS, min_size=1, max_size=12))
def test_a_filter_is_true_where_the_naive_interpreter_says_true(ops: list[Op], events: list[Event]) -> None:
    assert run(ops, events) == [int(interpret(ops, event) is True) for event in events]


def test_unknown_is_true_neither_as_it_is_nor_negated() -> None:
    above = [Op("load_number", field=SECONDS), Op("number", number=30.0), Op("gt")]
    events: list[Event] = [(31.0, None, None, None), (30.0, None, None, None), (None, None, None, None)]
    assert run(above, events) == [1, 0, 0]
    assert run([*above, Op("not")], events) == [0, 1, 0]


@pytest.mark.parametrize(
    ("code", "a", "b"),
    [
        ("add", 1e308, 1e308),
        ("sub", -1e308, 1e308),
        ("mul", 1e308, -10.0),
        ("div", 1e308, 0.1),
        ("div", 1.0, 0.0),
        ("div", 0.0, 0.0),
        ("div", -1.0, -0.0),
    ],
)
def test_arithmetic_that_is_not_finite_is_unknown(code: str, a: float, b: float) -> None:
    load = [Op("load_number", field=SECONDS), Op("load_number", field=PRICE), Op(code)]
    events: list[Event] = [(a, b, None, None), (1.0, 1.0, None, None)]
    assert run([*load, Op("is_null")], events) == [1, 0]
    for inverse in ([], [Op("not")]):
        assert run([*load, Op("number", number=5.0), Op("lt"), *inverse], events)[0] == 0


@pytest.mark.parametrize("code", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_a_comparison_and_its_negation_cover_exactly_the_known(code: str) -> None:
    values = [None, -1.0, -0.0, 0.0, 1.0]
    events: list[Event] = [(a, b, None, None) for a in values for b in values]
    ops = [Op("load_number", field=SECONDS), Op("load_number", field=PRICE), Op(code)]
    assert run(ops, events) == [int(interpret(ops, event) is True) for event in events]
    inverse = [*ops, Op("not")]
    assert run(inverse, events) == [int(interpret(inverse, event) is True) for event in events]


@pytest.mark.parametrize("n", [0, 1, 2, 255, 256, 257, 511, 512, 513, 1000])
def test_chunk_borders(n: int) -> None:
    events: list[Event] = [(float(i % 7) if i % 5 else None, float(i), f"u{i}", None) for i in range(n)]
    ops = [
        *(Op("load_number", field=SECONDS), Op("number", number=3.0), Op("lt")),
        *(
            Op("load_number", field=PRICE),
            Op("number", number=2.0),
            Op("mul"),
            Op("number", number=900.0),
            Op("ge"),
        ),
        *(Op("load_text", field=ACCOUNT), Op("in_texts", texts=("u0", "u255", "u256", "u257", "u512"))),
        *(Op("or"), Op("or")),
    ]
    assert run(ops, events) == [int(interpret(ops, event) is True) for event in events]


@settings(max_examples=50, deadline=None)
@given(lo=st.integers(0, 700), length=st.integers(0, 700), cut=st.integers(0, 700))
def test_a_range_of_events_gives_that_range_of_the_answer(lo: int, length: int, cut: int) -> None:
    events: list[Event] = [(float(i * 31 % 17), None, f"u{i * 7 % 23}", None) for i in range(700)]
    ops = [
        *(Op("load_number", field=SECONDS), Op("number", number=8.0), Op("lt")),
        *(Op("load_text", field=ACCOUNT), Op("text", texts=("u7",)), Op("text_eq"), Op("or")),
    ]
    compiled, batch = CompiledProgram(program(*ops), EVENT), batch_of(events)
    hi = min(lo + length, 700)
    whole = compiled.run(batch)
    assert compiled.run(batch, lo, hi).tolist() == whole[lo:hi].tolist()
    assert compiled.run(batch.part(cut, 700)).tolist() == whole[cut:].tolist()


@pytest.mark.parametrize("n_items", [0, 1, 7, 8, 9, 100])
def test_short_and_long_lists_of_numbers_find_the_same(n_items: int) -> None:
    items = tuple(float(3 * k) for k in range(n_items))
    events: list[Event] = [(value / 2, None, None, None) for value in range(-3, 700)] + [
        (None, None, None, None)
    ]
    ops = [Op("load_number", field=SECONDS), Op("in_numbers", numbers=items)]
    assert run(ops, events) == [int(event[0] is not None and event[0] in items) for event in events]
    assert run([*ops, Op("not")], events)[-1] == 0


def test_deepest_stack_runs_and_one_deeper_is_refused() -> None:
    loads = [Op("load_number", field=SECONDS)] * 32
    ops = [*loads, *[Op("add")] * 31, Op("number", number=32.0), Op("eq")]
    with pytest.raises(ValueError, match=r"step 32 .*32 values"):
        CompiledProgram(program(Op("load_number", field=SECONDS), *ops), EVENT)
    assert run(ops, [(1.0, None, None, None), (2.0, None, None, None)]) == [1, 0]


def test_an_empty_text_is_null_and_one_of_an_older_journal_is_what_it_was_then() -> None:
    events: list[Event] = [(None, None, "", "")]
    assert run([Op("load_text", field=ACCOUNT), Op("is_null")], events) == [1]
    assert run([Op("load_text", field=COUNTRY), Op("is_null")], events) == [1]
    empty = TextColumn(np.zeros(2, np.uint32), np.zeros(0, np.uint8), None)
    batch = EventBatch(EVENT, 0, np.zeros(1, np.int64), [np.zeros(1), np.zeros(1), empty, empty])
    for field, told in ((ACCOUNT, 1), (COUNTRY, 0)):
        ops = program(Op("load_text", field=field), Op("is_null"))
        assert CompiledProgram(ops, EVENT).run(batch).tolist() == [told]


def test_a_null_text_has_no_bytes_even_where_its_column_has_some() -> None:
    column = TextColumn(np.array([0, 1], np.uint32), np.frombuffer(b"a", np.uint8), np.zeros(1, np.uint8))
    batch = EventBatch(EVENT, 0, np.zeros(1, np.int64), [np.zeros(1), np.zeros(1), column, column])
    ops = program(Op("load_text", field=COUNTRY), Op("text", texts=("a",)), Op("text_eq"))
    assert CompiledProgram(ops, EVENT).run(batch).tolist() == [0]


@pytest.mark.parametrize(
    ("ops", "says"),
    [
        ([], "leaves nothing"),
        ([Op("number", number=1.0)], "leaves number"),
        ([Op("true"), Op("true")], "leaves truth, truth"),
        ([Op("text", texts=("a",))], "leaves text"),
        ([Op("jump")], r"step 0 \(jump\): there is no such"),
        ([Op("add")], r"step 0 \(add\): needs number, number .* finds nothing"),
        ([Op("number"), Op("add")], "step 1 .*finds number"),
        ([Op("true"), Op("number"), Op("add")], "step 2 .*finds truth, number"),
        ([Op("number"), Op("not")], "step 1 .*needs truth"),
        ([Op("true"), Op("is_null")], "step 1 .*needs number"),
        ([Op("is_null")], "finds nothing"),
        ([Op("text", texts=("a",)), Op("number"), Op("text_eq")], "needs text, text"),
        ([Op("load_number", field=4)], "no field 4"),
        ([Op("load_number", field=-1)], "no field -1"),
        ([Op("load_number", field=ACCOUNT)], "'account' .*holds no number"),
        ([Op("load_text", field=SECONDS)], "'seconds' .*holds no text"),
        ([Op("number", number=math.nan)], "finite"),
        ([Op("number", number=math.inf)], "finite"),
        ([Op("number"), Op("in_numbers", numbers=(1.0, math.nan))], "finite"),
        ([Op("text")], "0 texts"),
        ([Op("text", texts=("x" * 4097,))], "4097 bytes"),
        ([Op("text", texts=("é" * 2049,))], "4098 bytes"),
        ([Op("text", texts=("\ud800",))], "UTF-8"),
        ([Op("text", texts=("a",)), Op("in_texts", texts=("a", "x" * 4097))], "step 1 .*4097"),
    ],
)
def test_a_wrong_program_is_refused_naming_the_step(ops: list[Op], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CompiledProgram(program(*ops), EVENT)


def test_a_formula_leaves_one_number() -> None:
    one = DerivedPlan("a.b", "test", (4,), (Op("load_number", field=0), Op("neg")), None)
    assert CompiledFormula(one).source == "test"
    for ops, says in (
        ((), "a.b: leaves nothing on the stack; it leaves one number"),
        ((Op("load_number", field=0), Op("number"), Op("lt")), "leaves truth"),
        ((Op("load_number", field=1),), "no field 1; 1 are declared"),
        ((Op("load_text", field=0),), "'operand 0' holds no text"),
    ):
        with pytest.raises(ValueError, match=says):
            CompiledFormula(replace(one, ops=ops))
    with pytest.raises(TypeError, match="takes a DerivedPlan"):
        CompiledFormula(program(Op("number")))  # type: ignore[arg-type]


# fmt: off
STEPS = ["number", "text", "load_number", "load_text", "add", "max", "neg", "eq", "lt", "text_eq",
         "in_numbers", "in_texts", "and", "not", "true", "is_null"]
# fmt: on


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.builds(
            Op,
            st.sampled_from(STEPS),
            field=st.integers(-1, 4),
            number=NUMBERS,
            numbers=st.lists(NUMBERS, max_size=2).map(tuple),
            texts=st.lists(TEXTS, max_size=2).map(tuple),
        ),
        max_size=8,
    )
)
def test_any_list_of_steps_is_refused_or_runs_as_interpreted(ops: list[Op]) -> None:
    events: list[Event] = [(1.0, None, "a", ""), (None, 0.0, "", "b")]
    try:
        compiled = CompiledProgram(program(*ops), EVENT)
    except ValueError:
        return
    assert compiled.run(batch_of(events)).tolist() == [int(interpret(ops, e) is True) for e in events]


def test_a_batch_of_another_event_type_is_refused() -> None:
    compiled = CompiledProgram(Program(1, "true", (Op("true"),)), EVENT)
    with pytest.raises(ValueError, match="other fields"):
        compiled.run(batch_of([(1.0, 1.0, "a", "b")]))
    with pytest.raises(TypeError):
        CompiledProgram(None, EVENT)
    with pytest.raises(IndexError):
        CompiledProgram(program(Op("true")), EVENT).run(batch_of([(1.0, 1.0, "a", "b")]), 1, 3)
