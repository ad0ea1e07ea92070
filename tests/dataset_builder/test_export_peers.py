"""Exported rows in the peers that train on them: the comparison, and (slow) the real peers with rows good and bad."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.peer_check_compare import (
    FRAMES,
    MAX_PIXELS,
    Clip,
    Row,
    check_rows,
    compare,
    frame_size,
    frames_shown,
)
from benchmarks.peer_check_text import side
from dataset_builder.schema import FEATURES, assistant_message, user_message
from tests.conftest import GUARD
from tests.dataset_builder.clips import moving_square, write_clip

# --- the comparison


def rows_of(tmp_path) -> list[Row]:
    """Three rows on two clips."""
    texts = [("What?", "Dots.", "Lines."), ("Where?", "Here\nand there", "Nowhere"), ("What?", "Dots.", "e\u0301")]
    files = [tmp_path / f"{name}.mp4" for name in ("a", "a", "b")]
    for file in files:
        file.write_bytes(b"x")
    return [Row(str(file), file, *text, tags=1) for file, text in zip(files, texts)]


CLIPS = [Clip(48, [4, 6, 8], [0, 3, 7, 10, 13, 16, 20, 23], 24)] * 2 + [Clip(6, [3, 4, 4], [0, 1, 2, 3, 4, 5], 6)]


def seen_of(rows) -> dict:
    """What a peer that does all right has seen."""
    found = []
    for row, clip in zip(rows, CLIPS):
        sides = {
            name: {"question": row.question, "answer": answer, "tokens": clip.tokens, "grid": clip.grid}
            for name, answer in (("chosen", row.chosen), ("rejected", row.rejected))
        }
        found.append({"video": row.video, "error": None, "frames": clip.frames, **sides})
    return copy.deepcopy({"read": len(rows), "rows": found})


def test_rows_that_are_as_exported_pass(tmp_path):
    rows = rows_of(tmp_path)
    seen = seen_of(rows)
    assert not check_rows(rows) and not compare(rows, seen, CLIPS)
    seen["rows"][2]["rejected"]["answer"] = "\u00e9"  # composed: Qwen's tokenizer does that to every text
    seen["rows"][0]["frames"] = [0, 3, 6, 9, 13, 16, 19, 23]  # neighbours of those wanted
    assert not compare(rows, seen, CLIPS)


def fault(change):
    """The one line that is said of a change to what was seen."""

    def problems(tmp_path):
        rows = rows_of(tmp_path)
        seen = seen_of(rows)
        change(seen)
        return compare(rows, seen, CLIPS)

    return problems


FAULTS = {
    "2 rows were read, 3 exported": lambda seen: seen.update(read=2),
    "row 2: was dropped": lambda seen: seen["rows"].pop(1),
    "row 3: was dropped": lambda seen: seen["rows"].pop(2),
    "row 1: its video is": lambda seen: seen["rows"][0].update(video="/elsewhere/b.mp4"),
    "row 1: cannot be encoded: OSError: gone": lambda seen: seen["rows"][0].update(error="OSError: gone\nand more"),
    "row 2: rejected is": lambda seen: seen["rows"][1]["rejected"].update(answer="Nowhere "),
    "row 2: the question beside chosen": lambda seen: seen["rows"][1]["chosen"].update(question="<video>Where?"),
    "row 3: chosen has 1 video tokens, its clip comes to 6": lambda seen: seen["rows"][2]["chosen"].update(tokens=1),
    "row 3: rejected is given no frames": lambda seen: seen["rows"][2]["rejected"].update(grid=None),
    "row 3: rejected is given 3 x 4 x 2": lambda seen: seen["rows"][2]["rejected"].update(grid=[3, 4, 2]),
    "row 1: shows frames 0 1 2": lambda seen: seen["rows"][0].update(frames=list(range(8))),
    "row 3: shows frames 0 1 of 6": lambda seen: seen["rows"][2].update(frames=[0, 1]),
    "a row too many": lambda seen: seen["rows"].append(seen["rows"][0]),
}


@pytest.mark.parametrize("line", FAULTS)
def test_each_difference_is_named(tmp_path, line):
    problems = fault(FAULTS[line])(tmp_path)
    assert any(problem.startswith(line) for problem in problems), problems
    rest = [problem for problem in problems if not problem.startswith(line)]
    assert all("rows were kept" in problem for problem in rest)


def test_rows_that_a_trainer_passes_over_are_named(tmp_path):
    good, *_ = rows_of(tmp_path)
    values = dict(video=good.video, file=good.file, question="What?", chosen="Dots.", rejected="Lines.", tags=1)
    bad = [
        Row(**{**values, **change})
        for change in (
            {"tags": 0},
            {"tags": 2},
            {"rejected": " "},
            {"rejected": "Dots."},
            {"file": tmp_path / "no.mp4"},
        )
    ]
    assert check_rows([good, *bad]) == [
        "row 2: has 0 <video> tags for 1 video",
        "row 3: has 2 <video> tags for 1 video",
        "row 4: an answer is empty",
        "row 5: chosen and rejected are the same",
        f"row 6: there is no file {good.video}",
    ]


def test_how_many_frames_each_peer_takes_and_how_large():
    assert [frames_shown("ms_swift", total, total / 10) for total in (1, 2, 5, 6, 8, 9, 500)] == [0, 2, 4, 6, 8, 8, 8]
    assert [frames_shown("llama_factory", total, total / 10) for total in (1, 5, 8, 500)] == [1, 5, 8, 8]
    assert frames_shown("llama_factory", 10, 10 / 120) == 5  # 120 frames a second: fewer than 8 at 60 a second
    assert frame_size("ms_swift", 1080, 1920) == (1080, 1920)  # the processor's own rule is all there is
    height, width = frame_size("llama_factory", 1080, 1920)
    assert (height, width) == (336, 597) and height * width <= MAX_PIXELS
    assert frame_size("llama_factory", 20, 64) == (28, 64) and frame_size("llama_factory", 32, 32) == (32, 32)


class Words:
    """A tokenizer of whole words."""

    words = ("<|vision_start|>", "<|video_pad|>", "<|vision_end|>", "What?", "<|im_end|>", "\n<|im_start|>assistant\n")
    words = (*words, "Dots", ".\n", "\n", "Rows")

    def decode(self, ids, skip_special_tokens):
        return "".join(self.words[number] for number in ids)


def test_a_sequence_is_read_back_as_question_and_answer():
    prompt = [0, 1, 1, 1, 2, 3, 4, 5]
    answer = [6, 7, 4, 8]  # an answer that ends with a line break keeps it
    one = side(Words(), prompt + answer, [-100] * len(prompt) + answer, 1, None)
    assert one == {"question": "What?", "answer": "Dots.\n", "tokens": 3, "grid": None}
    bare = side(Words(), [9, *answer], [-100, *answer], 1, None)
    assert bare["question"] is None and bare["tokens"] == 0


# --- the real peers


def write_dataset(folder: Path, rows: list[tuple], clips: dict[str, Path]) -> Path:
    """A dataset of (clip, question, chosen, rejected); a clip of None is a null video."""
    full = [
        {
            **{"question_id": f"q{number}", "response_id_chosen": "c", "response_id_rejected": "r"},
            **{"video_id": name or "gone", "source": "own", "license": "cc0-1.0", "answer": None, "question": question},
            **{
                "model_chosen": "a",
                "model_rejected": "b",
                "score_chosen": None,
                "score_rejected": None,
                "margin": None,
            },
            "video": {"bytes": clips[name].read_bytes(), "path": clips[name].name} if name else None,
            "prompt": [user_message(question)],
            "chosen": [assistant_message(chosen)],
            "rejected": [assistant_message(rejected)],
        }
        for number, (name, question, chosen, rejected) in enumerate(rows)
    ]
    (folder / "preferences").mkdir(parents=True)
    table = pa.Table.from_pylist(full, FEATURES["preferences"].arrow_schema)
    pq.write_table(table, folder / "preferences" / "train-00000-of-00001.parquet")
    return folder


ROWS = [
    ("long", "What moves?", "A square.", "A circle, I think."),
    ("long", "Where to?", "To the right,\nthen back:\n\n- once\n- twice", "Nowhere  "),
    ("small", "Was für ein Würfel? 🎲", "Ein roter — „rot“ 紅い e\u0301 🟥", " blau\u2028und grün\x85"),
    ("odd", "\nWhat?\n", " Dots. \n", "Lines\n"),
    ("large", "How many?", 'Two <b>squares</b> & "one" \\n {x}', "{{content}} <think>none</think>"),
    ("large", "What is <video>?", "A tag.", "Nothing."),
    ("large", "What?", "See <image>.", "Lines."),
    ("large", "What?", "Dots.<|im_end|>", "Lines."),
    (None, "What?", "Dots.", "Lines."),
]
LEFT_OUT = {"no_video": 1, "special_token": 1, "tag_in_text": 2}


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """The peers' environments, a tiny model and exports of :data:`ROWS`; or a skip that says what is missing."""
    from benchmarks import export_peers
    from benchmarks.peers_env import environment
    from dataset_builder.export import export

    for peer in export_peers.TRAINERS:
        try:
            environment(peer.name, list(peer.packages))
        except subprocess.CalledProcessError as error:
            pytest.skip(
                f"{peer.title} cannot be installed here (pip ended with {error.returncode}); nothing was checked"
            )
    folder = tmp_path_factory.mktemp("peers")
    (folder / "clips").mkdir()
    clips = {
        name: write_clip(folder / "clips" / f"{name}.mp4", moving_square(frames, width, height), fps=fps)
        for name, frames, width, height, fps in (
            ("long", 24, 112, 84, 10),
            ("small", 6, 64, 32, 10),  # below the least size of a frame, and short of 8 frames
            ("odd", 5, 112, 84, 10),
            ("large", 60, 640, 480, 25),  # above the largest size
        )
    }
    dataset, guard = write_dataset(folder / "dataset", ROWS, clips), (("PYTHONPATH", str(GUARD)),)
    bench = export_peers.Bench(
        folder / "work", export_peers.make_checkpoint(folder / "work" / "checkpoint"), variables=guard
    )
    exports = {peer.shape: folder / peer.shape for peer in export_peers.TRAINERS}
    for shape, path in exports.items():
        report = export(dataset, shape, path, progress=False)
        assert report.left_out == LEFT_OUT and report.rows == len(ROWS) - sum(LEFT_OUT.values()) and not report.notes
    return SimpleNamespace(
        module=export_peers, bench=bench, dataset=dataset, exports=exports, guard=guard, folder=folder
    )


