"""What people hand over and what it means, with Python's own int, str and datetime as the oracle."""

from __future__ import annotations

import math
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.columns import TextColumn, event_columns, number_column, text_column, time_column
from featurestore.errors import InvalidEventError
from featurestore.outcome import Outcome
from featurestore.plan import EventPlan, FieldPlan, Kind, TimePlan

NO_TIME, RANGE, NOT_FINITE = Outcome.REFUSED_NO_TIME, Outcome.REFUSED_TIME_RANGE, Outcome.REFUSED_NOT_FINITE
KEY, TOO_LONG, TYPE = Outcome.REFUSED_KEY, Outcome.REFUSED_KEY_TOO_LONG, Outcome.REFUSED_TYPE
NAN, INF = math.nan, math.inf
DAY = 1522540800000  # 2018-04-01T00:00:00Z


def said(values: Any) -> list[Any]:
    """Each text, None for null, or the outcome that refused it; and the shape every TextColumn has."""
    column, codes = text_column(values)
    assert (column.offsets.dtype, column.data.dtype, codes.dtype) == (np.uint32, np.uint8, np.uint8)
    assert column.offsets[0] == 0
    assert column.offsets[-1] == len(column.data)
    assert (np.diff(column.offsets.astype(np.int64)) >= 0).all()
    raw, made = column.data.tobytes(), []
    for i in range(len(column.offsets) - 1):
        text = raw[column.offsets[i] : column.offsets[i + 1]]
        present = column.present is None or bool(column.present[i])
        if codes[i] or not present:
            assert text == b""
        made.append(Outcome(codes[i]) if codes[i] else text.decode() if present else None)
    return made


def numbers(values: Any) -> list[Any]:
    """Each number, None for absent, or the outcome that refused it."""
    made, codes = number_column(values)
    assert made.dtype == np.float64
    assert np.isnan(made[codes != 0]).all()
    return [
        Outcome(c) if c else None if math.isnan(v) else v for v, c in zip(made.tolist(), codes, strict=True)
    ]


def times(values: Any, unit: str) -> list[Any]:
    made, codes = time_column(values, unit)
    assert made.dtype == np.int64
    assert (made[codes != 0] == 0).all()
    return [Outcome(c) if c else v for v, c in zip(made.tolist(), codes, strict=True)]


# ---- keys


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_integers_are_their_decimal_text(values: list[int]) -> None:
    expected = [str(value) for value in values]
    assert said(values) == expected
    assert said(np.array(values, np.int64)) == expected
    assert said(pa.array(values, pa.int64())) == expected


@pytest.mark.parametrize(
    "dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64, ">i4"]
)
def test_every_integer_type_at_its_ends(dtype: Any) -> None:
    info = np.iinfo(dtype)
    values = [info.min, info.max, 0, 9, 10, 99, 100]
    assert said(np.array(values, dtype)) == [str(value) for value in values]


@given(st.lists(st.integers(1, 20).flatmap(lambda n: st.integers(10 ** (n - 1) - 1, 10**n)), max_size=30))
def test_integers_around_powers_of_ten_and_past_64_bits(values: list[int]) -> None:
    assert said(values) == [str(value) for value in values]


@given(st.lists(st.none() | st.text(max_size=8)))
def test_strings_are_themselves_however_they_come(values: list[str | None]) -> None:
    """But for empty ones, which are absent."""
    values, given = [value or None for value in values], values
    assert said(given) == values
    assert said(tuple(given)) == values
    assert said(np.array(given, object)) == values
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        assert said(pa.array(given, kind)) == values
    middle = [*values, "é", None]
    assert said(pa.array([None, "x", *given, "é", None, "y"])[2:-1]) == middle
    assert said(pa.chunked_array([pa.array(given, pa.string()), pa.array(["é", None])])) == middle
    for kind in ("object", "str", "string", "category"):
        if values:
            assert said(pd.Series(given, dtype=kind)) == values


def test_fixed_width_strings_and_bytes() -> None:
    assert said(np.array(["", "a", "abc", "ab"])) == [None, "a", "abc", "ab"]
    assert said(np.array(["é", "日本", "a"])) == ["é", "日本", "a"]
    assert said(np.array([b"a", b"", b"abc"])) == ["a", None, "abc"]
    assert said(np.array(["ab", "c"], ">U2")[::-1]) == ["c", "ab"]
    assert said(np.array(["", ""])) == [None, None]


