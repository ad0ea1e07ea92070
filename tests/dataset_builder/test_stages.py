"""The shard store: whole or not at all, never for other inputs, and made again when damaged."""

from __future__ import annotations

import pytest

from dataset_builder.errors import KitError
from dataset_builder.stages import ShardStore, canonical_json, fingerprint, write_json

ROWS = [{"response_id": "a", "response": "hällo\u2028\u0085\nworld", "scores": [0.1, None]}, {"response_id": "b"}]
KEY = fingerprint({"inputs": 1})


@pytest.fixture
def store(tmp_path):
    return ShardStore(tmp_path / "work")


def test_rows_come_back_as_they_were(store):
    store.write("sampling", "member", 3, KEY, ROWS)
    assert store.read("sampling", "member", 3, KEY) == ROWS
    assert store.read("sampling", "member", 4, KEY) is None
    assert store.read("sampling", "other", 3, KEY) is None
    assert store.read("judging", "member", 3, KEY) is None


def test_an_empty_block_is_a_finished_block(store):
    store.write("sampling", "member", 0, KEY, [])
    assert store.read("sampling", "member", 0, KEY) == []


def test_changed_inputs_are_never_served_old_rows(store):
    store.write("sampling", "member", 0, KEY, ROWS)
    other = fingerprint({"inputs": 2})
    assert store.read("sampling", "member", 0, other) is None
    # Not even when the file is put under the other name.
    store.path("sampling", "member", 0, KEY).rename(store.path("sampling", "member", 0, other))
    assert store.read("sampling", "member", 0, other) is None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "header", "row_lost", "binary"])
def test_a_damaged_shard_is_removed_and_made_again(store, damage):
    store.write("sampling", "member", 0, KEY, ROWS)
    path = store.path("sampling", "member", 0, KEY)
    data = path.read_bytes()
    head, _, body = data.partition(b"\n")
    path.write_bytes(
        {
            "cut": data[:-5],
            "flip": data[:-5] + b"X" + data[-4:],
            "empty": b"",
            "header": b"{}\n" + body,
            "row_lost": head + b"\n" + body.splitlines(keepends=True)[0],
            "binary": b"\xff\xfe\x00" * 20,
        }[damage]
    )
    assert store.read("sampling", "member", 0, KEY) is None
    assert not path.exists()
    store.write("sampling", "member", 0, KEY, ROWS)
    assert path.read_bytes() == data


def test_half_written_files_are_ignored_and_cleaned(store):
    store.write("sampling", "member", 0, KEY, ROWS)
    target = store.path("sampling", "member", 1, KEY)
    half = target.with_name(f".{target.name}.12345.tmp")
    half.write_bytes(b'{"key":')
    assert store.count("sampling") == 1
    assert store.read("sampling", "member", 1, KEY) is None
    assert store.clean() == 1
    assert not half.exists()
    assert store.read("sampling", "member", 0, KEY) == ROWS


def test_names_that_look_alike_on_disk_stay_apart(store):
    names = ["org/model", "org_model", "org:model", "../x", ".", "größe"]
    for number, name in enumerate(names):
        store.write("sampling", name, 0, KEY, [{"n": number}])
    assert [store.read("sampling", name, 0, KEY) for name in names] == [[{"n": i}] for i in range(len(names))]
    assert all(path.is_relative_to(store.root / "sampling") for path in store.root.rglob("*.jsonl"))


def test_one_build_at_a_time(store):
    with store.lock():
        with pytest.raises(KitError, match="another build is using the work folder"):
            with ShardStore(store.work).lock():
                pass
    with store.lock():
        pass


def test_canonical_json_does_not_depend_on_order():
    assert canonical_json({"b": 1, "a": [1.5, None]}) == canonical_json({"a": [1.5, None], "b": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})
    with pytest.raises(ValueError):
        canonical_json(float("nan"))


def test_json_files_are_replaced_whole(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    write_json(tmp_path / "a.json", {"x": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
