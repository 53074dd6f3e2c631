"""Names to indexes, without the GIL, and errors to words, with it.

A table is open addressing over the schema's names, at most half full: a look-up is one hash and mostly one
comparison, whatever a sender asks for. The suggestions in error messages are made here, outside the hot path.
"""

import difflib

from featurestore.core.structs import same_structs
from featurestore.errors import InvalidEventError, LimitError, SchemaMismatchError, UnknownNameError
from featurestore.plan import Kind

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from featurestore.core.batch cimport (
    MAX_BATCH_EVENTS,
    MAX_PRODUCER_BYTES,
    MAX_TEXT_BYTES,
    REFUSED_KEY,
    REFUSED_KEY_TOO_LONG,
    REFUSED_TYPE,
    batch_structs,
)
from featurestore.server.eventtime cimport (
    TIME_ISO,
    TIME_MS,
    TIME_NS,
    TIME_S,
    TIME_US,
    eventtime_structs,
)
from featurestore.server.memory cimport arena_alloc, arena_free

same_structs(__name__, names_structs(), batch_structs(), eventtime_structs())


cdef uint32_t name_hash(const uint8_t* text, size_t length) noexcept nogil:
    """FNV-1a. Unkeyed, for the names come from the schema: a sender can only choose which of them to look
    up."""
    cdef uint32_t value = 2166136261u
    cdef size_t i
    for i in range(length):
        value = (value ^ text[i]) * 16777619u
    return value


cdef inline bint is_name(const Name* name, const uint8_t* text, size_t length) noexcept nogil:
    return name.length == length and memcmp(name.text, text, length) == 0


cdef int32_t name_index(const NameTable* table, const uint8_t* text, size_t length,
                        uint32_t guess) noexcept nogil:
    cdef uint32_t hashed, slot, found
    if guess < table.n and is_name(&table.names[guess], text, length):
        return <int32_t>guess
    hashed = name_hash(text, length)
    slot = hashed & table.mask
    while True:
        found = table.slots[slot]
        if found == 0:
            return -1
        if table.names[found - 1].hash == hashed and is_name(&table.names[found - 1], text, length):
            return <int32_t>(found - 1)
        slot = (slot + 1) & table.mask


cdef enum:
    KEY_HEAD_BYTES = 6               # of a text in a reply: tag and length

_UNITS = {"s": TIME_S, "ms": TIME_MS, "us": TIME_US, "ns": TIME_NS, "iso": TIME_ISO}


