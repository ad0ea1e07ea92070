"""A dataset released without videos gets them back from a person's own copies, and only from the right ones."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_builder import attach as attach_module
from dataset_builder import mmaip_v
from dataset_builder.assemble import PAIR_SCHEMA, PAIRS, RESPONSE_SCHEMA, RESPONSES
from dataset_builder.attach import NOT_ATTACHED, attach
from dataset_builder.build import build
from dataset_builder.disassemble import assembled_from_dataset, extract_videos
from dataset_builder.errors import KitError
from dataset_builder.loading import dataset_folder, read_media, split_files, stream_batches
from dataset_builder.media import file_sha256, pack_frame_folder, probe
from dataset_builder.settings import load_build_config
from dataset_builder.table import QuestionTable, write_questions
from tests.dataset_builder.worlds import changed, tree


@pytest.fixture(scope="module")
def ids_only(built, world, tmp_path_factory):
    """The same build released without videos."""
    folder = tmp_path_factory.mktemp("ids")
    shutil.copytree(built.work, folder / "work")
    config = load_build_config(changed(world, folder / "ids_only.yaml", ids_only=True))
    build(config, folder / "mmaip-v", work=folder / "work", progress=False)
    return folder / "mmaip-v"


def shown(built) -> list[dict]:
    """The questions on clips that rows with a video column show: not every clip has a pair."""
    asked = {question for rows in videos(built.output).values() for question, _ in rows}
    table = list(QuestionTable(built.work / "questions.arrow"))
    clips = {row["sha256"] for row in table if row["question_id"] in asked}
    return [row for row in table if row["sha256"] in clips]


@pytest.fixture
def own(built, tmp_path):
    """A person's own copies: the videos by sha256, and their folder, which a test may change."""
    folder = tmp_path / "own"
    folder.mkdir()
    copies = {}
    for row in shown(built):
        target = folder / row["source_id"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(row["path"], target)
        copies[row["sha256"]] = target
    return folder, copies


def videos(dataset: Path) -> dict[str, list]:
    """Every row with a video column: (question, has a video), by config."""
    return {
        config: [
            (row["question_id"], row["video"] is not None)
            for files in split_files(dataset, config).values()
            for batch in stream_batches(files, ["question_id", "video"])
            for row in batch.to_pylist()
        ]
        for config in ("preferences", "benchmark")
    }


def without_provenance(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in tree(folder).items() if name != "provenance.json"}


def rewrite(dataset: Path, config: str, change) -> None:
    """Change a config's tables."""
    for files in split_files(dataset, config).values():
        for path in files:
            table = pq.read_table(path)
            pq.write_table(change(table).cast(table.schema), path)


def test_attached_equals_embedded_file_by_file(built, ids_only, own, tmp_path):
    assert not any(has for rows in videos(ids_only).values() for _, has in rows)
    report = attach(ids_only, own[0], tmp_path / "mmaip-v", progress=False)
    assert without_provenance(tmp_path / "mmaip-v") == without_provenance(built.output)
    assert (report.null, report.refused, report.missing, report.present) == (0, [], [], 0)
    assert report.attached == len(own[1]) and report.rows == sum(map(len, videos(built.output).values()))
    embedded, attached = (json.loads((f / "provenance.json").read_text()) for f in (built.output, tmp_path / "mmaip-v"))
    said = {name for name in embedded | attached if embedded.get(name) != attached.get(name)}
    assert said == {"config_hash", "fingerprint", "attached", "attached_from", "ids_only"}
    assert attached["files"] == embedded["files"] and mmaip_v.is_intact(tmp_path / "mmaip-v", attached)


def test_copies_under_any_name_are_found_by_their_hash(built, ids_only, own, tmp_path):
    folder = tmp_path / "renamed"
    (folder / "deep" / "er").mkdir(parents=True)
    for number, path in enumerate(own[1].values()):
        shutil.move(
            path, folder / ("deep/er" if number % 2 else ".") / f"clip {number}.{'bin' if number % 3 else 'MP4'}"
        )
    (folder / "notes.txt").write_text("not a video")
    attach(ids_only, folder, tmp_path / "mmaip-v", progress=False)
    assert without_provenance(tmp_path / "mmaip-v") == without_provenance(built.output)


def test_a_wrong_video_is_refused_by_its_hash(built, ids_only, own, tmp_path):
    folder, copies = own
    (wrong, wrong_file), (gone, gone_file), *_ = copies.items()
    data = bytearray(wrong_file.read_bytes())
    data[-1] ^= 1  # the same name and size, one bit of it differs
    wrong_file.write_bytes(data)
    gone_file.unlink()
    output = tmp_path / "mmaip-v"
    report = attach(ids_only, folder, output, progress=False)
    (refused,), (missing,) = report.refused, report.missing
    assert (refused.expected, refused.found) == (wrong, file_sha256(wrong_file))
    assert Path(refused.file) == wrong_file and str(wrong_file) in str(refused) and wrong in str(refused)
    assert (missing.expected, missing.file, missing.source_id) == (gone, None, gone_file.name)
    left_out = {
        row["question_id"] for row in QuestionTable(built.work / "questions.arrow") if row["sha256"] in (wrong, gone)
    }
    rows = [row for config in videos(output).values() for row in config]
    assert all(has == (question not in left_out) for question, has in rows)
    assert report.null == sum(not has for _, has in rows) == refused.rows + missing.rows > 0
    listed = (tmp_path / ".mmaip-v-attach" / NOT_ATTACHED).read_text().splitlines()
    assert [json.loads(line)["expected"] for line in listed] == sorted([wrong, gone])
    # the right copies, later: only what is missing is added, and the dataset is whole
    for digest in (wrong, gone):
        path = next(q["path"] for q in QuestionTable(built.work / "questions.arrow") if q["sha256"] == digest)
        shutil.copyfile(path, folder / f"{digest}.mp4")
    again = attach(output, folder, output, progress=False)
    assert (again.attached, again.null, again.present) == (2, 0, len(copies) - 2)
    assert without_provenance(output) == without_provenance(built.output)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_part_of_the_videos_gives_exactly_its_rows(built, ids_only, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("part")
    table = shown(built)
    digests = sorted({row["sha256"] for row in table})
    chosen = data.draw(st.sets(st.sampled_from(digests)))
    (folder / "own").mkdir()
    for row in table:
        if row["sha256"] in chosen:
            shutil.copyfile(row["path"], folder / "own" / Path(row["path"]).name)
    report = attach(ids_only, folder / "own", folder / "mmaip-v", progress=False)
    assert report.attached == len(chosen) and len(report.missing) == len(digests) - len(chosen)
    has = {row["question_id"]: row["sha256"] in chosen for row in table}
    for rows in videos(folder / "mmaip-v").values():
        assert all(has[question] == there for question, there in rows)


def test_a_name_that_leads_out_of_the_folder_is_not_followed(ids_only, own, tmp_path):
    folder, copies = own
    dataset = tmp_path / "hostile"
    shutil.copytree(ids_only, dataset)
    digest, path = next(iter(copies.items()))
    shutil.move(path, tmp_path / "outside.mp4")

    def leads_out(table: pa.Table) -> pa.Table:
        names = [
            "../outside.mp4" if sha == digest else name
            for sha, name in zip(table["sha256"].to_pylist(), table["source_id"].to_pylist())
        ]
        return table.set_column(table.schema.get_field_index("source_id"), "source_id", pa.array(names))

    rewrite(dataset, "questions", leads_out)
    report = attach(dataset, folder, tmp_path / "mmaip-v", progress=False)
    assert [entry.expected for entry in report.missing] == [digest] and not report.refused


def test_a_second_run_hashes_nothing_again_and_writes_nothing(ids_only, own, tmp_path, monkeypatch):
    first = attach(ids_only, own[0], tmp_path / "mmaip-v", progress=False)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "mmaip-v").rglob("*")}
    monkeypatch.setattr(attach_module, "file_sha256", lambda path: pytest.fail(f"{path} was hashed again"))
    assert attach(ids_only, own[0], tmp_path / "mmaip-v", progress=False) == first
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "mmaip-v").rglob("*")}
    assert {path.name for path in (tmp_path / ".mmaip-v-attach").iterdir()} == {".lock", "hashes.jsonl", NOT_ATTACHED}


