"""The pairs of the report: which are drawn, what the page says of them, and which of them have a clip."""

from __future__ import annotations

import base64
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from cards.report import render_report
from cards.report.drawing import cut, draw
from cards.report.page import script_json
from cards.report.players import MISFITS, ClipFinder, shelve
from cards.run_folder import Run
from dataset_builder.media import probe
from dataset_builder.media.browser import plays_in_browsers
from dataset_builder.table import QuestionTable, write_questions
from tests.dataset_builder.clips import write_clip

NASTY = (
    "</script><script>document.title='owned'</script><!--<img src=http://192.0.2.1/x onerror=document.title='owned'>"
    " & \"quoted\" 'so' ${1} {{ 2 }} \\u003c \u2028\u2029\u202eolleh \x07 ünï 🦆"
)


def change(folder: Path, function: Callable[[dict], dict]) -> None:
    """Write the rows of one config again, each as ``function`` returns it, with the groups that the files had."""
    for path in sorted(folder.glob("*.parquet")):
        file = parquet.ParquetFile(path)
        size = file.metadata.row_group(0).num_rows
        table = file.read()
        rows = pa.Table.from_pylist([function(row) for row in table.to_pylist()], schema=table.schema)
        parquet.write_table(rows, path, row_group_size=size)


def forbid(run: Path, forbidden: Callable[[dict], bool]) -> None:
    """Let the build's question table say that some clips may not be copied."""
    path = run.parent / ".mmaip-v-work" / "questions.arrow"
    rows = [{**row, "embed": not forbidden(row)} for row in QuestionTable(path)]
    write_questions(rows, path, block_size=16)


def odd_run(run: Path) -> Path:
    """Make a run odd: three sources, an MJPEG clip, a broken one, one kept out by its licence, one that is gone, a pair
    without scores, some of 0.75. Returns the run; what is odd follows from the order of the video ids."""
    dataset = run.parent / "mmaip-v"
    videos = sorted({row["video_id"] for row in Run(run).pairs})
    mjpeg, broken, kept, gone, local = videos[:5]
    odd = write_clip(run.parent / "odd.mp4", codec="mjpeg", pix_fmt="yuvj420p").read_bytes()
    content = {mjpeg: {"bytes": odd, "path": "a.mp4"}, broken: {"bytes": b"not a video", "path": "b.mp4"}}
    content |= dict.fromkeys((kept, gone, local))
    numbers = {video: number for number, video in enumerate(videos)}
    first = []

    def spoil(row: dict) -> dict:
        row["video"] = content.get(row["video_id"], row["video"])
        row["source"] = f"toy-{'abc'[numbers[row['video_id']] % 3]}"
        if row["video_id"] == videos[6] and not first:
            first.append(row["question_id"])
            row |= {"score_chosen": None, "score_rejected": None, "margin": None}
        if row["video_id"] == videos[7]:  # on the edge of a range
            row |= {"score_chosen": 0.75, "score_rejected": 0.0, "margin": 0.75}
        return row

    change(dataset / "preferences", spoil)
    forbid(run, lambda row: row["video_id"] == kept)
    copies = {row["sha256"]: row["path"] for row in QuestionTable(run.parent / ".mmaip-v-work" / "questions.arrow")}
    here = {sha: path for sha, path in copies.items() if sha[:16] in (kept, local)}
    (run.parent / ".mmaip-v-work" / "media.json").write_text(json.dumps(here))
    return run


def data_of(text: str) -> dict:
    """The JSON of a page."""
    return json.loads(re.search(r'<script type="application/json" id="pairs-data">(.*?)</script>', text)[1])


def clips_of(text: str) -> list[bytes]:
    """The clips of a page."""
    found = re.findall(r'<script type="text/plain" id="clip-(\d+)">(.*?)</script>', text)
    assert [int(number) for number, _ in found] == list(range(len(found)))
    return [base64.b64decode(content, validate=True) for _, content in found]


def said_of(text: str) -> str:
    """What the section of pairs says before its browser begins."""
    said = re.search(r'<h2 id="pairs-title">.*?</h2>(.*?)<noscript>', text, re.DOTALL)[1]
    return " ".join(re.sub(r"<[^>]+>", "", said).split())


# What is drawn -------------------------------------------------------------------------------------------------------


def test_every_pair_with_every_score_of_every_answer(made_run):
    run = Run(made_run)
    text = render_report(run)
    data = data_of(text)
    assert len(data["pairs"]) == len(run.pairs) and said_of(text).startswith(f"All {len(run.pairs)} pairs of the data")
    pairs = {pair["question_id"]: pair for pair in run.pairs}
    responses = defaultdict(dict)
    for row in run.responses:
        responses[row["question_id"]][row["model"]] = row
    for pair in data["pairs"]:
        question = data["questions"][pair["question"]]
        row = pairs.pop(question["id"])
        assert (question["text"], question["reference"]) == (row["question"], row["answer"])
        assert (pair["margin"], pair["score_chosen"]) == (row["margin"], row["score_chosen"])
        for side in ("chosen", "rejected"):
            assert question["answers"][pair[side]]["model"] == row[f"model_{side}"]
        given = {answer["model"]: answer for answer in question["answers"]}
        assert set(given) == set(responses[question["id"]])
        for model, answer in given.items():
            source = responses[question["id"]][model]
            assert (answer["text"], answer["score"]) == (source["response"], source["score"])
            scores = [[*data["criteria"][place], value] for place, value, _ in answer["scores"]]
            assert scores == [[s["judge"], s["criterion"], s["low"], s["high"], s["score"]] for s in source["scores"]]
    assert not pairs