@cython.final
cdef class WireSchema:
    """The names of a plan as tables, and the limits of a request: what the codec needs to know.

    `max_message_bytes` bounds a request, `max_rows` the events of a batch and the key sets of a read,
    `max_values` the key sets × features of a read. Read-only once made; a new plan gets a new one.
    """

    def __cinit__(self):
        self._memory.max_bytes = 1 << 30

    def __init__(
        self,
        plan not None,
        *,
        Py_ssize_t max_message_bytes=16 << 20,
        Py_ssize_t max_rows=MAX_BATCH_EVENTS,
        Py_ssize_t max_values=1 << 22,
    ):
        cdef ServiceEntry* services
        cdef FieldTable* events
        cdef uint32_t j
        if self.plan is not None:
            raise ValueError("a WireSchema is made once; make another one for another plan")
        # Lengths and offsets are 32 bits wide, and protobuf knows no message of 2 GiB.
        if not 0 < max_message_bytes < 1 << 31:
            raise ValueError(f"max_message_bytes must be within 1 and 2^31 - 1, not {max_message_bytes}")
        if not 0 < max_rows <= MAX_BATCH_EVENTS:
            raise ValueError(f"max_rows must be within 1 and {MAX_BATCH_EVENTS}, not {max_rows}")
        if max_values <= 0:
            raise ValueError(f"max_values must be positive, not {max_values}")
        self.plan = plan
        self.parts = tuple(sorted({part for entity in plan.entities for part in entity.parts}))
        self.tables.max_message_bytes = max_message_bytes
        self.tables.max_rows = max_rows
        self.tables.max_values = max_values
        self._fill_fields(&self.tables.parts, list(self.parts), [FIELD_KEY] * len(self.parts))

        events = <FieldTable*>arena_alloc(&self._memory, len(plan.events), sizeof(FieldTable))
        services = <ServiceEntry*>arena_alloc(&self._memory, len(plan.served), sizeof(ServiceEntry))
        if events == NULL or services == NULL:
            raise MemoryError
        self._fill_names(&self.tables.event_names, [event.name for event in plan.events])
        for i, event in enumerate(plan.events):
            kinds = [
                FIELD_NUMBER if field.kind == Kind.NUMBER else FIELD_KEY if field.is_key
                else FIELD_ID if k == event.id_field else FIELD_STRING
                for k, field in enumerate(event.fields)
            ]
            self._fill_fields(&events[i], [*(field.name for field in event.fields), event.time.field], kinds)
            events[i].n_declared = sum(field.retired_ms is None for field in event.fields)
            events[i].time_unit = _UNITS[event.time.unit]
            events[i].id_field = -1 if event.id_field is None else event.id_field
            self._fill_names(
                &events[i].keys, [",".join(plan.entities[touch.entity].parts) for touch in event.touches]
            )
            events[i].keys_bytes = 0
            for j in range(events[i].keys.n):
                events[i].keys_bytes += events[i].keys.names[j].length + KEY_HEAD_BYTES
        self.tables.events = events
        self._fill_names(&self.tables.service_names,
                         list(dict.fromkeys(service.name for service in plan.served)))
        newest = {}
        for i, service in enumerate(plan.served):
            services[i].fingerprint = int(service.fingerprint, 16)
            services[i].width = len(service.features)
            services[i].older = 0
            services[i].is_gone = i >= len(plan.services)
            if service.name in newest:
                services[<uint32_t>newest[service.name]].older = i
            newest[service.name] = i
        self.tables.services = services

    cdef int _fill_names(self, NameTable* table, list names) except -1:
        cdef uint32_t n_slots = 2, i, slot
        cdef Name* made
        cdef uint32_t* slots
        cdef uint8_t* text
        while n_slots < 2 * len(names):
            n_slots *= 2
        made = <Name*>arena_alloc(&self._memory, len(names), sizeof(Name))
        slots = <uint32_t*>arena_alloc(&self._memory, n_slots, sizeof(uint32_t))
        if made == NULL or slots == NULL:
            raise MemoryError
        memset(slots, 0, n_slots * sizeof(uint32_t))
        for i in range(<uint32_t>len(names)):
            encoded = (<str>names[i]).encode()
            text = <uint8_t*>arena_alloc(&self._memory, len(encoded), 1)
            if text == NULL:
                raise MemoryError
            memcpy(text, PyBytes_AS_STRING(encoded), len(encoded))
            made[i].text = text
            made[i].length = len(encoded)
            made[i].hash = name_hash(text, len(encoded))
            slot = made[i].hash & (n_slots - 1)
            while slots[slot] != 0:
                slot = (slot + 1) & (n_slots - 1)
            slots[slot] = i + 1
        table.n = len(names)
        table.mask = n_slots - 1
        table.names = made
        table.slots = slots
        return 0

    cdef int _fill_fields(self, FieldTable* table, list names, list kinds) except -1:
        cdef uint8_t* made = <uint8_t*>arena_alloc(&self._memory, len(kinds), 1)
        if made == NULL:
            raise MemoryError
        for i, kind in enumerate(kinds):
            made[i] = kind
        self._fill_names(&table.names, names)
        table.n_fields = len(kinds)
        table.n_declared = len(kinds)
        table.id_field = -1
        table.name_bytes = max((len(name.encode()) for name in names), default=0)
        table.kinds = made
        return 0

    def __dealloc__(self):
        arena_free(&self._memory)


def _meant(str name, names):
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]}?" if close else f"; there is {', '.join(sorted(names)) or 'none'}"


def another_service(str name, plan, uint64_t fingerprint):
    """The error for a request whose fingerprint is of no vector of the service that is served."""
    wanted = f"{fingerprint:016x}"
    for pin in plan.pins:
        if pin.service == name and pin.fingerprint == wanted:
            return SchemaMismatchError(
                f"service {name!r} was the vector {wanted} and is so no more: its feature "
                f"{plan.missing(pin)} is gone, or means another number now; fetch its features again with "
                "GetSchema, for a model that is trained on them")
    return SchemaMismatchError(
        f"service {name!r} is not the vector {wanted}, nor remembered to have been; "
        "fetch its features again with GetSchema"
    )


_BAD_KEYS = {
    REFUSED_KEY: "a key is a number that is not whole; send text or an integer",
    REFUSED_KEY_TOO_LONG: f"a key is longer than {MAX_TEXT_BYTES} bytes",
    REFUSED_TYPE: "a key is a truth value; send text or an integer",
}


