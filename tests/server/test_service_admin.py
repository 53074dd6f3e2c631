"""The operator's listener, and what tells others about the server: schema, reflection, health, metrics."""

from __future__ import annotations

import stat
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from house import (
    SCHEMA,
    T0,
    House,
    Serving,
    batch,
    event,
    field,
    keys,
    observe,
    opened,
    play,
    read,
    status_of,
)

from featurestore.engine import Engine
from featurestore.storage import failpoint
from featurestore.v1 import admin_service_pb2 as admin_pb
from featurestore.v1 import admin_service_pb2_grpc as admin_grpc
from featurestore.v1 import feature_store_service_pb2 as pb
from featurestore.v1 import registry_service_pb2 as registry_pb

DROP = admin_pb.CHANGE_KIND_DROP
ALL = admin_pb.ChangeKind.values()[2:]  # that need consent
LONGER = SCHEMA.replace("  abuse: [ip.*, account.*, pair.*]", "  abuse: [pair.*, account.*]")


def test_the_socket_is_its_owners_alone(house: House) -> None:
    path = house.server.admin_address.path
    assert path is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with house.admin() as admin:
        assert admin.Stats(admin_pb.StatsRequest()).schema_version == 1


def test_admin_is_not_served_to_the_public_nor_the_other_way_round(house: House) -> None:
    public = admin_grpc.AdminServiceStub(house.channel)
    code, _ = status_of(lambda: public.Checkpoint(admin_pb.CheckpointRequest()))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    with grpc.insecure_channel(str(house.server.admin_address)) as channel:
        code, _ = status_of(lambda: channel.unary_unary("/featurestore.v1.FeatureStoreService/Observe")(b""))
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_stats_count_what_happened(house: House) -> None:
    house.hot.Ingest(batch(play(), play(), event(None, ip="a")))
    house.hot.GetFeatures(read(keys(ip="a"), keys(ip="b")))
    with house.admin() as admin:
        stats = admin.Stats(admin_pb.StatsRequest())
    assert (stats.events_accepted, stats.events_refused, stats.vectors_read) == (2, 1, 2)
    assert stats.position == stats.durable_position == house.engine.state.position
    assert (stats.rows, stats.now_ms, stats.checkpoint_age_ms) == (3, T0, -1)
    assert stats.row_bytes > 0
    assert stats.journal_bytes > 0


def test_stats_and_metrics_tell_what_sketches_take(tmp_path: Path, serving: Serving) -> None:
    sketched = SCHEMA.replace(
        "    key: [ip, track]\n    windows: [1h]\n    features: [count]",
        "    key: [ip, track]\n    windows: [1h]\n    features: [count, sum(ms_played)]\n"
        "    store: sketch\n    epsilon: 0.1\n    delta: 0.1",
    )
    assert sketched != SCHEMA
    with serving(tmp_path, metrics="localhost:0") as house, house.admin() as admin:
        stats = admin.Stats(admin_pb.StatsRequest())
        assert (stats.sketches, stats.sketch_bytes) == (0, 0)
    with serving(tmp_path / "other", schema=sketched, metrics="localhost:0") as house, house.admin() as admin:
        stats = admin.Stats(admin_pb.StatsRequest())
        with urllib.request.urlopen(f"http://{house.server.metrics_address}/metrics") as reply:
            lines = dict(line.rsplit(" ", 1) for line in reply.read().decode().splitlines() if line[0] != "#")
    n_shards = house.engine.directory.identity.n_shards
    cells = 3 * 28  # ceil(ln(1 / delta)) rows of ceil(e / epsilon)
    assert stats.sketches == 2 * n_shards
    assert stats.sketch_bytes == n_shards * cells * (128 + 256)
    assert stats.row_bytes > stats.sketch_bytes
    assert float(lines["featurestore_sketch_bytes"]) == stats.sketch_bytes


def test_checkpoint_says_what_it_wrote(house: House) -> None:
    house.hot.Observe(observe(play()))
    with house.admin() as admin:
        first = admin.Checkpoint(admin_pb.CheckpointRequest())
        second = admin.Checkpoint(admin_pb.CheckpointRequest())
        stats = admin.Stats(admin_pb.StatsRequest())
    assert (first.position, first.rows_written) == (house.engine.state.position, 3)
    assert first.bytes_written > 0
    assert second.rows_written == 0, "nothing has changed"
    assert stats.checkpoint_position == first.position
    assert stats.checkpoint_age_ms >= 0