def test_bytes_must_be_utf8() -> None:
    values = ["é".encode(), b"\xff", "é".encode()[:1], "é".encode()[1:], b"a"]
    assert said(values) == ["é", TYPE, TYPE, TYPE, "a"]
    assert said(pa.array(values)) == ["é", TYPE, TYPE, TYPE, "a"]
    assert said(["é".encode()[:1], "é".encode()[1:]]) == [TYPE, TYPE]
    assert said(["\ud800", "ok", "\ud83d\ude00"]) == [TYPE, "ok", TYPE]


def test_floats_are_keys_only_where_they_are_whole() -> None:
    values = [596.0, -3.0, -0.0, 1e15, 1.5, NAN, INF, -INF, 5e-324]
    expected = ["596", "-3", "0", "1000000000000000", KEY, KEY, KEY, KEY, KEY]
    assert said(values) == expected
    assert said(np.array(values)) == expected
    assert said(pa.array(values)) == expected
    assert said(np.array(values, object)) == expected
    assert said(np.array([2.0**63, 1e22])) == [str(2**63), str(10**22)]
    assert said(np.array([596, 1.5], np.float32)) == ["596", KEY]


def test_values_of_many_types_are_judged_one_by_one() -> None:
    values = [
        1,
        "1",
        1.0,
        1.5,
        True,
        None,
        b"x",
        Decimal(7),
        Decimal("7.5"),
        Decimal("NaN"),
        Decimal("sNaN"),
        [1],
    ]
    assert said(values) == ["1", "1", "1", KEY, TYPE, None, "x", "7", KEY, KEY, KEY, TYPE]
    scalars = [
        np.int32(5),
        np.float64(5.5),
        np.bool_(True),
        np.str_("s"),
        pd.NA,
        pd.NaT,
        datetime(2018, 4, 1),
        2**64,
    ]
    assert said(scalars) == ["5", KEY, TYPE, "s", None, None, TYPE, str(2**64)]


def test_bools_dates_and_complex_numbers_are_no_keys() -> None:
    assert said([True, False]) == [TYPE, TYPE]
    assert said(np.array([True])) == [TYPE]
    assert said(pa.array([True, None])) == [TYPE, None]
    assert said(np.array(["2018-04-01"], "M8[D]")) == [TYPE]
    assert said(np.array([1j])) == [TYPE]
    assert said(pa.array([datetime(2018, 4, 1), None])) == [TYPE, None]
    assert said(pa.array([[1], None])) == [TYPE, None]


def test_a_key_of_4096_bytes_is_the_longest() -> None:
    values = ["x" * 4096, "x" * 4097, "é" * 2048, "é" * 2049, "end"]
    expected = ["x" * 4096, TOO_LONG, "é" * 2048, TOO_LONG, "end"]
    assert said(values) == expected
    assert said(pa.array(values)) == expected
    assert said([10**4095, 10**4096, -(10**4095), 10**100_000, Decimal("1e999999999")]) == [
        str(10**4095),
        *[TOO_LONG] * 4,
    ]


def test_nulls_of_every_library() -> None:
    assert said([None, None]) == [None, None]
    assert said(pa.nulls(2)) == [None, None]
    assert said(np.ma.array([1, 2], mask=[False, True])) == ["1", None]
    assert said(pa.array([1, None])) == ["1", None]
    assert said(pa.array([1.0, None, NAN], from_pandas=False)) == ["1", None, KEY]
    assert said(pd.Series([1, None, 3])) == ["1", None, "3"]
    assert said(pd.Series([1, None], dtype="Int64")) == ["1", None]
    assert said(pd.Series([1, "x", NAN, pd.NA, None], dtype=object)) == ["1", "x", None, None, None]
    assert said(pd.Series([1, None], dtype="int64[pyarrow]")) == ["1", None]
    assert said(pd.Series([1, 2], dtype="category")) == ["1", "2"]
    assert said(pd.Index(["a", "b"])) == ["a", "b"]


def test_an_arrow_null_that_has_bytes_is_null() -> None:
    buffers = [pa.py_buffer(b"\x01"), pa.py_buffer(np.array([0, 1, 9], np.int32)), pa.py_buffer(b"abbbbbbbb")]
    assert said(pa.Array.from_buffers(pa.string(), 2, buffers)) == ["a", None]
    buffers[2] = pa.py_buffer(b"a\xffbbbbbbb")
    assert said(pa.Array.from_buffers(pa.string(), 2, buffers)) == ["a", None]
    buffers[1:] = [pa.py_buffer(np.array([0, 1, 5001], np.int32)), pa.py_buffer(b"b" * 5001)]
    assert said(pa.Array.from_buffers(pa.string(), 2, buffers)) == ["b", None]


