"""Streams that are in order, made one: by key, and among equal keys in the order of the streams.

A stream comes in runs of rows whose keys ascend. One that knows the key of its first row is not asked for
more before its turn, so that of files that follow each other only one is open at a time. What is held is a
run of each stream that has begun. Of streams whose last run has come many are taken in one block, so that
thousands of short files that overlap are not gone through once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 1 << 18  # of streams that end, taken together


class Run(Protocol):
    """Some rows of a stream; there is one at least."""

    @property
    def keys(self) -> NDArray[np.int64]: ...

    @property
    def is_last(self) -> bool:
        """Whether the stream is surely at its end behind it."""


R = TypeVar("R", bound=Run)
R_co = TypeVar("R_co", bound=Run, covariant=True)


class Stream(Protocol[R_co]):
    @property
    def first_key(self) -> int | None:
        """Of the first row; None where there is none, or it is not known before `runs` is asked."""

    @property
    def waits(self) -> bool:
        """Whether `first_key` is known, so that it need not begin before it."""

    def runs(self) -> Iterator[R_co]: ...


@dataclass
class Block(Generic[R]):
    """Rows in order, which come before all that are still to come: of each of `pieces`, (run, begin, end),
    all or some. `which` and `at` say of each row its piece and its place in the run."""

    pieces: list[tuple[R, int, int]]
    which: NDArray[np.int64]
    at: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.which)

    @property
    def order(self) -> NDArray[np.int64]:
        """The place of each row among those of the pieces, one piece after the other."""
        begins = np.array([begin for _, begin, _ in self.pieces])
        starts = np.cumsum([0, *(end - begin for _, begin, end in self.pieces[:-1])])
        places: NDArray[np.int64] = (starts - begins)[self.which] + self.at
        return places

    def column(self, get: Callable[[R, slice], NDArray[Any]]) -> NDArray[Any]:
        """Of each row, where `get` gives an array for the rows of a piece."""
        found = [get(run, slice(begin, end)) for run, begin, end in self.pieces]
        if len(found) == 1 and len(found[0]) == len(self):
            return found[0]
        return np.concatenate(found)[self.order]

    def part(self, rows: slice | NDArray[np.bool_]) -> Block[R]:
        """Those rows, and the pieces that have any of them."""
        which, at = self.which[rows], self.at[rows]
        begins, ends = np.zeros(len(self.pieces), np.int64), np.zeros(len(self.pieces), np.int64)
        begins[which[::-1]] = at[::-1]  # of several the last stays, and places ascend in each run
        ends[which] = at + 1
        some = np.flatnonzero(ends)
        pieces = [
            (self.pieces[i][0], begin, end)
            for i, begin, end in zip(some.tolist(), begins[some].tolist(), ends[some].tolist(), strict=True)
        ]
        return Block(pieces, (np.cumsum(ends > 0) - 1)[which], at)

    def cut(self, n_rows: int) -> Iterator[Block[R]]:
        """The same in blocks of so many rows at most."""
        for begin in range(0, len(self), n_rows):
            yield self if len(self) <= n_rows else self.part(slice(begin, begin + n_rows))


class _Head(Generic[R]):
    """A stream that has begun, with the rows of it that wait."""

    def __init__(self, place: int, stream: Stream[R]) -> None:
        self.place = place
        self._runs = stream.runs()
        self.run: R | None = None
        self.at = 0
        self.fill()

    def fill(self) -> None:
        if self.run is None or self.at == len(self.run.keys):
            self.run, self.at = next(self._runs, None), 0

    @property
    def last_key(self) -> int:
        assert self.run is not None  # noqa: S101  # else it is not among the heads
        return int(self.run.keys[-1])

    @property
    def is_last(self) -> bool:
        return self.run is None or self.run.is_last

    @property
    def n_left(self) -> int:
        return 0 if self.run is None else len(self.run.keys) - self.at

    def take(self, bound: int, side: str) -> tuple[R, int, int] | None:
        assert self.run is not None  # noqa: S101  # as above
        begin = self.at
        self.at += int(np.searchsorted(self.run.keys[begin:], bound, "left" if side == "left" else "right"))
        return (self.run, begin, self.at) if self.at > begin else None


def merged(streams: Sequence[Stream[R]]) -> Iterator[Block[R]]:
    """All rows of all streams, a block at a time."""
    waiting = sorted(
        ((stream.first_key, place) for place, stream in enumerate(streams) if stream.first_key is not None),
        reverse=True,
    )
    heads = [_Head(place, stream) for place, stream in enumerate(streams) if not stream.waits]
    while True:
        heads = [head for head in heads if head.run is not None]
        bound = min((head.last_key for head in heads), default=None)
        while waiting and (bound is None or waiting[-1][0] <= bound):
            place = waiting.pop()[1]
            head = _Head(place, streams[place])
            if head.run is not None:
                heads.append(head)
                bound = head.last_key if bound is None else min(bound, head.last_key)
        if bound is None:
            return
        bound = _further(bound, heads, waiting[-1][0] if waiting else None)
        heads.sort(key=lambda head: head.place)
        # The first stream that ends at the bound may have more rows of that key: those behind it wait.
        pieces, side = [], "right"
        for head in heads:
            piece = head.take(bound, side)
            if piece is not None:
                pieces.append(piece)
            if head.last_key == bound and not head.is_last:
                side = "left"
        yield _block(pieces)
        for head in heads:
            head.fill()


def _further(bound: int, heads: Sequence[_Head[R]], next_key: int | None) -> int:
    """A later bound: at streams that end nothing need stop, so that many short ones are few blocks."""
    limits = [head.last_key for head in heads if not head.is_last]
    if next_key is not None:
        limits.append(next_key - 1)
    limit = min(limits, default=None)
    n = 0
    for last_key, n_left in sorted((head.last_key, head.n_left) for head in heads if head.is_last):
        n += n_left
        if n > BLOCK_ROWS or (limit is not None and last_key > limit):
            break
        bound = max(bound, last_key)
    else:
        bound = max(bound, limit) if limit is not None else bound
    return bound


def _block(pieces: list[tuple[R, int, int]]) -> Block[R]:
    which = np.repeat(np.arange(len(pieces)), [end - begin for _, begin, end in pieces])
    at = np.concatenate([np.arange(begin, end) for _, begin, end in pieces])
    if len(pieces) > 1:
        keys = np.concatenate([run.keys[begin:end] for run, begin, end in pieces])
        order = np.argsort(keys, kind="stable")
        which, at = which[order], at[order]
    return Block(pieces, which, at)
