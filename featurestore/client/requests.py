"""People's values made into requests: one event, one key set, many key sets, a time to read at."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore import columns as canonical
from featurestore.client import wire
from featurestore.client.replies import Ack, ServiceSchema
from featurestore.client.sequences import Ticket
from featurestore.columns import TextColumn
from featurestore.errors import ConfigError, InvalidEventError
from featurestore.exported import is_exported, table_of
from featurestore.outcome import Outcome
from featurestore.v1 import feature_store_service_pb2 as service_pb
from featurestore.v1 import registry_service_pb2 as registry_pb
from featurestore.v1 import types_pb2

Time = int | str | datetime | np.datetime64
KeySets = Sequence[Mapping[str, Any]] | Mapping[str, Any] | Any

MOST_BITS = 13_600  # 4094 digits: Python prints no more than 4300
_INT64 = range(-(2**63), 2**63)
_SECONDS = range(631_152_000, 4_102_444_800)  # since the epoch, of 1990 to 2099; in ms: 8 Jan to 17 Feb 1970


def set_value(target: types_pb2.Field, value: Any, what: str) -> None:
    """Gives the field its value; None, NA and NaT leave it absent. `what` names it in messages."""
    if _is_null(value):
        return
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | bytes):
        target.text = _text(value, what)
    elif isinstance(value, bool):
        target.flag = value
    elif isinstance(value, int):
        if value in _INT64:
            target.integer = value
        elif value.bit_length() <= MOST_BITS:  # a key means its decimal text, however long
            target.text = str(value)
        else:
            raise InvalidEventError(f"{what}: an integer of {value.bit_length()} bits, which no key is")
    elif isinstance(value, float | Decimal):
        target.number = float(value)
    else:
        raise InvalidEventError(
            f"{what}: expected a text, a number, a truth value or None, found {type(value).__name__}"
        )


def _text(value: str | bytes, what: str) -> str:
    """The text; half of a surrogate pair is none, and nor are all bytes."""
    try:
        if isinstance(value, bytes):
            return value.decode()
        value.encode()
    except UnicodeError as error:
        raise InvalidEventError(f"{what}: it is not text that UTF-8 can hold ({error})") from error
    return value


def _is_null(value: Any) -> bool:
    """As in featurestore.columns: None, pandas' NA, and no time of any kind."""
    if isinstance(value, np.datetime64):
        return bool(np.isnat(value))
    return value is None or type(value).__qualname__ in ("NAType", "NaTType")


def time_ms(when: Time, what: str) -> int:
    """Milliseconds since the epoch of a number of them, a datetime (naive means UTC) or ISO 8601 text."""
    if isinstance(when, bool) or not isinstance(when, int | np.integer | str | date | np.datetime64):
        raise InvalidEventError(
            f"{what}: expected milliseconds, a datetime or ISO text, found {type(when).__name__}"
        )
    ms, codes = canonical.time_column([when], "iso" if isinstance(when, str) else "ms")
    if codes[0]:
        reason = Outcome(codes[0]).reason
        if isinstance(when, str):
            reason = "it is no time; write ISO 8601 such as 2018-04-01T00:07:56Z, of the years 1 to 9999"
        elif codes[0] == Outcome.REFUSED_NO_TIME:
            reason = "it is no time"
        raise InvalidEventError(f"{what}: {when!r} cannot be used: {reason}")
    _refuse_seconds(when, what)
    return int(ms[0])


def _refuse_seconds(when: Any, what: str) -> None:
    """A number is of milliseconds: what is a time of these days only in seconds was meant so."""
    if isinstance(when, int | float | np.number) and int(when) in _SECONDS:
        raise InvalidEventError(
            f"{what}: {when!r} looks like seconds, and is read as milliseconds since 1970: write "
            f"{int(when)}000, or a datetime or ISO text if early 1970 is meant"
        )


def is_datetime(value: Any) -> bool:
    """It knows its own unit."""
    return isinstance(value, date | np.datetime64) and not _is_null(value)


def is_plain(value: Any) -> bool:
    """It may be a field's value; the others are a time, or nothing that can be sent."""
    return isinstance(value, str | int | float | bytes | Decimal) or (
        _is_null(value) or (isinstance(value, np.generic) and not isinstance(value, np.datetime64))
    )


