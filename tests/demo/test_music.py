"""The schema for music on its traffic: each feature is served, true, and shows what it is meant to show."""

from __future__ import annotations

import bisect
import json
import math
import subprocess
import sys
import warnings
from collections import defaultdict

import numpy as np
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
import transports

from featurestore.cli import main
from featurestore.cli.exits import Exit
from featurestore.client import Client, Status
from featurestore.columns import event_columns
from featurestore.config import ServeConfig
from featurestore.core.batch import EventBatch
from featurestore.core.state import State
from featurestore.demo.music import KEYS, schema_text
from featurestore.demo.rules import NAIVE, RULES, AtLeast, Ground, Judged, Rule
from featurestore.demo.traffic import EVENTS, LABELS, ROLE, Chunk, Events, Traffic, joined
from featurestore.errors import StorageError
from featurestore.schema import compile_schema
from featurestore.server.serve import Server, open_store

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
TRAFFIC = Traffic(1000, 2, 2.0, seed=5)


class Served:
    """What Observe returns for every event of a type, by feature; `lower` and `upper` beside it."""

    def __init__(self, names, events: Events) -> None:
        self.names, self.events = list(names), events
        self.values, self.lower, self.upper, self.statuses = [], [], [], []

    def add(self, vectors) -> None:
        for name in ("values", "lower", "upper", "statuses"):
            getattr(self, name).append(getattr(vectors, name))

    def end(self) -> Served:
        for name in ("values", "lower", "upper", "statuses"):
            setattr(self, name, np.concatenate(getattr(self, name)))
        return self

    def of(self, feature: str, *roles: str) -> np.ndarray:
        """Its values at the events of these roles; of all without any."""
        column = self.values[:, self.names.index(feature)]
        return column[np.isin(self.events.roles, [ROLE[role] for role in roles])] if roles else column


@pytest.fixture(scope="module")
def whole() -> Chunk:
    return joined(list(TRAFFIC.hours()))


@pytest.fixture(scope="module")
def served(whole: Chunk) -> dict[str, Served]:
    return observed(whole)


def observed(whole: Chunk) -> dict[str, Served]:
    """Every event observed, hour by hour, types one after the other."""
    plan = compile_schema(schema_text())
    state = State(plan, secret=bytes(16))
    numbers = {event.name: i for i, event in enumerate(plan.events)}
    services = {service.name: i for i, service in enumerate(plan.services)}
    made = {
        service.name: Served(
            [plan.all_features[f].name for f in service.features], whole.events[service.name]
        )
        for service in plan.services
    }
    for chunk in whole.parts(HOUR):
        for event in EVENTS:
            some = chunk.events[event]
            if some.n_events:
                plan_of = plan.events[numbers[event]]
                batch = EventBatch(plan_of, numbers[event], *event_columns(plan_of, some.columns))
                made[event].add(state.observe(batch, services[event], bounds=True))
                assert not batch.outcomes.any()
    return {event: one.end() for event, one in made.items()}


# -- the schema


def test_the_schema_compiles_without_a_warning_and_its_services_are_named_like_their_events() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = compile_schema(schema_text())
    assert {service.name for service in plan.services} == set(EVENTS) == {event.name for event in plan.events}
    listed = {f for service in plan.services for f in service.features}
    assert len(listed) == len(plan.all_features), "every feature is in a service"


def test_every_feature_is_present_somewhere_and_none_is_ever_unavailable() -> None:
    for event, one in observed(joined(list(Traffic(60, 8, 5.0).hours()))).items():
        assert not (one.statuses == Status.UNAVAILABLE).any()
        present = (one.statuses == Status.PRESENT).any(axis=0)
        assert [name for name, is_present in zip(one.names, present, strict=True) if not is_present] == [], (
            event
        )
        assert (one.statuses[-1] != Status.WARMING).all(), event


# -- what it says is so


