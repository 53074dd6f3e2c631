"""Data as people have it (lists, numpy, Arrow, pandas) made into the columns that events travel in.

    times    int64, milliseconds since the epoch
    numbers  float64, NaN = absent
    texts    TextColumn: UTF-8 bytes end to end, offsets between them, presence
    outcomes uint8, one `Outcome` per event: 0, or why this event is refused

One bad value refuses its event and no other; a refused event keeps its place with time 0, NaN and empty
texts. Only data that cannot be lined up into events at all (a missing time or key column, columns of
different lengths, something that is not a column) raises InvalidEventError.

What a value means depends on its field, never on its neighbours:

field       taken                                             refused
key         str; bytes that are UTF-8; integers and floats    other floats and NaN (KEY); bool, dates, others
            that are whole, as decimal text: 596.0 is "596"   (TYPE); more than 4096 bytes (KEY_TOO_LONG)
string      as key; a text of more than 4096 bytes is cut     as key, but floats that are not whole are TYPE
            to the whole characters of its first 4096
number      int, float, bool, Decimal; texts that say one:    NaN, infinity (NOT_FINITE); other texts, dates,
            "100", " 1e3", and t, true, f, false, of any case durations (TYPE)
time, s     int, float, Decimal in the declared unit, or a    null, NaN (NO_TIME); outside the years 1..9999
  ms, us    text that says it; fractions of a millisecond     (TIME_RANGE); bool, other texts (TYPE)
  ns        are floored; ns are those that 64 bits hold
time, iso   texts YYYY-MM-DD[(T| )hh:mm[:ss[(.|,)f...]][zone]],   as above; numbers (TYPE)
            zone = Z | (+|-)hh[[:]mm], none means UTC;
            t and z too, and second 60 is the one after 59

Datetimes that know their own unit (datetime, datetime64, Arrow and pandas timestamps) are taken for a time
field of any unit; naive means UTC. Null is None, an Arrow null, a masked entry, pandas NA, NaT and NaN
(pandas writes NaN for null; anywhere else a NaN was sent). A float of seconds is read to the nearest
microsecond, so that 1.001 is 1001 ms. An empty text is null too, whatever it is of; "NULL" is a text as any.

Columns that are not declared are ignored, so that a table with more in it than the schema knows can be handed
over as it is: where every declared one is there. One that is missing beside one that is not declared may be
misspelt, and would be absent in every event; that is an error. With no such name beside it, a `number` or
`string` that the data lacks is absent in every event. A `key` may never be lacking: no view of that key would
count these events. Where it is meant, the column is given and holds nulls.

numpy only: pandas is used when handed in, pyarrow too, or for what is handed in that only it can read
(`featurestore.exported`); and the compiled core is not needed.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation, localcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.errors import InvalidEventError
from featurestore.exported import array_of, is_exported, table_of
from featurestore.outcome import Outcome
from featurestore.plan import EventPlan, FieldPlan, Kind

MAX_TEXT_BYTES = 4096  # the same number as in core/batch.pxd
EARLIEST_MS = -62135596800000  # 0001-01-01T00:00:00.000Z
LATEST_MS = 253402300799999  # 9999-12-31T23:59:59.999Z

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_LONGEST_ISO_BYTES = 64  # a time with more than 30 digits of fraction
_MONTH_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_MS_PER_TICK = {"W": 604_800_000, "D": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_TICKS_PER_MS = {"us": 10**3, "ns": 10**6, "ps": 10**9, "fs": 10**12, "as": 10**15}
_FLAGS = {b"true": 1.0, b"t": 1.0, b"false": 0.0, b"f": 0.0}
_WHOLE = re.compile(rb"-?(?:[0-9]{1,18}|[0-8][0-9]{18})")  # certainly an integer of 64 bits
_PER_MS = {"ms": 1, "us": 1000, "ns": 1_000_000}
_ARRAY_TYPES: dict[type, type[np.generic]] = {int: np.int64, float: np.float64, bool: np.bool_}

Codes = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class TextColumn:
    """Text i is data[offsets[i]:offsets[i + 1]]; present[i] == 0 means null. Not to be written to."""

    offsets: NDArray[np.uint32]  # n + 1
    data: NDArray[np.uint8]
    present: NDArray[np.uint8] | None  # None: all given


Column = NDArray[np.float64] | TextColumn


def event_columns(event: EventPlan, data: Any) -> tuple[NDArray[np.int64], list[Column], Codes]:
    """Times, one column per EventPlan.fields, and outcomes; `data` is a mapping or an Arrow or pandas table.

    Raises InvalidEventError where the time or a key column is missing or columns differ in length.
    """
    columns = _named_columns(event, data)
    times, outcomes = time_column(
        columns[event.time.field],
        event.time.unit,
        what=f"{event.name}.{event.time.field}",
        time_format=event.time_format,
    )
    n = len(times)
    made: list[Column] = []
    id_field = None if event.id_field is None else event.fields[event.id_field]
    for field in event.fields:
        what = f"{event.name}.{field.name}"
        if field.name not in columns:
            absent = np.zeros(n, np.uint8)
            empty = TextColumn(np.zeros(n + 1, np.uint32), np.empty(0, np.uint8), absent)
            made.append(empty if field.kind == Kind.TEXT else np.full(n, np.nan))
            continue
        if field.kind == Kind.TEXT:
            # an id that is cut would be that of other events
            is_cut = not (field.is_key or field is id_field)
            texts, codes = text_column(columns[field.name], what=what, is_cut=is_cut)
            made.append(texts)
            if not field.is_key:
                codes[codes == Outcome.REFUSED_KEY] = Outcome.REFUSED_TYPE
        else:
            numbers, codes = number_column(columns[field.name], what=what)
            made.append(numbers)
        if len(codes) != n:
            raise InvalidEventError(
                f"{what} has {len(codes)} values and {event.time.field!r} has {n}: columns of one batch match"
            )
        np.copyto(outcomes, codes, where=outcomes == Outcome.ACCEPTED)
    return times, made, outcomes


def _check_names(event: EventPlan, given: Sequence[str]) -> None:
    """Raises InvalidEventError, saying what may have been meant, unless the time and every key are there, and
    everything that is declared if there is anything that is not."""
    fields = [event.time.field, *(field.name for field in event.fields)]
    kinds = {event.time.field: "time"} | {field.name: kind_of(field) for field in event.fields}
    undeclared = {one.lower(): one for one in given if one not in kinds}
    retired = {field.name for field in event.fields if field.retired_ms is not None}
    for name, kind in kinds.items():
        if name in given or name in retired or (kind not in ("time", "key") and not undeclared):
            continue
        close = difflib.get_close_matches(name.lower(), undeclared, n=1)
        hint = (
            f"did you mean {undeclared[close[0]]!r}?"
            if close
            else f"columns given: {', '.join(given) or 'none'}"
        )
        meant = ""
        if kind != "time":
            meant = (
                f" (its fields: {', '.join(fields)}; where no event has a {name!r}, give a column of nulls)"
            )
        raise InvalidEventError(f"event {event.name!r}: its {kind} column {name!r} is missing{meant}; {hint}")


def kind_of(field: FieldPlan) -> str:
    """As the schema declares it; a bool is a number."""
    if field.kind == Kind.NUMBER:
        return "number"
    return "key" if field.is_key else "string"


def _named_columns(event: EventPlan, data: Any) -> Mapping[str, Any]:
    """The declared columns that `data` has."""
    if isinstance(data, Mapping):
        _check_names(event, [str(name) for name in data])
        return data
    if _comes_from("pyarrow", data) and hasattr(data, "column_names"):
        names, get = list(data.column_names), data.column
    elif _comes_from("pandas", data) and hasattr(data, "columns"):
        names, get = [str(name) for name in data.columns], data.__getitem__
    elif is_exported(data):
        table = table_of(data)
        names, get = table.column_names, table.column
    else:
        raise InvalidEventError(
            f"event {event.name!r}: expected a mapping of columns, an Arrow table or a DataFrame, "
            f"found {type(data).__name__}"
        )
    _check_names(event, names)
    wanted = [event.time.field, *(field.name for field in event.fields)]
    for name in wanted:
        if names.count(name) > 1:
            raise InvalidEventError(
                f"event {event.name!r}: two columns are named {name!r}; rename or drop one"
            )
    return {name: get(name) for name in wanted if name in names}


# ---- texts


def text_column(values: Any, *, what: str = "values", is_cut: bool = False) -> tuple[TextColumn, Codes]:
    """Key texts: strings as they are, whole numbers as decimal text; and a code per value, 0 or refused.

    `values` is a sequence, numpy array, Arrow array or pandas Series. Offsets begin at 0 and use all bytes.
    What comes as text and is too long is cut, where `is_cut`, and else refused.
    """
    array, nulls = _unwrap(values, what)
    n = _length(array)
    codes = np.zeros(n, np.uint8)
    if isinstance(array, TextColumn):
        column = array
        nulls = None if array.present is None else array.present == 0
    elif array.dtype.kind in "iu":
        column = _decimal_texts(array)
    elif array.dtype.kind == "f":
        column = _whole_float_texts(array, codes)
    elif array.dtype.kind == "U":
        column = _texts_of_fixed_width(array, np.uint32)
    elif array.dtype.kind == "S":
        column = _texts_of_fixed_width(array, np.uint8)
    elif array.dtype.kind == "O":
        column = _texts_of_objects(array, nulls, codes)
    else:  # bool, datetimes, complex numbers, records
        codes[:] = Outcome.REFUSED_TYPE
        column = _joined([b""] * n)
    if is_cut:
        column = _cut(column)
    codes[_broken_texts(column)] = Outcome.REFUSED_TYPE
    codes[(np.diff(column.offsets) > MAX_TEXT_BYTES) & (codes == 0)] = Outcome.REFUSED_KEY_TOO_LONG
    empty = (np.diff(column.offsets) == 0) & (codes == Outcome.ACCEPTED)
    if empty.any():
        nulls = empty if nulls is None else nulls | empty
    if nulls is None:
        return _blanked(column, codes != 0), codes
    column = _blanked(column, (codes != 0) | nulls)  # an Arrow null may have bytes, of any kind
    codes[nulls] = Outcome.ACCEPTED
    return TextColumn(column.offsets, column.data, (~nulls).view(np.uint8)), codes


def _offsets(lengths: NDArray[Any]) -> NDArray[np.uint32]:
    ends = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    if ends[-1] > 0xFFFFFFFF:
        raise InvalidEventError(
            f"a text column of {ends[-1]} bytes; the limit is 4 GiB: send smaller batches"
        )
    return ends.astype(np.uint32)


def _joined(pieces: Sequence[bytes]) -> TextColumn:
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    return TextColumn(_offsets(lengths), np.frombuffer(b"".join(pieces), np.uint8), None)


def _blanked(column: TextColumn, blank: Mask) -> TextColumn:
    """The column with the texts under `blank` emptied."""
    lengths = np.diff(column.offsets)
    if not (blank & (lengths > 0)).any():
        return column
    kept = column.data[np.repeat(~blank, lengths)]
    return TextColumn(_offsets(np.where(blank, 0, lengths)), kept, column.present)


def _cut(column: TextColumn) -> TextColumn:
    """The column with no text longer than MAX_TEXT_BYTES; each ends with a whole character, if UTF-8."""
    lengths = np.diff(column.offsets).astype(np.int64)
    if not (lengths > MAX_TEXT_BYTES).any():
        return column
    is_kept = np.ones(len(column.data), np.bool_)  # of each byte
    for i in np.flatnonzero(lengths > MAX_TEXT_BYTES).tolist():
        begin = int(column.offsets[i])
        end = MAX_TEXT_BYTES
        while end > MAX_TEXT_BYTES - 3 and column.data[begin + end] & 0xC0 == 0x80:
            end -= 1
        is_kept[begin + end : begin + lengths[i]] = False
        lengths[i] = end
    return TextColumn(_offsets(lengths), column.data[is_kept], column.present)


def _broken_texts(column: TextColumn) -> Mask:
    """Which texts are not UTF-8. Single texts are looked at only where the whole is not well cut UTF-8."""
    lengths = np.diff(column.offsets)
    broken = np.zeros(len(lengths), np.bool_)
    if column.data.size == 0 or column.data.max() < 0x80:
        return broken
    raw = column.data.tobytes()
    first_bytes = column.data[column.offsets[:-1][lengths > 0]]
    if not ((first_bytes & 0xC0) == 0x80).any() and _is_utf8(raw):
        return broken
    for i, (begin, end) in enumerate(
        zip(column.offsets[:-1].tolist(), column.offsets[1:].tolist(), strict=True)
    ):
        broken[i] = not _is_utf8(raw[begin:end])
    return broken


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decimal_texts(numbers: NDArray[Any]) -> TextColumn:
    """Decimal text of integers, one digit of all of them at a time, from the last to the first."""
    negative = numbers < 0
    rest = numbers.astype(np.uint64)
    np.negative(rest, out=rest, where=negative)  # modulo 2**64, so that -2**63 comes out right too
    powers = 10 ** np.arange(1, 20, dtype=np.uint64)
    n_digits = np.searchsorted(powers, rest, side="right") + 1
    offsets = _offsets(n_digits + negative)
    data = np.empty(int(offsets[-1]), np.uint8)
    data[offsets[:-1][negative]] = ord("-")
    at = offsets[1:].astype(np.int64) - 1
    while rest.size:
        quotient = rest // np.uint64(10)
        data[at] = (rest - quotient * np.uint64(10)).astype(np.uint8) + ord("0")
        if not quotient.all():
            more = quotient > 0
            quotient, at = quotient[more], at[more]
        rest, at = quotient, at - 1
    return TextColumn(offsets, data, None)


def _whole_float_texts(numbers: NDArray[Any], codes: Codes) -> TextColumn:
    with np.errstate(invalid="ignore"):
        whole = np.isfinite(numbers) & (np.floor(numbers) == numbers)
    codes[~whole] = Outcome.REFUSED_KEY
    kept = np.where(whole, numbers, 0)
    if (np.abs(kept) < 2.0**63).all():
        return _decimal_texts(kept.astype(np.int64))
    return _joined([str(int(number)).encode() for number in kept])


def _texts_of_fixed_width(array: NDArray[Any], code_unit: type[np.uint8] | type[np.uint32]) -> TextColumn:
    """Of a numpy array of dtype U or S, whose texts end at the last character that is not NUL."""
    width = array.dtype.itemsize // np.dtype(code_unit).itemsize
    if array.size == 0 or width == 0:
        return _joined([b""] * array.size)
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    units = native.view(code_unit).reshape(array.size, width)
    if code_unit is np.uint32 and units.max() >= 0x80:
        return _joined([_encoded(text) for text in array.tolist()])
    lengths = width - np.argmax(units[:, ::-1] != 0, axis=1)
    lengths[~units.any(axis=1)] = 0
    return TextColumn(_offsets(lengths), units[np.arange(width) < lengths[:, None]].astype(np.uint8), None)


def _encoded(text: str) -> bytes:
    """UTF-8; a lone surrogate gives bytes that are not UTF-8, so that the text is found broken."""
    return text.encode(errors="surrogatepass")


def _texts_of_objects(array: NDArray[Any], nulls: Mask | None, codes: Codes) -> TextColumn:
    objects = array.tolist()
    if nulls is not None:
        objects = ["" if null else value for value, null in zip(objects, nulls.tolist(), strict=True)]
    if set(map(type, objects)) <= {str}:
        together = "".join(objects)
        if together.isascii():
            lengths = np.fromiter(map(len, objects), np.int64, len(objects))
            return TextColumn(_offsets(lengths), np.frombuffer(together.encode(), np.uint8), None)
        return _joined([_encoded(text) for text in objects])
    pieces = []
    for i, value in enumerate(objects):
        text = _text_of(value)
        if isinstance(text, Outcome):
            codes[i] = text
            text = b""
        pieces.append(text)
    return _joined(pieces)


def _text_of(value: Any) -> bytes | Outcome:
    if isinstance(value, str):
        return _encoded(value)
    if isinstance(value, bytes):
        return value
    number = _whole_number_of(value)
    if isinstance(number, Outcome):
        return number
    # A digit is worth more than 3.32 bits, and Python refuses to print more than 4300 of them. A number
    # that is too long is not cut either: it would be another.
    digits = b"" if number.bit_length() > 3.33 * MAX_TEXT_BYTES else str(number).encode()
    return digits if 0 < len(digits) <= MAX_TEXT_BYTES else Outcome.REFUSED_KEY_TOO_LONG


def _whole_number_of(value: Any) -> int | Outcome:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float | np.floating):
        whole = math.isfinite(value) and value == math.floor(value)
        return int(value) if whole else Outcome.REFUSED_KEY
    if isinstance(value, Decimal):
        if not value.is_finite() or value != value.to_integral_value():
            return Outcome.REFUSED_KEY
        return int(value) if value.adjusted() < MAX_TEXT_BYTES else Outcome.REFUSED_KEY_TOO_LONG
    return Outcome.REFUSED_TYPE


# ---- numbers


def number_column(values: Any, *, what: str = "values") -> tuple[NDArray[np.float64], Codes]:
    """Numbers as float64, NaN = absent, and a code per value, 0 or refused."""
    array, nulls = _unwrap(values, what)
    n = _length(array)
    codes = np.zeros(n, np.uint8)
    broken: Mask | None = None
    if not isinstance(array, TextColumn) and array.dtype.kind in "US":
        array, codes_of_texts = text_column(array, what=what)
        broken = codes_of_texts != 0
    if isinstance(array, TextColumn):
        nulls = None if array.present is None else array.present == 0
        numbers, nulls = _numbers_of_texts(_texts(array), nulls, codes)
        if broken is not None and nulls is not None:
            nulls &= ~broken
            codes[broken] = Outcome.REFUSED_TYPE
    elif array.dtype.kind in "biuf":
        with np.errstate(over="ignore"):
            numbers = array.astype(np.float64)
        codes[~np.isfinite(numbers)] = Outcome.REFUSED_NOT_FINITE
    elif array.dtype.kind == "O":
        numbers = np.fromiter(map(_number_of, array), np.float64, n)
        codes[np.isposinf(numbers)] = Outcome.REFUSED_NOT_FINITE
        codes[np.isnan(numbers)] = Outcome.REFUSED_TYPE
        is_text = np.fromiter((isinstance(value, str | bytes) for value in array), np.bool_, n)
        if is_text.any():
            texts = [value if isinstance(value, bytes) else _encoded(value) for value in array[is_text]]
            of_texts = np.zeros(len(texts), np.uint8)
            numbers[is_text], empty = _numbers_of_texts(texts, None, of_texts)
            codes[is_text] = of_texts
            if empty is not None:
                nulls = np.zeros(n, np.bool_) if nulls is None else nulls
                nulls[is_text] |= empty
    else:
        codes[:] = Outcome.REFUSED_TYPE
        numbers = np.full(n, np.nan)
    if nulls is not None:
        codes[nulls] = Outcome.ACCEPTED
        numbers[nulls] = np.nan
    numbers[codes != 0] = np.nan
    return numbers, codes


def number_in(text: bytes, *, flags: bool = True) -> float | None:
    """The number that a text says, in decimal notation, inf or nan, with white space around it; with `flags`
    also t and true, f and false, of any case. None where it says none."""
    word = text.strip().lower()
    if flags and word in _FLAGS:
        return _FLAGS[word]
    if b"_" in word or len(text) > MAX_TEXT_BYTES:  # Python's digit separator, nobody else's
        return None
    try:
        return float(word)
    except ValueError:
        return None


def _numbers_of_texts(
    texts: list[bytes], nulls: Mask | None, codes: Codes
) -> tuple[NDArray[np.float64], Mask | None]:
    """The numbers that texts say, and which are null: those that are empty, too."""
    found = [number_in(text) for text in texts]
    numbers = np.array([math.nan if one is None else one for one in found], np.float64)
    codes[~np.isfinite(numbers)] = Outcome.REFUSED_NOT_FINITE
    codes[np.fromiter((one is None for one in found), np.bool_, len(found))] = Outcome.REFUSED_TYPE
    empty = np.fromiter((not text for text in texts), np.bool_, len(texts))
    if not empty.any():
        return numbers, nulls
    return numbers, empty if nulls is None else nulls | empty


def _texts(column: TextColumn) -> list[bytes]:
    raw, ends = column.data.tobytes(), column.offsets.tolist()
    return [raw[begin:end] for begin, end in itertools.pairwise(ends)]


def _number_of(value: Any) -> float:
    """The number; infinity for what is not finite, NaN for what is not a number."""
    if not isinstance(value, int | float | Decimal | np.number | np.bool_) or isinstance(
        value, np.complexfloating
    ):
        return math.nan
    try:
        number = float(value)
    except (OverflowError, ValueError):  # an integer past 1.8e308; a signalling NaN
        return math.inf
    return number if math.isfinite(number) else math.inf


# ---- times


def time_column(
    values: Any, unit: str, *, what: str = "values", time_format: str | None = None
) -> tuple[NDArray[np.int64], Codes]:
    """Milliseconds since the epoch, 0 where refused, and a code per value, 0 or refused.

    `time_format` is one of strptime, which texts of the unit "iso" are in instead of ISO 8601.
    """
    array, nulls = _unwrap(values, what)
    n = _length(array)
    codes = np.zeros(n, np.uint8)
    kind = "T" if isinstance(array, TextColumn) else array.dtype.kind
    if kind in "US":
        array, _ = text_column(array, what=what)
        kind = "T"
    if kind == "M":
        ms = _ms_of_datetimes(array, codes)
    elif kind == "O":
        ms = _ms_of_objects(array, nulls, unit, codes, time_format)
    elif kind == "T" and time_format is not None:
        ms = _ms_of_formatted(_texts(array), time_format, codes)
    elif kind == "T" and unit == "iso":
        ms = _ms_of_iso(array, codes)
    elif kind == "T":
        ms = _ms_of_said_numbers(_texts(array), unit, codes)
    elif kind in "iu" and unit != "iso":
        ms = _ms_of_integers(array, unit, codes)
    elif kind == "f" and unit != "iso":
        ms = _ms_of_floats(array, unit, codes)
    else:
        ms = np.zeros(n, np.int64)
        codes[:] = Outcome.REFUSED_TYPE
    codes[((ms < EARLIEST_MS) | (ms > LATEST_MS)) & (codes == 0)] = Outcome.REFUSED_TIME_RANGE
    if isinstance(array, TextColumn) and array.present is not None:
        nulls = array.present == 0
    if nulls is not None:
        codes[nulls] = Outcome.REFUSED_NO_TIME
    ms[codes != 0] = 0
    return ms, codes


def _within(values: NDArray[Any], low: int, high: int, codes: Codes) -> NDArray[Any]:
    """The values with those outside low..high refused and set to 0, so that scaling them cannot overflow."""
    outside = ~((values >= low) & (values <= high))
    codes[outside & (codes == 0)] = Outcome.REFUSED_TIME_RANGE
    return np.where(outside, values.dtype.type(0), values)


def _ms_of_integers(array: NDArray[Any], unit: str, codes: Codes) -> NDArray[np.int64]:
    if array.dtype.kind == "u":
        most = np.iinfo(np.int64).max
        codes[array > most] = Outcome.REFUSED_TIME_RANGE
        array = np.minimum(array, most).astype(np.int64)
    array = array.astype(np.int64)
    if unit == "s":
        return _within(array, EARLIEST_MS // 1000, LATEST_MS // 1000, codes) * 1000
    return array // _PER_MS[unit]


def _ms_of_floats(array: NDArray[Any], unit: str, codes: Codes) -> NDArray[np.int64]:
    array = array.astype(np.float64)
    codes[np.isnan(array)] = Outcome.REFUSED_NO_TIME
    if unit == "s":
        microseconds: NDArray[np.float64] = np.rint(
            _within(array, EARLIEST_MS // 1000, LATEST_MS // 1000 + 1, codes) * 1e6
        )
        return microseconds.astype(np.int64) // 1000
    scale = _PER_MS[unit]
    low, high = EARLIEST_MS * scale, (LATEST_MS + 1) * scale
    if unit == "ns":
        low, high = -(2**63), 2**63 - 1024  # the last double below 2^63
    whole: NDArray[np.float64] = np.floor(_within(array, low, high, codes))
    return whole.astype(np.int64) // scale


def _ms_of_datetimes(array: NDArray[Any], codes: Codes) -> NDArray[np.int64]:
    unit, _ = np.datetime_data(array.dtype)
    codes[np.isnat(array)] = Outcome.REFUSED_NO_TIME
    if unit == "generic":  # a datetime64 without a unit can only hold NaT
        return np.zeros(len(array), np.int64)
    ticks = array.astype(f"M8[{unit}]").view(np.int64)
    if unit in ("Y", "M"):
        months_per_tick = 12 if unit == "Y" else 1
        ticks = _within(ticks, -1970 * 12 // months_per_tick, 8030 * 12 // months_per_tick, codes)
        months: NDArray[np.datetime64] = (ticks * months_per_tick).astype("M8[M]")
        return months.astype("M8[ms]").astype(np.int64)
    if unit in _MS_PER_TICK:
        scale = _MS_PER_TICK[unit]
        return _within(ticks, EARLIEST_MS // scale, LATEST_MS // scale, codes) * scale
    return ticks // _TICKS_PER_MS[unit]


def _ms_of_objects(
    array: NDArray[Any], nulls: Mask | None, unit: str, codes: Codes, time_format: str | None
) -> NDArray[np.int64]:
    """Values of several types, one by one; only the texts among them are read together."""
    ms = np.zeros(len(array), np.int64)
    texts = np.fromiter((isinstance(value, str | bytes) for value in array), np.bool_, len(array))
    if texts.any():
        column, broken = text_column(array[texts])
        of_texts = np.zeros(len(broken), np.uint8)
        if time_format is not None:
            ms[texts] = _ms_of_formatted(_texts(column), time_format, of_texts)
        elif unit == "iso":
            ms[texts] = _ms_of_iso(column, of_texts)
        else:
            ms[texts] = _ms_of_said_numbers(_texts(column), unit, of_texts)
        codes[texts] = np.where(broken != 0, broken, of_texts)
    for i in np.flatnonzero(~texts if nulls is None else ~(texts | nulls)).tolist():
        one = _ms_of(array[i], unit)
        if isinstance(one, Outcome):
            codes[i] = one
        elif EARLIEST_MS <= one <= LATEST_MS:
            ms[i] = one
        else:
            codes[i] = Outcome.REFUSED_TIME_RANGE
    return ms


def _ms_of_formatted(texts: list[bytes], time_format: str, codes: Codes) -> NDArray[np.int64]:
    """Of texts in a format of strptime; without an offset they mean UTC."""
    ms = np.zeros(len(texts), np.int64)
    known: dict[bytes, int | Outcome] = {}  # neighbours mostly have the same second
    for i, text in enumerate(texts):
        one = known.get(text)
        if one is None:
            try:
                moment = datetime.strptime(text.decode(), time_format)
                one = _ms_of(moment, "iso")
            except (ValueError, OverflowError):
                one = Outcome.REFUSED_TYPE if text else Outcome.REFUSED_NO_TIME
            known[text] = one
        if isinstance(one, Outcome):
            codes[i] = one
        else:
            ms[i] = one
    return ms


def _ms_of_said_numbers(texts: list[bytes], unit: str, codes: Codes) -> NDArray[np.int64]:
    """Of texts that say a number in this unit."""
    ms = np.zeros(len(texts), np.int64)
    for i, text in enumerate(texts):
        number = int(text) if _WHOLE.fullmatch(text) else number_in(text, flags=False)
        one = Outcome.REFUSED_TYPE if number is None else _ms_of_number(number, unit)
        if not text:
            one = Outcome.REFUSED_NO_TIME
        if isinstance(one, Outcome):
            codes[i] = one
        else:
            ms[i] = one
    return ms


def _ms_of(value: Any, unit: str) -> int | Outcome:
    """Milliseconds of one value that is neither text nor null."""
    if isinstance(value, np.generic):
        one = np.array([value])
        ms, codes = time_column(one, unit) if one.dtype.kind != "O" else ([0], [Outcome.REFUSED_TYPE])
        return Outcome(codes[0]) if codes[0] else int(ms[0])
    if isinstance(value, datetime):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return int((aware - _EPOCH) // _MILLISECOND)
    if isinstance(value, date):
        return (value - _EPOCH.date()) // _MILLISECOND
    if unit == "iso" or isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return Outcome.REFUSED_TYPE
    return _ms_of_number(value, unit)


def _ms_of_number(value: int | float | Decimal, unit: str) -> int | Outcome:
    if (isinstance(value, float) and math.isnan(value)) or (isinstance(value, Decimal) and value.is_nan()):
        return Outcome.REFUSED_NO_TIME
    # Those of all ms that 64 bits hold; the caller sees to the years.
    most = 10**15 if unit == "s" else 2**63 if unit == "ns" else 10**18
    if not -most <= value < most:
        return Outcome.REFUSED_TIME_RANGE
    if unit == "s":
        return round(value * 1e6) // 1000 if isinstance(value, float) else math.floor(value * 1000)
    return math.floor(value) // _PER_MS[unit]


# ---- ISO times: the grammar at the head of this file, read one character position of all texts at a time


class _Characters:
    """The characters of every text of a column by their position in it."""

    def __init__(self, column: TextColumn) -> None:
        self._starts = column.offsets[:-1].astype(np.int64)
        self._data = np.append(column.data, np.uint8(0))
        self.lengths = np.diff(column.offsets).astype(np.int64)

    def at(self, position: Any) -> NDArray[np.uint8]:
        """The byte at this position of each text, 0 past its end."""
        place = np.minimum(self._starts + position, self._data.size - 1)
        return np.where(position < self.lengths, self._data[place], np.uint8(0))

    def are(self, position: Any, characters: bytes) -> Mask:
        """Which texts have one of these characters at the position."""
        return np.isin(self.at(position), np.frombuffer(characters, np.uint8))

    def number(self, position: Any, n_digits: int) -> tuple[NDArray[np.int64], Mask]:
        """The number that n digits from the position on say, and which texts have digits there."""
        value, good = np.zeros(len(self.lengths), np.int64), np.ones(len(self.lengths), np.bool_)
        for k in range(n_digits):
            digit = self.at(position + k) - np.uint8(ord("0"))  # wraps to 10 or more for what is not a digit
            good &= digit <= 9
            value = value * 10 + digit
        return value, good


def _ms_of_iso(column: TextColumn, codes: Codes) -> NDArray[np.int64]:
    text = _Characters(column)
    days, good = _iso_date(text)
    clock_ms, good_clock, end = _iso_clock(text)
    east_ms, good_zone = _iso_zone(text, end)
    has_clock = text.lengths > len("YYYY-MM-DD")
    good &= (text.lengths <= _LONGEST_ISO_BYTES) & (~has_clock | (good_clock & good_zone))
    codes[~good] = Outcome.REFUSED_TYPE
    codes[text.lengths == 0] = Outcome.REFUSED_NO_TIME
    return np.where(good, days * _MS_PER_TICK["D"] + np.where(has_clock, clock_ms - east_ms, 0), 0)


def _iso_date(text: _Characters) -> tuple[NDArray[np.int64], Mask]:
    """YYYY-MM-DD in days since the epoch, and which texts begin so."""
    (year, good), (month, good_month), (day, good_day) = (
        text.number(0, 4),
        text.number(5, 2),
        text.number(8, 2),
    )
    good &= good_month & good_day & text.are(4, b"-") & text.are(7, b"-") & (month >= 1) & (month <= 12)
    month = np.where(good, month, 1)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    good &= (day >= 1) & (day <= _MONTH_DAYS[month] + (leap & (month == 2)))
    return _days_from_civil(year, month, day), good


def _iso_clock(text: _Characters) -> tuple[NDArray[np.int64], Mask, NDArray[np.int64]]:
    """(T|t| )hh:mm[:ss[(.|,)f...]] in milliseconds, which texts go on so, and where it ends in each."""
    (hour, good), (minute, good_minute) = text.number(11, 2), text.number(14, 2)
    good &= good_minute & (hour <= 23) & (minute <= 59) & text.are(10, b"Tt ") & text.are(13, b":")
    has_seconds = text.are(16, b":")
    second, good_second = text.number(17, 2)
    good &= ~has_seconds | (good_second & (second <= 60))
    in_fraction = has_seconds & text.are(19, b".,")
    good &= ~in_fraction | text.number(20, 1)[1]
    end = np.where(has_seconds, np.where(in_fraction, 20, 19), 16)
    ms = (hour * 60 + minute) * 60_000 + np.where(has_seconds, second * 1000, 0)
    weight = 100
    for position in range(20, _LONGEST_ISO_BYTES):
        digit, is_digit = text.number(position, 1)
        in_fraction &= is_digit
        if not in_fraction.any():
            break
        ms += np.where(in_fraction, digit * weight, 0)
        weight //= 10  # 0 from the fourth digit on: the rest is dropped, which floors, before 1970 too
        end = np.where(in_fraction, position + 1, end)
    return ms, good, end


def _iso_zone(text: _Characters, begin: NDArray[np.int64]) -> tuple[NDArray[np.int64], Mask]:
    """Nothing, Z, z or (+|-)hh[[:]mm] up to the end, in milliseconds east of UTC, and which texts end so."""
    left = text.lengths - begin
    colon = text.are(begin + 3, b":").astype(np.int64)
    whole_hours = left == len("+hh")
    (hour, good_hour), (minute, good_minute) = text.number(begin + 1, 2), text.number(begin + 3 + colon, 2)
    minute = np.where(whole_hours, 0, minute)
    good = text.are(begin, b"+-") & good_hour & (hour <= 23)
    good &= whole_hours | (good_minute & (minute <= 59) & (left == len("+hhmm") + colon))
    east_ms = np.where(good, (hour * 60 + minute) * 60_000, 0)
    utc = (left == 0) | ((left == 1) & text.are(begin, b"Zz"))
    return np.where(text.are(begin, b"-"), -east_ms, east_ms), good | utc


def _days_from_civil(
    year: NDArray[np.int64], month: NDArray[np.int64], day: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Days since 1970-01-01, proleptic Gregorian. A year counted from March ends with its leap day."""
    march_year = year - (month <= 2)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return march_year * 365 + march_year // 4 - march_year // 100 + march_year // 400 + day_of_year - 719_468


