"""What an Arrow writer said of the types of a Parquet file, read without Arrow, which gives up where it does
not know one of them.

    ARROW:schema = base64 of  0xFFFFFFFF u32(bytes)  Message, a flatbuffer
    Message      = .. header: Schema = .. fields: [Field]; Field = name, .., type_type, .., children: [Field]

Only what would be taken for another thing is asked for here: Parquet has no durations, and stores them as
integers.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterator

DURATION = 18  # of the union Type in Arrow's Schema.fbs
HEADER = 2  # of Message
FIELDS = 1  # of Schema
NAME, TYPE, CHILDREN = 0, 2, 5  # of Field
MAX_DEPTH = 64
MAX_FIELDS = 100_000


def durations_in(words: bytes) -> list[str]:
    """Columns that are durations, and fields of structs with dots between; none where it cannot be read."""
    try:
        message = base64.b64decode(words)[8:]
        schema = _at(message, _at_field(message, _root(message), HEADER))
        left = [MAX_FIELDS]
        return list(_durations(message, _vector(message, schema, FIELDS), "", 0, left))
    except (struct.error, IndexError, ValueError, binascii.Error):
        return []


def _durations(data: bytes, fields: list[int], front: str, depth: int, left: list[int]) -> Iterator[str]:
    """`left`: how many fields may still be looked at, whatever refers to what."""
    left[0] -= len(fields)
    if left[0] < 0:
        raise ValueError("too many fields")
    for field in fields if depth < MAX_DEPTH else []:
        name = front + _text(data, field)
        kind = _at_field(data, field, TYPE)
        if kind and data[kind] == DURATION:
            yield name
        yield from _durations(data, _vector(data, field, CHILDREN), f"{name}.", depth + 1, left)


def _u32(data: bytes, at: int) -> int:
    (value,) = struct.unpack_from("<I", data, at)
    return int(value)


def _root(data: bytes) -> int:
    return _u32(data, 0)


def _at(data: bytes, reference: int) -> int:
    """Where a reference leads."""
    if not reference:
        raise ValueError("a reference that is not there")
    return reference + _u32(data, reference)


def _at_field(data: bytes, table: int, number: int) -> int:
    """Where a field of a table stands; 0: it has none."""
    (back,) = struct.unpack_from("<i", data, table)
    slots = table - back
    (n_bytes,) = struct.unpack_from("<H", data, slots)
    if 4 + 2 * number >= n_bytes:
        return 0
    (offset,) = struct.unpack_from("<H", data, slots + 4 + 2 * number)
    return table + int(offset) if offset else 0


def _vector(data: bytes, table: int, number: int) -> list[int]:
    """The tables of a vector."""
    field = _at_field(data, table, number)
    if not field:
        return []
    begin = _at(data, field)
    n = _u32(data, begin)
    if n > len(data) // 4:
        raise ValueError("a vector of more than there is")
    return [_at(data, begin + 4 + 4 * i) for i in range(n)]


def _text(data: bytes, table: int) -> str:
    field = _at_field(data, table, NAME)
    if not field:
        return ""
    begin = _at(data, field)
    return data[begin + 4 : begin + 4 + _u32(data, begin)].decode(errors="replace")
