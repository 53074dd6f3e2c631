"""The schema file as YAML: what was written, every piece with its line, and nothing interpreted yet.

PyYAML's parser events become `Text`, `Listing` and `Table` here, rather than Python values, for three
reasons. A mistake found later can name its line. Nothing is guessed: `no: number` declares a field called
no, and `1e3` is a number only where one is expected. And the file cannot cost more than its size: there are
no aliases to expand, no tags to construct, and nesting, size and repeated keys are refused while reading.

The functions below read one node as what the schema needs (a word, a number, a duration, a mapping with
known keys) or raise SchemaError with the node's line. `Mistakes` gathers such errors, so that one run
reports all that do not follow from another.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import yaml

from featurestore.errors import SchemaError

MAX_BYTES = 256 * 1024
TOO_LARGE = f"the schema is larger than {MAX_BYTES // 1024} KiB; split it into several stores"
MAX_NESTING = 16
MAX_REPORTED = 20  # mistakes in one message

SECOND_MS = 1000
UNITS_MS = {"s": SECOND_MS, "m": 60 * SECOND_MS, "h": 3600 * SECOND_MS, "d": 86400 * SECOND_MS}
DAY_MS = UNITS_MS["d"]
HOUR_MS = UNITS_MS["h"]

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_DECIMAL = re.compile(r"-?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,3})?")
_DURATION = re.compile(r"(0|[1-9][0-9]{0,9})([smhd])")
_NULLS = ("", "~", "null")


@dataclass(frozen=True, slots=True)
class Text:
    line: int
    text: str
    plain: bool  # written without quotes: may mean a number, true, false or nothing


@dataclass(frozen=True, slots=True)
class Listing:
    line: int
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Table:
    line: int
    entries: dict[str, Node]
    lines: dict[str, int]  # of the keys


Node = Text | Listing | Table


class Mistakes:
    """SchemaErrors found so far in one file. `report` raises them as one, in the file's order."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._found: list[SchemaError] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    @property
    def enough(self) -> bool:
        """More have been found than a message can tell: looking for others is not worth its cost."""
        return len(self._found) > MAX_REPORTED

    def add(self, problem: str, line: int | None = None) -> None:
        self._found.append(SchemaError(problem, line=line))

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Around one independent piece of the file: keeps its SchemaError, and what follows goes on."""
        try:
            yield
        except SchemaError as error:
            self._found.append(error)

    def report(self) -> None:
        if not self._found:
            return
        found = sorted(self._found, key=lambda error: error.line or 0)
        located = [
            str(SchemaError(each.problem, path=self._path, line=each.line)) for each in found[1:MAX_REPORTED]
        ]
        if len(found) > MAX_REPORTED:
            located.append("and more mistakes after these")
        raise SchemaError("\n".join([found[0].problem, *located]), path=self._path, line=found[0].line)


def read_document(source: str, mistakes: Mistakes) -> Table:
    """The file's one YAML document, which must be a mapping."""
    try:
        n_bytes = len(source.encode())
    except UnicodeEncodeError as error:
        line = source.count("\n", 0, error.start) + 1
        raise SchemaError("the schema holds a lone surrogate, which is no character", line=line) from None
    if n_bytes > MAX_BYTES:
        raise SchemaError(TOO_LARGE)
    try:
        events = yaml.parse(source, Loader=yaml.BaseLoader)
        first = next(event for event in events if not isinstance(event, yaml.StreamStartEvent))
        if isinstance(first, yaml.StreamEndEvent):
            raise SchemaError("the schema is empty; it begins with `version: 1`", line=1)
        root = _node(events, next(events), 0, mistakes)
        next(events)  # the end of the document
        after = next(events)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line_after = None if mark is None else mark.line + 1
        detail = error.problem or error.context or "it cannot be read"
        raise SchemaError(f"not valid YAML: {shown(detail)}", line=line_after) from None
    except yaml.reader.ReaderError as error:
        line = source.count("\n", 0, error.position) + 1
        raise SchemaError(
            f"not valid YAML: the character U+{error.character:04X} is not allowed", line=line
        ) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an escape for a character that does not exist
        raise SchemaError(f"not valid YAML: {shown(str(error))}") from None
    if not isinstance(after, yaml.StreamEndEvent):
        raise SchemaError("a schema is one YAML document; leave out what follows `---`", line=_line(after))
    if not isinstance(root, Table):
        raise SchemaError(
            f"a schema is a mapping that begins with `version: 1`, not {described(root)}", line=root.line
        )
    return root


def _line(event: yaml.Event) -> int:
    return 1 if event.start_mark is None else event.start_mark.line + 1


def _node(events: Iterator[yaml.Event], event: yaml.Event, depth: int, mistakes: Mistakes) -> Node:
    line = _line(event)
    if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
        name = shown(event.anchor)
        raise SchemaError(f"YAML anchors and aliases ({name}) are not used here; write it out", line=line)
    if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
        raise SchemaError(f"YAML tags ({shown(event.tag)}) are not used here; leave the tag out", line=line)
    if depth > MAX_NESTING:
        raise SchemaError(f"nested more than {MAX_NESTING} levels deep; no part of a schema is", line=line)
    if isinstance(event, yaml.ScalarEvent):
        return Text(line, event.value, event.implicit[0])
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_node(events, event, depth + 1, mistakes))
        return Listing(line, tuple(items))
    entries: dict[str, Node] = {}
    lines: dict[str, int] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _node(events, event, depth + 1, mistakes)
        if not isinstance(key, Text):
            raise SchemaError(f"the key of a mapping is a word, not {described(key)}", line=key.line)
        value = _node(events, next(events), depth + 1, mistakes)
        if key.text in entries:
            mistakes.add(
                f"{shown(key.text)} is given twice; it is already on line {lines[key.text]}", key.line
            )
            continue
        entries[key.text] = value
        lines[key.text] = key.line
    return Table(line, entries, lines)


