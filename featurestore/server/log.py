"""The log of a server, which strangers must not be able to fill.

From each place in the code, and for each kind of error there, at most MOST lines are written a minute. The
last of them says that it is the last; the first of the next minute says how many were left out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

MOST = 10
EVERY_S = 60.0


@dataclass
class _Place:
    began_s: float
    n: int = 0


class RateLimit(logging.Filter):
    """For a handler of the root logger: what it writes is ours and of the libraries that a server uses."""

    def __init__(
        self, most: int = MOST, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._most, self._every_s, self._clock = most, every_s, clock
        self._places: dict[object, _Place] = {}  # as many as lines of code that log
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        now_s = self._clock()
        with self._lock:
            place = self._places.setdefault((record.pathname, record.lineno, kind), _Place(now_s))
            left_out = 0
            if now_s - place.began_s >= self._every_s:
                left_out = max(0, place.n - self._most)
                place.began_s, place.n = now_s, 0
            place.n += 1
            n = place.n
        if left_out:
            self._add(record, f"{left_out:,} more from here were not written")
        elif n == self._most:
            self._add(record, f"more from here within {self._every_s:g} s are counted, not written")
        return n <= self._most

    @staticmethod
    def _add(record: logging.LogRecord, words: str) -> None:
        record.msg, record.args = f"{record.getMessage()} ({words})", ()