def run_main(peers, dataset: Path, output: Path, monkeypatch) -> tuple[int, list[dict]]:
    """The command, as typed, and the rows of its results file."""
    monkeypatch.setattr("benchmarks.common.RESULTS", output / "results")
    output.mkdir()
    (output / "checkpoint").symlink_to(peers.bench.checkpoint)
    code = peers.module.main([str(dataset), "--output", str(output)], variables=peers.guard)
    return code, json.loads((output / "results" / "export_peers.json").read_text())["rows"]


@pytest.mark.slow
def test_exported_rows_train_in_both_peers(peers, tmp_path, monkeypatch, capsys):
    code, results = run_main(peers, peers.dataset, tmp_path / "out", monkeypatch)
    said = capsys.readouterr()
    assert code == 0, said.err
    kept = len(ROWS) - sum(LEFT_OUT.values())
    values = {row["case"]: (row["ours"], row["peer"]) for row in results}
    # 8 frames of 112 x 84: 4 x 4 x 3; 6 of 64 x 32, made 84 x 56: 3 x 3 x 2; 4 or 6 of 5 frames; 8 of 640 x 480, scaled
    swift, factory = (2 * 48 + 18 + tokens for tokens in (24 + 4 * 18 * 13, 36 + 4 * 18 * 14))
    for title, tokens, alike in (("ms-swift 4.6.0", swift, 4), ("LLaMA-Factory 0.9.5", factory, 4)):
        assert values[f"{title}, rows read"] == values[f"{title}, rows kept"] == (kept, kept)
        assert (
            values[f"{title}, video tokens, chosen"] == values[f"{title}, video tokens, rejected"] == (tokens, tokens)
        )
        assert values[f"{title}, rows as our training has them"] == (kept, alike)
        assert values[f"{title}, DPO steps"] == (1, 1)


