"""Who stands out, on vectors small enough to judge by eye."""

from __future__ import annotations

import numpy as np

from featurestore.client import Vectors
from featurestore.demo.logs import Watched
from featurestore.demo.scout import groups

A, B = Watched("v.a", "do a"), Watched("v.b", "do b")


def vectors(*rows):
    values = np.array(rows, np.float64)
    return Vectors(("v.a", "v.b"), values, np.ones_like(values, np.uint8), np.ones_like(values, np.float32))


def crowd(n=40):
    return [f"quiet-{i}" for i in range(n)], [(1.0, 1.0)] * n


def test_an_address_is_judged_at_its_peak_and_the_first_event_that_reached_it():
    names, rows = crowd()
    made = vectors(*rows, (5, 1), (9, 1), (9, 1), (2, 1))
    (group,) = groups([*names, "x", "x", "x", "x"], made, [A, B], 3)
    assert group.watched is A
    (peak,) = group.peaks
    assert (peak.address, peak.value, peak.event) == ("x", 9.0, 41)


def test_usual_is_what_95_of_100_addresses_never_exceed_however_many_events_they_have():
    names = [f"n-{i}" for i in range(101)]
    made = vectors(*[(float(i), 0.0) for i in range(101)], *[(0.0, 0.0)] * 500)
    (group,) = groups([*names, *["n-0"] * 500], made, [A], 100)
    assert group.usual == 95
    assert [peak.value for peak in group.peaks] == [100, 99, 98, 97, 96]


def test_at_most_n_for_each_value_the_greatest_first():
    names, rows = crowd(100)
    made = vectors(*rows, (7, 1), (9, 1), (8, 1))
    (group,) = groups([*names, "x", "y", "z"], made, [A], 2)
    assert [peak.address for peak in group.peaks] == ["y", "z"]


def test_an_address_is_named_once_under_the_first_value_it_stands_out_by():
    names, rows = crowd(100)
    made = vectors(*rows, (9, 9), (1, 5))
    first, second = groups([*names, "both", "b-only"], made, [A, B], 3)
    assert [peak.address for peak in first.peaks] == ["both"]
    assert [peak.address for peak in second.peaks] == ["b-only"]


def test_a_value_that_is_not_there_is_no_reading():
    names, rows = crowd()
    made = vectors(*rows, (np.nan, 1), (np.nan, 1))
    assert groups([*names, "x", "y"], made, [A], 3) == ()
    assert groups(["x"], vectors((np.nan, np.nan)), [A, B], 3) == ()


def test_where_all_are_alike_nobody_stands_out():
    names, rows = crowd()
    assert groups(names, vectors(*rows), [A, B], 3) == ()
