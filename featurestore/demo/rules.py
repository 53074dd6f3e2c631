"""One simple rule for each attack, as plain as a first day's work, and how to count what it finds.

    AtLeast, Ground, Rule   a threshold; thresholds that hold together and blame a key; any of some grounds
    Judged                  what a rule said of the events, beside what they were

The thresholds are round numbers, chosen by what a feature means before anything was counted, and left as they
were: what they miss and whom they wrong is part of the result. None is advice: the traffic and the rules are
by one hand. `NAIVE` is what not to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featurestore.demo.traffic import LABEL_OF_ROLE, LABELS, ROLES, Events


@dataclass(frozen=True)
class AtLeast:
    """A feature is at least so much; what is NaN is not."""

    feature: str
    least: float

    def __str__(self) -> str:
        return f"{self.feature} >= {self.least:g}"

    def holds(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        met: NDArray[np.bool_] = values >= self.least
        return met


@dataclass(frozen=True)
class Ground:
    """All tests hold. `key` is what is to blame: one of the event's columns."""

    key: str
    tests: tuple[AtLeast, ...]
    shown: tuple[str, ...]  # beside the tested ones; the worst is who has most of the first that is tested

    def __str__(self) -> str:
        return " and ".join(map(str, self.tests))

    @property
    def features(self) -> tuple[str, ...]:
        return (*(test.feature for test in self.tests), *self.shown)

    def holds(self, names: Sequence[str], values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Of each vector."""
        each = [test.holds(values[:, names.index(test.feature)]) for test in self.tests]
        met: NDArray[np.bool_] = np.logical_and.reduce(each)
        return met


@dataclass(frozen=True)
class Rule:
    """Flags events of one type as `label`, on any of its grounds."""

    label: str
    event: str
    grounds: tuple[Ground, ...]

    def __str__(self) -> str:
        return " or ".join(map(str, self.grounds))


RULES = (
    Rule("play_farm", "play", (
        Ground("account",
               (AtLeast("account.plays_1d", 10), AtLeast("account.barely_share_1d", 0.5)),
               ("account.tracks_1d", "account.interval_cv_1h")),
        Ground("track",
               (AtLeast("track.plays_1d", 20), AtLeast("track.barely_share_1d", 0.5)),
               ("track.accounts_1d", "track.accounts_per_ip_1d")),
    )),
    Rule("follow_ring", "action", (
        Ground("account",
               (AtLeast("action_account.follows_10m", 3),),
               ("action_account.follows_1d", "action_account.likes_1d", "action_account.targets_1d")),
    )),
    Rule("comment_spam", "action", (
        Ground("account",
               (AtLeast("action_account.comments_1h", 5),
                AtLeast("action_account.comments_per_text_1d", 1.5)),
               ("action_account.comments_1d", "action_account.targets_1d")),
    )),
    Rule("signup_farm", "signup", (
        Ground("device", (AtLeast("signup_device.count_7d", 3),),
               ("signup_device.count_1h", "signup_ip.count_1h", "signup_ip.count_7d")),
        Ground("ip", (AtLeast("signup_ip.count_1h", 3),),
               ("signup_ip.count_7d", "signup_device.count_1h", "signup_device.count_7d")),
    )),
    Rule("account_takeover", "login", (
        Ground("ip",
               (AtLeast("login_ip.accounts_1h", 5), AtLeast("login_ip.failed_share_1d", 0.5)),
               ("login_ip.failed_1h", "login_account.failed_1h")),
        Ground("account", (AtLeast("login_account.failed_1h", 5),),
               ("login_account.failed_10m", "login_account.ips_1h", "login_ip.accounts_1h")),
    )),
)  # fmt: skip
NAIVE = Rule("play_farm", "play", (
    Ground("ip", (AtLeast("ip.accounts_1d", 10),),
           ("ip.plays_1d", "ip.barely_share_1d", "ip.tracks_per_account_1d")),
))  # fmt: skip


@dataclass(frozen=True)
class Worst:
    """A key at its worst moment, and whose event that was."""

    key: str
    at_ms: int
    role: str
    values: dict[str, float]


@dataclass
class Judged:
    """What one rule said, counted up event by event and by the accounts behind them."""

    rule: Rule
    n_events: int = 0  # that it was asked about
    n_labelled: int = 0
    n_flagged: int = 0
    n_right: int = 0
    accounts_labelled: set[bytes] = field(default_factory=set)
    accounts_right: set[bytes] = field(default_factory=set)
    wronged: Counter[str] = field(default_factory=Counter)  # events of others that it flagged, by their role
    accounts_wronged: dict[str, set[bytes]] = field(default_factory=dict)
    _worst: dict[tuple[int, bytes], Worst] = field(default_factory=dict)  # by ground and key

    @property
    def precision(self) -> float:
        return self.n_right / self.n_flagged if self.n_flagged else float("nan")

    @property
    def recall(self) -> float:
        return self.n_right / self.n_labelled if self.n_labelled else float("nan")

    def add(self, events: Events, names: Sequence[str], values: NDArray[np.float64]) -> None:
        """`values[i]` is the vector of event i."""
        flagged = np.zeros(events.n_events, np.bool_)
        for place, ground in enumerate(self.rule.grounds):
            met = ground.holds(names, values)
            flagged |= met
            self._keep_worst(place, events, names, values, np.flatnonzero(met))
        labelled = events.labels == LABELS.index(self.rule.label)
        accounts = events.columns["account"]
        self.n_events += events.n_events
        self.n_labelled += int(labelled.sum())
        self.n_flagged += int(flagged.sum())
        self.n_right += int((flagged & labelled).sum())
        self.accounts_labelled.update(accounts[labelled].tolist())
        self.accounts_right.update(accounts[flagged & labelled].tolist())
        for row in np.flatnonzero(flagged & ~labelled).tolist():
            role = ROLES[events.roles[row]][0]
            self.wronged[role] += 1
            self.accounts_wronged.setdefault(role, set()).add(accounts[row])

    def _keep_worst(
        self,
        place: int,
        events: Events,
        names: Sequence[str],
        values: NDArray[np.float64],
        rows: NDArray[np.intp],
    ) -> None:
        features = self.rule.grounds[place].features
        shown = values[:, [names.index(name) for name in features]]
        keys = events.columns[self.rule.grounds[place].key]
        for row in rows.tolist():
            before = self._worst.get((place, keys[row]))
            if before is None or before.values[features[0]] < shown[row, 0]:
                self._worst[place, keys[row]] = Worst(
                    keys[row].decode(),
                    int(events.columns["ts"][row]),
                    ROLES[events.roles[row]][0],
                    dict(zip(features, shown[row].tolist(), strict=True)),
                )

    def worst(self, place: int, n: int) -> list[Worst]:
        """Of the ground at that place, the keys with the greatest first value."""
        first = self.rule.grounds[place].features[0]
        found = [one for (at, _), one in self._worst.items() if at == place]
        return sorted(found, key=lambda one: (-one.values[first], one.key))[:n]


def is_benign(role: str) -> bool:
    return LABELS[LABEL_OF_ROLE[[name for name, _ in ROLES].index(role)]] == "benign"