def broken(peers, shape: str, folder: Path, changes: dict) -> Path:
    """A copy of an export with some rows changed; a change of None takes the row's video away."""
    shutil.copytree(peers.exports[shape], folder)
    text = (folder / "train.jsonl").read_text(encoding="utf-8").replace(str(peers.exports[shape]), str(folder))
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    for number, change in changes.items():
        if change is None:
            (folder / rows[number - 1]["videos"][0]).unlink()
        else:
            change(rows[number - 1])
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def asked(row: dict) -> tuple[dict, str]:
    """The turn of a row that holds its question, and the key of its text."""
    return (row["messages"][0], "content") if "messages" in row else (row["conversations"][0], "value")


def without_tag(row: dict) -> None:
    turn, key = asked(row)
    turn[key] = turn[key].removeprefix("<video>")


def with_two_tags(row: dict) -> None:
    turn, key = asked(row)
    turn[key] = "<video>" + turn[key]


def with_same_answers(row: dict) -> None:
    if "messages" in row:
        row["rejected_response"] = row["messages"][1]["content"]
    else:
        row["rejected"] = row["chosen"]


@pytest.mark.slow
def test_what_ms_swift_passes_over_is_named(peers, tmp_path):
    changes = {1: without_tag, 2: with_two_tags, 3: with_same_answers, 4: None}
    export = broken(peers, "ms_swift", tmp_path / "export", changes)
    problems, _ = peers.module.check_peer(peers.bench, peers.module.SWIFT, export, train=False)
    for line in (
        "row 1: has 0 <video> tags for 1 video",
        "row 2: has 2 <video> tags for 1 video",
        "row 3: chosen and rejected are the same",
        "4 rows were kept, 5 exported",
        "row 3: was dropped (small.mp4",
        "row 4: there is no file",
        "row 4: cannot be encoded",
    ):
        assert any(problem.startswith(line) for problem in problems), (line, problems)
    assert not any(problem.startswith("row 5") for problem in problems)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (
            without_tag,
            ["row 2: has 0 <video> tags", "stops before training: ValueError: The number of videos does not"],
        ),
        (with_same_answers, ["row 2: chosen and rejected are the same"]),
        (None, ["row 1: there is no file", "row 2: there is no file", "stops before training: "]),
    ],
    ids=["no tag", "same answers", "no video"],
)
def test_what_llama_factory_passes_over_or_stops_at_is_named(peers, tmp_path, change, lines):
    export = broken(peers, "llama_factory", tmp_path / "export", {2: change})
    problems, _ = peers.module.check_peer(peers.bench, peers.module.FACTORY, export, train=False)
    for line in lines:
        assert any(problem.startswith(line) for problem in problems), (line, problems)
    assert (len(problems) == 1) == (change is with_same_answers)


