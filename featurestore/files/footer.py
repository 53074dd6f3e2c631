"""The footer of a Parquet file: where the pages of each column begin, read without Arrow.

Arrow's Python accessors end the process where a column's facts contradict each other (its
`ColumnChunkMetaData` throws past them), so a damaged file, or one that somebody made for it, would take the
reader with it. Here the same facts are read from the bytes, and what is wrong is an error.

    file   = "PAR1" ... footer u32(len(footer)) "PAR1"
    footer = a FileMetaData of parquet.thrift, in Thrift's compact protocol
"""

from __future__ import annotations

import os
from typing import IO, NamedTuple

from featurestore.errors import InvalidEventError
from featurestore.thrift import NUMBER, Fields, struct_at

# parquet.thrift
ROW_GROUPS = 4  # of FileMetaData
COLUMNS, NUM_ROWS = 1, 3  # of RowGroup
META_DATA = 3  # of ColumnChunk
NUM_VALUES, DATA_PAGE_OFFSET, DICTIONARY_PAGE_OFFSET = 5, 9, 11  # of ColumnMetaData
WANTED = {
    ROW_GROUPS: [
        {
            COLUMNS: [
                {META_DATA: {NUM_VALUES: NUMBER, DATA_PAGE_OFFSET: NUMBER, DICTIONARY_PAGE_OFFSET: NUMBER}}
            ],
            NUM_ROWS: NUMBER,
        }
    ]
}
TAIL_BYTES = 8
# A key of the footer's metadata: a text, the first field of its struct, behind which another text begins, as
# it does behind no column's name.
ARROW_SCHEMA = b"\x18\x0cARROW:schema\x18"


UNREAD_ARROW_SCHEMA = b"arrow:schema"  # what it is called then: see without_arrow_schema


class ColumnChunk(NamedTuple):
    """One leaf column of one row group."""

    begin: int  # the byte of its first page
    n_values: int


class RowGroup(NamedTuple):
    n_rows: int
    columns: tuple[ColumnChunk, ...]  # by leaf, as in the schema


def row_groups(file: IO[bytes], n_columns: int, where: str) -> list[RowGroup]:
    """Of a file that has so many leaf columns. Raises InvalidEventError, which begins with `where`."""
    data = _footer(file, where)
    try:
        footer, _ = struct_at(data, 0, WANTED)
        return [_row_group(group, n_columns) for group in footer.get(ROW_GROUPS, [])]
    except IndexError:
        problem = "it ends inside a value"
    except ValueError as error:
        problem = str(error)
    raise InvalidEventError(f"{where}: the Parquet footer is corrupt: {problem}; write the file again")


def without_arrow_schema(file: IO[bytes], where: str) -> bytes:
    """A file of the footer alone, where the schema that an Arrow writer left in it is under another name."""
    footer = _footer(file, where).replace(ARROW_SCHEMA, ARROW_SCHEMA.lower())
    return b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _footer(file: IO[bytes], where: str) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - TAIL_BYTES, 0))
    tail = file.read(TAIL_BYTES)
    n_bytes = int.from_bytes(tail[:4], "little")
    if len(tail) < TAIL_BYTES or tail[4:] != b"PAR1" or n_bytes > size - TAIL_BYTES:
        raise InvalidEventError(f"{where}: this is not a whole Parquet file: it has no footer")
    file.seek(size - TAIL_BYTES - n_bytes)
    return file.read(n_bytes)


def _row_group(group: Fields, n_columns: int) -> RowGroup:
    columns = group.get(COLUMNS, [])
    if len(columns) != n_columns:
        raise ValueError(f"a row group of {len(columns)} columns where the schema has {n_columns}")
    return RowGroup(_integer(group, NUM_ROWS), tuple(_column(column) for column in columns))


def _column(column: Fields) -> ColumnChunk:
    facts = column.get(META_DATA, {})
    begin = _integer(facts, DATA_PAGE_OFFSET)
    if DICTIONARY_PAGE_OFFSET in facts and 0 < _integer(facts, DICTIONARY_PAGE_OFFSET) < begin:
        begin = _integer(facts, DICTIONARY_PAGE_OFFSET)
    return ColumnChunk(begin, _integer(facts, NUM_VALUES))


def _integer(fields: Fields, number: int) -> int:
    found = fields.get(number)
    if not isinstance(found, int) or found < 0:
        raise ValueError(f"field {number} is {'missing' if found is None else found}")
    return found
