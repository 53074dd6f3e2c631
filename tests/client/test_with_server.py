"""The clients and the commands against a real server on a real store: what is written is what is read."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transports

from featurestore import config
from featurestore.cli import ingest as ingest_command
from featurestore.cli import main
from featurestore.cli.progress import Progress
from featurestore.client import Client, Status, Ticket, Tls
from featurestore.columns import event_columns
from featurestore.config import ServeConfig
from featurestore.core.batch import EventBatch
from featurestore.engine import Engine
from featurestore.errors import (
    ConfigError,
    InvalidEventError,
    SchemaMismatchError,
    SequenceError,
    UnavailableError,
    UnknownNameError,
)
from featurestore.outcome import Outcome
from featurestore.schema.changes import changes_of
from featurestore.server.serve import Server, open_store

from .conftest import FAST, MakeClient

SCHEMA = """\
version: 1
name: card-fraud
events:
  transaction:
    time: tx_datetime
    fields: {customer_id: key, terminal_id: key, tx_amount: number}
views:
  customer:
    event: transaction
    key: customer_id
    windows: [1h, 1d]
    features: [count, mean(tx_amount)]
  terminal:
    event: transaction
    key: terminal_id
    windows: [1h]
    features: [count]
services:
  fraud: [customer.*, terminal.*]
"""
T0 = 1_522_540_800_000
DAY = 86_400_000


@dataclass
class House:
    """A server and the store it serves, which outlives it."""

    directory: Path
    engine: Engine
    server: Server

    @property
    def target(self) -> str:
        return str(self.server.address)

    @property
    def admin(self) -> str:
        return str(self.server.admin_address)


@pytest.fixture
def house(tmp_path: Path, transport: str) -> Iterator[House]:
    settings = ServeConfig(
        data=tmp_path / "store", schema=SCHEMA, listen="localhost:0", clock="event", durability="process",
        **transports.settings(transport),
    )  # fmt: skip
    engine = open_store(settings)
    with Server(engine, settings) as server:
        yield House(tmp_path, engine, server)
    engine.close()


def rows(n: int) -> dict[str, Any]:
    """One event a second, over ten customers and three terminals; the amounts are 0, 1, 2, …"""
    i = np.arange(n)
    times = (np.datetime64("2018-04-01T00:00:00") + i).astype("M8[s]").astype(str)
    return {"tx_datetime": times, "customer_id": i % 10, "terminal_id": i % 3, "tx_amount": i.astype(float)}


def one_transaction(engine: Engine) -> EventBatch:
    event = engine.state.plan.events[0]
    return EventBatch(event, 0, *event_columns(event, {**rows(1), "customer_id": [99]}))


def csv_of(data: dict[str, Any]) -> str:
    lines = [",".join(data), *(",".join(map(str, row)) for row in zip(*data.values(), strict=True))]
    return "\n".join(lines) + "\n"


def run(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


# ---- the clients


def test_an_unknown_name_is_the_same_error_wherever_it_is_given(
    house: House, make_client: MakeClient
) -> None:
    client = make_client(house.target)
    customer = {"customer_id": 1}
    for call in (
        lambda: client.observe("tx", customer),
        lambda: client.observe("tx", customer, "fraud"),
        lambda: client.ingest("tx", rows(1)),
    ):
        with pytest.raises(UnknownNameError, match="unknown event type 'tx'"):
            call()
    with pytest.raises(UnknownNameError, match="unknown field 'customr_id'"):
        client.observe("transaction", {"customr_id": 1})
    with pytest.raises(UnknownNameError, match="unknown key part 'customr_id'"):
        client.get("fraud", {"customr_id": 1})


def test_what_is_ingested_is_what_is_read(house: House, make_client: MakeClient) -> None:
    client = make_client(house.target)
    report = client.ingest("transaction", rows(1000), batch_events=64)
    assert (report.accepted, report.position) == (1000, 1001)  # the schema has position 1
    vector = client.get("fraud", {"customer_id": 3, "terminal_id": "1"}, bounds=True)
    assert vector.to_dict() == {
        "customer.count_1h": 100.0,
        "customer.count_1d": 100.0,
        "customer.mean_tx_amount_1h": 498.0,
        "customer.mean_tx_amount_1d": 498.0,
        "terminal.count_1h": 333.0,
    }
    assert vector.now_ms == T0 + 999_000
    assert set(vector.status_names) == {"WARMING"} or set(vector.status_names) == {"PRESENT"}
    many = client.get_many("fraud", {"customer_id": np.arange(11), "terminal_id": [0] * 11})
    assert many.values[:, 0].tolist() == [100.0] * 10 + [0.0]


def test_observe_reads_with_the_event_and_a_peek_leaves_no_trace(
    house: House, make_client: MakeClient
) -> None:
    client = make_client(house.target)
    event = {"tx_datetime": "2018-04-01T00:00:00Z", "customer_id": 596, "tx_amount": 2.5}
    peeked = client.observe("transaction", event, "fraud", peek=True)
    seen = client.observe("transaction", event, "fraud")
    assert peeked.vector.values.tobytes() == seen.vector.values.tobytes()
    assert (peeked.outcome, peeked.ack, seen.outcome) == (Outcome.ACCEPTED, None, Outcome.ACCEPTED)
    assert seen.vector["customer.count_1h"] == 1.0
    assert seen.vector.statuses[4] == Status.UNAVAILABLE  # the event has no terminal
    assert client.observe("transaction", event, "fraud").vector["customer.count_1h"] == 2.0


def test_threads_may_share_a_client(house: House) -> None:
    errors: list[BaseException] = []
    with Client(house.target, backoff=FAST) as client:

        def work(number: int) -> None:
            try:
                for i in range(20):
                    event = {"tx_datetime": "2018-04-01", "customer_id": number, "tx_amount": i}
                    client.observe("transaction", event, "fraud")
                    client.get("fraud", {"customer_id": number})
                client.ingest("transaction", rows(500), batch_events=50)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(100 + number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        many = client.get_many("fraud", {"customer_id": [*range(10), *range(100, 106)]})
    assert many.values[:, 1].tolist() == [300.0] * 10 + [20.0] * 6


def certificates(directory: Path) -> Tls:
    """A certificate for localhost that vouches for itself, made with openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout key.pem"
    words += " -out cert.pem -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run(words.split(), cwd=directory, check=True, capture_output=True)
    return Tls(ca=str(directory / "cert.pem"))


