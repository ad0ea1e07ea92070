"""The toy world's further judges: what they are taught is right, and what comes out loads as a judge."""

from __future__ import annotations

import random
import re
from collections import Counter

from dataset_builder.judges import JudgeItem, make_judge, parse_hound, parse_video_chatgpt
from dataset_builder.judges.prompts import CHATGPT_SYSTEM
from dataset_builder.toy import NUMBERS, draw_scene
from dataset_builder.toy_open import generate_open
from recipes.toy_judges import caption_of, text_example, train_open_judge, train_text_judge


def test_examples_say_yes_exactly_where_the_answer_is_the_reference():
    rng, seen = random.Random(1), Counter()
    for _ in range(400):
        system, prompt, reply = text_example(rng)
        reference = re.search(r"Correct answer: (.*)", prompt)[1]
        answer = re.search(r"\[ANSWER \w+\]\n(.*)\n", prompt)[1]
        if system == CHATGPT_SYSTEM:
            said = parse_video_chatgpt(reply).correct
        else:
            said = parse_hound(reply) >= 3
            caption = re.search(r"Caption: (.*)", prompt)[1]
            assert reference in caption.replace(",", "").split()
        assert said == (answer == reference)
        seen[system == CHATGPT_SYSTEM, said] += 1
    assert len(seen) == 4 and min(seen.values()) > 60


def test_captions_hold_the_truth_of_a_scene():
    scene = draw_scene(random.Random(2))
    for word in (scene.colour, scene.shape, scene.direction, NUMBERS[scene.dots], scene.truth("order")):
        assert word in caption_of(scene).replace(",", "").split()


def test_both_are_written_as_checkpoints_that_judge(base, tmp_path):
    text = make_judge({"kind": "hound", "model": str(train_text_judge(tmp_path / "text", steps=2))}, device="cpu")
    scores = text.score([JudgeItem("what ?", ["red"], None, "red", caption="a red ring")])[0]
    assert [score.criterion for score in scores] == ["correct", "score"]  # untrained: no verdict, and says so
    clips = generate_open(tmp_path / "clips", 4)
    folder = train_open_judge(tmp_path / "open", base, clips, steps=2)
    judge = make_judge({"kind": "visual", "model": str(folder), "use_references": True}, device="cpu")
    plain = make_judge({"kind": "visual", "model": str(folder)}, device="cpu")
    assert judge.settings_hash != plain.settings_hash and judge.revision == plain.revision