def mapped(value: Any, what: str) -> Mapping[str, Any]:
    """The value, or InvalidEventError where it does not map names to values."""
    if not isinstance(value, Mapping):
        raise InvalidEventError(f"{what}; found {type(value).__name__}")
    for name in value:
        if not isinstance(name, str):
            raise InvalidEventError(f"{what}; {name!r} is no name")
        _text(name, f"the name {name!r}")
    return value


def wire_ack(ack: Ack | None) -> str:
    """The enum value's name in the proto."""
    if ack is not None and not isinstance(ack, Ack):
        raise ConfigError(f"ack is {ack!r}; it is Ack.APPLIED, Ack.DURABLE or None")
    return "ACK_UNSPECIFIED" if ack is None else f"ACK_{ack.name}"


def observe_request(
    event: str,
    fields: Mapping[str, Any],
    service: ServiceSchema | None,
    ticket: Ticket | None,
    *,
    peek: bool,
    bounds: bool,
    ack: Ack | None,
    is_pinned: bool = True,
) -> bytes:
    """An ObserveRequest, for this vector of the service or, unless it is pinned, for whatever it is now. A
    datetime among the fields is the event's time: the caller has seen to it that it stands under that name.
    """
    request = service_pb.ObserveRequest(event_type=event, peek=peek, ack=wire_ack(ack))
    if service is not None:
        request.service, request.bounds, request.coverage = service.name, bounds, True
        if is_pinned:
            request.fingerprint = service.fingerprint
    if ticket is not None:
        request.producer, request.epoch, request.sequence = ticket.producer, ticket.epoch, ticket.sequence
    body = request.event
    body.SetInParent()
    for name, value in fields.items():
        if is_datetime(value):
            body.time_ms = time_ms(value, f"{event}.{name}")
        else:
            set_value(body.fields.add(name=name), value, f"{event}.{name}")
    message: bytes = request.SerializeToString()
    return message


def read_request(
    service: ServiceSchema,
    keys: Mapping[str, Any],
    as_of: Time | None,
    bounds: bool,
    is_pinned: bool = True,
) -> bytes:
    """A GetFeaturesRequest for one key set."""
    request = _read(service, bounds, is_pinned)
    if as_of is not None:
        request.as_of_ms = time_ms(as_of, "as_of")
    parts = request.key_sets.add().parts
    keys = mapped(
        keys, "keys are a mapping of names to values, such as {'ip': '10.0.0.1'}; get_many takes many"
    )
    for name, value in keys.items():
        set_value(parts.add(name=name), value, f"key {name}")
    message: bytes = request.SerializeToString()
    return message


def heaviest_request(
    service: str, keys: Mapping[str, Any], as_of: Time | None, fingerprint: int | None = None
) -> bytes:
    """A GetHeaviestRequest, of this vector of the service; None: of the one that it is now."""
    request = service_pb.GetHeaviestRequest(service=service, fingerprint=fingerprint)
    if as_of is not None:
        request.as_of_ms = time_ms(as_of, "as_of")
    keys = mapped(keys, "keys are a mapping of names to values, such as {'ip': '10.0.0.1'}")
    for name, value in keys.items():
        if not _is_null(value):
            set_value(request.key_set.parts.add(name=name), value, f"key {name}")
    message: bytes = request.SerializeToString()
    return message


def producer_request(name: str) -> bytes:
    """A GetProducerRequest."""
    if not isinstance(name, str):
        raise ConfigError(f"a producer's name is text, not {name!r}")
    text = _text(name, "a producer's name")
    message: bytes = registry_pb.GetProducerRequest(name=text).SerializeToString()
    return message