@pytest.mark.parametrize(
    "values",
    [
        [],
        np.array([]),
        np.array([], "U3"),
        pa.array([], pa.string()),
        pa.nulls(0),
        pd.Series([], dtype=object),
    ],
)
def test_no_values_make_an_empty_column(values: Any) -> None:
    assert said(values) == []
    assert numbers(values) == []
    assert times(values, "iso") == []


@pytest.mark.parametrize("values", ["abc", b"abc", 5, None, {"a": 1}, np.zeros((2, 2)), np.array(5)])
def test_what_is_no_column_is_an_error(values: Any) -> None:
    for read in (text_column, number_column, lambda v, what: time_column(v, "ms", what=what)):
        with pytest.raises(InvalidEventError, match=r"play\.account"):
            read(values, what="play.account")


# ---- numbers


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.booleans()))
def test_numbers_are_float64_and_what_is_not_finite_is_refused(values: list[Any]) -> None:
    expected = [v if v is None else float(v) if math.isfinite(v) else NOT_FINITE for v in values]
    assert numbers(values) == expected
    assert numbers(np.array(values, object)) == expected


@given(st.lists(st.none() | st.floats()))
def test_numbers_from_arrow_keep_null_and_nan_apart_and_pandas_does_not(values: list[float | None]) -> None:
    expected = [v if v is None or math.isfinite(v) else NOT_FINITE for v in values]
    assert numbers(pa.array(values, pa.float64())) == expected
    as_pandas = [
        None if v is None or math.isnan(v) else v if math.isfinite(v) else NOT_FINITE for v in values
    ]
    assert numbers(pd.Series(values, dtype=np.float64)) == as_pandas
    assert numbers(pd.Series(values, dtype=object)) == as_pandas


def test_numbers_of_every_type() -> None:
    assert numbers(np.array([1, 2], np.uint8)) == [1, 2]
    assert numbers(np.array([1.5, INF], np.float16)) == [1.5, NOT_FINITE]
    assert numbers(np.array([True, False])) == [1, 0]
    assert numbers(pa.array([True, None])) == [1, None]
    assert numbers(pa.array([Decimal("1.25"), None])) == [1.25, None]
    assert (
        numbers([Decimal("1.25"), Decimal("NaN"), Decimal("sNaN"), Decimal("1e400"), 10**400])
        == [1.25] + [NOT_FINITE] * 4
    )
    assert numbers(pd.Series([1.5, None], dtype="Float64")) == [1.5, None]
    assert numbers(pd.Series([True, None], dtype="boolean")) == [1, None]
    assert numbers(np.ma.array([1.0, NAN, NAN], mask=[False, True, False])) == [1, None, NOT_FINITE]


@pytest.mark.parametrize("wrap", [list, np.array, pa.array, lambda v: np.array(v, object), pd.Series])
def test_a_text_is_the_number_that_it_says(wrap: Any) -> None:
    texts = ["1", " -1.5e3\t", ".5", "+1.", "true", "F", "", "NaN", "-inf", "1e999", "e1", "yes", "1" * 4097]
    said = [1, -1500, 0.5, 1, 1, 0, None, *[NOT_FINITE] * 3, *[TYPE] * 3]
    assert numbers(wrap(texts)) == said


def test_a_text_among_numbers_is_read_as_if_it_were_alone() -> None:
    assert numbers(["1", 2, "", None, b"3", "x", True]) == [1, 2, None, None, 3, TYPE, 1]


def test_what_is_no_number_is_refused() -> None:
    assert numbers(["one", 1, None]) == [TYPE, 1, None]
    assert numbers(np.array(["1_0", "0x1", "1,0"])) == [TYPE] * 3
    assert numbers(pa.array(["NULL", None])) == [TYPE, None]
    assert numbers([1j, datetime(2018, 4, 1), [1], np.complex128(1)]) == [TYPE] * 4
    assert numbers(np.array([1j])) == [TYPE]
    assert numbers(np.array(["2018"], "M8[Y]")) == [TYPE]