@pytest.mark.slow
def test_wrong_token_ids_are_named(peers, tmp_path):
    """ms-swift takes Qwen's ids for granted: a small vocabulary trains on one video token without a word."""
    from dataclasses import replace

    from benchmarks.dpo_cases import LENGTHS, SMALL_VOCABULARY, save_checkpoint

    small = save_checkpoint(tmp_path / "small", SMALL_VOCABULARY, LENGTHS["340"], tiny=True)
    bench = replace(peers.bench, checkpoint=small)
    problems, _ = peers.module.check_peer(bench, peers.module.SWIFT, peers.exports["ms_swift"], train=False)
    assert any(p.startswith("row 1: chosen has 1 video tokens, its clip comes to 48") for p in problems), problems
    other = tmp_path / "other"
    shutil.copytree(peers.bench.checkpoint, other, copy_function=os.link)
    config = json.loads((other / "config.json").read_text()) | {"video_token_id": 151_650}
    (other / "config.json").unlink()
    (other / "config.json").write_text(json.dumps(config))
    bench = replace(peers.bench, checkpoint=other)
    problems, _ = peers.module.check_peer(bench, peers.module.FACTORY, peers.exports["llama_factory"], train=False)
    assert any(p.startswith("row 1: chosen has 0 video tokens, its clip comes to 48") for p in problems), problems


