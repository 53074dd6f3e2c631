from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Ack(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACK_UNSPECIFIED: _ClassVar[Ack]
    ACK_APPLIED: _ClassVar[Ack]
    ACK_DURABLE: _ClassVar[Ack]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_LATE: _ClassVar[Outcome]
    OUTCOME_DUPLICATE: _ClassVar[Outcome]
    OUTCOME_ACCEPTED: _ClassVar[Outcome]
    OUTCOME_REFUSED_NO_TIME: _ClassVar[Outcome]
    OUTCOME_REFUSED_TIME_RANGE: _ClassVar[Outcome]
    OUTCOME_REFUSED_FUTURE: _ClassVar[Outcome]
    OUTCOME_REFUSED_NOT_FINITE: _ClassVar[Outcome]
    OUTCOME_REFUSED_KEY: _ClassVar[Outcome]
    OUTCOME_REFUSED_KEY_TOO_LONG: _ClassVar[Outcome]
    OUTCOME_REFUSED_TYPE: _ClassVar[Outcome]
    OUTCOME_REFUSED_NO_ID: _ClassVar[Outcome]
    OUTCOME_REFUSED_BEYOND_DEDUPE: _ClassVar[Outcome]
    OUTCOME_REFUSED_MEMORY: _ClassVar[Outcome]

class FeatureStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_STATUS_UNSPECIFIED: _ClassVar[FeatureStatus]
    FEATURE_STATUS_PRESENT: _ClassVar[FeatureStatus]
    FEATURE_STATUS_NOT_FOUND: _ClassVar[FeatureStatus]
    FEATURE_STATUS_WARMING: _ClassVar[FeatureStatus]
    FEATURE_STATUS_UNAVAILABLE: _ClassVar[FeatureStatus]

class Bounds(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BOUNDS_UNSPECIFIED: _ClassVar[Bounds]
    BOUNDS_EXACT: _ClassVar[Bounds]
    BOUNDS_CERTAIN: _ClassVar[Bounds]
    BOUNDS_CONFIDENCE: _ClassVar[Bounds]
ACK_UNSPECIFIED: Ack
ACK_APPLIED: Ack
ACK_DURABLE: Ack
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_LATE: Outcome
OUTCOME_DUPLICATE: Outcome
OUTCOME_ACCEPTED: Outcome
OUTCOME_REFUSED_NO_TIME: Outcome
OUTCOME_REFUSED_TIME_RANGE: Outcome
OUTCOME_REFUSED_FUTURE: Outcome
OUTCOME_REFUSED_NOT_FINITE: Outcome
OUTCOME_REFUSED_KEY: Outcome
OUTCOME_REFUSED_KEY_TOO_LONG: Outcome
OUTCOME_REFUSED_TYPE: Outcome
OUTCOME_REFUSED_NO_ID: Outcome
OUTCOME_REFUSED_BEYOND_DEDUPE: Outcome
OUTCOME_REFUSED_MEMORY: Outcome
FEATURE_STATUS_UNSPECIFIED: FeatureStatus
FEATURE_STATUS_PRESENT: FeatureStatus
FEATURE_STATUS_NOT_FOUND: FeatureStatus
FEATURE_STATUS_WARMING: FeatureStatus
FEATURE_STATUS_UNAVAILABLE: FeatureStatus
BOUNDS_UNSPECIFIED: Bounds
BOUNDS_EXACT: Bounds
BOUNDS_CERTAIN: Bounds
BOUNDS_CONFIDENCE: Bounds

class Value(_message.Message):
    __slots__ = ("text", "integer", "number", "flag")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    text: str
    integer: int
    number: float
    flag: bool
    def __init__(self, text: _Optional[str] = ..., integer: _Optional[int] = ..., number: _Optional[float] = ..., flag: bool = ...) -> None: ...

class Field(_message.Message):
    __slots__ = ("name", "text", "integer", "number", "flag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    text: str
    integer: int
    number: float
    flag: bool
    def __init__(self, name: _Optional[str] = ..., text: _Optional[str] = ..., integer: _Optional[int] = ..., number: _Optional[float] = ..., flag: bool = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("time_ms", "fields", "values")
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    time_ms: int
    fields: _containers.RepeatedCompositeFieldContainer[Field]
    values: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, time_ms: _Optional[int] = ..., fields: _Optional[_Iterable[_Union[Field, _Mapping]]] = ..., values: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class TextColumn(_message.Message):
    __slots__ = ("data", "lengths", "present")
    DATA_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    lengths: _containers.RepeatedScalarFieldContainer[int]
    present: bytes
    def __init__(self, data: _Optional[bytes] = ..., lengths: _Optional[_Iterable[int]] = ..., present: _Optional[bytes] = ...) -> None: ...

class NumberColumn(_message.Message):
    __slots__ = ("values", "present")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    present: bytes
    def __init__(self, values: _Optional[_Iterable[float]] = ..., present: _Optional[bytes] = ...) -> None: ...

class IntegerColumn(_message.Message):
    __slots__ = ("values", "present")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    present: bytes
    def __init__(self, values: _Optional[_Iterable[int]] = ..., present: _Optional[bytes] = ...) -> None: ...

class NamedColumn(_message.Message):
    __slots__ = ("name", "texts", "numbers", "integers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    INTEGERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    texts: TextColumn
    numbers: NumberColumn
    integers: IntegerColumn
    def __init__(self, name: _Optional[str] = ..., texts: _Optional[_Union[TextColumn, _Mapping]] = ..., numbers: _Optional[_Union[NumberColumn, _Mapping]] = ..., integers: _Optional[_Union[IntegerColumn, _Mapping]] = ...) -> None: ...

class EventColumns(_message.Message):
    __slots__ = ("times_ms", "columns")
    TIMES_MS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    times_ms: _containers.RepeatedScalarFieldContainer[int]
    columns: _containers.RepeatedCompositeFieldContainer[NamedColumn]
    def __init__(self, times_ms: _Optional[_Iterable[int]] = ..., columns: _Optional[_Iterable[_Union[NamedColumn, _Mapping]]] = ...) -> None: ...

class KeySet(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[Field]
    def __init__(self, parts: _Optional[_Iterable[_Union[Field, _Mapping]]] = ...) -> None: ...

class KeyColumns(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[NamedColumn]
    def __init__(self, parts: _Optional[_Iterable[_Union[NamedColumn, _Mapping]]] = ...) -> None: ...

class Vectors(_message.Message):
    __slots__ = ("fingerprint", "rows", "width", "values", "statuses", "bounds", "lower", "upper", "confidence", "coverage")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    STATUSES_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    LOWER_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    fingerprint: int
    rows: int
    width: int
    values: _containers.RepeatedScalarFieldContainer[float]
    statuses: bytes
    bounds: Bounds
    lower: _containers.RepeatedScalarFieldContainer[float]
    upper: _containers.RepeatedScalarFieldContainer[float]
    confidence: float
    coverage: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, fingerprint: _Optional[int] = ..., rows: _Optional[int] = ..., width: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ..., statuses: _Optional[bytes] = ..., bounds: _Optional[_Union[Bounds, str]] = ..., lower: _Optional[_Iterable[float]] = ..., upper: _Optional[_Iterable[float]] = ..., confidence: _Optional[float] = ..., coverage: _Optional[_Iterable[float]] = ...) -> None: ...
