"""A naive schema written as the file that people write, so that one declaration drives both stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from reference.naive import Derived, Feature, Fields, Schema, View

TIME_FIELD = "ts"  # in milliseconds


@dataclass(frozen=True)
class Filter:
    """One `where`: its text for the file, and the same meaning in Python (None = unknown)."""

    text: str
    meaning: Callable[[Fields], bool | None]

    def __call__(self, fields: Fields) -> bool | None:
        return self.meaning(fields)


@dataclass(frozen=True)
class Formula:
    """One formula: its text for the file, and the same in Python."""

    text: str
    meaning: Callable[..., float]

    def __call__(self, *values: float) -> float:
        return self.meaning(*values)


def features(
    aggregate: str,
    windows: str,
    *,
    value: str | None = None,
    where: Filter | None = None,
    name: str | None = None,
    exclude_self: bool | None = None,
    k: int = 0,
) -> tuple[Feature, ...]:
    """One item of a view's features for each of `windows`, in whole seconds or `lifetime`: "5s 60s". Of a
    decayed aggregate they are half-lives. `top` gives a share and an entropy for each."""
    base = name or (aggregate if value is None else f"{aggregate}_{value}")
    if aggregate.startswith("decayed"):
        return tuple(
            Feature(f"{base}_{window}", aggregate, 0, value, where, exclude_self, _window_ms(window))
            for window in windows.split()
        )
    kinds = [(base, aggregate)]
    if aggregate == "top":
        kinds = [(f"{base}_share", "top_share"), (f"{base}_entropy", "top_entropy")]
    return tuple(
        Feature(f"{base}_{window}", kind, _window_ms(window), value, where, exclude_self, k=k)
        for base, kind in kinds
        for window in windows.split()
    )


def yaml(schema: Schema) -> str:
    lines = ["version: 1", "name: test", "events:"]
    for name, kind in schema.events.items():
        lines += [
            f"  {name}:",
            f"    time: {{field: {TIME_FIELD}, unit: ms}}",
            f"    lateness: {kind.lateness_ms // 1000}s",
            f"    fields: {{{', '.join(f'{field}: {declared}' for field, declared in kind.fields.items())}}}",
        ]
        if kind.id_field is not None:
            lines.append(f"    ids: {{id: {kind.id_field}, dedupe: {kind.dedupe_ms // 1000}s}}")
    lines.append("views:" if schema.views else "views: {}")
    for name, view in schema.views.items():
        lines += [f"  {name}:", *(f"    {line}" for line in _view(view))]
    if schema.derived:
        lines += ["derived:", *(f"  {name}: {_derived(each)}" for name, each in schema.derived.items())]
    lines.append("services:" if schema.services else "services: {}")
    lines += [f"  {name}: [{', '.join(members)}]" for name, members in schema.services.items()]
    return "\n".join(lines) + "\n"


def _view(view: View) -> list[str]:
    key = ", ".join(f"{part}: {source}" for part, source in view.key.items())
    lines = [f"event: {view.event}", f"key: {{{key}}}" if key else "key: []"]
    if view.sketch is not None:
        epsilon, delta = view.sketch
        lines += ["store: sketch", f"epsilon: {epsilon}", f"delta: {delta}"]
    else:
        lines += [
            f"exact_events: {view.exact_events}",
            f"max_error: {view.max_error}",
            f"max_entries: {view.max_entries}",
            f"lifetime_idle: {view.lifetime_idle_ms // 1000}s",
        ]
    if any(feature.aggregate in ("top_share", "hour_entropy") for feature in view.features):
        lines += [f"top_counters: {view.top_counters}", f"top_error: {view.top_error}"]
    if view.offset_ms:
        lines.append(f"offset: {view.offset_ms // 1000}s")
    if view.where is not None:
        lines.append(f"where: {_text(view.where)}")
    lines.append("features:")
    items: dict[str, list[str]] = {}  # neighbours that differ in the window only are one item
    for feature in view.features:
        base, window = feature.name.rsplit("_", 1)
        if feature.aggregate == "top_entropy":
            continue  # comes with its share
        half_life = f"{feature.half_life_ms // 1000}s" if feature.half_life_ms else None
        k = str(feature.k) if feature.k else None
        arguments = ", ".join(each for each in (feature.value, half_life, k) if each is not None)
        aggregate = f"{feature.aggregate}({arguments})" if arguments else feature.aggregate
        if feature.aggregate == "top_share":
            base, aggregate = base.removesuffix("_share"), f"top({arguments})"
        item = f'name: {base}, aggregate: "{aggregate}"'
        if feature.where is not None:
            item += f", where: {_text(feature.where)}"
        if feature.exclude_self is not None:
            item += f", self: {'exclude' if feature.exclude_self else 'include'}"
        items.setdefault(item, []).extend([] if half_life else [window])
    for item, windows in items.items():
        lines.append(f"  - {{{item}, windows: [{', '.join(windows)}]}}" if windows else f"  - {{{item}}}")
    return lines


def _derived(derived: Derived) -> str:
    if not isinstance(derived.formula, Formula):
        raise TypeError("a formula that is written to a file needs its text: use Formula")
    text = f'"{derived.formula.text}"'
    return text if derived.by_zero is None else f"{{value: {text}, else: {derived.by_zero}}}"


def _text(where: object) -> str:
    if not isinstance(where, Filter):
        raise TypeError("a filter that is written to a file needs its text: use Filter")
    return f'"{where.text}"'


def _window_ms(window: str) -> int:
    return 0 if window == "lifetime" else 1000 * int(window.removesuffix("s"))