def within(times: list[int], at: int, window: int) -> slice:
    """Of sorted times, those in (at - window, at]."""
    return slice(bisect.bisect_right(times, at - window), bisect.bisect_right(times, at))


def test_plays_shares_and_distinct_accounts_are_those_of_the_traffic(
    served: dict[str, Served], whole: Chunk
) -> None:
    """Counted again by hand, at every 61st play."""
    play, one = whole.events["play"].columns, served["play"]
    rows = list(zip(*(play[n].tolist() for n in ("ts", "account", "track", "ip", "ms_played")), strict=True))
    counted = defaultdict(list)
    for place, row in enumerate(rows):
        if row[4] >= 30_000:
            for view, key in (("account", row[1]), ("track", row[2]), ("ip", row[3]), ("ip_track", row[2:4])):
                counted[view, key].append(place)
    times_of = {key: [rows[p][0] for p in places] for key, places in counted.items()}
    n_checked = 0
    for place in range(0, len(rows), 61):
        at, account, track, ip, _ = rows[place]
        for view, key in (("account", account), ("track", track), ("ip", ip), ("ip_track", (track, ip))):
            places, times = counted.get((view, key), []), times_of.get((view, key), [])
            until = bisect.bisect_right(places, place)  # of equal times, only those before
            for window, ms in (("10m", 10 * MINUTE), ("1h", HOUR), ("1d", DAY)):
                some = [rows[p] for p in places[:until][within(times[:until], at, ms)]]
                truth = {f"{view}.plays_{window}": len(some)}
                if view != "ip_track" and window == "1d":
                    barely = sum(row[4] < 35_000 for row in some)
                    truth[f"{view}.barely_share_{window}"] = barely / len(some) if some else 0.0
                if view in ("track", "ip") and window == "1d":
                    truth[f"{view}.accounts_{window}"] = len({row[1] for row in some})
                for name, true in truth.items():
                    column = one.names.index(name)
                    lower, upper = one.lower[place, column], one.upper[place, column]
                    assert lower - 1e-12 <= true <= upper + 1e-12, (place, name, true, lower, upper)
                    if lower == upper:
                        assert math.isclose(one.values[place, column], true, abs_tol=1e-12)
                        n_checked += 1
    assert n_checked > 3000


def test_replayed_files_say_what_is_served_live(tmp_path, transport) -> None:
    """generate → replay, beside generate → Observe over gRPC: the same bits."""
    out = tmp_path / "traffic"
    assert main(["generate", str(out), "--users", "40", "--days", "1", "--strength", "3"]) == Exit.OK
    config = ServeConfig(
        data=tmp_path / "store", schema=schema_text(), schema_path="music.yaml", listen="localhost:0",
        admin=f"unix:{tmp_path}/a.sock", clock="event", durability="process",
        **transports.settings(transport),
    )  # fmt: skip
    with (
        open_store(config) as engine,
        Server(engine, config) as server,
        Client(str(server.address)) as client,
    ):
        for event in EVENTS:
            table = pq.read_table(out / f"{event}.parquet")
            made = tmp_path / f"{event}-vectors.parquet"
            words = [str(out / f"{event}.parquet"), "--schema", str(out / "music.yaml"), "--event", event,
                     "--service", event, "--out", str(made), "--keep", "label"]  # fmt: skip
            assert main(["replay", *words]) == Exit.OK
            replayed = pq.read_table(made)
            assert replayed.column("label").equals(table.column("label"))
            sample = table.drop_columns(["label", "role"]).slice(0, 250).to_pylist()
            live = [client.observe(event, row, event).vector for row in sample]
            for name in live[0].names:
                mine = np.array([vector[name] for vector in live])
                # ip rows are fed by several types: another type's events do not change these views' values
                assert np.array_equal(mine, replayed.column(name).to_numpy()[: len(mine)], equal_nan=True), (
                    name
                )


# -- each attack is seen where it is meant to be seen


