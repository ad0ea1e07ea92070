"""The dataset card: prompts, sources, samples, agreement, limits; its code and commands run as they stand."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil

import pytest

from cards import dataset_stats as stats
from cards.dataset_card import DATASET_FIGURES, fence, render_dataset_card
from cards.dataset_samples import NAMES, draw, draw_strips, shown
from cards.dataset_videos import videos_held, why_not_passed_on
from cards.figures import draw_all
from cards.run_folder import Run
from cards.stage_log import write_json
from cards.text import NOT_MEASURED
from cards.verify.checks import UNCHECKED, as_text, exit_code
from cards.verify.command import check_folder
from dataset_builder.__main__ import main as builder
from tests.cards import conftest
from tests.cards.test_cards import change
from tests.cards.test_verify import rewrite

PROMPT = "{question}\n```\nAnswer: {answer}\n```\nScore it from 1 to 5."
SETTINGS = {"kind": "vlm", "system": "You judge answers.", "example": PROMPT, "frames": {"count": 8}}
OWN = "WebVid"  # a set whose videos may not be passed on


def make(folder, embed: bool):
    """A run whose verifier is a member of its own zoo, and some of whose clips are of a set that forbids copies.

    Args:
        folder: where to.
        embed: whether those clips lie in the rows all the same, as after `attach`.
    """
    import dataset_builder.table as table
    from dataset_builder.judges.base import settings_hash

    score, write = conftest.score, table.write_questions
    key, ada = settings_hash(SETTINGS), hashlib.sha256(b"ada").hexdigest()[:16]

    def judged(judge, criterion, value, error=None):
        made = score(judge, criterion, value, error)
        if judge == "verifier":
            made |= {"settings_hash": key, "judge_revision": ada}
        return made

    def sourced(questions, path, **options):
        for question in questions:
            if int(question["sha256"][:2], 16) % 3 == 1:
                question |= {"source": OWN, "license": "webvid-terms-of-use", "embed": embed}
        return write(questions, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conftest, "score", judged)
        patch.setattr(table, "write_questions", sourced)
        run = conftest.make_run(folder)
    judges = [
        {"name": "reference", "kind": "reference", "weight": 1.0, "model": None, "settings": {}},
        {"name": "verifier", "kind": "vlm", "weight": 1.0, "model": "lab/judge-7b", "settings": {key: SETTINGS}},
    ]
    zoo = [{"name": name, "prompt": "{question} In a word.", "system": None} for name in conftest.MEMBERS]
    change(Run(run).dataset / "provenance.json", lambda p: p.update(judges=judges, zoo=zoo, name="mmaip-v"))
    found = {"msvd": {"rows": 970, "video_id": 3, "sha256": 0, "question": 11}}
    write_json(
        Run(run).dataset / "selection.json",
        {"decontamination": found, "pair_drops": {"over_video_cap": 7}, "length": {}, "disagreement": None},
    )
    change(run / "measurements" / "dataset.json", lambda m: m.update(rejected={"broken_video": 5}))
    write_json(run / "measurements" / "control.json", {})
    return run


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """See :func:`make`; tests only read it."""
    run = make(tmp_path_factory.mktemp("mixed"), embed=False)
    draw_all(Run(run))
    return run


@pytest.fixture(scope="module")
def card(mixed):
    return render_dataset_card(Run(mixed).dataset, mixed)


def flat(text: str) -> str:
    return " ".join(text.split())


def test_judges_prompts_are_shown_as_provenance_spells_them_out(mixed, card):
    assert "<details><summary>How verifier judges: kind vlm, model lab/judge-7b</summary>\n\n" in card
    assert f"````text\n{PROMPT}\n````" in card and "```text\nYou judge answers.\n```" in card
    assert "<details><summary>How reference judges" not in card  # nothing is spelled out of it
    assert "ada, bee, cat, dot:\n\n```text\n{question} In a word.\n```" in card
    assert '"count": 8' in card and fence("a ```` b").startswith("`````text")


def test_sources_say_what_is_in_the_rows_and_what_is_not(mixed, card):
    run = Run(mixed)
    held = videos_held(run.dataset)
    own = {row["video_id"] for row in run.questions if row["source"] == OWN}
    assert own and {video for video, there in held.items() if not there} == own & set(held)
    (free, closed) = stats.sources(run.questions, run.pairs, held)[::-1]
    assert (closed["source"], closed["embedded"], closed["ids_only"]) == (OWN, 0, len(own & set(held)))
    assert free["embedded"] and not free["ids_only"]
    assert free["pairs"] + closed["pairs"] == len(run.pairs) and free["clips"] + closed["clips"] == 24
    assert (
        f"| WebVid | webvid-terms-of-use | {closed['clips']} | {closed['questions']} | {closed['pairs']} | 0 |" in card
    )
    assert f"{closed['ids_only']} of the clips in `preferences` and `benchmark` come as ids" in card
    assert "license: other\nlicense_name: cc0-1.0-and-webvid-terms-of-use\n" in card
    assert "attach NAMESPACE/mmaip-v \\\n  --videos DIR" in card


def test_without_null_videos_nothing_is_said_of_attaching(made_run):
    text = render_dataset_card(Run(made_run).dataset, made_run)
    assert "Videos that are not in the rows" not in text and "license_name" not in text


def test_no_frame_is_shown_of_a_clip_that_may_not_be_passed_on(mixed, card, tmp_path):
    run = Run(mixed)
    sources = {row["question_id"]: row["source"] for row in run.questions}
    drawn = draw(run.pairs, run.question_types)
    strips = {name for name in NAMES if (mixed / "figures" / f"{name}.png").is_file()}
    assert strips == {name for name, pair in zip(NAMES, drawn) if sources[pair["question_id"]] != OWN}
    assert 0 < len(strips) < len(NAMES) and set(re.findall(r"figures/(sample-\d)\.png", card)) == strips
    # own copies that somebody put in are in the rows, and still are not shown
    attached = make(tmp_path, embed=True)
    again = Run(attached)
    assert set(videos_held(again.dataset).values()) == {True}
    (attached / "figures").mkdir()
    assert draw_strips(again, attached / "figures") == sorted(strips)


def test_strips_of_an_earlier_run_are_removed(own_run):
    folder = own_run / "figures"
    assert (folder / "sample-1.png").is_file()
    change(Run(own_run).dataset / "provenance.json", lambda p: p.update(ids_only=True))
    assert draw_strips(Run(own_run), folder) == [] and not list(folder.glob("sample-*"))
    text = render_dataset_card(Run(own_run).dataset, own_run)
    assert "No frames are shown" in text and "sample-1" not in text


@pytest.mark.parametrize(
    ("source", "license", "provenance", "may"),
    [
        ("mine", "cc-by-4.0", {}, True),
        ("mine", "CC0-1.0", {"sources": [{"source": "mine", "redistribute": False}]}, True),
        ("mine", "house-terms", {"sources": [{"source": "mine", "redistribute": True}]}, True),
        ("mine", "house-terms", {"sources": [{"source": "mine"}, {"source": "yours", "redistribute": True}]}, False),
        ("else", "house-terms", {"sources": [{"source": "mine"}, {"source": "yours", "redistribute": True}]}, False),
        ("mine", "house-terms", {}, False),
        ("mine", "cc-by-4.0", {"ids_only": True}, False),
        ("mine", "unknown", {"sources": [{"source": "mine", "redistribute": True}]}, False),
        ("mine", None, {"sources": [{"source": "mine", "redistribute": True}]}, False),
        ("msr-vtt", "cc0-1.0", {"sources": [{"source": "msr-vtt", "redistribute": True}]}, False),
    ],
)
def test_frames_are_shown_only_where_the_video_may_be_passed_on(source, license, provenance, may):
    assert (why_not_passed_on(provenance, source, license) is None) is may


def test_samples_show_question_answers_and_every_score(mixed, card):
    run = Run(mixed)
    answers = {row["response_id"]: row for row in run.responses}
    drawn = draw(run.pairs, run.question_types)
    assert len({run.question_types[pair["question_id"]] for pair in drawn[:3]}) == 3  # spread over the types
    assert [p["question_id"] for p in draw(run.pairs[::-1], run.question_types)] == [p["question_id"] for p in drawn]
    for pair in drawn:
        assert f"Question `{pair['question_id']}`" in card and f"| question | {pair['question']} |" in card
        chosen = answers[pair["response_id_chosen"]]
        scores = " | ".join(f"{s['score']:.3g}" for s in chosen["scores"])
        assert f"| chosen | {chosen['response']} | {chosen['model']} | {pair['score_chosen']:.2f} | {scores} |" in card
    assert shown("a|b\n<b>*c*</b>  `d` [e](f)") == "a\\|b &lt;b>\\*c\\*&lt;/b> \\`d\\` \\[e\\](f)"
    assert len(shown("x" * 900)) == 500 and shown(None) == "(empty)"


def test_decontamination_is_told_or_said_to_be_missing(mixed, card, made_run):
    assert "| msvd | 970 | 3 | 0 | not looked for | 11 |" in card and "over video cap | 7 |" in card
    text = render_dataset_card(Run(made_run).dataset, made_run)
    assert f"benchmark is {NOT_MEASURED}" in flat(text) and "evaluation set | rows" not in text


def test_a_judge_that_is_a_member_is_named(mixed, card, made_run):
    (own,) = stats.self_judged(Run(mixed).responses)
    assert (own["judge"], own["member"]) == ("verifier", "ada")
    said = f"Judge verifier is the model of member ada (`{own['revision']}`). It gives that member's answers"
    assert f"{said} {own['own']:.2f}" in flat(card) and "none is known to have scored" not in card
    assert "none is known to have scored its own answers" in flat(render_dataset_card(Run(made_run).dataset, made_run))
    rows = [r for r in Run(mixed).responses if r["model"] == "ada"]
    values = [s["score"] for r in rows for s in r["scores"] if s["judge"] == "verifier"]
    assert own["own"] == pytest.approx(sum(values) / len(values))


def test_a_mixed_dataset_verifies_and_says_what_rows_cannot_give(mixed, card, tmp_path):
    folder = shutil.copytree(Run(mixed).dataset, tmp_path / "mmaip-v")
    (folder / "README.md").write_text(card)
    checks = check_folder(folder, "dataset")
    assert exit_code(checks) == 0, as_text(checks, "dataset")
    open_ones = {check.name: check.why for check in checks if check.state == UNCHECKED}
    assert "not released" in open_ones["decontamination, msvd: same question"]
    assert open_ones["candidate pairs: over video cap"] and open_ones["source rows: broken video"]
    for name in ("settings of a judge (hash)", "self-preference of verifier: own", "clips that come as ids"):
        assert any(check.name == name and check.state == "ok" for check in checks), name
    # a prompt that is not the one of the rows' hash is told
    change(folder / "provenance.json", lambda p: p["judges"][1]["settings"].popitem()[1])
    assert exit_code(check_folder(folder, "dataset")) != 0


def test_figures_of_the_card_are_those_that_it_shows(mixed, card):
    there = {name for name in DATASET_FIGURES if (mixed / "figures" / f"{name}.png").is_file()}
    assert set(re.findall(r"figures/([\w-]+)\.png", card)) == there
    assert {"coverage", "length", "agreement", "scores", "margins", "win-rates"} <= there


# --- what it says to type ------------------------------------------------------------------------------------------


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def typed(text: str, word: str) -> list[str]:
    """The words of the kit's command of the card's blocks that has this word in it."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    (line,) = [line for line in lines if line.startswith("python -m dataset_builder") and word in line]
    return shlex.split(line, comments=True)[3:]


