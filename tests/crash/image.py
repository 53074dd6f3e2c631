"""The directories that a power cut could leave behind, computed from a trace of shim.c.

    trace = Trace.load(path)
    trace.verify(root)               # nothing slipped through: it says what the directory says
    report = check_images(trace, trace.cuts(200, seed=1), check, tmp_path)
    assert not report.failures, report

The model. A trace is a sequence of events; a cut at `at` means that events [0, at) happened. In the image

- *data*: each block of `block_bytes` is what the last completed sync of its file covered; of every later
  write to it a coin (one half) says whether it reached the disk, each write and each block for itself, in
  any order. What reaches the disk is the whole block as the page cache had it then.
- *size*: fsync, fdatasync and an O_DSYNC write make the size durable with the data, since the data could
  not be read without it (fdatasync(2)). Later changes of size survive up to some point or not at all;
  blocks below the surviving size that never reached the disk read as zeros. A shrink that did not survive
  brings the old blocks back.
- *names*: creating, renaming, linking, unlinking, making and removing directories survive each by a coin,
  in any order, until the directory is synced (fsync(2): "Calling fsync() does not necessarily ensure that
  the entry in the directory containing the file has also reached disk"). A rename within one directory is
  atomic. With `strict=False`, syncing a file makes its own name (and the names above it) durable too, as
  ext4, XFS and btrfs do for a new file.
- *failed syncs* (Rebello and others, *Can Applications Recover from fsync Failures?*, USENIX ATC 2020): the
  kernel marks the pages clean, so a later sync that succeeds does not write them: they stay a matter of
  coins until written again.
- sync_file_range promises nothing; sync and syncfs make everything durable.

It is the weak end of what Pillai and others found on real file systems (*All File Systems Are Not Created
Equal*, OSDI 2014). One thing it does assume: a block of 512 bytes is written whole or not at all, as LMDB's
meta pages and every database do. CrashMonkey (Mohan and others, OSDI 2018) cuts at persistence points, the
ends of syncs; here cuts fall anywhere, most usefully inside a sync or right after an acknowledgement.
"""

from __future__ import annotations

import faulthandler
import fnmatch
import os
import random
import shutil
import signal
import struct
import time
import traceback
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .shim import MAGIC, RECORD

BASE_DIRECTORY, BASE_FILE, BASE_DATA = 1, 2, 3
CREATE, OPEN, WRITE, WRITE_SYNCED, TRUNCATE, ALLOCATE, ZERO, SYNC_BEGIN, SYNC_END = range(8, 17)
RENAME, LINK, UNLINK, MKDIR, RMDIR, MAPPED, UNMODELLED, MARK, FAULT = range(17, 26)
KIND_NAMES = dict(
    enumerate(
        [
            "create",
            "open",
            "write",
            "write-synced",
            "truncate",
            "allocate",
            "zero",
            "sync-begin",
            "sync-end",
            "rename",
            "link",
            "unlink",
            "mkdir",
            "rmdir",
            "mapped",
            "unmodelled",
            "mark",
            "fault",
        ],
        start=CREATE,
    )
)
CALL_FSYNC, CALL_FDATASYNC, CALL_MSYNC, CALL_SYNC_FILE_RANGE, CALL_DSYNC_WRITE = 7, 8, 9, 10, 15
"""Values of `flags` of a sync: which call it was."""
SYNC_CALLS = {"fsync": CALL_FSYNC, "fdatasync": CALL_FDATASYNC, "dsync": CALL_DSYNC_WRITE}


class TraceError(Exception):
    """The trace cannot be read, or does not tell the whole story of the directory."""


class Event(NamedTuple):
    kind: int
    flags: int
    error: int
    process: int
    thread: int
    file: int
    """Inode number."""
    a: int
    b: int
    payload: bytes

    def __str__(self) -> str:
        name = KIND_NAMES.get(self.kind, self.kind)
        text = f"{name} file={self.file} a={self.a} b={self.b} flags={self.flags}"
        if self.error:
            text += f" error={os.strerror(self.error)}"
        if self.kind == WRITE:
            return f"{text} bytes={len(self.payload)}"
        return f"{text} {self.payload.decode(errors='replace')!r}" if self.payload else text


