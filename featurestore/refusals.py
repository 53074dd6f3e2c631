"""Why one event was refused, for people: which field, what it holds, and what to do about it.

    ts: '2024-05-01 10:00:00 UTC' is no ISO 8601 time; declare format: '%Y-%m-%d %H:%M:%S UTC'

An outcome alone does not say which of the fields it is of. Where the event is at hand its values are read
once more, alone and in the same order (`refused_field`); of one that only the server has judged, the server
names the field. Values are shown as Python writes them, so that no byte of a file reaches a terminal as it
is, and cut.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from featurestore.columns import (
    MAX_TEXT_BYTES,
    TextColumn,
    kind_of,
    nulls_of_pandas,
    number_column,
    number_in,
    text_column,
    time_column,
)
from featurestore.outcome import Outcome
from featurestore.plan import EventPlan, FieldPlan, Kind

SHOWN_CHARACTERS = 60
# How times are written that are not ISO 8601, as strptime has it; the first that fits is advised.
TIME_FORMATS = (
    "%Y-%m-%d %H:%M:%S UTC", "%Y-%m-%d %H:%M:%S.%f UTC", "%Y-%m-%d %H:%M:%S %z", "%Y-%m-%d %H:%M:%S.%f %z",
    "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%Y%m%d", "%Y%m%d%H%M%S", "%Y%m%dT%H%M%SZ",
    "%d/%b/%Y:%H:%M:%S %z", "%a, %d %b %Y %H:%M:%S %z", "%a, %d %b %Y %H:%M:%S GMT",
    "%a %b %d %H:%M:%S %Y", "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y",
)  # fmt: skip
UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
# Outcomes of which field, where nobody says so.
OF_THE_TIME = {
    Outcome.REFUSED_NO_TIME,
    Outcome.REFUSED_TIME_RANGE,
    Outcome.REFUSED_FUTURE,
    Outcome.REFUSED_BEYOND_DEDUPE,
}
WITHOUT_VALUE = {
    Outcome.REFUSED_NO_TIME: "no time, and every event needs one",
    Outcome.REFUSED_NO_ID: "no id, and where ids are declared every event needs one",
}
WITH_VALUE = {
    Outcome.REFUSED_NO_TIME: "{} is no time, and every event needs one",
    Outcome.REFUSED_TIME_RANGE: "{} is outside the years 1 to 9999",
    Outcome.REFUSED_FUTURE: "{} is further ahead of the clock than max_future allows; correct it",
    Outcome.REFUSED_NOT_FINITE: "{} is not finite; leave it out where it is not known",
    Outcome.REFUSED_KEY: "{} is no whole number, and so no key; write it as text",
    Outcome.REFUSED_KEY_TOO_LONG: f"{{}} is longer than {MAX_TEXT_BYTES} bytes, as no key or id may be; "
    "send a hash of it",
}
OF_THE_ID = {Outcome.REFUSED_NO_ID, Outcome.REFUSED_MEMORY}


@dataclass(frozen=True)
class Why:
    """`field` is None where it is not known, `value` where it is not, or there is none."""

    outcome: Outcome
    field: str | None
    value: str | None  # as `shown` has it
    reason: str  # one sentence, with both in it

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "outcome": self.outcome.name.lower(),
            "field": self.field,
            "value": self.value,
            "reason": self.reason,
        }


def why(
    outcome: Outcome, event: EventPlan | None, field: str | None, value: Any, *, is_sent: bool = False
) -> Why:
    """Of an event that was refused so for this value of this field. `event` None: its type is not known here.
    `is_sent`: it was sent as it is, where a schema's format of files does not help."""
    if event is None:
        text = None if value is None else shown(value)
        of = f"{field}: " if field else ""
        return Why(
            outcome, field, text, of + (outcome.reason if text is None else f"{text}: {outcome.reason}")
        )
    if field is None and outcome in OF_THE_TIME:
        field = event.time.field
    elif field is None and outcome in OF_THE_ID and event.id_field is not None:
        field = event.fields[event.id_field].name
    text = None if value is None else shown(value)
    if field is None:
        return Why(outcome, None, None, outcome.reason)
    declared = next((one for one in event.fields if one.name == field), None)
    if is_sent and declared is None and outcome is Outcome.REFUSED_TYPE and text is not None:
        unit = event.time.unit
        wanted = "ISO 8601 time" if unit == "iso" else f"number of {UNITS[unit]}"
        return Why(outcome, field, text, f"{field}: {text} is no {wanted}; send that, or a datetime")
    return Why(outcome, field, text, f"{field}: {_sentence(outcome, event, declared, value)}")


