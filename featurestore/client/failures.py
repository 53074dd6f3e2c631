"""When a call fails: the one table from gRPC status to featurestore.errors, and how long to wait before
trying again. Several errors share a status, so the server names the class beside it; where it does not (no
server was reached, a proxy answered) the table says which it is. Where a proxy stands between, whoever did
not get through is told by which variable.

What is tried again: UNAVAILABLE, RESOURCE_EXHAUSTED (but for a message that is too large) and broken
connections, because every request of ours may be sent twice: reads change nothing, writes carry a ticket
(producer, epoch, sequence). What is not: whatever the server said about the request itself.

What is known of a write after a failure is said beside its class, in the trailer `featurestore-applied`: "no"
or not. Without it (a proxy answered, the connection broke, time was over) nothing is known, but where nothing
was sent, or the status and its words are only of requests that were turned away.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import grpc

from featurestore import errors
from featurestore.client.channel import proxy_variable
from featurestore.errors import (
    ConfigError,
    FeatureStoreError,
    InvalidEventError,
    LimitError,
    OutcomeUnknownError,
    SchemaMismatchError,
    SequenceError,
    StorageError,
    UnavailableError,
    UnknownNameError,
)

Code = grpc.StatusCode

_ERRORS: dict[grpc.StatusCode, type[FeatureStoreError]] = {
    Code.ABORTED: UnavailableError,
    Code.CANCELLED: UnavailableError,
    Code.DATA_LOSS: StorageError,
    Code.DEADLINE_EXCEEDED: UnavailableError,
    Code.FAILED_PRECONDITION: SequenceError,
    Code.INTERNAL: FeatureStoreError,
    Code.INVALID_ARGUMENT: InvalidEventError,
    Code.NOT_FOUND: UnknownNameError,
    Code.OUT_OF_RANGE: InvalidEventError,
    Code.PERMISSION_DENIED: ConfigError,
    Code.RESOURCE_EXHAUSTED: LimitError,
    Code.UNAUTHENTICATED: ConfigError,
    Code.UNAVAILABLE: UnavailableError,
    Code.UNIMPLEMENTED: ConfigError,
    Code.UNKNOWN: FeatureStoreError,
}
ERROR_CLASS = "featurestore-error"  # trailing metadata, as in featurestore/server/status.py
APPLIED = "featurestore-applied"
# Whoever says one of these has looked at a request, and not taken it. FAILED_PRECONDITION is not among them:
# servers say it of a number that cannot be judged any more; nor RESOURCE_EXHAUSTED, which proxies and gRPC
# say of replies too,
_TURNED_AWAY = {
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.OUT_OF_RANGE,
    Code.PERMISSION_DENIED,
    Code.UNAUTHENTICATED,
    Code.UNIMPLEMENTED,
}
# but for gRPC's own words of a request.
_TOO_MUCH = (
    "SERVER: Received message larger than",
    "CLIENT: Sent message larger than",
    "Concurrent RPC limit exceeded",
)
_RETRIED = {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED}
# gRPC's own words where no connection could be made (a server that is reached has words of its own), so that
# nothing was sent,
_UNSENT = (
    "failed to connect",
    "Failed to connect",
    "connections to all backends failing",
    "resolution failed",
    "errors resolving",
)
_UNREACHED = (*_UNSENT, "Socket closed")
# and where one broke under a call: the status it gives them then differs from case to case.
_BROKEN = (
    "Internal error from Core",  # grpc.aio of a write that the server's own status overtook (grpc#36066)
    "RST_STREAM",
    "GOAWAY",
    "Socket closed",
    "Stream removed",
    "Connection reset",
)
_CANCELLED_HERE = ("Channel closed!", "Locally cancelled by application!")
# A message over the limit is over it every time: gRPC's words, and the server's.
_TOO_LARGE = "larger than"
# One that comes in: gRPC's words. Requests are not compressed, so no server says the second.
_REPLY_TOO_LARGE = ("CLIENT: Received message larger than", "Decompressed message larger than")


@contextlib.contextmanager
def nothing_sent() -> Iterator[None]:
    """An error that is raised inside is of a write of which nothing was sent; but for that of a write of the
    caller's own, as one of what feeds an ingest may be."""
    try:
        yield
    except FeatureStoreError as error:
        if error.ticket is None:
            error.applied = False
        raise


