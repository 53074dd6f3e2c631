"""The generator: the same everywhere, in order, and made of what its head says it is made of."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from featurestore.demo.draws import Draws, natural_log
from featurestore.demo.traffic import (
    EVENTS,
    HOUR_MS,
    LABEL_OF_ROLE,
    LABELS,
    MAX_DAYS,
    MAX_STRENGTH,
    MAX_USERS,
    ROLE,
    ROLES,
    START_MS,
    Chunk,
    Traffic,
    joined,
)
from featurestore.errors import ConfigError

SMALL = Traffic(300, 2, 4.0, seed=7)
SMALL_SHA256 = "5e727406427e1c2c4bcf7c338b0fe5646a27c2456caa4b8d42acde0ce9c656c1"
KEYS_OF = {
    "play": {"ts", "account", "track", "uploader", "ip", "ms_played"},
    "signup": {"ts", "account", "ip", "device"},
    "login": {"ts", "account", "ip", "ok"},
    "action": {"ts", "account", "target", "kind", "text"},
}


def digest(traffic: Traffic) -> str:
    """Over all columns of all events, hour by hour."""
    sha = hashlib.sha256()
    for chunk in traffic.hours():
        for some in chunk.events.values():
            for name, column in some.columns.items():
                sha.update(name.encode() + column.tobytes())
            sha.update(some.roles.tobytes())
    return sha.hexdigest()


def same(one: Chunk, other: Chunk) -> bool:
    return (one.start_ms, one.end_ms) == (other.start_ms, other.end_ms) and all(
        np.array_equal(one.events[event].roles, other.events[event].roles)
        and all(
            np.array_equal(c, other.events[event].columns[n]) for n, c in one.events[event].columns.items()
        )
        for event in EVENTS
    )


@pytest.fixture(scope="module")
def week() -> Chunk:
    """A thousand people for a week."""
    return joined(list(Traffic(2000, 7, seed=3).hours()))


def of_role(chunk: Chunk, event: str, *roles: str) -> dict[str, np.ndarray]:
    some = chunk.events[event]
    wanted = np.isin(some.roles, [ROLE[role] for role in roles])
    return {name: column[wanted] for name, column in some.columns.items()}


# -- the same everywhere


def test_the_same_seed_gives_the_same_bytes_as_ever() -> None:
    assert digest(SMALL) == SMALL_SHA256


def logarithms() -> str:
    return hashlib.sha256(natural_log(1.0 - Draws(1).units(100_000)).tobytes()).hexdigest()


def test_no_vector_instruction_of_the_processor_has_a_say() -> None:
    """numpy's own log has another last bit with AVX-512 than without; nothing here may use it."""
    features = np._core._multiarray_umath.__cpu_features__
    dispatched = np._core._multiarray_umath.__cpu_dispatch__
    off = " ".join(name for name in dispatched if features.get(name))
    if not off:
        pytest.skip("this numpy has only one way to compute on this processor")
    program = "from demo.test_traffic import *; print(digest(SMALL), logarithms())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": off, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.stdout.split() == [SMALL_SHA256, logarithms()]


@pytest.mark.parametrize("other", [Traffic(300, 2, 4.0, seed=8), Traffic(301, 2, 4.0, seed=7)])
def test_another_seed_or_size_gives_other_traffic(other: Traffic) -> None:
    assert digest(other) != SMALL_SHA256


def test_units_are_the_upper_bits_of_pcg64() -> None:
    """O'Neill 2014: a linear congruence of 128 bits, then XSL-RR; here in whole numbers of Python's."""
    begun = np.random.PCG64(np.random.SeedSequence((1, 2, 3))).state["state"]
    state, words = begun["state"], []
    for _ in range(5):
        state = (state * 0x2360ED051FC65DA44385DF649FCCF645 + begun["inc"]) % 2**128
        folded, turn = (state >> 64 ^ state) % 2**64, state >> 122
        words.append((folded >> turn | folded << (64 - turn)) % 2**64)
    assert Draws(1, 2, 3).units(5).tolist() == [(word >> 11) / 2**53 for word in words]


def test_the_logarithm_is_one() -> None:
    for x in [2.0**-53, 1e-9, 0.1, 0.5, 0.7071067811865476, 0.75, 1 - 2.0**-53, 1.0]:
        assert math.isclose(natural_log(np.array([x]))[0], math.log(x), rel_tol=1e-13, abs_tol=2e-16), x


def test_a_draw_below_a_limit_never_reaches_it() -> None:
    draws = Draws(4)
    drawn = draws.below(100_000, 7)
    assert (np.unique(drawn) == np.arange(7)).all()
    draws.units = lambda n: np.full(n, 1 - 2.0**-53)  # type: ignore[method-assign]
    assert draws.below(1, 10_000_000_000)[0] == 9_999_999_999
    assert draws.weighted(1, np.cumsum(np.ones(3)))[0] == 2


