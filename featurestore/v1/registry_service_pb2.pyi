from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FieldKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIELD_KIND_UNSPECIFIED: _ClassVar[FieldKind]
    FIELD_KIND_NUMBER: _ClassVar[FieldKind]
    FIELD_KIND_STRING: _ClassVar[FieldKind]
    FIELD_KIND_KEY: _ClassVar[FieldKind]

class TimeUnit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIME_UNIT_UNSPECIFIED: _ClassVar[TimeUnit]
    TIME_UNIT_SECONDS: _ClassVar[TimeUnit]
    TIME_UNIT_MILLISECONDS: _ClassVar[TimeUnit]
    TIME_UNIT_MICROSECONDS: _ClassVar[TimeUnit]
    TIME_UNIT_ISO: _ClassVar[TimeUnit]
    TIME_UNIT_NANOSECONDS: _ClassVar[TimeUnit]

class Aggregate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AGGREGATE_UNSPECIFIED: _ClassVar[Aggregate]
    AGGREGATE_COUNT: _ClassVar[Aggregate]
    AGGREGATE_SUM: _ClassVar[Aggregate]
    AGGREGATE_MEAN: _ClassVar[Aggregate]
    AGGREGATE_MIN: _ClassVar[Aggregate]
    AGGREGATE_MAX: _ClassVar[Aggregate]
    AGGREGATE_STDDEV: _ClassVar[Aggregate]
    AGGREGATE_FIRST: _ClassVar[Aggregate]
    AGGREGATE_LAST: _ClassVar[Aggregate]
    AGGREGATE_SINCE_FIRST: _ClassVar[Aggregate]
    AGGREGATE_SINCE_LAST: _ClassVar[Aggregate]
    AGGREGATE_DISTINCT: _ClassVar[Aggregate]
    AGGREGATE_DECAYED_COUNT: _ClassVar[Aggregate]
    AGGREGATE_DECAYED_SUM: _ClassVar[Aggregate]
    AGGREGATE_DECAYED_MEAN: _ClassVar[Aggregate]
    AGGREGATE_INTERVAL_MEAN: _ClassVar[Aggregate]
    AGGREGATE_INTERVAL_CV: _ClassVar[Aggregate]
    AGGREGATE_TOP_SHARE: _ClassVar[Aggregate]
    AGGREGATE_TOP_ENTROPY: _ClassVar[Aggregate]
    AGGREGATE_HOUR_ENTROPY: _ClassVar[Aggregate]
    AGGREGATE_DERIVED: _ClassVar[Aggregate]
FIELD_KIND_UNSPECIFIED: FieldKind
FIELD_KIND_NUMBER: FieldKind
FIELD_KIND_STRING: FieldKind
FIELD_KIND_KEY: FieldKind
TIME_UNIT_UNSPECIFIED: TimeUnit
TIME_UNIT_SECONDS: TimeUnit
TIME_UNIT_MILLISECONDS: TimeUnit
TIME_UNIT_MICROSECONDS: TimeUnit
TIME_UNIT_ISO: TimeUnit
TIME_UNIT_NANOSECONDS: TimeUnit
AGGREGATE_UNSPECIFIED: Aggregate
AGGREGATE_COUNT: Aggregate
AGGREGATE_SUM: Aggregate
AGGREGATE_MEAN: Aggregate
AGGREGATE_MIN: Aggregate
AGGREGATE_MAX: Aggregate
AGGREGATE_STDDEV: Aggregate
AGGREGATE_FIRST: Aggregate
AGGREGATE_LAST: Aggregate
AGGREGATE_SINCE_FIRST: Aggregate
AGGREGATE_SINCE_LAST: Aggregate
AGGREGATE_DISTINCT: Aggregate
AGGREGATE_DECAYED_COUNT: Aggregate
AGGREGATE_DECAYED_SUM: Aggregate
AGGREGATE_DECAYED_MEAN: Aggregate
AGGREGATE_INTERVAL_MEAN: Aggregate
AGGREGATE_INTERVAL_CV: Aggregate
AGGREGATE_TOP_SHARE: Aggregate
AGGREGATE_TOP_ENTROPY: Aggregate
AGGREGATE_HOUR_ENTROPY: Aggregate
AGGREGATE_DERIVED: Aggregate

class GetProducerRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetProducerResponse(_message.Message):
    __slots__ = ("epoch", "sequence", "lowest", "seen", "heard_ms")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LOWEST_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    HEARD_MS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    sequence: int
    lowest: int
    seen: bytes
    heard_ms: int
    def __init__(self, epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., lowest: _Optional[int] = ..., seen: _Optional[bytes] = ..., heard_ms: _Optional[int] = ...) -> None: ...

