# Compiled stack programs: `where` filters, and the formulas of derived features. See program.pyx for the
# instructions and the logic of filters, derived.pyx for what a formula makes of its operands.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t

from featurestore.core.batch cimport Batch, batch_structs

cdef enum:
    PROGRAM_MAX_DEPTH = 32        # slots of the evaluation stack
    PROGRAM_CHUNK = 256           # events evaluated together

cdef enum ProgramCode:
    OP_NUMBER
    OP_LOAD_NUMBER
    OP_ADD
    OP_SUB
    OP_MUL
    OP_DIV
    OP_MIN
    OP_MAX
    OP_NEG
    OP_EQ
    OP_NE
    OP_LT
    OP_LE
    OP_GT
    OP_GE
    OP_TEXT_EQ
    OP_TEXT_NE
    OP_IN_NUMBERS
    OP_IN_TEXTS
    OP_NULL_NUMBER
    OP_NULL_TEXT
    OP_AND
    OP_OR
    OP_NOT
    OP_TRUE
    OP_FALSE

# A text known before the batch is (constant), or one that each event brings (column).
ctypedef struct TextOperand:
    int32_t field                 # index of the column, or -1: the constant below
    uint8_t empty_is_null         # column of a key field: an empty key counts as null
    uint32_t n_bytes              # constant: length ...
    const char* bytes             # ... and bytes, owned by the program

ctypedef struct OpC:
    uint8_t code                  # ProgramCode
    uint8_t slot                  # where the result goes; a binary operation reads slot and slot + 1
    uint16_t field                # OP_LOAD_NUMBER: index of the column, or of the formula's operand
    uint32_t n_items              # OP_IN_*: length of the list
    double number                 # OP_NUMBER
    const double* numbers         # OP_IN_NUMBERS: ascending
    const TextOperand* texts      # OP_IN_TEXTS: constants, ascending by (length, bytes)
    TextOperand left              # text operations
    TextOperand right

ctypedef struct ProgramC:
    uint32_t n_ops
    const OpC* ops                # checked when compiled: the run has no check left to make

# out[i - lo] = 1 iff the filter is TRUE for event i of lo <= i < hi, else 0 (unknown is not TRUE).
# The batch is of the event type that the program was compiled for. Uses 75 KB of the caller's stack.
cdef void program_run(const ProgramC* program, const Batch* batch, uint32_t lo, uint32_t hi,
                      uint8_t* out) noexcept nogil


cdef class Compiled:
    cdef ProgramC* c              # valid as long as this object lives
    cdef readonly str source
    cdef ProgramC _program
    cdef OpC* _ops                # owned, as are the two arrays below that they point into
    cdef double* _numbers
    cdef TextOperand* _texts
    cdef tuple _held              # the bytes of the constants
    cdef tuple _fields            # what it was compiled for: where its loads come from
    cdef int _compile(self, object program, tuple fields, str leaves, str what) except -1
    cdef int _fill(self, list steps) except -1


# A filter: leaves one truth.
cdef class CompiledProgram(Compiled):
    cdef readonly uint32_t event  # index of the event type it was compiled for


# The formula of a derived feature: loads and arithmetic of numbers only, leaves one number.
cdef class CompiledFormula(Compiled):
    pass

# Compared at import: see core/structs.py.
cdef inline dict program_structs():
    return batch_structs() | {"core/program.pxd": (
        sizeof(TextOperand), sizeof(OpC), sizeof(ProgramC), sizeof(Compiled), sizeof(CompiledProgram),
        sizeof(CompiledFormula),
    )}
