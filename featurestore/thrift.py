"""Thrift's compact protocol, as far as the metadata of a Parquet file needs it.

Of a struct those fields are read that are wanted: integers, bytes, structs and lists of structs, by their
numbers.
Everything else is passed over. A wanted field that comes twice is an error: two readers may take either.
Source: apache/thrift, doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 8
MAX_VARINT_BYTES = 10

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
INTEGERS = (I16, I32, I64)
_SIZES = {TRUE: 1, FALSE: 1, BYTE: 1, DOUBLE: 8}  # of an element of a list

#: What is wanted of fields, by their numbers: NUMBER or BYTES; of a struct its own fields; of a list of
#: structs those of each, in a list.
Wanted = Mapping[int, Any]
Fields = dict[int, Any]
NUMBER = None
BYTES = "bytes"


def struct_at(data: bytes, at: int, wanted: Wanted) -> tuple[Fields, int]:
    """The struct that begins at this byte, and where it ends. IndexError where the bytes end first,
    ValueError where they are no struct, or a field is of another kind than is wanted."""
    fields: Fields = {}
    number = 0
    while head := data[at]:
        number, at = _number(data, at + 1, head, number)
        kind = head & 15
        if number not in wanted:
            at = _behind(data, at, kind, 0)
            continue
        if number in fields:
            raise ValueError(f"field {number} twice")
        of_it = wanted[number]
        if kind in INTEGERS and of_it is NUMBER:
            fields[number], at = _integer(data, at)
        elif kind == BINARY and of_it is BYTES:
            size, at = _varint(data, at)
            fields[number], at = data[at : at + size], _within(data, at + size)
        elif kind == STRUCT and isinstance(of_it, Mapping):
            fields[number], at = struct_at(data, at, of_it)
        elif kind == LIST and isinstance(of_it, list):
            fields[number], at = _structs(data, at, of_it[0])
        else:
            raise ValueError(f"field {number} is of kind {kind}")
    return fields, at + 1


def _structs(data: bytes, at: int, wanted: Wanted) -> tuple[list[Fields], int]:
    n, kind, at = _list_head(data, at)
    if n and kind != STRUCT:
        raise ValueError(f"a list of kind {kind} where structs belong")
    structs = []
    for _ in range(n):
        one, at = struct_at(data, at, wanted)
        structs.append(one)
    return structs, at


def _number(data: bytes, at: int, head: int, before: int) -> tuple[int, int]:
    return (before + (head >> 4), at) if head >> 4 else _integer(data, at)


def _list_head(data: bytes, at: int) -> tuple[int, int, int]:
    """How many elements of which kind, and where they begin."""
    n, kind = data[at] >> 4, data[at] & 15
    if n < 15:
        return n, kind, at + 1
    n, at = _varint(data, at + 1)
    return n, kind, at


def _behind(data: bytes, at: int, kind: int, depth: int) -> int:  # noqa: PLR0911  # a kind each
    """Where a value of this kind ends."""
    if kind in INTEGERS:
        return _varint(data, at)[1]
    if kind == BINARY:
        size, at = _varint(data, at)
        return _within(data, at + size)
    if kind == STRUCT and depth < MAX_DEPTH:
        number = 0
        while head := data[at]:
            number, at = _number(data, at + 1, head, number)
            at = _behind(data, at, head & 15, depth + 1)
        return at + 1
    if kind in (LIST, SET) and depth < MAX_DEPTH:
        n, kind, at = _list_head(data, at)
        if kind in _SIZES:
            return _within(data, at + n * _SIZES[kind])
        for _ in range(n):
            at = _behind(data, at, kind, depth + 1)
        return at
    if kind in (TRUE, FALSE):
        return at
    if kind in _SIZES:
        return _within(data, at + _SIZES[kind])
    raise ValueError(f"a value of kind {kind} in {depth} others")


def _within(data: bytes, at: int) -> int:
    if at > len(data):
        raise IndexError
    return at


def _integer(data: bytes, at: int) -> tuple[int, int]:
    coded, at = _varint(data, at)
    return coded >> 1 ^ -(coded & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    if value < 0x80:
        return value, at + 1
    end = at + 1
    while data[end] > 0x7F:
        end += 1
    if end - at >= MAX_VARINT_BYTES:
        raise ValueError("a number without an end")
    value = 0
    for byte in reversed(data[at : end + 1]):
        value = value << 7 | byte & 0x7F
    return value, end + 1
