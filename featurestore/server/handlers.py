"""What Python's handlers share on either transport: how they are added, and how a call ends that cannot be
answered.

A message that cannot be read is INVALID_ARGUMENT, in one line to its sender and none in the log: anybody can
send it, as often as they like. What nobody raised on purpose is INTERNAL, and logged by the kinds of errors
and the places they passed, without their words, which may hold a key.
"""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeAlias

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError

from featurestore.errors import FeatureStoreError, InvalidEventError
from featurestore.server.status import APPLIED, ERROR_CLASS, Status, applied_of, status_of, words_of

_log = logging.getLogger("featurestore.server")
_codes = {code.value[0]: code for code in grpc.StatusCode}

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # quoted: the class takes no arguments when it runs


class Aborted(Exception):
    """A handler has ended its call by its context: what our own transport raises for it."""


class Handlers(Protocol):
    """What methods are added to: a transport. Generated code of newer compilers gives the same handlers
    a second time, by `add_registered_method_handlers`, which every transport lets pass.
    """

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[Any]) -> None: ...
    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, Handler]
    ) -> None: ...


class OnGrpcio:
    """A grpc.Server as what methods are added to."""

    def __init__(self, server: grpc.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[Any]) -> None:
        for service, handlers in methods_of(generic_rpc_handlers):
            add_methods(self._server, service, handlers)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, Handler]
    ) -> None:
        pass


@dataclass(frozen=True)
class _CallOf(grpc.HandlerCallDetails):  # type: ignore[misc,unused-ignore]
    """By what a generic handler is asked for one of its methods."""

    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...] = ()


def methods_of(generic_rpc_handlers: Iterable[Any]) -> Iterator[tuple[str, dict[str, Handler]]]:
    """Of each its service and the handlers of those of its methods that it has, guarded."""
    for each in generic_rpc_handlers:
        service = each.service_name()
        methods = descriptor_pool.Default().FindServiceByName(service).methods
        found = {method.name: each.service(_CallOf(f"/{service}/{method.name}")) for method in methods}
        yield service, {name: guarded(handler) for name, handler in found.items() if handler is not None}


def add_methods(server: grpc.Server, service: str, handlers: Mapping[str, Handler]) -> None:
    """To grpcio, also by name, which it finds faster."""
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_registered_method_handlers(service, dict(handlers))


def abort(context: grpc.ServicerContext, error: BaseException) -> NoReturn:
    """Ends the call with the status, the words and the class of `error`, and what it leaves known. What
    nobody raised on purpose is logged.
    """
    status = status_of(error)
    if status is Status.INTERNAL:
        log_unexpected(error)
    trailer = [(APPLIED, applied_of(error))]
    if isinstance(error, FeatureStoreError):
        trailer.append((ERROR_CLASS, type(error).__name__))
    context.set_trailing_metadata(trailer)
    context.abort(_codes[status], words_of(error))
    raise AssertionError("abort returned")


def log_unexpected(error: BaseException) -> None:
    """By kind and place, with those of its causes."""
    told: list[str] = []
    each: BaseException | None = error
    while each is not None and len(told) < 4:  # a chain has no end of its own
        told.append(f"{type(each).__name__}\n{''.join(traceback.format_tb(each.__traceback__))}")
        each = each.__cause__ or each.__context__
    _log.error("a call failed: %s", "caused by ".join(told).rstrip())


class _Unreadable:
    """In the place of a message that could not be read."""

    def __init__(self, n_bytes: int) -> None:
        self.error = InvalidEventError(f"the request's {n_bytes} bytes are not the message of this method")
        self.error.applied = False


def guarded(handler: Handler) -> Handler:
    """The same handler, whose calls end as this module says, whatever it is sent and whatever it raises."""
    name = f"{'stream' if handler.request_streaming else 'unary'}_"
    name += "stream" if handler.response_streaming else "unary"
    behaviour = getattr(handler, name)
    take = handler.request_deserializer

    def read(message: bytes) -> Any:
        try:
            return message if take is None else take(message)
        except (DecodeError, ValueError):
            return _Unreadable(len(message))

    def readable(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for request in requests:
            if isinstance(request, _Unreadable):
                abort(context, request.error)
            yield request

    def begun(request: Any, context: grpc.ServicerContext, *more: Any) -> Any:
        if handler.request_streaming:
            request = readable(request, context)
        elif isinstance(request, _Unreadable):
            abort(context, request.error)
        return behaviour(request, context, *more)

    @functools.wraps(behaviour)  # with what says which threads it runs on
    def answered(request: Any, context: grpc.ServicerContext, *more: Any) -> Any:
        with _Ending(context):
            return begun(request, context, *more)

    @functools.wraps(behaviour)
    def streamed(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        with _Ending(context):
            yield from begun(request, context)

    is_iterated = handler.response_streaming and not getattr(behaviour, "experimental_non_blocking", False)
    make: Callable[..., Handler] = getattr(grpc, f"{name}_rpc_method_handler")
    return make(
        streamed if is_iterated else answered,
        request_deserializer=read,
        response_serializer=handler.response_serializer,
    )


class _Ending:
    """Ends the call with what is raised inside, unless that is how it has ended already."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, Aborted | grpc.RpcError):
            return
        if type(error) is Exception and not error.args:  # how grpcio's context ends a call
            return
        abort(self._context, error)
