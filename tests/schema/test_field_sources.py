"""Where files have a field and how they write its time: declared, kept in the plan, told to clients."""

from __future__ import annotations

import json

import pytest

from featurestore.client.catalog import event_plan, schema_of
from featurestore.errors import SchemaError
from featurestore.plan import Plan, SourcePlan
from featurestore.refusals import TIME_FORMATS
from featurestore.schema import compile_schema
from featurestore.schema.changes import Change, ChangeKind, changes_of
from featurestore.server.registry import describe

TEXT = """\
version: 1
name: zeek
events:
  conn:
    time: {field: at, from: "@timestamp", format: "%d/%b/%Y:%H:%M:%S %z"}
    fields: {ip: {kind: key, from: id.orig_h}, bytes: {kind: number}, port: key}
views:
  ip: {event: conn, key: ip, windows: [1h], features: [count, sum(bytes)]}
services: {s: [ip.*]}
"""
PLAIN = TEXT.replace('{field: at, from: "@timestamp", format: "%d/%b/%Y:%H:%M:%S %z"}', "at").replace(
    "{ip: {kind: key, from: id.orig_h}, bytes: {kind: number}, port: key}",
    "{ip: key, bytes: number, port: key}",
)


FORMAT = "%d/%b/%Y:%H:%M:%S %z"


def test_what_is_declared_is_in_the_plan_and_in_its_json() -> None:
    plan = compile_schema(TEXT)
    (event,) = plan.events
    assert event.sources == (SourcePlan("at", "@timestamp"), SourcePlan("ip", "id.orig_h"))
    assert event.time_format == "%d/%b/%Y:%H:%M:%S %z"
    assert [event.source_of(name) for name in ("at", "ip", "bytes")] == ["@timestamp", "id.orig_h", "bytes"]
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()


def test_a_plan_that_says_nothing_of_it_is_written_as_before() -> None:
    (event,) = json.loads(compile_schema(PLAIN).to_json())["events"]
    assert "sources" not in event
    assert "time_format" not in event


def test_what_a_field_means_is_not_where_files_have_it() -> None:
    """A store goes on with its state, and nothing needs consent."""
    before = compile_schema(PLAIN)
    after = compile_schema(TEXT, previous=before)
    assert after.version == before.version + 1
    assert [view.view_id for view in after.views] == [view.view_id for view in before.views]
    assert [feature.meaning for feature in after.features] == [f.meaning for f in before.features]
    assert changes_of(before, after) == (
        Change(ChangeKind.FREE, "event type conn: at in files", "at", "@timestamp"),
        Change(ChangeKind.FREE, "event type conn: ip in files", "ip", "id.orig_h"),
        Change(
            ChangeKind.FREE,
            "event type conn: format of its time in files",
            "ISO 8601",
            "%d/%b/%Y:%H:%M:%S %z",
        ),
    )


@pytest.mark.parametrize("text", [TEXT, PLAIN, PLAIN.replace("time: at", "time: {field: at, unit: ns}")])
def test_a_client_reads_files_as_the_schema_says(text: str) -> None:
    (event,) = compile_schema(text).events
    told = event_plan(schema_of(describe(compile_schema(text))), "conn")
    assert (told.time, told.fields, told.sources, told.time_format) == (
        event.time,
        event.fields,
        tuple(sorted(event.sources, key=lambda one: one.field == "at")),
        event.time_format,
    )


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "from: id.orig_h",
            "from: id..orig_h",
            "from of field ip of event conn is a column's name, or names",
        ),
        (
            "from: id.orig_h",
            "frm: id.orig_h",
            "unknown setting frm in field ip of event conn; did you mean from",
        ),
        ("kind: key, from: id.orig_h", "from: id.orig_h", "field ip of event conn has no kind"),
        ("kind: key, from", "kind: keys, from", "type of field ip of event conn must be one of"),
        (
            "%d/%b/%Y:%H:%M:%S %z",
            "%Q",
            "format of time of event conn is none of strptime: 'Q' is a bad directive",
        ),
        ("%d/%b/%Y:%H:%M:%S %z", "%b %d %H:%M:%S", "format of time of event conn has no year"),
        ("field: at,", "field: at, unit: s,", "a time in s is a number and has no format"),
        (FORMAT, "%Y %Y", "format of time of event conn has a directive twice"),
        (FORMAT, "%G-%V", "reads no time: ISO year directive '%G' must be used with"),
        (FORMAT, "%%Y", "format of time of event conn has no year"),
        (FORMAT, "%Y-%M-%d", "does not say which day it is"),
        (FORMAT, "%Y-%m", "does not say which day it is"),
        (FORMAT, "%Y-%m-%d %I:%M", "hours of a half day, %I, and no %p"),
        (
            "port: key}",
            "port: key, at: {kind: key, from: when}}",
            "is from @timestamp, and from when among the fields",
        ),
    ],
)
def test_a_mistake_is_named(old: str, new: str, problem: str) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(SchemaError) as caught:
        compile_schema(TEXT.replace(old, new))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "form",
    [
        *TIME_FORMATS,
        "%Y-%m-%d %I:%M %p",
        "%G-W%V-%u",
        "%Y %j",
        "%U %w %Y",
        "%c",
        "%x",
        "%y%m%d",
        "%Y%%%m%%%d",
    ],
)
def test_a_format_that_says_the_day_is_taken(form: str) -> None:
    (event,) = compile_schema(TEXT.replace(FORMAT, form)).events
    assert event.time_format == form


def test_the_time_field_may_be_a_field_whose_place_is_said_once() -> None:
    for old, new in (
        ("port: key}", 'port: key, at: {kind: key, from: "@timestamp"}}'),
        ("port: key}", "port: key, at: key}"),
    ):
        assert compile_schema(TEXT.replace(old, new)).events == compile_schema(TEXT).events


def test_a_column_may_be_that_of_several_fields() -> None:
    text = TEXT.replace(
        "port: key}", 'port: {kind: key, from: id.orig_h}, "when": {kind: string, from: "@timestamp"}}'
    )
    (event,) = compile_schema(text).events
    assert [event.source_of(name) for name in ("at", "when", "ip", "port")] == [
        "@timestamp",
        "@timestamp",
        "id.orig_h",
        "id.orig_h",
    ]