cdef object wire_exception(WireSchema schema, const WireError* error):
    cdef int code = error.code
    plan = schema.plan
    name = "" if error.text == NULL else error.text[:error.text_length].decode("utf-8", "replace")
    event = plan.events[error.event] if error.event >= 0 else None
    where = f"event type {event.name}" if event else "the request"
    if code == WIRE_MALFORMED:
        return InvalidEventError(
            f"the request is not a valid protobuf message: malformed near byte {error.offset}"
        )
    if code == WIRE_BAD_UTF8:
        return InvalidEventError(
            f"a text near byte {error.offset} of the request is not UTF-8; keys and names must be"
        )
    if code == WIRE_TOO_LARGE:
        return LimitError(
            f"the request is larger than {schema.tables.max_message_bytes} bytes; send smaller batches"
        )
    if code == WIRE_TOO_MANY_ROWS:
        return LimitError(f"the request has more than {schema.tables.max_rows} rows; send smaller batches")
    if code == WIRE_TOO_MANY_VALUES:
        return LimitError(
            f"the request reads more than {schema.tables.max_values} values (key sets × features); "
            "ask for fewer key sets at a time"
        )
    if code == WIRE_NO_ROOM:
        return LimitError("the request would take more memory than one request may; send smaller batches")
    if code == WIRE_UNKNOWN_EVENT:
        return UnknownNameError(f"unknown event type {name!r}{_meant(name, [e.name for e in plan.events])}")
    if code == WIRE_UNKNOWN_FIELD:
        if not name:
            return UnknownNameError(f"a field of {where} has no name")
        names = [*(field.name for field in event.fields), event.time.field]
        return UnknownNameError(
            f"unknown field {name!r} of {where}{_meant(name, names)}; what is not declared is ignored only "
            f"where every declared field is given, and {names[error.row]!r} is not, nor as null"
        )
    if code == WIRE_UNKNOWN_SERVICE:
        return UnknownNameError(f"unknown service {name!r}{_meant(name, [s.name for s in plan.services])}")
    if code == WIRE_UNKNOWN_PART:
        return UnknownNameError(f"unknown key part {name!r}{_meant(name, schema.parts)}")
    if code == WIRE_GIVEN_TWICE:
        return InvalidEventError(
            f"row {error.row} of {where} gives {name!r} twice; give it once, by name or position"
        )
    if code == WIRE_TIME_TWICE:
        return InvalidEventError(
            f"{where} is given its time twice, as milliseconds and as the field {event.time.field!r}; "
            "give one of them"
        )
    if code == WIRE_TOO_MANY_POSITIONS:
        return InvalidEventError(
            f"row {error.row} of {where} has more values than the {len(event.fields)} fields declared; "
            "its time goes into time_ms"
        )
    if code == WIRE_ROWS_AND_COLUMNS:
        return InvalidEventError("the request has rows and columns; send one or the other")
    if code == WIRE_LENGTHS_DIFFER:
        what = f"column {name!r}" if error.text != NULL else "as_of_each_ms"
        return InvalidEventError(f"{what} has another number of rows than the rest of the request")
    if code == WIRE_BAD_COLUMN:
        return InvalidEventError(
            f"column {name!r} contradicts itself at row {error.row}: lengths must add up to the data, "
            "absent texts have length 0, and `present` needs one bit per row"
        )
    if code == WIRE_UNKNOWN_ACK:
        return InvalidEventError("unknown value of ack; it is ACK_APPLIED, ACK_DURABLE or left out")
    if code == WIRE_PRODUCER_TOO_LONG:
        return InvalidEventError(f"the producer's name is longer than {MAX_PRODUCER_BYTES} bytes")
    if code == WIRE_BAD_KEY:
        return InvalidEventError(f"key set {error.row}: {_BAD_KEYS[error.reason]}")
    if code == WIRE_AS_OF_RANGE:
        return InvalidEventError(
            f"as_of of key set {error.row} is outside the years 1 to 9999; it is milliseconds"
        )
    if code == WIRE_AS_OF_TWICE:
        return InvalidEventError("as_of_ms and as_of_each_ms are both given; send one of them")
    if code == WIRE_FINGERPRINT:
        return another_service(name, plan, error.fingerprint)
    raise AssertionError(f"no words for wire status {code}")
