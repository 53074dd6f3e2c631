"""The encoder against the official runtime: what it writes is, byte for byte, what that would write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featurestore import errors
from featurestore.server import replies
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import types_pb2 as types

ACCEPTED, LATE, DUPLICATE = 0, 1, 2
u64 = st.integers(0, 2**64 - 1)
acks = st.sampled_from([0, 1, 2])


@st.composite
def vectors(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """(values, the rest) as the engine would hand them over."""
    shape = (draw(st.integers(0, 4)), draw(st.integers(0, 40)))
    values = draw(hnp.arrays(np.float64, shape, elements=st.floats(width=64)))
    codes = draw(st.sampled_from([[1], [1, 2], [1, 3], [1, 2, 3, 4]]))
    rest: dict[str, Any] = {
        "statuses": draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from(codes))),
        "fingerprint": draw(u64),
        "confidence": draw(st.sampled_from([1.0, 0.99])),
    }
    if draw(st.booleans()):
        rest["lower"], rest["upper"] = values.copy(), values.copy()
        if values.size and draw(st.booleans()):
            at = draw(st.integers(0, values.size - 1))
            rest[draw(st.sampled_from(["lower", "upper"]))].flat[at] = 12345.678
    if draw(st.booleans()):
        rest["coverage"] = draw(hnp.arrays(np.float32, shape, elements=st.floats(0, 1, width=32)))
    return values, rest


def official(values: np.ndarray[Any, Any], rest: dict[str, Any]) -> Any:
    """The Vectors message that the proto's comments ask for."""
    message = types.Vectors(fingerprint=rest["fingerprint"], rows=values.shape[0], width=values.shape[1])
    message.values.extend(values.ravel().tolist())
    statuses = rest["statuses"].ravel().tolist()
    if any(status != types.FEATURE_STATUS_PRESENT for status in statuses):
        message.statuses = bytes(statuses)
    if types.FEATURE_STATUS_WARMING in statuses and "coverage" in rest:
        message.coverage.extend(rest["coverage"].ravel().tolist())
    if "lower" in rest:
        lower, upper = rest["lower"], rest["upper"]
        if np.array_equal(lower, values, equal_nan=True) and np.array_equal(upper, values, equal_nan=True):
            message.bounds = types.BOUNDS_EXACT
        else:
            message.lower.extend(lower.ravel().tolist())
            message.upper.extend(upper.ravel().tolist())
            certain = rest["confidence"] == 1.0
            message.bounds = types.BOUNDS_CERTAIN if certain else types.BOUNDS_CONFIDENCE
            message.confidence = 0.0 if certain else rest["confidence"]
    return message


@settings(max_examples=300, deadline=None)
@given(vectors(), st.one_of(st.none(), st.just(0), st.integers(-(2**63), 2**63 - 1)), st.booleans())
def test_a_read_reply_is_what_the_official_runtime_writes(
    made: Any, now_ms: int | None, streamed: bool
) -> None:
    values, rest = made
    reply: Any = pb.GetFeaturesResponse(vectors=official(values, rest), now_ms=now_ms)
    if streamed:
        reply = pb.GetFeaturesStreamResponse(read=reply)
    assert replies.encode_read(values, now_ms=now_ms, streamed=streamed, **rest) == reply.SerializeToString()


names = st.one_of(st.none(), st.text(min_size=1, max_size=200))


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(st.none(), vectors()),
    st.sampled_from([0, 1, 2, 16, 22, 25]),
    st.booleans(),
    st.lists(st.text(min_size=1, max_size=200), max_size=16),
    st.tuples(acks, u64, names),
)
def test_an_observe_reply_is_what_the_official_runtime_writes(
    made: Any, outcome: int, partly_late: bool, shed: list[str], rest_of: tuple[int, int, str | None]
) -> None:
    ack, position, field = rest_of
    on_wire = types.OUTCOME_ACCEPTED if outcome == ACCEPTED else outcome
    reply = pb.ObserveResponse(outcome=on_wire, ack=ack, position=position, partly_late=partly_late)
    reply.shed.extend(shed)
    reply.field = field if field and outcome >= 16 else ""
    more = {
        "partly_late": partly_late,
        "shed": [name.encode() for name in shed],
        "field": field and field.encode(),
    }
    if made is None:
        encoded = replies.encode_observe(outcome, ack, position, **more)
        assert encoded == reply.SerializeToString()
        return
    values, rest = made
    reply.vectors.CopyFrom(official(values, rest))
    encoded = replies.encode_observe(outcome, ack, position, values, **more, **rest)
    assert encoded == reply.SerializeToString()