@pytest.fixture
def place(mixed, tmp_path, monkeypatch):
    """A folder of one's own with the dataset in it, where the card's code and commands are typed."""
    import datasets

    shutil.copytree(Run(mixed).dataset, tmp_path / "mmaip-v")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def test_the_code_that_loads_it_runs_as_it_stands(place, card, mixed):
    (place / "mmaip-v" / "README.md").write_text(card)
    names: dict = {}
    exec(blocks(card, "python")[0], names)
    run = Run(mixed)
    assert len(names["pairs"]) == run.split_rows["preferences"]["train"]
    assert set(names["responses"]) == set(names["questions"]) == {"train", "validation", "test"}
    assert {bool(row["video"]) for row in names["pairs"]} == {True, False}
    assert names["row"]["question_id"] == names["pairs"][0]["question_id"]


@pytest.mark.parametrize("shape", ["images", "ms_swift", "llama_factory"])
def test_the_export_commands_run_as_they_stand(place, card, shape):
    words = [word.replace("NAMESPACE/", "") for word in typed(card, f"--shape {shape} ")]
    assert builder([*words, "--quiet"]) == 3  # the pairs of ids only are left out, and counted
    if shape == "llama_factory":
        (settings,) = blocks(card, "yaml")
        key = re.search(r"^dataset: (\S+)$", settings, re.MULTILINE)[1]
        folder = place / re.search(r"^dataset_dir: (\S+)$", settings, re.MULTILINE)[1]
        entry = json.loads((folder / "dataset_info.json").read_text())[key]
        assert (folder / entry["file_name"]).is_file()
    elif shape == "ms_swift":
        (file,) = re.findall(r"--dataset (\S+)", card)
        assert json.loads((place / file).read_text().splitlines()[0])["rejected_response"]
    else:
        assert list((place / "frames" / "data").glob("train-*.parquet"))