# ---- taking columns out of what they came in


def _length(array: Any) -> int:
    return len(array.offsets) - 1 if isinstance(array, TextColumn) else len(array)


def _comes_from(package: str, value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == package


def _unwrap(values: Any, what: str) -> tuple[Any, Mask | None]:
    """A 1-d numpy array, or a TextColumn for Arrow texts; and which entries are null (None: none)."""
    if isinstance(values, TextColumn):
        return values, None
    if is_exported(values):
        values = array_of(values, what)
    if _comes_from("pyarrow", values) and hasattr(values, "null_count"):
        return _unwrap_arrow(values, what)
    if _comes_from("pandas", values) and hasattr(values, "isna"):
        return _unwrap_pandas(values, what)
    if isinstance(values, np.ma.MaskedArray):
        array, _ = _unwrap(np.asarray(values.filled()), what)
        return array, np.ma.getmaskarray(values)
    if isinstance(values, np.ndarray) or hasattr(values, "__array__"):
        array = np.asarray(values)
        if array.ndim != 1:
            raise InvalidEventError(f"{what}: a column has one dimension, this array has {array.ndim}")
        return _narrowed(array.tolist()) if array.dtype.kind in "OT" else (array, None)
    if isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping):
        return _narrowed(list(values))
    raise InvalidEventError(
        f"{what}: expected a column (list, numpy, Arrow or pandas), found {type(values).__name__}"
    )


