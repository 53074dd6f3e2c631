"""What a schema changes of the one before it, by kind and name: all that `apply` says before it does it.

Nothing is silent: whatever differs between two plans, but for their texts, is a `Change` here, and every kind
but FREE takes something from somebody, so that it needs consent:

    FREE    adds, or takes nothing away: anything new, longer windows, derived features, which have no state
    DROP    takes away a view, a feature or what its name means, a member of a service, a service, an event
            type, a field
    RESET   begins a view's state anew: what it counts, or how exactly, or the type of a field
    NARROW  keeps less of what there is: shorter windows, lateness or lifetime_idle
    ORDER   other values at the same places: of a service's vector, of an event's fields sent by position
    ERASE   erases kept keys
    CLOCK   reads time or tells events apart by something else: time field, unit, ids

A view is known by its name; what its state consists of by `ViewPlan.identity`. Where that differs the change
is a RESET, and `succeed` refuses it: nothing fills a view anew yet.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from featurestore.errors import ConfigError, ConsentError
from featurestore.plan import DerivedPlan, EventPlan, FeaturePlan, FieldPlan, Kind, Plan, Structure, ViewPlan
from featurestore.schema.document import duration_text, shown

MOST_NAMED = 10  # changes in one message, which is of 2,000 letters at most on the wire
MOST_WORDS = 120  # letters of what one was and is, in a line


class ChangeKind(enum.IntEnum):
    """The same numbers as ChangeKind in admin_service.proto."""

    FREE = 1
    DROP = 2
    RESET = 3
    NARROW = 4
    ORDER = 5
    ERASE = 6
    CLOCK = 7

    @property
    def word(self) -> str:
        """As `--allow` has it."""
        return self.name.lower()


#: What somebody may have to allow.
CONSENT = tuple(kind for kind in ChangeKind if kind is not ChangeKind.FREE)


@dataclass(frozen=True)
class Change:
    """One thing that becomes another. `before` is empty for what is new, `after` for what is gone."""

    kind: ChangeKind
    subject: str  # "view track: where", "ip.tracks_1d", "service fraud: order"
    before: str = ""
    after: str = ""

    @property
    def needs_consent(self) -> bool:
        return self.kind is not ChangeKind.FREE

    @property
    def sign(self) -> str:
        if self.kind is ChangeKind.ORDER:
            return ">"
        if self.before and self.after:
            return "~"
        return "+" if self.after else "-"

    @property
    def words(self) -> str:
        """What it was and is."""
        was = f"was {self.before}" if self.before else ""
        is_ = f"{'is ' if self.before else ''}{self.after}" if self.after else ""
        return ", ".join(each for each in (was, is_) if each)

    @property
    def line(self) -> str:
        """All of that for people; what is very long is cut."""
        words = self.words if len(self.words) <= MOST_WORDS else self.words[: MOST_WORDS - 3] + "..."
        return f"{self.sign} {self.subject:<34} {self.kind.name:<6} {words}".rstrip()


def kinds_of(words: Iterable[str]) -> frozenset[ChangeKind]:
    """The kinds that `--allow` names. Raises ConfigError."""
    known = {kind.word: kind for kind in CONSENT}
    kinds = set()
    for word in words:
        if word not in known:
            raise ConfigError(f"allow is {word!r}; it is of {', '.join(known)}", setting="allow")
        kinds.add(known[word])
    return frozenset(kinds)


def missing_consent(changes: Iterable[Change], allowed: Iterable[ChangeKind] = ()) -> list[ChangeKind]:
    """The kinds among `changes` that need consent and are not allowed, in their order."""
    given = set(allowed)
    return sorted({each.kind for each in changes if each.needs_consent} - given)


def require_consent(changes: Sequence[Change], allowed: Iterable[ChangeKind], path: str | None) -> None:
    """Raises ConsentError, naming what needs consent, where some of it is not allowed."""
    missing = missing_consent(changes, allowed)
    if not missing:
        return
    named = [each for each in changes if each.kind in missing]
    lines = [each.line for each in named[:MOST_NAMED]]
    if len(named) > MOST_NAMED:
        lines.append(f"and {len(named) - MOST_NAMED} more")
    words = ",".join(kind.word for kind in missing)
    raise ConsentError(
        f"this schema takes away some of what the store serves, and needs consent: `featurestore apply "
        f"--allow {words}`, on the store as it is served; nothing was changed\n" + "\n".join(lines),
        path=path,
    )


def changes_of(previous: Plan, plan: Plan) -> tuple[Change, ...]:
    """All that `plan` changes of what `previous` declares: event types, keys, views with their features,
    services."""
    retired = {view.view_id for view in previous.views if view.retired_ms is not None}
    previous, plan = previous.declared, plan.declared
    return (
        *_events(previous, plan),
        *_keys(previous, plan),
        *_views(previous, plan, retired),
        *_derived(previous, plan),
        *_services(previous, plan),
    )


# -- event types


def _events(previous: Plan, plan: Plan) -> Iterator[Change]:
    before = {event.name: event for event in previous.events}
    for event in plan.events:
        if event.name in before:
            yield from _event(before[event.name], event)
        else:
            yield Change(ChangeKind.FREE, f"event type {event.name}", after="new")
    after = {event.name for event in plan.events}
    for name in before:
        if name not in after:
            yield Change(ChangeKind.DROP, f"event type {name}", before="declared")


def _event(before: EventPlan, after: EventPlan) -> Iterator[Change]:
    subject = f"event type {after.name}"
    if before.time != after.time:
        yield Change(ChangeKind.CLOCK, f"{subject}: time", _time(before), _time(after))
    for name in (after.time.field, *(field.name for field in after.fields)):
        was, now = before.source_of(name), after.source_of(name)
        if was != now:
            yield Change(ChangeKind.FREE, f"{subject}: {name} in files", was, now)
    if before.time_format != after.time_format:
        was, now = before.time_format or "ISO 8601", after.time_format or "ISO 8601"
        yield Change(ChangeKind.FREE, f"{subject}: format of its time in files", was, now)
    if _ids(before) != _ids(after):
        yield Change(ChangeKind.CLOCK, f"{subject}: ids", _ids(before), _ids(after))
    yield from _length(f"{subject}: lateness", before.lateness_ms, after.lateness_ms)
    had, has = ({field.name: field for field in event.fields} for event in (before, after))
    for name, field in has.items():
        if name not in had:
            # Free, as no state changes; but what was nobody's business is now judged with the event.
            now = f"{_kind(field)}; refused from now on: another type, or undeclared names without it"
            yield Change(ChangeKind.FREE, f"{subject}: field {name}", after=now)
        elif _kind(had[name]) != _kind(field):
            yield Change(ChangeKind.RESET, f"{subject}: field {name}", _kind(had[name]), _kind(field))
    for name, field in had.items():
        if name not in has:
            yield Change(ChangeKind.DROP, f"{subject}: field {name}", _kind(field))
    yield from _order(f"{subject}: order of fields", list(had), list(has))


def _time(event: EventPlan) -> str:
    return f"{event.time.field} ({event.time.unit})"


def _ids(event: EventPlan) -> str:
    if event.id_field is None:
        return "none"
    return f"{event.fields[event.id_field].name} for {duration_text(event.dedupe_ms)}"


def _kind(field: FieldPlan) -> str:
    if field.is_key:
        return "key"
    return "string" if field.kind is Kind.TEXT else "number"


def _length(subject: str, before_ms: int, after_ms: int) -> Iterator[Change]:
    """Of something that keeps for so long."""
    if before_ms != after_ms:
        kind = ChangeKind.NARROW if after_ms < before_ms else ChangeKind.FREE
        yield Change(kind, subject, duration_text(before_ms), duration_text(after_ms))


def _order(subject: str, before: list[str], after: list[str]) -> Iterator[Change]:
    """Of what is known by its place, counted from 0: the first that is in both and has another."""
    places = {name: place for place, name in enumerate(after)}
    for place, name in enumerate(before):
        if places.get(name, place) != place:
            yield Change(ChangeKind.ORDER, subject, f"{name} at {place}", f"at {places[name]}")
            return


# -- keys


def _keys(previous: Plan, plan: Plan) -> Iterator[Change]:
    had, has = ({entity.parts for entity in each.entities if entity.keep_keys} for each in (previous, plan))
    for parts in sorted(has - had):
        yield Change(ChangeKind.FREE, f"keys of ({', '.join(parts)})", "not kept", "kept from now on")
    for parts in sorted(had - has):
        yield Change(ChangeKind.ERASE, f"keys of ({', '.join(parts)})", "kept", "erased")


# -- views and their features


def _views(previous: Plan, plan: Plan, retired: Set[int]) -> Iterator[Change]:
    before, after = _by_view(previous), _by_view(plan)
    for name, (structures, features) in after.items():
        if name in before:
            yield from _view(name, previous, plan, before[name], (structures, features))
            continue
        is_back = any(structure.view_id in retired for structure in structures.values())
        yield Change(ChangeKind.FREE, f"view {name}", after="as it was" if is_back else "new")
        for feature, what in features.items():
            yield Change(ChangeKind.FREE, feature, after=_text(what))
    for name, (_, features) in before.items():
        if name not in after:
            yield Change(ChangeKind.DROP, f"view {name}", before="kept")
            for feature, what in features.items():
                yield Change(ChangeKind.DROP, feature, before=_text(what))


_What = tuple[str, str]  # the name of the structure that a feature is answered from, and what it says of it
_View = tuple[dict[str, ViewPlan], dict[str, _What]]  # structures by their names, features by theirs


def _by_view(plan: Plan) -> dict[str, _View]:
    """By their names in the schema: one view has several structures."""
    views: dict[str, _View] = {}
    for view in plan.views:
        views.setdefault(_base(view.name), ({}, {}))[0][view.name] = view
    for feature in plan.features:
        view = plan.views[feature.view]
        views[_base(view.name)][1][feature.name] = (view.name, _meaning(plan, feature))
    return views


def _base(name: str) -> str:
    return name.partition(".")[0]


def _meaning(plan: Plan, feature: FeaturePlan) -> str:
    """What a feature says of its view's events; the structure's name has the rest."""
    view = plan.views[feature.view]
    field = plan.field_of(feature)
    text = feature.aggregate.name.lower() + (f"({field})" if field else "")
    column = None if feature.column is None else view.columns[feature.column]
    if column is not None and column.filter is not None:
        text += f" where {plan.programs[view.filters[column.filter]].source}"
    if view.structure is not Structure.DECAYED:
        text += f" over {duration_text(feature.window_ms)}" if feature.window_ms else " of its lifetime"
    return f"{text}, itself excluded" if feature.exclude_self else text


def _text(what: _What) -> str:
    structure, meaning = what
    inner = structure.partition(".")[2]
    return f"{meaning}, of {inner}" if inner else meaning


def _view(name: str, previous: Plan, plan: Plan, before: _View, after: _View) -> Iterator[Change]:
    subject = f"view {name}"
    (had, features_before), (has, features) = before, after
    common = [structure for structure in has if structure in had]
    resets: dict[str, Change] = {}
    for structure in common:
        for setting, old, new in differences(had[structure], has[structure]):
            resets.setdefault(setting, _reset(subject, setting, old, new))
    if not common:  # all of its state is another's, whatever its features are called
        some = (next(iter(each.values())) for each in (had, has))
        for setting, old, new in differences(*some):
            if setting in ("event", "key"):
                resets[setting] = _reset(subject, setting, old, new)
    yield from resets.values()
    windows = [_longest(each, structures) for each, structures in ((previous, had), (plan, has))]
    if common and None not in windows:
        yield from _length(f"{subject}: windows", *windows)  # type: ignore[arg-type]
    idle = [next(iter(structures.values())).lifetime_idle_ms for structures in (had, has)]
    for change in _length(f"{subject}: lifetime_idle", *idle):
        has_lifetime = any(each.has_lifetime for each in had.values())
        yield change if has_lifetime else Change(ChangeKind.FREE, change.subject, change.before, change.after)
    for feature, what in features.items():
        was = features_before.get(feature)
        if was is None:
            yield Change(ChangeKind.FREE, feature, after=_text(what))
        elif was != what and not resets:
            # Another structure starts empty; of the same one another value is read.
            kind = ChangeKind.RESET if was[0] != what[0] else ChangeKind.DROP
            yield Change(kind, feature, _text(was), _text(what))
    for feature, was in features_before.items():
        if feature not in features:
            yield Change(ChangeKind.DROP, feature, before=_text(was))


def _longest(plan: Plan, structures: Mapping[str, ViewPlan]) -> int | None:
    """The longest window of a view, ms, by what keeps so long; a sketch's are its identity."""
    for view in structures.values():
        if view.structure not in (Structure.DECAYED, Structure.COUNTMIN):
            return view.keep_ms - view.offset_ms - plan.events[view.event].lateness_ms
    return None