def test_a_drawing_is_spread_over_types_and_sources_and_a_larger_one_begins_with_it(own_run):
    run = Run(odd_run(own_run))
    kinds = {row["question_id"]: row["question_type"] for row in run.questions}
    sources = {row["question_id"]: row["source"] for row in run.rows("preferences", ["question_id", "source"])}
    there = Counter((kinds[key], source) for key, source in sources.items())
    assert len(there) == 9
    some, all_ = draw(run, 18), draw(run, 1000)
    assert [pair["id"] for pair in all_.pairs[:18]] == [pair["id"] for pair in some.pairs]
    assert some.total == all_.total == len(run.pairs) == len(all_.pairs) == len({pair["id"] for pair in all_.pairs})
    drawn = Counter((pair["question_type"], pair["source"]) for pair in some.pairs)
    assert set(drawn) == set(there) and all(drawn[key] == min(2, there[key]) for key in there)
    text = render_report(run, most_pairs=18)
    assert f"18 of the dataset's {len(run.pairs)} pairs, drawn by a hash and spread over question types" in text
    assert len(data_of(text)["pairs"]) == 18


def test_the_order_of_rows_and_files_changes_nothing(made_run, own_run):
    folder = own_run.parent / "mmaip-v" / "preferences"
    before = [pair["id"] for pair in draw(Run(made_run), 20).pairs]
    paths = sorted(folder.glob("*.parquet"))
    names = [path.name for path in paths]
    tables = [parquet.read_table(path) for path in paths]
    for path, table in zip(paths, tables):
        parquet.write_table(table.take(list(range(table.num_rows))[::-1]), path, row_group_size=3)
    paths[0].rename(folder / "x")
    paths[1].rename(folder / names[0])
    (folder / "x").rename(folder / names[1])
    assert [pair["id"] for pair in draw(Run(own_run), 20).pairs] == before


def test_ready_made_pairs_without_scores_or_answers(own_run):
    dataset = own_run.parent / "mmaip-v"
    nothing = dict.fromkeys(("score_chosen", "score_rejected", "margin", "answer"))
    change(dataset / "preferences", lambda row: {**row, **nothing})
    change(dataset / "responses", lambda row: {**row, "question_id": f"other {row['question_id']}"})
    data = data_of(render_report(Run(own_run)))
    for pair in data["pairs"]:
        assert pair["margin"] is pair["score_chosen"] is None
        answers = data["questions"][pair["question"]]["answers"]
        assert len(answers) == 2 and answers[pair["chosen"]]["text"] != answers[pair["rejected"]]["text"]


def test_a_dataset_without_pairs(own_run):
    for path in (own_run.parent / "mmaip-v" / "preferences").glob("*.parquet"):
        path.unlink()
    text = render_report(Run(own_run))
    assert text.count("There are no pairs.") == 2 and "<script" not in text


def test_text_in_a_script_is_text(own_run):
    assert not set(script_json({"a": NASTY})) & set("<>&\u2028\u2029")
    assert json.loads(script_json({"a": NASTY})) == {"a": NASTY}
    change(own_run.parent / "mmaip-v" / "preferences", lambda row: {**row, "question": NASTY})
    assert {question["text"] for question in data_of(render_report(Run(own_run)))["questions"]} == {NASTY}
    with pytest.raises(ValueError):
        script_json(float("nan"))


def test_long_answers_say_what_they_lost():
    assert cut("abc", 3) == "abc" and cut("abcdef", 4) == "abcd … (2 more characters)" and cut(None) is None


# Clips ---------------------------------------------------------------------------------------------------------------


def test_a_clip_of_several_pairs_is_in_the_page_once(made_run):
    text = render_report(Run(made_run))
    data, clips = data_of(text), clips_of(text)
    used = Counter(data["questions"][pair["question"]]["clip"] for pair in data["pairs"])
    assert set(used) == set(range(len(clips))) and max(used.values()) > 1 and len(set(clips)) == len(clips)
    stored = {row["question_id"]: row["video"]["bytes"] for row in Run(made_run).rows("preferences")}
    for question in data["questions"]:
        assert clips[question["clip"]] == stored[question["id"]]
    held = sum(map(len, clips)) / 1e6
    assert f"each has a player ({len(clips)} clips, {held:.3f} of at most 24 MB)" in said_of(text)


