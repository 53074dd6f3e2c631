"""Made-up traffic of a music service: honest people, and five kinds of abuse among them, labelled.

Why made up: no public data says who listened to what from where and who of them was a bot. What it is good
for: to see features at work, to test and to measure. What not: a rule that does well here proves nothing
about yours.

    Traffic(n_users, days, strength, seed).hours()    Chunks of one hour each, in time order
    Chunk.events[type]                                columns by name, sorted by time, and a role per event

The same arguments give the same bytes everywhere (see draws). Memory is that of the people and of one hour.

Honest people have a daily rhythm of their own, listen in sessions, skip a third of what they hear, and prefer
what others hear (Zipf) and what they heard before. They are the crowd that abuse hides in, and some of them
look like it:

    office, carrier   a hundred accounts behind one ip
    sleeper           one noise track through the night, again and again; some of these last 31 s
    fan               one uploader for most of the day
    release day       hundreds of accounts at one track within hours, and follows and comments with it
    forgot password   five to nine failed logins
    class, tablet     many sign-ups from a school's ip in an hour, several on a family's device
    newcomer          follows three to eight uploaders right after signing up
    thanks            an uploader who answers under a track of his own, mostly in the same words

The five attacks, each once per thousand people at strength 1:

    play_farm         20 accounts in bursts of plays of 31 to 34 s of four tracks; every second farm hides
                      behind many households' ips. One play in seven is of something popular, heard for long
    follow_ring       25 accounts that follow each other and three customers, and like the customers' tracks
    comment_spam      6 accounts, the same few texts under popular tracks; every third text is made unique
    signup_farm       a few devices, new ones every day, and eight ips, half of them of households
    account_takeover  stolen lists tried from a dozen ips, and single accounts guessed at; who gets in plays
                      the attacker's tracks as a person would

An attacker's keys are numbered among everyone's, so that nothing but behaviour tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.demo.draws import Draws, Ints, Mask, mixed, placed, unit_of
from featurestore.errors import ConfigError

HOUR_MS = 3_600_000
START_MS = 1_767_571_200_000  # Monday 2026-01-05, midnight UTC
MAX_USERS, MAX_DAYS, MAX_STRENGTH = 1_000_000, 400, 10.0  # so that addresses suffice

EVENTS = ("play", "signup", "login", "action")
LABELS = ("benign", "play_farm", "follow_ring", "comment_spam", "signup_farm", "account_takeover")

# Who an event is of: a name, and its label. A role is its place here.
ROLES = (
    ("listener", "benign"),
    ("office", "benign"),
    ("carrier", "benign"),
    ("sleeper", "benign"),
    ("fan", "benign"),
    ("release day", "benign"),
    ("forgot password", "benign"),
    ("class", "benign"),
    ("tablet", "benign"),
    ("newcomer", "benign"),
    ("thanks", "benign"),
    ("farm on few ips", "play_farm"),
    ("farm on many ips", "play_farm"),
    ("ring", "follow_ring"),
    ("spammer", "comment_spam"),
    ("sign-up farm", "signup_farm"),
    ("stuffing", "account_takeover"),
    ("guessing", "account_takeover"),
    ("taken over", "account_takeover"),
)
ROLE = {name: place for place, (name, _) in enumerate(ROLES)}
LABEL_OF_ROLE = np.array([LABELS.index(label) for _, label in ROLES], np.uint8)
KINDS = np.array([b"follow", b"like", b"comment"])
FOLLOW, LIKE, COMMENT = range(3)

# Keys are numbers until they leave; a target is an account, an uploader or a track.
_COMMON = [("ts", "i8"), ("account", "i8"), ("role", "u1")]
_ROWS = {
    "play": np.dtype([*_COMMON, ("track", "i8"), ("ip", "i8"), ("ms_played", "i8")]),
    "signup": np.dtype([*_COMMON, ("ip", "i8"), ("device", "i8")]),
    "login": np.dtype([*_COMMON, ("ip", "i8"), ("ok", "?")]),
    "action": np.dtype([*_COMMON, ("target", "i8"), ("letter", "u1"), ("kind", "u1"), ("text", "i8")]),
}
Rows = NDArray[Any]

# -- people

RHYTHM = (3, 2, 1, 1, 1, 2, 4, 6, 7, 6, 5, 5, 6, 6, 6, 6, 7, 9, 10, 10, 9, 8, 6, 4)  # sessions by the hour
OFFICE_HOURS = range(9, 18)
BEDTIME = (22, 23)
SESSION_PLAYS, MOST_PLAYS = 9.0, 80
SESSIONS_A_DAY, MOST_SESSIONS = 0.7, 8.0  # of the laziest, of the keenest; Pareto 2 between them
FAVOURITES = 30
SHARED_TEXTS = 30  # comments that many people write: "nice"
SLEEP_TRACKS = 10
RELEASE_HOURS = 30
COMMON_TEXT_SHARE, JOINING_A_DAY = 0.15, 0.01

# -- attacks, per group of attackers

FARM_ACCOUNTS, FARM_TRACKS, FARM_IPS, FARM_PROXIES = 20, 4, 2, 40
RING_ACCOUNTS, RING_CUSTOMERS = 25, 3
SPAM_ACCOUNTS, SPAM_TEXTS = 6, 3
SIGNUP_MOST, SIGNUP_DEVICES, SIGNUP_IPS = 15, 3, 8
TAKEOVER_IPS, TAKEOVER_TRACKS = 12, 2
_SOURCES = ("world", "people", "sleep", *LABELS[1:])  # each has a stream of its own for every hour


@dataclass(frozen=True)
class Events:
    """Of one type, sorted by time. `columns` are those of the schema: times and numbers, texts as bytes."""

    columns: dict[str, NDArray[Any]]
    roles: NDArray[np.uint8]

    @property
    def n_events(self) -> int:
        return len(self.roles)

    @property
    def labels(self) -> NDArray[np.uint8]:
        """Places in LABELS."""
        return LABEL_OF_ROLE[self.roles]

    def label_counts(self) -> dict[str, int]:
        counts = np.bincount(self.labels, minlength=len(LABELS)).tolist()
        return dict(zip(LABELS, counts, strict=True))

    def labelled_columns(self) -> dict[str, NDArray[Any]]:
        """The columns, and `label` and `role` in words."""
        labels = np.array(LABELS, np.bytes_)[self.labels]
        return {
            **self.columns,
            "label": labels,
            "role": np.array([n for n, _ in ROLES], np.bytes_)[self.roles],
        }

    def part(self, lo: int, hi: int) -> Events:
        return Events({name: column[lo:hi] for name, column in self.columns.items()}, self.roles[lo:hi])


@dataclass(frozen=True)
class Chunk:
    """What happened in some time, of every type."""

    start_ms: int
    end_ms: int  # every event is before it
    events: dict[str, Events]

    @property
    def n_events(self) -> int:
        return sum(some.n_events for some in self.events.values())

    @property
    def n_hours(self) -> int:
        return (self.end_ms - self.start_ms) // HOUR_MS

    def parts(self, step_ms: int) -> Iterator[Chunk]:
        """Cut at every so many milliseconds."""
        done = dict.fromkeys(EVENTS, 0)
        for start_ms in range(self.start_ms, self.end_ms, step_ms):
            end_ms = min(start_ms + step_ms, self.end_ms)
            events = {}
            for event, some in self.events.items():
                end = int(np.searchsorted(some.columns["ts"], end_ms))
                events[event] = some.part(done[event], end)
                done[event] = end
            yield Chunk(start_ms, end_ms, events)


@dataclass(frozen=True)
class Traffic:
    """`strength` is how many groups of attackers there are: 1 for one of each kind per thousand people."""

    n_users: int = 1000
    days: int = 7
    strength: float = 1.0
    seed: int = 1

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("users", self.n_users, 10, MAX_USERS),
            ("days", self.days, 1, MAX_DAYS),
            ("strength", self.strength, 0, MAX_STRENGTH),
            ("seed", self.seed, 0, 2**63 - 1),
        ):
            if not least <= value <= most:
                raise ConfigError(f"--{name} is {value}; it must be from {least} to {most:g}")

    @property
    def n_groups(self) -> int:
        """Of each kind of attackers."""
        return -int(-self.n_users * self.strength // 1000)

    def hours(self) -> Iterator[Chunk]:
        world = _World(self)
        late = {event: np.empty(0, _ROWS[event]) for event in EVENTS}  # begun in this hour, of a later one
        for hour in range(24 * self.days):
            start_ms = START_MS + hour * HOUR_MS
            end_ms = start_ms + HOUR_MS
            made = world.hour(hour)
            events = {}
            for event in EVENTS:
                rows = np.concatenate([late[event], *made[event]])
                is_late = rows["ts"] >= end_ms
                late[event], rows = rows[is_late], rows[~is_late]
                rows = rows[np.argsort(rows["ts"], kind="stable")]
                events[event] = Events(world.columns(event, rows), rows["role"].copy())
            yield Chunk(start_ms, end_ms, events)

    def chunks(self, n_events: int) -> Iterator[Chunk]:
        """Hours put together until there are so many events."""
        waiting: list[Chunk] = []
        for chunk in self.hours():
            waiting.append(chunk)
            if sum(one.n_events for one in waiting) >= n_events:
                yield joined(waiting)
                waiting = []
        if waiting:
            yield joined(waiting)


def joined(chunks: list[Chunk]) -> Chunk:
    events = {}
    for event in EVENTS:
        some = [chunk.events[event] for chunk in chunks]
        columns = {name: np.concatenate([one.columns[name] for one in some]) for name in some[0].columns}
        events[event] = Events(columns, np.concatenate([one.roles for one in some]))
    return Chunk(chunks[0].start_ms, chunks[-1].end_ms, events)


class _World:
    """Who there is, what there is to hear, and what happens in an hour."""

    def __init__(self, traffic: Traffic) -> None:
        self.seed, n = traffic.seed, traffic.n_users
        self.n_users, self.n_groups, self.n_hours = n, traffic.n_groups, 24 * traffic.days
        draws = self._draws("world", 0)
        self._number_keys(draws)
        self._fill_catalogue(draws)
        self._people_the_place(draws)

    def _draws(self, source: str, hour: int) -> Draws:
        return Draws(self.seed, _SOURCES.index(source), hour)

    def _number_keys(self, draws: Draws) -> None:
        """Each kind of key is numbered through, honest ones first; what is shown is a permutation of that."""
        n, groups = self.n_users, self.n_groups
        self.farm_account = n
        self.ring_account = self.farm_account + groups * FARM_ACCOUNTS
        self.spam_account = self.ring_account + groups * RING_ACCOUNTS
        self.new_account = self.spam_account + groups * SPAM_ACCOUNTS
        self.account_names = draws.permutation(self.new_account + self.n_hours * groups * SIGNUP_MOST)

        self.n_homes, self.n_offices, self.n_carriers = n // 2, 1 + n // 250, 2 + n // 300
        self.office_ip = self.n_homes
        self.carrier_ip = self.office_ip + self.n_offices
        self.farm_ip = self.carrier_ip + self.n_carriers
        self.signup_ip = self.farm_ip + groups * FARM_IPS
        self.takeover_ip = self.signup_ip + groups * SIGNUP_IPS
        self.ip_names = draws.permutation(self.takeover_ip + groups * TAKEOVER_IPS)

        self.tablet = n  # a family's; then those of farms
        self.farm_device = n + self.n_homes
        n_days = self.n_hours // 24
        self.device_names = draws.permutation(self.farm_device + groups * SIGNUP_DEVICES * n_days)

    def _fill_catalogue(self, draws: Draws) -> None:
        """Tracks, most popular first, then those to sleep by, the release, and the attackers'."""
        n, groups = 1000 + 3 * self.n_users, self.n_groups
        self.n_popular = n
        n_uploaders = n // 10
        self.popularity = np.cumsum(1.0 / (np.arange(n) + 5.0))  # Zipf, flattened at the top
        square = draws.units(n)
        honest = (square * square * n_uploaders).astype(np.int64)
        self.sleep_track = n
        self.release_track = n + SLEEP_TRACKS
        self.farm_track = self.release_track + 1
        self.takeover_track = self.farm_track + groups * FARM_TRACKS
        n_tracks = self.takeover_track + groups * TAKEOVER_TRACKS
        self.uploader = np.concatenate([
            honest,
            n_uploaders + np.arange(SLEEP_TRACKS) // 2,
            honest[:1],  # the release is by the uploader of the most popular track
            n_uploaders + SLEEP_TRACKS + np.arange(groups * FARM_TRACKS) // FARM_TRACKS,
            n_uploaders + SLEEP_TRACKS + groups + np.arange(groups * TAKEOVER_TRACKS) // TAKEOVER_TRACKS,
        ])  # fmt: skip
        self.length_ms = 90_000 + draws.below(n_tracks, 120_000) + draws.below(n_tracks, 120_000)
        short = draws.chance(n_tracks, 0.02)  # interludes
        self.length_ms[short] = draws.between(int(short.sum()), 31_000, 60_000)
        self.length_ms[n : n + SLEEP_TRACKS] = 31_500 + 15_000 * np.arange(SLEEP_TRACKS)
        self.by_uploader = np.argsort(honest, kind="stable")
        self.first_of = np.searchsorted(honest[self.by_uploader], np.arange(n_uploaders + 1))
        self.n_uploaders = n_uploaders
        self.track_names = draws.permutation(n_tracks)
        self.uploader_names = draws.permutation(n_uploaders + SLEEP_TRACKS + 2 * groups)

    def _people_the_place(self, draws: Draws) -> None:
        n = self.n_users
        self.home = draws.below(n, self.n_homes)
        self.works = draws.chance(n, 0.3)
        square = draws.units(n)
        self.office = (square * square * self.n_offices).astype(np.int64)
        self.sessions = np.minimum(SESSIONS_A_DAY / np.sqrt(1.0 - draws.units(n)), MOST_SESSIONS)
        self.clock_shift = draws.below(n, 7) - 3
        self.clock_shift[draws.chance(n, 0.03)] += 12  # they work at night
        self.skipping = 0.15 + 0.4 * draws.units(n)
        self.outgoing = 2.0 * draws.units(n)
        self.sleeps_to = np.where(draws.chance(n, 0.01), draws.below(n, SLEEP_TRACKS), -1)
        self.fan_of = np.where(draws.chance(n, 0.02), draws.below(n, self.n_uploaders), -1)
        has_tracks = self.first_of[self.fan_of + 1] > self.first_of[self.fan_of]
        self.fan_of[~has_tracks] = -1
        self.device = np.where(draws.chance(n, 0.15), self.tablet + self.home, np.arange(n))
        # Who joins on the way, and when: one class of a school together.
        joins = draws.chance(n, min(JOINING_A_DAY * self.n_hours / 24, 0.5))
        joins[0] = False  # somebody has always been there
        self.joined = np.where(joins, draws.below(n, self.n_hours), -1)
        self.in_class = joins & (np.cumsum(joins) <= min(20, 4 + int(joins.sum()) // 10))
        class_hour = 10 + 24 * int(draws.below(1, max(1, min(self.n_hours // 24, 5)))[0])
        self.joined[self.in_class] = class_hour
        self.release_hour = 10 + 24 * int(draws.below(1, self.n_hours // 24)[0])

    # -- an hour

    def hour(self, hour: int) -> dict[str, list[Rows]]:
        """What begins in it, of every type; some of it ends later."""
        made: dict[str, list[Rows]] = {event: [] for event in EVENTS}
        sources: list[tuple[str, Callable[[_Hour], None]]] = [
            ("people", self._people),
            ("sleep", self._sleepers),
        ]
        if self.n_groups:
            sources += [
                ("play_farm", self._farms),
                ("follow_ring", self._rings),
                ("comment_spam", self._spammers),
                ("signup_farm", self._signup_farms),
                ("account_takeover", self._takeovers),
            ]
        for source, fill in sources:
            fill(_Hour(hour, START_MS + hour * HOUR_MS, self._draws(source, hour), made))
        return made

    def _people(self, now: _Hour) -> None:
        draws, n = now.draws, self.n_users
        local = (now.hour + self.clock_shift) % 24
        rhythm = np.array(RHYTHM, np.float64) / sum(RHYTHM)
        is_new = self.joined == now.hour
        starts = (draws.chance(n, self.sessions * rhythm[local]) & (self.joined < now.hour)) | is_new
        who = np.flatnonzero(starts)
        m = who.size
        ts = now.start_ms + draws.below(m, HOUR_MS)
        ip, role = self._places(now, who, local[who])
        ts = self._sign_up(now, who[is_new[who]], ts, ip, is_new[who])
        ts = self._log_in(now, who, ts, ip, role)
        self._listen(now, who, ts, ip, role)
        self._settle_in(now, who[is_new[who]], ts[is_new[who]])
        self._give_thanks(now)

    def _places(self, now: _Hour, who: Ints, local: Ints) -> tuple[Ints, NDArray[np.uint8]]:
        """Where each is: at work, on the way, at home."""
        m = who.size
        is_weekday = now.hour // 24 % 7 < 5
        at_work = (local >= OFFICE_HOURS.start) & (local < OFFICE_HOURS.stop) & is_weekday
        at_work &= self.works[who] & now.draws.chance(m, 0.8)
        on_the_way = now.draws.chance(m, 0.35)
        carrier = self.carrier_ip + now.draws.below(m, self.n_carriers)
        ip = np.where(on_the_way, carrier, self.home[who])
        ip = np.where(at_work, self.office_ip + self.office[who], ip)
        role = np.where(on_the_way, ROLE["carrier"], ROLE["listener"])
        role = np.where(at_work, ROLE["office"], role)
        in_class = self.in_class[who] & (self.joined[who] == now.hour)
        return np.where(in_class, self.office_ip, ip), role.astype(np.uint8)

    def _sign_up(self, now: _Hour, who: Ints, ts: Ints, ip: Ints, is_new: Mask) -> Ints:
        role = np.where(self.device[who] >= self.tablet, ROLE["tablet"], ROLE["listener"])
        role[self.in_class[who]] = ROLE["class"]
        now.add(
            "signup", who.size, ts=ts[is_new], account=who, ip=ip[is_new], device=self.device[who], role=role
        )
        return ts + np.where(is_new, 30_000, 0)

    def _log_in(self, now: _Hour, who: Ints, ts: Ints, ip: Ints, role: NDArray[np.uint8]) -> Ints:
        """Some log in first, a few of them not at once. Returns when each begins to listen."""
        draws, m = now.draws, who.size
        logs_in = draws.chance(m, 0.15)
        fails = np.where(draws.chance(m, 0.07), draws.between(m, 1, 4), 0)
        forgot = draws.chance(m, 0.01)
        fails = np.where(forgot, draws.between(m, 5, 10), fails)
        tries = np.where(logs_in, fails + 1, 0)
        of, place = _expanded(tries)
        at = ts[of] + _sums_within(4_000 + draws.exponential(of.size, 6_000.0), place)
        shown = np.where(forgot, ROLE["forgot password"], role)[of]
        now.add("login", of.size, ts=at, account=who[of], ip=ip[of], ok=place == fails[of], role=shown)
        begins = ts.copy()
        last = np.cumsum(tries)[logs_in] - 1
        begins[logs_in] = at[last] + 2_000
        return begins

    def _listen(self, now: _Hour, who: Ints, ts: Ints, ip: Ints, role: NDArray[np.uint8]) -> None:
        draws = now.draws
        of, place = _expanded(np.minimum(1 + draws.exponential(who.size, SESSION_PLAYS), MOST_PLAYS))
        n, account, shown = of.size, who[of], role[of].copy()
        favourite = np.uint64(FAVOURITES) * account.astype(np.uint64) + draws.below(n, FAVOURITES).astype(
            np.uint64
        )
        loved = placed(unit_of(mixed(favourite + (np.uint64(self.seed) << np.uint64(40)))), self.popularity)
        track = np.where(draws.chance(n, 0.35), loved, draws.weighted(n, self.popularity))
        fan = (self.fan_of[account] >= 0) & draws.chance(n, 0.7)
        first = self.first_of[self.fan_of[account]]
        n_own = np.maximum(self.first_of[self.fan_of[account] + 1] - first, 1)
        own = self.by_uploader[np.minimum(first + draws.below(n, n_own), self.n_popular - 1)]
        track = np.where(fan, own, track)
        out = self.release_hour <= now.hour < self.release_hour + RELEASE_HOURS
        hears_release = draws.chance(n, 0.06 if out else 0.0) & ~fan
        track = np.where(hears_release, self.release_track, track)
        shown[hears_release] = ROLE["release day"]
        shown[fan] = ROLE["fan"]

        length = self.length_ms[track]
        skipped = np.minimum(1_000 + draws.exponential(n, 25_000.0), length)
        ms_played = np.where(draws.chance(n, self.skipping[account]), skipped, length)
        gap = 400 + draws.exponential(n, 1_500.0)
        gap += np.where(draws.chance(n, 0.06), draws.exponential(n, 240_000.0), 0)
        at = ts[of] + _sums_within(ms_played + gap, place)
        now.add("play", n, ts=at, account=account, track=track, ip=ip[of], ms_played=ms_played, role=shown)
        self._react(now, account, track, at, shown)

    def _react(self, now: _Hour, account: Ints, track: Ints, at: Ints, role: NDArray[np.uint8]) -> None:
        """A like, a follow, a comment, seconds after a play."""
        draws = now.draws
        eager = self.outgoing[account] * np.where(role == ROLE["release day"], 4.0, 1.0)
        for kind, share in ((LIKE, 0.02), (FOLLOW, 0.006), (COMMENT, 0.008)):
            some = np.flatnonzero(draws.chance(account.size, share * eager))
            m = some.size
            target = (
                self.uploader_names[self.uploader[track[some]]]
                if kind == FOLLOW
                else (self.track_names[track[some]])
            )
            text = np.where(draws.chance(m, COMMON_TEXT_SHARE), draws.below(m, SHARED_TEXTS), _anew(draws, m))
            now.add(
                "action", m,
                ts=at[some] + 1_000 + draws.exponential(m, 3_000.0), account=account[some], target=target,
                letter=ord("u" if kind == FOLLOW else "t"), kind=kind, text=text if kind == COMMENT else -1,
                role=role[some],
            )  # fmt: skip

    def _settle_in(self, now: _Hour, who: Ints, ts: Ints) -> None:
        draws = now.draws
        of, place = _expanded(np.where(draws.chance(who.size, 0.5), draws.between(who.size, 3, 9), 0))
        n = of.size
        now.add(
            "action", n, ts=ts[of] + _sums_within(draws.between(n, 3_000, 20_000), place), account=who[of],
            target=self.uploader_names[self.uploader[draws.weighted(n, self.popularity)]], letter=ord("u"),
            kind=FOLLOW, text=-1, role=ROLE["newcomer"],
        )  # fmt: skip

    def _give_thanks(self, now: _Hour) -> None:
        draws = now.draws
        who = np.flatnonzero((self.joined < now.hour) & draws.chance(self.n_users, 0.0001))
        m = who.size
        begins = now.start_ms + draws.below(m, HOUR_MS)
        track, words = draws.below(m, self.n_popular), draws.below(m, SHARED_TEXTS)
        of, place = _expanded(draws.between(m, 5, 13))
        n = of.size
        now.add(
            "action", n, ts=begins[of] + _sums_within(5_000 + draws.exponential(n, 40_000.0), place),
            account=who[of], target=self.track_names[track[of]], letter=ord("t"), kind=COMMENT,
            text=np.where(draws.chance(n, 0.7), words[of], _anew(draws, n)), role=ROLE["thanks"],
        )  # fmt: skip

    def _sleepers(self, now: _Hour) -> None:
        """Once a night, until morning."""
        draws = now.draws
        local = (now.hour + self.clock_shift) % 24
        who = np.flatnonzero((self.sleeps_to >= 0) & (self.joined < now.hour) & np.isin(local, BEDTIME))
        who = who[draws.chance(who.size, 0.4)]
        length = self.length_ms[self.sleep_track + self.sleeps_to[who]]
        of, place = _expanded(draws.between(who.size, 5, 8) * HOUR_MS // (length + 400))
        n, account = of.size, who[of]
        begins = now.start_ms + draws.below(who.size, HOUR_MS)
        at = begins[of] + _sums_within(length[of] + draws.between(n, 200, 600), place)
        now.add(
            "play", n, ts=at, account=account, track=self.sleep_track + self.sleeps_to[account],
            ip=self.home[account], ms_played=length[of], role=ROLE["sleeper"],
        )  # fmt: skip

    # -- attacks

    def _farms(self, now: _Hour) -> None:
        draws, n_all = now.draws, self.n_groups * FARM_ACCOUNTS
        who = np.flatnonzero(draws.chance(n_all, 0.12))
        m, farm = who.size, who // FARM_ACCOUNTS
        hides = farm % 2 == 1
        own_ip = self.farm_ip + farm * FARM_IPS + draws.below(m, FARM_IPS)
        proxy = self._proxies(farm, draws.below(m, FARM_PROXIES))
        ip = np.where(hides, proxy, own_ip)
        of, place = _expanded(draws.between(m, 8, 25))
        n = of.size
        covers = draws.chance(n, 1 / 7)
        track = self.farm_track + farm[of] * FARM_TRACKS + draws.below(n, FARM_TRACKS)
        track = np.where(covers, draws.weighted(n, self.popularity), track)
        ms_played = np.where(covers, draws.between(n, 40_000, 200_000), draws.between(n, 31_000, 34_000))
        begins = now.start_ms + draws.below(m, HOUR_MS)
        at = begins[of] + _sums_within(ms_played + draws.between(n, 300, 1_300), place)
        role = np.where(hides, ROLE["farm on many ips"], ROLE["farm on few ips"])
        now.add(
            "play", n, ts=at, account=self.farm_account + who[of], track=track, ip=ip[of],
            ms_played=ms_played, role=role[of],
        )  # fmt: skip

    def _rings(self, now: _Hour) -> None:
        draws, n_all = now.draws, self.n_groups * RING_ACCOUNTS
        who = np.flatnonzero(draws.chance(n_all, 0.03))
        m = who.size
        of, place = _expanded(draws.between(m, 6, 16))
        n, ring = of.size, who[of] // RING_ACCOUNTS
        customer = self._customers(ring, draws.below(n, RING_CUSTOMERS))
        follows = draws.chance(n, 0.6)
        each_other = follows & draws.chance(n, 0.7)
        member = self.ring_account + ring * RING_ACCOUNTS + draws.below(n, RING_ACCOUNTS)
        n_own = self.first_of[customer + 1] - self.first_of[customer]
        track = self.by_uploader[self.first_of[customer] + draws.below(n, n_own)]
        target = np.where(follows, self.uploader_names[customer], self.track_names[track])
        target = np.where(each_other, self.account_names[member], target)
        letter = np.where(each_other, ord("a"), np.where(follows, ord("u"), ord("t")))
        begins = now.start_ms + draws.below(m, HOUR_MS)
        now.add(
            "action", n, ts=begins[of] + _sums_within(draws.between(n, 4_000, 7_000), place),
            account=self.ring_account + who[of], target=target, letter=letter,
            kind=np.where(follows, FOLLOW, LIKE), text=-1, role=ROLE["ring"],
        )  # fmt: skip

    def _spammers(self, now: _Hour) -> None:
        draws, n_all = now.draws, self.n_groups * SPAM_ACCOUNTS
        who = np.flatnonzero(draws.chance(n_all, 0.05))
        m = who.size
        of, place = _expanded(draws.between(m, 8, 21))
        n = of.size
        campaign = who[of] // SPAM_ACCOUNTS
        text = SHARED_TEXTS + campaign * SPAM_TEXTS + draws.below(n, SPAM_TEXTS)
        text = np.where(draws.chance(n, 1 / 3), _anew(draws, n), text)
        begins = now.start_ms + draws.below(m, HOUR_MS)
        now.add(
            "action", n, ts=begins[of] + _sums_within(draws.between(n, 6_000, 10_000), place),
            account=self.spam_account + who[of], target=self.track_names[draws.below(n, 200)],
            letter=ord("t"), kind=COMMENT, text=text, role=ROLE["spammer"],
        )  # fmt: skip

    def _signup_farms(self, now: _Hour) -> None:
        draws = now.draws
        farm = np.flatnonzero(draws.chance(self.n_groups, 0.1))
        m = farm.size
        of, place = _expanded(draws.between(m, 5, SIGNUP_MOST + 1))
        n = of.size
        account = self.new_account + (now.hour * self.n_groups + farm[of]) * SIGNUP_MOST + place
        today = (now.hour // 24 * self.n_groups + farm[of]) * SIGNUP_DEVICES
        device = self.farm_device + today + draws.below(n, SIGNUP_DEVICES)
        own_ip = self.signup_ip + farm[of] * SIGNUP_IPS + draws.below(n, SIGNUP_IPS)
        proxy = self._proxies(farm[of] + self.n_groups, draws.below(n, FARM_PROXIES))
        begins = now.start_ms + draws.below(m, HOUR_MS)
        now.add(
            "signup", n, ts=begins[of] + _sums_within(draws.between(n, 20_000, 60_000), place),
            account=account, ip=np.where(draws.chance(n, 0.5), proxy, own_ip), device=device,
            role=ROLE["sign-up farm"],
        )  # fmt: skip

    def _takeovers(self, now: _Hour) -> None:
        draws, groups = now.draws, self.n_groups
        known = np.flatnonzero(self.joined < now.hour)
        # A stolen list: another account at each try, mostly in vain.
        campaign = np.flatnonzero(draws.chance(groups, 0.3))
        m = campaign.size
        of, place = _expanded(draws.between(m, 10, 41))
        n = of.size
        begins = now.start_ms + draws.below(m, HOUR_MS)
        ip = self._takeover_ips(campaign, draws.below(m, TAKEOVER_IPS))[of]
        account = known[draws.below(n, known.size)]
        ok = draws.chance(n, 0.03)
        at = begins[of] + _sums_within(draws.between(n, 1_000, 4_000), place)
        now.add("login", n, ts=at, account=account, ip=ip, ok=ok, role=ROLE["stuffing"])
        self._abuse(now, campaign[of][ok], account[ok], ip[ok], at[ok])
        # One account, until it opens or seems not to.
        campaign = np.flatnonzero(draws.chance(groups, 0.05))
        m = campaign.size
        victim, opens = known[draws.below(m, known.size)], draws.chance(m, 0.5)
        tries = draws.between(m, 15, 41)
        of, place = _expanded(tries)
        n = of.size
        begins = now.start_ms + draws.below(m, HOUR_MS)
        ip = self._takeover_ips(campaign[of], draws.below(n, 3))
        ok = opens[of] & (place == tries[of] - 1)
        at = begins[of] + _sums_within(draws.between(n, 5_000, 30_000), place)
        now.add("login", n, ts=at, account=victim[of], ip=ip, ok=ok, role=ROLE["guessing"])
        self._abuse(now, campaign[of][ok], victim[of][ok], ip[ok], at[ok])

    def _abuse(self, now: _Hour, campaign: Ints, account: Ints, ip: Ints, ts: Ints) -> None:
        """Who got in plays what he is paid for."""
        draws = now.draws
        of, place = _expanded(draws.between(account.size, 10, 21))
        n = of.size
        track = self.takeover_track + campaign[of] * TAKEOVER_TRACKS + draws.below(n, TAKEOVER_TRACKS)
        at = ts[of] + 5_000 + _sums_within(self.length_ms[track] + draws.between(n, 400, 2_000), place)
        now.add(
            "play", n, ts=at, account=account[of], track=track, ip=ip[of], ms_played=self.length_ms[track],
            role=ROLE["taken over"],
        )  # fmt: skip

    def _proxies(self, group: Ints, place: Ints) -> Ints:
        """A household's ip that a group may use: always the same ones."""
        number = (group * FARM_PROXIES + place).astype(np.uint64)
        return (unit_of(mixed(number)) * self.n_homes).astype(np.int64)

    def _takeover_ips(self, campaign: Ints, place: Ints) -> Ints:
        """The first half are its own, the others are households'."""
        own = self.takeover_ip + campaign * TAKEOVER_IPS + place
        return np.where(place < TAKEOVER_IPS // 2, own, self._proxies(campaign + 2 * self.n_groups, place))

    def _customers(self, ring: Ints, place: Ints) -> Ints:
        """Honest uploaders that pay a ring; they have tracks."""
        number = (ring * RING_CUSTOMERS + place).astype(np.uint64)
        track = (unit_of(mixed(number + np.uint64(1 << 32))) * self.n_popular).astype(np.int64)
        return self.uploader[track]

    # -- keys as texts

    def columns(self, event: str, rows: Rows) -> dict[str, NDArray[Any]]:
        account = _numbered("a", self.account_names[rows["account"]])
        if event == "action":
            is_comment = rows["kind"] == COMMENT
            return {
                "ts": rows["ts"].copy(),
                "account": account,
                "target": _numbered(rows["letter"], rows["target"]),
                "kind": KINDS[rows["kind"]],
                "text": np.where(is_comment, _numbered("c", np.maximum(rows["text"], 0)), b""),
            }
        columns = {"ts": rows["ts"].copy(), "account": account}
        if event == "play":
            columns["track"] = _numbered("t", self.track_names[rows["track"]])
            columns["uploader"] = _numbered("u", self.uploader_names[self.uploader[rows["track"]]])
        columns["ip"] = _addresses(self.ip_names[rows["ip"]])
        if event == "play":
            columns["ms_played"] = rows["ms_played"].astype(np.float64)
        elif event == "signup":
            columns["device"] = _numbered("d", self.device_names[rows["device"]])
        else:
            columns["ok"] = rows["ok"].copy()
        return columns


@dataclass(frozen=True)
class _Hour:
    """One hour of one source: its draws, and where what it makes is put."""

    hour: int
    start_ms: int
    draws: Draws
    made: dict[str, list[Rows]]

    def add(self, event: str, n: int, **values: Any) -> None:
        rows = np.empty(n, _ROWS[event])
        assert set(values) == set(rows.dtype.names or ())  # noqa: S101  a mistake of this file
        for name, value in values.items():
            rows[name] = value
        self.made[event].append(rows)


def _expanded(counts: Ints) -> tuple[Ints, Ints]:
    """For things that have `counts` events each: whose each event is, and its place among those."""
    of = np.repeat(np.arange(counts.size), counts)
    return of, np.arange(of.size) - np.repeat(np.cumsum(counts) - counts, counts)


def _sums_within(steps: Ints, place: Ints) -> Ints:
    """Running sums that begin anew wherever place is 0."""
    sums = np.cumsum(steps)
    firsts = place == 0
    before = (sums - steps)[firsts]
    return sums - before[np.cumsum(firsts) - 1] if steps.size else sums


def _anew(draws: Draws, n: int) -> Ints:
    """Numbers of texts that nobody has written before."""
    return draws.between(n, 10_000_000, 10_000_000_000)


def _numbered(letter: str | NDArray[np.uint8], numbers: Ints) -> NDArray[np.bytes_]:
    """A letter and ten digits."""
    texts = np.empty((numbers.size, 11), np.uint8)
    texts[:, 0] = ord(letter) if isinstance(letter, str) else letter
    rest = numbers.astype(np.uint64)
    for place in range(10, 0, -1):
        texts[:, place] = 48 + rest % np.uint64(10)
        rest //= np.uint64(10)
    return texts.view("S11").reshape(-1)


def _addresses(numbers: Ints) -> NDArray[np.bytes_]:
    """An ip in 10.0.0.0/8, in which nobody is reached from outside, all of the same length."""
    texts = np.empty((numbers.size, 14), np.uint8)
    texts[:] = np.frombuffer(b"10.000.000.000", np.uint8)
    rest = numbers.copy()
    for place in (11, 7, 3):
        part = 100 + rest % 150
        rest //= 150
        texts[:, place] = 48 + part // 100
        texts[:, place + 1] = 48 + part // 10 % 10
        texts[:, place + 2] = 48 + part % 10
    return texts.view("S14").reshape(-1)
