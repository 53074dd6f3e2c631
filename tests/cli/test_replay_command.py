"""`featurestore replay`: a row per event with what Observe would have returned."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest

from featurestore.cli import main
from featurestore.cli.exits import Exit
from featurestore.training import run as run_module

SCHEMA = """\
version: 1
name: clicks
events:
  click:
    time: {field: at, unit: s}
    lateness: 10s
    ids: {id: id, dedupe: 1h}
    fields: {id: string, user: key, price: number}
views:
  user:
    event: click
    key: user
    windows: [10s, 1m]
    features: [count, sum(price), since_last]
services:
  spam: [user.count_10s, user.count_1m, user.sum_price_1m, user.since_last_1m]
"""

CLICKS = """\
at,id,user,price,label
100,a,007,1.5,x
105,b,007,2,y
106,c,8,4,
106,c,8,4,z
109,d,007,oops,x
110,e,007,,x
20,f,007,1,x
,g,8,1,x
"""

# user 007 at 100, 105 and 110; 8 at 106 with a duplicate; d is refused, f is late, g has no time
EXPECTED = [
    # outcome, count_10s, count_1m, sum_price_1m, since_last_1m
    ("accepted", 1, 1, 1.5, np.nan),
    ("accepted", 2, 2, 3.5, 5000),
    ("accepted", 1, 1, 4, np.nan),
    ("duplicate", 1, 1, 4, np.nan),  # as its first answer: what leaves the event itself out does not find it
    ("refused_type", 2, 2, 3.5, 4000),
    ("accepted", 2, 3, 3.5, 5000),
    ("late", None, None, None, None),
    ("refused_no_time", None, None, None, None),
]
NAMES = ["user.count_10s", "user.count_1m", "user.sum_price_1m", "user.since_last_1m"]


@pytest.fixture
def replay(tmp_path):
    """Runs `featurestore replay` over a file with the small schema; returns the exit code."""
    schema = tmp_path / "clicks.yaml"
    schema.write_text(SCHEMA)

    def run(file, out, *options, service="spam"):
        return main(
            ["replay", str(file), "--schema", str(schema), "--event", "click", "--service", service,
             "--out", str(tmp_path / out), *options]
        )  # fmt: skip

    return run


@pytest.fixture
def clicks(tmp_path):
    path = tmp_path / "clicks.csv"
    path.write_text(CLICKS)
    return path


def test_every_event_has_its_row_with_what_observe_would_say(replay, clicks, tmp_path):
    code = replay(clicks, "out.parquet", "--keep", "id,label")
    assert code == Exit.REFUSED
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["event", "time", "id", "label", *NAMES, "coverage", "outcome"]
    assert set(table["event"].to_pylist()) == {"click"}
    assert [at and at.timestamp() for at in table["time"].to_pylist()] == [
        100,
        105,
        106,
        106,
        109,
        110,
        20,
        None,
    ]
    assert table["id"].to_pylist() == list("abccdefg")
    assert table["label"].to_pylist() == ["x", "y", None, "z", "x", "x", "x", "x"]
    assert table["outcome"].to_pylist() == [row[0] for row in EXPECTED]
    for i, row in enumerate(EXPECTED):
        for name, value in zip(NAMES, row[1:], strict=True):
            if value is not None:
                np.testing.assert_equal(table[name][i].as_py(), value, err_msg=f"event {i}, {name}")


def test_bounds_stand_beside_each_value_and_hold_it(replay, clicks, tmp_path):
    replay(clicks, "out.parquet", "--bounds")
    table = pq.read_table(tmp_path / "out.parquet")
    names = [name + end for name in NAMES for end in ("", ".lower", ".upper")]
    assert table.column_names == ["event", "time", *names, "coverage", "outcome"]
    for name in NAMES:
        for value, lower, upper in zip(
            *(table[name + end].to_pylist() for end in ("", ".lower", ".upper")), strict=True
        ):
            assert np.isnan(value) or lower <= value <= upper


def test_the_summary_counts_events_that_are_partly_late(tmp_path, capsys):
    schema = tmp_path / "clicks.yaml"
    schema.write_text(
        SCHEMA.replace(
            "services:",
            "  ever: {event: click, key: user, windows: [lifetime], features: [count]}\nservices:",
        ).replace("[user.count_10s,", "[ever.*, user.count_10s,")
    )
    (tmp_path / "in.csv").write_text("at,id,user,price\n100,a,7,1\n20,b,7,1\n120,c,7,1\n")
    code = main(
        ["replay", str(tmp_path / "in.csv"), "--schema", str(schema), "--event", "click", "--service", "spam",
         "--out", str(tmp_path / "out.parquet"), "-o", "json"]
    )  # fmt: skip
    assert code == Exit.OK
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert (found["accepted"], found["partly_late"], found["late"]) == (3, 1, 0)
    assert "3 events: 3 accepted (1 of them partly late)" in captured.err
    assert pq.read_table(tmp_path / "out.parquet")["ever.count_lifetime"].to_pylist()[-1] == 3


def test_the_summary_counts_what_became_of_the_events(replay, clicks, capsys):
    assert replay(clicks, "out.csv", "-o", "json") == Exit.REFUSED
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert {name: found[name] for name in ("events", "accepted", "late", "duplicate", "features")} == {
        "events": 8, "accepted": 4, "late": 1, "duplicate": 1, "features": 4,
    }  # fmt: skip
    assert {reason: (one["count"], one["first_rows"]) for reason, one in found["refused"].items()} == {
        "type": (1, [5]), "no_time": (1, [8]),
    }  # fmt: skip
    one = found["refused"]["type"]
    assert (one["field"], one["value"]) == ("price", "'oops'")
    assert "8 events: 4 accepted, 1 late, 1 duplicate, 2 refused" in captured.err
    assert "  1 refused: row 8, at: no time, and every event needs one\n" in captured.err


def test_only_the_first_rows_of_a_reason_are_listed(replay, tmp_path, capsys):
    path = tmp_path / "bad.csv"
    path.write_text("at,id,user,price\n" + "1,x,a,b\n" * 9)
    replay(path, "out.csv")
    assert (
        "9 refused: row 1, price: 'b' is no number; correct it, or declare the field a string "
        "(and rows 2, 3, 4, 5, …)\n" in capsys.readouterr().err
    )


def test_refused_events_can_be_allowed(replay, clicks):
    assert replay(clicks, "out.csv", "--allow-refused") == Exit.OK


def test_limit_stops_after_so_many_events(replay, clicks, tmp_path):
    for limit in (0, 1, 4, 99):
        code = replay(clicks, f"{limit}.parquet", "--limit", str(limit))
        assert code == (Exit.REFUSED if limit == 99 else Exit.OK)
        assert pq.read_metadata(tmp_path / f"{limit}.parquet").num_rows == min(limit, 8)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def history(n):
    """Random clicks of a few users, in order, some late, with their ids."""
    random = np.random.default_rng(7)
    at = np.sort(random.integers(0, 3 * n, n)) - random.choice([0, 0, 0, 5, 100], n)
    return pa.table(
        {
            "at": np.maximum(at, 0),
            "id": [f"i{i}" for i in random.integers(0, n, n)],
            "user": random.integers(0, 8, n),
            "price": np.where(random.random(n) < 0.1, np.nan, random.integers(0, 100, n) / 4),
        }
    )


def written(table, folder):
    """The same history in every format; a NaN is an absent price."""
    price = pc.if_else(pc.is_nan(table["price"]), None, table["price"])
    table = table.set_column(3, "price", price)
    pq.write_table(table, folder / "h.parquet", row_group_size=70)
    pcsv.write_csv(table, folder / "h.csv")
    (folder / "h.csv.gz").write_bytes(gzip.compress((folder / "h.csv").read_bytes()))
    (folder / "h.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return [folder / name for name in ("h.parquet", "h.csv", "h.csv.gz", "h.jsonl")]


def test_values_do_not_depend_on_format_batches_or_threads(replay, tmp_path, monkeypatch):
    files = written(history(500), tmp_path)
    assert replay(files[0], "first.parquet", "--bounds", "--statuses") == Exit.OK
    first = pq.read_table(tmp_path / "first.parquet")
    assert len(set(first["outcome"].to_pylist())) == 3
    for i, file in enumerate(files[1:]):
        replay(file, f"{i}.parquet", "--bounds", "--statuses")
        assert_same(pq.read_table(tmp_path / f"{i}.parquet"), first)
    for batch_events, threads in ((1, 1), (7, 2), (100, 3)):
        monkeypatch.setattr(run_module, "batch_events", lambda n_features, bounds, n=batch_events: n)
        replay(files[0], "again.parquet", "--bounds", "--statuses", "--threads", str(threads))
        assert_same(pq.read_table(tmp_path / "again.parquet"), first)


def assert_same(table, expected):
    assert table.column_names == expected.column_names
    for name in expected.column_names:
        np.testing.assert_array_equal(table[name].to_numpy(), expected[name].to_numpy(), err_msg=name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--event", "clik"], "no event type 'clik'; did you mean 'click'?"),
        (["--service", "spamm"], "no service 'spamm'; did you mean 'spam'?"),
        (["--keep", "labl"], "no column 'labl' in the header (is to be kept); did you mean 'label'?"),
        (["--limit", "-1"], "limit is -1"),
        (["--threads", "0"], "threads is 0"),
        (["--format", "xml"], "unknown format 'xml'"),
        (["--format", "parquet"], "not a whole Parquet file"),
    ],
)
def test_a_wrong_option_is_one_line_and_leaves_nothing(replay, clicks, capsys, options, words):
    assert replay(clicks, "out.csv", *options) in (Exit.ERROR, Exit.USAGE)
    text = capsys.readouterr().err
    assert text.startswith("featurestore: error: ")
    assert words in text
    assert text.count("\n") == 1
    assert names_in(clicks.parent) == ["clicks.csv", "clicks.yaml"]


def test_the_input_is_never_the_output(replay, clicks, capsys):
    assert replay(clicks, "clicks.csv") == Exit.USAGE
    assert "is the input" in capsys.readouterr().err
    assert clicks.read_text() == CLICKS


def test_a_file_that_breaks_in_the_middle_leaves_the_old_output(replay, clicks, tmp_path, capsys):
    (tmp_path / "out.csv").write_text("old")
    clicks.write_text(CLICKS + "1,2\n")
    assert replay(clicks, "out.csv") == Exit.ERROR
    assert "row 9" in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_text() == "old"
    assert names_in(tmp_path) == ["clicks.csv", "clicks.yaml", "out.csv"]


def test_a_stray_quote_ends_a_replay_instead_of_losing_the_rows_up_to_the_next(
    replay, clicks, tmp_path, capsys
):
    clicks.write_text("at,id,user,price,label\n" + "".join(f"{i},{i},7,1,x\n" for i in range(100, 120)))
    assert replay(clicks, "out.csv") == Exit.OK
    text = clicks.read_text()
    for at in (105, 115):
        text = text.replace(f"{at},7,1,x", f'{at},7,1,"x')
    clicks.write_text(text)
    assert replay(clicks, "new.csv") == Exit.ERROR
    assert not (tmp_path / "new.csv").exists()
    err = capsys.readouterr().err
    assert "clicks.csv, row 6, column 'label': behind the quote that closes '\"x" in err
    assert "10 lines below comes 'x', and only a comma or the end of the line may" in err


def test_a_bar_is_shown_where_asked_for(replay, clicks, capsys):
    replay(clicks, "out.csv", "--progress")
    assert "clicks.csv:   0%" in capsys.readouterr().err
    replay(clicks, "out.csv")
    assert "%" not in capsys.readouterr().err


def test_sigterm_in_the_middle_of_a_pipe_leaves_nothing(tmp_path):
    (tmp_path / "clicks.yaml").write_text(SCHEMA)
    command = [
        sys.executable, "-m", "featurestore", "replay", "-", "--format", "csv", "--schema", "clicks.yaml",
        "--event", "click", "--service", "spam", "--out", "out.csv",
    ]  # fmt: skip
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    ) as process:
        assert process.stdin is not None
        deadline = time.monotonic() + 60
        asked = False
        try:
            process.stdin.write(b"at,id,user,price\n")
            while time.monotonic() < deadline:
                process.stdin.write(b"1,a,b,1\n" * 10_000)
                if not asked and any(name.endswith(".partial") for name in names_in(tmp_path)):
                    process.terminate()
                    asked = True
        except BrokenPipeError:
            pass
        assert process.wait(timeout=30) == Exit.TERMINATED
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
    assert names_in(tmp_path) == ["clicks.yaml"]


@pytest.mark.parametrize("stated", ["csv", "csv.gz", "jsonl", "parquet"])
def test_sigterm_ends_a_replay_that_waits_for_a_silent_pipe(tmp_path, stated):
    (tmp_path / "clicks.yaml").write_text(SCHEMA)
    command = [
        sys.executable, "-c",
        "import sys, pyarrow, featurestore.training; from featurestore.cli import main;"
        "print('ready', flush=True); sys.exit(main())",
        "replay", "-", "--format", stated, "--schema", "clicks.yaml", "--event", "click", "--service", "spam",
        "--out", "out.csv",
    ]  # fmt: skip
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.5)  # until it reads; a signal before that ends it as well
        process.terminate()
        assert process.wait(timeout=30) in (Exit.TERMINATED, -signal.SIGTERM)
    assert names_in(tmp_path) == ["clicks.yaml"]


CARDS = """\
version: 1
name: card-fraud
events:
  transaction:
    time: tx_datetime
    fields: {customer_id: key, terminal_id: key, tx_amount: number, tx_fraud: number}
