"""Which threads give way where cores are fewer: those whose work may take its time.

Linux has a niceness for each thread. Threads that answer calls keep that of the process; whoever gives way
gets a quarter of a core beside one of them, or a tenth, and all of it as soon as that one sleeps.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

LARGE_MESSAGES = 5  # of which each takes as long as thousands of calls
HANDSHAKES = 5  # of TLS: a signature each, for whoever has asked for nothing yet
SCRAPES = 5  # of metrics, by whoever reaches their address, as often as he likes
UPKEEP = 10  # checkpoints, sweeps, backups


def give_way(by: int) -> None:
    """Makes the calling thread nicer, and the threads that it will start. It cannot take it back."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + by)


def nicely(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises, done by a thread that gives way as upkeep does."""
    with ThreadPoolExecutor(1, "featurestore-upkeep", give_way, (UPKEEP,)) as pool:
        return pool.submit(work).result()
