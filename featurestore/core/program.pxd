# Compiled `where` filters. See program.pyx for the instructions and the logic.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t

from featurestore.core.batch cimport Batch, batch_structs

cdef enum:
    PROGRAM_MAX_DEPTH = 32        # slots of the evaluation stack
    PROGRAM_CHUNK = 256           # events evaluated together

# A text known before the batch is (constant), or one that each event brings (column).
ctypedef struct TextOperand:
    int32_t field                 # index of the column, or -1: the constant below
    uint8_t empty_is_null         # column of a key field: an empty key counts as null
    uint32_t n_bytes              # constant: length ...
    const char* bytes             # ... and bytes, owned by the program

ctypedef struct OpC:
    uint8_t code                  # ProgramCode in program.pyx
    uint8_t slot                  # where the result goes; a binary operation reads slot and slot + 1
    uint16_t field                # OP_LOAD_NUMBER, OP_NULL_TEXT
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


cdef class CompiledProgram:
    cdef ProgramC* c              # valid as long as this object lives
    cdef readonly str source
    cdef readonly uint32_t event  # index of the event type it was compiled for
    cdef ProgramC _program
    cdef OpC* _ops                # owned, as are the two arrays below that they point into
    cdef double* _numbers
    cdef TextOperand* _texts
    cdef tuple _held              # the bytes of the constants
    cdef tuple _fields            # of the event it was compiled for
    cdef int _fill(self, list steps, object event) except -1

# Compared at import: see core/structs.py.
cdef inline dict program_structs():
    return batch_structs() | {"core/program.pxd": (
        sizeof(TextOperand), sizeof(OpC), sizeof(ProgramC), sizeof(CompiledProgram),
    )}
