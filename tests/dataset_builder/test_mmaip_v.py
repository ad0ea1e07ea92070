"""The dataset folder: what `load_dataset` and TRL make of it, and what the card says."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import Video, load_dataset

from dataset_builder import mmaip_v
from dataset_builder.build import build
from dataset_builder.errors import KitError
from dataset_builder.judges import settings_hash
from dataset_builder.schema import CONFIG_SPLITS, FEATURES
from dataset_builder.settings import load_build_config
from dataset_builder.table import QuestionTable, write_questions
from tests.dataset_builder.worlds import changed, environment, tree


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path, monkeypatch):
    """load_dataset falls back to its cache on any error, so every test gets its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def load(built, *names):
    return load_dataset(str(built.output), *names)


def raw(dataset):
    return dataset.cast_column("video", Video(decode=False))


@pytest.mark.parametrize("name", list(FEATURES))
def test_each_config_loads_by_name_with_its_columns_and_splits(built, name):
    loaded = load(built, name)
    assert list(loaded) == list(CONFIG_SPLITS[name])
    for dataset in loaded.values():
        assert dataset.features == FEATURES[name]
        assert list(dataset.features) == list(FEATURES[name])
        assert len(dataset) > 0


def test_preferences_is_the_default(built):
    assert list(load(built)) == ["train", "validation"]
    assert "prompt" in load(built)["train"].features


def test_a_bare_name_beside_the_folder(built):
    code = "from datasets import load_dataset; print(load_dataset('mmaip-v')['train'].num_rows)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=built.output.parent, capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(load(built)["train"])


def test_rows_pass_trl_unchanged(built):
    from trl.data_utils import is_conversational, maybe_extract_prompt

    for row in raw(load(built)["train"]):
        assert is_conversational(row)
        for column in ("prompt", "chosen", "rejected"):
            assert is_conversational({column: row[column]})
        assert maybe_extract_prompt(row) == row
        assert row["prompt"] == [
            {
                "role": "user",
                "content": [{"type": "video", "text": None}, {"type": "text", "text": row["question"]}],
            }
        ]
        for column in ("chosen", "rejected"):
            (message,) = row[column]
            assert message["role"] == "assistant" and [part["type"] for part in message["content"]] == ["text"]


def test_a_checkpoints_own_chat_template_renders_a_row(built):
    from transformers import AutoProcessor

    row = raw(load(built)["train"])[0]
    for member in built.config.zoo:
        processor = AutoProcessor.from_pretrained(member.model)
        text = processor.apply_chat_template(row["prompt"] + row["chosen"], tokenize=False)
        videos = text.count(processor.video_token)
        assert videos == 1 and row["question"] in text and row["chosen"][0]["content"][0]["text"] in text


def test_videos_are_the_files_and_decode(built):
    row = raw(load(built, "benchmark")["test"])[0]
    question = next(q for q in load(built, "questions")["test"] if q["question_id"] == row["question_id"])
    assert hashlib.sha256(row["video"]["bytes"]).hexdigest() == question["sha256"]
    with av.open(io.BytesIO(row["video"]["bytes"])) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8


def test_decoded_access_where_torchcodec_is_installed(built):
    pytest.importorskip("torchcodec", reason="decoded Video rows need torchcodec and FFmpeg", exc_type=Exception)
    assert next(iter(load(built)["train"]))["video"].get_frame_at(0).data.shape[0] == 3


def test_pairs_agree_with_the_responses_they_name(built):
    responses = {row["response_id"]: row for part in load(built, "responses").values() for row in part}
    assert len(responses) == built.summary["answers"]
    for row in raw(load(built)["train"]):
        chosen, rejected = responses[row["response_id_chosen"]], responses[row["response_id_rejected"]]
        assert chosen["question_id"] == rejected["question_id"] == row["question_id"]
        assert row["chosen"][0]["content"][0]["text"] == chosen["response"]
        assert (row["model_chosen"], row["model_rejected"]) == (chosen["model"], rejected["model"])
        assert row["score_chosen"] == chosen["score"] and row["score_rejected"] == rejected["score"]
        assert row["margin"] == pytest.approx(row["score_chosen"] - row["score_rejected"], abs=1e-8)
        assert {(s["judge"], s["criterion"]) for s in chosen["scores"]} == {
            ("reference", "match"),
            ("reference", "f1"),
            ("verifier", "correct"),
        }


def test_splits_are_by_video_and_rows_sorted_by_video_in_small_groups(built):
    where: dict[str, set[str]] = {}
    for name in ("questions", "responses", "preferences", "benchmark"):
        for split, part in load(built, name).items():
            videos = part["video_id"][:]
            assert list(videos) == sorted(videos)
            for video in videos:
                where.setdefault(video, set()).add(split)
    assert all(len(splits) == 1 for splits in where.values())
    for path in (built.output / "preferences").iterdir():
        metadata = pq.ParquetFile(path).metadata
        assert all(metadata.row_group(i).num_rows <= 8 for i in range(metadata.num_row_groups))


def test_card_metadata_is_right(built):
    header = yaml.safe_load((built.output / "README.md").read_text().split("---")[1])
    assert [c["config_name"] for c in header["configs"] if c.get("default")] == ["preferences"]
    rows = {
        (info["config_name"], split["name"]): split["num_examples"]
        for info in header["dataset_info"]
        for split in info["splits"]
    }
    found: Counter = Counter()
    for path in built.output.rglob("*.parquet"):
        assert path.name.endswith(f"-00000-of-{1:05d}.parquet")
        found[path.parent.name, path.name.split("-")[0]] += pq.ParquetFile(path).metadata.num_rows
    assert rows == dict(found)
    assert sum(n for (name, _), n in rows.items() if name == "preferences") == built.summary["pairs"]
    infos = datasets.info.DatasetInfosDict.from_directory(str(built.output))
    assert {name: info.features for name, info in infos.items()} == FEATURES


