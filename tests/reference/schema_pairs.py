"""Schemas that follow one another, and what one changes of the other: the oracle of `apply`.

A schema is plain data here, written to YAML for the store and judged as data: by what somebody who sends
events, reads a service or keeps state loses. It imports nothing from what it checks.

Not made here: what several structures of one view share in ways that only the compiler knows (sketches).
"""

from __future__ import annotations

import copy
import random
from typing import Any

Schema = dict[str, Any]
#: A kind and what it is of; REFUSED where state would answer for what it never counted.
Judged = set[tuple[str, str]]

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
FIELDS = ("account", "ip", "amount", "score", "note", "city")
KINDS = {
    "account": "key",
    "ip": "key",
    "amount": "number",
    "score": "number",
    "note": "string",
    "city": "key",
}
AGGREGATES = ("count", "mean(amount)", "max(score)", "distinct(ip)", "decayed_count(1h)", "top(ip, 5)")
#: A view that no edit touches, for what is derived.
BASE = {
    "event": "play",
    "key": "ip",
    "where": None,
    "windows": ["1h"],
    "max_error": "0.01",
    "lifetime_idle": "400d",
    "features": {"count": False},
    "lifetime": False,
}
FORMULAS = ("base.count_1h + 1", "base.count_1h * 3", "7 - base.count_1h")


def seconds(text: str) -> int:
    return int(text[:-1]) * SECONDS[text[-1]]


def made(rng: random.Random) -> Schema:
    """Some schema."""
    schema: Schema = {"events": {}, "views": {}, "derived": {}, "services": {}, "keep_keys": []}
    for name in ("play", "login")[: rng.randint(1, 2)]:
        fields = [*FIELDS]
        rng.shuffle(fields)
        schema["events"][name] = {
            "time": ["ts", rng.choice(["ms", "s"])],
            "lateness": rng.choice(["1h", "2h"]),
            "ids": rng.choice([None, None, ["note", "1h"]]),
            "fields": {field: KINDS[field] for field in fields},
        }
    for name in ("alpha", "beta", "gamma")[: rng.randint(1, 3)]:
        schema["views"][name] = _made_view(rng, list(schema["events"]))
    schema["views"]["base"] = copy.deepcopy(BASE)
    for name in ("risk.a", "risk.b")[: rng.randint(0, 2)]:
        schema["derived"][name] = rng.choice(FORMULAS)
    for name in ("fraud", "abuse")[: rng.randint(1, 2)]:
        members = [*columns(schema), *schema["derived"]]
        rng.shuffle(members)
        schema["services"][name] = members[: max(1, rng.randint(1, len(members)))]
    parts = sorted({view["key"] for view in schema["views"].values()})
    schema["keep_keys"] = [part for part in parts if rng.random() < 0.3]
    return schema


def _made_view(rng: random.Random, events: list[str]) -> dict[str, Any]:
    aggregates = ["count", *rng.sample(AGGREGATES[1:], rng.randint(0, 4))]
    return {
        "event": rng.choice(events),
        "key": rng.choice(["account", "ip"]),
        "where": rng.choice([None, None, "amount > 5"]),
        "windows": rng.sample(["10m", "1h", "1d"], rng.randint(1, 2)),
        "max_error": rng.choice(["0.01", "0.05"]),
        "lifetime_idle": rng.choice(["100d", "400d"]),
        "features": dict.fromkeys(aggregates, False),  # whether it leaves itself out
        "lifetime": rng.random() < 0.4,  # of the counts
    }


def columns(schema: Schema) -> list[str]:
    """The features of all views, by the names that they are read by."""
    return [name for view in schema["views"] for name in meanings(schema["views"][view], view)]


def meanings(view: dict[str, Any], name: str) -> dict[str, Any]:
    """What each feature of a view says, and of which structure."""
    found: dict[str, Any] = {}
    for aggregate, excluded in view["features"].items():
        word, _, inner = aggregate.rstrip(")").partition("(")
        arguments = [each.strip() for each in inner.split(",") if each]
        if word == "decayed_count":
            found[f"{name}.decayed_count_{arguments[0]}"] = (aggregate, aggregate, excluded)
            continue
        windows = [*view["windows"], *(["lifetime"] if view["lifetime"] and word == "count" else [])]
        for window in windows:
            if word == "top":
                for part in ("share", "entropy"):
                    found[f"{name}.top_{arguments[0]}_{part}_{window}"] = (aggregate, part, window)
            else:
                label = "_".join([word, *arguments])
                structure = aggregate if word == "distinct" else "log"
                found[f"{name}.{label}_{window}"] = (structure, aggregate, window, excluded)
    return found


