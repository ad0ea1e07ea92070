"""Benchmarks in every shape their data comes in: what is read, what is left out, and how it is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dataset_builder.errors import KitError
from dataset_builder.media import sample_frames
from eval.benchmarks import BENCHMARKS, metadata, read_benchmark
from eval.benchmarks.base import KEYS
from tests.eval.published import hound_row, questions_of, write_activitynet, write_frames, write_hound_tests

PUBLISHED = ["msvd_qa", "msrvtt_qa", "tgif_qa", "activitynet_qa", "ssv2_qa", "webvid_qa", "vidal_qa"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    from dataset_builder.toy import generate_toy

    folder = tmp_path_factory.mktemp("published") / "toy"
    generate_toy(folder, seed=5, clips={"test": 3}, types=("colour", "count"))
    return folder


@pytest.fixture(scope="module")
def hound(toy, tmp_path_factory):
    return write_hound_tests(tmp_path_factory.mktemp("published") / "hound", toy)


def read(name: str, data, work, **more):
    return read_benchmark(BENCHMARKS[name], str(data), work, **more)


def pick(found) -> list[tuple]:
    return [(r["question"], tuple(r["answers"]), r["question_type"]) for r in found.rows]


def test_every_task_has_a_file_that_says_what_it_is():
    assert list(BENCHMARKS) == ["mmaip_v", "mmaip_v_toy", *PUBLISHED]
    for name, benchmark in BENCHMARKS.items():
        about = metadata(benchmark)
        assert set(about) == set(KEYS)
        assert name in about["name"] and benchmark.version == 1
        assert all(url.startswith("https://") for url in about["paper"].split(", "))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_test_files_of_llava_hound_as_unpacked(hound, toy, tmp_path, name):
    found = read(name, hound, tmp_path)
    asked = questions_of(toy)[:4]
    assert [(r["question"], r["answers"]) for r in found.rows] == [(q["question"], [q["answer"]]) for q in asked]
    assert not found.left_out
    official = name in ("msvd_qa", "msrvtt_qa", "tgif_qa")
    assert found.place.endswith(".qa.official.jsonl") is official and bool(found.others) is official
    assert all((row["caption"] is None) is official for row in found.rows)
    # Two questions about one video are one cluster, whatever the rows call the video.
    assert [r["video_id"] for r in found.rows] == [
        i for i in dict.fromkeys(r["video_id"] for r in found.rows) for _ in "12"
    ]
    other = read(name, found.others[0] if official else found.place, tmp_path)
    assert [r["video_id"] for r in other.rows] == [r["video_id"] for r in found.rows]
    assert all(row["caption"].endswith(f"{row['answers'][0]}.") for row in other.rows)


def test_a_frame_folder_is_the_video_that_a_build_makes_of_it(hound, toy, tmp_path):
    from dataset_builder.media import folder_sha256, pack_frame_folder

    row = read("webvid_qa", hound, tmp_path).rows[0]
    folder = hound / "video_data" / "test" / "webvid" / "webvid100-Scene-000"
    packed = Path(row["video"]["path"]).read_bytes()
    assert packed == pack_frame_folder(folder, 2.0)
    assert row["sha256"].startswith(row["video_id"]) and len(row["video_id"]) == 16
    assert (sample_frames(packed, 4).array == sample_frames(folder, 4).array).all()
    assert folder_sha256(folder) != row["sha256"]  # the id is the packed file's, as in a dataset built of the folder


def test_another_picture_is_another_video(hound, toy, tmp_path):
    copy = shutil.copytree(hound, tmp_path / "hound")
    before = [row["video_id"] for row in read("ssv2_qa", copy, tmp_path / "work").rows]
    folders = sorted((copy / "video_data" / "test" / "ssv2").iterdir())
    shutil.copy(folders[1] / "c01_0002.jpeg", folders[0] / "c01_0002.jpeg")
    after = [row["video_id"] for row in read("ssv2_qa", copy, tmp_path / "work").rows]
    assert before[0] == before[1] != after[0] and before[2:] == after[2:]


def test_activitynet_qa_joins_its_two_files(toy, tmp_path):
    folder = write_activitynet(tmp_path / "activitynet", toy)
    found = read("activitynet_qa", folder, tmp_path / "work")
    assert [r["question_id"] for r in found.rows] == ["q_0", "q_1", "q_2", "q_3"]
    assert [r["question_type"] for r in found.rows] == ["4", "7", "4", "7"]
    assert found.rows[0]["video"]["path"].endswith("videos/v_test-00000.mp4")
    (folder / "test_a.json").unlink()
    with pytest.raises(KitError, match=r"test_q\.json: its answers are missing: test_a\.json belongs beside it"):
        read("activitynet_qa", folder, tmp_path / "work")


@pytest.mark.parametrize("layout", ["flat", "beside", "videos", "named"])
def test_videos_are_found_beside_the_questions(toy, tmp_path, layout):
    row = questions_of(toy)[0]
    root, place = tmp_path / "set", {"flat": "", "beside": "video_data", "videos": "videos", "named": ""}[layout]
    name = "clip.mp4" if layout == "named" else "vidal/clip"
    (root / place / name).parent.mkdir(parents=True)
    if layout == "beside":
        write_frames(toy / "videos" / row["video"], root / place / name)
    else:
        shutil.copy(toy / "videos" / row["video"], root / place / (name.removesuffix(".mp4") + ".mp4"))
    (root / "vidal.qa.jsonl").write_text(json.dumps(hound_row(row, name, "a")) + "\n")
    assert len(read("vidal_qa", root, tmp_path / "work").rows) == 1


def test_bad_rows_are_named_one_by_one_and_the_rest_goes_on(toy, tmp_path):
    rows = questions_of(toy)
    shutil.copytree(toy / "videos", tmp_path / "videos")
    (tmp_path / "videos" / "empty.mp4").write_bytes(b"")
    good = [hound_row(row, row["video"], f"row_{n}") for n, row in enumerate(rows[:3])]
    lines = [
        json.dumps(good[0]),
        "{broken",
        json.dumps({**good[1], "id": "nowhere", "video": "nowhere/at-all"}),
        json.dumps({**good[1], "id": "empty", "video": "empty.mp4"}),
        json.dumps({**good[1], "id": "silent", "conversations": [{"from": "human", "value": "and ?"}]}),
        json.dumps({**good[1], "id": "row_0"}),
        json.dumps({**good[1], "id": "numbered", "caption": 7}),
        json.dumps({**good[1], "id": "outside", "video": "../../etc/passwd"}),
        json.dumps(good[2]),
    ]
    file = tmp_path / "ssv2.qa.jsonl"
    file.write_text("\n".join(lines) + "\n")
    found = read("ssv2_qa", tmp_path, tmp_path / "work")
    assert [row["question_id"] for row in found.rows] == ["row_0", "row_2"]
    said = [str(error) for error in found.left_out]
    assert [(e.row, e.field) for e in found.left_out] == [
        (2, None), (3, "video"), (4, "video"), (5, "conversations"), (6, "question_id"), (7, "caption"), (8, "video"),
    ]  # fmt: skip
    assert all(line.startswith(f"{file}:") and "\n" not in line for line in said)
    assert "there is no such file" in said[1] and "0 bytes" in said[2] and "stands in row 1 too" in said[4]
    assert "outside the videos folder" in said[6]
    file.write_text("\n".join(lines[1:5]) + "\n")
    with pytest.raises(
        KitError, match=r"ssv2\.qa\.jsonl: no row is left to evaluate on; the first problem: .*:1: is not"
    ):
        read("ssv2_qa", tmp_path, tmp_path / "work")


def test_subset_and_limit(world, toy, tmp_path):
    folder = write_activitynet(tmp_path / "activitynet", toy)
    for name, data, kind in (("mmaip_v", world.dataset, "count"), ("activitynet_qa", folder, "7")):
        everything = read(name, data, tmp_path / "work")
        of_kind = read(name, data, tmp_path / "work", subset=[kind])
        assert 0 < len(of_kind.rows) < len(everything.rows) and {k for *_, k in pick(of_kind)} == {kind}
        first = read(name, data, tmp_path / "work", subset=[kind], limit=1)
        assert pick(first) == pick(of_kind)[:1]
        assert pick(read(name, data, tmp_path / "work", limit=3)) == pick(everything)[:3]
        one = everything.rows[-1]["question_id"]
        both = read(name, data, tmp_path / "work", subset=[one, kind])
        assert len(both.rows) == len({r["question_id"] for r in of_kind.rows} | {one})
        with pytest.raises(KitError, match="subset: 'kount' is neither a question type nor a question id"):
            read(name, data, tmp_path / "work", subset=["kount"])


def test_a_dataset_of_this_kit_serves_every_task_that_it_has_rows_for(world, tmp_path):
    assert len(read("mmaip_v", world.dataset, tmp_path).rows) == 12
    with pytest.raises(KitError, match=r"no rows of the source 'msvd' \(it holds .*name it under `data:`"):
        read("msvd_qa", world.dataset, tmp_path)
    assert len(read("msvd_qa", world.dataset, tmp_path, whole=True).rows) == 12
    import pyarrow as pa
    import pyarrow.parquet as pq

    copy = shutil.copytree(world.dataset, tmp_path / "mixed")
    (file,) = (copy / "benchmark").glob("test-*.parquet")
    table = pq.read_table(file)
    names = pa.array(["MSVD-QA" if n % 3 == 0 else "own" for n in range(len(table))])
    pq.write_table(table.set_column(table.column_names.index("source"), "source", names), file)
    assert len(read("msvd_qa", copy, tmp_path).rows) == 4


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("webvid_qa", lambda p: p, "has neither a `benchmark` config .* nor webvid.qa.jsonl"),
        ("mmaip_v", lambda p: p / "file.jsonl", "reads a dataset folder or Hub id, not a file"),
        ("webvid_qa", lambda p: p / "nowhere", "no such dataset folder"),
        ("webvid_qa", lambda p: p / "empty.jsonl", "is empty"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, make, said):
    (tmp_path / "file.jsonl").write_text("{}\n")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(KitError, match=said) as caught:
        read(name, make(tmp_path), tmp_path / "work")
    assert "\n" not in str(caught.value)