class GetSchemaRequest(_message.Message):
    __slots__ = ("service", "fingerprint")
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    service: str
    fingerprint: int
    def __init__(self, service: _Optional[str] = ..., fingerprint: _Optional[int] = ...) -> None: ...

class GetSchemaResponse(_message.Message):
    __slots__ = ("name", "version", "source", "event_types", "entities", "services")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPES_FIELD_NUMBER: _ClassVar[int]
    ENTITIES_FIELD_NUMBER: _ClassVar[int]
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    source: str
    event_types: _containers.RepeatedCompositeFieldContainer[EventTypeSchema]
    entities: _containers.RepeatedCompositeFieldContainer[EntitySchema]
    services: _containers.RepeatedCompositeFieldContainer[ServiceSchema]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., source: _Optional[str] = ..., event_types: _Optional[_Iterable[_Union[EventTypeSchema, _Mapping]]] = ..., entities: _Optional[_Iterable[_Union[EntitySchema, _Mapping]]] = ..., services: _Optional[_Iterable[_Union[ServiceSchema, _Mapping]]] = ...) -> None: ...

class EventTypeSchema(_message.Message):
    __slots__ = ("name", "time_field", "time_unit", "fields", "lateness_ms", "id_field", "dedupe_ms", "time_source", "time_format")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIT_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    LATENESS_MS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_FIELD_NUMBER: _ClassVar[int]
    DEDUPE_MS_FIELD_NUMBER: _ClassVar[int]
    TIME_SOURCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FORMAT_FIELD_NUMBER: _ClassVar[int]
    name: str
    time_field: str
    time_unit: TimeUnit
    fields: _containers.RepeatedCompositeFieldContainer[FieldSchema]
    lateness_ms: int
    id_field: str
    dedupe_ms: int
    time_source: str
    time_format: str
    def __init__(self, name: _Optional[str] = ..., time_field: _Optional[str] = ..., time_unit: _Optional[_Union[TimeUnit, str]] = ..., fields: _Optional[_Iterable[_Union[FieldSchema, _Mapping]]] = ..., lateness_ms: _Optional[int] = ..., id_field: _Optional[str] = ..., dedupe_ms: _Optional[int] = ..., time_source: _Optional[str] = ..., time_format: _Optional[str] = ...) -> None: ...

class FieldSchema(_message.Message):
    __slots__ = ("name", "kind", "source")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: FieldKind
    source: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[FieldKind, str]] = ..., source: _Optional[str] = ...) -> None: ...

class EntitySchema(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, parts: _Optional[_Iterable[str]] = ...) -> None: ...

class FeatureSchema(_message.Message):
    __slots__ = ("name", "aggregate", "field", "window_ms", "offset_ms", "parts", "excludes_self", "formula", "by_zero", "half_life_ms", "confidence", "k")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AGGREGATE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    WINDOW_MS_FIELD_NUMBER: _ClassVar[int]
    OFFSET_MS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDES_SELF_FIELD_NUMBER: _ClassVar[int]
    FORMULA_FIELD_NUMBER: _ClassVar[int]
    BY_ZERO_FIELD_NUMBER: _ClassVar[int]
    HALF_LIFE_MS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    name: str
    aggregate: Aggregate
    field: str
    window_ms: int
    offset_ms: int
    parts: _containers.RepeatedScalarFieldContainer[str]
    excludes_self: bool
    formula: str
    by_zero: float
    half_life_ms: int
    confidence: float
    k: int
    def __init__(self, name: _Optional[str] = ..., aggregate: _Optional[_Union[Aggregate, str]] = ..., field: _Optional[str] = ..., window_ms: _Optional[int] = ..., offset_ms: _Optional[int] = ..., parts: _Optional[_Iterable[str]] = ..., excludes_self: bool = ..., formula: _Optional[str] = ..., by_zero: _Optional[float] = ..., half_life_ms: _Optional[int] = ..., confidence: _Optional[float] = ..., k: _Optional[int] = ...) -> None: ...

class ServiceSchema(_message.Message):
    __slots__ = ("name", "fingerprint", "features", "parts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: int
    features: _containers.RepeatedCompositeFieldContainer[FeatureSchema]
    parts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[int] = ..., features: _Optional[_Iterable[_Union[FeatureSchema, _Mapping]]] = ..., parts: _Optional[_Iterable[str]] = ...) -> None: ...
