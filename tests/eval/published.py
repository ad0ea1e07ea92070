"""Small local data in the shapes in which test sets are published, made of clips of the toy world."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

IN_DOMAIN, OUT_OF_DOMAIN = ("webvid", "vidal", "actnet"), ("ssv2", "msrvtt", "msvd", "tgif")
OFFICIAL = ("msrvtt", "msvd", "tgif")
AS_FILES = ("msvd", "tgif")  # their videos are files here, those of the other sets frame folders
KINDS = {"motion": "0", "place": "1", "count": "7", "colour": "4"}  # ActivityNet-QA numbers its kinds


def questions_of(toy: Path, split: str = "test") -> list[dict]:
    """Rows of the toy world's question file: ``id, video, question, answer, question_type, split``."""
    rows = [json.loads(line) for line in (toy / "questions.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


def write_hound_tests(folder: Path, toy: Path, clips: int = 2) -> Path:
    """LLaVA-Hound's test files as they lie after unpacking: ``video_instruction/test/*.jsonl`` and ``video_data/``.

    Every set has the same ``clips`` clips under names of its own, with all their questions; captions say the answers.
    """
    rows = questions_of(toy)
    names = sorted({row["video"] for row in rows})[:clips]
    instructions = folder / "video_instruction" / "test"
    instructions.mkdir(parents=True)
    for place, kind in enumerate((*IN_DOMAIN, *OUT_OF_DOMAIN)):
        videos = {name: f"test/{kind}/{kind}{100 + place}-Scene-{number:03d}" for number, name in enumerate(names)}
        for name, video in videos.items():
            target = folder / "video_data" / video
            if kind in AS_FILES:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(toy / "videos" / name, target.with_name(target.name + ".mp4"))
            else:
                write_frames(toy / "videos" / name, target)
        asked = [row for row in rows if row["video"] in videos]
        for official in (False, True) if kind in OFFICIAL else (False,):
            lines = [hound_row(row, videos[row["video"]], f"{kind}_{n}", official) for n, row in enumerate(asked)]
            file = instructions / f"{kind}.qa.{'official.' if official else ''}jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def hound_row(row: dict, video: str, name: str, official: bool = False) -> dict:
    """One row of a test file: a conversation of one turn, and a caption unless it is official."""
    talk = [{"from": "human", "value": f"<video>\n{row['question']}"}, {"from": "gpt", "value": row["answer"]}]
    content = {"id": name, "video": video, "conversations": talk}
    return content if official else {**content, "caption": f"A shape. {row['question']} {row['answer']}."}


def write_frames(video: Path, folder: Path) -> None:
    """Frames at 2 a second as ``c01_0001.jpeg`` and so on."""
    from PIL import Image

    from dataset_builder.media import sample_frames

    folder.mkdir(parents=True)
    for number, frame in enumerate(sample_frames(video, 1000, fps=2.0).array, 1):
        Image.fromarray(frame).save(folder / f"c01_{number:04d}.jpeg", quality=95)


def write_activitynet(folder: Path, toy: Path, clips: int = 2) -> Path:
    """ActivityNet-QA: ``test_q.json``, ``test_a.json`` and ``videos/v_NAME.mp4``; names in the files have no ``v_``."""
    rows = questions_of(toy)
    names = sorted({row["video"] for row in rows})[:clips]
    rows = [row for row in rows if row["video"] in names]
    (folder / "videos").mkdir(parents=True)
    for name in names:
        shutil.copy(toy / "videos" / name, folder / "videos" / f"v_{name}")
    asked = [
        {"video_name": Path(r["video"]).stem, "question": r["question"], "question_id": f"q_{n}"}
        for n, r in enumerate(rows)
    ]
    answers = [
        {"answer": r["answer"], "type": int(KINDS[r["question_type"]]), "question_id": f"q_{n}"}
        for n, r in enumerate(rows)
    ]
    (folder / "test_q.json").write_text(json.dumps(asked))
    (folder / "test_a.json").write_text(json.dumps(answers))
    return folder
