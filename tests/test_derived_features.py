"""Derived features through the engine: what is returned, what can be answered, bounds, history."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from reference.both import Both
from reference.compare import Got
from reference.engine import Engine, Vectors
from reference.naive import (
    NOT_FOUND,
    PRESENT,
    UNAVAILABLE,
    WARMING,
    Derived,
    EventType,
    Row,
    Schema,
    View,
)
from reference.written import Filter, Formula, features

from featurestore.columns import text_column
from featurestore.plan import Plan
from featurestore.schema import compile_schema
from featurestore.training import replay

FAILED = Filter("failed", lambda f: None if f["failed"] is None else f["failed"] != 0)
DERIVED = {
    "ip.failed_share_20s": Derived(
        ("ip.failed_20s", "ip.count_20s"),
        Formula("ip.failed_20s / ip.count_20s", lambda failed, n: failed / n),
    ),
    "ip.failed_share_or_0_20s": Derived(
        ("ip.failed_20s", "ip.count_20s"),
        Formula("ip.failed_20s / ip.count_20s", lambda failed, n: failed / n),
        by_zero=0.0,
    ),
    "login.ip_to_account": Derived(
        ("ip.count_20s", "account.count_20s"),
        Formula("ip.count_20s / account.count_20s", lambda ip, account: ip / account),
    ),
    "login.changed": Derived(
        ("ip.mean_ms_5s", "ip.mean_ms_20s"),
        Formula("ip.mean_ms_5s - ip.mean_ms_20s", lambda now, then: now - then),
    ),
    "login.before": Derived(
        ("account.seen_20s", "account.count_20s"),
        Formula("account.seen_20s + account.count_20s", lambda before, after: before + after),
    ),
    "login.score": Derived(
        ("ip.failed_share_or_0_20s", "login.ip_to_account"),
        Formula(
            "10 * ip.failed_share_or_0_20s + min(login.ip_to_account, 3)",
            lambda share, ratio: 10 * share + min(ratio, 3),
        ),
    ),
}
HOUR_MS = 3_600_000


def schema(exact_events: int = 256, max_entries: int = 4096) -> Schema:
    limits = {"exact_events": exact_events, "max_entries": max_entries, "max_error": 0.2}
    views = {
        "ip": View(
            "login",
            {"ip": "ip"},
            features("count", "5s 20s")
            + features("count", "20s", name="failed", where=FAILED)
            + features("mean", "5s 20s", value="ms"),
            **limits,  # type: ignore[arg-type]
        ),
        "account": View(
            "login",
            {"account": "account"},
            features("count", "20s") + features("count", "20s", name="seen", exclude_self=True),
            **limits,  # type: ignore[arg-type]
        ),
    }
    everything = [f"{name}.{each.name}" for name, view in views.items() for each in view.features]
    return Schema(
        {"login": EventType({"ip": "key", "account": "key", "failed": "bool", "ms": "number"}, 0)},
        views,
        {
            "score": ["login.score"],
            "before": ["login.before"],
            "shares": ["login.changed", *list(DERIVED)[:3]],
            "everything": [*DERIVED, *everything],
        },
        derived=DERIVED,
    )


def login(time: int, ip: str = "a", account: str | None = "x", failed: bool = False, ms: float = 1.0) -> Row:
    return Row(time, {"ip": ip, "account": account, "failed": failed, "ms": ms})


def warm(both: Both) -> None:
    """Long after the first event, which is of other keys."""
    both.submit("login", [login(0, "other", "other")])


def only(vectors: Vectors) -> dict[str, Got]:
    return dict(vectors.got(0))


def test_a_service_reads_operands_and_returns_only_what_it_lists() -> None:
    both = Both(schema())
    warm(both)
    rows = [login(HOUR_MS + i, failed=i % 2 == 0) for i in range(4)]
    answers, vectors = both.submit("login", rows, "score")
    assert vectors is not None
    assert (vectors.names, vectors.values.shape) == (["login.score"], (4, 1))
    # Shares of 1, 1/2, 2/3, 1/2, each with as many of the ip as of the account.
    assert vectors.values[:, 0].tolist() == [11.0, 6.0, 10 * (2 / 3) + 1, 6.0]
    assert [answer.vector[0].status for answer in answers if answer.vector] == [PRESENT] * 4
    _, read = both.read("score", {"ip": "a", "account": "x"})
    assert only(read)["login.score"] == Got(PRESENT, 6.0, 6.0, 6.0, 1.0)


def test_values_do_not_depend_on_whether_bounds_are_asked_for() -> None:
    both = Both(schema(exact_events=1, max_entries=2))
    warm(both)
    both.submit("login", [login(HOUR_MS + 100 * i, failed=i % 3 == 0) for i in range(150)])
    state = both.engine.state
    keys = {"ip": ["a"], "account": ["x"]}
    for service in ("score", "shares", "everything"):
        whole = both.engine.read(service, keys)
        bare = state.read(
            [each.name for each in both.engine.plan.services].index(service),
            {part: text_column(values)[0] for part, values in keys.items()},
            1,
        )
        assert bare.lower is None
        for name in ("values", "statuses", "coverage"):
            assert getattr(bare, name).tobytes() == getattr(whole, name).tobytes()


def test_an_observed_peeked_and_read_vector_are_the_same() -> None:
    both = Both(schema())
    warm(both)
    both.submit("login", [login(HOUR_MS, failed=True), login(HOUR_MS + 1)])
    peeked = both.peek("login", login(HOUR_MS + 2), "shares")
    _, observed = both.submit("login", [login(HOUR_MS + 2)], "shares")
    assert observed is not None
    assert peeked.bits() == observed.bits()
    _, read = both.read("shares", {"ip": "a", "account": "x"})
    assert read.bits() == observed.bits()


def test_an_operand_that_excludes_the_event_is_read_before_it_and_others_after() -> None:
    both = Both(schema())
    warm(both)
    _, vectors = both.submit("login", [login(HOUR_MS + i) for i in range(3)], "before")
    assert vectors is not None
    assert vectors.values[:, 0].tolist() == [0 + 1, 1 + 2, 2 + 3]


def test_an_operand_without_its_key_makes_it_unavailable() -> None:
    both = Both(schema())
    warm(both)
    both.submit("login", [login(HOUR_MS)])
    _, read = both.read("everything", {"ip": "a"})
    answered = only(read)
    for name in ("login.ip_to_account", "login.score", "login.before"):
        assert answered[name].status == UNAVAILABLE
        assert math.isnan(answered[name].value)
    assert answered["ip.failed_share_20s"].status == PRESENT
    _, observed = both.submit("login", [login(HOUR_MS + 1, account=None)], "everything")
    assert observed is not None
    assert only(observed)["login.score"].status == UNAVAILABLE
    # Also some of many, of a service that reads more than it returns; after a batch that had all.
    for start, lacking in ((HOUR_MS + 100, set()), (HOUR_MS + 200, set(range(1, 40, 2)))):
        rows = [login(start + i, account=None if i in lacking else "x") for i in range(40)]
        _, observed = both.submit("login", rows, "score")
        assert observed is not None
        assert {i for i in range(40) if observed.statuses[i, 0] == UNAVAILABLE} == lacking


def test_division_by_zero_and_true_zeros() -> None:
    both = Both(schema())
    warm(both)
    both.submit("login", [login(HOUR_MS)])
    answered = only(both.read("everything", {"ip": "a", "account": "x"})[1])
    assert answered["ip.failed_20s"].status == NOT_FOUND
    assert answered["ip.failed_share_20s"] == Got(PRESENT, 0.0, 0.0, 0.0, 1.0)  # one came, none failed
    answered = only(both.read("everything", {"ip": "never", "account": "x"})[1])
    assert answered["ip.failed_share_20s"].status == NOT_FOUND
    assert math.isnan(answered["ip.failed_share_20s"].value)
    assert answered["ip.failed_share_or_0_20s"] == Got(NOT_FOUND, 0.0, 0.0, 0.0, 1.0)
    assert answered["login.ip_to_account"] == Got(PRESENT, 0.0, 0.0, 0.0, 1.0)
    assert answered["login.changed"].status == NOT_FOUND


def test_it_warms_with_the_least_covered_operand() -> None:
    both = Both(schema())
    both.submit("login", [login(1000), login(11_000, failed=True)])
    answered = only(both.read("everything", {"ip": "a", "account": "x"})[1])
    share = float(np.float32(10_001 / 20_000))
    assert answered["ip.failed_share_20s"] == Got(WARMING, 0.5, 0.5, 0.5, share)
    assert answered["ip.mean_ms_5s"].status == PRESENT
    assert answered["login.changed"] == Got(WARMING, 0.0, 0.0, 0.0, share)


@pytest.mark.parametrize("gap_ms", [113, 251])
def test_the_truth_is_within_the_bounds_of_a_hot_key(gap_ms: int) -> None:
    """Both compares every read with the naive store's truth, and with what the operands' bounds allow."""
    both = Both(schema(exact_events=4, max_entries=8))
    warm(both)
    rng = np.random.default_rng(gap_ms)
    time, inexact, widths = HOUR_MS, 0, []
    for _ in range(80):
        rows = []
        for _ in range(10):
            time += int(rng.integers(0, 2 * gap_ms))
            rows.append(login(time, failed=bool(rng.integers(0, 3)), ms=float(rng.integers(-5, 50))))
        both.submit("login", rows, "everything")
        for back_ms in (0, 500, 4000):
            truths, vectors = both.read("everything", {"ip": "a", "account": "x"}, as_of=time - back_ms)
            for truth, (name, got) in zip(truths, vectors.got(0), strict=True):
                if name in DERIVED and got.lower != got.upper and not math.isnan(got.value):
                    inexact += 1
                    assert got.lower <= truth.value <= got.upper
                    widths.append(got.upper - got.lower)
    assert inexact > 300
    assert min(widths) < 1  # and not so wide as to say nothing


def test_a_changed_definition_is_served_at_once_and_state_goes_on() -> None:
    both = Both(schema())
    warm(both)
    both.submit("login", [login(HOUR_MS, failed=True), login(HOUR_MS + 1)])
    first = schema()
    doubled = Derived(
        ("ip.failed_20s", "ip.count_20s"),
        Formula("2 * ip.failed_20s / ip.count_20s", lambda failed, n: 2 * failed / n),
    )
    second = Schema(
        first.events, first.views, first.services, derived={**DERIVED, "ip.failed_share_20s": doubled}
    )
    before = both.engine.plan
    both.apply(second)
    after = both.engine.plan
    answered = only(both.read("shares", {"ip": "a", "account": "x"})[1])
    assert answered["ip.failed_share_20s"] == Got(PRESENT, 1.0, 1.0, 1.0, 1.0)
    changed = {
        old.name
        for old, new in zip(before.services, after.services, strict=True)
        if old.fingerprint != new.fingerprint
    }
    assert changed == {"shares", "everything"}
    both.restart(threads=1)
    assert only(both.read("shares", {"ip": "a", "account": "x"})[1]) == answered


def test_many_threads_and_a_plan_from_json_answer_the_same() -> None:
    both = Both(schema())
    warm(both)
    both.submit(
        "login", [login(HOUR_MS + i, f"ip{i % 50}", f"x{i % 7}", i % 3 == 0) for i in range(5000)], "shares"
    )
    bits = []
    for threads, n_shards in ((1, 1), (3, 8)):
        engine: Engine = both.replayed([1_000], threads=threads, n_shards=n_shards)
        plan = Plan.from_json(engine.plan.to_json())
        assert plan == engine.plan
        engine.apply_plan(plan)
        keys = {"ip": [f"ip{i}" for i in range(50)], "account": [f"x{i % 7}" for i in range(50)]}
        bits.append(engine.read("everything", keys, 50).bits())
    assert bits[0] == bits[1]


def test_a_read_of_many_key_sets_is_computed_in_pieces_that_join() -> None:
    both = Both(schema())
    warm(both)
    both.submit("login", [login(HOUR_MS + i, f"ip{i % 97}", f"x{i % 89}", i % 3 == 0) for i in range(3000)])
    n = 12_000  # some of them beyond what is computed at once
    keys = {"ip": [f"ip{i % 101}" for i in range(n)], "account": [f"x{i % 89}" for i in range(n)]}
    for service in ("score", "everything"):
        whole = both.engine.read(service, keys, n, as_of=HOUR_MS + 2999)
        for start in (0, 3_000, 9_000, 11_990):
            some = {part: values[start : start + 10] for part, values in keys.items()}
            alone = both.engine.read(service, some, 10, as_of=HOUR_MS + 2999)
            for array in ("values", "lower", "upper", "statuses", "coverage"):
                assert getattr(whole, array)[start : start + 10].tobytes() == getattr(alone, array).tobytes()


def test_replay_writes_derived_features_like_any(tmp_path: Path) -> None:
    source = """\
version: 1
name: logins
events: {login: {time: {field: at, unit: ms}, fields: {ip: key, failed: number}}}
views: {ip: {event: login, key: ip, windows: [1h], features: [count, sum(failed)]}}
derived: {ip.failed_share_1h: ip.sum_failed_1h / ip.count_1h}
services: {s: [ip.failed_share_1h]}
"""
    events = tmp_path / "logins.csv"
    events.write_text("at,ip,failed\n1000,a,1\n2000,a,0\n3000,b,1\n4000,a,0\n5000,,0\n")
    out = tmp_path / "out.csv"
    done = replay({"login": str(events)}, compile_schema(source), "s", out=out, bounds=True)
    assert done.n_features == 1
    with out.open() as file:
        rows = list(csv.reader(file))
    assert rows[0][2:5] == [f"ip.failed_share_1h{end}" for end in ("", ".lower", ".upper")]
    assert [[float(cell) for cell in row[2:5]] for row in rows[1:5]] == [
        [1.0] * 3,
        [0.5] * 3,
        [1.0] * 3,
        [1 / 3] * 3,
    ]
    assert [math.isnan(float(cell)) for cell in rows[5][2:5]] == [True] * 3
