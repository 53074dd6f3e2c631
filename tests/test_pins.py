"""A vector keeps its order: what a service was is answered as it was, or refused by name; over many applies,
restarts and stores that were made before there was any such memory."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import schema_pairs
from reference.pairs_store import read, send
from storage import store_pins, store_since

from featurestore.columns import text_column
from featurestore.engine import Engine
from featurestore.errors import SchemaError
from featurestore.plan import Plan
from featurestore.schema import compile_schema

ALL = ("drop", "reset", "narrow", "order", "erase", "clock")
KNOWN = (1, 2)  # PRESENT, NOT_FOUND
GOLDEN = Path(__file__).parent / "golden"


def names_of(plan: Plan, number: int) -> tuple[str, ...]:
    return tuple(plan.all_features[index].name for index in plan.served[number].features)


def succession(seed: int, n: int) -> list[tuple[schema_pairs.Schema, Plan]]:
    """Schemas that a store may have one after the other, and their plans."""
    rng = random.Random(seed)
    schema = schema_pairs.made(rng)
    found = [(schema, compile_schema(schema_pairs.written(schema)))]
    while len(found) < n:
        after = schema_pairs.edited(schema, rng) if rng.random() < 0.8 else rng.choice(found)[0]
        try:
            plan = compile_schema(schema_pairs.written(after), previous=found[-1][1])
        except SchemaError:
            continue
        schema = after
        found.append((schema, plan))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_what_is_remembered_and_served_is_what_a_list_of_vectors_says(seed: int) -> None:
    memory = schema_pairs.Memory()
    fingerprints: dict[tuple[str, Any], str] = {}
    for schema, plan in succession(seed, 40):
        memory.apply(schema)
        vectors = schema_pairs.vectors(schema)
        for service in plan.services:
            fingerprints[service.name, vectors[service.name]] = service.fingerprint
        wanted = {(name, fingerprints[name, vector]): vector for name, vector in memory.served(schema)}
        served = {(each.name, each.fingerprint): number for number, each in enumerate(plan.served)}
        assert served.keys() == wanted.keys()
        for key, number in served.items():
            assert names_of(plan, number) == tuple(name for name, _ in wanted[key])
            assert plan.vector(key[0], int(key[1], 16)) == number
        assert [each.name for each in plan.served[: len(plan.services)]] == [
            each.name for each in plan.services
        ]
        assert Plan.from_json(plan.to_json()) == plan
    different = {vector for _, vector in fingerprints}
    assert len(different) == len(set(fingerprints.values())), "another vector has another fingerprint"


def test_fifty_applies_leave_every_pinned_vector_as_it_was(tmp_path: Path) -> None:
    """What is known of it: a view that was gone and came back knows less, and says so."""
    rng = random.Random(7)
    schema = schema_pairs.made(rng)
    for event in schema["events"].values():  # a time in another unit would be another time
        event["time"], event["ids"] = ["ts", "ms"], None
    golden: dict[tuple[str, str], tuple[tuple[str, ...], Any]] = {}
    compared = refused = 0
    engine = Engine.open(
        tmp_path, schema=schema_pairs.written(schema), clock="merged", history="none", n_shards=2
    )
    try:
        send(engine, rng, 200)
        for step in range(50):
            plan = engine.state.plan
            for number, each in enumerate(plan.served):
                values, statuses = read(engine, number)
                known = np.isin(statuses, KNOWN)
                names, first = golden.setdefault(
                    (each.name, each.fingerprint), (names_of(plan, number), values)
                )
                assert names_of(plan, number) == names
                if number >= len(plan.services):
                    np.testing.assert_array_equal(values[known], first[known])
                    compared += int(known.sum())
            served = {(each.name, each.fingerprint) for each in plan.served}
            for pin in plan.pins:
                if (pin.service, pin.fingerprint) not in served:
                    assert plan.missing(pin) in pin.names
                    refused += 1
            after = schema_pairs.edited(schema, rng) if step % 3 == 2 else copy.deepcopy(schema)
            for members in after["services"].values():
                rng.shuffle(members)
            for event in after["events"].values():
                event["time"], event["ids"] = ["ts", "ms"], None
            try:
                engine.apply_schema(schema_pairs.written(after), allow=ALL)
            except SchemaError:
                continue
            schema = after
            if step % 10 == 9:
                engine.checkpoint()
                engine.close()
                engine = Engine.open(tmp_path)
    finally:
        engine.close()
    assert compared > 100 and refused > 10


def test_nothing_is_served_of_a_service_that_is_gone() -> None:
    found = compile_schema(store_pins.SCHEMA)
    found = compile_schema(store_pins.TURNED, previous=found)
    assert len(found.pins) == 1
    gone = compile_schema(store_pins.TURNED.replace("  all:", "  other:"), previous=found)
    assert gone.pins == ()


def test_eight_vectors_of_a_service_are_remembered() -> None:
    names, been = store_pins.NAMES, []
    plan = None
    orders = list(itertools.permutations(names))
    for i in (0, 1, 2, 1, 3, 4, 5, 6, 7, 8, 2, 9, 10, 0):
        order = orders[i]
        source = store_pins.SCHEMA.replace(f"[{', '.join(names)}]", f"[{', '.join(order)}]")
        plan = compile_schema(source, previous=plan)
        (now,) = plan.services
        been = [now.fingerprint, *(each for each in been if each != now.fingerprint)]
        assert [now.fingerprint, *(pin.fingerprint for pin in plan.pins)] == been[:8]
        assert len(plan.served) == len(been[:8])


class TestFormats:
    """The plan of a store says what its services were."""

    def test_the_golden_store_serves_what_it_was(self, tmp_path: Path) -> None:
        path = tmp_path / "store"
        shutil.copytree(GOLDEN / "store_pins_v1", path)
        with Engine.open(path) as engine:
            plan = engine.state.plan
            assert plan.version == 3
            assert [names_of(plan, number) for number in range(len(plan.served))] == [
                tuple(reversed(store_pins.NAMES)),
                tuple(store_pins.NAMES),
            ]
            (pin,) = (pin for pin in plan.pins if plan.missing(pin) is not None)
            assert plan.missing(pin) == "plays.twice"
            values, _ = read_plays(engine, 0)
            pinned, _ = read_plays(engine, 1)
            assert list(pinned) == list(reversed(values)) == [3.0, 3.0, 6.0, 6.0]

    def test_an_independent_reader_finds_it_in_the_journal(self) -> None:
        segments = sorted((GOLDEN / "store_pins_v1" / "journal").iterdir())
        data = b"".join(segment.read_bytes() for segment in segments)
        plans = [
            json.JSONDecoder().raw_decode(data[at:].decode("utf-8", "replace"))[0]
            for at in range(len(data))
            if data.startswith(b'{"derived"', at) or data.startswith(b'{"entities"', at)
        ]
        newest = plans[-1]
        assert [pin["service"] for pin in newest["pins"]] == ["all", "all"]
        assert newest["pins"][-1]["names"] == store_pins.NAMES
        meanings = {feature["name"]: feature["meaning"] for feature in newest["features"]}
        assert [meanings[name] for name in store_pins.NAMES] == newest["pins"][-1]["meanings"]
        assert "pins" not in plans[0]

    @pytest.mark.parametrize("name", ["store_since_v1", "store_v1"])
    def test_a_store_from_before_is_opened_and_remembers_what_it_was(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "store"
        shutil.copytree(GOLDEN / name, path)
        with Engine.open(path) as engine:
            before = engine.state.plan
            assert {each.meaning for each in before.all_features} == {None}
            assert engine.apply_schema(before.source) is before, "the same text is no change"
            (service,) = before.services
            names = names_of(before, 0)
            source = before.source[: before.source.index("services:")]
            engine.apply_schema(
                f"{source}services:\n  {service.name}: [{', '.join(names[::-1])}]\n", allow=["order"]
            )
            plan = engine.state.plan
            assert [(each.name, each.fingerprint) for each in plan.served[1:]] == [
                (service.name, service.fingerprint)
            ]
            assert names_of(plan, 1) == names == names_of(plan, 0)[::-1]

    def test_of_a_text_that_is_another_nothing_is_remembered(self) -> None:
        plan = compile_schema(store_since.SCHEMA)
        old = dataclasses.replace(
            plan,
            features=tuple(dataclasses.replace(each, meaning=None) for each in plan.features),
            source="version: 0\n",
        )
        turned = store_since.SCHEMA.replace("[plays.*, skips.*]", "[skips.*, plays.*]")
        assert compile_schema(turned, previous=old).pins == ()
        assert len(compile_schema(turned, previous=dataclasses.replace(old, source=plan.source)).pins) == 1


def read_plays(engine: Engine, number: int) -> tuple[Any, Any]:
    vectors = engine.read(number, {"account": text_column(["anna"])[0]}, 1)
    return vectors.values[0], vectors.statuses[0]