@dataclass(frozen=True)
class Failure:
    """What gRPC said of a call that failed, or that a stream ended with batches unanswered."""

    code: grpc.StatusCode
    details: str
    kind: type[FeatureStoreError] | None = None  # which the server says it is
    said: str | None = None  # of what was applied, by the server
    is_bare: bool = True  # without any trailer, as what gRPC says itself

    @classmethod
    def of(cls, error: grpc.RpcError) -> Failure:
        return cls.made(error.code(), error.details(), error.trailing_metadata())

    @classmethod
    def made(
        cls, code: grpc.StatusCode, details: str | None, metadata: Iterable[tuple[str, str | bytes]] | None
    ) -> Failure:
        """Of a call's end, with what is in its trailers."""
        trailers = dict(iter(metadata or ()))  # some of grpcio's metadata have keys, and no item of a key
        said = trailers.get(APPLIED)
        kind = _kind_of(trailers)
        return cls(code, details or "", kind, said if isinstance(said, str) else None, not trailers)

    @property
    def is_unsent(self) -> bool:
        """Whether there was nobody to send anything to."""
        return (
            self.code is Code.UNAVAILABLE and self.is_bare and any(words in self.details for words in _UNSENT)
        )

    @property
    def applied(self) -> bool | None:
        """Of a write: False where nothing of it was applied, None where that is not known."""
        if self.said is not None:
            return False if self.said == "no" else None
        if self.code is Code.RESOURCE_EXHAUSTED:
            return False if any(words in self.details for words in _TOO_MUCH) else None
        return False if self.is_unsent or self.code in _TURNED_AWAY else None

    @property
    def may_be_retried(self) -> bool:
        if self.code is Code.RESOURCE_EXHAUSTED and _TOO_LARGE in self.details:
            return False
        if self.code is Code.CANCELLED and self.details not in _CANCELLED_HERE:
            return True  # by a server that stopped: nobody cancels calls of this client but itself
        broken = self.code in (Code.INTERNAL, Code.UNKNOWN, Code.CANCELLED)
        return self.code in _RETRIED or (broken and any(words in self.details for words in _BROKEN))

    def error(
        self, target: str, *, reading: bool = False, writing: bool = False, unknown: bool = False
    ) -> FeatureStoreError:
        """The exception for it. A read has no sequence: its precondition is the service's fingerprint.

        writing, unknown   what failed is a write; whether a try of it was applied is not known
        """
        error = self._error(target, reading)
        if writing and unknown:
            if type(error) is UnavailableError:
                error = OutcomeUnknownError(str(error))
        elif writing:
            error.applied = False
        return error

    def _error(self, target: str, reading: bool) -> FeatureStoreError:
        if self.kind is not None:
            return self.kind(self.details)
        words = self.details or f"{target} answered {self.code.name}"
        kind = _ERRORS.get(self.code, FeatureStoreError)
        if any(sign in self.details for sign in _REPLY_TOO_LARGE):
            kind = UnavailableError
            words = (
                f"{target} answered with more than max_reply_bytes ({self.details}); ask for less at a time, "
                "or allow more"
            )
        elif self.code is Code.UNAVAILABLE and any(sign in self.details for sign in _UNREACHED):
            words = (
                f"cannot reach {target}; is `featurestore serve` running there? ({self.details})"
                + _of_proxy(target)
            )
        elif self.code is Code.DEADLINE_EXCEEDED:
            words = f"{target} did not answer in time ({self.details})" + _of_proxy(target)
        elif self.code is Code.UNIMPLEMENTED:
            words = f"{target} does not know this call: not a featurestore server, or its other listener"
        elif reading and self.code is Code.FAILED_PRECONDITION:
            kind = SchemaMismatchError
        elif kind is FeatureStoreError:
            words = f"{target} failed: {self.code.name}: {self.details}"
        return kind(words)


