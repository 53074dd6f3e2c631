"""Ours → gRPC status: the one table. Knows the codes' numbers and nothing else of gRPC, so that any transport
may use it.
"""

from __future__ import annotations

import enum

from featurestore.errors import (
    ConfigError,
    ConsentError,
    CorruptRecordError,
    FeatureStoreError,
    IncompatibleVersionError,
    InvalidEventError,
    LimitError,
    SchemaError,
    SchemaMismatchError,
    SequenceError,
    StaleVersionError,
    StorageError,
    StoreLockedError,
    UnavailableError,
    UnknownNameError,
)

# Of a message: it travels in a header, and those have a limit.
MAX_WORDS = 2000
# Trailing metadata beside the status, which several classes share: the name of the error's class.
ERROR_CLASS = "featurestore-error"
# And whether anything of the call may have been applied: "no" or "unknown".
APPLIED = "featurestore-applied"


class Status(enum.IntEnum):
    """The codes of https://github.com/grpc/grpc/blob/master/doc/statuscodes.md."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


# The nearest class in an error's ancestry decides.
_STATUSES: dict[type[BaseException], Status] = {
    # The request is wrong: sent again it will be wrong again.
    ConfigError: Status.INVALID_ARGUMENT,
    SchemaError: Status.INVALID_ARGUMENT,
    UnknownNameError: Status.INVALID_ARGUMENT,
    InvalidEventError: Status.INVALID_ARGUMENT,
    # The request is right and does not fit what the store is or has seen: the client must look again first.
    ConsentError: Status.FAILED_PRECONDITION,
    StaleVersionError: Status.ABORTED,
    SchemaMismatchError: Status.FAILED_PRECONDITION,
    SequenceError: Status.FAILED_PRECONDITION,
    IncompatibleVersionError: Status.FAILED_PRECONDITION,
    StoreLockedError: Status.FAILED_PRECONDITION,
    # Too much, or too much at once: nothing was applied.
    LimitError: Status.RESOURCE_EXHAUSTED,
    MemoryError: Status.RESOURCE_EXHAUSTED,
    # The store cannot: another server, or this one after a restart, may.
    CorruptRecordError: Status.DATA_LOSS,
    StorageError: Status.UNAVAILABLE,
    UnavailableError: Status.UNAVAILABLE,
    TimeoutError: Status.DEADLINE_EXCEEDED,
    FeatureStoreError: Status.INTERNAL,
}


def status_of(error: BaseException) -> Status:
    """The code that a call is ended with; INTERNAL for what nobody raised on purpose."""
    for kind in type(error).__mro__:
        if kind in _STATUSES:
            return _STATUSES[kind]
    return Status.INTERNAL


def applied_of(error: BaseException) -> str:
    """What the call's trailer says: "no" where nothing of it was applied for certain."""
    return "no" if isinstance(error, FeatureStoreError) and error.applied is False else "unknown"


def words_of(error: BaseException) -> str:
    """What the client is told: our own messages, and nothing of the inside for an error that nobody raised on
    purpose.
    """
    if isinstance(error, FeatureStoreError | TimeoutError):
        return str(error)[:MAX_WORDS]
    if isinstance(error, MemoryError):
        return "the server is out of memory; try again later, or with less at a time"
    return "internal error; the server's log has it"
