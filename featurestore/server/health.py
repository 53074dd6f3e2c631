"""grpc.health.v1.Health over grpcio; the native transport answers it by itself (host.CHECK, host.WATCH).

Watches take no thread: each is told by whoever changes something. So many may be open as the limits say,
apart from all other calls.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from featurestore.errors import LimitError
from featurestore.server.status import APPLIED, ERROR_CLASS

_Healthy = health_pb2.HealthCheckResponse


class Health(health.HealthServicer):  # type: ignore[misc,unused-ignore]
    """Health v1, whose watchers cannot hold the server up.

    The library's tells its watchers with its lock held, each until gRPC has sent the message: one that goes
    away meanwhile waits for that lock on the thread that would say so, and nothing moves any more. Here
    nothing is sent with the lock held, and at drain not on the thread that drains. Watchers are ended then:
    they never end their calls themselves, and would make every drain last for all of `drain_s`.
    """

    def __init__(self, services: Iterable[str], max_watches: int) -> None:
        super().__init__()
        self._known = {"", *services}
        for name in self._known:
            self.set(name, _Healthy.SERVING)
        self._max_watches = max_watches
        self._lock_of_watchers = threading.Lock()
        self._watchers: dict[Callable[[Any], None], bool] = {}  # how to send, and is it a service we know
        self._n_beginning = (
            0  # watches that are not among them yet: the first thing they are told goes out first
        )
        self._is_draining = False

    def Watch(self, request: Any, context: Any, send_response_callback: Any = None) -> None:
        send, is_known = send_response_callback, request.service in self._known

        def forget() -> None:
            with self._lock_of_watchers:
                self._watchers.pop(send, None)

        with self._lock_of_watchers:
            is_full = len(self._watchers) + self._n_beginning >= self._max_watches
            self._n_beginning += not is_full
        if is_full:
            context.set_trailing_metadata([(APPLIED, "no"), (ERROR_CLASS, LimitError.__name__)])
            context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
            context.set_details(
                f"{self._max_watches} watches of the server's health are open, as many as may be; share one, "
                "or ask with Check"
            )
            send(None)
            return
        if not self._is_draining:
            send(_Healthy(status=_Healthy.SERVING if is_known else _Healthy.SERVICE_UNKNOWN))
        with self._lock_of_watchers:
            self._n_beginning -= 1
            is_draining = self._is_draining
            if not is_draining:
                self._watchers[send] = is_known
        if is_draining:
            self._end({send: is_known})
        elif not context.add_callback(forget):  # the call is over
            forget()

    def drain(self) -> None:
        self.enter_graceful_shutdown()
        with self._lock_of_watchers:
            self._is_draining = True
            watchers = dict(self._watchers)
        threading.Thread(target=self._end, args=(watchers,), name="featurestore-health", daemon=True).start()

    @staticmethod
    def _end(watchers: dict[Callable[[Any], None], bool]) -> None:
        for send, is_known in watchers.items():
            if is_known:
                send(_Healthy(status=_Healthy.NOT_SERVING))
            send(None)