def test_a_farm_is_seen_at_its_accounts_tracks_and_uploader_and_at_the_ips_it_owns(served) -> None:
    play = served["play"]
    farms, honest = ("farm on few ips", "farm on many ips"), ("listener", "office", "carrier", "release day")
    for view in ("account", "track", "uploader"):
        theirs = play.of(f"{view}.barely_share_1d", *farms)
        assert np.quantile(theirs, 0.25) > 0.6, view
        assert np.mean(play.of(f"{view}.barely_share_1d", *honest) < 0.3) > 0.9, view
    assert np.median(play.of("ip.barely_share_1d", "farm on few ips")) > 0.7
    few, many = (np.quantile(play.of("ip.barely_share_1d", role), 0.1) for role in farms)
    assert many < 0.5 < few, "households dilute it"
    assert np.median(play.of("ip_track.plays_1d", "farm on few ips")) > 10
    assert np.mean(play.of("ip_track.plays_1d", *honest) <= 3) > 0.8
    few = play.of("ip.tracks_per_account_1d", "farm on few ips")
    assert np.median(few) < np.median(play.of("ip.tracks_per_account_1d", "office", "carrier"))


def test_a_loop_is_regular_until_it_mixes_in_other_tracks_and_people_never_are(served) -> None:
    one, cv = served["play"], "account.interval_cv_1h"
    in_midst = one.of("account.plays_10m") >= 5

    def lowest_tenth(*roles: str) -> float:
        mine = in_midst & np.isin(one.events.roles, [ROLE[role] for role in roles])
        return float(np.quantile(one.of(cv)[mine], 0.1))

    assert lowest_tenth("sleeper") < 0.01
    assert lowest_tenth("farm on few ips", "farm on many ips") < 0.1
    assert lowest_tenth("listener", "carrier", "office") > 0.3


def test_a_ring_and_a_spammer_are_seen_at_the_account(served) -> None:
    action = served["action"]
    assert action.of("action_account.follows_10m", "ring").max() >= 8
    assert np.mean(action.of("action_account.follows_10m", "listener", "carrier") <= 2) > 0.99
    assert action.of("action_account.comments_per_text_1d", "spammer").max() > 2.5
    assert np.mean(action.of("action_account.comments_per_text_1d", "listener", "carrier") <= 1) > 0.95
    for role in ("ring", "spammer"):
        assert np.nanquantile(action.of("action_account.interval_cv_1h", role), 0.9) < 0.3
    assert np.nanmedian(action.of("action_account.interval_cv_1h", "thanks")) > 0.4


def test_sign_ups_show_at_the_device_where_ips_do_not(served) -> None:
    signup = served["signup"]
    assert np.quantile(signup.of("signup_device.count_1d", "sign-up farm"), 0.5) >= 2
    assert signup.of("signup_device.count_1d", "class").max() == 1, "a class has a device each"
    assert signup.of("signup_ip.count_1h", "class").max() >= 4, "and one ip"


def test_stolen_lists_show_at_the_ip_and_guessing_at_the_account(served) -> None:
    login = served["login"]
    stuffing = login.of("login_ip.failed_share_1d", "stuffing")
    assert np.median(stuffing) > 0.9
    assert login.of("login_ip.accounts_1h", "stuffing").max() > 20
    assert np.mean(login.of("login_account.failed_1h", "stuffing") <= 2) > 0.9, "once for each account"
    assert login.of("login_account.failed_1h", "guessing").max() >= 14
    assert login.of("login_account.ips_1d", "guessing").max() >= 3


def test_an_office_and_a_carrier_are_not_flagged_by_shares_though_by_accounts_alone_they_are(served) -> None:
    play = served["play"]
    for role in ("office", "carrier"):
        accounts = play.of("ip.accounts_1d", role)
        assert accounts.max() >= 10, role
        busy = accounts >= 10
        assert play.of("ip.barely_share_1d", role)[busy].max() < 0.35, role
    naive, farm = Judged(NAIVE), Judged(RULES[0])
    for one in (naive, farm):
        one.add(play.events, play.names, play.values)
    assert naive.wronged["office"] + naive.wronged["carrier"] > 10 * (
        farm.wronged["office"] + farm.wronged["carrier"]
    )
    assert naive.precision < 0.2 < farm.precision