def _of_proxy(target: str) -> str:
    """What else may be in the way of whoever did not get there."""
    name = proxy_variable(target)
    if name is None:
        return ""
    return f"; {name} is set: unless no_proxy names this host, it is reached through that proxy"


ENDED = Failure(Code.UNAVAILABLE, "the server ended the stream before its last answer")


def _kind_of(trailers: Mapping[str, str | bytes]) -> type[FeatureStoreError] | None:
    """The class that is named in them, if there is one of that name here that a server may name: what is
    unknown is for the client to say."""
    name = trailers.get(ERROR_CLASS)
    kind = getattr(errors, name, None) if isinstance(name, str) else None
    if not isinstance(kind, type) or not issubclass(kind, FeatureStoreError):
        return None
    return None if kind is OutcomeUnknownError else kind


@dataclass(frozen=True)
class Backoff:
    """Waits that double up to a limit, each shortened by a random share so that clients do not return as
    one."""

    first_s: float = 0.05
    longest_s: float = 5.0
    random: Callable[[], float] = field(default=random.random, repr=False)

    def wait_s(self, n_failures: int) -> float:
        """After the nth failure in a row, from 1."""
        return min(self.first_s * 2.0 ** min(n_failures - 1, 30), self.longest_s) * (1 - self.random() / 2)


MOST_TRIES = 5
LONGEST_WAIT_S = 1.0


@dataclass
class Attempts:
    """The tries of one unary call, all within one deadline.

    At most MOST_TRIES, so that a server that is not there is known at once; but until the deadline for a
    numbered write: given up, it is its caller's to finish by its ticket.
    """

    timeout_s: float
    backoff: Backoff
    is_numbered: bool = False
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    made: int = 0
    is_unknown: bool = False  # whether a try was applied

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:  # a caller that gives what it has left: gRPC would take 0 for no deadline
            error = UnavailableError(
                f"no time is left to ask: timeout_s is {self.timeout_s:g}; nothing was sent"
            )
            error.applied = False
            raise error
        self._deadline_s = self.clock() + self.timeout_s

    def begin(self) -> float:
        """Counts a try and says how long it may take."""
        self.made += 1
        return max(self._deadline_s - self.clock(), 0.001)

    def wait_after(self, failure: Failure) -> float | None:
        """Seconds until the next try, or None when there is none.

        Never more than half of what is left, so that a server that comes back before the deadline is met.
        """
        self.is_unknown |= failure.applied is None
        left_s = self._deadline_s - self.clock()
        is_last = self.made >= MOST_TRIES and not self.is_numbered
        if not failure.may_be_retried or is_last or left_s <= self.backoff.first_s:
            return None
        return min(self.backoff.wait_s(self.made), LONGEST_WAIT_S, left_s / 2)


OnWait = Callable[[FeatureStoreError, float], None]


@dataclass
class Patience:
    """The tries of what lasts: each has `try_s`, and they end `retry_s` after the first failure in a row.

    For a server that restarts: whether it does so before the first try or after the thousandth is the same.
    `on_wait`, if there is one, is told before each wait why, and for how many seconds more it is tried.
    """

    try_s: float
    retry_s: float
    backoff: Backoff
    target: str
    on_wait: OnWait | None = None
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    made: int = 0
    _n_failures: int = 0
    _first_failure_s: float = 0.0

    def begin(self) -> float:
        """Counts a try and says how long it may take."""
        self.made += 1
        return self.try_s

    def succeeded(self) -> None:
        self._n_failures = 0

    def wait_after(self, failure: Failure) -> float | None:
        """Seconds until the next try, or None when there is none."""
        now_s = self.clock()
        self._n_failures += 1
        if self._n_failures == 1:
            self._first_failure_s = now_s
        left_s = self.retry_s - (now_s - self._first_failure_s)
        timed_out = failure.code is Code.DEADLINE_EXCEEDED  # of one try: what was sent may be sent again
        if not (failure.may_be_retried or timed_out) or left_s <= 0:
            return None
        if self.on_wait is not None:
            self.on_wait(failure.error(self.target), left_s)
        return self.backoff.wait_s(self._n_failures)
