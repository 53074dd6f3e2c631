"""The schema: the file people write, checked and compiled into the `Plan` that the engine runs.

    version: 1                           # of this format
    name: card-fraud                     # of the store; it may not change later
    events:                              # what is fed in
      transaction:
        time: tx_datetime                # ISO 8601; a number is {field: ts, unit: ms} (or s, us, ns); also
                                         #   {field: at, from: "@timestamp", format: "%d/%b/%Y:%H:%M:%S %z"}
        lateness: 1h                     # default 1h: an event so late still counts in every window;
                                         #   what comes later counts where it is kept, as in lifetimes
        ids: {id: tx_id, dedupe: 1h}     # optional, dedupe default 1h: so long the same id counts once
        fields:                          # key: text or whole number, to 4096 bytes; string: text for `where`,
                                         #   cut to its first 4096
          {customer_id: key, terminal_id: key, src_ip: key, amount: number, country: string, online: bool}
                                         #   or {src_ip: {kind: key, from: id.orig_h}}: where files have it
    views:                               # what is kept of each key
      customer:
        event: transaction
        key: customer_id                 # or [ip, track], both; {ip: src_ip}, a field as part ip; [], one row
        where: amount > 0                #   for everything. Views of the same parts share their rows
        windows: [10m, 1d, lifetime]     # whole s, m, h or d, 1s to 400d; for features that give none
        features:                        # named customer.count_10m ... customer.large_1h
          - count                        # also since_first and since_last, in ms
          - mean(amount)                 # also sum, min, max, stddev, first, last: of a number or a bool
          - {aggregate: distinct(src_ip), windows: [1d]}    # different values, of any field
          - {aggregate: interval_cv, windows: [1d]}         # and interval_mean, of the ms between events: 0
                                         #   is a clock, people are near 1 and above. Neither of these two
                                         #   kinds has lifetimes, and distinct no offset
          - {aggregate: "top(src_ip, 5)", windows: [1d]}    # two features, of the most frequent values of any
                                         #   field: top_src_ip_share_1d, the first one's part of all events,
                                         #   and top_src_ip_entropy_1d, in bits, of the 5 (default 10) among
                                         #   themselves: 0 is one has it all. No offset, no lifetime
          - {aggregate: hour_entropy, windows: [7d]}        # of the 24 hours of day, UTC: 0 is one hour of
                                         #   them, 4.58 all alike. No offset, no lifetime
          - decayed_count(1h)            # also decayed_sum(amount, 1h), decayed_mean: an event counts half
                                         #   after each half-life; no windows
          - name: large                  # needed where there is a where
            aggregate: count
            where: online and (amount > 100 or country not in ("FR", "IT"))
            windows: [1h]
            self: exclude                # Observe leaves its own event out; default: only of since_last
        exact_events: 1000               # a key's values are exact up to so many events; default: what the
                                         #   view has in this store, and 1000 where it is new
        max_error: 0.01                  # default 0.01: beyond, counts and sums are off by at most this part
        max_entries: 4096                # default 4096, or twice exact_events: while its log needs no more
        exact_values: 512                # default 512: a key's distinct values are exact up to so many,
        distinct_error: 0.03             # default 0.03: beyond, their standard error; bounds hold at 95 %
        top_counters: 64                 # default 64: values told apart in merged events, and
        top_error: 0.1                   # default 0.1: how roughly they merge; see the bounds of each answer
        lifetime_idle: 400d              # default 400d: a lifetime not fed for so long starts anew
      pair:                              # too many pairs for rows: counts, and sums of the values above 0,
        event: transaction               #   in a sketch; see below
        key: [customer_id, terminal_id]
        store: sketch                    # default rows
        epsilon: 0.001                   # default 0.001: a value is never below the truth, and above it by
        delta: 0.01                      #   more than epsilon * N with probability delta at most (0.01)
        windows: [1h, 1d]
        features: [count, sum(amount)]
      terminal:                          # offset: as it was 7 days before
        {event: transaction, key: terminal_id, windows: [1d, 7d], offset: 7d, features: [count]}
    derived:                             # optional: computed from other features when they are read
      customer.burst: customer.count_10m / customer.count_1d      # named like a feature of a view, or with
      risk.large:                                                 #   a word of your own before the dot
        {value: customer.large_1h / terminal.count_1d, else: 0}   # else: its value where it divides by zero
    services:                            # what is asked for: each a vector in this order
      fraud: [customer.*, terminal.count_7d, risk.large]          # *: those derived under this name come last
    keep_keys: [customer_id]             # optional: entities, by key parts, that store raw keys too, of rows
                                         #   fed from then on; taken out, the next sweep erases them

A derived feature is a formula of + - * /, min(a, b), max(a, b), numbers and features of any entity, derived
or not. A service that lists it reads what it needs and returns only what it lists. Without an `else`,
dividing by zero gives NaN.

A view with `store: sketch` keeps nothing of single keys. It has no lifetimes, no offset, no `self: exclude`
and no other aggregates, and `forget` cannot take a key out of it: what it added stays, unnamed, until it has
aged. Its memory is taken when the schema is applied: e / epsilon * ln(1 / delta) cells in each shard for the
counts, as many for each summed field and each where of features, of 128 bytes for counts and 256 for sums;
twice that where there are more than five or six windows. With the defaults and 64 shards, 111 MB for counts.
N is what the key's shard counted, about a 64th of all, in the slices of time that the window touches. Its
beginning cuts a slice, a fifth of a window where there are five windows: the value, which is the upper bound,
has all of that slice in it, `lower` none, and epsilon * N less, at 1 - delta. A counter that is full
(2^31 - 1 in a slice) says N, which is certain; a sum beyond all numbers is UNAVAILABLE.

Under `from`, files (CSV, JSON lines, Parquet) have the field in a column of that name, or with dots between
names in an object or struct within others. Names may have dots themselves: at each step the longest that
leads there comes first, `a.b.c` before `a.b` with `c` in it before `a` with `b.c`. `format` is one of
Python's strptime that says the day, of times in files and of what `client.ingest` is given; without an offset
they mean UTC.
On the wire a field has its own name, and a time its unit.

`where` knows == != < <= > >=, and, or, not, in (...), is null, is not null, + - * /, min(), max(), numbers,
true, false and texts in quotes. A key or string field knows ==, != and in, with texts or whole numbers. As in
SQL, what touches an absent field is unknown, and only what is true matches. An empty text is absent: it is
asked for by `is null`, and `== ""`, which would match nothing, is a mistake.

A change to a store that has state may add and remove views, services and fields, do anything to derived
features, and change windows, lateness, ids, lifetime_idle and keep_keys; what it takes away by that somebody
must allow, by kind (`changes`). What a view keeps (event, key, where, offset, error settings, the fields and
filters of its features, whether it has lifetimes) stays: a changed view is a second one beside it, which
starts empty. What goes is kept for the grace of its apply: counted, and served to whoever asks for a vector
by its fingerprint; the text before takes it back whole. After that features may come back too; those of a log
come back to what was counted meanwhile, while distinct, top and decayed ones start empty again, as they do
with another number of values or half-life. Of a sketch also windows, lateness, epsilon and delta stay.

Text flows one way: `document` reads YAML with its lines, `model` checks it (with `expression` for formulas),
`compile` numbers it, `evolution` fits it to the plan before, `retired` keeps what it lets go of that for a
grace, and `changes` says what it changes.
Every mistake is a SchemaError with file, line, what is wrong and what was meant.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from featurestore.errors import SchemaError
from featurestore.plan import Plan
from featurestore.schema.compile import compile_plan
from featurestore.schema.document import MAX_BYTES, TOO_LARGE, Mistakes, read_document
from featurestore.schema.evolution import Moment, exact_events_of, succeed, with_meanings
from featurestore.schema.model import read_model

__all__ = ["compile_schema", "load"]


def load(path: str | os.PathLike[str]) -> Plan:
    """The plan of the schema file at `path`, as `compile_schema` gives it. Raises SchemaError."""
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SchemaError(f"the schema cannot be read: {error.strerror or error}", path=name) from error
    if len(content) > MAX_BYTES:
        raise SchemaError(TOO_LARGE, path=name)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = f"the schema is not UTF-8: byte 0x{content[error.start]:02x}; save it as UTF-8"
        raise SchemaError(problem, path=name, line=line) from None
    return compile_schema(text, path=name)


def compile_schema(
    text: str,
    *,
    path: str | None = None,
    previous: Plan | None = None,
    now_ms: int | Mapping[str, int] | None = None,
    ahead_ms: int = 0,
    server_ms: int = 0,
    until_ms: int = 0,
    from_beginning: bool = False,
) -> Plan:
    """The plan of the schema `text`, as the successor of `previous` where a store already has one.

    Then `now_ms` is the clock: one of all event types, or that of each that has accepted an event, by its
    name; and `ahead_ms` is how far ahead of it such an event may have been. Views that are new have seen
    what comes after. What is not declared any more is kept until `until_ms`, and what was kept so goes
    where `server_ms`, the server's clock, has come to its time. `from_beginning` states of a new store that
    there was no event of its types before it. Where nothing but comments and layout has changed, `previous`
    itself is returned; and where nothing at all has, though today's rules would refuse it: a store goes on
    with the schema that it has. Raises SchemaError, which names every independent mistake with `path` and
    line.
    """
    mistakes = Mistakes(path)
    plan = None
    with mistakes.collect():
        exact_events = {} if previous is None else exact_events_of(previous)
        schema = read_model(read_document(text, mistakes), mistakes, exact_events)
        if schema is not None:
            lines = {view.name: view.line for view in schema.views}
            plan = compile_plan(schema, text)
            if previous is not None:
                known = _with_meanings(previous)
                made = succeed(plan, known, Moment(now_ms, ahead_ms, server_ms, until_ms), lines, mistakes)
                plan = previous if made is known else made
            elif from_beginning:
                plan = replace(plan, events=tuple(replace(e, from_beginning=True) for e in plan.events))
    if mistakes and previous is not None and text == previous.source:
        return previous
    mistakes.report()
    assert plan is not None  # noqa: S101  # else there was a mistake
    return plan


def _with_meanings(plan: Plan) -> Plan:
    """A plan from before it kept what features mean, as if it had; see evolution.with_meanings."""
    if all(feature.meaning is not None for feature in plan.all_features):
        return plan
    try:
        return with_meanings(plan, compile_schema(plan.source))
    except SchemaError:
        return plan  # its text is none of today's: what it was cannot be told, and is not remembered
