from featurestore.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ObserveRequest(_message.Message):
    __slots__ = ("event_type", "event", "service", "peek", "ack", "bounds", "coverage", "fingerprint", "producer", "epoch", "sequence")
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    PEEK_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    event_type: str
    event: _types_pb2.Event
    service: str
    peek: bool
    ack: _types_pb2.Ack
    bounds: bool
    coverage: bool
    fingerprint: int
    producer: str
    epoch: int
    sequence: int
    def __init__(self, event_type: _Optional[str] = ..., event: _Optional[_Union[_types_pb2.Event, _Mapping]] = ..., service: _Optional[str] = ..., peek: bool = ..., ack: _Optional[_Union[_types_pb2.Ack, str]] = ..., bounds: bool = ..., coverage: bool = ..., fingerprint: _Optional[int] = ..., producer: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class ObserveResponse(_message.Message):
    __slots__ = ("outcome", "ack", "position", "partly_late", "shed", "field", "vectors")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    PARTLY_LATE_FIELD_NUMBER: _ClassVar[int]
    SHED_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    outcome: _types_pb2.Outcome
    ack: _types_pb2.Ack
    position: int
    partly_late: bool
    shed: _containers.RepeatedScalarFieldContainer[str]
    field: str
    vectors: _types_pb2.Vectors
    def __init__(self, outcome: _Optional[_Union[_types_pb2.Outcome, str]] = ..., ack: _Optional[_Union[_types_pb2.Ack, str]] = ..., position: _Optional[int] = ..., partly_late: bool = ..., shed: _Optional[_Iterable[str]] = ..., field: _Optional[str] = ..., vectors: _Optional[_Union[_types_pb2.Vectors, _Mapping]] = ...) -> None: ...

class IngestRequest(_message.Message):
    __slots__ = ("event_type", "producer", "epoch", "sequence", "ack", "rows", "columns", "max_refusals")
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    MAX_REFUSALS_FIELD_NUMBER: _ClassVar[int]
    event_type: str
    producer: str
    epoch: int
    sequence: int
    ack: _types_pb2.Ack
    rows: _containers.RepeatedCompositeFieldContainer[_types_pb2.Event]
    columns: _types_pb2.EventColumns
    max_refusals: int
    def __init__(self, event_type: _Optional[str] = ..., producer: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., ack: _Optional[_Union[_types_pb2.Ack, str]] = ..., rows: _Optional[_Iterable[_Union[_types_pb2.Event, _Mapping]]] = ..., columns: _Optional[_Union[_types_pb2.EventColumns, _Mapping]] = ..., max_refusals: _Optional[int] = ...) -> None: ...

class IngestResponse(_message.Message):
    __slots__ = ("accepted", "late", "duplicate", "refused", "refusals", "position", "ack", "duplicate_batch", "sequence", "partly_late", "shed")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_BATCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PARTLY_LATE_FIELD_NUMBER: _ClassVar[int]
    SHED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    late: int
    duplicate: int
    refused: int
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    position: int
    ack: _types_pb2.Ack
    duplicate_batch: bool
    sequence: int
    partly_late: int
    shed: int
    def __init__(self, accepted: _Optional[int] = ..., late: _Optional[int] = ..., duplicate: _Optional[int] = ..., refused: _Optional[int] = ..., refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., position: _Optional[int] = ..., ack: _Optional[_Union[_types_pb2.Ack, str]] = ..., duplicate_batch: bool = ..., sequence: _Optional[int] = ..., partly_late: _Optional[int] = ..., shed: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("index", "reason", "field")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    index: int
    reason: _types_pb2.Outcome
    field: str
    def __init__(self, index: _Optional[int] = ..., reason: _Optional[_Union[_types_pb2.Outcome, str]] = ..., field: _Optional[str] = ...) -> None: ...

class IngestStreamRequest(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: IngestRequest
    def __init__(self, batch: _Optional[_Union[IngestRequest, _Mapping]] = ...) -> None: ...

class IngestStreamResponse(_message.Message):
    __slots__ = ("batch",)
    BATCH_FIELD_NUMBER: _ClassVar[int]
    batch: IngestResponse
    def __init__(self, batch: _Optional[_Union[IngestResponse, _Mapping]] = ...) -> None: ...

class GetFeaturesRequest(_message.Message):
    __slots__ = ("service", "key_sets", "key_columns", "as_of_ms", "as_of_each_ms", "bounds", "coverage", "fingerprint")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    KEY_SETS_FIELD_NUMBER: _ClassVar[int]
    KEY_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    AS_OF_MS_FIELD_NUMBER: _ClassVar[int]
    AS_OF_EACH_MS_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    service: str
    key_sets: _containers.RepeatedCompositeFieldContainer[_types_pb2.KeySet]
    key_columns: _types_pb2.KeyColumns
    as_of_ms: int
    as_of_each_ms: _containers.RepeatedScalarFieldContainer[int]
    bounds: bool
    coverage: bool
    fingerprint: int
    def __init__(self, service: _Optional[str] = ..., key_sets: _Optional[_Iterable[_Union[_types_pb2.KeySet, _Mapping]]] = ..., key_columns: _Optional[_Union[_types_pb2.KeyColumns, _Mapping]] = ..., as_of_ms: _Optional[int] = ..., as_of_each_ms: _Optional[_Iterable[int]] = ..., bounds: bool = ..., coverage: bool = ..., fingerprint: _Optional[int] = ...) -> None: ...

class GetFeaturesResponse(_message.Message):
    __slots__ = ("vectors", "now_ms")
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    NOW_MS_FIELD_NUMBER: _ClassVar[int]
    vectors: _types_pb2.Vectors
    now_ms: int
    def __init__(self, vectors: _Optional[_Union[_types_pb2.Vectors, _Mapping]] = ..., now_ms: _Optional[int] = ...) -> None: ...

class GetFeaturesStreamRequest(_message.Message):
    __slots__ = ("read",)
    READ_FIELD_NUMBER: _ClassVar[int]
    read: GetFeaturesRequest
    def __init__(self, read: _Optional[_Union[GetFeaturesRequest, _Mapping]] = ...) -> None: ...

class GetFeaturesStreamResponse(_message.Message):
    __slots__ = ("read",)
    READ_FIELD_NUMBER: _ClassVar[int]
    read: GetFeaturesResponse
    def __init__(self, read: _Optional[_Union[GetFeaturesResponse, _Mapping]] = ...) -> None: ...

class GetHeaviestRequest(_message.Message):
    __slots__ = ("service", "key_set", "as_of_ms", "fingerprint")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    KEY_SET_FIELD_NUMBER: _ClassVar[int]
    AS_OF_MS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    service: str
    key_set: _types_pb2.KeySet
    as_of_ms: int
    fingerprint: int
    def __init__(self, service: _Optional[str] = ..., key_set: _Optional[_Union[_types_pb2.KeySet, _Mapping]] = ..., as_of_ms: _Optional[int] = ..., fingerprint: _Optional[int] = ...) -> None: ...

class GetHeaviestResponse(_message.Message):
    __slots__ = ("lists", "read_at_ms")
    LISTS_FIELD_NUMBER: _ClassVar[int]
    READ_AT_MS_FIELD_NUMBER: _ClassVar[int]
    lists: _containers.RepeatedCompositeFieldContainer[HeaviestList]
    read_at_ms: int
    def __init__(self, lists: _Optional[_Iterable[_Union[HeaviestList, _Mapping]]] = ..., read_at_ms: _Optional[int] = ...) -> None: ...

class HeaviestList(_message.Message):
    __slots__ = ("name", "status", "coverage", "values", "rest_upper", "total", "total_lower", "total_upper")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    REST_UPPER_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    TOTAL_LOWER_FIELD_NUMBER: _ClassVar[int]
    TOTAL_UPPER_FIELD_NUMBER: _ClassVar[int]
    name: str
    status: _types_pb2.FeatureStatus
    coverage: float
    values: _containers.RepeatedCompositeFieldContainer[HeaviestValue]
    rest_upper: int
    total: float
    total_lower: int
    total_upper: int
    def __init__(self, name: _Optional[str] = ..., status: _Optional[_Union[_types_pb2.FeatureStatus, str]] = ..., coverage: _Optional[float] = ..., values: _Optional[_Iterable[_Union[HeaviestValue, _Mapping]]] = ..., rest_upper: _Optional[int] = ..., total: _Optional[float] = ..., total_lower: _Optional[int] = ..., total_upper: _Optional[int] = ...) -> None: ...

class HeaviestValue(_message.Message):
    __slots__ = ("text", "number", "count", "lower", "upper", "hash")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    LOWER_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    text: str
    number: float
    count: float
    lower: int
    upper: int
    hash: int
    def __init__(self, text: _Optional[str] = ..., number: _Optional[float] = ..., count: _Optional[float] = ..., lower: _Optional[int] = ..., upper: _Optional[int] = ..., hash: _Optional[int] = ...) -> None: ...