def test_the_rules_find_most_of_it_and_wrong_some(served) -> None:
    for rule in RULES:
        one = Judged(rule)
        mine = served[rule.event]
        one.add(mine.events, mine.names, mine.values)
        assert 0.4 < one.recall < 1, rule.label
        assert 0.5 < one.precision < 1, rule.label
        assert one.wronged.total() == one.n_flagged - one.n_right > 0


# -- counting what a rule says


def test_what_a_rule_says_is_counted_event_by_event_and_account_by_account() -> None:
    rule = Rule("play_farm", "play", (
        Ground("track", (AtLeast("f", 2), AtLeast("g", 1)), ()),
        Ground("account", (AtLeast("h", 5),), ("f",)),
    ))  # fmt: skip
    assert str(rule) == "f >= 2 and g >= 1 or h >= 5"
    farm, office = ROLE["farm on few ips"], ROLE["office"]
    events = Events(
        {
            "ts": np.arange(6) * 1000,
            "account": np.array([b"a", b"a", b"b", b"c", b"d", b"d"]),
            "track": np.array([b"t", b"t", b"u", b"t", b"v", b"v"]),
        },
        np.array([farm, farm, farm, office, office, office], np.uint8),
    )
    values = np.array(
        [[2, 1, 0], [3, 1, 0], [9, 0, 0], [2, 2, 0], [0, np.nan, 5], [np.nan, 9, np.nan]], float
    )
    one = Judged(rule)
    one.add(events.part(0, 2), ["f", "g", "h"], values[:2])
    one.add(events.part(2, 6), ["f", "g", "h"], values[2:])
    assert (one.n_events, one.n_labelled, one.n_flagged, one.n_right) == (6, 3, 4, 2)
    assert (one.precision, one.recall) == (0.5, 2 / 3)
    assert (one.accounts_labelled, one.accounts_right) == ({b"a", b"b"}, {b"a"})
    assert one.wronged == {"office": 2}
    assert one.accounts_wronged == {"office": {b"c", b"d"}}
    (worst,) = one.worst(0, 3)
    assert (worst.key, worst.at_ms, worst.role, worst.values) == (
        "t",
        1000,
        "farm on few ips",
        {"f": 3, "g": 1},
    )
    assert [w.key for w in one.worst(1, 3)] == ["d"]


def test_a_rule_that_flags_nothing_has_no_precision() -> None:
    one = Judged(RULES[0])
    assert math.isnan(one.precision)
    assert math.isnan(one.recall)


def test_rules_name_features_of_their_service_and_keys_of_their_events() -> None:
    plan = compile_schema(schema_text())
    for rule in (*RULES, NAIVE):
        (service,) = (one for one in plan.services if one.name == rule.event)
        names = {plan.all_features[f].name for f in service.features}
        for ground in rule.grounds:
            assert set(ground.features) <= names
            assert ground.key in {*KEYS[rule.event], "account"}
    assert {rule.label for rule in RULES} == set(LABELS) - {"benign"}


# -- the commands


