"""The numbers of batches: near each other while in flight, and the same each time for one source."""

from __future__ import annotations

import threading

from featurestore.client.sequences import NEAR, Sequences, SourceSequences

REMEMBERED = 1024  # by the store, below a producer's highest


def test_numbers_count_up_under_one_name() -> None:
    sequences = Sequences("p", 3)
    tickets = [sequences.take() for _ in range(5)]
    assert [(ticket.producer, ticket.epoch, ticket.sequence) for ticket in tickets] == [
        ("p", 3, n) for n in range(1, 6)
    ]


def test_a_number_that_lags_is_never_overtaken_beyond_what_the_store_remembers() -> None:
    sequences = Sequences("p", 1)
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


def test_no_number_is_given_twice_to_threads() -> None:
    sequences = Sequences("p", 1)
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
