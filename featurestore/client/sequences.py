"""Numbers for batches, such that the store can always tell whether it has one.

The store remembers 1,024 sequences below a producer's highest. A number taken long ago and still being
retried must not fall out of that window while others overtake it, so numbers are taken from *lanes*,
producers named `name`, `name/1`, …: a lane gives out a number only while the oldest of its numbers in flight
is near. There is more than one lane only where one lags a thousand numbers behind.

In flight is also what a caller may still finish: the number of a ticket that was taken beforehand, and of a
write of unknown outcome, until it is answered (`hold`). Not so under a name that was given: there a program
that does the same again must come to the same numbers, whatever fails meanwhile.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field

from featurestore.errors import ConfigError

LAST_NUMBER = (1 << 64) - 1
_TICKET = re.compile(r"(?P<producer>.+)@(?P<epoch>[0-9]{1,20})\.(?P<sequence>[0-9]{1,20})")
MAX_NAME_BYTES = 255  # of a producer: the server's
NEAR = 1000  # below the store's 1,024
MOST_LANES = 1000  # of a client that leaves a ticket unfinished in every thousand writes


def _is_name(text: str) -> bool:
    return text.isprintable() and 0 < len(text.encode(errors="surrogatepass")) <= MAX_NAME_BYTES


@dataclass(frozen=True, slots=True)
class Ticket:
    """Who a write is from, and its number there: sent again under it, the same write counts once.

    `str(ticket)` is text to be stored; `Ticket.parse` makes it a ticket again, in whatever process. The store
    knows it for 15 minutes after it was sent, 7 days if its client was given a name (`producer=`). After that
    it counts again.

    The store judges a number while it is at most 1,024 below its producer's highest, and refuses it after
    (SequenceError). A client without a name of its own sees to that, as long as the store knows the ticket
    and however many writes come between: it holds the numbers of tickets that it has given out and nobody has
    finished, up to a thousand times a thousand later writes. Under a name numbers follow the order of the
    program's writes, and such a ticket is to be finished before 1,024 more.
    """

    producer: str
    epoch: int
    sequence: int

    def __post_init__(self) -> None:
        numbers = self.epoch, self.sequence
        if not isinstance(self.producer, str) or not _is_name(self.producer):
            problem = f"a producer's name is printable text of 1 to {MAX_NAME_BYTES} bytes"
        elif not all(isinstance(number, int) and 0 <= number <= LAST_NUMBER for number in numbers):
            problem = "epoch and sequence are from 0 to 2**64 - 1"
        else:
            return
        raise ConfigError(f"{str(self)[:MAX_NAME_BYTES]!r} is no ticket: {problem}", setting="ticket")

    def __str__(self) -> str:
        return f"{self.producer}@{self.epoch}.{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> Ticket:
        """The ticket of this text. Raises ConfigError where it is none."""
        found = _TICKET.fullmatch(text) if isinstance(text, str) else None
        if found is not None:
            return cls(found["producer"], int(found["epoch"]), int(found["sequence"]))
        raise ConfigError(
            f"{text!r} is no ticket: that is what client.ticket() gives or an error has (error.ticket), or "
            "str() of one, such as name@1.25",
            setting="ticket",
        )


@dataclass
class _Lane:
    producer: str
    next: int = 1
    in_flight: dict[int, None] = field(default_factory=dict)  # ascending, as they were taken

    @property
    def is_free(self) -> bool:
        return not self.in_flight or self.next - next(iter(self.in_flight)) < NEAR


class Sequences:
    """Thread-safe. Every ticket taken is given back once its batch is answered or given up; or held,
    while its caller may send it again.

    holds   whether what is held stays in flight, or is given back all the same
    """

    def __init__(self, producer: str, epoch: int, *, holds: bool) -> None:
        self._producer, self._epoch, self._holds = producer, epoch, holds
        self._lane = _Lane(producer)  # that numbers are taken from
        self._lanes = {producer: self._lane}  # the one that was left first in front
        self._lock = threading.Lock()

    def take(self) -> Ticket:
        with self._lock:
            if not self._lane.is_free:
                self._change()
            lane = self._lane
            sequence = lane.next
            lane.next += 1
            lane.in_flight[sequence] = None
            return Ticket(lane.producer, self._epoch, sequence)

    def _change(self) -> None:
        """To a lane that is free, a new one, or that which has waited the longest for what is in flight."""
        self._lanes[self._lane.producer] = self._lanes.pop(self._lane.producer)
        free = next((lane for lane in self._lanes.values() if lane.is_free), None)
        if free is None and len(self._lanes) < MOST_LANES:
            free = _Lane(f"{self._producer}/{len(self._lanes)}")
            self._lanes[free.producer] = free
        if free is None:
            free = next(iter(self._lanes.values()))
            free.in_flight.clear()
        self._lane = free

    def hold(self, ticket: Ticket) -> None:
        """Its caller has it, and may send it again."""
        if not self._holds:
            self.give_back(ticket)

    def give_back(self, ticket: Ticket) -> None:
        with self._lock:
            lane = self._lanes.get(ticket.producer)
            if lane is None or ticket.epoch != self._epoch:  # of another client
                return
            lane.in_flight.pop(ticket.sequence, None)
            if lane.is_free:
                self._lane = lane


class NoSequences(Sequences):
    """Of a process that was forked: the name is its parent's, whose numbers it cannot know."""

    def __init__(self, producer: str) -> None:
        super().__init__(producer, 0, holds=False)

    def take(self) -> Ticket:
        error = ConfigError(
            f"this client was made, as producer {self._producer!r}, before this process was forked: that "
            "name is its parent's. Make a client in the child, without a name or with one of its own",
            setting="producer",
        )
        error.applied = False
        raise error


class SourceSequences:
    """Numbers for the batches of one source, the same each time it is sent from its beginning.

    A producer per 1,024 batches, so that the first batch of a long source can still be judged when its last
    has been applied: what was sent in order and cut short is skipped, batch by batch, when it is sent again.
    """

    BLOCK = 1024

    def __init__(self, source: str, epoch: int) -> None:
        self._source, self._epoch = source, epoch
        self._taken = 0

    def take(self) -> Ticket:
        block, sequence = divmod(self._taken, self.BLOCK)
        self._taken += 1
        producer = f"{self._source}/{block}" if block else self._source
        return Ticket(producer, self._epoch, sequence + 1)

    def give_back(self, ticket: Ticket) -> None:
        """Nothing to do: batches are sent and answered in order, so none can lag."""
