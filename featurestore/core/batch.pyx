"""EventBatch: events of one type in columns, checked once at the door.

Whoever holds an EventBatch may pass its C `Batch` on under nogil and check nothing again. The guarantee:

- every array has n_events entries (offsets one more), n_events <= MAX_BATCH_EVENTS, one column per declared
  field;
- offsets ascend and end within the bytes;
- an event whose outcome is still 0 has a time within the years 1..9999, no infinite number, and no text
  longer than MAX_TEXT_BYTES. An event that breaks this is refused by its outcome, not by an exception: the
  others go on.

Outcomes given to the constructor (the decoder's refusals) stand; otherwise the first of these reasons counts:
the time, then the columns in order.

Memory: times, numbers, presence and bytes are borrowed from the arrays and kept alive, not copied; they must
not be written to while the batch lives. Offsets are copied, because a changed offset would be a read out of
bounds, and outcomes are the batch's own.
"""

cimport cython
from libc.math cimport isinf
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

import numpy as np

from featurestore.columns import TextColumn
from featurestore.core.structs import same_structs
from featurestore.errors import InvalidEventError
from featurestore.plan import EventPlan, Kind

same_structs(__name__, batch_structs())

cdef int64_t EARLIEST_MS = -62135596800000  # 0001-01-01T00:00:00.000Z
cdef int64_t LATEST_MS = 253402300799999    # 9999-12-31T23:59:59.999Z


# Each refuse_* leaves alone an outcome that is set.

cdef void refuse_times(const int64_t* times, uint32_t n, uint8_t* outcomes) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        if (times[i] < EARLIEST_MS or times[i] > LATEST_MS) and outcomes[i] == OUTCOME_ACCEPTED:
            outcomes[i] = REFUSED_TIME_RANGE


cdef void refuse_infinite(const double* numbers, uint32_t n, uint8_t* outcomes) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        if isinf(numbers[i]) and outcomes[i] == OUTCOME_ACCEPTED:
            outcomes[i] = REFUSED_NOT_FINITE


cdef void refuse_long_texts(const uint32_t* offsets, uint32_t n, uint8_t* outcomes) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        if offsets[i + 1] - offsets[i] > MAX_TEXT_BYTES and outcomes[i] == OUTCOME_ACCEPTED:
            outcomes[i] = REFUSED_KEY_TOO_LONG


cdef bint batch_holds(const Batch* batch) noexcept nogil:
    cdef const Column* column
    cdef uint32_t i
    cdef uint16_t k
    for i in range(batch.n_events):
        if batch.outcomes[i] == OUTCOME_ACCEPTED and not EARLIEST_MS <= batch.times[i] <= LATEST_MS:
            return False
    for k in range(batch.n_columns):
        column = &batch.columns[k]
        for i in range(batch.n_events):
            if batch.outcomes[i] != OUTCOME_ACCEPTED:
                continue
            if column.kind == COLUMN_NUMBER:
                if isinf(column.numbers[i]):
                    return False
            elif column.offsets[i + 1] - column.offsets[i] > MAX_TEXT_BYTES:
                return False
    return True


cdef void batch_part(const Batch* whole, uint32_t lo, uint32_t hi, Column* columns,
                     Batch* part) noexcept nogil:
    cdef uint16_t k
    part[0] = whole[0]
    part.n_events = hi - lo
    part.times += lo
    part.outcomes += lo
    part.columns = columns
    for k in range(whole.n_columns):
        columns[k] = whole.columns[k]
        if columns[k].kind == COLUMN_NUMBER:
            columns[k].numbers += lo
        else:
            columns[k].offsets += lo
            if columns[k].present != NULL:
                columns[k].present += lo


cdef uint32_t first_descent(const uint32_t* offsets, uint32_t n) noexcept nogil:
    """The first i with offsets[i + 1] < offsets[i], or n."""
    cdef uint32_t i
    for i in range(n):
        if offsets[i + 1] < offsets[i]:
            return i
    return n