def test_provenance_spells_out_what_the_settings_hashes_stand_for(built):
    provenance = json.loads((built.output / "provenance.json").read_text())
    hashes = {
        (s["judge"], s["judge_revision"], s["settings_hash"])
        for row in load(built, "responses")["train"]
        for s in row["scores"]
    }
    told = {(j["name"], j["revision"], key) for j in provenance["judges"] for key in j["settings"]}
    assert told == hashes
    for judge in provenance["judges"]:
        assert all(settings_hash(settings) == key for key, settings in judge["settings"].items())
    sampling = json.loads(load(built, "responses")["train"][0]["sampling"])
    assert {"temperature", "top_p", "max_new_tokens", "seed", "frames", "template_hash"} <= set(sampling)


def test_nothing_of_this_machine_is_in_the_folder(built, world):
    for path in built.output.rglob("*"):
        if path.is_file():
            assert str(world.parent).encode() not in path.read_bytes(), path


def test_large_splits_become_numbered_shards(built, tmp_path, monkeypatch):
    monkeypatch.setattr(mmaip_v, "ROW_GROUP_OF_VIDEOS", 2)
    rows = mmaip_v.write_dataset(built.work, tmp_path / "out", True, {}, max_shard_size="1KB")
    names = sorted(path.name for path in (tmp_path / "out" / "benchmark").glob("test-*"))
    assert len(names) > 1
    assert names == [f"test-{i:05d}-of-{len(names):05d}.parquet" for i in range(len(names))]
    whole, parts = load(built, "benchmark")["test"], load_dataset(str(tmp_path / "out"), "benchmark")["test"]
    assert rows["benchmark"]["test"] == len(parts)
    assert list(parts["question_id"]) == list(whole["question_id"])


def with_other_questions(built, work: Path, **changes) -> Path:
    """A copy of the finished work folder in which every question has other values."""
    shutil.copytree(built.work / "assembled", work / "assembled")
    rows = QuestionTable(built.work / "questions.arrow")
    write_questions(({**row, **changes} for row in rows), work / "questions.arrow", rows.block_size)
    return work


def test_without_the_right_to_copy_the_video_is_null(built, tmp_path):
    work = with_other_questions(built, tmp_path / "work", embed=False)
    mmaip_v.write_dataset(work, tmp_path / "out", True, {})
    dataset = load_dataset(str(tmp_path / "out"), "preferences")["train"]
    assert dataset.features["video"] == Video()
    assert set(raw(dataset)["video"]) == {None}


def test_a_video_that_changed_meanwhile_is_not_embedded(built, tmp_path):
    work = with_other_questions(built, tmp_path / "work", path=str(built.output / "README.md"))
    with pytest.raises(KitError, match="changed while the build ran"):
        mmaip_v.write_dataset(work, tmp_path / "out", True, {})
    assert not (tmp_path / "out").exists()


def test_a_damaged_dataset_is_written_again_byte_for_byte(built, tmp_path):
    output = tmp_path / "mmaip-v"
    shutil.copytree(built.output, output)
    before = tree(output)
    build(built.config, output, work=built.work, progress=False)
    assert tree(output) == before
    path = next((output / "responses").iterdir())
    path.write_bytes(path.read_bytes()[:-10])
    (output / "README.md").unlink()
    build(built.config, output, work=built.work, progress=False)
    assert tree(output) == before


def test_a_dataset_built_again_is_not_answered_from_the_cache_of_the_old_one(world, tmp_path):
    """As many rows and bytes as before: ``load_dataset`` sees a change in the README only."""
    lines = Path(yaml.safe_load(world.read_text())["sources"][0]["questions"]).read_text().splitlines()
    rows, file, output = [json.loads(line) for line in lines[:8]], tmp_path / "questions.jsonl", tmp_path / "mmaip-v"
    config = load_build_config(changed(world, tmp_path / "build.yaml", source={"questions": str(file)}))

    def build_and_load(where: Path, change) -> tuple[set[str], str]:
        written = [{**row, "answer": change(row["answer"])} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in written))
        build(config, where, work=tmp_path / "work", progress=False)
        answers = set(load_dataset(str(where), "questions")["train"]["answer"])
        assert answers == {row["answer"] for row in written}
        header = (where / "README.md").read_text().split("---")[1]
        return answers, re.sub(r"Content \w+", "", header)

    first, header = build_and_load(output, str.lower)
    again, header_again = build_and_load(output, str.upper)
    assert not first & again
    assert header_again == header  # with all its sizes: nothing but the content's fingerprint tells them apart
    # Nor is another folder of the same name.
    build_and_load(tmp_path / "elsewhere" / "mmaip-v", str.title)


def test_the_card_metadata_names_the_content_of_each_config(built):
    header = yaml.safe_load((built.output / "README.md").read_text().split("---")[1])
    files = json.loads((built.output / "provenance.json").read_text())["files"]
    for entry in header["configs"]:
        assert entry["description"].endswith(f"Content {mmaip_v.content_key(files, entry['config_name'])}.")
    assert len({entry["description"].split()[-1] for entry in header["configs"]}) == len(header["configs"])


def test_an_interrupted_switch_of_folders_is_undone(built, tmp_path):
    output = tmp_path / "mmaip-v"
    shutil.copytree(built.output, output.with_name(".mmaip-v.old"))
    shutil.copytree(built.output / "questions", output.with_name(".mmaip-v.new"))
    build(built.config, output, work=built.work, progress=False)
    assert tree(output) == tree(built.output)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".mmaip")] == []
