"""A length that a few bytes claim must not be believed before it is checked: no allocation out of proportion.

Where the address space can be limited, an attempt to take more than `budget_bytes` fails there and then, as
MemoryError. A sanitizer reserves terabytes for itself, so that there its own limit does the same
(`max_allocation_size_mb`, set by `.ci/checked`).
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

SANITIZED = "libasan" in Path("/proc/self/maps").read_text(encoding="utf-8")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def limited(budget_bytes: int) -> Iterator[None]:
    """Inside, the process cannot grow by more than this."""
    if SANITIZED:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with Path("/proc/self/statm").open(encoding="ascii") as statm:
        mapped_bytes = int(statm.read().split()[0]) * _PAGE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes + budget_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
