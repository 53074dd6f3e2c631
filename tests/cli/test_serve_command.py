"""`featurestore serve`: starts, says where it listens, serves, drains, and refuses what it cannot do."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest
import transports
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import featurestore
from featurestore import config
from featurestore.cli import main
from featurestore.cli import serve as command
from featurestore.cli.exits import Exit
from featurestore.client import AdminClient, Client
from featurestore.config import Limits, ServeConfig, Tls


def run(*words, timeout_s=30, directory=None):
    """The whole command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "featurestore", "serve", *map(str, words)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def test_a_new_store_serves_stops_on_sigterm_and_has_its_data_when_started_again(
    serve_over, schema, tmp_path
):
    data = tmp_path / "store"
    child, ready = serve_over("--schema", str(schema), "--data", str(data), "--clock", "event")
    assert (ready["schema"], ready["schema_version"], ready["clock"]) == ("clicks", 1, "event")
    assert ready["admin"] == f"unix:{data}/admin.sock"
    with Client(ready["listen"]) as client:
        client.ingest("click", {"at": [1000, 1001, 1002], "user": ["a", "a", "b"]})
        before = client.get("spam", {"user": "a"}).to_dict()
    assert before == {"user.count_1h": 2.0}
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 0
    log = (tmp_path / "serve-0.log").read_text()
    for words in ("opened in", f"listening on {ready['listen']}", "told to stop", "stopped; the checkpoint"):
        assert words in log

    _, ready = serve_over("--data", str(data))
    assert ready["rows"] == 2
    assert ready["recovered"]["checkpoint_position"] == ready["position"] == 4
    assert ready["recovered"]["journal_frames"] == 0, "the checkpoint at the end left nothing to replay"
    with Client(ready["listen"]) as client:
        assert client.get("spam", {"user": "a"}).to_dict() == before


def test_killed_it_replays_the_journal_and_says_so(serve_over, schema, tmp_path):
    child, ready = serve_over("--schema", str(schema), "--data", str(tmp_path / "store"), "--clock", "event")
    with Client(ready["listen"]) as client:
        client.ingest("click", {"at": [1000, 1001], "user": ["a", "b"]})
    child.kill()
    child.wait(30)
    _, ready = serve_over("--data", str(tmp_path / "store"))
    assert ready["recovered"]["checkpoint_position"] == 0
    assert ready["recovered"]["journal_frames"] == 2  # the schema's and the batch's
    assert ready["recovered"]["journal_events"] == 2
    assert ready["rows"] == 2


def test_it_describes_its_services_to_whoever_knows_none_of_them(serve_over, schema, tmp_path):
    """In a process of its own, which imports only what it needs to serve."""
    _, ready = serve_over("--schema", str(schema), "--data", str(tmp_path / "store"))
    symbols = [
        "featurestore.v1.FeatureStoreService",
        "featurestore.v1.RegistryService",
        "featurestore.v1.Vectors",
        "grpc.health.v1.Health",
    ]
    asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol) for symbol in symbols]
    with grpc.insecure_channel(ready["listen"]) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        for symbol, reply in zip(symbols, stub.ServerReflectionInfo(iter(asked), timeout=20), strict=True):
            assert reply.file_descriptor_response.file_descriptor_proto, symbol


