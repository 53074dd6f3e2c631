"""What became of the events of a file: how many of each outcome, and the first rows that were refused for
each reason, the first of them with what is wrong in it.

Rows are numbered from 1, the first event of the file, as a person counts them; a header is not a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.outcome import Outcome
from featurestore.refusals import Why

N_FIRST_ROWS = 5


class Tally:
    def __init__(self) -> None:
        self.n_events = self.n_partly_late = 0
        self.counts: dict[Outcome, int] = {}
        self.first_rows: dict[Outcome, list[int]] = {}
        self.first_whys: dict[Outcome, Why] = {}

    def add(
        self,
        numbers: NDArray[np.int64],
        outcomes: NDArray[np.uint8],
        partly_late: NDArray[np.uint8],
        why: Callable[[int], Why] | None = None,
    ) -> None:
        """Counts the outcomes of events that have so many others before them in the file, each, and those
        that were accepted and are partly late. `why` is asked of the first of these that was refused for a
        reason."""
        self.n_events += len(outcomes)
        self.n_partly_late += int(np.count_nonzero(partly_late))
        for number in np.unique(outcomes):
            outcome = Outcome(int(number))
            at = np.flatnonzero(outcomes == number)
            self.counts[outcome] = self.counts.get(outcome, 0) + len(at)
            rows = self.first_rows.setdefault(outcome, [])
            if outcome.refused and not rows and why is not None:
                self.first_whys[outcome] = why(int(at[0]))
            rows += [int(numbers[i]) + 1 for i in at[: N_FIRST_ROWS - len(rows)]]

    def merge(self, other: Tally) -> None:
        """Counts those of another file too; their rows are not listed, but what is wrong in the first is."""
        self.n_events += other.n_events
        self.n_partly_late += other.n_partly_late
        for outcome, count in other.counts.items():
            self.counts[outcome] = self.counts.get(outcome, 0) + count
            self.first_rows.setdefault(outcome, [])
        self.first_whys = other.first_whys | self.first_whys

    def _told(self, outcome: Outcome) -> dict[str, Any]:
        """What is wrong in the first row that was refused so."""
        first = self.first_whys.get(outcome)
        if first is None:
            return {"reason": outcome.reason}
        return {"field": first.field, "value": first.value, "reason": first.reason}

    @property
    def n_refused(self) -> int:
        return sum(count for outcome, count in self.counts.items() if outcome.refused)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON: events, accepted, of those partly late, late, duplicate, and the refused
        by reason."""
        return {
            "events": self.n_events,
            "accepted": self.counts.get(Outcome.ACCEPTED, 0),
            "partly_late": self.n_partly_late,
            "late": self.counts.get(Outcome.LATE, 0),
            "duplicate": self.counts.get(Outcome.DUPLICATE, 0),
            "refused": {
                outcome.name.removeprefix("REFUSED_").lower(): {
                    "count": self.counts[outcome],
                    **self._told(outcome),
                    "first_rows": self.first_rows[outcome],
                }
                for outcome in sorted(self.counts)
                if outcome.refused
            },
        }

    def lines(self) -> list[str]:
        """The same for people: one line of counts, then one for each reason to refuse."""
        numbers = self.to_dict()
        refused = numbers["refused"]
        partly = f" ({self.n_partly_late:,} of them partly late)" if self.n_partly_late else ""
        counts = [f"{numbers['events']:,} events: {numbers['accepted']:,} accepted{partly}"]
        counts += [f"{numbers[name]:,} {name}" for name in ("late", "duplicate") if numbers[name]]
        counts += [f"{self.n_refused:,} refused"] if refused else []
        return [", ".join(counts)] + [
            f"  {one['count']:,} refused: "
            + (f"row {one['first_rows'][0]}, " if one["first_rows"] else "")
            + one["reason"]
            + also(one["first_rows"][1:], one["count"] - 1)
            for one in refused.values()
        ]


def also(rows: Sequence[int], count: int | None = None) -> str:
    """The others, at most a few, to end a sentence on the first of them; `count` is how many there are."""
    if not rows:
        return ""
    shown = ", ".join(map(str, rows[:N_FIRST_ROWS]))
    more = ", …" if (len(rows) if count is None else count) > len(rows[:N_FIRST_ROWS]) else ""
    return f" (and row{'s' if len(rows) > 1 or more else ''} {shown}{more})"