views:
  customer:
    event: transaction
    key: customer_id
    windows: [1d, 7d, 30d]
    features: [count, mean(tx_amount)]
  terminal:
    event: transaction
    key: terminal_id
    windows: [1d, 7d, 30d]
    offset: 7d
    features: [count, mean(tx_fraud)]
services:
  fraud: [customer.*, terminal.*]
"""


def test_replay_of_the_card_data_gives_the_published_features(data_file, measured, tmp_path, capsys):
    cards, ties = data_file("card_transactions.parquet"), data_file("card_transactions_ties.csv")
    (tmp_path / "cards.yaml").write_text(CARDS)
    code = main(
        ["replay", str(cards), "--schema", str(tmp_path / "cards.yaml"), "--event", "transaction",
         "--service", "fraud", "--keep", "transaction_id",
         "--out", str(tmp_path / "out.parquet"), "-o", "json"]
    )  # fmt: skip
    assert code == Exit.OK
    summary = json.loads(capsys.readouterr().out)
    measured(f"replay of {summary['events']:,} card transactions: {summary['events_per_second']:,} events/s")
    found, published = pq.read_table(tmp_path / "out.parquet"), pq.read_table(cards)
    assert found["transaction_id"].equals(published["transaction_id"])
    with ties.open(newline="") as file:
        tied = {int(row["transaction_id"]) for row in csv.DictReader(file)}
    free = ~np.isin(published["transaction_id"].to_numpy(), list(tied))
    everything = np.ones(len(free), np.bool_)
    for days in (1, 7, 30):
        pairs = [
            (f"customer.count_{days}d", f"customer_id_nb_tx_{days}day_window", free),
            (f"customer.mean_tx_amount_{days}d", f"customer_id_avg_amount_{days}day_window", free),
            (f"terminal.count_{days}d", f"terminal_id_nb_tx_{days}day_window", everything),
            (
                f"terminal.mean_tx_fraud_{days}d",
                f"terminal_id_risk_{days}day_window",
                everything,
            ),
        ]
        for name, column, rows in pairs:
            ours = found[name].to_numpy()[rows]
            if "risk" in column:  # published as 0 where no transaction is in the window
                ours = np.nan_to_num(ours)
            np.testing.assert_allclose(
                ours, published[column].to_numpy()[rows], rtol=1e-9, atol=0, err_msg=name
            )
        n = found[f"customer.count_{days}d"].to_numpy()[~free]
        off = published[f"customer_id_nb_tx_{days}day_window"].to_numpy()[~free] - n
        assert np.isin(off, (0, -1, 1)).all()


def test_inputs_may_be_separated_by_tabs(replay, clicks, tmp_path):
    path = tmp_path / "tabs.csv"
    path.write_text(clicks.read_text().replace(",", "\t"))
    assert replay(clicks, "out.csv") == replay(path, "same.csv", "--delimiter", "\\t") == Exit.REFUSED
    assert (tmp_path / "out.csv").read_text() == (tmp_path / "same.csv").read_text()
