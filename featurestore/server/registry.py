"""What the store serves, in names: the plan as a GetSchemaResponse, made once per schema and sent as bytes.
And what it remembers of a producer.

It changes with the plan and the dispatcher's names in one step (an Engine plan listener), so a fingerprint
that is read here is the one that the next reply carries, unless the schema changed in between: then the reply
carries another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc

from featurestore.engine import Engine
from featurestore.plan import DerivedPlan, EventPlan, FeaturePlan, FieldPlan, Kind, Plan, ServicePlan
from featurestore.server.handlers import Handlers, abort
from featurestore.server.names import another_service
from featurestore.server.status import APPLIED
from featurestore.v1 import registry_service_pb2 as pb

SERVICE = "featurestore.v1.RegistryService"

_UNITS = {
    "s": pb.TIME_UNIT_SECONDS,
    "ms": pb.TIME_UNIT_MILLISECONDS,
    "us": pb.TIME_UNIT_MICROSECONDS,
    "ns": pb.TIME_UNIT_NANOSECONDS,
    "iso": pb.TIME_UNIT_ISO,
}


def describe(plan: Plan) -> pb.GetSchemaResponse:
    """The whole schema."""
    return pb.GetSchemaResponse(
        name=plan.name,
        version=plan.version,
        source=plan.source,
        event_types=[_event_type(event) for event in plan.events],
        entities=[pb.EntitySchema(parts=entity.parts) for entity in plan.entities],
        services=[_service(plan, service) for service in plan.services],
    )


def _event_type(event: EventPlan) -> pb.EventTypeSchema:
    sources = {one.field: one.path for one in event.sources}
    return pb.EventTypeSchema(
        name=event.name,
        time_field=event.time.field,
        time_unit=_UNITS[event.time.unit],
        fields=[
            pb.FieldSchema(name=field.name, kind=_kind(field), source=sources.get(field.name, ""))
            for field in event.fields
        ],
        lateness_ms=event.lateness_ms,
        id_field="" if event.id_field is None else event.fields[event.id_field].name,
        dedupe_ms=event.dedupe_ms,
        time_source=sources.get(event.time.field, ""),
        time_format=event.time_format or "",
    )


def _kind(field: FieldPlan) -> pb.FieldKind:
    if field.kind is Kind.NUMBER:
        return pb.FIELD_KIND_NUMBER
    return pb.FIELD_KIND_KEY if field.is_key else pb.FIELD_KIND_STRING


def _service(plan: Plan, service: ServicePlan) -> pb.ServiceSchema:
    features = [_feature(plan, plan.all_features[index]) for index in service.features]
    return pb.ServiceSchema(
        name=service.name,
        fingerprint=int(service.fingerprint, 16),
        features=features,
        parts=sorted({part for feature in features for part in feature.parts}),
    )


def _feature(plan: Plan, feature: FeaturePlan | DerivedPlan) -> pb.FeatureSchema:
    if isinstance(feature, DerivedPlan):
        return _derived(plan, feature)
    view = plan.views[feature.view]
    return pb.FeatureSchema(
        name=feature.name,
        aggregate=pb.Aggregate.Name(
            int(feature.aggregate) + 1
        ),  # the proto's numbers leave 0 for unspecified
        field=plan.field_of(feature) or "",
        window_ms=feature.window_ms,
        offset_ms=view.offset_ms,
        parts=plan.entities[view.entity].parts,
        excludes_self=feature.exclude_self,
        half_life_ms=view.half_life_ms,
        k=0 if plan.list_of(feature) is None else view.k,
        confidence=plan.confidence_of(feature),
    )


def _derived(plan: Plan, feature: DerivedPlan) -> pb.FeatureSchema:
    needed = [
        _feature(plan, plan.features[index])
        for index in plan.needed_for(feature.operands)
        if index < len(plan.features)
    ]
    return pb.FeatureSchema(
        name=feature.name,
        aggregate=pb.AGGREGATE_DERIVED,
        parts=sorted({part for each in needed for part in each.parts}),
        excludes_self=all(each.excludes_self for each in needed),
        formula=feature.source,
        by_zero=feature.by_zero,
        confidence=plan.confidence_of(feature),
    )


@dataclass(frozen=True)
class _Prepared:
    """Of one plan."""

    plan: Plan
    whole: pb.GetSchemaResponse
    replies: dict[str, bytes]  # by the name of a service that to a request for it; by "", the whole schema


def _only(whole: pb.GetSchemaResponse, service: pb.ServiceSchema) -> pb.GetSchemaResponse:
    """The schema with one of its services, or with what one was."""
    one = pb.GetSchemaResponse()
    one.CopyFrom(whole)
    del one.services[:]
    one.services.add().CopyFrom(service)
    return one


class Registry:
    """RegistryService, of the plan being served."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prepared: _Prepared
        engine.add_plan_listener(self)

    def close(self) -> None:
        self._engine.remove_plan_listener(self)

    def prepare(self, plan: Plan) -> _Prepared:
        whole = describe(plan.declared)
        replies = {"": whole.SerializeToString()}
        for service in whole.services:
            replies[service.name] = _only(whole, service).SerializeToString()
        return _Prepared(plan, whole, replies)

    def adopt(self, prepared: _Prepared) -> None:
        self._prepared = prepared

    def add_to(self, server: Handlers) -> None:
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "GetSchema": grpc.unary_unary_rpc_method_handler(
                self._get_schema, request_deserializer=pb.GetSchemaRequest.FromString
            ),
            "GetProducer": grpc.unary_unary_rpc_method_handler(
                self._get_producer,
                request_deserializer=pb.GetProducerRequest.FromString,
                response_serializer=pb.GetProducerResponse.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def _get_schema(self, request: pb.GetSchemaRequest, context: grpc.ServicerContext) -> bytes:
        prepared = self._prepared
        replies = prepared.replies
        plan = prepared.plan
        vector = None
        if request.service and request.HasField("fingerprint"):
            vector = plan.vector(request.service, request.fingerprint)
        if request.service not in replies and vector is None:
            known = ", ".join(sorted(name for name in replies if name)) or "none"
            context.set_trailing_metadata([(APPLIED, "no")])
            context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"there is no service {request.service[:100]!r}; there is {known[:1000]}",
            )
        if not request.HasField("fingerprint"):
            return replies[request.service]
        if vector is None:
            abort(context, another_service(request.service, plan, request.fingerprint))
        was: bytes = _only(prepared.whole, _service(plan, plan.served[vector])).SerializeToString()
        return was

    def _get_producer(
        self, request: pb.GetProducerRequest, context: grpc.ServicerContext
    ) -> pb.GetProducerResponse:
        try:
            found = self._engine.producer(request.name)
        except Exception as error:
            abort(context, error)
        if found is None:
            context.set_trailing_metadata([(APPLIED, "no")])
            context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"no producer {request.name[:100]!r} is remembered: it has written nothing, or nothing for 7 "
                "days (15 minutes if its name is one that a client made up)",
            )
            raise AssertionError("abort returned")
        seen = sum(1 << (found.sequence - sequence) for sequence in found.seen)
        return pb.GetProducerResponse(
            epoch=found.epoch,
            sequence=found.sequence,
            lowest=found.lowest,
            seen=seen.to_bytes((seen.bit_length() + 7) // 8, "little"),
            heard_ms=found.heard_ms,
        )
