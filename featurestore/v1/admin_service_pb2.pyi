from featurestore.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ChangeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CHANGE_KIND_UNSPECIFIED: _ClassVar[ChangeKind]
    CHANGE_KIND_FREE: _ClassVar[ChangeKind]
    CHANGE_KIND_DROP: _ClassVar[ChangeKind]
    CHANGE_KIND_RESET: _ClassVar[ChangeKind]
    CHANGE_KIND_NARROW: _ClassVar[ChangeKind]
    CHANGE_KIND_ORDER: _ClassVar[ChangeKind]
    CHANGE_KIND_ERASE: _ClassVar[ChangeKind]
    CHANGE_KIND_CLOCK: _ClassVar[ChangeKind]

class ClockChange(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLOCK_CHANGE_UNSPECIFIED: _ClassVar[ClockChange]
    CLOCK_CHANGE_WALL: _ClassVar[ClockChange]
    CLOCK_CHANGE_BACK: _ClassVar[ClockChange]
CHANGE_KIND_UNSPECIFIED: ChangeKind
CHANGE_KIND_FREE: ChangeKind
CHANGE_KIND_DROP: ChangeKind
CHANGE_KIND_RESET: ChangeKind
CHANGE_KIND_NARROW: ChangeKind
CHANGE_KIND_ORDER: ChangeKind
CHANGE_KIND_ERASE: ChangeKind
CHANGE_KIND_CLOCK: ChangeKind
CLOCK_CHANGE_UNSPECIFIED: ClockChange
CLOCK_CHANGE_WALL: ClockChange
CLOCK_CHANGE_BACK: ClockChange

class ApplySchemaRequest(_message.Message):
    __slots__ = ("source", "path", "dry_run", "allow", "expect_version", "note", "grace_ms")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    ALLOW_FIELD_NUMBER: _ClassVar[int]
    EXPECT_VERSION_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    source: str
    path: str
    dry_run: bool
    allow: _containers.RepeatedScalarFieldContainer[ChangeKind]
    expect_version: int
    note: str
    grace_ms: int
    def __init__(self, source: _Optional[str] = ..., path: _Optional[str] = ..., dry_run: bool = ..., allow: _Optional[_Iterable[_Union[ChangeKind, str]]] = ..., expect_version: _Optional[int] = ..., note: _Optional[str] = ..., grace_ms: _Optional[int] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("kind", "subject", "before", "after", "consent", "line")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    kind: ChangeKind
    subject: str
    before: str
    after: str
    consent: bool
    line: str
    def __init__(self, kind: _Optional[_Union[ChangeKind, str]] = ..., subject: _Optional[str] = ..., before: _Optional[str] = ..., after: _Optional[str] = ..., consent: bool = ..., line: _Optional[str] = ...) -> None: ...

class ApplySchemaResponse(_message.Message):
    __slots__ = ("version", "position", "added_features", "removed_features", "changes", "pins_broken", "kept_until_ms")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ADDED_FEATURES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FEATURES_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    PINS_BROKEN_FIELD_NUMBER: _ClassVar[int]
    KEPT_UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    version: int
    position: int
    added_features: _containers.RepeatedScalarFieldContainer[str]
    removed_features: _containers.RepeatedScalarFieldContainer[str]
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    pins_broken: _containers.RepeatedCompositeFieldContainer[BrokenPin]
    kept_until_ms: int
    def __init__(self, version: _Optional[int] = ..., position: _Optional[int] = ..., added_features: _Optional[_Iterable[str]] = ..., removed_features: _Optional[_Iterable[str]] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., pins_broken: _Optional[_Iterable[_Union[BrokenPin, _Mapping]]] = ..., kept_until_ms: _Optional[int] = ...) -> None: ...

class BrokenPin(_message.Message):
    __slots__ = ("service", "fingerprint", "missing")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    service: str
    fingerprint: int
    missing: str
    def __init__(self, service: _Optional[str] = ..., fingerprint: _Optional[int] = ..., missing: _Optional[str] = ...) -> None: ...

class ListPinsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPinsResponse(_message.Message):
    __slots__ = ("pins",)
    PINS_FIELD_NUMBER: _ClassVar[int]
    pins: _containers.RepeatedCompositeFieldContainer[PinnedVector]
    def __init__(self, pins: _Optional[_Iterable[_Union[PinnedVector, _Mapping]]] = ...) -> None: ...

class PinnedVector(_message.Message):
    __slots__ = ("service", "fingerprint", "features", "current", "missing", "calls", "asked_ms_ago", "calls_per_s")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    ASKED_MS_AGO_FIELD_NUMBER: _ClassVar[int]
    CALLS_PER_S_FIELD_NUMBER: _ClassVar[int]
    service: str
    fingerprint: int
    features: _containers.RepeatedScalarFieldContainer[str]
    current: bool
    missing: str
    calls: int
    asked_ms_ago: int
    calls_per_s: float
    def __init__(self, service: _Optional[str] = ..., fingerprint: _Optional[int] = ..., features: _Optional[_Iterable[str]] = ..., current: bool = ..., missing: _Optional[str] = ..., calls: _Optional[int] = ..., asked_ms_ago: _Optional[int] = ..., calls_per_s: _Optional[float] = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatsResponse(_message.Message):
    __slots__ = ("schema_version", "events_accepted", "events_late", "events_partly_late", "events_shed", "events_untouched", "events_duplicate", "events_refused", "batches_duplicate", "vectors_read", "rows", "row_bytes", "position", "durable_position", "checkpoint_position", "checkpoint_age_ms", "journal_bytes", "now_ms", "uptime_ms", "sketches", "sketch_bytes", "ids", "id_bytes", "dedupe_memory_bytes", "ids_on_disk", "id_reads", "id_reads_in_vain", "id_reads_failed", "max_memory_bytes", "producers", "producers_made_up", "producer_bytes", "max_producer_bytes", "producers_refused", "producers_forgotten", "producer_bytes_made_up", "checkpoint_room_bytes", "last_position", "server_ms", "leap_ms", "clocks_ms")
    class ClocksMsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    EVENTS_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_LATE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_PARTLY_LATE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_SHED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_UNTOUCHED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_REFUSED_FIELD_NUMBER: _ClassVar[int]
    BATCHES_DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    VECTORS_READ_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ROW_BYTES_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    DURABLE_POSITION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_POSITION_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    NOW_MS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_MS_FIELD_NUMBER: _ClassVar[int]
    SKETCHES_FIELD_NUMBER: _ClassVar[int]
    SKETCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    ID_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEDUPE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    IDS_ON_DISK_FIELD_NUMBER: _ClassVar[int]
    ID_READS_FIELD_NUMBER: _ClassVar[int]
    ID_READS_IN_VAIN_FIELD_NUMBER: _ClassVar[int]
    ID_READS_FAILED_FIELD_NUMBER: _ClassVar[int]
    MAX_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRODUCERS_FIELD_NUMBER: _ClassVar[int]
    PRODUCERS_MADE_UP_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PRODUCER_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRODUCERS_REFUSED_FIELD_NUMBER: _ClassVar[int]
    PRODUCERS_FORGOTTEN_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_BYTES_MADE_UP_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_ROOM_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAST_POSITION_FIELD_NUMBER: _ClassVar[int]
    SERVER_MS_FIELD_NUMBER: _ClassVar[int]
    LEAP_MS_FIELD_NUMBER: _ClassVar[int]
    CLOCKS_MS_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    events_accepted: int
    events_late: int
    events_partly_late: int
    events_shed: int
    events_untouched: int
    events_duplicate: int
    events_refused: int
    batches_duplicate: int
    vectors_read: int
    rows: int
    row_bytes: int
    position: int
    durable_position: int
    checkpoint_position: int
    checkpoint_age_ms: int
    journal_bytes: int
    now_ms: int
    uptime_ms: int
    sketches: int
    sketch_bytes: int
    ids: int
    id_bytes: int
    dedupe_memory_bytes: int
    ids_on_disk: int
    id_reads: int
    id_reads_in_vain: int
    id_reads_failed: int
    max_memory_bytes: int
    producers: int
    producers_made_up: int
    producer_bytes: int
    max_producer_bytes: int
    producers_refused: int
    producers_forgotten: int
    producer_bytes_made_up: int
    checkpoint_room_bytes: int
    last_position: int
    server_ms: int
    leap_ms: int
    clocks_ms: _containers.ScalarMap[str, int]
    def __init__(self, schema_version: _Optional[int] = ..., events_accepted: _Optional[int] = ..., events_late: _Optional[int] = ..., events_partly_late: _Optional[int] = ..., events_shed: _Optional[int] = ..., events_untouched: _Optional[int] = ..., events_duplicate: _Optional[int] = ..., events_refused: _Optional[int] = ..., batches_duplicate: _Optional[int] = ..., vectors_read: _Optional[int] = ..., rows: _Optional[int] = ..., row_bytes: _Optional[int] = ..., position: _Optional[int] = ..., durable_position: _Optional[int] = ..., checkpoint_position: _Optional[int] = ..., checkpoint_age_ms: _Optional[int] = ..., journal_bytes: _Optional[int] = ..., now_ms: _Optional[int] = ..., uptime_ms: _Optional[int] = ..., sketches: _Optional[int] = ..., sketch_bytes: _Optional[int] = ..., ids: _Optional[int] = ..., id_bytes: _Optional[int] = ..., dedupe_memory_bytes: _Optional[int] = ..., ids_on_disk: _Optional[int] = ..., id_reads: _Optional[int] = ..., id_reads_in_vain: _Optional[int] = ..., id_reads_failed: _Optional[int] = ..., max_memory_bytes: _Optional[int] = ..., producers: _Optional[int] = ..., producers_made_up: _Optional[int] = ..., producer_bytes: _Optional[int] = ..., max_producer_bytes: _Optional[int] = ..., producers_refused: _Optional[int] = ..., producers_forgotten: _Optional[int] = ..., producer_bytes_made_up: _Optional[int] = ..., checkpoint_room_bytes: _Optional[int] = ..., last_position: _Optional[int] = ..., server_ms: _Optional[int] = ..., leap_ms: _Optional[int] = ..., clocks_ms: _Optional[_Mapping[str, int]] = ...) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckpointResponse(_message.Message):
    __slots__ = ("position", "rows_written", "bytes_written", "duration_ms")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ROWS_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    BYTES_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    position: int
    rows_written: int
    bytes_written: int
    duration_ms: int
    def __init__(self, position: _Optional[int] = ..., rows_written: _Optional[int] = ..., bytes_written: _Optional[int] = ..., duration_ms: _Optional[int] = ...) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[_types_pb2.Field]
    def __init__(self, parts: _Optional[_Iterable[_Union[_types_pb2.Field, _Mapping]]] = ...) -> None: ...

class ForgetResponse(_message.Message):
    __slots__ = ("found", "position")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    found: bool
    position: int
    def __init__(self, found: bool = ..., position: _Optional[int] = ...) -> None: ...

class ListProducersRequest(_message.Message):
    __slots__ = ("after", "page_size")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    after: int
    page_size: int
    def __init__(self, after: _Optional[int] = ..., page_size: _Optional[int] = ...) -> None: ...

class RememberedProducer(_message.Message):
    __slots__ = ("name", "epoch", "sequence", "heard_ms", "made_up")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HEARD_MS_FIELD_NUMBER: _ClassVar[int]
    MADE_UP_FIELD_NUMBER: _ClassVar[int]
    name: str
    epoch: int
    sequence: int
    heard_ms: int
    made_up: bool
    def __init__(self, name: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., heard_ms: _Optional[int] = ..., made_up: bool = ...) -> None: ...

class ListProducersResponse(_message.Message):
    __slots__ = ("producers", "next")
    PRODUCERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    producers: _containers.RepeatedCompositeFieldContainer[RememberedProducer]
    next: int
    def __init__(self, producers: _Optional[_Iterable[_Union[RememberedProducer, _Mapping]]] = ..., next: _Optional[int] = ...) -> None: ...

class DropProducerRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DropProducerResponse(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: int
    def __init__(self, position: _Optional[int] = ...) -> None: ...

class ResetProducerRequest(_message.Message):
    __slots__ = ("name", "epoch", "sequence")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    epoch: int
    sequence: int
    def __init__(self, name: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class ResetProducerResponse(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: int
    def __init__(self, position: _Optional[int] = ...) -> None: ...

class AcceptClockRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AcceptClockResponse(_message.Message):
    __slots__ = ("leap_ms",)
    LEAP_MS_FIELD_NUMBER: _ClassVar[int]
    leap_ms: int
    def __init__(self, leap_ms: _Optional[int] = ...) -> None: ...

class ChangeClockRequest(_message.Message):
    __slots__ = ("change", "allow")
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    ALLOW_FIELD_NUMBER: _ClassVar[int]
    change: ClockChange
    allow: _containers.RepeatedScalarFieldContainer[ChangeKind]
    def __init__(self, change: _Optional[_Union[ClockChange, str]] = ..., allow: _Optional[_Iterable[_Union[ChangeKind, str]]] = ...) -> None: ...

class ChangeClockResponse(_message.Message):
    __slots__ = ("position",)
    POSITION_FIELD_NUMBER: _ClassVar[int]
    position: int
    def __init__(self, position: _Optional[int] = ...) -> None: ...

class BackupRequest(_message.Message):
    __slots__ = ("directory",)
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    directory: str
    def __init__(self, directory: _Optional[str] = ...) -> None: ...

class BackupResponse(_message.Message):
    __slots__ = ("position", "bytes_written")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    BYTES_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    position: int
    bytes_written: int
    def __init__(self, position: _Optional[int] = ..., bytes_written: _Optional[int] = ...) -> None: ...