def read_requests(
    service: ServiceSchema,
    keys: KeySets,
    as_of: Any,
    bounds: bool,
    max_values: int,
    *,
    is_pinned: bool,
) -> Iterator[tuple[bytes, int]]:
    """GetFeaturesRequests for many key sets, in order, each for at most `max_values` values; and how many
    vectors each asks for.
    """
    named = key_columns(keys)
    n = len(named[0][1].offsets) - 1 if named else len(keys)
    request = _read(service, bounds, is_pinned)
    each: NDArray[np.int64] | None = None
    if as_of is not None:
        if isinstance(as_of, Time):
            request.as_of_ms = time_ms(as_of, "as_of")
        else:
            each = _times_of_each(as_of, n)
    head = request.SerializeToString()
    step = max(max_values // max(len(service.names), 1), 1)
    for begin in range(0, n, step):
        end = min(begin + step, n)
        body = [head]
        if named:
            body.append(wire.key_columns([(name, sliced(one, begin, end)) for name, one in named]))
        else:  # key sets without any part: services that are read by no key
            body.append(
                service_pb.GetFeaturesRequest(
                    key_sets=[types_pb2.KeySet()] * (end - begin)
                ).SerializeToString()
            )
        if each is not None:
            body.append(wire.as_of_each(each[begin:end]))
        yield b"".join(body), end - begin


def _read(service: ServiceSchema, bounds: bool, is_pinned: bool) -> service_pb.GetFeaturesRequest:
    return service_pb.GetFeaturesRequest(
        service=service.name,
        fingerprint=service.fingerprint if is_pinned else None,
        bounds=bounds,
        coverage=True,
    )


def _times_of_each(as_of: Any, n: int) -> NDArray[np.int64]:
    ms, codes = canonical.time_column(as_of, "ms", what="as_of")
    if codes.any() and (codes == Outcome.REFUSED_TYPE).all():
        ms, codes = canonical.time_column(as_of, "iso", what="as_of")
    if len(ms) != n:
        raise InvalidEventError(
            f"as_of has {len(ms)} times for {n} key sets; give one for each or one for all"
        )
    if codes.any():
        row = int(np.flatnonzero(codes)[0])
        raise InvalidEventError(f"as_of of row {row} cannot be used: {Outcome(codes[row]).reason}")
    if ((ms >= _SECONDS.start) & (ms < _SECONDS.stop)).any():
        for row, when in enumerate(as_of):
            _refuse_seconds(when.as_py() if hasattr(when, "as_py") else when, f"as_of of row {row}")
    return ms


def key_columns(keys: KeySets) -> list[tuple[str, TextColumn]]:
    """One text column per key part, of rows (dicts) or of columns (mapping, Arrow table, data frame)."""
    made = []
    for name, values in named_columns(keys):
        column, codes = canonical.text_column(values, what=f"key {name}")
        if codes.any():
            row = int(np.flatnonzero(codes)[0])
            raise InvalidEventError(f"key {name} of row {row}: {Outcome(codes[row]).reason}")
        made.append((name, column))
    lengths = {name: len(column.offsets) - 1 for name, column in made}
    if len(set(lengths.values())) > 1:
        raise InvalidEventError(f"key columns of different lengths: {lengths}")
    return made


def named_columns(keys: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(keys, Mapping):
        return keys.items()
    if is_arrow(keys):
        return [(name, keys.column(name)) for name in keys.column_names]
    if is_pandas(keys):
        return [(str(name), keys[name]) for name in keys.columns]
    if is_exported(keys):
        return named_columns(table_of(keys))
    if isinstance(keys, Sequence) and all(isinstance(row, Mapping) for row in keys):
        names = dict.fromkeys(name for row in keys for name in row)
        return [(name, [row.get(name) for row in keys]) for name in names]
    raise InvalidEventError(
        "key sets are a list of dicts, or columns: a mapping of arrays, an Arrow table or a data frame; "
        f"found {type(keys).__name__}"
    )


def is_arrow(value: Any) -> bool:
    """A table or a record batch, of a pyarrow that the caller has imported."""
    pa = sys.modules.get("pyarrow")
    return pa is not None and isinstance(value, pa.Table | pa.RecordBatch)


def is_pandas(value: Any) -> bool:
    pd = sys.modules.get("pandas")
    return pd is not None and isinstance(value, pd.DataFrame)


def sliced(column: TextColumn, begin: int, end: int) -> TextColumn:
    """Rows begin to end; the bytes are not copied."""
    first = column.offsets[begin]
    data = column.data[first : column.offsets[end]]
    present = None if column.present is None else column.present[begin:end]
    return TextColumn(column.offsets[begin : end + 1] - first, data, present)
