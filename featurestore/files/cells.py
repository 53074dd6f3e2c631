"""Text cells made into values, cell by cell where one of them is wrong.

An empty cell is absent. A number is what Python's `float` reads, without underscores and with blanks around
it, or `true` and `t`, `false` and `f` for 1 and 0; `nan` and `inf` are numbers that were sent, which the
engine refuses. A time in seconds or parts of them is such a number, kept as an integer where all cells are
integers, so that no digit is lost. A cell that is none of these is absent and marked REFUSED_TYPE. Strings
and ISO times need nothing: they stay the bytes of the file, and `featurestore.columns` reads them. So do
keys, but for whole numbers that are written as if they were not: `596.0` is the key `596`, as it is where a
number has a type. Data frames write integers so where one is missing. `007.0` and `1e3` are texts.

Columns asked to keep: text as it stands in the file, except that a field which the schema declares a number
is float64. Nothing else about their type is guessed, so that `007` and 64-bit ids keep every digit.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from featurestore.columns import number_in
from featurestore.errors import InvalidEventError
from featurestore.outcome import Outcome
from featurestore.plan import EventPlan, Kind

# What Arrow converts; every other cell is taken one by one, whatever its neighbours are.
PLAIN_NUMBER = r"^[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$"
WHOLE_NUMBER = r"^(-?[1-9][0-9]*|0)\.0+$"
WHOLE_TIME = r"^-?(?:[0-9]{1,18}|[0-8][0-9]{18})$"  # certainly an integer of 64 bits


def kept_type(event: EventPlan, name: str) -> pa.DataType:
    """The type a kept column of a text format is written as."""
    numeric = {event.source_of(field.name) for field in event.fields if field.kind == Kind.NUMBER}
    return pa.float64() if name in numeric else pa.string()


def keys(cells: pa.BinaryArray) -> pa.BinaryArray:
    """Texts, of whole numbers without the zeros behind their point."""
    is_whole = pc.match_substring_regex(cells, WHOLE_NUMBER)
    if not pc.any(is_whole).as_py():
        return cells
    return pc.if_else(is_whole, pc.replace_substring_regex(cells, WHOLE_NUMBER, r"\1"), cells)


def numbers(cells: pa.BinaryArray, refused: NDArray[np.uint8], *, flags: bool = True) -> pa.DoubleArray:
    """float64 per cell; marks in `refused` the cells that hold no number, nor a truth value with `flags`."""
    is_plain = pc.match_substring_regex(cells, PLAIN_NUMBER)
    plain = cells
    others = np.flatnonzero(pc.invert(is_plain).fill_null(False).to_numpy(zero_copy_only=False))
    if len(others):
        plain = pc.if_else(is_plain, cells, None)
    converted = pc.cast(pc.cast(plain, pa.string()), pa.float64())
    if not len(others):
        return converted
    found = [number_in(cell, flags=flags) for cell in cells.take(others).to_pylist()]
    refused[[at for at, number in zip(others, found, strict=True) if number is None]] = Outcome.REFUSED_TYPE
    is_other = np.zeros(len(cells), np.bool_)
    is_other[others] = True
    return pc.replace_with_mask(converted, pa.array(is_other), pa.array(found, pa.float64()))


def times(cells: pa.BinaryArray, unit: str, refused: NDArray[np.uint8]) -> pa.Array:
    """The text of ISO times, else int64 where every cell is an integer and float64 where not."""
    if unit == "iso":
        return cells
    if pc.all(pc.match_substring_regex(cells, WHOLE_TIME), min_count=0).as_py():
        return pc.cast(pc.cast(cells, pa.string()), pa.int64())
    return numbers(cells, refused, flags=False)


def kept(cells: pa.BinaryArray, wanted: pa.DataType, where: str, start_row: int) -> pa.Array:
    """A column to keep, as `wanted`. Raises InvalidEventError, naming the row, where a text is not UTF-8."""
    if wanted == pa.float64():
        return numbers(cells, np.zeros(len(cells), np.uint8))
    try:
        return pc.cast(cells, pa.string())
    except pa.ArrowInvalid as error:
        bad = next(i for i, cell in enumerate(cells.to_pylist()) if cell is not None and not _is_utf8(cell))
        raise InvalidEventError(
            f"{where}, row {start_row + bad + 1}: the cell is not UTF-8 text; "
            f"convert the file (iconv -t UTF-8) or do not keep this column"
        ) from error


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode()
    except UnicodeDecodeError:
        return False
    return True