def test_metrics_count_the_checkpoints_that_found_no_space(tmp_path: Path, serving: Serving) -> None:
    def metric(name: str) -> float:
        with urllib.request.urlopen(f"http://{house.server.metrics_address}/metrics") as reply:
            lines = dict(line.rsplit(" ", 1) for line in reply.read().decode().splitlines() if line[0] != "#")
        return float(lines[f"featurestore_{name}"])

    with serving(tmp_path, metrics="localhost:0") as house, house.admin() as admin:
        house.hot.Observe(observe(play()))
        assert (metric("checkpoints_failed_total"), metric("writes_refused")) == (0, 0)
        failpoint.arm("checkpoint.mid=enospc")
        with pytest.raises(grpc.RpcError, match="No space left"):
            admin.Checkpoint(admin_pb.CheckpointRequest())
        assert metric("checkpoints_failed_total") == 1
        admin.Checkpoint(admin_pb.CheckpointRequest())
        assert (metric("checkpoints_failed_total"), metric("writes_refused")) == (1, 0)


def test_forget_takes_a_key_by_its_parts(house: House) -> None:
    house.hot.Observe(observe(play(account=596)))
    with house.admin() as admin:
        forget = admin_pb.ForgetRequest(parts=[field("account", 596)])
        first = admin.Forget(forget)
        assert first.found
        assert not admin.Forget(forget).found
        code, words = status_of(lambda: admin.Forget(admin_pb.ForgetRequest(parts=[field("acount", 596)])))
        assert (code, "(account)" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        code, _ = status_of(lambda: admin.Forget(admin_pb.ForgetRequest(parts=[field("account", 1.5)])))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    values = house.values(house.hot.GetFeatures(read(keys(account=596, ip="1.2.3.4"))).vectors)
    assert (values["account.count_1h"], values["ip.count_1h"]) == (0, 1)


def test_an_operator_gives_a_producer_its_name_back(house: House) -> None:
    def ingest(sequence: int, epoch: int = 3) -> pb.IngestResponse:
        return house.hot.Ingest(batch(play(), producer="ingest-1", epoch=epoch, sequence=sequence))

    assert ingest(7).accepted == 1
    ingest(7 + 2**40)  # another's
    code, words = status_of(lambda: ingest(8))
    assert (code, "operator reset" in words) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    with house.admin() as admin:
        (listed,) = admin.ListProducers(admin_pb.ListProducersRequest()).producers
        assert (listed.name, listed.epoch, listed.sequence) == ("ingest-1", 3, 7 + 2**40)
        assert abs(listed.heard_ms / 1000 - time.time()) < 600
        assert not listed.made_up
        request = admin_pb.ResetProducerRequest(name="ingest-1", epoch=3, sequence=7)
        position = admin.ResetProducer(request).position
        assert position == house.engine.journal.durable_position
        assert ingest(8).accepted == 1
        assert ingest(8).duplicate_batch
        code, _ = status_of(lambda: ingest(7))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        drop = admin_pb.DropProducerRequest(name="ingest-1")
        assert admin.DropProducer(drop).position == house.engine.journal.durable_position
        assert not admin.ListProducers(admin_pb.ListProducersRequest()).producers
        assert ingest(8).accepted == 1, "sent again, it counts again"
        for wrong, said in (
            (lambda: admin.DropProducer(admin_pb.DropProducerRequest(name="ingest-2")), "producers list"),
            (lambda: admin.DropProducer(admin_pb.DropProducerRequest()), "no producer"),
            (lambda: admin.DropProducer(admin_pb.DropProducerRequest(name="p" * 300)), "no producer"),
            (lambda: admin.ResetProducer(admin_pb.ResetProducerRequest(name="no")), "no producer 'no'"),
            (
                lambda: admin.ResetProducer(
                    admin_pb.ResetProducerRequest(name="ingest-1", epoch=2**63, sequence=1)
                ),
                "below 2**63",
            ),
            (lambda: admin.ListProducers(admin_pb.ListProducersRequest(page_size=10_001)), "at most 10000"),
            (lambda: admin.ListProducers(admin_pb.ListProducersRequest(after=9)), "begin again"),
        ):
            code, words = status_of(wrong)
            assert (code, said in words) == (grpc.StatusCode.INVALID_ARGUMENT, True), words


def test_a_backup_opens_and_answers_the_same(house: House, tmp_path: Path) -> None:
    house.hot.Observe(observe(play()))
    target = tmp_path / "copy"
    with house.admin() as admin:
        reply = admin.Backup(admin_pb.BackupRequest(directory=str(target)))
        assert reply.position == house.engine.state.position
        assert reply.bytes_written > 0
        for wrong in (str(target), "relative"):
            request = admin_pb.BackupRequest(directory=wrong)
            assert (
                status_of(lambda request=request: admin.Backup(request))[0]
                is grpc.StatusCode.INVALID_ARGUMENT
            )
    with Engine.open(target) as copy:
        assert copy.state.digest() == house.engine.state.digest()


def test_apply_schema_tells_what_changes_and_makes_what_is_allowed(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    longer = SCHEMA.replace("windows: [10m, 1h]", "windows: [10m, 2h]")
    with house.admin() as admin:
        dry = admin.ApplySchema(admin_pb.ApplySchemaRequest(source=longer, dry_run=True))
        assert (dry.version, dry.position) == (2, 0)
        assert house.engine.state.plan.version == 1
        assert {each.subject for each in dry.changes if each.consent} == {
            *(f"ip.{each}_1h" for each in ("count", "mean_ms_played", "since_last")),
            "service abuse: members",
        }
        code, words = status_of(lambda: admin.ApplySchema(admin_pb.ApplySchemaRequest(source=longer)))
        assert (code, "--allow drop" in words) == (grpc.StatusCode.FAILED_PRECONDITION, True)
        stale = admin_pb.ApplySchemaRequest(source=longer, allow=[DROP], expect_version=2)
        assert status_of(lambda: admin.ApplySchema(stale))[0] is grpc.StatusCode.ABORTED
        unknown = admin_pb.ApplySchemaRequest(source=longer, allow=[DROP, 99])
        assert status_of(lambda: admin.ApplySchema(unknown))[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert house.engine.state.plan.version == 1, "nothing was changed"
        caplog.set_level("INFO", logger="featurestore.server")
        done = admin.ApplySchema(
            admin_pb.ApplySchemaRequest(source=longer, allow=[DROP], expect_version=1, note="anna: model 7")
        )
        (logged,) = [each.getMessage() for each in caplog.records if "schema version" in each.getMessage()]
        assert logged.startswith("schema version 2 is served from now on (anna: model 7): ")
        assert "DROP ip.count_1h" in logged
        assert done.changes == dry.changes
        assert (done.version, done.position) == (2, house.engine.state.position)
        assert list(done.added_features) == ["ip.count_2h", "ip.mean_ms_played_2h", "ip.since_last_2h"]
        assert list(done.removed_features) == ["ip.count_1h", "ip.mean_ms_played_1h", "ip.since_last_1h"]
        again = admin.ApplySchema(admin_pb.ApplySchemaRequest(source=longer))
        assert (again.version, again.position) == (2, 0)
        wrong = admin_pb.ApplySchemaRequest(
            source=longer.replace("key: account", "key: acount", 1), path="f.yaml"
        )
        code, words = status_of(lambda: admin.ApplySchema(wrong))
        assert (code, "f.yaml:" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    schema = house.registry.GetSchema(registry_pb.GetSchemaRequest())
    assert [feature.name for feature in schema.services[0].features][:2] == ["ip.count_10m", "ip.count_2h"]


def test_names_and_answers_change_together_under_load(house: House) -> None:
    """Two schemas take turns while calls go on: every vector has the width of the fingerprint that it
    carries.
    """
    house.hot.Ingest(batch(play()))
    stop = threading.Event()
    wrong: list[object] = []
    seen: set[int] = set()

    def ask() -> None:
        while not stop.is_set():
            for vectors in (
                house.hot.GetFeatures(read(keys(ip="a"))).vectors,
                house.hot.Observe(observe(play())).vectors,
            ):
                seen.add(vectors.fingerprint)
                if widths.setdefault(vectors.fingerprint, vectors.width) != vectors.width:
                    wrong.append(vectors)

    widths: dict[int, int] = {}
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    with house.admin() as admin:
        for i in range(10):
            admin.ApplySchema(
                admin_pb.ApplySchemaRequest(source=(LONGER, SCHEMA)[i % 2], allow=ALL), timeout=60
            )
            schema = house.registry.GetSchema(registry_pb.GetSchemaRequest(service="abuse"))
            (service,) = schema.services
            assert widths.setdefault(service.fingerprint, len(service.features)) == len(service.features)
            while service.fingerprint not in seen:
                threading.Event().wait(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sorted(widths.values()) == [3, 9]


def test_a_removed_service_is_unknown_from_then_on(house: House) -> None:
    house.hot.GetFeatures(read(keys(ip="a"), service="likes"))
    with house.admin() as admin:
        source = SCHEMA.replace("  likes: [likes.*]\n", "")
        admin.ApplySchema(admin_pb.ApplySchemaRequest(source=source, allow=[DROP]))
    code, words = status_of(lambda: house.hot.GetFeatures(read(keys(ip="a"), service="likes")))
    assert (code, "unknown service 'likes'" in words) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    request = registry_pb.GetSchemaRequest(service="likes")
    assert status_of(lambda: house.registry.GetSchema(request))[0] is grpc.StatusCode.NOT_FOUND


def test_get_schema_names_everything_a_client_needs(house: House) -> None:
    schema = house.registry.GetSchema(registry_pb.GetSchemaRequest())
    assert (schema.name, schema.version, schema.source) == ("abuse", 1, SCHEMA)
    plays, likes = schema.event_types
    assert (plays.name, plays.time_field, plays.time_unit) == (
        "play",
        "ts",
        registry_pb.TIME_UNIT_MILLISECONDS,
    )
    assert [(f.name, f.kind) for f in likes.fields] == [
        ("ip", registry_pb.FIELD_KIND_KEY),
        ("like_id", registry_pb.FIELD_KIND_STRING),
    ]
    assert (likes.id_field, likes.dedupe_ms, plays.id_field) == ("like_id", 3_600_000, "")
    assert sorted(list(entity.parts) for entity in schema.entities) == [["account"], ["ip"], ["ip", "track"]]
    (abuse,) = (s for s in schema.services if s.name == "abuse")
    assert [feature.name for feature in abuse.features] == house.names()
    assert list(abuse.parts) == ["account", "ip", "track"]
    mean = next(f for f in abuse.features if f.name == "ip.mean_ms_played_1h")
    assert (mean.aggregate, mean.field) == (registry_pb.AGGREGATE_MEAN, "ms_played")
    assert (mean.window_ms, list(mean.parts)) == (3_600_000, ["ip"])
    since = next(f for f in abuse.features if f.name == "ip.since_last_1h")
    assert (since.aggregate, since.field) == (registry_pb.AGGREGATE_SINCE_LAST, "")
    assert since.excludes_self
    one = house.registry.GetSchema(registry_pb.GetSchemaRequest(service="likes"))
    assert [service.name for service in one.services] == ["likes"]


def test_health_of_the_server_and_of_each_service(house: House) -> None:
    stub = health_pb2_grpc.HealthStub(house.channel)
    for service in ("", "featurestore.v1.FeatureStoreService", "featurestore.v1.RegistryService"):
        reply = stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    unknown = health_pb2.HealthCheckRequest(service="x")
    assert status_of(lambda: stub.Check(unknown))[0] is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_public_services(house: House) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(house.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="featurestore.v1.FeatureStoreService"),
    ]
    listed, described = stub.ServerReflectionInfo(iter(asked))
    names = {service.name for service in listed.list_services_response.service}
    assert {
        "featurestore.v1.FeatureStoreService",
        "featurestore.v1.RegistryService",
        "grpc.health.v1.Health",
    } <= names
    assert "featurestore.v1.AdminService" not in names
    assert described.file_descriptor_response.file_descriptor_proto


def test_ids_on_the_disk_are_told_to_clients_and_counted(tmp_path: Path, serving: Serving) -> None:
    likes = [event(T0 + i * 500, ip="a", like_id=f"{i}") for i in range(2_000)]  # over 17 minutes
    with serving(tmp_path, metrics="localhost:0", dedupe_memory_bytes=36 * 1_200) as house:
        for at in range(0, 2_000, 250):
            house.hot.Ingest(batch(*likes[at : at + 250], event_type="like"))
            house.engine.checkpoint()
        assert house.engine.stats()["id_reads"] == 0
        house.hot.Ingest(batch(*likes, event_type="like"))
        observed = [house.hot.Observe(observe(like, "like", "likes")).outcome for like in likes[:40]]
        assert len(set(observed)) == 1
        with house.admin() as admin:
            stats = admin.Stats(admin_pb.StatsRequest())
        with urllib.request.urlopen(f"http://{house.server.metrics_address}/metrics") as reply:
            metrics = reply.read().decode()
    assert (stats.events_accepted, stats.events_duplicate, stats.events_refused) == (2_000, 2_040, 0)
    assert stats.ids == 2_000 and 1_000 < stats.ids_on_disk < 2_000
    assert stats.ids_on_disk + 40 <= stats.id_reads <= stats.ids_on_disk + 40 + stats.id_reads_in_vain
    assert stats.id_reads_failed == 0
    assert f"featurestore_remembered_ids_on_disk {stats.ids_on_disk}.0" in metrics
    assert f"featurestore_id_reads_total {stats.id_reads}.0" in metrics


def test_metrics_tell_what_happened(tmp_path: Path, serving: Serving) -> None:
    with serving(tmp_path, metrics="localhost:0") as house:
        house.hot.Ingest(batch(play(), event(None, ip="a"), producer="p", sequence=1))
        house.hot.Ingest(batch(play(), event(None, ip="a"), producer="p", sequence=1))
        for _ in range(3):
            house.hot.GetFeatures(read(keys(ip="a")))
        status_of(lambda: house.hot.GetFeatures(read(service="x")))
        house.engine.checkpoint()
        with urllib.request.urlopen(f"http://{house.server.metrics_address}/metrics") as reply:
            lines = dict(line.rsplit(" ", 1) for line in reply.read().decode().splitlines() if line[0] != "#")
    told = {
        "featurestore_events_accepted_total": 1,
        "featurestore_events_refused_total": 1,
        "featurestore_batches_duplicate_total": 1,
        'featurestore_refusals_total{reason="no_time"}': 1,
        'featurestore_events_untouched_total{event="play"}': 0,
        "featurestore_vectors_read_total": 3,
        "featurestore_rows": 3,
        "featurestore_remembered_producers": 1,
        "featurestore_producer_bytes_made_up": 0,
        "featurestore_producers_refused_total": 0,
        "featurestore_producers_forgotten_total": 0,
        "featurestore_durable_lag": 0,
        "featurestore_failed": 0,
        "featurestore_clock_ahead_seconds": 0,
        "featurestore_checkpoint_rows": 3,
        'featurestore_call_seconds_count{method="GetFeatures"}': 4,
        'featurestore_call_seconds_count{method="Ingest"}': 2,
        'featurestore_call_seconds_count{method="Observe"}': 0,
        'featurestore_calls_failed_total{code="INVALID_ARGUMENT",method="GetFeatures"}': 1,
    }
    assert {name: float(lines[name]) for name in told} == told
    assert float(lines["featurestore_checkpoint_age_seconds"]) >= 0
    assert float(lines["featurestore_row_bytes"]) > 0
    assert float(lines['featurestore_clock_behind_seconds{event="play"}']) > 0


def test_a_server_that_has_made_no_checkpoint_tells_how_long(tmp_path: Path) -> None:
    """So that one whose checkpoints all fail is seen by whoever watches their age."""

    def age_s() -> float:
        with urllib.request.urlopen(f"http://{house.server.metrics_address}/metrics") as reply:
            lines = reply.read().decode().splitlines()
        (age,) = (line for line in lines if line.startswith("featurestore_checkpoint_age_seconds "))
        return float(age.rsplit(" ", 1)[1])

    with opened(tmp_path, metrics="localhost:0") as house:
        first = age_s()
        time.sleep(0.2)
        assert 0 <= first <= age_s() - 0.2
