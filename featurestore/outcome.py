"""What became of one event: the number that journal, wire and arrays carry, and the reason in words.

The numbers are those of `Outcome` in core/batch.pxd, which this module does not import (clients have no
compiled core); a test compares the two. They are part of the journal's format and of the proto: never
renumbered.
"""

from __future__ import annotations

import enum


class Outcome(enum.IntEnum):
    """0 is accepted, 16 and above are refused; `reason` says why in one line."""

    ACCEPTED = 0
    LATE = 1
    DUPLICATE = 2
    REFUSED_NO_TIME = 16
    REFUSED_TIME_RANGE = 17
    REFUSED_FUTURE = 18
    REFUSED_NOT_FINITE = 19
    REFUSED_KEY = 20
    REFUSED_KEY_TOO_LONG = 21
    REFUSED_TYPE = 22
    REFUSED_NO_ID = 23
    REFUSED_BEYOND_DEDUPE = 24
    REFUSED_MEMORY = 25

    @property
    def refused(self) -> bool:
        """The event was not journaled; sent again it may be judged anew."""
        return self >= Outcome.REFUSED_NO_TIME

    @property
    def reason(self) -> str:
        return _REASONS[self]


_REASONS = {
    Outcome.ACCEPTED: "accepted",
    Outcome.LATE: "older than every view it matches still keeps",
    Outcome.DUPLICATE: "an event with this id was accepted before",
    Outcome.REFUSED_NO_TIME: "the time field is absent",
    Outcome.REFUSED_TIME_RANGE: "the time is outside the years 1 to 9999",
    Outcome.REFUSED_FUTURE: "the time is further ahead of the server's clock than max_future allows",
    Outcome.REFUSED_NOT_FINITE: "a number field is NaN or infinite",
    Outcome.REFUSED_KEY: "a key field holds a float that is not a whole number",
    Outcome.REFUSED_KEY_TOO_LONG: "a key or id is longer than 4096 bytes",
    Outcome.REFUSED_TYPE: "a value has the wrong type for its field",
    Outcome.REFUSED_NO_ID: "the event type declares ids and this event has none",
    Outcome.REFUSED_BEYOND_DEDUPE: "older than the dedupe horizon, so a duplicate could not be told",
    Outcome.REFUSED_MEMORY: "its id is new and dedupe_memory is reached, until older ids expire; or ids on "
    "the disk cannot be read, and whether it is new cannot be told",
}