def written(schema: Schema) -> str:
    """The schema file."""
    lines = ["version: 1", "name: pairs", "events:"]
    for name, event in schema["events"].items():
        field, unit = event["time"]
        ids = "" if event["ids"] is None else f", ids: {{id: {event['ids'][0]}, dedupe: {event['ids'][1]}}}"
        fields = ", ".join(f"{each}: {kind}" for each, kind in event["fields"].items())
        lines.append(
            f"  {name}: {{time: {{field: {field}, unit: {unit}}}, lateness: {event['lateness']}{ids}, "
            f"fields: {{{fields}}}}}"
        )
    lines.append("views:")
    for name, view in schema["views"].items():
        lines.append(f"  {name}:")
        lines += [f"    {key}: {view[key]}" for key in ("event", "key", "max_error", "lifetime_idle")]
        if view["where"]:
            lines.append(f"    where: {view['where']}")
        lines.append(f"    windows: [{', '.join(view['windows'])}]")
        lines.append("    features:")
        for aggregate, excluded in view["features"].items():
            entry = f'aggregate: "{aggregate}"'
            if excluded:
                entry += ", self: exclude"
            if aggregate == "count" and view["lifetime"]:
                entry += f", windows: [{', '.join([*view['windows'], 'lifetime'])}]"
            lines.append(f"      - {{{entry}}}")
    if schema["derived"]:
        lines.append("derived:")
        lines += [f"  {name}: {formula}" for name, formula in schema["derived"].items()]
    lines.append("services:")
    lines += [f"  {name}: [{', '.join(members)}]" for name, members in schema["services"].items()]
    if schema["keep_keys"]:
        lines.append(f"keep_keys: [{', '.join(schema['keep_keys'])}]")
    return "\n".join(lines) + "\n"


def edited(schema: Schema, rng: random.Random) -> Schema:
    """Another schema for the same store: one to three edits later, and whole again."""
    after = copy.deepcopy(schema)
    for _ in range(rng.randint(1, 3)):
        rng.choice(_EDITS)(after, rng)
    mend(after)
    return after


def mend(schema: Schema) -> None:
    """Services list what there is; keys are kept of what is there."""
    known = [*columns(schema), *schema["derived"]]
    for name, members in schema["services"].items():
        schema["services"][name] = [each for each in members if each in known] or known[:1]
    keys = {view["key"] for view in schema["views"].values()}
    schema["keep_keys"] = [part for part in schema["keep_keys"] if part in keys]


def _views(schema: Schema) -> list[str]:
    return [name for name in schema["views"] if name != "base"]


def _some_view(schema: Schema, rng: random.Random) -> dict[str, Any]:
    view: dict[str, Any] = schema["views"][rng.choice(_views(schema))]
    return view


def _edit_event(schema: Schema, rng: random.Random) -> None:
    event = schema["events"][rng.choice(list(schema["events"]))]
    what = rng.choice(["unit", "lateness", "ids", "add", "kind", "move"])
    if what == "unit":
        event["time"] = [rng.choice(["ts", "at"]), rng.choice(["ms", "s"])]
    elif what == "lateness":
        event["lateness"] = rng.choice(["30m", "1h", "2h", "3h"])
    elif what == "ids":
        event["ids"] = rng.choice([None, ["note", "1h"], ["note", "2h"], ["city", "1h"]])
    elif what == "kind":
        event["fields"]["city"] = rng.choice(["key", "string"])
    elif what == "add":
        if "extra" in event["fields"]:
            del event["fields"]["extra"]
        else:
            event["fields"]["extra"] = "number"
    else:
        names = list(event["fields"])
        rng.shuffle(names)
        event["fields"] = {name: event["fields"][name] for name in names}


def _edit_events(schema: Schema, rng: random.Random) -> None:
    used = {view["event"] for view in schema["views"].values()}
    if "logout" in schema["events"] and "logout" not in used:
        del schema["events"]["logout"]
    else:
        schema["events"]["logout"] = copy.deepcopy(next(iter(schema["events"].values())))


def _edit_view(schema: Schema, rng: random.Random) -> None:
    view = _some_view(schema, rng)
    what = rng.choice(["windows", "error", "where", "key", "idle", "lifetime", "self", "add", "drop", "top"])
    if what == "windows":
        view["windows"] = rng.sample(["10m", "1h", "1d", "7d"], rng.randint(1, 2))
    elif what == "error":
        view["max_error"] = rng.choice(["0.01", "0.05", "0.1"])
    elif what == "where":
        view["where"] = rng.choice([None, "amount > 5", "score > 1"])
    elif what == "key":
        view["key"] = rng.choice(["account", "ip"])
    elif what == "idle":
        view["lifetime_idle"] = rng.choice(["50d", "100d", "400d"])
    elif what == "lifetime":
        view["lifetime"] = not view["lifetime"]
    elif what == "self":
        view["features"]["count"] = not view["features"]["count"]
    elif what == "top" and "top(ip, 5)" in view["features"]:
        view["features"] = {
            ("top(ip, 6)" if a == "top(ip, 5)" else a): e for a, e in view["features"].items()
        }
    elif what == "drop" and len(view["features"]) > 1:
        del view["features"][rng.choice([each for each in view["features"] if each != "count"])]
    else:
        new = [each for each in AGGREGATES if each not in view["features"] and not each.startswith("top")]
        if new:
            view["features"][rng.choice(new)] = False


