"""What `featurestore demo --music` prints: each rule, whom it finds and whom it wrongs, the worst keys."""

from __future__ import annotations

import math
import shlex
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.cli.reaching import columns

if TYPE_CHECKING:
    from featurestore.demo.music import MusicResult
    from featurestore.demo.rules import Ground, Judged, Worst

WIDTH = 110
UNIT_BYTES = 1_000_000


def as_lines(result: MusicResult, n_each: int) -> list[str]:
    traffic = result.traffic
    n_events = sum(of.total() for of in result.events.values())
    n_benign = sum(of["benign"] for of in result.events.values())
    lines = [
        f"Made-up traffic: {traffic.n_users:,} people for {traffic.days} days (seed {traffic.seed}, strength "
        f"{traffic.strength:g}): {n_events:,} events, {1 - n_benign / n_events:.1%} of them abuse",
        "",
    ]
    for one in result.judged:
        lines += [*_rule(one, f"{one.rule.label}: flag a {one.rule.event} where", n_each), ""]
    lines += [
        *_rule(result.naive, "Not like this: an ip with many accounts is a play_farm, says", n_each),
        "",
    ]
    return [*lines, *_summary(result)]


def _rule(one: Judged, begin: str, n_each: int) -> list[str]:
    lines = [begin, *(f"    {'or ' if i else ''}{ground}" for i, ground in enumerate(one.rule.grounds))]
    lines.append(
        f"  flagged {one.n_flagged:,} of {one.n_events:,}: {_percent(one.precision)} rightly, "
        f"{_percent(one.recall)} of the {one.n_labelled:,} that are {one.rule.label}, "
        f"{len(one.accounts_right):,} of its {len(one.accounts_labelled):,} accounts"
    )
    wronged = [
        f"{role} {n:,} (of {len(one.accounts_wronged[role]):,} accounts)"
        for role, n in one.wronged.most_common()
    ]
    lines += textwrap.wrap(
        f"wrongly: {', '.join(wronged) if wronged else 'nobody'}",
        WIDTH, initial_indent="  ", subsequent_indent="    ",
    )  # fmt: skip
    for place, ground in enumerate(one.rule.grounds):
        worst = one.worst(place, n_each)
        if worst:
            lines += _table(ground, worst)
    return lines


def _table(ground: Ground, worst: list[Worst]) -> list[str]:
    heads = ground.features
    view = heads[0].partition(".")[0]
    rows = [
        [f"  {ground.key}", "as of (UTC)", *(name.removeprefix(f"{view}.") for name in heads), "whose"],
        *(
            [f"  {one.key}", _time(one.at_ms), *(_number(one.values[name]) for name in heads), one.role]
            for one in worst
        ),
    ]
    return columns(rows, right=range(2, 2 + len(heads)))


def _summary(result: MusicResult) -> list[str]:
    n_events = sum(of.total() for of in result.events.values())
    return [
        "Every number was read over gRPC: for each event its keys' vector, as of the end of its ten minutes.",
        "Traffic, labels and rules are by one hand: look at what shows what, not at how high shares are.",
        f"{n_events:,} events fed in {result.feed_seconds:.1f} s and {result.vectors_read:,} vectors read in "
        f"{result.read_seconds:.1f} s, in small batches; {result.rows:,} rows in "
        f"{result.row_bytes / UNIT_BYTES:.1f} MB; {result.seconds:.1f} s in all",
    ]


def next_lines(result: MusicResult, command: str, keep: Path | None) -> list[str]:
    if keep is None:
        return [
            f"Next: {command} generate DIR    writes this traffic to files, with its labels and the schema"
        ]
    return [f"Next: {command} serve --data {shlex.quote(str(keep))} &"]


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value == round(value) or value >= 1000 else f"{value:,.2f}"


def _time(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def as_dict(result: MusicResult, n_each: int, keep: Path | None) -> dict[str, Any]:
    traffic = result.traffic
    return {
        "users": traffic.n_users,
        "days": traffic.days,
        "strength": traffic.strength,
        "seed": traffic.seed,
        "events": {event: dict(of) for event, of in result.events.items()},
        "rules": [_rule_as_dict(one, n_each) for one in result.judged],
        "naive": _rule_as_dict(result.naive, n_each),
        "rows": result.rows,
        "row_bytes": result.row_bytes,
        "vectors_read": result.vectors_read,
        "seconds": round(result.seconds, 3),
        "store": None if keep is None else str(keep),
    }


def _rule_as_dict(one: Judged, n_each: int) -> dict[str, Any]:
    return {
        "label": one.rule.label,
        "event": one.rule.event,
        "rule": str(one.rule),
        "events": one.n_events,
        "labelled": one.n_labelled,
        "flagged": one.n_flagged,
        "right": one.n_right,
        "precision": _or_none(one.precision),
        "recall": _or_none(one.recall),
        "accounts": {"labelled": len(one.accounts_labelled), "right": len(one.accounts_right)},
        "wronged": {
            role: {"events": n, "accounts": len(one.accounts_wronged[role])}
            for role, n in one.wronged.most_common()
        },
        "worst": [
            {
                "key": {ground.key: worst.key},
                "as_of": f"{_time(worst.at_ms).replace(' ', 'T')}Z",
                "role": worst.role,
                "features": {name: _or_none(value) for name, value in worst.values.items()},
            }
            for place, ground in enumerate(one.rule.grounds)
            for worst in one.worst(place, n_each)
        ],
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