def shown(text: str) -> str:
    """`text` fit for one line of a message: printable and not longer than a message can bear."""
    printable = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text[:81]
    )
    return printable if len(printable) <= 80 else printable[:77] + "..."


def described(node: Node) -> str:
    if isinstance(node, Table):
        return "a mapping" if node.entries else "an empty mapping"
    if isinstance(node, Listing):
        return "a list" if node.items else "an empty list"
    if is_null(node):
        return "nothing"
    return shown(node.text) if node.plain else f'the text "{shown(node.text)}"'


def suggestion(word: str, known: Collection[str]) -> str:
    """The end of an "unknown ..." message: the name that was probably meant, else those there are."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:  # difflib tells Count from count by every letter
        close = [name for name in known if name.lower() == word.lower()]
    if close:
        return f"; did you mean {close[0]}?"
    if not known:
        return "; there is none"
    names = sorted(known)
    return f"; known: {', '.join(names[:12])}" + (", ..." if len(names) > 12 else "")


def is_null(node: Node) -> bool:
    return isinstance(node, Text) and node.plain and node.text in _NULLS


def table(node: Node, what: str) -> Table:
    """A mapping with at least one entry."""
    if isinstance(node, Table) and node.entries:
        return node
    if is_null(node) or isinstance(node, Table):
        raise SchemaError(f"{what} is empty; fill it or leave it out", line=node.line)
    raise SchemaError(f"{what} must be a mapping, not {described(node)}", line=node.line)


def settings(
    node: Node, what: str, known: Collection[str], required: Collection[str], mistakes: Mistakes
) -> dict[str, Node]:
    """A mapping whose keys are known. Unknown keys are mistakes of their own; a missing one is raised."""
    found = table(node, what)
    for key, line in found.lines.items():
        if key not in known and not mistakes.enough:
            mistakes.add(f"unknown setting {shown(key)} in {what}{suggestion(key, known)}", line)
    for key in required:
        if key not in found.entries:
            raise SchemaError(f"{what} has no {key}", line=found.line)
    return {key: value for key, value in found.entries.items() if key in known}


def items(node: Node, what: str, example: str) -> tuple[Node, ...]:
    """A list with at least one item."""
    if isinstance(node, Listing) and node.items:
        return node.items
    if is_null(node) or isinstance(node, Listing):
        raise SchemaError(f"{what} is empty; fill it or leave it out", line=node.line)
    raise SchemaError(f"{what} must be a list such as {example}, not {described(node)}", line=node.line)


def word(node: Node, what: str) -> str:
    if not isinstance(node, Text) or is_null(node):
        raise SchemaError(f"{what} must be a word, not {described(node)}", line=node.line)
    return node.text


def choice(node: Node, what: str, known: Collection[str]) -> str:
    chosen = word(node, what)
    if chosen not in known:
        one_of = ", ".join(known)
        raise SchemaError(f"{what} must be one of {one_of}, not {described(node)}", line=node.line)
    return chosen


def integer(node: Node, what: str, least: int, most: int) -> int:
    if not (isinstance(node, Text) and node.plain and _INTEGER.fullmatch(node.text)):
        raise SchemaError(f"{what} must be a whole number, not {described(node)}", line=node.line)
    number = int(node.text)
    if not least <= number <= most:
        raise SchemaError(f"{what} must be from {least} to {most}, not {number}", line=node.line)
    return number


def fraction(node: Node, what: str, most: float, least: float = 0.0) -> float:
    """A number above 0, at least `least` and at most `most`."""
    if not (isinstance(node, Text) and node.plain and _DECIMAL.fullmatch(node.text)):
        raise SchemaError(f"{what} must be a number, not {described(node)}", line=node.line)
    number = float(node.text)
    if number <= 0 or not least <= number <= most:
        range_ = f"above 0 and at most {most:g}" if least == 0 else f"{least:g} to {most:g}"
        raise SchemaError(f"{what} must be {range_}, not {node.text}", line=node.line)
    return number


def number(node: Node, what: str) -> float:
    found = float(node.text) if isinstance(node, Text) and _DECIMAL.fullmatch(node.text) else math.nan
    if not (isinstance(node, Text) and node.plain and math.isfinite(found)):
        raise SchemaError(f"{what} must be a number, not {described(node)}", line=node.line)
    return found


def duration_ms(node: Node, what: str, least_ms: int, most_ms: int) -> int:
    written = word(node, what)
    match = _DURATION.fullmatch(written)
    if match is None:
        raise SchemaError(
            f"{what} must be a duration such as 30s, 10m, 1h or 7d, not {described(node)}", line=node.line
        )
    length_ms = int(match[1]) * UNITS_MS[match[2]]
    if not least_ms <= length_ms <= most_ms:
        raise SchemaError(
            f"{what} must be from {duration_text(least_ms)} to {duration_text(most_ms)}, not {written}",
            line=node.line,
        )
    return length_ms


def duration_text(length_ms: int) -> str:
    """The shortest way to write a duration that the file can hold: 3600000 is 1h."""
    unit = next((unit for unit in "dhm" if length_ms and length_ms % UNITS_MS[unit] == 0), "s")
    return f"{length_ms // UNITS_MS[unit]}{unit}"
