"""The page headers of a Parquet column: what decoding it will need, known before anything is decoded.

A page says how large it is once decompressed, and Arrow reserves that much; a value that is a reference (to
the dictionary, to the value before) is a few bits there, and as long as the longest value once it is decoded.
So a file of 93 KB can ask for 34 GB. The footer says nothing certain of either. Here headers are read one
after the other, some 50 bytes a page:

    page   = header data(compressed_page_size)
    header = a PageHeader of parquet.thrift, in Thrift's compact protocol
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO

from featurestore.errors import InvalidEventError
from featurestore.thrift import NUMBER, Fields, struct_at

# parquet.thrift
TYPE, UNCOMPRESSED_SIZE, COMPRESSED_SIZE, DATA_PAGE, DATA_PAGE_V2 = 1, 2, 3, 5, 8
NUM_VALUES, ENCODING, ENCODING_V2 = 1, 2, 4
WANTED = {
    TYPE: NUMBER,
    UNCOMPRESSED_SIZE: NUMBER,
    COMPRESSED_SIZE: NUMBER,
    DATA_PAGE: {NUM_VALUES: NUMBER, ENCODING: NUMBER},
    DATA_PAGE_V2: {NUM_VALUES: NUMBER, ENCODING_V2: NUMBER},
}
DICTIONARY_TYPE = 2  # of a page
PLAIN_DICTIONARY, DELTA_BYTE_ARRAY, RLE_DICTIONARY = 2, 7, 8

VALUE_BYTES = 16  # a number or a reference, and what says whether and in which list it is
HEADER_BYTES = 512  # enough for one without statistics
MAX_HEADER_BYTES = 1 << 20


@dataclass
class Needs:
    """Of one column in one row group."""

    largest_page: int = 0  # bytes, decompressed
    row_bytes: int = 0  # that one more row may need once it is decoded, in the worst of its pages
    all_bytes: int = 0  # that all values may need, but for those that refer to a dictionary
    has_references: bool = False  # to a dictionary


def needs_of(file: IO[bytes], begin: int, n_values: int, *, is_text: bool, where: str) -> Needs:
    """Of a column whose pages begin at this byte. InvalidEventErrors begin with `where`.

    A row has one value, unless the column is in a list: then only the sum of all says something.
    """
    needs = Needs(row_bytes=0 if is_text else VALUE_BYTES)
    at, seen = begin, 0
    while seen < n_values:
        header, at = _header_at(file, at, where)
        size, stored = header.get(UNCOMPRESSED_SIZE), header.get(COMPRESSED_SIZE)
        data = header.get(DATA_PAGE) or header.get(DATA_PAGE_V2)
        if not isinstance(size, int) or not isinstance(stored, int) or size < 0 or stored < 0:
            raise InvalidEventError(f"{where}: a page without a size at byte {at}")
        needs.largest_page = max(needs.largest_page, size)
        at += stored
        if header.get(TYPE) == DICTIONARY_TYPE:
            needs.has_references = True
        if not isinstance(data, dict):
            continue
        n, encoding = data.get(NUM_VALUES), data.get(ENCODING if DATA_PAGE in header else ENCODING_V2)
        if not isinstance(n, int) or n < 0:
            raise InvalidEventError(f"{where}: a page of {n} values at byte {at}")
        seen += n
        needs.all_bytes += VALUE_BYTES * n
        if is_text and encoding not in (PLAIN_DICTIONARY, RLE_DICTIONARY):
            longest = size if encoding == DELTA_BYTE_ARRAY else -(-size // max(n, 1))
            needs.row_bytes = max(needs.row_bytes, longest)
            needs.all_bytes += n * longest
    return needs


def _header_at(file: IO[bytes], at: int, where: str) -> tuple[Fields, int]:
    """The header at this byte, and where it ends."""
    size = HEADER_BYTES
    while size <= MAX_HEADER_BYTES:
        file.seek(at)
        data = file.read(size)
        try:
            fields, end = struct_at(data, 0, WANTED)
        except IndexError:
            if len(data) < size:
                break
            size *= 4
        except ValueError as error:
            raise InvalidEventError(f"{where}: no header of a page at byte {at} ({error})") from error
        else:
            return fields, at + end
    raise InvalidEventError(f"{where}: the header of a page at byte {at} does not end")
