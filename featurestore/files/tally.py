"""What became of the events of a file: how many of each outcome, and the first rows that were refused for
each reason.

Rows are numbered from 1, the first event of the file, as a person counts them; a header is not a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.outcome import Outcome

N_FIRST_ROWS = 5


class Tally:
    def __init__(self) -> None:
        self.n_events = self.n_partly_late = 0
        self.counts: dict[Outcome, int] = {}
        self.first_rows: dict[Outcome, list[int]] = {}

    def add(
        self, numbers: NDArray[np.int64], outcomes: NDArray[np.uint8], partly_late: NDArray[np.uint8]
    ) -> None:
        """Counts the outcomes of events that have so many others before them in the file, each, and those
        that were accepted and are partly late."""
        self.n_events += len(outcomes)
        self.n_partly_late += int(np.count_nonzero(partly_late))
        for number in np.unique(outcomes):
            outcome = Outcome(int(number))
            at = np.flatnonzero(outcomes == number)
            self.counts[outcome] = self.counts.get(outcome, 0) + len(at)
            rows = self.first_rows.setdefault(outcome, [])
            rows += [int(numbers[i]) + 1 for i in at[: N_FIRST_ROWS - len(rows)]]

    def merge(self, other: Tally) -> None:
        """Counts those of another file too; their rows are not listed."""
        self.n_events += other.n_events
        self.n_partly_late += other.n_partly_late
        for outcome, count in other.counts.items():
            self.counts[outcome] = self.counts.get(outcome, 0) + count
            self.first_rows.setdefault(outcome, [])

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
                    "reason": outcome.reason,
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
            f"  {one['count']:,} refused, {one['reason']}: "
            + ("row " if one["count"] == 1 else "rows ")
            + ", ".join(map(str, one["first_rows"]))
            + (", …" if one["count"] > len(one["first_rows"]) else "")
            for one in refused.values()
        ]
