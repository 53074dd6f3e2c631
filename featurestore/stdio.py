"""Descriptors 0, 1 and 2: never a file of ours.

Whatever a process runs may write to 2 at any time (a library's log, an assertion, the interpreter) and means
standard error. Where one of the three is closed, as whoever starts a process may leave it, the next file that
is opened takes its place, and what is meant for people goes into that file. So before a file of ours is
opened and stays open, /dev/null stands where something is missing.
"""

from __future__ import annotations

import fcntl
import os

from featurestore.errors import StorageError

STANDARD = (0, 1, 2)


def fill_standard_descriptors() -> None:
    """Opens /dev/null where 0, 1 or 2 is closed, also for processes that are started from here.

    Raises StorageError where that cannot be: nothing of a store may be opened then.
    """
    while not all(map(_is_open, STANDARD)):
        try:
            fd = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: 0 is read, 1 and 2 are written
        except OSError as error:
            raise StorageError(
                f"standard input, output or error is closed, and {os.devnull} cannot be opened in its place: "
                f"{error.strerror}; start it with all three open"
            ) from error
        if fd in STANDARD:
            os.set_inheritable(fd, True)
        else:
            os.close(fd)  # another thread has filled the place


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True