def _narrowed(objects: list[Any]) -> tuple[NDArray[Any], Mask | None]:
    """An array of the one number type that all values have, or else of objects; and which are null."""
    types = set(map(type, objects))
    null_types = {kind for kind in types if kind is type(None) or kind.__qualname__ in ("NAType", "NaTType")}
    nulls: Mask | None = None
    if null_types:
        nulls = np.fromiter((type(value) in null_types for value in objects), np.bool_, len(objects))
        types -= null_types
    dtype = _ARRAY_TYPES.get(next(iter(types))) if len(types) == 1 else None
    if dtype is not None:
        zero = next(iter(types))()
        filled = (
            objects if nulls is None else [zero if type(value) in null_types else value for value in objects]
        )
        try:
            return np.array(filled, dtype), nulls
        except OverflowError:  # an integer of more than 64 bits
            pass
    return np.fromiter(objects, object, len(objects)), nulls


def _unwrap_arrow(values: Any, what: str) -> tuple[Any, Mask | None]:
    pa = sys.modules["pyarrow"]
    types = pa.types
    array = values
    if types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    kind = array.type
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    is_bytes = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    nulls = None if array.null_count == 0 else np.asarray(array.is_null())
    if is_text or is_bytes:
        array = array.cast(pa.large_string() if is_text else pa.large_binary())
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        _, offsets_buffer, data_buffer = array.buffers()
        if len(array) == 0 or data_buffer is None:
            texts = _joined([b""] * len(array))
        else:
            offsets = np.frombuffer(offsets_buffer, np.int64)[array.offset : array.offset + len(array) + 1]
            data = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
            texts = TextColumn(_offsets(np.diff(offsets)), data, None)
        present = None if nulls is None else (~nulls).view(np.uint8)
        return TextColumn(texts.offsets, texts.data, present), None
    if types.is_timestamp(kind) or types.is_date(kind):
        unit = kind.unit if types.is_timestamp(kind) else ("D" if types.is_date32(kind) else "ms")
        bits = pa.int32() if types.is_date32(kind) else pa.int64()
        ticks = _numpy_of_arrow(array.cast(bits), 0).astype(np.int64)
        return ticks.view(f"M8[{unit}]"), nulls
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return _numpy_of_arrow(array, False if types.is_boolean(kind) else 0), nulls
    return _unwrap(array.to_pylist(), what)


