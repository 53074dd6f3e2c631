"""What a producer may ask of itself: where the store is, to go on from there."""

from __future__ import annotations

import grpc
import pytest
from house import House, batch, observe, play, status_of

from featurestore.v1 import admin_service_pb2 as admin_pb
from featurestore.v1 import registry_service_pb2 as registry


def get_producer(house: House, name: str) -> registry.GetProducerResponse:
    return house.registry.GetProducer(registry.GetProducerRequest(name=name))


def bits(reply: registry.GetProducerResponse) -> set[int]:
    """The sequences that were seen."""
    return {
        reply.sequence - 8 * at - bit
        for at, byte in enumerate(reply.seen)
        for bit in range(8)
        if byte >> bit & 1
    }


def test_a_producer_asks_what_the_store_has_seen_of_it(house: House) -> None:
    for sequence in (0, 3, 1_200, 1_190, 1_191):
        house.hot.Ingest(batch(play(), producer="orders/3", epoch=2, sequence=sequence))
    reply = get_producer(house, "orders/3")
    assert (reply.epoch, reply.sequence, reply.lowest) == (2, 1_200, 176)
    assert bits(reply) == {1_200, 1_191, 1_190}
    assert len(reply.seen) == 2
    assert reply.HasField("heard_ms")
    house.hot.Ingest(batch(play(), producer="orders/3", epoch=2, sequence=176))
    reply = get_producer(house, "orders/3")
    assert bits(reply) == {1_200, 1_191, 1_190, 176}
    assert len(reply.seen) == 129


def test_what_it_is_told_is_durable(house: House) -> None:
    applied = observe(play(), producer="orders/3", sequence=7, ack="ACK_APPLIED")
    position = house.hot.Observe(applied).position
    get_producer(house, "orders/3")
    assert house.engine.journal.durable_position == position


def test_after_a_reset_nothing_below_it_can_be_told(house: House) -> None:
    house.hot.Ingest(batch(play(), producer="p", epoch=1, sequence=5))
    with house.admin() as admin:
        admin.ResetProducer(admin_pb.ResetProducerRequest(name="p", epoch=1, sequence=9))
    reply = get_producer(house, "p")
    assert (reply.epoch, reply.sequence, reply.lowest, reply.seen) == (1, 9, 10, b"")


@pytest.mark.parametrize("name", ["", "nobody", "n" * 300])
def test_of_nobody_nothing_is_remembered(house: House, name: str) -> None:
    code, words = status_of(lambda: get_producer(house, name))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "is remembered: it has written nothing" in words
