"""The quotes of CSV: where the last whole row of a block ends, and the first quote that stands where it may
not.

    cell    = unquoted | '"' (any byte but a quote | '""')* '"'
    what follows a quoted cell is a comma (or what separates cells instead), the end of a line (LF, CRLF or
    CR) or the end of the file

This is what Python's csv reader takes when it is strict; a quote inside an unquoted cell (`5" disk`) is a
character like others there and here. Two things that it takes are refused, because they are how other
dialects write a quoted cell and a quote, and would silently make another key of the same value: blanks before
the first quote of a cell (`a, "b"`) and a backslash before a quote in an unquoted cell (`a\\"b`).

pyarrow takes anything behind a closing quote as more of the cell. A stray quote at the beginning of a cell
then swallows the rows up to the next quote.

Nothing here looks at bytes one by one. Where every quote opens or closes a cell or is one of two, the n-th
quote of a block opens if n is even, and a look at one neighbour of each says whether that is so. Blocks with
other quotes are walked through cell by cell, in a regular expression.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

QUOTE = b'"'
SHOWN_BYTES = 60

# What is wrong with a cell as far as it is shown, and what to do.
TWICE = "put the value in quotes and write each quote in it twice"
NOT_CLOSED = "a quote is opened and never closed: {shown!r}; where it is part of the value, " + TWICE
MORE_BEHIND = (
    "behind the quote that closes {shown!r}{lines} comes {found!r}, "
    "and only {delimiter} or the end of the line may; where a quote is part of the value, " + TWICE
)
BLANK_BEFORE = (
    "blanks before the quote: {shown!r}; take them out, or where they are part of the value, " + TWICE
)
BACKSLASH_BEFORE = "a backslash before the quote: {shown!r}; nothing is escaped with one in CSV: " + TWICE


@dataclass(frozen=True)
class Fault:
    """A quote where none may be."""

    row_begin: int  # where the row of the cell begins
    column: int  # of the cell, from 0
    what: str  # is wrong, and what to do


@dataclass(frozen=True)
class Rows:
    end: int  # of the last whole row
    fault: Fault | None  # the first in the whole rows


class Quotes:
    """Those of CSV with one delimiter."""

    def __init__(self, delimiter: str) -> None:
        self._mark = mark = delimiter.encode()
        self._told_as = "a comma" if delimiter == "," else "a tab" if delimiter == "\t" else repr(delimiter)
        self._blanks = b" \t".replace(mark, b"")
        # May stand before a quote that opens a cell and behind one that closes it (a quote: two are one).
        self._beside: NDArray[np.bool_] = np.isin(np.arange(256), list(mark + b'\r\n"'))
        # A quoted cell, or a quote inside an unquoted one. A group is there only where something is or may be
        # wrong.
        end = b"[^" + re.escape(mark) + rb"\r\n]"
        blank = b"[" + re.escape(b"\\" + self._blanks) + b"]"
        self._token = re.compile(
            rb'"(?:(?<!' + end + rb'")[^"]*+(?:""[^"]*+)*+(?:"(?:(?!' + end + rb")|(?P<more>))|(?P<open>))"
            rb"|(?<!" + blank + rb'")|(?P<behind>))'
        )
        self._next = re.compile(end + b"{1,20}")

    def whole_rows(self, data: bytes, *, is_last: bool = False) -> Rows:
        """The whole rows in `data`, which begins with a row: up to an LF outside of quotes, or up to the end
        where nothing comes behind it (`is_last`). A row is judged once it is whole, wherever blocks are cut.
        """
        if QUOTE not in data:
            return Rows(len(data) if is_last else data.rfind(b"\n") + 1, None)
        text = np.frombuffer(data, np.uint8)
        quotes = np.flatnonzero(text == ord(QUOTE))
        # clip: before the first byte and behind the last one it is the quote itself, and nothing is wrong
        is_regular = (
            self._beside[text.take(quotes[0::2] - 1, mode="clip")].all()
            and self._beside[text.take(quotes[1::2] + 1, mode="clip")].all()
        )
        if is_regular and not (is_last and len(quotes) % 2):
            return Rows(len(data) if is_last else self._end_of_rows(data, text, quotes), None)
        return self._walk(data, is_last)

    def _end_of_rows(self, data: bytes, text: NDArray[np.uint8], quotes: NDArray[np.intp]) -> int:
        """Behind the last LF that has an even number of quotes before it."""
        newline = data.rfind(b"\n")
        if np.searchsorted(quotes, newline) % 2 == 0:
            return newline + 1
        newlines = np.flatnonzero(text == ord(b"\n"))
        outside = newlines[np.searchsorted(quotes, newlines) % 2 == 0]
        return int(outside[-1]) + 1 if len(outside) else 0

    def _walk(self, data: bytes, is_last: bool) -> Rows:
        """`whole_rows` of any text, from quote to quote."""
        newline = data.rfind(b"\n")
        is_quoted = False  # that newline
        fault: tuple[int, int, str] | None = None
        before = 0
        for token in self._token.finditer(data):
            start, stop = token.span()
            if start < newline < stop:
                is_quoted = True
            if token.lastgroup is not None and fault is None:
                words = self._wrong(data, before, token, is_last)
                fault = (start, stop, words) if words else None
            before = stop
        end = len(data) if is_last else self._end_outside(data) if is_quoted else newline + 1
        return Rows(end, self._told(data, *fault) if fault is not None and fault[0] < end else None)

    def _wrong(self, data: bytes, before: int, token: re.Match[bytes], is_last: bool) -> str:
        """What is wrong with a token that has a group; the token in front of it ends at `before`."""
        if token.lastgroup == "more":
            return MORE_BEHIND
        if token.lastgroup == "open":
            return NOT_CLOSED if is_last else ""
        quote = token.start()
        if data[quote - 1] == ord(b"\\"):
            return BACKSLASH_BEFORE
        text = data[before:quote].rstrip(self._blanks)
        is_first = text[-1:] in (self._mark, b"\r", b"\n") if text else before == 0
        return BLANK_BEFORE if is_first else ""

    def _end_outside(self, data: bytes) -> int:
        """Behind the last LF that is in no token."""
        before = end = 0
        for token in self._token.finditer(data):
            end = data.rfind(b"\n", before, token.start()) + 1 or end
            before = token.end()
        return data.rfind(b"\n", before) + 1 or end

    def _told(self, data: bytes, start: int, stop: int, words: str) -> Fault:
        """The fault of the token at [start, stop), with its place."""
        # a comma or a line end in quotes is none
        outside = self._token.sub(lambda token: b"x" * len(token[0]), data[:start])
        row_begin = max(outside.rfind(b"\n"), outside.rfind(b"\r")) + 1
        cell = data[max(row_begin, outside.rfind(self._mark) + 1) : stop]
        found = self._next.match(data, stop)
        n_lines = cell.count(b"\n")
        what = words.format(
            delimiter=self._told_as,
            shown=_shown(cell),
            lines=f" {n_lines} line{'s' * (n_lines > 1)} below" if n_lines else "",
            found=found[0].decode(errors="backslashreplace") if found else "",
        )
        return Fault(row_begin, outside.count(self._mark, row_begin), what)


@functools.cache
def quotes_of(delimiter: str) -> Quotes:
    return Quotes(delimiter)


def _shown(cell: bytes) -> str:
    if len(cell) > SHOWN_BYTES:
        cell = cell[: SHOWN_BYTES - 20] + b"..." + cell[-17:]
    return cell.decode(errors="backslashreplace")
