"""Rows without copies, videos of one's own, what is stored, and how own answers are drawn."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Video

from dataset_builder.answers import response_row as builders_row
from dataset_builder.errors import KitError
from dataset_builder.media import sample_frames
from dataset_builder.models import ChatReply, ChatRequest, LocalChatModel
from dataset_builder.schema import FEATURES
from dataset_builder.toy_models import ARCHS, make_tiny
from eval.runner import MediaIndex, video_source
from recipes.on_policy.answers import SharedPrompts
from recipes.on_policy.builder import PairBuilder
from recipes.on_policy.pool import ROW_COLUMNS, VerdictMemory
from tests.recipes.zoo_world import (
    KNOWN,
    always,
    copied,
    make_world,
    quiet,
    spied,
    write,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """See :func:`~tests.recipes.zoo_world.make_world`."""
    return make_world(tmp_path_factory.mktemp("on-policy") / "mmaip-v")


def test_rows_are_what_training_reads(world):
    builder = PairBuilder(world, "train", KNOWN, log=quiet)
    stored = Dataset.from_parquet(str(next((world / "preferences").glob("train-*"))))
    clips = {r["video_id"]: r["video"] for r in stored.cast_column("video", Video(decode=False))}
    alone = set(builder.question_ids) - set(stored["question_id"])
    assert len(alone) == 1  # a question without a pair of its own
    built = builder.from_zoo()
    assert {name: built.rows.features[name] for name in ROW_COLUMNS if name != "video"} == {
        name: FEATURES["preferences"][name] for name in ROW_COLUMNS if name != "video"
    }
    assert all(row["video"] == clips[row["video_id"]] for row in built.rows)
    shuffled = built.rows.select([5, 0, 5, 23])
    assert [row["question_id"] for row in shuffled] == [built.rows[i]["question_id"] for i in (5, 0, 5, 23)]
    for row in shuffled:  # what a collator makes of it
        assert sample_frames(video_source(row["video"], row["video_id"], None), 8).array.shape == (8, 32, 32, 3)
    assert pickle.loads(pickle.dumps(shuffled)).to_list() == shuffled.to_list()  # to a spawned data worker


def test_rows_share_the_videos_memory(world):
    builder = PairBuilder(world, "train", KNOWN, log=quiet)
    before = pa.total_allocated_bytes()
    rows = builder.pool.rows(builder.from_zoo().pairs * 50)
    videos = sum(len(rows[i]["video"]["bytes"]) for i in range(24)) * 50
    assert len(rows) == 24 * 50 and pa.total_allocated_bytes() - before < videos / 4


def test_videos_of_ones_own(world, tmp_path):
    folder = copied(world, tmp_path)
    path = next((folder / "preferences").glob("train-*"))
    rows = Dataset.from_parquet(str(path)).cast_column("video", Video(decode=False))
    digests, media = {}, {}
    for row in rows:
        content = row["video"]["bytes"]
        digest = hashlib.sha256(content).hexdigest()
        file = tmp_path / row["video"]["path"]
        file.write_bytes(content)
        digests[row["video_id"]], media[digest] = digest[:16], str(file)
    write(folder, "preferences", [{**row, "video": None, "video_id": digests[row["video_id"]]} for row in rows])
    for config in ("questions", "responses"):
        old = Dataset.from_parquet(str(next((folder / config).glob("*")))).to_list()
        write(folder, config, [{**row, "video_id": digests[row["video_id"]]} for row in old])
    with pytest.raises(KitError, match="none of the 24 questions of split 'train' has a video"):
        PairBuilder(folder, "train", KNOWN, log=quiet)
    (tmp_path / "media.json").write_text(json.dumps(media))
    builder = PairBuilder(folder, "train", KNOWN, MediaIndex(tmp_path / "media.json"), log=quiet)
    built = builder.on_policy(always("zzz", "yyy"), builder.question_ids, seed=0)
    assert built.counts["pairs"] == 24 and built.rows[0]["video"] is None


def test_saved_pairs_and_verdicts_come_back(world, tmp_path):
    builder = PairBuilder(world, "train", KNOWN, log=quiet)
    built = builder.on_policy(always("zzz", "yyy"), builder.question_ids, seed=0)
    built.save(tmp_path / "round-1" / "pairs.json")
    builder.verdicts.save(tmp_path / "verdicts.json")
    fresh = PairBuilder(world, "train", KNOWN, log=quiet)
    loaded = fresh.load(tmp_path / "round-1" / "pairs.json")
    assert loaded.counts == built.counts and loaded.rows._fingerprint == built.rows._fingerprint
    assert loaded.rows.to_list() == built.rows.to_list()
    fresh.verdicts.load(tmp_path / "verdicts.json")
    seen = spied(fresh)
    assert fresh.on_policy(always("zzz", "yyy"), fresh.question_ids, seed=0).counts == built.counts
    assert not seen, "every verdict was known"
    fresh.verdicts.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "verdicts.json").read_text()
    for damaged in ("{", "[[1, 2]]", '{"pairs": [{"question_id": "gone"}], "counts": {}}'):
        (tmp_path / "damaged.json").write_text(damaged)
        for read in (fresh.load, VerdictMemory().load):
            with pytest.raises(KitError, match=r"damaged\.json: is not a file of"):
                read(tmp_path / "damaged.json")


def test_blocks_are_seeded_by_seed_and_number_only(world):
    builder = PairBuilder(world, "train", replace(KNOWN, samples=16), log=quiet)
    first, second = always("zzz"), always("yyy")
    second.name = "another"
    for policy in (first, second):
        builder.on_policy(policy, builder.question_ids, seed=5)
    assert first.calls == second.calls and [size for _, size in first.calls] == [64] * 6
    assert len({seed for seed, _ in first.calls}) == 6


def test_response_ids_are_the_builders(world):
    builder = PairBuilder(world, "train", KNOWN, log=quiet)
    key = builder.question_ids[0]
    policy = always("zzz", "zzz")
    built = builder.on_policy(policy, [key], seed=2)
    clip = builder.pool.clips.frames(builder.pool.questions[key].video_id, 8)
    member = {"name": "policy", "decoding": asdict(KNOWN.decoding())}
    model = SimpleNamespace(revision="r1", template_hash="t1")
    ids = [
        builders_row({"question_id": key}, i, ChatReply("zzz", "stop", 1, 1), model, member, 2, 0, clip)["response_id"]
        for i in range(2)
    ]
    assert built.rows[0]["response_id_rejected"] == min(ids)


@pytest.mark.parametrize("arch", ARCHS)
def test_shared_prompts_are_the_same_inputs(world, arch):
    chat = LocalChatModel(*make_tiny(arch), arch, "r")
    pool = PairBuilder(world, "train", KNOWN, log=quiet).pool
    questions = sorted(pool.questions.values(), key=lambda question: question.video_id)[:5]
    requests = [ChatRequest(q.question, pool.clips.frames(q.video_id, 8)) for q in questions for _ in range(3)]
    plain, sooner = chat.prepare(requests), SharedPrompts(chat).prepare(requests)
    assert set(plain) == set(sooner)
    assert all(torch.equal(plain[key], sooner[key]) for key in plain)
    decoding = KNOWN.decoding()
    assert chat.generate(requests, decoding, 1) == SharedPrompts(chat).generate(requests, decoding, 1)
