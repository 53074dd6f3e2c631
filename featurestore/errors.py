"""Every error featurestore raises on purpose: one small tree under FeatureStoreError.

A message says what was wrong, where, and what to do. A late, refused or duplicate *event* is not an error: it
is a named outcome in the reply (`featurestore.Outcome`). Two tables translate at the edges, and only there:
LMDB to these classes in `storage`, these classes to gRPC status codes in `server`.
"""

from __future__ import annotations

from typing import Any


class FeatureStoreError(Exception):
    """Root of every error raised on purpose by this package.

    applied   of `observe` and `ingest`: False where nothing of what the error is about was applied for
              certain, because nothing was sent or the server said so; None where nobody has said so, and of
              all other calls. Only after False, or with a ticket, is it safe to send the same write again
    ticket    a `featurestore.Ticket` of a write of which `applied` is None: under it the same write counts
              once, however often it is sent, within what `Ticket` says. `observe` takes one; an `ingest` has
              the ticket of a batch, which no `observe` can finish: it is sent again under its `source`
    """

    applied: bool | None = None
    ticket: Any = None


class ConfigError(FeatureStoreError):
    """A setting or command-line value that cannot be used. `setting`: its name, if the message begins so."""

    def __init__(self, message: str, *, setting: str | None = None) -> None:
        self.setting = setting
        super().__init__(message)


class SchemaError(FeatureStoreError):
    """The schema file is wrong, or a change to it is not allowed. Names file and line if known."""

    def __init__(self, message: str, *, path: str | None = None, line: int | None = None) -> None:
        self.path, self.line, self.problem = path, line, message
        where = ":".join(str(part) for part in (path, line) if part is not None)
        super().__init__(f"{where}: {message}" if where else message)


class ConsentError(SchemaError):
    """A change of schema that takes something away, and that nobody has allowed. Names each, and its kind."""


class StaleVersionError(SchemaError):
    """The store serves another version of its schema than the one that was to be changed."""


class UnknownNameError(FeatureStoreError):
    """A request names an event type, service, entity or feature that the schema does not declare."""


class SchemaMismatchError(FeatureStoreError):
    """The vector that was asked for, by its fingerprint, is none that the server can answer: a feature of it,
    which is named, is gone or means another number. This call applied nothing; see `applied`."""


class InvalidEventError(FeatureStoreError):
    """A request whose events or keys cannot be read: wrong type, wrong length, out of range."""


class SequenceError(FeatureStoreError):
    """A batch's (producer, epoch, sequence) cannot be judged: too old, or from a fenced-off epoch."""


class LimitError(FeatureStoreError):
    """A limit on memory, size or concurrency is reached; try again later, of a write as `applied` allows."""


class StorageError(FeatureStoreError):
    """A file or the database failed; the cause is chained."""


class CorruptRecordError(StorageError):
    """Stored bytes do not match their checksum or their format. Names file, place, and what was found."""


class IncompatibleVersionError(StorageError):
    """A file belongs to another program, another store or a newer version of this one."""


class StoreLockedError(StorageError):
    """Another process holds the data directory."""


class UnavailableError(FeatureStoreError):
    """The server cannot be reached, is shutting down, is too slow, or answers what was not asked. Of an
    `observe` nothing was applied, or it is an OutcomeUnknownError: a read may be asked again, whatever it
    was.
    """


class OutcomeUnknownError(UnavailableError):
    """A write was sent, and whether it was applied is not known. `client.observe(..., ticket=error.ticket)`
    with the same event finishes it: applied once, whether it was before or not, within 15 minutes after it
    was sent, or 7 days if its client has a name. An `ingest` is finished by the same `source`. A read never
    raises it.
    """