@pytest.fixture(scope="module")
def shown():
    done = subprocess.run(
        [sys.executable, "-m", "featurestore", "demo", "--music", "--users", "80", "--days", "1",
         "--strength", "5", "-o", "json", "--top", "2"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_the_demo_counts_what_the_traffic_holds(shown) -> None:
    traffic = joined(list(Traffic(80, 1, 5.0).hours()))
    assert shown["events"] == {event: some.label_counts() for event, some in traffic.events.items()}
    assert shown["vectors_read"] == traffic.n_events
    for rule in shown["rules"]:
        labels = traffic.events[rule["event"]].label_counts()
        assert rule["labelled"] == labels[rule["label"]]
        assert rule["events"] == sum(labels.values())
        wronged = sum(each["events"] for each in rule["wronged"].values())
        assert rule["flagged"] == rule["right"] + wronged
        assert rule["recall"] == (rule["right"] / rule["labelled"] if rule["labelled"] else None)
        for worst in rule["worst"]:
            assert len(worst["features"]) >= 2


def test_sign_ups_of_a_device_are_counted_by_hand_as_of_the_end_of_ten_minutes(shown) -> None:
    signups = joined(list(Traffic(80, 1, 5.0).hours())).events["signup"].columns
    (rule,) = (one for one in shown["rules"] if one["label"] == "signup_farm")
    worst = next(one for one in rule["worst"] if "device" in one["key"])
    mine = signups["ts"][signups["device"] == worst["key"]["device"].encode()]
    assert worst["features"]["signup_device.count_7d"] == len(mine) >= 3


def test_for_people_the_demo_names_each_attack_its_rule_and_whom_it_wrongs(capsys) -> None:
    words = ["demo", "--music", "--users", "80", "--days", "1", "--strength", "5", "--top", "1"]
    assert main(words) == Exit.OK
    out = capsys.readouterr().out
    for rule in RULES:
        assert f"{rule.label}: flag a {rule.event} where" in out
        for ground in rule.grounds:
            assert str(ground) in out
    assert "wrongly: " in out
    assert max(map(len, out.splitlines())) <= 130


def test_generate_writes_a_file_for_each_type_whatever_the_format(tmp_path, capsys) -> None:
    words = ["--users", "60", "--days", "1", "--strength", "2", "--seed", "9"]
    counts = {}
    for form in ("parquet", "csv", "csv.gz"):
        out = tmp_path / form
        assert main(["generate", str(out), *words, "--format", form, "-o", "json"]) == Exit.OK
        counts[form] = json.loads(capsys.readouterr().out)["events"]
        assert sorted(path.name for path in out.iterdir()) == sorted(
            [*(f"{e}.{form}" for e in EVENTS), "music.yaml"]
        )
        assert (out / "music.yaml").read_text() == schema_text()
    assert counts["parquet"] == counts["csv"] == counts["csv.gz"]
    for event in EVENTS:
        table = pq.read_table(tmp_path / "parquet" / f"{event}.parquet")
        text = pcsv.read_csv(tmp_path / "csv" / f"{event}.csv")
        assert table.num_rows == text.num_rows == sum(counts["csv"][event].values())
        assert table.column_names[-2:] == ["label", "role"]
    actions = pq.read_table(tmp_path / "parquet" / "action.parquet")
    assert actions.column("text").null_count == sum(
        k != "comment" for k in actions.column("kind").to_pylist()
    )


def test_what_fails_in_the_midst_leaves_a_directory_to_be_given_again(tmp_path, monkeypatch, capsys) -> None:
    words = ["generate", str(tmp_path / "out"), "--users", "20", "--days", "1"]

    def broken_off(traffic: Traffic, _n_events: int):
        yield next(traffic.hours())
        raise StorageError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(Traffic, "chunks", broken_off)
        assert main(words) == Exit.ERROR
    assert "no room" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
    assert main(words) == Exit.OK


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["demo", "--music", "--users", "3"], "--users is 3"),
        (["demo", "--music", "--days", "0"], "--days is 0"),
        (["generate", "{tmp}", "--seed", "-1"], "--seed is -1"),
        (["generate", "{full}"], "not empty"),
        (["generate", "{full}/precious"], "not empty"),
        (["demo", "--music", "--keep", "{full}"], "not empty"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_touches_nothing(words, said, tmp_path, capsys) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("mine")
    named = [word.format(tmp=tmp_path / "new", full=full) for word in words]
    assert main(named) == Exit.USAGE
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in full.iterdir()] == ["precious"]
    assert not (tmp_path / "new").exists()
