"""Descriptors: as many as the system allows, and none of the store's for clients.

A journal that cannot open its next segment ends the server. So what connections may take is what is left when
the store and the listeners have theirs, and more than that is refused at accept, where it harms nobody else.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import resource

from featurestore.config import Limits

# For the store (segments, rows, checkpoints, backups), the admin and metrics listeners, connections that were
# told to go for others and have not gone yet, and what libraries open for a moment.
KEPT = 256
# More than this is of no use to anybody, and some systems have no limit at all.
MOST = 1 << 20

_log = logging.getLogger("featurestore.server")


def raise_limit() -> None:
    """Takes all that this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def clipped(limits: Limits) -> Limits:
    """With no more connections than there are descriptors for, beside those that are open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits
    n_open = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH208, PTH112
    left = max(1, soft - n_open - min(KEPT, soft // 4))
    if left >= limits.max_connections:
        return limits
    _log.warning(
        "max_connections is %d instead of %d: the process may have %d descriptors, of which the store and "
        "the listeners keep theirs; raise the hard limit (ulimit -n, LimitNOFILE=) for more",
        left,
        limits.max_connections,
        soft,
    )
    return dataclasses.replace(limits, max_connections=left)