def _edit_views(schema: Schema, rng: random.Random) -> None:
    spare = [name for name in ("alpha", "beta", "gamma", "delta") if name not in schema["views"]]
    if len(_views(schema)) > 1 and (not spare or rng.random() < 0.5):
        del schema["views"][rng.choice(_views(schema))]
    elif spare:
        schema["views"][rng.choice(spare)] = _made_view(rng, list(schema["events"]))


def _edit_derived(schema: Schema, rng: random.Random) -> None:
    name = rng.choice(["risk.a", "risk.b"])
    if name in schema["derived"] and rng.random() < 0.4:
        del schema["derived"][name]
    else:
        schema["derived"][name] = rng.choice(FORMULAS)


def _edit_services(schema: Schema, rng: random.Random) -> None:
    name = rng.choice(["fraud", "abuse", "likes"])
    known = [*columns(schema), *schema["derived"]]
    members = schema["services"].get(name)
    what = rng.choice(["gone", "append", "insert", "shuffle", "take"])
    if members is None:
        schema["services"][name] = rng.sample(known, rng.randint(1, len(known)))
        return
    new = [each for each in known if each not in members]
    if what == "gone" and len(schema["services"]) > 1:
        del schema["services"][name]
    elif what == "append" and new:
        members.append(rng.choice(new))
    elif what == "insert" and new:
        members.insert(rng.randint(0, len(members)), rng.choice(new))
    elif what == "take" and len(members) > 1:
        members.remove(rng.choice(members))
    else:
        rng.shuffle(members)


def _edit_keys(schema: Schema, rng: random.Random) -> None:
    part = rng.choice(["account", "ip"])
    if part in schema["keep_keys"]:
        schema["keep_keys"].remove(part)
    else:
        schema["keep_keys"].append(part)


_EDITS = (
    _edit_event,
    _edit_events,
    _edit_view,
    _edit_view,
    _edit_view,
    _edit_views,
    _edit_derived,
    _edit_services,
    _edit_services,
    _edit_keys,
)


# -- what it is judged to be


def judged(before: Schema, after: Schema) -> Judged:
    """All that `after` changes of `before`."""
    return {
        *_judged_events(before["events"], after["events"]),
        *_judged_keys(set(before["keep_keys"]), set(after["keep_keys"])),
        *_judged_views(before, after),
        *(
            ("FREE", name)
            for name in {*before["derived"], *after["derived"]}
            if before["derived"].get(name) != after["derived"].get(name)
        ),
        *_judged_services(before["services"], after["services"]),
    }


def refused(before: Schema, after: Schema) -> set[str]:
    """The views whose state does not fit what is made of them; a log may keep more than it has to."""
    return {
        name
        for name in before["views"].keys() & after["views"].keys()
        if any(
            not _fits(_states(before, name)[each], state)
            for each, state in _states(after, name).items()
            if each in _states(before, name)
        )
    }


def _fits(had: tuple[Any, frozenset[str]], has: tuple[Any, frozenset[str]]) -> bool:
    """Whether a state answers for what is made of it: made of the same, and with all that is asked for."""
    return had[0] == has[0] and had[1] >= has[1]


def _states(schema: Schema, name: str) -> dict[str, tuple[Any, frozenset[str]]]:
    """Of each structure of a view, what its state is made of, and what of that it keeps."""
    view = schema["views"][name]
    event = schema["events"][view["event"]]["fields"]
    common = (view["event"], view["key"], event[view["key"]], view["where"])
    states: dict[str, tuple[Any, frozenset[str]]] = {}
    for aggregate in view["features"]:
        word, _, inner = aggregate.rstrip(")").partition("(")
        if word in ("distinct", "decayed_count", "top"):
            field = inner.split(",")[0].strip()
            states[aggregate] = ((common, event.get(field)), frozenset())
    kept = {each for each in view["features"] if each.startswith(("mean", "max"))}
    kept_parts = {_PARTS[each] for each in kept} | ({"lifetimes"} if view["lifetime"] else set())
    excluded_log = [each for each in view["features"] if each not in states]
    if excluded_log:
        states["log"] = ((common, view["max_error"]), frozenset(kept_parts))
    return states


_PARTS = {"mean(amount)": "sum and extremes of amount", "max(score)": "extremes of score"}


