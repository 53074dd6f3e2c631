"""GetHeaviest: the lists behind shares and entropies, raw values with their counts.

Rare, and not on the hot path: one key set a call, on the threads of reads. Consistent per key. Counted with
the hot methods.
"""

from __future__ import annotations

import struct
import time
from typing import Any

import grpc

from featurestore.engine import Engine
from featurestore.errors import UnknownNameError
from featurestore.plan import Kind, Plan
from featurestore.server.admin import key_texts
from featurestore.server.dispatcher import Dispatcher
from featurestore.server.grpc_front import SERVICE
from featurestore.server.handlers import Handlers, abort
from featurestore.server.names import another_service
from featurestore.server.status import Status, status_of
from featurestore.v1 import feature_store_service_pb2 as pb


class Heaviest:
    def __init__(self, engine: Engine, dispatcher: Dispatcher) -> None:
        self._engine, self._dispatcher = engine, dispatcher

    def add_to(self, server: Handlers) -> None:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetHeaviest": grpc.unary_unary_rpc_method_handler(
                self._get,
                request_deserializer=pb.GetHeaviestRequest.FromString,
                response_serializer=pb.GetHeaviestResponse.SerializeToString,
            )
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def _get(self, request: pb.GetHeaviestRequest, context: grpc.ServicerContext) -> pb.GetHeaviestResponse:
        began_ns = time.monotonic_ns()
        try:
            response = self._read(request)
        except Exception as error:
            self._dispatcher.count_heaviest(began_ns, status_of(error))
            abort(context, error)
        self._dispatcher.count_heaviest(began_ns, Status.OK)
        return response

    def _read(self, request: pb.GetHeaviestRequest) -> pb.GetHeaviestResponse:
        parts = {name: text.encode() for name, text in key_texts(request.key_set.parts).items()}
        as_of = request.as_of_ms if request.HasField("as_of_ms") else None
        while True:
            plan = self._engine.state.plan
            names = [service.name for service in plan.services]
            if request.service not in names:
                known = ", ".join(names) or "none"
                raise UnknownNameError(
                    f"there is no service {request.service[:100]!r}; there is {known[:1000]}"
                )
            wanted = request.fingerprint if request.HasField("fingerprint") else None
            service = plan.vector(request.service, wanted)
            if service is None:
                raise another_service(request.service, plan, request.fingerprint)
            at_ms, found = self._engine.lists(service, parts, as_of=as_of)
            if self._engine.state.plan is plan:  # else its numbers may be another schema's
                return _response(plan, at_ms, found)


def _response(plan: Plan, at_ms: int, found: list[Any]) -> pb.GetHeaviestResponse:
    response = pb.GetHeaviestResponse(read_at_ms=at_ms)
    seen = set()
    for index, status, coverage, total, rest_upper, values in found:
        feature = plan.features[index]
        name = plan.list_of(feature)
        if name is None or name in seen:  # hours of day are no values; share and entropy have one list
            continue
        seen.add(name)
        view = plan.views[feature.view]
        is_number = plan.events[view.event].fields[view.values[0]].kind is Kind.NUMBER
        each = response.lists.add(
            name=name,
            status=status,
            coverage=coverage,
            rest_upper=rest_upper,
            total=total[0],
            total_lower=total[1],
            total_upper=total[2],
        )
        for text, hash_, count, lower, upper in values:
            value = each.values.add(count=count, lower=lower, upper=upper, hash=hash_)
            if text is not None and is_number:
                (value.number,) = struct.unpack("<d", text)
            elif text is not None:
                value.text = text.decode(errors="replace")
    return response
