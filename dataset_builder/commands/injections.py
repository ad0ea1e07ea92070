"""``injections CONFIG.yaml``: how far instructions inside an answer move the judges of a build."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from dataset_builder.errors import EXIT_OK, KitError
from dataset_builder.settings import load_build_config
from dataset_builder.stages import write_json


def run(args: argparse.Namespace) -> int:
    """Measure every judge that reads answers with a model."""
    from dataset_builder.build import load_questions
    from dataset_builder.judges import JudgeItem, make_judge
    from dataset_builder.judges.injections import measure_injections
    from dataset_builder.media import sample_frames
    from dataset_builder.stages.local import model_room
    from dataset_builder.table import QuestionTable

    config = load_build_config(args.config)
    specs = [spec for spec in config.judges if spec.kind != "reference"]
    if not specs:
        raise KitError(f"{args.config}: judges: none of them reads answers with a model")
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        load_questions(config, None, Path(scratch), progress=False)
        questions = list(islice(QuestionTable(Path(scratch) / "questions.arrow"), args.questions))
        for spec in specs:
            judge = make_judge(asdict(spec))
            clips = [sample_frames(q["path"], judge.num_frames) if judge.needs_frames else None for q in questions]
            items = [
                JudgeItem(q["question"], q["answers"], clip, "I do not know.") for q, clip in zip(questions, clips)
            ]
            with model_room(1):
                report = measure_injections(judge, items, progress=True)
            print(f"{spec.name}\n{report}")
            results[spec.name] = report.to_dict()
    if args.output:
        write_json(Path(args.output), results)
    return EXIT_OK