def test_exponential_draws_have_their_mean_and_their_spread() -> None:
    drawn = Draws(5).exponential(200_000, 1000.0)
    assert abs(drawn.mean() / 999.5 - 1) < 0.01
    assert abs(np.mean(drawn > 3000) / math.exp(-3) - 1) < 0.03


# -- in order, and cut anywhere


def test_every_type_is_in_time_order_from_hour_to_hour_and_ends_with_the_last() -> None:
    newest = dict.fromkeys(EVENTS, START_MS)
    for hour, chunk in enumerate(SMALL.hours()):
        assert (chunk.start_ms, chunk.end_ms) == (START_MS + hour * HOUR_MS, START_MS + (hour + 1) * HOUR_MS)
        for event, some in chunk.events.items():
            times = some.columns["ts"]
            assert all(len(column) == some.n_events for column in some.columns.values())
            if some.n_events:
                assert (np.diff(times) >= 0).all()
                assert newest[event] <= times[0]
                assert times[-1] < chunk.end_ms
                newest[event] = times[-1]
    assert hour == 47


def test_hours_parts_and_chunks_are_the_same_events() -> None:
    hours = list(SMALL.hours())
    whole = joined(hours)
    assert same(joined([part for hour in hours for part in hour.parts(600_000)]), whole)
    chunks = list(SMALL.chunks(1000))
    assert same(joined(chunks), whole)
    assert all(chunk.n_events >= 1000 for chunk in chunks[:-1])
    assert 1 < len(chunks) < 48
    assert sum(chunk.n_hours for chunk in chunks) == 48


@pytest.mark.parametrize(
    ("name", "traffic"),
    [
        ("users", (9, 1, 1.0, 1)),
        ("users", (MAX_USERS + 1, 1, 1.0, 1)),
        ("days", (10, 0, 1.0, 1)),
        ("days", (10, MAX_DAYS + 1, 1.0, 1)),
        ("strength", (10, 1, -0.1, 1)),
        ("strength", (10, 1, MAX_STRENGTH * 1.1, 1)),
        ("strength", (10, 1, math.nan, 1)),
        ("seed", (10, 1, 1.0, -1)),
    ],
)
def test_what_cannot_be_made_is_refused_by_name(name: str, traffic: tuple[int, int, float, int]) -> None:
    with pytest.raises(ConfigError, match=f"--{name} is"):
        Traffic(*traffic)


def test_the_smallest_and_the_strongest_traffic_can_be_made() -> None:
    assert sum(chunk.n_events for chunk in Traffic(10, 1, 0.0).hours()) > 10
    assert sum(chunk.n_events for chunk in Traffic(10, 1, MAX_STRENGTH).hours()) > 100


# -- labels


def test_without_strength_all_are_honest() -> None:
    quiet = joined(list(Traffic(300, 2, 0.0, seed=7).hours()))
    assert all(not some.labels.any() for some in quiet.events.values())


def test_each_attack_has_its_share_and_strength_multiplies_it(week: Chunk) -> None:
    shares = {}
    for event, some in week.events.items():
        for label, n in some.label_counts().items():
            shares[event, label] = n / some.n_events
    assert {key for key, share in shares.items() if share > 0 and key[1] != "benign"} == {
        ("play", "play_farm"), ("play", "account_takeover"), ("signup", "signup_farm"),
        ("login", "account_takeover"), ("action", "follow_ring"), ("action", "comment_spam"),
    }  # fmt: skip
    assert 0.04 < shares["play", "play_farm"] < 0.10
    assert shares["play", "account_takeover"] < 0.02
    assert 0.5 < shares["signup", "signup_farm"] < 0.8
    assert 0.4 < shares["login", "account_takeover"] < 0.6
    assert 0.15 < shares["action", "follow_ring"] < 0.35
    assert 0.1 < shares["action", "comment_spam"] < 0.25
    n_groups = [
        Traffic(n, 1, strength).n_groups for n, strength in ((10, 0.1), (1000, 1), (2000, 2.5), (10, 0))
    ]
    assert n_groups == [1, 1, 5, 0]


def test_every_role_occurs_and_its_label_is_the_one_in_the_table(week: Chunk) -> None:
    seen = np.unique(np.concatenate([some.roles for some in week.events.values()]))
    assert [ROLES[role][0] for role in seen.tolist()] == [name for name, _ in ROLES]
    for role, (_, label) in enumerate(ROLES):
        assert LABELS[LABEL_OF_ROLE[role]] == label


