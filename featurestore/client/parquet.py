"""What stands in a Parquet file of a training set, read without Arrow, which a client need not have.

file   = "PAR1" ... footer u32(len(footer)) "PAR1"
footer = a FileMetaData of parquet.thrift, in Thrift's compact protocol
"""

from __future__ import annotations

import os
from typing import BinaryIO

from featurestore.thrift import BYTES, struct_at

MAGIC = b"PAR1"
TAIL_BYTES = 8
KEY_VALUES = 5  # of FileMetaData
KEY, VALUE = 1, 2  # of KeyValue
ENTRY = b"featurestore"
MAX_FOOTER_BYTES = 256 << 20


def described(file: BinaryIO) -> bytes | None:
    """The entry `featurestore` of a Parquet file's metadata; None, and the file as it was, where it is no
    Parquet. Raises ValueError where it has none, or is damaged."""
    if file.read(len(MAGIC)) != MAGIC:
        file.seek(0)
        return None
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - TAIL_BYTES, 0))
    tail = file.read(TAIL_BYTES)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or not 0 < length <= min(size - TAIL_BYTES - len(MAGIC), MAX_FOOTER_BYTES):
        raise ValueError("the Parquet file is cut short")
    file.seek(size - TAIL_BYTES - length)
    try:
        footer, _ = struct_at(file.read(length), 0, {KEY_VALUES: [{KEY: BYTES, VALUE: BYTES}]})
    except IndexError as error:
        raise ValueError("the Parquet footer ends inside a value") from error
    for entry in footer.get(KEY_VALUES, []):
        if entry.get(KEY) == ENTRY:
            value: bytes = entry.get(VALUE, b"")
            return value
    raise ValueError("a Parquet file that featurestore has not written")