def test_attaching_own_copies_as_the_card_says_restores_the_videos(place, card, mixed):
    words = [word.replace("NAMESPACE/", "") for word in typed(card, "attach")]
    words[words.index("DIR")] = str(mixed.parent / "toy" / "videos")
    assert builder([*words, "--quiet"]) == 0
    assert set(videos_held(place / "mmaip-v-with-videos").values()) == {True}


def test_imported_pairs_are_not_said_to_have_been_sampled_or_judged(place):
    from dataset_builder.build import build
    from dataset_builder.settings import BuildConfig, load_yaml

    builder(["export", "mmaip-v", "--shape", "hound", "--output", "hound", "--quiet"])
    source = {"kind": "preferences", "rows": "hound/train.jsonl", "videos": "hound", "source": "theirs"}
    config = {"name": "theirs", "sources": [source], "split": {"validation": 0.0, "test": 0.0}}
    (place / "config.yaml").write_text(json.dumps(config))
    made = build(load_yaml(place / "config.yaml", BuildConfig), place / "theirs", progress=False)
    write_json(place / "run" / "run.json", {"dataset": str(place / "theirs")})
    write_json(place / "run" / "measurements" / "dataset.json", dict(made))
    text = render_dataset_card(place / "theirs", place / "run")
    assert "imported ready-made with their" in text and "nobody sampled or judged an answer here" in text
    for words in ("members answered", "judges scored", "with every judge score\n", "judge | criteria", "temperature"):
        assert words not in text, words
    assert "license: other\nlicense_name: unknown\n" in text or "license: unknown\n" in text
    (place / "theirs" / "README.md").write_text(text)
    checks = check_folder(place / "theirs", "dataset")
    assert exit_code(checks) == 0, as_text(checks, "dataset")