@pytest.mark.slow
def test_clips_that_llama_factory_shows_wrongly_are_noted_and_named(peers, tmp_path, monkeypatch, capsys):
    clips = {
        "matroska": write_clip(tmp_path / "matroska.mkv", moving_square(40, 112, 84)),
        "turned": write_clip(tmp_path / "turned.mp4", moving_square(40, 112, 84), rotation=90),
        "plain": write_clip(tmp_path / "plain.mp4", moving_square(40, 112, 84)),
    }
    dataset = write_dataset(tmp_path / "dataset", [(name, "What?", "Dots.", "Lines.") for name in clips], clips)
    code, _ = run_main(peers, dataset, tmp_path / "out", monkeypatch)
    said = capsys.readouterr()
    assert code == 1
    assert "note: 1 of 3 videos are in a file that does not say how many frames" in said.out
    assert "note: 1 of 3 videos are stored turned" in said.out
    assert "ms-swift 4.6.0: 1 step made" in said.out and "ms-swift" not in said.err
    shown = " ".join(map(str, range(FRAMES)))
    assert f"LLaMA-Factory 0.9.5: row 1: shows frames {shown} of 40" in said.err
    assert "LLaMA-Factory 0.9.5: row 2: chosen is given 4 x 6 x 8 patches" in said.err
    assert "row 3" not in said.err


CARD = Path(__file__).parents[2] / "cards" / "templates" / "dataset_loading.md.j2"


def card_blocks(title: str) -> list[str]:
    """The code blocks of one heading of the dataset card."""
    text = CARD.read_text(encoding="utf-8").split(f"\n### {title}\n", 1)[1].split("\n### ", 1)[0]
    return re.findall(r"```\w+\n(.*?)```", text, re.S)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "name", "extra"),
    [
        (
            "ms-swift",
            "SWIFT",
            " --use_cpu true --torch_dtype float32 --max_steps 1 --gradient_accumulation_steps 1 --check_model false"
            " --dataset_shuffle false --train_dataloader_shuffle false",
        ),
        ("LLaMA-Factory", "FACTORY", " use_cpu=true bf16=false max_steps=1 gradient_accumulation_steps=1"),
    ],
)
def test_what_the_dataset_card_tells_to_type_trains(peers, tmp_path, title, name, extra):
    """As it stands, but for the names of data set and model, and one step on a CPU for the whole training."""
    from benchmarks.export_peers import ENVIRONMENT

    peer = getattr(peers.module, name)
    blocks = card_blocks(title)
    key = next(iter(json.loads((peers.exports["llama_factory"] / "dataset_info.json").read_text())))
    for old, new in {
        "NAMESPACE/{{ load_name }}": str(peers.dataset),
        "Qwen/Qwen2.5-VL-3B-Instruct": str(peers.bench.checkpoint),
        "{{ factory_key }}": key,
    }.items():
        blocks = [block.replace(old, new) for block in blocks]
    install, export, train = re.sub(r"\\\n\s*", "", blocks[0]).strip().split("\n", 2)  # a command is one line again
    assert shlex.split(install, comments=True) == ["pip", "install", *peer.packages]
    if len(blocks) > 1:
        (tmp_path / "dpo.yaml").write_text(blocks[1], encoding="utf-8")
    variables = {**os.environ, **ENVIRONMENT, **dict(peers.guard), "HF_HOME": str(tmp_path / "cache")}
    kit = export.replace("python", sys.executable, 1).partition("  #")[0]
    kit_variables = {**variables, "PYTHONPATH": os.pathsep.join([str(CARD.parents[2]), str(GUARD)])}
    done = subprocess.run(kit, shell=True, cwd=tmp_path, env=kit_variables, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr  # finished; rows were left out
    variables["PATH"] = os.pathsep.join([str(peers.bench.python(peer).parent), variables["PATH"]])
    words = train.rstrip() + extra
    done = subprocess.run(words, shell=True, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (state,) = {json.loads(path.read_text())["global_step"] for path in tmp_path.rglob("aligned/**/trainer_state.json")}
    adapter = next(tmp_path.rglob("aligned/**/adapter_model.safetensors"))
    assert state == 1 and peers.module.adapter_moved(adapter)
