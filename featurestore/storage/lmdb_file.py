"""What can be known of an LMDB data file before it is mapped.

LMDB maps its file and believes it: a page that lies beyond the end of a truncated file is a SIGBUS, which kills
the process instead of raising an error. So the file is read first, with `pread`, and refused here.

Promise: after `inspect` returned, every page that the newest transaction uses lies within the file. It says nothing
about what those pages hold: that is what the checksums of `rows` are for.

The layout, in the byte order and word size of the machine (64-bit little-endian here), as in LMDB 0.9's mdb.c:

    page      0 u64 number   8 u16 pad   10 u16 flags   12 u16 lower   14 u16 upper   16 u16 node offsets...
              an overflow page has a u32 number of pages at 12, and its bytes run on through the pages that follow
    meta      pages 0 and 1 (flags 8), from byte 16 of the page:
              0 u32 magic 0xBEEFC0DE   4 u32 version 1   8 u64 address   16 u64 map size
              24 tree of free pages (its pad is the page size)   72 main tree   120 u64 last page   128 u64 transaction
    tree      0 u32 pad   4 u16 flags   6 u16 depth   8 u64 branch, leaf, overflow pages   32 u64 entries   40 u64 root
    node      0 u16 size low   2 u16 size high   4 u16 flags   6 u16 key bytes   8 key, value
              in a branch the 48 bits of size low, size high and flags are the child's page number
              with flag 1 the value is the u64 number of an overflow page, with flag 2 it is a tree

The newer of the two metas is the one with the greater transaction. A sound file may end before `last page`: pages
that a transaction took and gave back are counted, but never written. So a short file is walked from its roots, and
refused only when a page in use is missing.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from featurestore.errors import CorruptRecordError, IncompatibleVersionError

MAGIC = 0xBEEFC0DE
DATA_VERSION = 1
PAGE_HEAD = struct.Struct("<QHHHH")  # number, pad, flags, lower, upper
META_HEAD = struct.Struct("<IIQQ")  # magic, version, address, map size
TREE = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, branch, leaf and overflow pages, entries, root
META_TAIL = struct.Struct("<QQ")  # last page, transaction
NODE_HEAD = struct.Struct("<HHHH")  # size low, size high, flags, key bytes
META_BYTES = META_HEAD.size + 2 * TREE.size + META_TAIL.size
BRANCH, LEAF, META = 1, 2, 8
BIG_VALUE, SUBTREE = 1, 2
NO_PAGE = (1 << 64) - 1
MIN_PAGE_BYTES, MAX_PAGE_BYTES = 256, 1 << 15


@dataclass(frozen=True)
class DataFile:
    """The newest transaction of a data file."""

    page_bytes: int
    map_size_bytes: int
    last_page: int
    transaction: int
    roots: tuple[int, ...]
    file_bytes: int


def inspect(fd: int, path: str) -> DataFile:
    """Reads the metas of the open file `fd`; `path` is for messages only.

    Raises IncompatibleVersionError for a file that is not LMDB's or of another data version, and CorruptRecordError
    for one that is damaged or that ends before a page in use.
    """
    file_bytes = os.fstat(fd).st_size
    first = _meta(fd, 0, path)
    if first is None:
        raise IncompatibleVersionError(
            f"{path}: is not an LMDB data file (no meta page at its start); give the data directory of a store"
        )
    # The second meta may never have been written; the first says how large a page is.
    second = _meta(fd, first.page_bytes, path)
    newest = first if second is None or second.transaction < first.transaction else second
    if newest.page_bytes != first.page_bytes or newest.map_size_bytes < newest.page_bytes:
        raise CorruptRecordError(f"{path}: its meta pages contradict each other; restore it from a backup")
    if file_bytes < (newest.last_page + 1) * newest.page_bytes:
        missing = _missing_page(fd, newest)
        if missing is not None:
            raise CorruptRecordError(
                f"{path}: truncated: it has {file_bytes} bytes, and page {missing} in use, of {newest.page_bytes} "
                f"bytes each, lies beyond them; restore it from a backup"
            )
    return newest


def _meta(fd: int, offset: int, path: str) -> DataFile | None:
    page = os.pread(fd, PAGE_HEAD.size + META_BYTES, offset)
    if len(page) < PAGE_HEAD.size + META_BYTES or not PAGE_HEAD.unpack_from(page)[2] & META:
        return None
    magic, version, _, map_size_bytes = META_HEAD.unpack_from(page, PAGE_HEAD.size)
    if magic != MAGIC:
        return None
    if version != DATA_VERSION:
        raise IncompatibleVersionError(
            f"{path}: LMDB data version {version}, this program reads version {DATA_VERSION}; "
            f"use the program that wrote it"
        )
    trees = PAGE_HEAD.size + META_HEAD.size
    free, main = TREE.unpack_from(page, trees), TREE.unpack_from(page, trees + TREE.size)
    last_page, transaction = META_TAIL.unpack_from(page, trees + 2 * TREE.size)
    page_bytes = free[0]
    if not MIN_PAGE_BYTES <= page_bytes <= MAX_PAGE_BYTES or page_bytes & (page_bytes - 1):
        raise CorruptRecordError(f"{path}: a page size of {page_bytes} bytes; restore it from a backup")
    roots = tuple(tree[-1] for tree in (free, main) if tree[-1] != NO_PAGE)
    return DataFile(page_bytes, map_size_bytes, last_page, transaction, roots, os.fstat(fd).st_size)


def _missing_page(fd: int, file: DataFile) -> int | None:
    """The first page found in use that the file does not hold whole; None if there is none."""
    size = file.page_bytes
    n_pages = file.file_bytes // size
    waiting, seen = list(file.roots), set[int]()
    while waiting:
        number = waiting.pop()
        if number >= n_pages:
            return number
        if number in seen:  # only a damaged file has cycles
            continue
        seen.add(number)
        page = os.pread(fd, size, number * size)
        _, _, flags, lower, _ = PAGE_HEAD.unpack_from(page)
        n_nodes = max(min(lower, size) - PAGE_HEAD.size, 0) // 2
        for offset in struct.unpack_from(f"<{n_nodes}H", page, PAGE_HEAD.size):
            if offset + NODE_HEAD.size > size:
                continue
            low, high, node_flags, key_bytes = NODE_HEAD.unpack_from(page, offset)
            value = offset + NODE_HEAD.size + key_bytes
            if flags & BRANCH:
                waiting.append(low | high << 16 | node_flags << 32)
            elif flags & LEAF and node_flags & BIG_VALUE and value + 8 <= size:
                (big,) = struct.unpack_from("<Q", page, value)
                last = big + (PAGE_HEAD.size + (low | high << 16) - 1) // size
                if last >= n_pages:
                    return last
            elif flags & LEAF and node_flags & SUBTREE and value + TREE.size <= size:
                root = TREE.unpack_from(page, value)[-1]
                waiting += [root] if root != NO_PAGE else []
    return None
