"""The numbers of batches: near each other while in flight, and the same each time for one source."""

from __future__ import annotations

import threading

import pytest

from featurestore.client.sequences import NEAR, Sequences, SourceSequences, Ticket

REMEMBERED = 1024  # by the store, below a producer's highest


def test_numbers_count_up_under_one_name() -> None:
    sequences = Sequences("p", 3, holds=True)
    tickets = [sequences.take() for _ in range(5)]
    assert [(ticket.producer, ticket.epoch, ticket.sequence) for ticket in tickets] == [
        ("p", 3, n) for n in range(1, 6)
    ]


def test_a_number_that_lags_is_never_overtaken_beyond_what_the_store_remembers() -> None:
    sequences = Sequences("p", 1, holds=True)
    lagging = sequences.take()
    others = []
    for _ in range(5000):
        ticket = sequences.take()
        others.append(ticket)
        sequences.give_back(ticket)
    assert max(one.sequence for one in others if one.producer == lagging.producer) < REMEMBERED
    assert {one.producer for one in others} == {"p", "p/1"}
    sequences.give_back(lagging)
    after = sequences.take()
    assert (after.producer, after.sequence) == ("p", NEAR + 1)


def test_what_is_held_is_in_flight_until_it_is_given_back() -> None:
    sequences = Sequences("p", 1, holds=True)
    held = [sequences.take() for _ in range(2500)]
    for ticket in held:
        sequences.hold(ticket)
    assert {ticket.producer for ticket in held} == {"p", "p/1", "p/2"}
    assert max(ticket.sequence for ticket in held) == NEAR
    sequences.give_back(Ticket("p", 2, 1))  # another client's
    assert sequences.take().producer == "p/2"
    sequences.give_back(held[0])
    assert sequences.take() == Ticket("p", 1, NEAR + 1)


def test_under_a_name_of_ones_own_nothing_is_held() -> None:
    sequences = Sequences("p", 1, holds=False)
    for n in range(1, 3000):
        ticket = sequences.take()
        assert ticket == Ticket("p", 1, n)
        sequences.hold(ticket)


def test_what_nobody_ever_finishes_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in each lane: then the lane goes on that has waited the longest, so that the newest are good."""
    monkeypatch.setattr("featurestore.client.sequences.MOST_LANES", 3)
    sequences = Sequences("p", 1, holds=True)
    highest: dict[str, int] = {}
    held: list[Ticket] = []
    for n in range(20 * NEAR):
        ticket = sequences.take()
        assert ticket.sequence == highest.get(ticket.producer, 0) + 1, "no number twice"
        highest[ticket.producer] = ticket.sequence
        if n % NEAR == 0:
            held.append(ticket)
            sequences.hold(ticket)
        else:
            sequences.give_back(ticket)
        for one in held[-2:]:
            assert highest[one.producer] - one.sequence < REMEMBERED
    assert set(highest) == {"p", "p/1", "p/2"}


def test_no_number_is_given_twice_to_threads() -> None:
    sequences = Sequences("p", 1, holds=True)
    taken: list[tuple[str, int]] = []

    def take_some() -> None:
        mine = [sequences.take() for _ in range(2000)]
        taken.extend((one.producer, one.sequence) for one in mine)

    threads = [threading.Thread(target=take_some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 8000


def test_a_sources_numbers_are_the_same_each_time_and_fit_in_what_is_remembered() -> None:
    runs = []
    for _ in range(2):
        numbers = SourceSequences("tx", 1)
        runs.append([numbers.take() for _ in range(3000)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 3000
    assert {one.sequence for one in runs[0]} == set(range(1, 1025))
