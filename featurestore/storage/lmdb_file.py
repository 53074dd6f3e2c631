"""What can be known of an LMDB data file before it is mapped.

LMDB maps its file and believes it: a page that lies beyond the end of the file, because that was truncated or
because a bit of a page number flipped, is a SIGBUS, which kills the process instead of raising an error. So
the file is read first, with `pread`, and refused here.

Promise: after `inspect` returned, the trees of the newest transaction are trees, and all their pages and
values lie within the file. It says nothing about what the values hold: that is what the checksums of `blocks`
are for. Only the pages of the trees are read, not those of the values: 0.5 s for 5 M rows, cached.

The layout, in the byte order and word size of the machine (64-bit little-endian here), as in LMDB's mdb.c:

    page      0 u64 number   8 u16 pad   10 u16 flags   12 u16 lower   14 u16 upper   16 u16 node offsets...
              an overflow page's bytes run on from 16 through the pages that follow
    meta      pages 0 and 1 (flags 8), from byte 16 of the page:
              0 u32 magic 0xBEEFC0DE   4 u32 version 1   8 u64 address   16 u64 map size
              24 tree of free pages (its pad is the page size)   72 main tree
              120 u64 last page   128 u64 transaction
    tree      0 u32 pad   4 u16 flags   6 u16 depth   8 u64 branch pages   16 u64 leaf pages
              24 u64 overflow pages   32 u64 entries   40 u64 root
    node      0 u16 size low   2 u16 size high   4 u16 flags   6 u16 key bytes   8 key, value
              in a branch the 48 bits of size low, size high and flags are the child's page number
              with flag 1 the value is the u64 number of an overflow page, with flag 2 it is a tree

The newer of the two metas is the one with the greater transaction. A sound file may end before `last page`:
pages that a transaction took and gave back are counted, but never written. So only pages in use must be
there.
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
SMALL_VALUE, BIG_VALUE, SUBTREE, BRANCH_NODE = 0, 1, 2, -1
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

    Raises IncompatibleVersionError for a file that is not LMDB's or of another data version, and
    CorruptRecordError for one that is damaged or that ends before a page in use.
    """
    first = _meta(fd, 0, path)
    if first is None:
        raise IncompatibleVersionError(
            f"{path}: is not an LMDB data file (no meta page at its start); give the directory of a store"
        )
    # The second meta may never have been written; the first says how large a page is.
    second = _meta(fd, first.page_bytes, path)
    newest = first if second is None or second.transaction < first.transaction else second
    if newest.page_bytes != first.page_bytes or newest.map_size_bytes < newest.page_bytes:
        raise CorruptRecordError(f"{path}: its meta pages contradict each other; restore it from a backup")
    _walk(fd, newest, path)
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


def _walk(fd: int, file: DataFile, path: str) -> None:
    """Reads every page of the trees. CorruptRecordError for the first that is not as it must be."""
    n_pages = min(file.file_bytes // file.page_bytes, file.last_page + 1)
    waiting, seen = list(file.roots), set[int]()
    while waiting:
        number = waiting.pop()
        try:
            if number >= n_pages:
                raise ValueError("is in use and lies beyond the end: the file is truncated, or damaged")
            if number in seen:
                raise ValueError("is in use twice")
            seen.add(number)
            page = os.pread(fd, file.page_bytes, number * file.page_bytes)
            waiting += _children(page, number, n_pages)
        except ValueError as error:
            raise CorruptRecordError(
                f"{path}: page {number} of {file.page_bytes} bytes {error}; the file has "
                f"{file.file_bytes} bytes; restore it from a backup"
            ) from None


def _children(page: bytes, number: int, n_pages: int) -> list[int]:
    """The pages of trees that this page leads to. ValueError if it is no page of a tree, or leads to anything
    that is not within `n_pages`."""
    size = len(page)
    own_number, _, flags, lower, upper = PAGE_HEAD.unpack_from(page)
    if own_number != number or flags not in (BRANCH, LEAF) or not PAGE_HEAD.size <= lower <= upper <= size:
        raise ValueError("is in use and is not a page of a tree")
    children = list[int]()
    for offset in struct.unpack_from(f"<{(lower - PAGE_HEAD.size) // 2}H", page, PAGE_HEAD.size):
        if not upper <= offset <= size - NODE_HEAD.size:
            raise ValueError("has a node outside of itself")
        low, high, node_flags, key_bytes = NODE_HEAD.unpack_from(page, offset)
        value, value_bytes = offset + NODE_HEAD.size + key_bytes, low | high << 16
        kind = BRANCH_NODE if flags == BRANCH else node_flags
        within_bytes = {BRANCH_NODE: 0, SMALL_VALUE: value_bytes, BIG_VALUE: 8, SUBTREE: TREE.size}.get(kind)
        if within_bytes is None or value + within_bytes > size:
            raise ValueError("has a node of an unknown kind, or one that runs out of it")
        if kind == BRANCH_NODE:
            children.append(value_bytes | node_flags << 32)
        elif kind == SUBTREE:
            root = TREE.unpack_from(page, value)[-1]
            children += [root] if root != NO_PAGE else []
        elif kind == BIG_VALUE:
            (first,) = struct.unpack_from("<Q", page, value)
            if first + (PAGE_HEAD.size + value_bytes - 1) // size >= n_pages:
                raise ValueError("has a value that ends beyond the end: the file is truncated, or damaged")
    return children