def test_labels_are_no_columns_and_keys_do_not_tell(week: Chunk) -> None:
    for event, some in week.events.items():
        assert set(some.columns) == KEYS_OF[event]
    for role, event, key in (
        ("farm on few ips", "play", "account"),
        ("farm on few ips", "play", "ip"),
        ("ring", "action", "account"),
        ("sign-up farm", "signup", "device"),
    ):
        theirs = np.unique(of_role(week, event, role)[key])
        everyone = np.unique(week.events[event].columns[key])
        places = np.searchsorted(everyone, theirs) / everyone.size
        spread = 1 / math.sqrt(12 * theirs.size)
        assert abs(places.mean() - 0.5) < 4 * spread, (role, key, places.mean())


# -- honest people


def test_people_sleep_at_night_skip_a_third_and_hear_what_others_hear(week: Chunk) -> None:
    plays = of_role(week, "play", "listener", "office", "carrier")
    hours = (plays["ts"] - START_MS) // HOUR_MS % 24
    by_hour = np.bincount(hours, minlength=24)
    assert by_hour[18:20].sum() > 3 * by_hour[2:4].sum()
    assert 0.2 < np.mean(plays["ms_played"] < 30_000) < 0.4
    barely = (plays["ms_played"] >= 30_000) & (plays["ms_played"] < 35_000)
    assert np.mean(barely) / np.mean(plays["ms_played"] >= 30_000) < 0.1
    counts = np.sort(np.unique(plays["track"], return_counts=True)[1])[::-1]
    assert 0.2 < counts[: counts.size // 100].sum() / counts.sum() < 0.6


def test_offices_and_carriers_have_many_honest_accounts_on_an_ip(week: Chunk) -> None:
    for role, least in (("office", 10), ("carrier", 100)):
        plays = of_role(week, "play", role)
        each = [len(np.unique(plays["account"][plays["ip"] == ip])) for ip in np.unique(plays["ip"])]
        assert max(each) >= least


def test_offices_are_empty_at_the_weekend(week: Chunk) -> None:
    days = (of_role(week, "play", "office")["ts"] - START_MS) // (24 * HOUR_MS)
    counts = np.bincount(days, minlength=7)
    assert counts[:5].min() > 100
    assert counts[6] == 0


def test_who_signs_up_was_not_seen_before(week: Chunk) -> None:
    signups, plays = week.events["signup"].columns, week.events["play"].columns
    first_play = dict(zip(plays["account"][::-1].tolist(), plays["ts"][::-1].tolist(), strict=True))
    assert len(np.unique(signups["account"])) == len(signups["account"])
    for account, at in zip(signups["account"].tolist(), signups["ts"].tolist(), strict=True):
        assert first_play.get(account, at) >= at


def test_a_comment_has_a_text_and_nothing_else_has(week: Chunk) -> None:
    actions = week.events["action"].columns
    assert ((actions["text"] != b"") == (actions["kind"] == b"comment")).all()
    assert set(np.unique(actions["kind"]).tolist()) == {b"follow", b"like", b"comment"}
    letters = {
        kind: {target[:1] for target in np.unique(actions["target"][actions["kind"] == kind]).tolist()}
        for kind in (b"follow", b"like", b"comment")
    }
    assert letters == {b"follow": {b"a", b"u"}, b"like": {b"t"}, b"comment": {b"t"}}


# -- attacks


def test_farms_play_31_to_34_seconds_of_four_tracks_from_few_ips_or_many(week: Chunk) -> None:
    few, many = (of_role(week, "play", role) for role in ("farm on few ips", "farm on many ips"))
    for plays, n_ips in ((few, (2, 2)), (many, (25, 40))):
        paid = (plays["ms_played"] >= 31_000) & (plays["ms_played"] < 34_000)
        assert 0.8 < paid.mean() < 0.9
        assert len(np.unique(plays["track"][paid])) == 4
        assert len(np.unique(plays["uploader"][paid])) == 1
        assert len(np.unique(plays["account"])) == 20
        assert n_ips[0] <= len(np.unique(plays["ip"])) <= n_ips[1]
    honest = np.unique(of_role(week, "play", "listener")["ip"])
    assert np.isin(many["ip"], honest).mean() > 0.8, "they hide behind households"


def test_a_taken_over_account_is_someones_and_plays_from_where_it_was_opened(week: Chunk) -> None:
    logins = week.events["login"].columns
    theirs = np.isin(week.events["login"].roles, [ROLE["stuffing"], ROLE["guessing"]])
    opened = {
        (account, ip)
        for account, ip in zip(
            logins["account"][theirs & logins["ok"]].tolist(), logins["ip"][theirs & logins["ok"]].tolist(),
            strict=True,
        )
    }  # fmt: skip
    plays = of_role(week, "play", "taken over")
    played = set(zip(plays["account"].tolist(), plays["ip"].tolist(), strict=True))
    assert played <= opened
    assert len(played) > 20
    assert np.isin(plays["account"], of_role(week, "play", "listener", "carrier")["account"]).mean() > 0.8
    assert 0.01 < np.mean(of_role(week, "login", "stuffing")["ok"]) < 0.06