def test_nothing_of_somebody_elses_is_replaced(built, ids_only, own, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(KitError, match="not a dataset folder of this kit"):
        attach(ids_only, own[0], tmp_path / "mine", progress=False)
    shutil.copytree(built.output, tmp_path / "other")
    before = tree(tmp_path / "other")
    with pytest.raises(KitError, match="--overwrite"):
        attach(ids_only, own[0], tmp_path / "other", progress=False)
    assert tree(tmp_path / "other") == before and (tmp_path / "mine" / "thesis.txt").exists()


def test_what_cannot_be_attached_to_is_one_line(built, ids_only, own, tmp_path):
    with pytest.raises(KitError, match="there is no such folder"):
        attach(ids_only, tmp_path / "nowhere", tmp_path / "out", progress=False)
    with pytest.raises(KitError, match="no such dataset folder"):
        attach(tmp_path / "nowhere", own[0], tmp_path / "out", progress=False)
    with pytest.raises(KitError, match="cannot be downloaded") as caught:  # the tests are offline
        dataset_folder("somebody/mmaip-v")
    assert "\n" not in str(caught.value)
    part = tmp_path / "part"
    shutil.copytree(ids_only, part)
    shutil.rmtree(part / "questions")
    with pytest.raises(KitError, match="no config 'questions'"):
        attach(part, own[0], tmp_path / "out", progress=False)
    damaged = tmp_path / "damaged"
    shutil.copytree(ids_only, damaged)
    file = next((damaged / "preferences").iterdir())
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(KitError, match="is damaged or cannot be read"):
        attach(damaged, own[0], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(KitError, match=r"not a media\.json"):
        read_media(tmp_path / "list.json")


def test_taking_a_dataset_apart_and_writing_it_gives_the_same_files(built, tmp_path):
    found = assembled_from_dataset(built.output, tmp_path)
    names = ("clips", "questions", "answers", "pairs")
    got = (found.videos_present, found.questions, found.responses, found.pairs)
    clips = len({row["sha256"] for row in shown(built)})
    assert dict(zip(names, got)) == {**{name: built.summary[name] for name in names}, "clips": clips}
    selection = json.loads((built.output / "selection.json").read_text())
    extra = {"provenance.json": found.provenance, "selection.json": selection}
    mmaip_v.write_dataset(tmp_path, tmp_path / "mmaip-v", embed=True, extra=extra)
    assert tree(tmp_path / "mmaip-v") == tree(built.output)


def test_videos_come_from_the_dataset_or_from_media_or_are_counted_absent(built, ids_only, tmp_path):
    table = list(QuestionTable(built.work / "questions.arrow"))
    media = {row["sha256"]: row["path"] for row in table}
    all_of_them = len(media)
    gone = media.popitem()[0]
    found = assembled_from_dataset(ids_only, tmp_path, media | {gone: str(tmp_path / "gone.mp4")})
    assert (found.videos_present, found.videos_absent) == (all_of_them - 1, 1)
    for row in QuestionTable(tmp_path / "questions.arrow"):
        assert row["embed"] == (row["sha256"] != gone) and row["path"] == media.get(row["sha256"], "")
    embedded = extract_videos(built.output, tmp_path)
    assert not embedded.null and all(file_sha256(path) == digest for digest, path in embedded.files.items())


def test_a_dataset_that_was_shuffled_is_refused(built, tmp_path):
    dataset = tmp_path / "shuffled"
    shutil.copytree(built.output, dataset)
    rewrite(dataset, "responses", lambda table: table.take(list(range(table.num_rows))[::-1]))
    with pytest.raises(KitError, match="out of order"):
        assembled_from_dataset(dataset, tmp_path / "work")


def test_a_frame_folder_is_packed_as_a_build_packs_it(tmp_path):
    from PIL import Image

    frames = tmp_path / "own" / "v_1.5" / "Scene-006"
    frames.mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (32, 32), (40 * number, 90, 200)).save(frames / f"c01_{number:04d}.jpeg")
    packed = tmp_path / "packed.mp4"
    packed.write_bytes(pack_frame_folder(frames, 2.0))
    digest, work = file_sha256(packed), tmp_path / "work"
    row = {
        **{"question_id": "q", "video_id": digest[:16], "source": "own", "source_id": "v_1.5/Scene-006"},
        **{"license": "cc0-1.0", "sha256": digest, "phash": "0" * 16, "duration": probe(packed).duration},
        **{"question": "What?", "answer": "Dots.", "answers": ["Dots."], "question_type": None, "origin": "given"},
        **{"start": None, "end": None, "split": "test", "path": str(packed), "embed": True},
    }
    response = {
        **{"response_id": "r", "question_id": "q", "video_id": digest[:16], "question": "What?", "answer": "Dots."},
        **{"model": "m", "model_revision": "1", "sampling": "{}", "response": "Dots.", "finish_reason": "stop"},
        **{"prompt_tokens": 1, "completion_tokens": 1, "flags": [], "scores": [], "score": None, "disagreement": None},
    }
    write_questions([row], work / "questions.arrow", 4)
    (work / "assembled").mkdir()
    pq.write_table(pa.Table.from_pylist([response], RESPONSE_SCHEMA), work / RESPONSES)
    pq.write_table(pa.Table.from_pylist([], PAIR_SCHEMA), work / PAIRS)
    for name, embed in (("embedded", True), ("ids", False)):
        mmaip_v.write_dataset(work, tmp_path / name, embed=embed, extra={"provenance.json": {"config_hash": name}})
    report = attach(tmp_path / "ids", tmp_path / "own", tmp_path / "attached", progress=False)
    assert (report.attached, report.null) == (1, 0)
    assert without_provenance(tmp_path / "attached") == without_provenance(tmp_path / "embedded")
    Image.new("RGB", (32, 32)).save(frames / "c01_0002.jpeg")  # one frame is another
    report = attach(tmp_path / "ids", tmp_path / "own", tmp_path / "other", progress=False)
    assert (report.attached, report.null) == (0, 1) and report.refused[0].file == str(frames)


def test_a_downloaded_dataset_is_attached_like_a_folder(built, ids_only, own, tmp_path):
    server, log = serve(ids_only, "somebody/mmaip-v")
    code = (
        "import sys; from dataset_builder.attach import attach; "
        "print(attach('somebody/mmaip-v', sys.argv[1], sys.argv[2], progress=False))"
    )
    here = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(own[0]), str(tmp_path / "mmaip-v")],
            env=os.environ | here | {"HF_HOME": str(tmp_path / "hf")},
            capture_output=True,
            text=True,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert without_provenance(tmp_path / "mmaip-v") == without_provenance(built.output)
    assert any(path.endswith(".parquet") for path in log)


def serve(folder: Path, name: str) -> tuple[ThreadingHTTPServer, list[str]]:
    """A loopback server that answers for one public dataset, reading only; and the paths asked of it."""
    commit, log = "0" * 40, []
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = urllib.parse.unquote(self.path.split("?")[0])
            log.append(path)
            if path.startswith(f"/datasets/{name}/resolve/"):
                data = files[path.split("/", 6)[6]].read_bytes()
                tag = hashlib.sha256(data).hexdigest()
                self.answer(data, {"ETag": f'"{tag}"', "X-Repo-Commit": commit})
            elif "/tree/" in path:
                entries = [{"type": "file", "path": p, "size": f.stat().st_size, "oid": "0"} for p, f in files.items()]
                self.answer(json.dumps(entries).encode())
            else:
                siblings = [{"rfilename": file} for file in files]
                info = {"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []}
                self.answer(json.dumps(info).encode())

        do_HEAD = do_GET

        def answer(self, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(200)
            for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, log