def _numpy_of_arrow(array: Any, filler: Any) -> NDArray[Any]:
    filled = array.fill_null(filler) if array.null_count else array
    made: NDArray[Any] = filled.to_numpy(zero_copy_only=False)
    return made


def nulls_of_pandas(values: Any) -> Mask:
    with localcontext() as context:  # pandas compares a signalling NaN, too
        context.traps[InvalidOperation] = False
        return np.asarray(values.isna(), np.bool_)


def _unwrap_pandas(values: Any, what: str) -> tuple[Any, Mask | None]:
    if getattr(values, "ndim", 1) != 1:
        raise InvalidEventError(
            f"{what}: a column has one dimension, this {type(values).__name__} has {values.ndim}"
        )
    nulls = nulls_of_pandas(values)
    some_nulls = nulls if nulls.any() else None
    dtype = values.dtype
    if hasattr(dtype, "pyarrow_dtype") and "pyarrow" in sys.modules:
        array, arrow_nulls = _unwrap_arrow(sys.modules["pyarrow"].array(values), what)
        return array, arrow_nulls
    if hasattr(dtype, "categories"):
        return _unwrap_pandas(values.astype(dtype.categories.dtype), what)
    if hasattr(dtype, "tz"):  # kept as UTC, written as local time
        return values.to_numpy(dtype=f"M8[{dtype.unit}]"), some_nulls
    if getattr(dtype, "kind", "O") in "iufb":
        plain = np.dtype(getattr(dtype, "numpy_dtype", dtype))
        return values.to_numpy(dtype=plain, na_value=plain.type(0)), some_nulls
    if getattr(dtype, "kind", "O") == "M":
        return values.to_numpy(), some_nulls
    objects = values.to_numpy(dtype=object)
    objects = np.where(nulls, None, objects)
    return _unwrap(objects, what)