# ---- times


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.sampled_from(["s", "ms", "us"]))
def test_integer_times_are_scaled_and_floored(values: list[int], unit: str) -> None:
    ms = [v * 1000 if unit == "s" else v // 1000 if unit == "us" else v for v in values]
    expected = [v if -62135596800000 <= v <= 253402300799999 else RANGE for v in ms]
    assert times(values, unit) == expected
    assert times(np.array(values, np.int64), unit) == expected
    assert times(pa.array(values, pa.int64()), unit) == expected
    assert times(np.array(values, object), unit) == expected


def test_the_first_and_last_millisecond() -> None:
    ends = [-62135596800001, -62135596800000, 253402300799999, 253402300800000]
    expected = [RANGE, *ends[1:3], RANGE]
    assert times(ends, "ms") == expected
    assert times(np.array(ends, np.float64), "ms") == expected
    assert times(np.array(ends) * 1000, "us") == expected
    assert times([Decimal(end) / 1000 for end in ends], "s") == expected
    assert times([-62135596801, -62135596800, 253402300799, 253402300800], "s") == [
        RANGE,
        *ends[1:2],
        253402300799000,
        RANGE,
    ]
    assert times(np.array([2**64 - 1], np.uint64), "us") == [RANGE]
    assert times([2**70, -(2**70)], "us") == [RANGE, RANGE]


@pytest.mark.parametrize(
    "wrap", [list, np.array, pa.array, lambda v: np.array(v, object), lambda v: [*v, Decimal(0)]]
)
def test_fractions_of_a_millisecond_are_floored(wrap: Any) -> None:
    seconds = [1.001, 1522540831.123, 0.0019, -0.0005, -1.0]
    assert times(wrap(seconds), "s")[:5] == [1001, 1522540831123, 1, -1, -1000]
    assert times(wrap([1999.0, 1999.9, -0.5, -1000.0]), "us")[:4] == [1, 1, -1, -1]
    assert times(wrap([5.0, 5.9, -0.1]), "ms")[:3] == [5, 5, -1]
    assert times(wrap([INF, -INF, 1e300, NAN]), "s")[:4] == [RANGE, RANGE, RANGE, NO_TIME]


@pytest.mark.parametrize("wrap", [list, np.array, pa.array])
def test_a_text_is_the_time_that_it_says_in_the_unit_of_the_field(wrap: Any) -> None:
    assert times(wrap(["1512085950.000216", "1512085950"]), "s") == [1512085950000, 1512085950000]
    assert times(wrap(["1522540831123456789", "-1", "1e3"]), "ns") == [1522540831123, -1, 0]
    assert times(wrap(["12.9", "nan", "inf", ""]), "ms") == [12, NO_TIME, RANGE, NO_TIME]


def test_nanoseconds_are_those_of_64_bits() -> None:
    ends = [-(2**63), 2**63 - 1]
    assert times(ends, "ns") == [-9223372036855, 9223372036854]
    assert times(np.array([2**63 - 1, 2**63], np.uint64), "ns") == [9223372036854, RANGE]
    assert times([float(2**63), -1.0e19, 1.0e15, -1.0], "ns") == [RANGE, RANGE, 10**9, -1]
    assert times([2**63, None, 1_999_999], "ns") == [RANGE, NO_TIME, 1]


def test_iso_times_as_rfc_3339_has_them() -> None:
    assert times(["2018-04-01t00:00:00z", "2018-03-31T23:59:60Z", "2018-03-31 23:59:60.5+00:00"], "iso") == [
        DAY,
        DAY,
        DAY + 500,
    ]


def test_absent_times_and_values_that_are_no_times() -> None:
    assert times([1, None], "ms") == [1, NO_TIME]
    assert times(pa.array([1, None]), "ms") == [1, NO_TIME]
    assert times(pd.Series([1, None]), "ms") == [1, NO_TIME]
    assert times([None, pd.NaT, Decimal("NaN"), Decimal("Infinity")], "ms") == [
        NO_TIME,
        NO_TIME,
        NO_TIME,
        RANGE,
    ]
    assert times(["one", True, [1], 1, "t"], "ms") == [TYPE, TYPE, TYPE, 1, TYPE]
    assert times(np.array([True]), "ms") == [TYPE]
    assert times(pa.array(["x", None, ""]), "ms") == [TYPE, NO_TIME, NO_TIME]
    assert times([1, 2], "iso") == [TYPE, TYPE]
    assert times([1.5, "2018-04-01"], "iso") == [TYPE, DAY]


ZONES = st.none() | st.just(UTC) | st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m)))