def differences(before: ViewPlan, after: ViewPlan) -> list[tuple[str, object, object]]:
    """What a structure's state was made of and what it is declared as now, where they differ."""
    old, new = json.loads(before.identity), json.loads(after.identity)
    return [(name, old.get(name), new[name]) for name in new if old.get(name) != new[name]]


def value_text(setting: str, value: object) -> str:
    """A value of an identity, in words."""
    if isinstance(value, int) and setting.endswith("_ms"):
        return duration_text(value)
    if isinstance(value, bool):
        return "kept" if value else "not kept"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {each}" for name, each in value.items()) or "empty"
    if isinstance(value, list):
        return ", ".join(shown(str(each)) for each in value) or "none"
    return shown(str(value)) if value != "" else "absent"


def _reset(subject: str, setting: str, old: object, new: object) -> Change:
    name = f"{subject}: {setting.removesuffix('_ms')}"
    return Change(ChangeKind.RESET, name, value_text(setting, old), value_text(setting, new))


# -- derived features and services


def _derived(previous: Plan, plan: Plan) -> Iterator[Change]:
    before, after = ({each.name: _formula(each) for each in one.derived} for one in (previous, plan))
    for name, formula in after.items():
        if before.get(name) != formula:
            yield Change(ChangeKind.FREE, name, before.get(name, ""), formula)
    for name, formula in before.items():
        if name not in after:
            yield Change(ChangeKind.FREE, name, before=formula)


def _formula(feature: DerivedPlan) -> str:
    return feature.source if feature.by_zero is None else f"{feature.source}, else {feature.by_zero:g}"


def _services(previous: Plan, plan: Plan) -> Iterator[Change]:
    before, after = (
        {service.name: [one.all_features[i].name for i in service.features] for service in one.services}
        for one in (previous, plan)
    )
    for name, members in after.items():
        subject = f"service {name}"
        if name not in before:
            yield Change(ChangeKind.FREE, subject, after=f"{len(members)} values")
            continue
        gone = [member for member in before[name] if member not in set(members)]
        came = [member for member in members if member not in set(before[name])]
        if gone:
            yield Change(ChangeKind.DROP, f"{subject}: members", before=", ".join(gone))
        if came:
            yield Change(ChangeKind.FREE, f"{subject}: members", after=", ".join(came))
        yield from _order(f"{subject}: order", before[name], members)
    for name, members in before.items():
        if name not in after:
            yield Change(ChangeKind.DROP, f"service {name}", before=f"{len(members)} values")