@pytest.mark.parametrize("limit", [0, 9_000, 20_000])
def test_the_room_for_clips_is_kept_and_filled_in_the_order_drawn(made_run, limit):
    run = Run(made_run)
    text = render_report(run, clip_bytes=limit)
    data, clips = data_of(text), clips_of(text)
    sizes, left, expected = {}, limit, set()
    for row in run.rows("preferences", ["video_id", "video"]):
        sizes[row["video_id"]] = len(row["video"]["bytes"])
    drawn = list(dict.fromkeys(pair["video_id"] for pair in draw(run, 1000).pairs))
    misses = 0
    for video_id in drawn:
        if misses == MISFITS:
            break
        misses = 0 if sizes[video_id] <= left else misses + 1
        if sizes[video_id] <= left:
            left -= sizes[video_id]
            expected.add(video_id)
    assert sum(map(len, clips)) == limit - left <= limit and len(clips) == len(expected)
    videos = {row["question_id"]: row["video_id"] for row in run.pairs}
    for question in data["questions"]:
        assert (question["clip"] is not None) == (videos[question["id"]] in expected)
        assert (question["why"] is None) == (question["clip"] is not None)
    players = sum(videos[row["question_id"]] in expected for row in run.pairs)
    words = f"{players} {'has' if players == 1 else 'have'} a player"
    assert words in said_of(text) and f"{len(run.pairs) - players} for which there was no room" in said_of(text)


def test_one_long_clip_does_not_cost_the_others_their_player(own_run):
    run = Run(own_run)
    first = draw(run, 1).pairs[0]["video_id"]
    long = write_clip(own_run / "long.mp4", options={"qp": "0"}).read_bytes() + b"\0\0\x40\x08free" + bytes(16384)

    def spoil(row: dict) -> dict:
        return {**row, "video": {"bytes": long, "path": "a.mp4"}} if row["video_id"] == first else row

    change(own_run.parent / "mmaip-v" / "preferences", spoil)
    drawing = draw(run, 1000)
    clips, _, reasons = shelve(ClipFinder(run, drawing), drawing.pairs, len(long) - 1)
    assert reasons[first] == "full" and len(clips) > 2 and long not in clips


def test_what_cannot_or_may_not_be_shown_says_why(own_run):
    run = Run(odd_run(own_run))
    videos = sorted({row["video_id"] for row in run.pairs})
    mjpeg, broken, kept, gone, local = videos[:5]
    text = render_report(run)
    data, clips = data_of(text), clips_of(text)
    where = {row["question_id"]: row["video_id"] for row in run.pairs}
    found = {where[question["id"]]: (question["clip"], question["why"]) for question in data["questions"]}
    assert {video: why for video, (_, why) in found.items() if why} == {
        broken: "broken",
        kept: "licence",
        gone: "absent",
    }
    assert set(data["reasons"]) == {"licence", "absent", "broken", "full"}
    assert all(plays_in_browsers(clip) for clip in clips)
    copies = {
        row["video_id"]: Path(row["path"])
        for row in QuestionTable(run.dataset.parent / ".mmaip-v-work/questions.arrow")
    }
    assert probe(clips[found[mjpeg][0]]).width == 48
    assert clips[found[local][0]] == copies[local].read_bytes()  # the dataset lacks it, its licence does not mind
    assert copies[kept].read_bytes() not in clips
    counts = Counter(row["video_id"] for row in run.pairs)
    said = said_of(text)
    assert f"{counts[kept]} kept out by their licence" in said and f"{counts[gone]} whose clip is not at hand" in said
    assert f"{counts[broken]} whose clip cannot be decoded" in said
    assert text == render_report(Run(own_run))  # what is encoded again is the same again


def test_a_clip_that_may_not_be_copied_is_not_shown_as_frames_either(own_run):
    change(own_run.parent / "mmaip-v" / "preferences", lambda row: {**row, "video": None})
    forbid(own_run, lambda row: True)
    rows = QuestionTable(own_run.parent / ".mmaip-v-work" / "questions.arrow")
    copies = {row["sha256"]: row["path"] for row in rows}
    (own_run.parent / ".mmaip-v-work" / "media.json").write_text(json.dumps(copies))
    text = render_report(Run(own_run))
    assert "data:image" not in text and clips_of(text) == []
    assert text.count("Its licence does not allow copies") == 7  # six samples, and what the script would say


def test_a_local_copy_that_has_changed_is_not_shown(own_run):
    change(own_run.parent / "mmaip-v" / "preferences", lambda row: {**row, "video": None})
    rows = QuestionTable(own_run.parent / ".mmaip-v-work" / "questions.arrow")
    other = write_clip(own_run / "other.mp4")
    (own_run.parent / ".mmaip-v-work" / "media.json").write_text(json.dumps({r["sha256"]: str(other) for r in rows}))
    text = render_report(Run(own_run))
    assert clips_of(text) == [] and {question["why"] for question in data_of(text)["questions"]} == {"absent"}