def test_tls_is_spoken_and_plain_text_is_not_answered(
    tmp_path: Path, transport: str, make_client: MakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    tls = certificates(tmp_path)
    serving = config.Tls(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    settings = ServeConfig(
        data=tmp_path / "store", schema=SCHEMA, listen="localhost:0", tls=serving, clock="event",
        **transports.settings(transport),
    )  # fmt: skip
    engine = open_store(settings)
    try:
        with Server(engine, settings) as server:
            target = str(server.address)
            assert make_client(target, tls=tls).schema().name == "card-fraud"
            words = ("get", "--service", "fraud", "customer_id=1", "--server", target)
            assert run(*words, "--tls-ca", str(tmp_path / "cert.pem"), capsys=capsys)[0] == 0
            assert run(*words, capsys=capsys)[0] == 4
            with pytest.raises(UnavailableError):
                make_client(target, tls=Tls()).schema()  # a certificate that nobody vouches for
    finally:
        engine.close()
    with pytest.raises(ConfigError, match=r"cannot read .*no\.pem"):
        make_client("localhost:1", tls=Tls(ca=str(tmp_path / "no.pem")))
    with pytest.raises(ConfigError, match="given together"):
        make_client("localhost:1", tls=Tls(cert=str(tmp_path / "cert.pem")))


def test_a_server_that_restarts_in_the_midst_of_an_ingest_counts_each_event_once(
    tmp_path: Path, transport: str, make_client: MakeClient
) -> None:
    settings = ServeConfig(
        data=tmp_path / "store", schema=SCHEMA, listen=f"unix:{tmp_path / 'public.sock'}", clock="event",
        **transports.settings(transport),
    )  # fmt: skip
    engine = open_store(settings)
    server = Server(engine, settings)
    server.start()
    client = make_client(str(server.address))
    data = rows(3000)
    restarts = 0

    def source() -> Iterator[dict[str, Any]]:
        nonlocal engine, server, restarts
        for begin in range(0, 3000, 100):
            if begin in (1000, 2000):
                server.stop(0)
                engine.close()
                engine = open_store(settings)
                server = Server(engine, settings)
                server.start()
                restarts += 1
            yield {name: values[begin : begin + 100] for name, values in data.items()}

    try:
        report = client.ingest("transaction", source(), window=4)
        assert restarts == 2
        assert report.accepted + report.already_applied == 3000
        many = client.get_many("fraud", {"customer_id": np.arange(10)})
        assert many.values[:, 1].tolist() == [300.0] * 10
    finally:
        server.stop(0)
        engine.close()


def test_a_long_source_is_resumed_past_what_the_store_remembers_of_one_producer(house: House) -> None:
    with Client(house.target, backoff=FAST) as client:
        client.ingest("transaction", rows(1500), batch_events=1, source="long", window=64)
        report = client.ingest("transaction", rows(1500), batch_events=1, source="long", window=64)
        assert (report.accepted, report.already_applied) == (0, 1500)
        with pytest.raises(InvalidEventError):
            client.ingest("transaction", rows(1500), batch_events=2, source="long")


def test_a_schema_change_is_noticed_by_who_follows_and_by_nobody_else_until_asked(
    house: House, make_client: MakeClient
) -> None:
    client, following = make_client(house.target), make_client(house.target, follow=True)
    before = client.get("fraud", {"customer_id": 1}).names
    assert following.get("fraud", {"customer_id": 1}).names == before
    less = SCHEMA.replace("[count, mean(tx_amount)]", "[mean(tx_amount)]")
    house.engine.apply_schema(less, allow=["drop", "order"])
    after = tuple(name for name in before if not name.startswith("customer.count"))
    with pytest.raises(SchemaMismatchError, match=r"its feature customer\.count_1\w+ is gone"):
        client.get("fraud", {"customer_id": 1})
    assert following.get("fraud", {"customer_id": 1}).names == after
    client.refresh()
    assert client.get("fraud", {"customer_id": 1}).names == after


# ---- the commands


def test_a_file_is_ingested_once_however_often_it_is_sent(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    text = csv_of(rows(500))
    plain, packed = house.directory / "tx.csv", house.directory / "other.csv.gz"
    plain.write_text(text)
    words = ("ingest", str(plain), "--event", "transaction", "--server", house.target, "--batch-events", "64")
    code, out, err = run(*words, "-o", "json", capsys=capsys)
    assert code == 0, err
    first = json.loads(out)
    assert (first["events"], first["accepted"], first["already_applied"]) == (500, 500, 0)
    assert "500 events: 500 accepted" in err
    plain.touch()  # neither its time nor its place is what it is
    moved = plain.rename(house.directory / "moved.csv")
    code, out, err = run("ingest", str(moved), *words[2:], "-o", "json", capsys=capsys)
    again = json.loads(out)
    assert (again["accepted"], again["already_applied"], again["producer"]) == (0, 500, first["producer"])
    code, out, err = run("ingest", str(moved), *words[2:], "--epoch", "2", "-o", "json", capsys=capsys)
    assert json.loads(out)["accepted"] == 500
    with gzip.open(packed, "wt") as file:
        file.write(text.replace("499.0", "499.5"))
    code, out, err = run("ingest", str(packed), *words[2:], "-o", "json", capsys=capsys)
    assert json.loads(out)["accepted"] == 500  # another content, another file
    with Client(house.target) as client:
        assert client.get("fraud", {"customer_id": 3})["customer.count_1d"] == 150.0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-", "--flush-every", "0"), "--flush-every is 0; it must be from 0.01 to 86400 seconds"),
        (("-", "--flush-every", "2", "--producer", "p"), "with --producer it is resumed"),
        (("tx.csv", "--flush-every", "2"), "a file is read as fast as it goes"),
    ],
)
def test_only_a_pipe_that_is_not_resumed_is_cut_by_time(
    house: House, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    code, _, err = run("ingest", *words, "--event", "transaction", "--server", house.target, capsys=capsys)
    assert code == 2
    assert told in err


def test_events_of_a_pipe_are_in_while_it_stays_open(
    house: House, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed by what is told once the first of them are in, and by nothing else."""
    out, into = os.pipe()
    os.write(into, csv_of(rows(3)).encode())

    def update(bar: Progress, stored_bytes: int, n_events: int) -> None:
        if n_events == 3:
            assert house.engine.stats()["events_accepted"] == 3
            os.close(into)

    monkeypatch.setattr(Progress, "update", update)
    with os.fdopen(out, "rb") as file:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=file))
        words = ("-", "--format", "csv", "--flush-every", "0.01")
        code, _, err = run(
            "ingest", *words, "--event", "transaction", "--server", house.target, capsys=capsys
        )
    assert code == 0, err
    assert "3 events: 3 accepted" in err


def test_other_batches_of_a_file_that_is_in_are_refused_not_counted_again(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    file = house.directory / "tx.csv"
    file.write_text(csv_of(rows(100)))
    words = ("ingest", str(file), "--event", "transaction", "--server", house.target, "--batch-events")
    assert run(*words, "40", capsys=capsys)[0] == 0
    code, _, err = run(*words, "50", capsys=capsys)
    assert code == 1
    assert "sequence 1" in err
    with Client(house.target) as client:
        assert client.get("fraud", {"customer_id": 3})["customer.count_1d"] == 10.0


def test_a_file_that_breaks_is_repaired_and_goes_on_under_the_name_that_it_was_given(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    file = house.directory / "tx.csv"
    sound = csv_of(rows(60_000))
    file.write_text(sound.replace(",50000.0\n", ",50000.0,one too many\n"))
    words = [
        "ingest",
        str(file),
        "--event",
        "transaction",
        "--server",
        house.target,
        "--batch-events",
        "5000",
    ]
    code, _, err = run(*words, capsys=capsys)
    assert code == 1
    assert "row 50001" in err
    n_in = house.engine.stats()["events_accepted"]
    assert 0 < n_in <= 50_000, "of what was read before it"
    assert (
        f"stopped after {n_in:,} events, they are in: repair the file and go on with --producer file-" in err
    )
    file.write_text(sound)
    named = err.partition("--producer ")[2].partition(";")[0]
    code, out, err = run(*words, "--producer", named, "-o", "json", capsys=capsys)
    report = json.loads(out)
    assert (report["accepted"], report["already_applied"], code) == (60_000 - n_in, n_in, 0)
    assert house.engine.stats()["events_accepted"] == 60_000


def test_a_stray_quote_stops_an_ingest_instead_of_losing_the_rows_up_to_the_next(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    file = house.directory / "tx.csv"
    lines = csv_of(rows(100)).splitlines(keepends=True)
    stray = [line.replace(",", ',"', 1) if i in (60, 80) else line for i, line in enumerate(lines)]
    file.write_text("".join(stray))
    words = ["ingest", str(file), "--event", "transaction", "--server", house.target, "--batch-events", "10"]
    code, _, err = run(*words, "-o", "json", capsys=capsys)
    assert code == 1
    assert "tx.csv, row 60, column 'customer_id': behind the quote that closes '\"9," in err
    assert "repair the file and go on with --producer file-" in err
    file.write_text("".join(lines))
    named = err.partition("--producer ")[2].partition(";")[0]
    code, out, _ = run(*words, "--producer", named, "-o", "json", capsys=capsys)
    report = json.loads(out)
    assert (report["accepted"] + report["already_applied"], code) == (100, 0)
    assert house.engine.stats()["events_accepted"] == 100


def test_what_stops_an_ingest_is_told_with_how_to_go_on(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    file = house.directory / "tx.csv"
    words = ["ingest", str(file), "--event", "transaction", "--server", house.target, "--batch-events"]
    file.write_text(csv_of(rows(3)) + "one,too,few\n")
    assert (
        "stopped after 0 events, none is in: repair the file and run the command again\n"
        in (run(*words, "2000", capsys=capsys)[2])
    )
    file.write_text(csv_of(rows(100)))
    assert run(*words, "40", capsys=capsys)[0] == 0
    err = run(*words, "50", capsys=capsys)[2]  # the same would happen again
    assert "stopped after 0 events\n" in err
    assert "run the same command again" not in err
    for wrong in (["0"], ["5", "--producer", ""], ["5", "--producer", "p" * 300]):
        code, _, err = run(*words, *wrong, capsys=capsys)
        assert (code, err.count("\n")) == (2, 1), "nothing was begun"
    assert "run the same command again to go on" in again_of(["a.csv"], UnavailableError("gone"))
    assert "cannot be resumed" in again_of(["-"], UnavailableError("gone"))


def again_of(words: list[str], error: Exception) -> str:
    parser = argparse.ArgumentParser()
    ingest_command.add_arguments(parser)
    arguments = parser.parse_args([*words, "--event", "transaction"])
    return ingest_command.again(arguments, words[0], "file-1", error, is_broken=False, is_begun=True)


def test_an_observe_that_is_refused_says_why(house: House, make_client: MakeClient) -> None:
    client = make_client(house.target)
    client.schema()
    row = {"customer_id": 1, "terminal_id": 2, "tx_amount": 1.0, "tx_datetime": "2018-04-01T00:00:00Z"}
    assert client.observe("transaction", row).why is None
    for change, field, value, reason in (
        ({"tx_amount": "much"}, "tx_amount", "'much'", "is no number; correct it"),
        (
            {"tx_datetime": "01/04/2018"},
            "tx_datetime",
            "'01/04/2018'",
            "no ISO 8601 time; send that, or a datetime",
        ),
        ({"tx_datetime": None}, "tx_datetime", None, "no time, and every event needs one"),
        ({"customer_id": 1.5, "tx_amount": "x"}, "customer_id", "1.5", "no key; write it as text"),
    ):
        seen = client.observe("transaction", row | change)
        assert seen.outcome.refused
        assert (seen.why.outcome, seen.why.field, seen.why.value) == (seen.outcome, field, value)
        assert seen.why.reason.startswith(f"{field}: {value or ''}")
        assert reason in seen.why.reason


def test_refused_events_are_told_by_their_row_and_by_the_exit_code(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {name: list(values) for name, values in rows(20).items()}
    data["tx_amount"][4] = "much"
    data["tx_datetime"][7] = "yesterday"
    file = house.directory / "tx.csv"
    file.write_text(csv_of(data))
    words = ("ingest", str(file), "--event", "transaction", "--server", house.target, "-o", "json")
    code, out, err = run(*words, capsys=capsys)
    assert code == 3
    assert [(one["row"], one["outcome"]) for one in json.loads(out)["refusals"]] == [
        (5, "refused_type"),
        (8, "refused_type"),
    ]
    assert (
        "  refused: row 5, tx_amount: 'much' is no number; correct it, or declare the field a string\n" in err
    )
    assert "  refused: row 8, tx_datetime: 'yesterday' is no ISO 8601 time; declare format: " in err
    assert [(one["field"], one["value"]) for one in json.loads(out)["refusals"]] == [
        ("tx_amount", "'much'"),
        ("tx_datetime", "'yesterday'"),
    ]
    assert "20 events: 18 accepted, 2 refused (2 of them unsent)" in err
    counts = {name: json.loads(out)[name] for name in ("events", "accepted", "refused", "unsent")}
    assert counts == {"events": 20, "accepted": 18, "refused": 2, "unsent": 2}
    assert house.engine.stats()["events_refused"] == counts["refused"] - counts["unsent"]
    assert run(*words, "--allow-refused", capsys=capsys)[0] == 0


KILLED = """
import os, signal, sys
from featurestore.cli import main
from featurestore.cli.progress import Progress
from featurestore.client.upload import Upload
whole = Upload.answered
def answered(upload, message):
    whole(upload, message)
    if upload.report.batches == 100:
        os.kill(os.getpid(), signal.SIGKILL)
Upload.answered = answered
sys.exit(main())
"""


def test_an_ingest_that_is_killed_is_resumed_by_running_it_again(house: House) -> None:
    """Between two answers: from outside, a fast one may be over before a busy machine lets us kill it."""
    file = house.directory / "tx.csv"
    file.write_text(csv_of(rows(20_000)))
    words = ["ingest", str(file), "--event", "transaction", "--server", house.target, "--batch-events", "50"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], check=False)
    assert killed.returncode == -signal.SIGKILL
    deadline_s, applied = time.monotonic() + 60, -1
    while applied != house.engine.stats()["events_accepted"] and time.monotonic() < deadline_s:
        applied = house.engine.stats()["events_accepted"]
        time.sleep(0.2)  # what was on its way
    assert 100 * 50 <= applied <= (100 + 8) * 50
    again = [sys.executable, "-m", "featurestore", *words, "-o", "json"]
    done = subprocess.run(again, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert (report["accepted"], report["already_applied"]) == (20_000 - applied, applied)
    assert house.engine.stats()["events_accepted"] == 20_000


def test_a_pipe_is_read_and_resumed_under_a_name(house: House) -> None:
    command = [sys.executable, "-m", "featurestore", "ingest", "-", "--format", "csv", "--producer", "log-1"]
    command += ["--event", "transaction", "--server", house.target, "-o", "json"]
    counts = []
    for _ in range(2):
        done = subprocess.run(command, input=csv_of(rows(300)), capture_output=True, text=True, check=True)
        report = json.loads(done.stdout)
        counts.append((report["accepted"], report["already_applied"]))
    assert counts == [(300, 0), (0, 300)]


def test_get_prints_a_table_or_json(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(house.target) as client:
        client.ingest("transaction", rows(100))
    words = ("get", "--service", "fraud", "customer_id=3", "--server", house.target, "--bounds")
    code, out, _ = run(*words, capsys=capsys)
    assert code == 0
    head, first, *_, last = out.splitlines()
    assert head.split() == ["feature", "value", "lower", "upper", "status"]
    assert first.split()[:4] == ["customer.count_1h", "10", "10", "10"]
    assert last.split() == ["terminal.count_1h", "-", "-", "-", "UNAVAILABLE"]
    code, out, _ = run(*words, "-o", "json", "--as-of", "2018-04-01T00:00:13Z", capsys=capsys)
    told = {one["name"]: one for one in json.loads(out)["features"]}
    assert told["customer.count_1h"]["value"] == 2
    assert told["terminal.count_1h"]["value"] is None


def test_get_reads_many_key_sets(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(house.target) as client:
        client.ingest("transaction", rows(100))
    file = house.directory / "keys.jsonl"
    file.write_text('{"customer_id": 3}\n\n{"customer_id": "3", "terminal_id": 1}\n')
    words = ("get", "--service", "fraud", "--keys-from", str(file), "--server", house.target)
    code, out, _ = run(*words, "-o", "json", capsys=capsys)
    one, two = (json.loads(line) for line in out.splitlines())
    assert (code, one["keys"], two["keys"]) == (0, {"customer_id": 3}, {"customer_id": "3", "terminal_id": 1})
    assert one["features"][0]["value"] == two["features"][0]["value"] == 10
    code, out, _ = run(*words, capsys=capsys)
    assert (code, out.count("customer.count_1h")) == (0, 2)
    file.write_text('{"customer_id": [3]}\n')
    code, _, err = run(*words, capsys=capsys)
    assert (code, "line 1: expected an object of keys" in err) == (1, True)
    file.write_bytes(b'{"customer_id": 3}\n{"customer_id": "\xff"}\n')
    code, _, err = run(*words, capsys=capsys)
    assert (code, f"{file}, line 2: not UTF-8" in err) == (1, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["get", "--service", "fraud", "customer_id"], 2, "write name=value"),
        (["get", "--service", "fraud", "a=1", "a=2"], 2, "given twice"),
        (["get", "--service", "fraudx", "customer_id=1"], 1, "unknown service 'fraudx'"),
        (["get", "--service", "fraud", "customr=1"], 1, "customr"),
        (["get", "--service", "fraud", "customer_id=1", "--as-of", "noon"], 1, "write ISO 8601"),
        (["get", "--service", "fraud", "customer_id=1", "--as-of", "1700000000"], 1, "looks like seconds"),
        (["get", "--service", "fraud", "customer_id=\udcff"], 1, "key customer_id: it is not text"),
        (["get", "--service", "fraud", "customer_id=1", "--keys-from", "-"], 2, "not both"),
        (["get", "--service", "fraud", "customer_id=1", "--timeout", "0"], 2, "--timeout"),
        (["ingest", "no.csv", "--event", "tx"], 1, "unknown event type 'tx'"),
        (["ingest", "no.csv", "--event", "transaction"], 1, "no.csv"),
        (["ingest", "no.txt", "--event", "transaction"], 2, "no.txt"),
    ],
)
def test_mistakes_are_one_line(
    house: House, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    got, out, err = run(*words, "--server", house.target, capsys=capsys)
    assert (got, out) == (code, "")
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [
        ["get", "--service", "fraud", "customer_id=1", "--server", "localhost:1"],
        ["ingest", "no.csv", "--event", "transaction", "--wait", "0", "--server", "localhost:1"],
        ["stats", "--admin", "unix:/nowhere/admin.sock"],
    ],
)
def test_a_server_that_is_not_there_is_exit_code_4(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    code, _, err = run(*words, capsys=capsys)
    assert code == 4
    assert f"cannot reach {words[-1]}; is `featurestore serve` running there?" in err


def test_what_the_server_cannot_do_is_not_said_to_be_a_server_that_is_not_there(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run("backup", "/proc/nowhere/copy", "--admin", house.admin, capsys=capsys)
    assert code == 1
    assert err.startswith("featurestore: error: cannot write the backup /proc/nowhere/copy: No such file")


def test_apply_says_what_changes_and_changes_it(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    file = house.directory / "next.yaml"
    file.write_text(SCHEMA.replace("[1h]", "[1h, 1d]"))
    words = ("apply", str(file), "--admin", house.admin)
    code, out, _ = run(*words, "--dry-run", capsys=capsys)
    assert (code, out.splitlines()) == (
        0,
        [
            "~ view terminal: windows             FREE   was 1h, is 1d",
            "+ terminal.count_1d                  FREE   count over 1d",
            "+ service fraud: members             FREE   terminal.count_1d",
            "schema version 2 would be served; 3 changes",
        ],
    )
    assert house.engine.state.plan.version == 1
    code, out, _ = run(*words, "-o", "json", capsys=capsys)
    assert (code, json.loads(out)["added_features"]) == (0, ["terminal.count_1d"])
    assert json.loads(out)["needs_allow"] == []
    assert house.engine.state.plan.version == 2
    file.write_text(SCHEMA)
    code, out, _ = run(*words, "--dry-run", capsys=capsys)
    assert (code, out.splitlines()[-2:]) == (
        0,
        ["needs --allow drop,narrow", "schema version 3 would be served; 3 changes"],
    )
    code, _, err = run(*words, "--allow", "drop", capsys=capsys)
    assert (code, "~ view terminal: windows" in err) == (1, True)
    code, _, err = run(*words, "--allow", "drop,all", capsys=capsys)
    assert (code, "it is of drop, reset, narrow" in err) == (2, True)
    code, _, err = run(*words, "--allow", "drop,narrow", "--expect-version", "1", capsys=capsys)
    assert (code, "serves version 2" in err, house.engine.state.plan.version) == (1, True, 2)
    code, out, _ = run(*words, "--allow", "drop,narrow", "--expect-version", "2", "-o", "json", capsys=capsys)
    made = json.loads(out)
    assert (code, made["needs_allow"], house.engine.state.plan.version) == (0, ["drop", "narrow"], 3)
    assert made["changes"][0] == {
        "kind": "NARROW",
        "subject": "view terminal: windows",
        "before": "1d",
        "after": "1h",
        "consent": True,
    }
    file.write_text(SCHEMA.replace("tx_amount)", "tx_amnt)"))
    code, _, err = run(*words, capsys=capsys)
    assert (code, house.engine.state.plan.version) == (1, 3)
    assert f"{file}:" in err
    assert "did you mean" in err


def test_producers_are_listed_dropped_and_reset(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    def producers(*words: str) -> tuple[int, str, str]:
        return run("producers", *words, "--admin", house.admin, capsys=capsys)

    with Client(house.target, producer="ingest-1", epoch=3) as client:
        client.ingest("transaction", rows(10))
        for sequence in range(1, 2_003):  # more than a page, and a name that would speak to the terminal
            name = f"other-{sequence}" if sequence > 1 else "red\x1b[31m"
            house.engine.observe(one_transaction(house.engine), producer=name.encode(), sequence=sequence)
        house.engine.observe(one_transaction(house.engine), producer=b"ingest-1", epoch=3 + 2**40, sequence=5)
        with pytest.raises(SequenceError, match="operator reset"):
            client.ingest("transaction", rows(10))
        code, out, _ = producers("list")
        header, *lines = out.splitlines()
        assert (code, header.split()) == (0, ["producer", "name", "epoch", "sequence", "heard"])
        assert len(lines) == 2_003
        assert lines[0].split()[:4] == ["ingest-1", "given", str(3 + 2**40), "5"]
        assert any("red\\x1b[31m" in line for line in lines) and "\x1b" not in out
        code, out, _ = producers("list", "-o", "json")
        assert (code, len(json.loads(out)["producers"])) == (0, 2_003)
        code, out, _ = producers("reset", "ingest-1", "--epoch", "3", "--sequence", "2")
        assert (code, out) == (0, "ingest-1: goes on in epoch 3 above sequence 2\n")
        client.ingest("transaction", rows(10))
        assert client.get("fraud", {"customer_id": 3})["customer.count_1d"] == 2.0
        code, out, _ = producers("drop", "ingest-1", "-o", "json")
        assert (code, json.loads(out)["position"]) == (0, house.engine.state.position)
    code, _, err = producers("drop", "ingest-1")
    assert (code, "no producer 'ingest-1'" in err and "producers list" in err) == (1, True), err
    code, _, err = producers("reset", "other-2", "--epoch", "3", "--sequence", "-1")
    assert (code, "--sequence is -1" in err) == (2, True), err
    code, _, err = run("producers", "list", "--admin", f"unix:{house.directory}/none", capsys=capsys)
    assert (code, "none" in err) != (0, False), err


def test_the_clocks_are_told_and_one_that_has_not_leapt_is_left(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    with Client(house.target) as client:
        client.ingest("transaction", rows(10))
    before_ms = time.time_ns() // 1_000_000
    code, out, _ = run("clock", "show", "--admin", house.admin, "-o", "json", capsys=capsys)
    told = json.loads(out)
    assert (code, told["leap_ms"], told["now_ms"]) == (0, 0, T0 + 9_000)
    assert before_ms <= told["server_ms"] <= time.time_ns() // 1_000_000
    assert told["clocks_ms"] == {"transaction": T0 + 9_000}
    code, out, _ = run("clock", "show", "--admin", house.admin, capsys=capsys)
    assert (code, out.count("2018-04-01 00:00:09.000+00:00"), "transaction" in out) == (0, 2, True)
    code, out, _ = run("clock", "accept", "--admin", house.admin, capsys=capsys)
    assert (code, out) == (0, "the wall clock had not leapt; nothing has changed\n")
    code, out, _ = run("clock", "accept", "--admin", house.admin, "-o", "json", capsys=capsys)
    assert (code, json.loads(out)) == (0, {"leap_ms": 0})
    code, _, err = run("clock", "show", "--admin", f"unix:{house.directory}/none", capsys=capsys)
    assert (code, "cannot reach" in err) == (4, True), err


def test_history_goes_live_while_it_is_served(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    def clock(*words: str) -> tuple[int, str, str]:
        return run("clock", *words, "--admin", house.admin, capsys=capsys)

    with Client(house.target) as client:
        client.ingest("transaction", rows(10))
    code, _, err = clock("back", "--allow", "clock")
    assert (code, "the store's clock is event" in err) == (2, True), err
    for words in ((), ("--allow", "drop")):
        code, _, err = clock("wall", *words)
        assert (code, "--allow clock" in err, house.engine.clock) == (1, True, "event"), err
    code, _, err = clock("wall", "--allow", "clocks")
    assert (code, "allow is 'clocks'" in err) == (2, True), err
    code, out, _ = clock("wall", "--allow", "clock", "-o", "json")
    assert (code, json.loads(out)) == (0, {"position": house.engine.state.position})
    assert house.engine.clock == "wall"
    for words in (("wall",), ("back",)):
        code, out, _ = clock(*words)
        assert (code, out) == (0, "the store's clock was so already; nothing has changed\n")
    code, out, _ = clock("show", "-o", "json")
    told = json.loads(out)
    assert abs(told["now_ms"] - time.time_ns() // 1_000_000) < 60_000
    assert all(told["now_ms"] - 60_000 < ms <= told["now_ms"] for ms in told["clocks_ms"].values())


def test_forget_stats_checkpoint_and_backup(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(house.target) as client:
        client.ingest("transaction", rows(100))
        admin = ("--admin", house.admin)
        code, out, _ = run("stats", *admin, "-o", "json", capsys=capsys)
        stats = json.loads(out)
        assert (code, stats["events_accepted"], stats["rows"], stats["now_ms"]) == (0, 100, 13, T0 + 99_000)
        assert stats["checkpoint_age_ms"] is None
        code, out, _ = run("stats", *admin, capsys=capsys)
        assert (code, "2018-04-01 00:01:39.000+00:00" in out) == (0, True)
        code, out, _ = run("checkpoint", *admin, "-o", "json", capsys=capsys)
        assert (code, json.loads(out)["rows_written"]) == (0, 13)
        code, out, _ = run("forget", "customer_id=3", *admin, "-o", "json", capsys=capsys)
        assert (code, json.loads(out)["found"]) == (0, True)
        assert client.get("fraud", {"customer_id": 3})["customer.count_1d"] == 0.0
        code, out, _ = run("forget", "customer_id=3", *admin, capsys=capsys)
        assert (code, "nothing was kept of it" in out) == (0, True)
        copy = house.directory / "copy"
        code, out, _ = run("backup", str(copy), *admin, "-o", "json", capsys=capsys)
        assert (code, copy.is_dir()) == (0, True)
        code, _, err = run("backup", str(copy), *admin, capsys=capsys)
        assert (code, "exists" in err) == (2, True) or code == 1


# ---- a consumer that keeps no offset

CONSUMER = """
import sys
from featurestore.client import Client, Ticket
from featurestore.errors import UnknownNameError

with Client(sys.argv[1]) as client:
    try:
        at = client.get_producer("orders/3").resume_at(1000)
    except UnknownNameError:
        at = 1000
    print(at, flush=True)
    for offset in range(at, 1000 + int(sys.argv[2])):
        message = {"customer_id": offset % 7, "terminal_id": 0, "tx_amount": 1.0}
        message["tx_datetime"] = f"2018-04-01T00:00:00.{offset - 1000:03}Z"
        seen = client.observe("transaction", message, ticket=Ticket("orders/3", 1, offset))
        assert seen.outcome.name in ("ACCEPTED", "DUPLICATE"), seen
        print(offset, flush=True)
"""


def test_a_consumer_that_is_killed_goes_on_where_the_store_is(house: House) -> None:
    """Sequence = offset: nothing lost, nothing twice, and no offset kept but in the store."""
    n, begins = 300, []
    for n_taken in (1, 60, 120, n):
        consumer = subprocess.Popen(
            [sys.executable, "-c", CONSUMER, house.target, str(n)], stdout=subprocess.PIPE, text=True
        )
        assert consumer.stdout is not None
        begins.append(int(consumer.stdout.readline()))
        for _ in range(n_taken):
            if not consumer.stdout.readline():
                break
        consumer.kill()  # also amid a call
        consumer.wait()
        consumer.stdout.close()
    assert begins[0] == 1000
    assert begins == sorted(set(begins)), "each went on above the one before"
    with Client(house.target) as client:
        seen = client.get_producer("orders/3")
        assert (seen.epoch, seen.sequence, seen.resume_at(1000)) == (1, 1000 + n - 1, 1000 + n)
        assert seen.seen == frozenset(range(1000, 1000 + n))
        for customer in range(7):
            vector = client.get("fraud", {"customer_id": customer, "terminal_id": 0})
            assert vector["customer.count_1h"] == len(range((customer - 1000) % 7, n, 7))


def test_a_producer_goes_on_at_the_first_that_was_not_seen(house: House, make_client: MakeClient) -> None:
    client = make_client(house.target)
    with pytest.raises(UnknownNameError, match="no producer 'orders/3' is remembered"):
        client.get_producer("orders/3")
    for offset in (50, 51, 53):
        event = {"customer_id": 1, "terminal_id": 0, "tx_amount": 1.0}
        event["tx_datetime"] = "2018-04-01T00:00:00Z"
        client.observe("transaction", event, ticket=Ticket("orders/3", 2, offset))
    seen = client.get_producer("orders/3")
    assert (seen.name, seen.epoch, seen.sequence, seen.lowest) == ("orders/3", 2, 53, 0)
    assert seen.seen == {50, 51, 53}
    assert [seen.resume_at(first) for first in (0, 50, 53, 54, 60)] == [0, 52, 54, 54, 60]
    assert abs(seen.heard_ms / 1000 - time.time()) < 600
    for wrong in (7, None):
        with pytest.raises(ConfigError, match="name is text"):
            client.get_producer(wrong)
    with pytest.raises(InvalidEventError, match="UTF-8"):
        client.get_producer("\ud800")


def test_a_field_that_is_added_is_free_and_says_whom_it_refuses(
    house: House, make_client: MakeClient
) -> None:
    """A name that was nobody's business is judged from then on."""
    client = make_client(house.target)
    whole = {"customer_id": 1, "terminal_id": 0, "tx_amount": 1.0, "tx_datetime": "2018-04-01T00:00:00Z"}
    for more in ({"country": "FR"}, {"channel": "web"}):
        assert client.observe("transaction", {**whole, **more}).outcome is Outcome.ACCEPTED
    changed = SCHEMA.replace("tx_amount: number}", "tx_amount: number, country: number}")
    before = house.engine.state.plan
    (added,) = changes_of(before, house.engine.apply_schema(changed))
    assert added.line.startswith(
        "+ event type transaction: field country FREE   number; refused from now on:"
    )
    assert added.line.endswith("another type, or undeclared names without it")
    seen = client.observe("transaction", {**whole, "country": "FR"})
    assert (seen.outcome, seen.why.field) == (Outcome.REFUSED_TYPE, "country")
    with pytest.raises(UnknownNameError, match="unknown field 'channel'"):
        client.observe("transaction", {**whole, "channel": "web"})
    for more in ({}, {"country": 33}, {"country": None, "channel": "web"}):
        assert client.observe("transaction", {**whole, **more}).outcome is Outcome.ACCEPTED
