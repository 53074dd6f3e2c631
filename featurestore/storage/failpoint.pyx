"""Named places where a test makes the process die or the disk fail, compiled in always.

Unarmed, a failpoint costs one load and one predictable branch. It is armed from the environment, which is
read when this module is imported, or with `arm`:

    FEATURESTORE_FAILPOINT="name[:count][=action]"      several are separated by commas

    count    fires once, at the count-th time the place is reached (default 1)
    action   kill   SIGKILL to the own process, nothing is flushed or unwound (default)
             eio    the system call at that place reports EIO
             enospc the system call at that place reports ENOSPC
             emfile the system call at that place reports EMFILE

NAMES is the one table of names. An unknown name or action is a ConfigError: a typo would make a test pass for
nothing. Rules are counted with atomics and may be reached by any thread; they are armed before those threads
run.
"""
import os

from libc.errno cimport EIO, EMFILE, ENOSPC
from libc.signal cimport SIGKILL
from libc.stdint cimport uint64_t

from featurestore.errors import ConfigError

cdef extern from "<unistd.h>" nogil:
    int getpid()

cdef extern from "<signal.h>" nogil:
    int kill(int pid, int signal)

cdef extern from * nogil:
    const int __ATOMIC_RELAXED
    uint64_t __atomic_add_fetch(uint64_t* value, uint64_t amount, int order)
    uint64_t __atomic_load_n(const uint64_t* value, int order)

cdef enum Action:
    ACTION_NONE = 0
    ACTION_KILL = 1
    ACTION_EIO = 2
    ACTION_ENOSPC = 3
    ACTION_EMFILE = 4

ctypedef struct Rule:
    uint64_t n_hits               # times the place was reached since it was armed
    uint64_t fires_at             # the hit that fires, from 1
    int action                    # Action

cdef Rule rules[N_FAILPOINTS]

NAMES = (
    "journal.mid_frame",
    "journal.before_sync",
    "journal.after_sync",
    "journal.allocate",
    "journal.roll",
    "journal.rolled",
    "journal.truncate",
    "recovery.mid",
    "checkpoint.mid",
    "checkpoint.committed",
    "compact.copied",
    "compact.swapped",
    "schema.journaled",
    "forget.journaled",
    "forget.checkpointed",
    "producer.journaled",
    "checkpoint.part",
    "ids.unread",
    "clock.journaled",
)
ACTIONS = {"kill": ACTION_KILL, "eio": ACTION_EIO, "enospc": ACTION_ENOSPC, "emfile": ACTION_EMFILE}

assert len(NAMES) == N_FAILPOINTS


cdef int failpoint_hit(int point) noexcept nogil:
    cdef Rule* rule = &rules[point]
    if rule.action == ACTION_NONE:
        return 0
    if __atomic_add_fetch(&rule.n_hits, 1, __ATOMIC_RELAXED) != rule.fires_at:
        return 0
    if rule.action == ACTION_KILL:
        kill(getpid(), SIGKILL)
    if rule.action == ACTION_EIO:
        return EIO
    return ENOSPC if rule.action == ACTION_ENOSPC else EMFILE


def arm(str spec not None):
    """Arms every rule of `spec` ("name[:count][=action],..."), replacing an earlier rule of the same name."""
    global failpoints_armed
    parsed = []
    for text in filter(None, (part.strip() for part in spec.split(","))):
        place, _, action = text.partition("=")
        name, _, count = place.partition(":")
        if name not in NAMES:
            raise ConfigError(f"failpoint {name!r} does not exist; the names are {', '.join(NAMES)}")
        if (action or "kill") not in ACTIONS:
            raise ConfigError(f"failpoint {text!r}: action {action!r} is not one of {', '.join(ACTIONS)}")
        if count and not (count.isascii() and count.isdigit() and 0 < int(count) < 1 << 63):
            raise ConfigError(f"failpoint {text!r}: the count must be a positive integer, not {count!r}")
        parsed.append((NAMES.index(name), int(count or 1), ACTIONS[action or "kill"]))
    for point, fires_at, action_code in parsed:
        rules[<int> point] = Rule(n_hits=0, fires_at=fires_at, action=action_code)
        failpoints_armed = True


def disarm():
    """Takes back every rule."""
    global failpoints_armed
    failpoints_armed = False
    for point in range(N_FAILPOINTS):
        rules[<int> point] = Rule(n_hits=0, fires_at=0, action=ACTION_NONE)


def hits(str name not None):
    """How often an armed place was reached; 0 for one that is not armed."""
    return __atomic_load_n(&rules[<int> NAMES.index(name)].n_hits, __ATOMIC_RELAXED)


def reach(str name not None):
    """The place itself, for Python: returns, raises OSError with the rule's errno, or does not come back."""
    cdef int error
    if not failpoints_armed:
        return
    error = failpoint_hit(NAMES.index(name))
    if error:
        raise OSError(error, f"{os.strerror(error)} (failpoint {name})")


arm(os.environ.get("FEATURESTORE_FAILPOINT", ""))
