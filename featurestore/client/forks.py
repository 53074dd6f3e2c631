"""What a fork leaves of clients: gunicorn --preload, multiprocessing and Celery fork where there are some.

A child must not write under its parent's names and numbers: the store would take its events for the parent's,
and answer DUPLICATE. And it has none of the parent's connections. Whoever holds either is told in the child,
before anything else runs there (`watch`), and makes its own.

gRPC works in a child only where its handlers ran, which they do only while no thread of the parent is in it.
So a fork waits for the calls of Clients that are under way, and calls that begin wait for the fork (`CALL`).
An ingest is too long to be waited for (`LONG_CALL`), and gRPC for asyncio is in it for good once it was used.
Children of those would hang or be aborted in some call: there `begin` raises, and says what to do instead.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from featurestore.errors import ConfigError

T = TypeVar("T")

LONGEST_WAIT_S = 5.0  # of a fork for calls
NOT_SUPPORTED = ("0", "f", "false", "n", "no")  # GRPC_ENABLE_FORK_SUPPORT, as gRPC reads it


class _Process:
    """What of gRPC this process and those before it, of which it was forked, have been in."""

    def __init__(self) -> None:
        self.watched: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
        self._is_begun = self._is_aio_begun = self._is_supported = False
        self._lost: str | None = None  # why no channel works here
        self._begin()

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._n_calls = self._n_long = 0
        self._is_forking = False

    def begin(self, *, aio: bool) -> None:
        if self._lost is not None:
            error = ConfigError(
                f"gRPC works in no process that was forked {self._lost}: make the first call in the child, "
                "or start the child anew, as multiprocessing does with the method spawn or forkserver"
            )
            error.applied = False
            raise error
        if not self._is_begun:
            self._is_begun = True
            support = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower()
            self._is_supported = support not in NOT_SUPPORTED
        self._is_aio_begun |= aio

    def before(self) -> None:
        with self._changed:
            self._is_forking = True
            self._changed.wait_for(lambda: not self._n_calls, LONGEST_WAIT_S)

    def after_in_parent(self) -> None:
        with self._changed:
            self._is_forking = False
            self._changed.notify_all()

    def after_in_child(self) -> None:
        if self._lost is None and self._is_begun:
            if not self._is_supported:
                self._lost = "after its first call with GRPC_ENABLE_FORK_SUPPORT=0"
            elif self._is_aio_begun:
                self._lost = "after an AsyncClient had been used"
            elif self._n_calls or self._n_long:
                self._lost = (
                    "while an ingest, or a call of more than 5 seconds, was under way in another thread"
                )
        self._begin()
        for one, forked in list(self.watched.items()):
            forked(one)

    def enter(self, is_long: bool) -> None:
        with self._changed:
            if self._is_forking:
                self._changed.wait_for(lambda: not self._is_forking)
            if is_long:
                self._n_long += 1
            else:
                self._n_calls += 1

    def leave(self, is_long: bool) -> None:
        with self._changed:
            if is_long:
                self._n_long -= 1
            else:
                self._n_calls -= 1
                if self._is_forking:
                    self._changed.notify_all()


_process = _Process()
os.register_at_fork(
    before=_process.before,
    after_in_parent=_process.after_in_parent,
    after_in_child=_process.after_in_child,
)


class _Call:
    """Around what is in gRPC, so that no fork happens meanwhile, or its child is told."""

    def __init__(self, is_long: bool) -> None:
        self._is_long = is_long

    def __enter__(self) -> None:
        _process.enter(self._is_long)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _process.leave(self._is_long)


CALL = _Call(is_long=False)  # which a fork waits for
LONG_CALL = _Call(is_long=True)  # which it does not


def watch(one: T, forked: Callable[[T], None]) -> None:
    """forked(one) is called in each process that is forked while `one` lives, in the only thread there is:
    what others held locked is so for good.
    """
    _process.watched[one] = forked


def begin(*, aio: bool = False) -> None:
    """Before a channel is made. Raises ConfigError in a child in which it would not work."""
    _process.begin(aio=aio)
