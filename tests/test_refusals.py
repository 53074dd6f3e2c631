"""Why an event is refused, in words: the field, its value, what to do; never a byte that a terminal obeys."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.columns import event_columns
from featurestore.outcome import Outcome
from featurestore.refusals import refused_field, shown, why
from featurestore.schema import compile_schema


def event_of(time: str, fields: str = "k: key, s: string, n: number"):
    return compile_schema(f"""\
version: 1
name: s
events: {{e: {{time: {time}, fields: {{{fields}}}}}}}
views: {{v: {{event: e, key: k, windows: [1h], features: [count]}}}}
""").events[0]


ISO, MS, S = (event_of(time) for time in ("ts", "{field: ts, unit: ms}", "{field: ts, unit: s}"))
APACHE = event_of('{field: ts, format: "%d/%b/%Y:%H:%M:%S %z"}')
GOOD = {"k": ["a", "b"], "s": ["x", "y"], "n": [1.0, 2.0]}
NO_TIME, RANGE, FUTURE = Outcome.REFUSED_NO_TIME, Outcome.REFUSED_TIME_RANGE, Outcome.REFUSED_FUTURE
TYPE = Outcome.REFUSED_TYPE


@pytest.mark.parametrize(
    ("event", "outcome", "field", "value", "sentence"),
    [
        (ISO, TYPE, "ts", "2024-05-01 10:00:00 UTC",
         "ts: '2024-05-01 10:00:00 UTC' is no ISO 8601 time; declare format: '%Y-%m-%d %H:%M:%S UTC'"),
        (ISO, TYPE, "ts", b"01/May/2024:10:00:00 +0200",
         "ts: '01/May/2024:10:00:00 +0200' is no ISO 8601 time; declare format: '%d/%b/%Y:%H:%M:%S %z'"),
        (ISO, TYPE, "ts", "soon", "ts: 'soon' is no ISO 8601 time; declare format: as strptime has it"),
        (ISO, TYPE, "ts", 1714557600, "1714557600 is no ISO 8601 time; declare its unit: s, ms, us or ns"),
        (ISO, TYPE, "ts", "1714557600.5", "is no ISO 8601 time; declare its unit: s, ms, us or ns"),
        (APACHE, TYPE, "ts", "2024-05-01", "is not in the declared format, '%d/%b/%Y:%H:%M:%S %z'"),
        (MS, TYPE, "ts", "2024-05-01", "ts: '2024-05-01' is no number of milliseconds; where the time is "
         "written as a text, declare no unit"),
        (S, RANGE, "ts", 1714557600000, "ts: 1714557600000 is outside the years 1 to 9999; if it is in "
         "milliseconds or microseconds or nanoseconds, declare that unit"),
        (MS, NO_TIME, "ts", None, "ts: no time, and every event needs one"),
        (ISO, FUTURE, None, "2099-01-01", "ts: '2099-01-01' is further ahead of the clock"),
        (ISO, TYPE, "n", "1,5", "n: '1,5' is no number; correct it, or declare the field a string"),
        (ISO, TYPE, "k", b"a\xff", "k: 'a\\\\xff' is not UTF-8 text; convert it (iconv -t UTF-8)"),
        (ISO, TYPE, "k", True, "k: True is no key; write it as text or a whole number"),
        (ISO, TYPE, "k", {"a": 1}, "k: a list or an object is no key"),
        (ISO, Outcome.REFUSED_KEY, "k", 1.5, "k: 1.5 is no whole number, and so no key; write it as text"),
        (ISO, Outcome.REFUSED_KEY_TOO_LONG, "k", "x" * 5000,
         f"k: '{'x' * 60}'... is longer than 4096 bytes, as no key or id may be; send a hash of it"),
        (ISO, Outcome.REFUSED_NOT_FINITE, "n", "nan", "n: 'nan' is not finite; leave it out"),
        (ISO, Outcome.REFUSED_TYPE, None, None, "a value has the wrong type for its field"),
    ],
)  # fmt: skip
def test_a_sentence_names_field_value_and_remedy(event, outcome, field, value, sentence):
    told = why(outcome, event, field, value)
    assert sentence in told.reason
    assert told.outcome is outcome
    assert told.field == (field or ("ts" if outcome is FUTURE else None))


def test_what_is_advised_is_what_reads_the_time():
    told = why(TYPE, ISO, "ts", "Wed, 01 May 2024 10:00:00 GMT").reason
    advised = told.partition("declare format: ")[2].strip("'")
    again = event_of(f'{{field: ts, format: "{advised}"}}')
    times, _, outcomes = event_columns(again, {"ts": ["Wed, 01 May 2024 10:00:00 GMT"] * 2, **GOOD})
    assert outcomes.tolist() == [0, 0]
    assert times[0] == 1_714_557_600_000


@pytest.mark.parametrize("container", ["lists", "numpy", "arrow", "pandas"])
@pytest.mark.parametrize(
    ("columns", "field", "value"),
    [
        ({"ts": ["2024-01-01", "soon"], "k": ["a", "x" * 5000]}, "ts", "soon"),  # the time first
        ({"ts": ["2024-01-01"] * 2, "k": ["a", "x" * 5000], "n": ["1", "one"]}, "k", "x" * 5000),
        ({"ts": ["2024-01-01"] * 2, "n": ["1", "one"]}, "n", "one"),
        ({"ts": ["2024-01-01", None]}, "ts", None),
    ],
)
def test_the_field_is_found_for_which_the_columns_were_refused(container, columns, field, value):
    data = GOOD | columns
    made = {
        "lists": lambda: data,
        "numpy": lambda: {name: np.array(values, dtype=object) for name, values in data.items()},
        "arrow": lambda: {name: pa.array(values) for name, values in data.items()},
        "pandas": lambda: {name: pd.Series(values, index=[7, 3]) for name, values in data.items()},
    }[container]()
    outcomes = event_columns(ISO, made)[2]
    assert outcomes[0] == 0
    assert outcomes[1] != 0
    assert refused_field(ISO, made, 1) == (field, value)
    assert refused_field(ISO, made, 0) == (None, None)


def test_columns_that_cannot_be_read_twice_are_not():
    assert refused_field(ISO, {"ts": iter(["soon"])}, 0) == (None, None)


@given(st.one_of(st.text(max_size=300), st.binary(max_size=300), st.integers(), st.floats(), st.none()))
def test_a_value_is_shown_on_one_line_that_can_be_printed(value):
    text = shown(value)
    assert len(text) <= 12 * 60
    assert text.isprintable()


def test_an_integer_that_python_does_not_print_is_named():
    assert shown(10**5000) == "an integer of thousands of digits"