class Marker(NamedTuple):
    event: int
    """Where it is among the events: a cut at event + 1 or later comes after it."""
    text: str


class Cut(NamedTuple):
    at: int
    """Events [0, at) happened."""
    seed: int


@dataclass(frozen=True)
class Image:
    """A directory as a power cut left it."""

    path: Path
    cut: Cut
    markers: Sequence[str]
    """What had been marked (acknowledged) before the cut, in order."""
    blocks_unsynced: int
    """Written blocks whose fate was a coin's, or of a freed range; those of volatile files apart."""
    names_unsynced: int
    """Changes of names whose fate was a coin's."""


class _Item(NamedTuple):
    """One unsynced thing that happened to a block."""

    event: int
    data: bytes | None
    """The whole block after a write; None for a shrink of the file that kept `kept` bytes of it."""
    kept: int = 0
    dropped: bool = False
    """A sync of it failed: later syncs do not write it any more."""


class _File:
    """Durable bytes of one inode, and per block what has been written since."""

    def __init__(self, inode: int, block_bytes: int) -> None:
        self.inode, self.block_bytes = inode, block_bytes
        self.durable = bytearray()  # up to the last durable byte written; zeros follow up to durable_size
        self.durable_size = 0
        self.size = 0
        self.sizes: list[tuple[int, int]] = []  # (index, size) of every unsynced change of size
        self.settled = -1  # index up to which changes of size are durable
        self.items: dict[int, list[_Item]] = {}
        self.unknown = ""  # why its bytes are not in the trace

    def durable_block(self, block: int) -> bytes:
        start = block * self.block_bytes
        return bytes(self.durable[start : start + self.block_bytes]).ljust(self.block_bytes, b"\0")

    def current_block(self, block: int) -> bytes:
        items = self.items.get(block, ())
        last = len(items)
        while last and items[last - 1].data is None:
            last -= 1
        content = items[last - 1].data if last else self.durable_block(block)
        assert content is not None
        for item in items[last:]:
            content = content[: item.kept].ljust(self.block_bytes, b"\0")
        return content

    def resize(self, index: int, size: int) -> None:
        if size < self.size:
            block = size // self.block_bytes
            kept = size - block * self.block_bytes
            end = max(len(self.durable) // self.block_bytes, max(self.items, default=0))
            for cut in range(block, end + 1):
                self.items.setdefault(cut, []).append(_Item(index, None, kept if cut == block else 0))
        if size != self.size:
            self.size = size
            self.sizes.append((index, size))

    def write(self, index: int, offset: int, data: bytes) -> None:
        width = self.block_bytes
        position, end = offset, offset + len(data)
        while position < end:
            block, skip = divmod(position, width)
            stop = min(end, (block + 1) * width)
            piece = data[position - offset : stop - offset]
            if len(piece) < width:
                old = self.current_block(block)
                piece = old[:skip] + piece + old[skip + len(piece) :]
            self.items.setdefault(block, []).append(_Item(index, piece))
            position = stop
        if end > self.size:
            self.resize(index, end)

    def zero(self, index: int, offset: int, length: int) -> None:
        written = max(len(self.durable), (max(self.items, default=-1) + 1) * self.block_bytes)
        length = min(length, written - offset)
        if length > 0:
            self.write(index, offset, bytes(length))

    def settle(self, before: int, blocks: Iterable[int] | None = None) -> None:
        """A sync that began at event `before` succeeded, for all blocks or for some."""
        n_settled = bisect_left(self.sizes, (before, -1))
        if n_settled:
            self.settled, self.durable_size = self.sizes[n_settled - 1]
            del self.sizes[:n_settled]
        for block in list(self.items) if blocks is None else [b for b in blocks if b in self.items]:
            content, left = self.durable_block(block), list[_Item]()
            for item in self.items[block]:
                if item.event >= before or item.dropped:
                    left.append(item)
                elif item.data is None:
                    content = content[: item.kept].ljust(self.block_bytes, b"\0")
                    if left:
                        left.append(item)
                else:
                    content, left = item.data, []
            start = block * self.block_bytes
            if content.strip(b"\0") or start < len(self.durable):
                if len(self.durable) < start + self.block_bytes:
                    self.durable.extend(bytes(start + self.block_bytes - len(self.durable)))
                self.durable[start : start + self.block_bytes] = content
            if left:
                self.items[block] = left
            else:
                del self.items[block]

    def drop(self, before: int) -> None:
        """A sync that began at event `before` failed."""
        for block, items in self.items.items():
            self.items[block] = [
                item._replace(dropped=True) if item.event < before and item.data is not None else item
                for item in items
            ]

    def survive(self, coin: random.Random, path: Path) -> int:
        """Writes what is left of the file; returns how many blocks were uncertain."""
        size, reached = self.durable_size, self.settled
        if self.sizes:
            choice = coin.random()
            if choice < 0.5:
                reached, size = self.sizes[-1]
            elif choice < 0.75:
                reached, size = coin.choice(self.sizes)
        content = bytearray(self.durable)
        for block in sorted(self.items):
            data = self.durable_block(block)
            for item in self.items[block]:
                if item.data is not None:
                    if coin.getrandbits(1):
                        data = item.data
                elif item.event <= reached:
                    data = data[: item.kept].ljust(self.block_bytes, b"\0")
                elif not item.kept:
                    break  # freed: what came later went to another block, out of reach of the old size
            start = block * self.block_bytes
            if len(content) < start + self.block_bytes:
                if not data.strip(b"\0"):
                    continue
                content.extend(bytes(start + self.block_bytes - len(content)))
            content[start : start + self.block_bytes] = data
        _write_file(path, content, size)
        return len(self.items)

    def dump(self, path: Path) -> None:
        """Writes the file as the page cache has it: what a kill -9 leaves."""
        content = bytearray(self.durable)
        for block in sorted(self.items):
            start = block * self.block_bytes
            content.extend(bytes(max(0, start + self.block_bytes - len(content))))
            content[start : start + self.block_bytes] = self.current_block(block)
        _write_file(path, content, self.size)


def _write_file(path: Path, content: bytearray, size: int) -> None:
    with path.open("wb") as out:
        out.write(memoryview(content)[:size])
        out.truncate(size)


@dataclass(eq=False)
class _Change:
    """One unsynced change of names: what each (directory, name) says after it."""

    index: int
    parts: list[tuple[_Directory, str, _Node | None]]


class _Directory:
    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.names: dict[str, _Node] = {}
        self.durable: dict[str, _Node] = {}
        self.pending: list[_Change] = []

    def settle(self, before: int) -> None:
        for change in [change for change in self.pending if change.index < before]:
            for part in [part for part in change.parts if part[0] is self]:
                self.fix(change, part)

    def fix(self, change: _Change, part: tuple[_Directory, str, _Node | None]) -> None:
        """Makes one part of a change durable, and what came before it for that name of no account."""
        _, name, node = part
        for older in [one for one in self.pending if one.index <= change.index]:
            older.parts = [one for one in older.parts if one[0] is not self or one[1] != name]
            if not any(one[0] is self for one in older.parts):
                self.pending.remove(older)
        _assign(self.durable, name, node)


_Node = _File | _Directory


def _assign(names: dict[str, _Node], name: str, node: _Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


class _World:
    """Everything below the root after some events: what is durable, and what is not yet."""

    def __init__(self, block_bytes: int, strict: bool, ignore_syncs: frozenset[int]) -> None:
        self.block_bytes, self.strict = block_bytes, strict
        self.ignore_syncs = ignore_syncs | {CALL_MSYNC, CALL_SYNC_FILE_RANGE}  # these promise nothing
        self.root = _Directory(0)
        self.nodes: dict[int, _Node] = {}
        self.begun: dict[tuple[int, int], int] = {}
        self.unmodelled = ""

    def base(self, event: Event) -> None:
        if event.kind == BASE_DATA:
            file = self.file(event, -1)
            file.write(-2, event.a, event.payload)
            file.settle(-1)
            return
        path = os.fsdecode(event.payload)
        if event.kind == BASE_DIRECTORY and not path:
            self.root.inode = event.file
            self.nodes[event.file] = self.root
            return
        directory, name = self.parent(path, -1)
        node = self.nodes.get(event.file)
        if node is None:
            node = self.nodes[event.file] = (
                _Directory(event.file)
                if event.kind == BASE_DIRECTORY
                else _File(event.file, self.block_bytes)
            )
            if isinstance(node, _File):
                node.size = node.durable_size = event.a
        directory.names[name] = directory.durable[name] = node

    def parent(self, path: str, index: int) -> tuple[_Directory, str]:
        *above, name = path.split("/")
        directory = self.root
        for part in above:
            child = directory.names.get(part)
            if not isinstance(child, _Directory):
                raise TraceError(f"event {index}: {path}: no directory {part} was seen being made")
            directory = child
        return directory, name

    def file(self, event: Event, index: int) -> _File:
        node = self.nodes.get(event.file)
        if not isinstance(node, _File):
            raise TraceError(f"event {index} ({event}): this file was never seen being created")
        return node

    def change(self, index: int, *parts: tuple[_Directory, str, _Node | None]) -> None:
        change = _Change(index, list(parts))
        for directory, name, node in parts:
            _assign(directory.names, name, node)
            if change not in directory.pending:
                directory.pending.append(change)

    def apply(self, index: int, event: Event) -> None:  # noqa: PLR0912 (one case per kind reads best flat)
        kind = event.kind
        if kind == WRITE:
            self.file(event, index).write(index, event.a, event.payload)
        elif kind == WRITE_SYNCED:
            if CALL_DSYNC_WRITE in self.ignore_syncs:
                return
            file = self.file(event, index)
            first, last = event.a // self.block_bytes, (event.a + event.b - 1) // self.block_bytes
            file.settle(index, range(first, last + 1))
        elif kind == TRUNCATE:
            self.file(event, index).resize(index, event.a)
        elif kind in (ALLOCATE, ZERO):
            file = self.file(event, index)
            if kind == ZERO:
                file.zero(index, event.a, event.b)
            if not event.flags and event.a + event.b > file.size:
                file.resize(index, event.a + event.b)
        elif kind == SYNC_BEGIN:
            self.begun[event.process, event.a] = index
        elif kind == SYNC_END:
            begun = self.begun.pop((event.process, event.a))
            if event.flags not in self.ignore_syncs:
                self.sync(event, begun)
        elif kind == OPEN:
            if event.file not in self.nodes:
                raise TraceError(f"event {index} ({event}): this file was never seen being created")
        elif kind in (CREATE, MKDIR):
            directory, name = self.parent(os.fsdecode(event.payload), index)
            there = directory.names.get(name)
            if there is None or there.inode != event.file:
                node: _Node = _Directory(event.file) if kind == MKDIR else _File(event.file, self.block_bytes)
                self.nodes[event.file] = node
                self.change(index, (directory, name, node))
        elif kind in (UNLINK, RMDIR):
            directory, name = self.parent(os.fsdecode(event.payload), index)
            self.known(directory, name, event, index)
            self.change(index, (directory, name, None))
        elif kind in (RENAME, LINK):
            old, new = (self.parent(os.fsdecode(path), index) for path in event.payload.split(b"\0"))
            node = self.known(*old, event, index)
            if kind == LINK:
                self.change(index, (*new, node))
            elif new[0].names.get(new[1]) is not node:
                self.change(index, (*new, node), (*old, None))
        elif kind == MAPPED:
            self.file(
                event, index
            ).unknown = f"{event.payload.decode(errors='replace')} was mapped shared and writable"
        elif kind == UNMODELLED:
            self.unmodelled = f"event {index}: {event.payload.decode(errors='replace')}"

    def known(self, directory: _Directory, name: str, event: Event, index: int) -> _Node:
        node = directory.names.get(name)
        if node is None or node.inode != event.file:
            raise TraceError(f"event {index} ({event}): another file has that name in the trace")
        return node

    def sync(self, event: Event, begun: int) -> None:
        if event.file and event.file not in self.nodes:
            raise TraceError(f"event {begun} ({event}): what was synced was never seen being created")
        for node in [self.nodes[event.file]] if event.file else list(self.nodes.values()):
            if event.error:
                if isinstance(node, _File):
                    node.drop(begun)
                continue
            node.settle(begun)
            if not self.strict and event.file:
                self.fix_names(node, begun)

    def fix_names(self, node: _Node, before: int) -> None:
        """Makes the changes that gave a node its names durable, and the names of the directories above."""
        for directory in [one for one in self.nodes.values() if isinstance(one, _Directory)]:
            for change in list(directory.pending):
                if change.index < before and any(part[2] is node for part in change.parts):
                    for part in list(change.parts):
                        part[0].fix(change, part)
            if node in directory.names.values() and directory is not self.root:
                self.fix_names(directory, before)

    def survive(self, coin: random.Random, out: Path, volatile: Sequence[str]) -> tuple[int, int]:
        """Writes the directory as a power cut leaves it; returns how many blocks and names were uncertain."""
        if self.unmodelled:
            raise TraceError(f"{self.unmodelled}: the harness does not model this")
        directories = self.directories()
        left = {id(directory): dict(directory.durable) for directory in directories}
        changes = {id(change): change for directory in directories for change in directory.pending}
        for change in sorted(changes.values(), key=lambda change: change.index):
            if coin.getrandbits(1):
                for directory, name, node in change.parts:
                    _assign(left[id(directory)], name, node)
        n_blocks, visited = 0, set[int]()

        def write(directory: _Directory, path: Path) -> None:
            nonlocal n_blocks
            visited.add(id(directory))
            for name, node in left[id(directory)].items():
                if isinstance(node, _File):
                    trusted = self.trusted(node, path / name, out, volatile)
                    n_blocks += node.survive(coin, path / name) * trusted
                elif id(node) not in visited:
                    (path / name).mkdir()
                    write(node, path / name)

        write(self.root, out)
        n_names = sum(
            any(
                not any(fnmatch.fnmatch(name, pattern) for pattern in volatile) for _, name, _ in change.parts
            )
            for change in changes.values()
        )
        return n_blocks, n_names

    def directories(self) -> list[_Directory]:
        """Those that are, and those that were and may be again: another may have the inode number by now."""
        found = dict[int, _Directory]()
        waiting = list[_Node](self.nodes.values())
        while waiting:
            node = waiting.pop()
            if isinstance(node, _Directory) and id(node) not in found:
                found[id(node)] = node
                waiting += node.durable.values()
                for change in node.pending:
                    for directory, _, named in change.parts:
                        waiting += [directory] if named is None else [directory, named]
        return list(found.values())

    def trusted(self, file: _File, path: Path, root: Path, volatile: Sequence[str]) -> bool:
        relative = str(path.relative_to(root))
        loose = any(fnmatch.fnmatch(relative, pattern) for pattern in volatile)
        if file.unknown and not loose:
            raise TraceError(
                f"{file.unknown}: its bytes are not in the trace. If they need not survive, name it volatile"
            )
        return not loose

    def files(self) -> Iterator[tuple[str, _Node]]:
        def walk(directory: _Directory, above: str) -> Iterator[tuple[str, _Node]]:
            for name, node in directory.names.items():
                yield above + name, node
                if isinstance(node, _Directory):
                    yield from walk(node, f"{above}{name}/")

        return walk(self.root, "")


class Trace:
    """A trace, and the state at the last cut asked for: cuts in ascending order cost one pass in all."""

    def __init__(
        self,
        base: Sequence[Event],
        events: Sequence[Event],
        *,
        block_bytes: int,
        strict: bool,
        volatile: Sequence[str],
        ignore_syncs: Sequence[str],
    ) -> None:
        self._base, self.events = base, events
        self._block_bytes, self._strict, self._volatile = block_bytes, strict, tuple(volatile)
        self._ignore_syncs = frozenset(SYNC_CALLS[name] for name in ignore_syncs)
        self._markers = [
            Marker(i, e.payload.decode(errors="replace")) for i, e in enumerate(events) if e.kind == MARK
        ]
        self._rewind()

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        block_bytes: int = 512,
        strict: bool = True,
        volatile: Sequence[str] = ("*lock.mdb",),
        ignore_syncs: Sequence[str] = (),
    ) -> Trace:
        """Reads a trace. `block_bytes` is what a disk writes whole; `strict` is about names, see above.

        `volatile` names files (globs below the root) that a store rebuilds and may map writable, as LMDB does
        its locks. `ignore_syncs` takes from "fsync", "fdatasync" and "dsync" (writes through O_DSYNC): images
        are as if those had done nothing. A checker that then finds no failure checks nothing.
        """
        data = path.read_bytes()
        if data[: len(MAGIC)] != MAGIC:
            raise TraceError(f"{path} does not start with {MAGIC!r}: it is no trace")
        base, events = list[Event](), list[Event]()
        offset = len(MAGIC)
        while offset < len(data):
            try:
                size, kind, flags, error, process, thread, file, a, b = RECORD.unpack_from(data, offset)
            except struct.error:
                break  # the process died while appending its last record
            if offset + size > len(data):
                break
            if size < RECORD.size or (
                kind not in KIND_NAMES and kind not in (BASE_DIRECTORY, BASE_FILE, BASE_DATA)
            ):
                raise TraceError(f"{path}: offset {offset}: no record of a known kind")
            event = Event(
                kind, flags, error, process, thread, file, a, b, data[offset + RECORD.size : offset + size]
            )
            (base if kind <= BASE_DATA else events).append(event)
            offset += size
        return cls(
            base, events, block_bytes=block_bytes, strict=strict, volatile=volatile, ignore_syncs=ignore_syncs
        )

    @property
    def n_events(self) -> int:
        return len(self.events)

    def markers(self) -> list[Marker]:
        return list(self._markers)

    def faults(self) -> list[Event]:
        """The faults that were injected: a test that wanted one should see that it happened."""
        return [event for event in self.events if event.kind == FAULT]

    def cuts(self, n: int, seed: int, *, after: int = 0) -> list[Cut]:
        """`n` cuts in ascending order, none before event `after`: half anywhere, half where mistakes show.

        Those are: right after a marker (what it acknowledges must be there), and between begin and end of a
        sync or of an O_DSYNC write (anything may be there, and nothing acknowledged may be lost).
        """
        coin = random.Random(f"cuts {seed}")
        sharp = [
            i + 1
            for i, event in enumerate(self.events)
            if event.kind in (SYNC_BEGIN, WRITE) and i + 1 >= after
        ]
        marks = [marker.event + 1 for marker in self._markers if marker.event + 1 >= after]
        if after > self.n_events:
            raise ValueError(f"the trace has {self.n_events} events, none after {after}")
        chosen = list[int]()
        for i in range(n):
            if i % 4 == 0 and marks:
                chosen.append(coin.choice(marks))
            elif i % 4 == 1 and sharp:
                chosen.append(coin.choice(sharp))
            else:
                chosen.append(coin.randint(after, self.n_events))
        return [Cut(at, coin.getrandbits(32)) for at in sorted(chosen)]

    def crash_image(self, at: int, seed: int, out_dir: Path) -> Image:
        """Fills `out_dir` (made, or empty) with one directory that a power cut at `at` could leave."""
        world = self._forward(at)
        out_dir.mkdir(parents=True, exist_ok=True)
        if any(out_dir.iterdir()):
            raise ValueError(f"{out_dir} is not empty: an image would mix with what is there")
        n_blocks, n_names = world.survive(random.Random(f"image {at} {seed}"), out_dir, self._volatile)
        markers = [marker.text for marker in self._markers if marker.event < at]
        return Image(out_dir, Cut(at, seed), markers, n_blocks, n_names)

    def verify(self, root: Path) -> None:
        """Checks that the whole trace, replayed, gives exactly what is below `root`: no change escaped it.

        For a program that has ended. What escapes: stdio, maps, raw system calls, other programs.
        """
        world = self._forward(self.n_events)
        root = root.resolve()
        seen = dict(world.files())
        there = {str(path.relative_to(root)) for path in root.rglob("*")}
        if there != set(seen):
            raise TraceError(
                f"in the trace only: {sorted(set(seen) - there)}; in {root} only: {sorted(there - set(seen))}"
            )
        scratch = root.parent / f"{root.name}.verify"
        try:
            for name, node in seen.items():
                if isinstance(node, _Directory) or not world.trusted(node, root / name, root, self._volatile):
                    continue
                node.dump(scratch)
                if scratch.read_bytes() != (root / name).read_bytes():
                    raise TraceError(
                        f"{root / name} is not what the trace says: it was changed where the shim cannot see"
                    )
        finally:
            scratch.unlink(missing_ok=True)

    def _rewind(self) -> None:
        self._world, self._at = _World(self._block_bytes, self._strict, self._ignore_syncs), 0
        for event in self._base:
            self._world.base(event)

    def _forward(self, at: int) -> _World:
        if not 0 <= at <= self.n_events:
            raise ValueError(f"a cut at {at}: the trace has {self.n_events} events")
        if at < self._at:
            self._rewind()
        for index in range(self._at, at):
            self._world.apply(index, self.events[index])
        self._at = at
        return self._world


@dataclass
class CutReport:
    """How many images were checked, and what was wrong with which. Print it: the counts are the result."""

    checked: int = 0
    uncertain: int = 0
    """Images in which something was left to a coin; the others only show the state between operations."""
    failures: list[tuple[Cut, str]] = field(default_factory=list)

    def __str__(self) -> str:
        text = (
            f"{self.checked - len(self.failures)} of {self.checked} power cuts survived,"
            f" {self.uncertain} of them with unsynced blocks or names"
        )
        for cut, why in self.failures[:3]:
            text += f"\n--- trace.crash_image(at={cut.at}, seed={cut.seed}): {why}"
        return text


def check_images(
    trace: Trace,
    cuts: Iterable[Cut],
    check: Callable[[Image], None],
    scratch: Path,
    *,
    timeout_s: float = 60.0,
    until_failure: bool = False,
) -> CutReport:
    """Builds an image for each cut and calls `check` on it in a forked child; to raise or to die is to fail.

    `until_failure` ends at the first that fails: for what must be noticed, but by no one cut for certain,
    hundreds of cuts may be given and a few are made.

    A child of its own each: a broken database may be a SIGBUS or an endless loop in the code that reads it, a
    store's background threads end with it, and forking after the imports makes it cheap.
    """
    report = CutReport()
    for cut in cuts:
        directory = scratch / "image"
        shutil.rmtree(directory, ignore_errors=True)
        image = trace.crash_image(cut.at, cut.seed, directory)
        why = run_apart(partial(check, image), timeout_s)
        report.checked += 1
        report.uncertain += bool(image.blocks_unsynced or image.names_unsynced)
        if why:
            report.failures.append((cut, why))
            if until_failure:
                break
    return report


def run_apart(work: Callable[[], None], timeout_s: float) -> str:
    """Runs `work` in a forked child; "" if it returned, else what went wrong."""
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read_fd)
            faulthandler.disable()  # the parent says which signal it was
            work()
            status = 0
        except BaseException:
            os.write(
                write_fd, traceback.format_exc().encode()[-60_000:]
            )  # what a pipe holds without a reader
        finally:
            os._exit(status)
    os.close(write_fd)
    deadline = time.monotonic() + timeout_s
    with os.fdopen(read_fd, "rb") as pipe:
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return f"not done after {timeout_s} s"
            time.sleep(0.0005)
        if os.WIFSIGNALED(status):
            return f"died of {signal.Signals(os.WTERMSIG(status)).name}"
        return "" if status == 0 else pipe.read().decode(errors="replace") or f"ended with status {status}"
