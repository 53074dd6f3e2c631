"""Compiled stack programs: `where` filters, every step of which runs over a chunk of 256 events, and the
formulas of derived features, which are checked and compiled here too and run in `derived`, on one vector.

Idea: vectorised interpretation (Boncz, Zukowski, Nes, "MonetDB/X100: Hyper-Pipelining Query Execution", CIDR
2005). Reading an instruction costs some ten nanoseconds; shared by 256 events that is nothing, and the loops
inside are plain enough for the compiler to use vector instructions, while a chunk of every slot in use stays
in the cache.

The logic of filters is SQL's: TRUE, FALSE and UNKNOWN. Guarantee: out = 1 iff the filter is TRUE.

- An absent field is UNKNOWN, and whatever is computed from it or compared with it; so is arithmetic whose
  result is not finite, division by zero among it. An empty text of a key field counts as null.
- `and` is FALSE if either side is, `or` is TRUE if either side is, whatever the other; otherwise UNKNOWN if
  either is. `not` leaves UNKNOWN. `in` is UNKNOWN for null. Only `is_null` never is.

The three are kept as 0 FALSE, 1 UNKNOWN, 2 TRUE: `and` is the minimum, `or` the maximum, `not` 2 - x, and
"TRUE" is x >> 1. A comparison is the sum of two tests that agree unless an operand is NaN: (a < b) +
not (a >= b) gives 0 or 2, and 1 for a NaN.

code          pops            pushes    reads
number                        number    Op.number, finite
text                          text      Op.texts[0]
load_number                   number    Op.field
load_text                     text      Op.field
add sub mul div  number number   number
min max       number number   number
neg           number          number
eq ne lt le gt ge  number number   truth
text_eq text_ne  text text    truth     bytes, not collation
in_numbers    number          truth     Op.numbers
in_texts      text            truth     Op.texts
is_null       number | text   truth
and or        truth truth     truth
not           truth           truth
true false                    truth

A filter leaves one truth, a formula one number, which no truth or text can have had a part in. Everything is
checked when it is compiled (`CompiledProgram`, `CompiledFormula`), so the run checks nothing: the types of
the slots are known, and every operation is given the slot its result goes to. Texts
need no slots at all: where a text comes from, a column or a constant, is known too and is written into the
operation that reads it.
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset

from featurestore.core.batch cimport Batch, Column, EventBatch, MAX_TEXT_BYTES

import math

import numpy as np

from featurestore.core.structs import same_structs
from featurestore.plan import DerivedPlan, EventPlan, FieldPlan, Kind, Program

same_structs(__name__, program_structs())

cdef enum Truth:
    FALSE = 0
    UNKNOWN = 1
    TRUE = 2

cdef enum:
    FEW_NUMBERS = 8               # up to here every item of a list is compared, beyond it is searched

# What one slot of the stack may hold for a chunk. Not a union: results that overlap operands would keep the
# compiler from vector instructions.
cdef struct Slot:
    double numbers[PROGRAM_CHUNK]
    uint8_t truths[PROGRAM_CHUNK]


# ---- numbers. `r + (r - r)` is r where it is finite and NaN where it is not.

cdef inline void add_numbers(const double* a, const double* b, double* out, uint32_t n) noexcept nogil:
    cdef uint32_t i
    cdef double r
    for i in range(n):
        r = a[i] + b[i]
        out[i] = r + (r - r)


cdef inline void sub_numbers(const double* a, const double* b, double* out, uint32_t n) noexcept nogil:
    cdef uint32_t i
    cdef double r
    for i in range(n):
        r = a[i] - b[i]
        out[i] = r + (r - r)


cdef inline void mul_numbers(const double* a, const double* b, double* out, uint32_t n) noexcept nogil:
    cdef uint32_t i
    cdef double r
    for i in range(n):
        r = a[i] * b[i]
        out[i] = r + (r - r)


cdef inline void div_numbers(const double* a, const double* b, double* out, uint32_t n) noexcept nogil:
    cdef uint32_t i
    cdef double r
    for i in range(n):
        r = a[i] / b[i]
        out[i] = r + (r - r)


# Written so that a NaN on either side is the result.
cdef inline void min_numbers(const double* a, const double* b, double* out, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        out[i] = a[i] if (a[i] < b[i]) | (a[i] != a[i]) else b[i]


cdef inline void max_numbers(const double* a, const double* b, double* out, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        out[i] = a[i] if (a[i] > b[i]) | (a[i] != a[i]) else b[i]


cdef inline void neg_numbers(const double* a, double* out, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        out[i] = -a[i]


# ---- comparisons

cdef inline void eq_numbers(const double* a, const double* b, uint8_t* out, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        out[i] = <uint8_t>((a[i] == b[i]) + (not ((a[i] < b[i]) | (a[i] > b[i]))))


cdef inline void ne_numbers(const double* a, const double* b, uint8_t* out, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        out[i] = <uint8_t>(((a[i] < b[i]) | (a[i] > b[i])) + (not (a[i] == b[i])))


cdef inline void lt_numbers(const double* a, const double* b, uint8_t* out, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        out[i] = <uint8_t>((a[i] < b[i]) + (not (a[i] >= b[i])))


cdef inline void le_numbers(const double* a, const double* b, uint8_t* out, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        out[i] = <uint8_t>((a[i] <= b[i]) + (not (a[i] > b[i])))


cdef inline void in_few_numbers(const double* a, const double* items, uint32_t n_items, uint8_t* out,
                                uint32_t n) noexcept nogil:
    cdef uint32_t i, k
    cdef double item
    for i in range(n):
        out[i] = a[i] != a[i]
    for k in range(n_items):
        item = items[k]
        for i in range(n):
            out[i] |= <uint8_t>((a[i] == item) << 1)


cdef inline void in_many_numbers(const double* a, const double* items, uint32_t n_items, uint8_t* out,
                                 uint32_t n) noexcept nogil:
    cdef uint32_t i, low, high, middle
    for i in range(n):
        if a[i] != a[i]:
            out[i] = UNKNOWN
            continue
        low = 0
        high = n_items
        while low < high:
            middle = low + (high - low) // 2
            if items[middle] < a[i]:
                low = middle + 1
            else:
                high = middle
        out[i] = TRUE if low < n_items and items[low] == a[i] else FALSE


cdef inline void null_numbers(const double* a, uint8_t* out, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        out[i] = <uint8_t>((a[i] != a[i]) << 1)


# ---- texts

cdef inline bint text_at(const TextOperand* text, const Column* columns, uint32_t row, const char** bytes,
                         uint32_t* n_bytes) noexcept nogil:
    """Whether there is a text; then where it is and how long."""
    cdef const Column* column
    if text.field < 0:
        bytes[0] = text.bytes
        n_bytes[0] = text.n_bytes
        return True
    column = columns + text.field
    if column.present != NULL and column.present[row] == 0:
        return False
    bytes[0] = column.bytes + column.offsets[row]
    n_bytes[0] = column.offsets[row + 1] - column.offsets[row]
    return n_bytes[0] > 0 or not text.empty_is_null


cdef inline int compare_texts(const char* a, uint32_t n_a, const char* b, uint32_t n_b) noexcept nogil:
    """Shorter first, equally long ones by their bytes: most are told apart by their length alone."""
    if n_a != n_b:
        return -1 if n_a < n_b else 1
    return memcmp(a, b, n_a) if n_a > 0 else 0


cdef void eq_texts(const OpC* op, const Column* columns, uint32_t row, uint8_t equal, uint8_t* out,
                   uint32_t n) noexcept nogil:
    """`equal` is what equal texts give, TRUE or FALSE."""
    cdef const char* a = NULL
    cdef const char* b = NULL
    cdef uint32_t i, n_a = 0, n_b = 0
    for i in range(n):
        if not text_at(&op.left, columns, row + i, &a, &n_a):
            out[i] = UNKNOWN
        elif not text_at(&op.right, columns, row + i, &b, &n_b):
            out[i] = UNKNOWN
        else:
            out[i] = equal if compare_texts(a, n_a, b, n_b) == 0 else TRUE - equal


cdef void in_texts(const OpC* op, const Column* columns, uint32_t row, uint8_t* out,
                   uint32_t n) noexcept nogil:
    cdef const char* a = NULL
    cdef uint32_t i, low, high, middle, n_a = 0
    cdef const TextOperand* item
    cdef int order
    for i in range(n):
        if not text_at(&op.left, columns, row + i, &a, &n_a):
            out[i] = UNKNOWN
            continue
        out[i] = FALSE
        low = 0
        high = op.n_items
        while low < high:
            middle = low + (high - low) // 2
            item = op.texts + middle
            order = compare_texts(item.bytes, item.n_bytes, a, n_a)
            if order == 0:
                out[i] = TRUE
                break
            if order < 0:
                low = middle + 1
            else:
                high = middle


cdef void null_texts(const OpC* op, const Column* columns, uint32_t row, uint8_t* out,
                     uint32_t n) noexcept nogil:
    cdef const char* a = NULL
    cdef uint32_t i, n_a = 0
    for i in range(n):
        out[i] = FALSE if text_at(&op.left, columns, row + i, &a, &n_a) else TRUE


# ---- logic

cdef inline void and_truths(const uint8_t* a, const uint8_t* b, uint8_t* out, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        out[i] = a[i] if a[i] < b[i] else b[i]


cdef inline void or_truths(const uint8_t* a, const uint8_t* b, uint8_t* out, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        out[i] = a[i] if a[i] > b[i] else b[i]


cdef inline void not_truths(const uint8_t* a, uint8_t* out, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        out[i] = TRUE - a[i]


# ---- the run

cdef void run_chunk(const ProgramC* program, const Column* columns, uint32_t row, uint32_t n, Slot* slots,
                    uint8_t* out) noexcept nogil:
    # Numbers are read through pointers, so that loading a column copies nothing.
    cdef const double* numbers[PROGRAM_MAX_DEPTH + 1]
    cdef const OpC* op
    cdef const double* a
    cdef const double* b
    cdef double* result
    cdef uint8_t* truths
    cdef const uint8_t* other_truths
    cdef uint32_t k, i
    memset(numbers, 0, sizeof(numbers))
    for k in range(program.n_ops):
        op = program.ops + k
        a = numbers[op.slot]
        b = numbers[op.slot + 1]
        result = slots[op.slot].numbers
        truths = slots[op.slot].truths
        other_truths = slots[op.slot + 1].truths
        if op.code == OP_LOAD_NUMBER:
            numbers[op.slot] = columns[op.field].numbers + row
        elif op.code == OP_NUMBER:
            for i in range(n):
                result[i] = op.number
            numbers[op.slot] = result
        elif op.code == OP_ADD:
            add_numbers(a, b, result, n)
            numbers[op.slot] = result
        elif op.code == OP_SUB:
            sub_numbers(a, b, result, n)
            numbers[op.slot] = result
        elif op.code == OP_MUL:
            mul_numbers(a, b, result, n)
            numbers[op.slot] = result
        elif op.code == OP_DIV:
            div_numbers(a, b, result, n)
            numbers[op.slot] = result
        elif op.code == OP_MIN:
            min_numbers(a, b, result, n)
            numbers[op.slot] = result
        elif op.code == OP_MAX:
            max_numbers(a, b, result, n)
            numbers[op.slot] = result
        elif op.code == OP_NEG:
            neg_numbers(a, result, n)
            numbers[op.slot] = result
        elif op.code == OP_EQ:
            eq_numbers(a, b, truths, n)
        elif op.code == OP_NE:
            ne_numbers(a, b, truths, n)
        elif op.code == OP_LT:
            lt_numbers(a, b, truths, n)
        elif op.code == OP_LE:
            le_numbers(a, b, truths, n)
        elif op.code == OP_GT:
            lt_numbers(b, a, truths, n)
        elif op.code == OP_GE:
            le_numbers(b, a, truths, n)
        elif op.code == OP_IN_NUMBERS:
            if op.n_items <= FEW_NUMBERS:
                in_few_numbers(a, op.numbers, op.n_items, truths, n)
            else:
                in_many_numbers(a, op.numbers, op.n_items, truths, n)
        elif op.code == OP_NULL_NUMBER:
            null_numbers(a, truths, n)
        elif op.code == OP_TEXT_EQ:
            eq_texts(op, columns, row, TRUE, truths, n)
        elif op.code == OP_TEXT_NE:
            eq_texts(op, columns, row, FALSE, truths, n)
        elif op.code == OP_IN_TEXTS:
            in_texts(op, columns, row, truths, n)
        elif op.code == OP_NULL_TEXT:
            null_texts(op, columns, row, truths, n)
        elif op.code == OP_AND:
            and_truths(truths, other_truths, truths, n)
        elif op.code == OP_OR:
            or_truths(truths, other_truths, truths, n)
        elif op.code == OP_NOT:
            not_truths(truths, truths, n)
        else:  # OP_TRUE, OP_FALSE
            memset(truths, TRUE if op.code == OP_TRUE else FALSE, n)
    truths = slots[0].truths
    for i in range(n):
        out[i] = truths[i] >> 1


cdef void program_run(const ProgramC* program, const Batch* batch, uint32_t lo, uint32_t hi,
                      uint8_t* out) noexcept nogil:
    # One more than the stack is deep: an operation at the top names its right neighbour without reading it.
    cdef Slot[PROGRAM_MAX_DEPTH + 1] slots
    cdef uint32_t row = lo, n
    while row < hi:
        n = hi - row if hi - row < PROGRAM_CHUNK else PROGRAM_CHUNK
        run_chunk(program, batch.columns, row, n, slots, out + (row - lo))
        row += n


# ---- compiling

# code: (what it pops, what it pushes, operation); those that need a closer look are in _lowered.
_SIGNATURES = {
    "add": ("number number", "number", OP_ADD),
    "sub": ("number number", "number", OP_SUB),
    "mul": ("number number", "number", OP_MUL),
    "div": ("number number", "number", OP_DIV),
    "min": ("number number", "number", OP_MIN),
    "max": ("number number", "number", OP_MAX),
    "neg": ("number", "number", OP_NEG),
    "eq": ("number number", "truth", OP_EQ),
    "ne": ("number number", "truth", OP_NE),
    "lt": ("number number", "truth", OP_LT),
    "le": ("number number", "truth", OP_LE),
    "gt": ("number number", "truth", OP_GT),
    "ge": ("number number", "truth", OP_GE),
    "text_eq": ("text text", "truth", OP_TEXT_EQ),
    "text_ne": ("text text", "truth", OP_TEXT_NE),
    "in_numbers": ("number", "truth", OP_IN_NUMBERS),
    "in_texts": ("text", "truth", OP_IN_TEXTS),
    "and": ("truth truth", "truth", OP_AND),
    "or": ("truth truth", "truth", OP_OR),
    "not": ("truth", "truth", OP_NOT),
    "true": ("", "truth", OP_TRUE),
    "false": ("", "truth", OP_FALSE),
    "number": ("", "number", OP_NUMBER),
    "load_number": ("", "number", OP_LOAD_NUMBER),
}


def _text_bytes(text, where):
    if not isinstance(text, str):
        raise ValueError(f"{where}: expected a text, found {text!r}")
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: {text!r} is not text that UTF-8 can hold") from None
    if len(encoded) > MAX_TEXT_BYTES:
        raise ValueError(f"{where}: a text of {len(encoded)} bytes; fields hold at most {MAX_TEXT_BYTES}")
    return encoded


def _finite(number, where):
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        raise ValueError(f"{where}: expected a finite number, found {number!r}")
    return float(number)


def _field(op, fields, kind, where):
    if isinstance(op.field, bool) or not isinstance(op.field, int) or not 0 <= op.field < len(fields):
        raise ValueError(f"{where}: no field {op.field!r}; {len(fields)} are declared")
    field = fields[op.field]
    if field.kind != kind:
        raise ValueError(f"{where}: field {field.name!r} holds no {kind.name.lower()}")
    return op.field


def _lowered(ops, fields, leaves, what):
    """The checked steps as (operation, slot, field, number, numbers, texts, text operands).

    A text operand is its bytes, or the index of the field that brings it; steps that load texts are gone.
    """
    steps = []
    stack = []  # ("number", None) | ("truth", None) | ("text", bytes or field index)
    for k, op in enumerate(ops):
        where = f"{what}, step {k} ({op.code})"
        field, number, numbers, texts = 0, 0.0, [], []
        if op.code == "is_null":
            pops = ["text" if stack and stack[len(stack) - 1][0] == "text" else "number"]
            pushes, operation = "truth", OP_NULL_TEXT if pops == ["text"] else OP_NULL_NUMBER
        elif op.code in ("text", "load_text"):
            pops, pushes, operation = [], "text", None
        elif op.code in _SIGNATURES:
            pops, pushes, operation = _SIGNATURES[op.code]
            pops = pops.split()
        else:
            raise ValueError(f"{where}: there is no such instruction")
        base = len(stack) - len(pops)
        found = [slot[0] for slot in stack[max(base, 0):]]
        if found != pops:
            raise ValueError(f"{where}: needs {', '.join(pops)} on top of the stack and finds "
                             f"{', '.join(found) or 'nothing'}")
        operands = [slot[1] for slot in stack[base:] if slot[0] == "text"]
        source = None
        if op.code == "text":
            if len(op.texts) != 1:
                raise ValueError(f"{where}: carries {len(op.texts)} texts, not one")
            source = _text_bytes(op.texts[0], where)
        elif op.code == "load_text":
            source = _field(op, fields, Kind.TEXT, where)
        elif op.code == "load_number":
            field = _field(op, fields, Kind.NUMBER, where)
        elif op.code == "number":
            number = _finite(op.number, where)
        elif op.code == "in_numbers":
            numbers = sorted({_finite(item, where) for item in op.numbers})
        elif op.code == "in_texts":
            texts = {_text_bytes(item, where) for item in op.texts}
            texts = sorted(texts, key=lambda item: (len(item), item))
        del stack[base:]
        stack.append((pushes, source))
        if len(stack) > PROGRAM_MAX_DEPTH:
            raise ValueError(f"{where}: more than {PROGRAM_MAX_DEPTH} values wait at once; nest less")
        if operation is not None:
            steps.append((operation, base, field, number, numbers, texts, operands))
    if [slot[0] for slot in stack] != [leaves]:
        left = ", ".join(slot[0] for slot in stack) or "nothing"
        raise ValueError(f"{what}: leaves {left} on the stack; it leaves one {leaves}")
    return steps


cdef class Compiled:
    """The memory of a checked program; what it is for, its two kinds say."""

    cdef int _compile(self, object program, tuple fields, str leaves, str what) except -1:
        cdef size_t n_numbers, n_texts
        if len(fields) > 0xFFFF:
            raise ValueError(f"{what}: {len(fields)} fields to load from; the limit is 65535")
        self.source = program.source
        self._fields = fields
        steps = _lowered(program.ops, fields, leaves, what)
        n_numbers = sum(len(step[4]) for step in steps)
        n_texts = sum(len(step[5]) for step in steps)
        if <size_t>len(steps) > 0xFFFFFF or n_numbers > 0xFFFFFF or n_texts > 0xFFFFFF:
            raise ValueError(f"{what}: more than {0xFFFFFF} steps or list items")
        self._ops = <OpC*>calloc(len(steps), sizeof(OpC))
        self._numbers = <double*>calloc(n_numbers + 1, sizeof(double))
        self._texts = <TextOperand*>calloc(n_texts + 1, sizeof(TextOperand))
        if self._ops == NULL or self._numbers == NULL or self._texts == NULL:
            raise MemoryError(f"no memory for {what}")
        self._fill(steps)
        self._program.n_ops = <uint32_t>len(steps)
        self._program.ops = self._ops
        self.c = &self._program
        return 0

    def __dealloc__(self):
        free(self._ops)
        free(self._numbers)
        free(self._texts)

    cdef int _fill(self, list steps) except -1:
        cdef OpC* c = self._ops
        cdef double* next_number = self._numbers
        cdef TextOperand* next_text = self._texts
        cdef TextOperand* text
        held = []
        for operation, slot, field, number, numbers, texts, operands in steps:
            c.code = operation
            c.slot = slot
            c.field = field
            c.number = number
            c.n_items = <uint32_t>(len(numbers) + len(texts))
            c.numbers = next_number
            for item in numbers:
                next_number[0] = item
                next_number += 1
            c.texts = next_text
            for item in texts:
                take_constant(next_text, item, held)
                next_text += 1
            for k, operand in enumerate(operands):
                text = &c.left if k == 0 else &c.right
                if isinstance(operand, bytes):
                    take_constant(text, operand, held)
                else:
                    text.field = operand
                    text.empty_is_null = self._fields[operand].is_key
            c += 1
        self._held = tuple(held)
        return 0


@cython.final
cdef class CompiledFormula(Compiled):
    """The formula of a derived feature, ready to run; raises ValueError naming the step that is wrong."""

    def __cinit__(self, derived not None):
        if not isinstance(derived, DerivedPlan):
            raise TypeError("CompiledFormula takes a DerivedPlan")
        operands = tuple(FieldPlan(f"operand {i}", Kind.NUMBER, False) for i in range(len(derived.operands)))
        self._compile(derived, operands, "number", f"derived feature {derived.name}")


@cython.final
cdef class CompiledProgram(Compiled):
    """A filter of `event`'s fields, ready to run; raises ValueError naming the step that is wrong."""

    def __cinit__(self, program not None, event not None):
        if not isinstance(program, Program) or not isinstance(event, EventPlan):
            raise TypeError("CompiledProgram takes a Program and the EventPlan of its event")
        if not 0 <= program.event <= 0xFFFF:
            raise ValueError(f"filter {program.source!r}: event index {program.event} is not one of a plan")
        self.event = program.event
        self._compile(program, event.fields, "truth", f"filter {program.source!r}")

    def run(self, EventBatch batch not None, uint32_t lo=0, hi=None):
        """uint8 array over events lo..hi-1 (hi None: to the end): 1 where the filter is TRUE."""
        cdef uint32_t end = batch.batch.n_events if hi is None else hi
        if not lo <= end <= batch.batch.n_events:
            raise IndexError(f"events {lo} to {end} of a batch of {batch.batch.n_events}")
        if batch.batch.event != self.event or batch.event.fields != self._fields:
            raise ValueError(f"filter {self.source!r} was compiled for other fields than this batch has")
        out = np.empty(end - lo, dtype=np.uint8)
        cdef uint8_t[::1] view = out
        if end > lo:
            with nogil:
                program_run(self.c, &batch.batch, lo, end, &view[0])
        return out


cdef int take_constant(TextOperand* text, bytes constant, list held) except -1:
    """`held` keeps the bytes where they are."""
    text.field = -1
    text.n_bytes = <uint32_t>len(constant)
    text.bytes = constant
    held.append(constant)
    return 0