def refused_field(event: EventPlan, columns: Mapping[str, Any], row: int) -> tuple[str | None, Any]:
    """The field for which `featurestore.columns` refuses this row of columns by field name, and its value
    there, None where there is none. (None, None) of columns that cannot be read twice, and of what they take.
    """
    for field in (None, *event.fields):
        name = event.time.field if field is None else field.name
        if name not in columns:
            continue
        one = _one(columns[name], row)
        if one is None:
            return None, None
        if field is None:
            codes = time_column(one, event.time.unit, time_format=event.time_format)[1]
        elif field.kind == Kind.NUMBER:
            codes = number_column(one)[1]
        else:
            is_id = event.id_field is not None and field is event.fields[event.id_field]
            codes = text_column(one, is_cut=not (field.is_key or is_id))[1]
        if codes[0]:
            return name, value_in(one)
    return None, None


def value_in(column: Any) -> Any:
    """The one value of a column of one."""
    if isinstance(column, TextColumn):
        if column.present is not None and not column.present[0]:
            return None
        return column.data[column.offsets[0] : column.offsets[1]].tobytes()
    if hasattr(type(column), "to_pylist"):  # of the type: a Series has its labels as attributes, too
        return column.to_pylist()[0]
    if hasattr(column, "isna") and nulls_of_pandas(column).any():
        return None
    values = column.tolist() if hasattr(column, "tolist") else list(column)
    return values[0]


def shown(value: Any) -> str:
    """As Python writes it, in ASCII where it is not to be printed, and cut."""
    if isinstance(value, list | dict | tuple | set):
        return "a list or an object"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value[: 4 * SHOWN_CHARACTERS + 4].decode(errors="backslashreplace")
    try:
        if isinstance(value, str):
            is_cut = len(value) > SHOWN_CHARACTERS
            return repr(value[:SHOWN_CHARACTERS]) + ("..." if is_cut else "")
        text = str(value) if isinstance(value, int | float) else repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "an integer of thousands of digits"
    text = "".join(one if one.isprintable() else "?" for one in text[: SHOWN_CHARACTERS + 1])
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def _one(column: Any, row: int) -> Any:
    """The column of this row's value alone; None where it cannot be cut."""
    if isinstance(column, TextColumn):
        begin, end = (int(at) for at in column.offsets[row : row + 2])
        present = None if column.present is None else column.present[row : row + 1]
        return TextColumn(np.array([0, end - begin], np.uint32), column.data[begin:end], present)
    try:
        cut = column.iloc[row : row + 1] if hasattr(column, "iloc") else column[row : row + 1]
        return cut if len(cut) == 1 else None
    except TypeError:
        return None


def _sentence(outcome: Outcome, event: EventPlan, field: FieldPlan | None, value: Any) -> str:
    """What is wrong with a value of `field` (None: the time), and what to do."""
    if value is None:
        return WITHOUT_VALUE.get(outcome, outcome.reason)
    if outcome is Outcome.REFUSED_TYPE:
        return (
            _no_time(event, value, shown(value)) if field is None else _no_value(field, value, shown(value))
        )
    unit = _other_unit(event.time.unit, value) if field is None else ""
    return WITH_VALUE.get(outcome, f"{{}}: {outcome.reason}").format(shown(value)) + unit


def _no_value(field: FieldPlan, value: Any, text: str) -> str:
    if isinstance(value, bytes) and not _is_utf8(value):
        return f"{text} is not UTF-8 text; convert it (iconv -t UTF-8)"
    kind = kind_of(field)
    if kind == "number":
        return f"{text} is no number; correct it, or declare the field a string"
    return f"{text} is no {kind}; write it as text or a whole number"


def _no_time(event: EventPlan, value: Any, text: str) -> str:
    if event.time.unit != "iso":
        return (
            f"{text} is no number of {UNITS[event.time.unit]}; where the time is written as a text, declare "
            "no unit"
        )
    if event.time_format is not None:
        return f"{text} is not in the declared format, {event.time_format!r}"
    remedy = "declare format: as strptime has it"
    if isinstance(value, bytes | str):
        written = value.decode(errors="replace") if isinstance(value, bytes) else value
        fits = next((one for one in TIME_FORMATS if _is_in(written, one)), None)
        if fits is not None:
            remedy = f"declare format: {fits!r}"
        elif number_in(written.encode(errors="replace"), flags=False) is not None:
            remedy = "declare its unit: s, ms, us or ns"
    elif isinstance(value, int | float):
        remedy = "declare its unit: s, ms, us or ns"
    return f"{text} is no ISO 8601 time; {remedy}"


def _is_in(text: str, time_format: str) -> bool:
    if len(text) > SHOWN_CHARACTERS:
        return False
    try:
        datetime.strptime(text, time_format)
    except ValueError:
        return False
    return True


def _other_unit(unit: str, value: Any) -> str:
    """What to declare, to end a sentence on a number that is too large; nothing where that is no use."""
    units = list(UNITS)
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    if unit not in units[:-1] or not re.fullmatch(r"[+-]?[0-9]{1,40}(\.[0-9]*)?", text):
        return ""
    finer = " or ".join(UNITS[one] for one in units[units.index(unit) + 1 :])
    return f"; if it is in {finer}, declare that unit"


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