cdef object checked_array(object array, object dtype, Py_ssize_t n, str what):
    """`array` itself, or a contiguous copy where it is strided; an error where it is something else."""
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != dtype:
        found = f"{array.ndim}-d {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InvalidEventError(f"{what}: expected a 1-d {dtype} array, found {found}; use event_columns")
    if array.shape[0] != n:
        raise InvalidEventError(f"{what}: {array.shape[0]} entries where {n} are needed, one per event")
    return np.require(array, requirements=["C", "A"])


cdef const void* address(object array) except? NULL:
    """Of the first byte of a numpy array."""
    cdef size_t where = array.ctypes.data
    return <const void*>where


@cython.final
cdef class EventBatch:
    """Events of one type, in columns.

    event        the event type's plan
    event_index  its index in Plan.events
    times        int64 (n,), ms since the epoch
    columns      one per EventPlan.fields, in order: float64 (n,), NaN = absent, for numbers;
                 TextColumn for texts
    outcomes     uint8 (n,), refusals by the decoder; copied. None: none

    Raises InvalidEventError where an array has the wrong type or length, or offsets leave the bytes.
    """

    def __cinit__(self, event not None, int event_index, times not None, columns not None, outcomes=None):
        if not isinstance(event, EventPlan):
            raise TypeError(f"event: expected an EventPlan, found {type(event).__name__}")
        if not 0 <= event_index <= 0xFFFF:
            raise InvalidEventError(f"event_index is {event_index}; an index in Plan.events is 0 to 65535")
        if not isinstance(times, np.ndarray):
            raise InvalidEventError(f"times: expected a 1-d int64 array, found {type(times).__name__}")
        if times.size > MAX_BATCH_EVENTS:
            raise InvalidEventError(
                f"a batch of {times.size} events; the limit is {MAX_BATCH_EVENTS}: send it in smaller batches"
            )
        cdef Py_ssize_t n = times.size
        times = checked_array(times, np.dtype(np.int64), n, "times")
        columns = tuple(columns)
        if len(columns) != len(event.fields) or len(columns) > 0xFFFF:
            raise InvalidEventError(
                f"event {event.name!r} declares {len(event.fields)} fields and {len(columns)} columns were "
                "given: pass one column per field (at most 65535), in the plan's order"
            )
        if outcomes is None:
            self.outcomes = np.zeros(n, dtype=np.uint8)
        else:
            self.outcomes = np.array(checked_array(outcomes, np.dtype(np.uint8), n, "outcomes"))
        self.partly_late = np.zeros(n, dtype=np.uint8)
        self.partly = <uint8_t*>address(self.partly_late)
        self.shed = np.zeros(n, dtype=np.uint64)
        self.shed_bits = <uint64_t*>address(self.shed)
        self.event = event
        self._columns = <Column*>calloc(max(len(columns), 1), sizeof(Column))
        if self._columns == NULL:
            raise MemoryError(f"no memory for {len(columns)} column descriptions")
        self.batch.n_events = <uint32_t>n
        self.batch.event = <uint16_t>event_index
        self.batch.n_columns = <uint16_t>len(columns)
        self.batch.times = <const int64_t*>address(times)
        self.batch.columns = self._columns
        self.batch.outcomes = <uint8_t*>address(self.outcomes)
        memory = [times]
        for k, (field, column) in enumerate(zip(event.fields, columns)):
            what = f"{event.name}.{field.name}"
            if field.kind == Kind.TEXT:
                self._take_texts(&self._columns[<int>k], column, what, memory)
            else:
                column = checked_array(column, np.dtype(np.float64), n, what)
                self._columns[<int>k].kind = COLUMN_NUMBER
                self._columns[<int>k].numbers = <const double*>address(column)
                memory.append(column)
        self._memory = tuple(memory)
        self._refuse()
        self._refused = self.outcomes.copy()

    def __dealloc__(self):
        free(self._columns)

    cdef int _take_texts(self, Column* c, object column, str what, list memory) except -1:
        cdef Py_ssize_t n = self.batch.n_events
        cdef const uint32_t* offsets
        cdef uint32_t at
        if not isinstance(column, TextColumn):
            raise InvalidEventError(
                f"{what}: expected a TextColumn, found {type(column).__name__}; event_columns makes them"
            )
        held = np.array(checked_array(column.offsets, np.dtype(np.uint32), n + 1, f"{what} offsets"))
        data = column.data
        if not isinstance(data, np.ndarray):
            raise InvalidEventError(f"{what} data: expected a 1-d uint8 array, found {type(data).__name__}")
        data = checked_array(data, np.dtype(np.uint8), data.size, f"{what} data")
        offsets = <const uint32_t*>address(held)
        at = first_descent(offsets, <uint32_t>n)
        if at < n:
            raise InvalidEventError(
                f"{what}: offset {at + 1} is {offsets[at + 1]}, before offset {at} ({offsets[at]})"
            )
        if offsets[n] > data.size:
            raise InvalidEventError(f"{what}: the last offset is {offsets[n]}; there are {data.size} bytes")
        c.kind = COLUMN_TEXT
        c.offsets = offsets
        c.bytes = <const char*>address(data)
        memory += [held, data]
        if column.present is not None:
            present = checked_array(column.present, np.dtype(np.uint8), n, f"{what} present")
            c.present = <const uint8_t*>address(present)
            memory.append(present)
        return 0

    cdef void _refuse(self) noexcept:
        cdef uint32_t k, n = self.batch.n_events
        with nogil:
            refuse_times(self.batch.times, n, self.batch.outcomes)
            for k in range(self.batch.n_columns):
                if self._columns[k].kind == COLUMN_NUMBER:
                    refuse_infinite(self._columns[k].numbers, n, self.batch.outcomes)
                else:
                    refuse_long_texts(self._columns[k].offsets, n, self.batch.outcomes)

    @property
    def n_events(self):
        return self.batch.n_events

    @property
    def event_index(self):
        return self.batch.event

    def __len__(self):
        return self.batch.n_events

    def part(self, Py_ssize_t lo, Py_ssize_t hi):
        """Events lo..hi-1 as a batch of their own that shares this one's columns.

        Its outcomes are its own, and those that this batch was made with: what the engine has decided since
        is not taken over, so that the same events can be applied once whole and once in parts.
        """
        if not 0 <= lo <= hi <= self.batch.n_events:
            raise IndexError(f"part({lo}, {hi}) of a batch of {self.batch.n_events} events")
        cdef EventBatch other = EventBatch.__new__(
            EventBatch, self.event, self.batch.event, np.empty(0, dtype=np.int64), self._no_columns()
        )
        batch_part(&self.batch, <uint32_t>lo, <uint32_t>hi, other._columns, &other.batch)
        other.outcomes = self._refused[lo:hi].copy()
        other._refused = self._refused[lo:hi]
        other._memory = (self,)
        other.batch.outcomes = <uint8_t*>address(other.outcomes)
        other.partly_late = np.zeros(hi - lo, dtype=np.uint8)
        other.partly = <uint8_t*>address(other.partly_late)
        other.shed = np.zeros(hi - lo, dtype=np.uint64)
        other.shed_bits = <uint64_t*>address(other.shed)
        return other

    cdef list _no_columns(self):
        """Columns of no events: a part begins as an empty batch."""
        empty = TextColumn(np.zeros(1, dtype=np.uint32), np.empty(0, dtype=np.uint8), None)
        return [empty if f.kind == Kind.TEXT else np.empty(0, dtype=np.float64) for f in self.event.fields]


def outcome_codes():
    """The codes of batch.pxd by name, for the test that featurestore.outcome says the same."""
    return {
        "ACCEPTED": OUTCOME_ACCEPTED,
        "LATE": OUTCOME_LATE,
        "DUPLICATE": OUTCOME_DUPLICATE,
        "REFUSED_NO_TIME": REFUSED_NO_TIME,
        "REFUSED_TIME_RANGE": REFUSED_TIME_RANGE,
        "REFUSED_FUTURE": REFUSED_FUTURE,
        "REFUSED_NOT_FINITE": REFUSED_NOT_FINITE,
        "REFUSED_KEY": REFUSED_KEY,
        "REFUSED_KEY_TOO_LONG": REFUSED_KEY_TOO_LONG,
        "REFUSED_TYPE": REFUSED_TYPE,
        "REFUSED_NO_ID": REFUSED_NO_ID,
        "REFUSED_BEYOND_DEDUPE": REFUSED_BEYOND_DEDUPE,
        "REFUSED_MEMORY": REFUSED_MEMORY,
    }