@pytest.mark.slow
def test_stock_trl_trains_on_the_frames_as_the_card_says(place, card):
    from dataset_builder.toy_models import save_tiny

    builder([*(word.replace("NAMESPACE/", "") for word in typed(card, "--shape images ")), "--quiet"])
    save_tiny("qwen2_vl", place / "model")
    names: dict = {}
    exec(blocks(card, "python")[1], names)
    plain = {"use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    names["train"](str(place / "model"), max_steps=1, per_device_train_batch_size=2, **plain)


# --- where its numbers come from -----------------------------------------------------------------------------------


# Numbers that are words: of the verifier's, and labels of tables.
LABELS = (
    r"judges \(0–1\)",
    r"\| zoo, 95 % interval",
    r"\| mean score \(0–1\)",
    r"\| answers to a question \| 1 \| 2 \|",
)
# What `trace` does not do to rows: other names, other ranges, more answers, no videos. By file and columns.
FLIPPED = "hash(response_id) % 3 = 0"
EDITS = {
    "members": ("responses", f"CASE WHEN model = 'dot' AND {FLIPPED} THEN 'eel' ELSE model END AS model"),
    "answers of ada": ("responses", f"CASE WHEN {FLIPPED} THEN 'bee' ELSE model END AS model"),
    "pairs of ada": ("preferences", "'ada' AS model_rejected"),
    "ranges": (
        "responses",
        "list_transform(scores, lambda s: struct_update(s, low := 0.5::DOUBLE, high := 3.5::DOUBLE)) AS scores",
    ),
    "failed scores": (
        "responses",
        f"CASE WHEN {FLIPPED} THEN list_transform(scores, lambda s: struct_update(s, score := NULL)) ELSE scores END AS"
        " scores",
    ),
    "judges": (
        "responses",
        f"CASE WHEN {FLIPPED} THEN list_transform(scores, lambda s: struct_update(s, judge := 'a' || s.judge)) ELSE"
        " scores END AS scores",
    ),
}


def test_every_number_of_the_card_is_traced_to_an_artefact(mixed, tmp_path):
    """But those of ``configs`` and ``dataset_info``, which test_hub_fields.py compares with the data."""
    from cards.verify.dataset import _WORDING
    from tests.cards.tracing import Card, trace

    folder, wording = tmp_path / "all", (*_WORDING, *LABELS)
    dataset = shutil.copytree(Run(mixed).dataset, folder / "mmaip-v")
    (dataset / "README.md").write_text("---\npretty_name: MMAIP-V\n---\ntext\n")
    shutil.copytree(mixed / "measurements", folder / "measurements")
    write_json(folder / "run.json", {"dataset": str(dataset), "dataset_fingerprint": "f" * 16})
    control = {"coverage": {"zoo": 0.964, "single": 0.71}, "chosen_correct": {"zoo": 0.957, "single": 0.83}}
    write_json(folder / "measurements" / "control.json", control)
    selection = {"length": {"after": {"longer": 0.41, "spearman": -0.12}}, "disagreement": {"mean": 0.2}}
    change(dataset / "selection.json", lambda content: content.update(selection))

    def render(place):
        return render_dataset_card(place / "mmaip-v", Run(place, place / "mmaip-v"))

    found = trace(render, folder, wording=wording, salts=3)
    assert len(found.numbers) > 170
    assert found.of("of the clips in `preferences`") and found.of("| msvd |")
    card, moved = Card(render(folder), wording), set(found.sources)
    kept = {path: path.read_bytes() for path in dataset.rglob("*.parquet")}
    for config, select in EDITS.values():
        for path in (dataset / config).glob("*.parquet"):
            rewrite(path, select)
        moved |= card.moved(Card(render(folder), wording))
        for path, content in kept.items():
            path.write_bytes(content)
    for edit in (videos_all, videos_none, pairs_none, answers_twice):
        edit(dataset)
        moved |= card.moved(Card(render(folder), wording))
        for path, content in kept.items():
            path.write_bytes(content)
    left = [(n.text, n.context) for place, n in enumerate(card.numbers) if place not in moved]
    assert not left


def edit_rows(dataset, config: str, edit) -> None:
    """Write a config's rows again as a function of the list of them gives them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in (dataset / config).glob("*.parquet"):
        table = pq.ParquetFile(path).read()
        pq.write_table(pa.Table.from_pylist(edit(table.to_pylist()), table.schema), path)


def videos_all(dataset) -> None:
    for config in ("preferences", "benchmark"):
        edit_rows(dataset, config, lambda rows: [{**row, "video": {"bytes": b"x", "path": "x.mp4"}} for row in rows])


def videos_none(dataset) -> None:
    for config in ("preferences", "benchmark"):
        edit_rows(dataset, config, lambda rows: [{**row, "video": None} for row in rows])


def pairs_none(dataset) -> None:
    edit_rows(dataset, "benchmark", lambda rows: rows[:1])


def answers_twice(dataset) -> None:
    def twice(rows):
        return [{**row, "response_id": f"{row['response_id']}{side}"} for row in rows for side in ("", "-b")]

    edit_rows(dataset, "responses", twice)