@given(
    st.lists(
        st.tuples(st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)), ZONES, st.sampled_from("T ")),
        min_size=1,
    )
)
def test_iso_times_are_what_datetime_says(values: list[tuple[datetime, timezone | None, str]]) -> None:
    texts = [moment.replace(tzinfo=zone).isoformat(sep) for moment, zone, sep in values]
    aware = [moment.replace(tzinfo=zone or UTC) for moment, zone, _ in values]
    expected = [(moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1) for moment in aware]
    assert times(texts, "iso") == expected
    assert times(pa.array(texts), "iso") == expected
    assert times(np.array(texts), "iso") == expected
    assert times([moment.replace(tzinfo=zone) for moment, zone, _ in values], "iso") == expected
    assert times([*texts, aware[0]], "iso") == [*expected, expected[0]]


# fmt: off
NO_TIMES = [
    "2018-02-29", "1900-02-29", "2018-13-01", "2018-00-01", "2018-04-00", "2018-04-31", "2018-4-1",
    "18-04-01", "2018/04/01", "20180401", "2018-04", "2018-W13-7", "today", "now", "NaT", "2018-04-01T",
    "2018-04-01T0", "2018-04-01T00", "2018-04-01T00:", "2018-04-01T00:0", "2018-04-01T24:00",
    "2018-04-01T00:60", "2018-04-01T00:00:61", "2018-04-01T00:00:0", "2018-04-01T00:00:00.",
    "2018-04-01T00:00:00.Z", "2018-04-01T00:00.5", "2018-04-01x00:00", "2018-04-01T00:00:00zz",
    "2018-04-01T00:00:00ZZ", "2018-04-01T00:00:00 Z", "2018-04-01T00:00:00+", "2018-04-01T00:00:00+1",
    "2018-04-01T00:00:00+1:00", "2018-04-01T00:00:00+24:00", "2018-04-01T00:00:00+01:60",
    "2018-04-01T00:00:00+01:0", "2018-04-01T00:00:00+010", "2018-04-01T00:00:00+01:000", "2018-04-01Z",
    " 2018-04-01", "2018-04-01 ", "-2018-04-01", "2018-04-01T00-00", "２018-04-01", "2018-04-01T00:00:00\0",
]
# fmt: on


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2018-04-01", DAY),
        ("2018-04-01T00:00", DAY),
        ("2018-04-01 00:00:00", DAY),
        ("2018-04-01T00:00:00Z", DAY),
        ("2018-04-01T00:00Z", DAY),
        ("2018-04-01T02:00:00+02:00", DAY),
        ("2018-04-01T02:00:00+0200", DAY),
        ("2018-04-01T02:00+02", DAY),
        ("2018-03-31T18:30:00-05:30", DAY),
        ("2018-04-01T00:00:00.1", DAY + 100),
        ("2018-04-01T00:00:00,12", DAY + 120),
        ("2018-04-01T00:00:00.1239999999999Z", DAY + 123),
        ("1969-12-31T23:59:59.9999", -1),
        ("2000-02-29", 951782400000),
        ("0001-01-01", -62135596800000),
        ("9999-12-31T23:59:59.999", 253402300799999),
        ("9999-12-31T23:59:59-00:01", RANGE),
        ("0001-01-01T00:00:00+00:01", RANGE),
        ("0000-12-31", RANGE),
        ("", NO_TIME),
        ("2018-04-01T00:00:00." + "1" * 44, DAY + 111),
        ("2018-04-01T00:00:00." + "1" * 45, TYPE),
        *((text, TYPE) for text in NO_TIMES),
    ],
)
def test_iso_grammar(text: str, ms: Any) -> None:
    assert times([text], "iso") == [ms]
    # the same between neighbours of other lengths, whose bytes it must not read
    assert times(["2018-04-01", text, "2018-04-01T00:00:00.000+00:00"], "iso") == [DAY, ms, DAY]


@given(st.lists(st.text("0123456789-:.+TZ ", max_size=30) | st.binary(max_size=12), max_size=8))
def test_any_text_is_a_time_or_refused(values: list[Any]) -> None:
    assert len(times(values, "iso")) == len(values)