def _judged_events(before: dict[str, Any], after: dict[str, Any]) -> Judged:
    found: Judged = set()
    for name in {*before, *after}:
        subject = f"event type {name}"
        if name not in before or name not in after:
            found.add(("FREE" if name in after else "DROP", subject))
            continue
        old, new = before[name], after[name]
        if old["time"] != new["time"]:
            found.add(("CLOCK", f"{subject}: time"))
        if old["ids"] != new["ids"]:
            found.add(("CLOCK", f"{subject}: ids"))
        if old["lateness"] != new["lateness"]:
            less = seconds(new["lateness"]) < seconds(old["lateness"])
            found.add(("NARROW" if less else "FREE", f"{subject}: lateness"))
        for field in {*old["fields"], *new["fields"]}:
            was, is_ = old["fields"].get(field), new["fields"].get(field)
            if was != is_:
                kind = "FREE" if was is None else "DROP" if is_ is None else "RESET"
                found.add((kind, f"{subject}: field {field}"))
        row = [*old["fields"]]  # as somebody sends it who gives no names
        if any(
            new["fields"].keys() >= {row[i]} and [*new["fields"]][i : i + 1] != [row[i]]
            for i in range(len(row))
        ):
            found.add(("ORDER", f"{subject}: order of fields"))
    return found


def _judged_keys(before: set[str], after: set[str]) -> Judged:
    return {
        *(("FREE", f"keys of ({part})") for part in after - before),
        *(("ERASE", f"keys of ({part})") for part in before - after),
    }


def _judged_views(before: Schema, after: Schema) -> Judged:
    found: Judged = set()
    for name in {*before["views"], *after["views"]}:
        old, new = before["views"].get(name), after["views"].get(name)
        had = {} if old is None else meanings(old, name)
        has = {} if new is None else meanings(new, name)
        found |= {("FREE", each) for each in has.keys() - had.keys()}
        found |= {("DROP", each) for each in had.keys() - has.keys()}
        for each in had.keys() & has.keys():
            if had[each] != has[each]:
                found.add(("DROP" if had[each][0] == has[each][0] else "RESET", each))
        if old is None or new is None:
            found.add(("FREE" if old is None else "DROP", f"view {name}"))
            continue
        longest = [max(map(seconds, view["windows"])) for view in (old, new)]
        if longest[0] != longest[1]:
            found.add(("NARROW" if longest[1] < longest[0] else "FREE", f"view {name}: windows"))
        idle = [seconds(view["lifetime_idle"]) for view in (old, new)]
        if idle[0] != idle[1]:
            narrow = idle[1] < idle[0] and old["lifetime"]
            found.add(("NARROW" if narrow else "FREE", f"view {name}: lifetime_idle"))
    return found


def _judged_services(before: dict[str, list[str]], after: dict[str, list[str]]) -> Judged:
    found: Judged = set()
    for name in {*before, *after}:
        subject = f"service {name}"
        if name not in before or name not in after:
            found.add(("FREE" if name in after else "DROP", subject))
            continue
        old, new = before[name], after[name]
        if set(old) - set(new):
            found.add(("DROP", f"{subject}: members"))
        if set(new) - set(old):
            found.add(("FREE", f"{subject}: members"))
        # A model that reads by place: at some place of before there is now a value that it knows at another.
        if any(each in old and new.index(each) != old.index(each) for each in new):
            found.add(("ORDER", f"{subject}: order"))
    return found


# -- what a service has been


Vector = tuple[tuple[str, Any], ...]  # names of features in their order, with what each means


def vectors(schema: Schema) -> dict[str, Vector]:
    """What each service is: nothing of how exactly it is answered, or since when."""
    known = known_meanings(schema)
    return {
        name: tuple((each, known[each]) for each in members) for name, members in schema["services"].items()
    }


def known_meanings(schema: Schema) -> dict[str, Any]:
    """Of every feature that a schema has, by name."""
    known: dict[str, Any] = {}
    for name, view in schema["views"].items():
        for feature, meaning in meanings(view, name).items():
            known[feature] = (view["event"], view["key"], view["where"], meaning)
    for name, formula in schema["derived"].items():
        known[name] = (formula, known["base.count_1h"])
    return known


class Memory:
    """What each service of a store has been: the last eight, the newest first, the current one among them."""

    def __init__(self) -> None:
        self._been: dict[str, list[Vector]] = {}

    def apply(self, schema: Schema) -> None:
        now = vectors(schema)
        self._been = {
            name: [vector, *(each for each in self._been.get(name, []) if each != vector)][:8]
            for name, vector in now.items()
        }

    def served(self, schema: Schema) -> set[tuple[str, Vector]]:
        """Those that can still be answered: everything in them is there, and means what it meant."""
        known = known_meanings(schema)
        return {
            (name, vector)
            for name, been in self._been.items()
            for vector in been
            if all(known.get(feature) == meaning for feature, meaning in vector)
        }