def test_for_people_the_ready_lines_name_every_address(schema, tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-m", "featurestore", "serve", "--schema", str(schema), "--data",
         str(tmp_path / "s"), "--listen", "localhost:0", "--metrics-listen", "localhost:0",
         "--log-level", "error"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        history, *lines = [child.stdout.readline() for _ in range(6)]
        assert history.startswith("a new store, and nobody knows what was before it (--history unknown):")
        assert lines[0].startswith("serving clicks (schema version 1) on localhost:")
        assert "a new store" in lines[1]
        assert "wall; durability group; history unknown" in lines[2]
        assert f"unix:{tmp_path}/s/admin.sock" in lines[3]
        url = lines[4].split()[1]
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310  our own listener
            assert b"featurestore_rows" in reply.read()
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 0
        assert child.stderr.read() == "", "at --log-level error nothing is said when nothing is wrong"
    finally:
        child.kill()
        child.communicate()


def test_a_port_in_use_is_named_and_is_a_wrong_setting(schema, tmp_path, transport):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(
            "--schema", schema, "--data", tmp_path / "store", "--listen", f"127.0.0.1:{port}",
            *transports.flags(transport),
        )  # fmt: skip
    assert done.returncode == Exit.USAGE
    assert f"--listen: cannot listen on 127.0.0.1:{port} (the port is in use)" in done.stderr
    assert done.stdout == ""


def test_a_wrong_schema_is_named_by_its_line_and_leaves_no_store(schema, tmp_path):
    schema.write_text(schema.read_text().replace("key: user,", "key: usr,"))
    done = run("--schema", schema, "--data", tmp_path / "store", "--listen", "localhost:0")
    assert done.returncode == Exit.ERROR
    assert f"featurestore: error: {schema}:6: " in done.stderr
    assert "did you mean" in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_new_store_needs_a_schema(tmp_path):
    done = run("--data", tmp_path / "store")
    assert done.returncode == Exit.USAGE
    assert "give the schema to create one with" in done.stderr


def test_a_second_process_on_the_directory_is_turned_away_and_the_first_goes_on(serve, schema, tmp_path):
    _, ready = serve("--schema", str(schema), "--data", str(tmp_path / "store"), "--clock", "event")
    done = run("--data", tmp_path / "store", "--listen", "localhost:0")
    assert done.returncode == Exit.ERROR
    assert "is in use by another process" in done.stderr
    with Client(ready["listen"]) as client:
        assert client.ingest("click", {"at": [1], "user": ["a"]}).accepted == 1


def test_a_store_is_not_served_with_a_clock_that_it_has_not(serve, schema, tmp_path):
    child, _ = serve("--schema", str(schema), "--data", str(tmp_path / "store"), "--clock", "event")
    child.terminate()
    child.wait(30)
    done = run("--data", tmp_path / "store", "--clock", "wall")
    assert done.returncode == Exit.USAGE
    assert "this store has the event clock" in done.stderr


def test_a_changed_schema_is_applied_at_start(serve, schema, tmp_path):
    child, _ = serve("--schema", str(schema), "--data", str(tmp_path / "store"), "--clock", "event")
    child.terminate()
    child.wait(30)
    schema.write_text(schema.read_text().replace("[1h]", "[1h, 10m]"))
    _, ready = serve("--schema", str(schema), "--data", str(tmp_path / "store"))
    assert ready["schema_version"] == 2
    with Client(ready["listen"]) as client:
        assert client.get("spam", {"user": "a"}).names == ("user.count_1h", "user.count_10m")


def test_a_start_makes_no_change_that_takes_something_away(serve, schema, tmp_path):
    child, _ = serve("--schema", str(schema), "--data", str(tmp_path / "store"), "--clock", "event")
    child.terminate()
    child.wait(30)
    before = schema.read_text()
    schema.write_text(before.replace("[1h]", "[10m, 1h]"))
    with pytest.raises(AssertionError, match="needs consent: `featurestore apply --allow order`"):
        serve("--schema", str(schema), "--data", str(tmp_path / "store"))
    schema.write_text(before)
    _, ready = serve("--schema", str(schema), "--data", str(tmp_path / "store"))
    assert ready["schema_version"] == 1


def test_the_memory_cap_sheds_new_keys(serve, schema, tmp_path):
    _, ready = serve(
        "--schema", str(schema), "--data", str(tmp_path / "s"), "--clock", "event", "--max-memory", "16M"
    )
    users = [f"user-{i}" for i in range(400_000)]
    with Client(ready["listen"]) as client, AdminClient(ready["admin"]) as admin:
        report = client.ingest("click", {"at": [1000] * len(users), "user": users}, batch_events=5000)
        assert report.accepted == len(users)
        assert 0 < report.shed < len(users)
        stats = admin.stats()
        assert (stats.rows, stats.events_shed) == (report.accepted - report.shed, report.shed)


@pytest.fixture
def over_tls(serve_over, schema, tmp_path):
    """The ready line of a server, whose certificate is cert.pem."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    return serve_over(
        "--schema", str(schema), "--data", str(tmp_path / "s"), "--clock", "event",
        "--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"),
    )[1]  # fmt: skip


def test_tls_serves_those_who_trust_its_certificate(over_tls, tmp_path):
    from featurestore.client import Tls as ClientTls

    with Client(over_tls["listen"], tls=ClientTls(ca=str(tmp_path / "cert.pem"))) as client:
        assert client.ingest("click", {"at": [1], "user": ["a"]}).accepted == 1


def test_handshakes_that_fail_write_nothing_to_the_log(over_tls, tmp_path):
    host, _, port = over_tls["listen"].rpartition(":")
    before = (tmp_path / "serve-0.log").read_text()
    for hello in [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05garbage" * 9] * 20:
        with socket.create_connection((host, int(port)), timeout=10) as stranger:
            stranger.sendall(hello)
            with contextlib.suppress(ConnectionResetError):
                while stranger.recv(4096):
                    pass
    assert (tmp_path / "serve-0.log").read_text() == before


# -- a build without the native transport


@pytest.fixture
def without_native(tmp_path):
    """A directory with the package as FEATURESTORE_NATIVE=0 builds it: `python -m` there runs this one."""
    package = Path(featurestore.__file__).parent

    def left_out(directory, names):
        native = ("connection.", "host.", "loop.", "tls.") if Path(directory).name == "server" else ()
        return [name for name in names if name.startswith(native) and name.endswith(".so")] + ["__pycache__"]

    shutil.copytree(package, tmp_path / "built" / "featurestore", ignore=left_out, copy_function=os.symlink)
    return tmp_path / "built"


WITHOUT = "the native transport was not built: grpcio serves"


@pytest.mark.parametrize("words", [[], ["--transport", "grpcio"]])
def test_without_the_native_transport_grpcio_serves_and_says_so_once(
    serve, schema, tmp_path, without_native, words
):
    """Whoever asked for grpcio has what was asked for."""
    child, ready = serve(
        "--schema", str(schema), "--data", str(tmp_path / "s"), "--clock", "event", *words,
        directory=without_native,
    )  # fmt: skip
    assert ready["transport"] == "grpcio"
    with Client(ready["listen"]) as client:
        assert client.ingest("click", {"at": [1000], "user": ["a"]}).accepted == 1
        assert client.get("spam", {"user": "a"}).to_dict() == {"user.count_1h": 1.0}
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 0
    assert (tmp_path / "serve-0.log").read_text().count(WITHOUT) == (0 if words else 1)


def test_with_the_native_transport_nothing_is_said_of_it(serve_over, schema, tmp_path):
    serve_over("--schema", str(schema), "--data", str(tmp_path / "s"))
    if "native" in transports.available():
        assert WITHOUT not in (tmp_path / "serve-0.log").read_text()


def test_a_transport_that_was_not_built_is_refused_in_words(schema, tmp_path, without_native):
    done = run(
        "--schema", schema, "--data", tmp_path / "s", "--listen", "localhost:0", "--transport", "native",
        directory=without_native,
    )  # fmt: skip
    assert done.returncode == Exit.USAGE
    assert done.stdout == ""
    assert (
        "--transport is 'native', which was not built: install libnghttp2-dev and libssl-dev" in done.stderr
    )
    assert "`featurestore doctor` tells more" in done.stderr


# -- settings


def parsed(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.config_of(parser.parse_args(["--data", "store", *words]))


def test_without_flags_the_settings_are_the_defaults_of_the_config():
    assert parsed() == ServeConfig(data=Path("store"))


@pytest.mark.parametrize(("mode", "expected"), [("0660", 0o660), ("666", 0o666), ("0", 0)])
def test_the_mode_of_a_socket_is_octal(mode, expected):
    given = parsed("--listen", "unix:/run/fs.sock", "--listen-mode", mode)
    assert given == ServeConfig(data=Path("store"), listen="unix:/run/fs.sock", listen_mode=expected)


def test_memory_for_producers_follows_that_of_rows():
    assert ServeConfig(data=Path("store"), max_memory_bytes=64 << 30).producer_bytes == 2 << 30
    assert ServeConfig(data=Path("store"), max_memory_bytes=64 << 20).producer_bytes == 64 << 20
    given = ServeConfig(data=Path("store"), max_memory_bytes=64 << 30, producer_memory_bytes=1 << 20)
    assert given.producer_bytes == 1 << 20


def test_every_setting_has_a_flag(tmp_path, schema):
    pem = tmp_path / "any.pem"
    pem.write_text("")
    assert parsed(
        "--schema", str(schema), "--listen", "0.0.0.0:1", "--tls-cert", str(pem), "--tls-key", str(pem),
        "--tls-client-ca", str(pem), "--admin", "localhost:2", "--admin-tls-cert", str(pem),
        "--admin-tls-key", str(pem), "--admin-tls-client-ca", str(pem), "--metrics-listen", "localhost:3",
        "--clock", "event", "--durability", "process", "--threads", "2", "--max-memory", "4G",
        "--dedupe-memory", "2G", "--producer-memory", "100M",
        "--checkpoint-every", "5m", "--checkpoint-journal", "512M", "--read-threads", "3",
        "--write-threads", "4", "--drain", "1.5s", "--max-message", "1M", "--max-batch-events", "5",
        "--max-call-memory", "2m", "--max-concurrent-calls", "6", "--max-streams", "7",
        "--max-streams-per-connection", "8", "--stream-window", "9", "--min-ping-interval", "500ms",
        "--durable-wait", "11", "--max-other-calls", "12", "--max-watches", "13", "--max-connections", "14",
        "--max-connection-memory", "15M", "--max-buffered", "16M", "--handshake-time", "17",
        "--request-time", "18", "--min-rate", "19", "--stall-time", "20", "--max-connection-idle", "21",
        "--max-connection-age", "22", "--connection-age-grace", "23", "--handshake-rate", "24",
    ) == ServeConfig(
        data=Path("store"), schema=schema.read_text(), schema_path=str(schema), listen="0.0.0.0:1",
        tls=Tls(pem, pem, pem), admin="localhost:2", admin_tls=Tls(pem, pem, pem),
        metrics="localhost:3", clock="event",
        durability="process", engine_threads=2, max_memory_bytes=4 << 30, dedupe_memory_bytes=2 << 30,
        producer_memory_bytes=100 << 20,
        checkpoint_every_s=300.0,
        checkpoint_journal_bytes=512 << 20, read_threads=3, write_threads=4, drain_s=1.5,
        limits=Limits(
            max_message_bytes=1 << 20, max_batch_events=5, max_call_bytes=2 << 20, max_concurrent_calls=6,
            max_streams=7, max_streams_per_connection=8, stream_window=9, min_ping_interval_ms=500,
            durable_wait_s=11.0, max_other_calls=12, max_watches=13, max_connections=14,
            max_connection_bytes=15 << 20, max_buffered_bytes=16 << 20, handshake_s=17.0, request_s=18.0,
            min_rate_bytes=19, stall_s=20.0, max_connection_idle_s=21.0, max_connection_age_s=22.0,
            connection_age_grace_s=23.0, handshake_rate=24,
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-memory", "4 gigs"], "--max-memory is '4 gigs'; write a whole number with K, M, G or T"),
        (["--drain", "-1"], "--drain is '-1'"),
        (["--tls-cert", "x"], "--tls-cert and --tls-key belong together"),
        (["--listen", "50051"], "--listen is '50051'; it is host:port"),
        (["--listen-mode", "0660"], "--listen-mode is 0660, and localhost:50051 is no file"),
        (["--listen", "unix:s", "--listen-mode", "rw"], "--listen-mode is 'rw'; write an octal mode of at"),
        (["--listen", "unix:s", "--listen-mode", "0668"], "--listen-mode is '0668'; write an octal mode"),
        (["--listen", "unix:s", "--listen-mode", "1777"], "--listen-mode is '1777'; write an octal mode"),
        (["--metrics-listen", "unix:/m"], "--metrics-listen (metrics) is unix:/m; it is host:port"),
        (["--read-threads", "0"], "--read-threads is 0; it is 1 to 256"),
        (["--threads", "0"], "--threads (engine_threads) is 0; it is 1 to 64"),
        (
            ["--max-memory", "4096T"],
            "--max-memory (max_memory_bytes) is 4503599627370496; it is 0 to",
        ),
        (
            ["--max-memory", "4", "--schema", "SCHEMA"],
            "--max-memory (max_memory_bytes) is 4; it is 0 (no limit) or 16777216 (16 MiB) at least",
        ),
        (["--max-message", "1"], "--max-message (max_message_bytes) is 1; it is 1,024 to 2,147,483,647"),
        (["--durable-wait", "0"], "--durable-wait (durable_wait_s) is 0.0; it is 0.001 to 86,400"),
        (["--admin", "localhost:1"], "--admin is localhost:1: over TCP it needs a certificate"),
    ],
)
def test_a_wrong_setting_says_its_flag_and_what_it_may_be(schema, tmp_path, capsys, words, said):
    words = [str(schema) if word == "SCHEMA" else word for word in words]
    assert main(["serve", "--data", str(tmp_path / "s"), *words]) == Exit.USAGE
    assert capsys.readouterr().err.startswith(f"featurestore: error: {said}")
    assert not (tmp_path / "s").exists()


def test_every_setting_with_a_range_is_named_by_its_flag():
    assert set(config._RANGES) <= set(command.FLAGS)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    for flag in command.FLAGS.values():
        assert f" {flag} " in parser.format_help()


def test_a_schema_that_cannot_be_read_is_an_error_of_one_line(tmp_path, capsys):
    assert main(["serve", "--data", str(tmp_path / "s"), "--schema", str(tmp_path / "no.yaml")]) == Exit.ERROR
    assert capsys.readouterr().err == (
        f"featurestore: error: cannot read {tmp_path / 'no.yaml'}: No such file or directory\n"
    )


def test_the_ready_line_is_one_line_of_json(serve, schema, tmp_path):
    child, ready = serve("--schema", str(schema), "--data", str(tmp_path / "s"))
    child.terminate()
    rest, _ = child.communicate(timeout=30)
    assert rest == "", "nothing but the ready line goes to standard output"
    assert json.loads(json.dumps(ready)) == ready