@given(st.integers(0, 28), st.characters())
def test_one_wrong_character_is_never_read_as_another_grammar(at: int, wrong: str) -> None:
    text = "2018-04-01T02:00:00.000+02:00"
    broken = text[:at] + wrong + text[at + 1 :]
    (ms,) = times([broken], "iso")
    try:
        moment = datetime.fromisoformat(broken)
    except ValueError:
        assert ms in (TYPE, RANGE)
        return
    if ms != TYPE:  # fromisoformat takes more than the grammar does
        moment = moment.replace(tzinfo=moment.tzinfo or UTC)
        assert ms == (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


@pytest.mark.parametrize("unit", ["iso", "s", "ms", "us"])
def test_datetimes_know_their_own_unit(unit: str) -> None:
    assert times([datetime(2018, 4, 1), date(2018, 4, 1), None], unit) == [DAY, DAY, NO_TIME]
    assert times([pd.Timestamp("2018-04-01T00:00:00.123999999"), pd.NaT], unit) == [DAY + 123, NO_TIME]
    assert times([np.datetime64("2018-04-01"), np.datetime64("NaT"), 5j], unit) == [DAY, NO_TIME, TYPE]
    assert times(pa.array([datetime(2018, 4, 1), None]), unit) == [DAY, NO_TIME]
    assert times(pa.array([date(2018, 4, 1), None]), unit) == [DAY, NO_TIME]
    assert times(pa.array([date(2018, 4, 1), None], pa.date64()), unit) == [DAY, NO_TIME]
    zoned = pd.Series(pd.to_datetime(["2018-04-01T02:00", None])).dt.tz_localize("Europe/Berlin")
    assert times(zoned, unit) == [DAY, NO_TIME]
    assert times(pd.Series(pd.to_datetime(["2018-04-01", None])), unit) == [DAY, NO_TIME]
    assert times(pd.Series(["2018-04-01", None], dtype="timestamp[ns][pyarrow]"), unit) == [DAY, NO_TIME]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_arrow_timestamps_of_every_unit_and_zone(unit: str) -> None:
    for zone in (None, "UTC", "America/New_York"):
        values = (
            pa.array([DAY // 1000, None, -1], pa.int64())
            .cast(pa.timestamp("s", zone))
            .cast(pa.timestamp(unit, zone))
        )
        assert times(values, "iso") == [DAY, NO_TIME, -1000]


@pytest.mark.parametrize(
    "unit", ["Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "10s", "25us"]
)
def test_datetime64_of_every_unit(unit: str) -> None:
    values = np.array([-1, 0, 1, "NaT"], f"M8[{unit}]")
    expected = [int(v) for v in values[:3].astype("M8[ms]").astype(np.int64)]
    if np.datetime_data(values.dtype)[0] in ("us", "ns", "ps", "fs", "as"):
        expected[0] = -1
    assert times(values, "iso") == [*expected, NO_TIME]
    extremes = np.array([2**63 - 1, -(2**63) + 1]).astype(f"M8[{unit}]")
    if np.datetime_data(values.dtype) in [(u, 1) for u in ("Y", "M", "W", "D", "h", "m", "s", "ms", "us")]:
        assert times(extremes, "iso") == [RANGE, RANGE]
    assert times(np.array(["NaT"], "M8"), "iso") == [NO_TIME]


# ---- events

EVENT = EventPlan(
    event_id=1,
    name="tx",
    time=TimePlan("ts", "s"),
    fields=(
        FieldPlan("customer", Kind.TEXT, True),
        FieldPlan("amount", Kind.NUMBER, False),
        FieldPlan("note", Kind.TEXT, False),
    ),
    lateness_ms=0,
    id_field=None,
    dedupe_ms=0,
    touches=(),
)
DATA = {
    "ts": [1, 2, None],
    "customer": [596, "x", 1.0],
    "amount": [1.5, None, 2],
    "note": ["a", None, "b"],
    "extra": "?",
}


def texts_of(column: TextColumn) -> list[str]:
    return [
        column.data.tobytes()[a:b].decode() for a, b in zip(column.offsets, column.offsets[1:], strict=False)
    ]


def test_columns_of_a_mapping_come_in_the_plans_order() -> None:
    made, (customer, amount, note), outcomes = event_columns(EVENT, DATA)
    assert made.tolist() == [1000, 2000, 0]
    assert texts_of(customer) == ["596", "x", "1"]
    assert amount.tolist()[::2] == [1.5, 2]
    assert note.present.tolist() == [1, 0, 1]
    assert outcomes.tolist() == [0, 0, NO_TIME]


def test_tables_and_frames_give_what_mappings_give() -> None:
    data = {
        "note": ["a", None],
        "ts": [1, 2],
        "amount": [None, 2.5],
        "customer": ["u", "v"],
        "other": [[1], [2]],
    }
    expected = event_columns(EVENT, data)
    for given_data in (pa.table(data), pa.RecordBatch.from_pydict(data), pd.DataFrame(data)):
        made = event_columns(EVENT, given_data)
        assert made[0].tolist() == expected[0].tolist()
        assert made[2].tolist() == [0, 0]
        np.testing.assert_array_equal(made[1][1], expected[1][1])
        assert [texts_of(made[1][k]) for k in (0, 2)] == [["u", "v"], ["a", ""]]


def test_the_first_reason_an_event_is_refused_for_counts() -> None:
    data = {
        "ts": ["x", 1, 1, 1],
        "customer": [1.5, 1.5, "u", "u"],
        "amount": [INF, INF, INF, 1],
        "note": [1.5] * 4,
    }
    assert event_columns(EVENT, data)[2].tolist() == [TYPE, KEY, NOT_FINITE, TYPE]


@pytest.mark.parametrize(
    ("long", "kept"),
    [
        ("x" * 4096, "x" * 4096),
        ("x" * 4097, "x" * 4096),
        ("é" * 2048 + "y", "é" * 2048),
        ("x" + "é" * 2048, "x" + "é" * 2047),
        ("xy" + "漢" * 4000, "xy" + "漢" * 1364),
        ("x" + "🎧" * 1024, "x" + "🎧" * 1023),
    ],
)
def test_a_string_is_cut_to_whole_characters_and_a_key_or_an_id_is_refused(long: str, kept: str) -> None:
    data = {"ts": [1, 2, 3], "customer": ["a", long, None], "note": [long, None, "z"]}
    whole = TOO_LONG if long != kept else 0
    _, (customer, _, note), outcomes = event_columns(EVENT, data)
    assert texts_of(note) == [kept, "", "z"]
    assert note.present is not None
    assert note.present.tolist() == [1, 0, 1]
    assert texts_of(customer) == ["a", "" if whole else kept, ""]
    assert outcomes.tolist() == [0, whole, 0]
    of_ids = replace(EVENT, id_field=2)
    assert event_columns(of_ids, {**data, "customer": ["a", "b", "c"]})[2].tolist() == [whole, 0, 0]


def test_a_whole_number_that_is_too_long_is_not_cut_to_another() -> None:
    numbers = [10**4095, 10**4096, -(10**4095), Decimal(10) ** 4095, "1" * 4097]
    data = {"ts": [1] * 5, "customer": ["a"] * 5, "note": numbers}
    _, (_, _, note), outcomes = event_columns(EVENT, data)
    assert outcomes.tolist() == [0, TOO_LONG, TOO_LONG, 0, 0]
    assert texts_of(note) == [str(10**4095), "", "", str(10**4095), "1" * 4096]


def test_one_long_string_costs_the_others_nothing() -> None:
    """Not an object for each of them."""
    n = 200_000
    offsets = np.arange(n + 2, dtype=np.uint32)
    offsets[-1] += 4096
    texts = TextColumn(offsets, np.full(n + 4097, ord("x"), np.uint8), None)
    tracemalloc.start()
    try:
        column, _ = text_column(texts, is_cut=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert column.offsets[-1] == n + 4096
    assert peak < 64 * n


def test_a_number_or_a_string_that_is_not_there_is_absent() -> None:
    _, (customer, amount, note), outcomes = event_columns(EVENT, {"ts": [1, 2], "customer": ["a", "b"]})
    assert texts_of(customer) == ["a", "b"]
    assert np.isnan(amount).all()
    assert note.present.tolist() == [0, 0]
    assert note.offsets.tolist() == [0, 0, 0]
    assert outcomes.tolist() == [0, 0]


@pytest.mark.parametrize("made", [dict, pa.table, pd.DataFrame])
def test_a_key_that_is_not_there_is_an_error_and_nulls_are_none(made: Any) -> None:
    with pytest.raises(
        InvalidEventError,
        match=r"event 'tx': its key column 'customer' is missing \(its fields: ts, customer, amount, note; .*"
        r"give a column of nulls\); did you mean 'Customers'\?",
    ):
        event_columns(EVENT, made({"ts": [1, 2], "Customers": ["a", "b"], "amount": [1, 2]}))
    with pytest.raises(InvalidEventError, match=r"'customer' is missing .*; columns given: ts, note$"):
        event_columns(EVENT, made({"ts": [1, 2], "note": ["a", "b"]}))
    _, (customer, _, _), outcomes = event_columns(EVENT, made({"ts": [1, 2], "customer": [None, None]}))
    assert customer.present.tolist() == [0, 0]
    assert outcomes.tolist() == [0, 0]


@pytest.mark.parametrize("made", [dict, pa.table, pd.DataFrame])
@pytest.mark.parametrize(("lacking", "kind"), [("amount", "number"), ("note", "string")])
def test_what_is_declared_and_not_there_is_an_error_beside_what_is_not_declared(
    made: Any, lacking: str, kind: str
) -> None:
    """It may be misspelt, and would be summed to 0."""
    data = {"ts": [1], "customer": ["a"], "amount": [5], "note": ["n"]}
    event_columns(EVENT, made({**data, "other": [1]}))
    del data[lacking]
    event_columns(EVENT, made(data))
    near = lacking[:-1]
    with pytest.raises(
        InvalidEventError, match=rf"its {kind} column '{lacking}' is missing .*; did you mean '{near}'\?"
    ):
        event_columns(EVENT, made({**data, near: [5]}))
    with pytest.raises(InvalidEventError, match=rf"'{lacking}' is missing .*; columns given: .*, zz$"):
        event_columns(EVENT, made({**data, "zz": [5]}))


def test_data_that_cannot_be_lined_up_is_an_error() -> None:
    with pytest.raises(InvalidEventError, match="time column 'ts' is missing; did you mean 'tss'"):
        event_columns(EVENT, {"tss": [1]})
    with pytest.raises(InvalidEventError, match="'ts' is missing; columns given: customer, z"):
        event_columns(EVENT, pa.table({"customer": [1], "z": [2]}))
    with pytest.raises(InvalidEventError, match="missing; columns given: none"):
        event_columns(EVENT, {})
    with pytest.raises(InvalidEventError, match=r"tx.amount has 1 values and 'ts' has 2"):
        event_columns(EVENT, {"ts": [1, 2], "customer": [1, 2], "amount": [1]})
    with pytest.raises(InvalidEventError, match=r"tx.customer: expected a column"):
        event_columns(EVENT, {"ts": [1], "customer": "u"})
    with pytest.raises(InvalidEventError, match=r"expected a mapping of columns, .* found list"):
        event_columns(EVENT, [{"ts": 1}])
    with pytest.raises(InvalidEventError, match="two columns are named 'amount'"):
        event_columns(EVENT, pa.table([[1], ["a"], [1], [2]], names=["ts", "customer", "amount", "amount"]))


def test_nothing_compiled_and_neither_arrow_nor_pandas_is_imported() -> None:
    code = (
        "import sys, numpy as np; from featurestore.columns import text_column, time_column; "
        "text_column(['a', 1, None]); text_column(np.arange(3)); time_column(['2018-04-01'], 'iso'); "
        "sys.exit(int(not {'pyarrow', 'pandas', 'featurestore.core'}.isdisjoint(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2], pa.duration("us")),
        np.array([1, 2], "m8[us]"),
        pd.Series(np.array([1, 2], "m8[us]")),
        [timedelta(1), timedelta(2)],
    ],
)
def test_a_duration_is_no_number_no_key_and_no_time(column):
    for codes in (number_column(column)[1], text_column(column)[1], *(
        time_column(column, unit)[1] for unit in ("s", "ms", "us", "ns", "iso")
    )):  # fmt: skip
        assert codes.tolist() == [Outcome.REFUSED_TYPE] * 2


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("digits", [15, 16, 17, 18, 19, 20, 25, 300, 4000])
def test_a_time_far_beyond_64_bits_is_out_of_range_however_it_is_given(unit: str, digits: int) -> None:
    """`99999999999999999` with unit s was an OverflowError."""
    for number in (int("9" * digits), -int("9" * digits)):
        ms = number * 1000 if unit == "s" else number // {"ms": 1, "us": 10**3, "ns": 10**6}[unit]
        fits = abs(number) < 2**63 if unit == "ns" else -62135596800000 <= ms <= 253402300799999
        expected = [ms if fits else RANGE]
        forms: list[Any] = [number, Decimal(number)]
        if digits < 300:  # of so long a text nothing is read
            forms += [str(number)] if fits else [str(number), f"{number}.0"]
        for value in forms:
            for values in ([value], [value, datetime(2020, 1, 1, tzinfo=UTC)]):
                assert times(values, unit)[0] == expected[0], (value, unit)