@settings(max_examples=200, deadline=None)
@given(
    outcomes=hnp.arrays(np.uint8, st.integers(0, 400), elements=st.sampled_from([0, 0, 0, 1, 2, 16, 20, 25])),
    ack=acks,
    position=u64,
    sequence=u64,
    partly_late=st.integers(0, 2**32 - 1),
    shed=st.integers(0, 2**32 - 1),
    duplicate_batch=st.booleans(),
    streamed=st.booleans(),
    max_refusals=st.sampled_from([0, 0, 1, 7, 100, 2**64 - 1]),
    field=names,
)
def test_an_ingest_reply_is_what_the_official_runtime_writes(
    outcomes: Any,
    *,
    ack: int,
    position: int,
    sequence: int,
    partly_late: int,
    shed: int,
    duplicate_batch: bool,
    streamed: bool,
    max_refusals: int,
    field: str | None,
) -> None:
    refused = [(i, code) for i, code in enumerate(outcomes.tolist()) if code >= 16]
    reply: Any = pb.IngestResponse(
        accepted=int((outcomes == ACCEPTED).sum()),
        late=int((outcomes == LATE).sum()),
        duplicate=int((outcomes == DUPLICATE).sum()),
        refused=len(refused),
        refusals=[
            pb.Refusal(index=i, reason=code, field=field) for i, code in refused[: max_refusals or 100]
        ],
        position=position,
        ack=ack,
        duplicate_batch=duplicate_batch,
        sequence=sequence,
        partly_late=partly_late,
        shed=shed,
    )
    if streamed:
        reply = pb.IngestStreamResponse(batch=reply)
    more = {
        "partly_late": partly_late,
        "shed": shed,
        "duplicate_batch": duplicate_batch,
        "streamed": streamed,
        "max_refusals": max_refusals,
        "field": field and field.encode(),
    }
    encoded = replies.encode_ingest(outcomes, ack, position, sequence, **more)
    assert encoded == reply.SerializeToString()


def test_refusals_far_into_a_batch_keep_their_index() -> None:
    outcomes = np.zeros(300_000, np.uint8)
    outcomes[[0, 127, 128, 16_384, 299_999]] = [16, 17, 18, 19, 25]
    reply = pb.IngestResponse.FromString(replies.encode_ingest(outcomes, 2, 1, 1))
    assert [(r.index, r.reason) for r in reply.refusals] == [
        (0, 16),
        (127, 17),
        (128, 18),
        (16_384, 19),
        (299_999, 25),
    ]
    assert (reply.accepted, reply.refused) == (299_995, 5)


def test_a_reply_past_its_limit_is_refused_and_one_byte_less_is_not() -> None:
    values = np.ones((10, 10))
    statuses = np.ones((10, 10), np.uint8)
    size = len(replies.encode_read(values, statuses=statuses))
    assert len(replies.encode_read(values, statuses=statuses, max_bytes=size)) == size
    with pytest.raises(errors.LimitError, match=f"larger than {size - 1} bytes"):
        replies.encode_read(values, statuses=statuses, max_bytes=size - 1)


def test_arrays_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        replies.encode_read(np.ones((2, 3)), statuses=np.ones((3, 2), np.uint8))
    with pytest.raises(ValueError, match="shape"):
        replies.encode_read(
            np.ones((2, 3)), statuses=np.ones((2, 3), np.uint8), lower=np.ones((2, 2)), upper=np.ones((2, 3))
        )
