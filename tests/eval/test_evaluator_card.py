"""The card of an evaluator's repo: agreement, bias and debiased figures come from rows that lie in the repo."""

from __future__ import annotations

import json
import random

import pytest

from dataset_builder.errors import KitError
from eval.audit import audit
from eval.audit.rows import NAME, findings_of, read_rows, write_rows
from eval.evaluator import VQAEvaluator
from eval.evaluator.agreement import FILE, FOLDER, compared, read_verdicts, said, verdict_rows, write_verdicts
from eval.results import Results
from tests.eval.planted_judges import Honest, planted_cases

VIDEOS, MISSED, PASSED = 40, 0.2, 0.3


def results(name: str, seed: int = 0, judge: str = "reference") -> Results:
    """A model's answers to three questions about each video, most of them right."""
    rng = random.Random(seed)
    rows = []
    for video in range(VIDEOS):
        for number in range(3):
            right = int(rng.random() < 0.6)
            rows.append(
                {
                    **{"question_id": f"v{video}-{number}", "video_id": f"v{video}", "question_type": "colour"},
                    **{"question": "what ?", "answers": ["red"], "response": "red" if right else f"blue {number}"},
                    **{"correct": right, "score": float(right), "error": None, "probability": None},
                }
            )
    return Results(name, name, "0" * 16, judge={"name": judge, "fingerprint": judge[0] * 16}, rows=rows)


def judged(truth: Results, seed: int, missed: float = MISSED, passed: float = PASSED) -> Results:
    """The same answers by a judge that errs so often."""
    rng = random.Random(seed)
    rows = []
    for row in truth.rows:
        wrong = rng.random() < (missed if row["correct"] else passed)
        rows.append({**row, "correct": row["correct"] ^ wrong, "probability": 0.5 + 0.4 * (row["correct"] ^ wrong)})
    rows[0] = {**rows[0], "correct": None, "error": "no verdict"}
    return Results(truth.name, truth.model, "0" * 16, judge={"name": "verifier", "fingerprint": "v" * 16}, rows=rows)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """Verdicts of a judge on two models' answers, the truth, the judge without frames, and gold labels."""
    rows = []
    for seed, name in enumerate(("base", "dpo")):
        truth = results(name, seed)
        rows += verdict_rows(judged(truth, seed + 5), "evaluator") + verdict_rows(truth, "truth")
        gold = [row for row in verdict_rows(truth, "gold") if int(row["question_id"][1:].split("-")[0]) % 2]
        rows += gold if name == "dpo" else []
    rows += verdict_rows(judged(results("dpo", 1), 9, 0.5, 0.5), "without_frames")
    return write_verdicts(tmp_path_factory.mktemp("verdicts") / FILE, rows)


def test_rows_come_back_as_they_were_written(verdicts, tmp_path):
    rows = read_verdicts(verdicts)
    assert write_verdicts(tmp_path / "again.parquet", rows).read_bytes() == verdicts.read_bytes()
    assert {row["role"] for row in rows} == {"evaluator", "truth", "gold", "without_frames"}
    assert sum(row["correct"] is None for row in rows) == 3
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(KitError, match=r"bad\.parquet: cannot be read as verdicts"):
        read_verdicts(tmp_path / "bad.parquet")


def test_figures_are_those_of_the_statistics(verdicts):
    from eval.stats import cluster_mean, cohen_kappa, debiased_mean

    rows = read_verdicts(verdicts)
    base, dpo, blind = compared(rows)
    truth, own = results("base", 0).rows[1:], judged(results("base", 0), 5).rows[1:]
    sides, videos = [[row["correct"] for row in side] for side in (own, truth)], [row["video_id"] for row in own]
    assert base.answers == 119 and base.kappa == cohen_kappa(*sides, videos)
    assert base.same == cluster_mean([float(a == b) for a, b in zip(*sides)], videos)
    right = [a for a, b in zip(*sides) if b]
    assert base.missed == pytest.approx(1 - sum(right) / len(right)) and 0.1 < base.missed < 0.3
    assert (blind.other, blind.answers_of, dpo.other) == ("without_frames", "dpo", "truth")
    first, second = said(rows)
    assert (first.unjudged, first.gold_videos, first.debiased, first.blind) == (1, 0, None, None)
    labels = [row["correct"] if int(row["video_id"][1:]) % 2 else None for row in results("dpo", 1).rows]
    own = [row["correct"] for row in judged(results("dpo", 1), 6).rows]
    every = [row["video_id"] for row in results("dpo", 1).rows]
    assert second.gold_videos == 20 and second.debiased == debiased_mean(own, every, labels)


def test_the_card_shows_them_and_says_what_was_not_measured(verdicts, tmp_path):
    plain = tmp_path / "plain"
    VQAEvaluator({"kind": "reference"}).save_pretrained(plain)
    text = (plain / "README.md").read_text()
    assert "With other judges or labels on the same answers: **not measured**" in text
    assert "Bias of this judge: **not measured** (no audit was made" in text and "Cohen's κ" not in text
    assert not (plain / FOLDER).exists()
    out = tmp_path / "E"
    VQAEvaluator({"kind": "reference"}, verdicts=verdicts).save_pretrained(out)
    text = (out / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| base |")]
    assert rows[0].startswith("| base | the truth | 119 | ") and rows[1].startswith("| base | 120 | 1 | ")
    assert rows[1].endswith("| not measured | – |") and "synthetic world" in text
    assert "| dpo | itself, shown no frames |" in text and "| 20 |" in text
    for command in ("gold-size RESULTS.json", "label RESULTS.json", "debias RESULTS.json"):
        assert f"python -m eval {command}" in text
    again = VQAEvaluator.from_pretrained(out)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / FOLDER / FILE).read_bytes() == (out / FOLDER / FILE).read_bytes()
    assert (tmp_path / "again" / "README.md").read_text() == text
    VQAEvaluator({"kind": "reference"}).save_pretrained(out)  # and what is no longer known goes
    assert not (out / FOLDER).exists()


def test_an_audits_findings_come_from_its_rows(tmp_path):
    kept: list = []
    record = audit(Honest(), planted_cases(20), probes=["errors", "length", "retest"], draws=200, rows=kept)
    path = write_rows(tmp_path / NAME, kept)
    rows = read_rows(path)
    assert [one.as_dict() for one in findings_of(rows, 200, record["seed"])] == record["findings"]
    rows[0]["values"][0] = 1 - rows[0]["values"][0]
    assert [one.as_dict() for one in findings_of(rows, 200, record["seed"])] != record["findings"]
    path.write_text(json.dumps({"format": "other"}))
    with pytest.raises(KitError, match="holds no rows of an audit"):
        read_rows(path)
    with pytest.raises(KitError, match="finding 1: KeyError"):
        findings_of([{}], 10, 0)


def test_every_number_of_the_card_comes_from_an_artefact(verdicts, tmp_path):
    from cards.verify.evaluator_rows import WORDING
    from tests.cards.tracing import trace

    judge = VQAEvaluator({"kind": "reference"}).judge
    record = audit(judge, planted_cases(30), probes=["length"], draws=100)
    (tmp_path / "audit.json").write_text(json.dumps({key: record[key] for key in record if key != "judge"}))
    (tmp_path / FILE).write_bytes(verdicts.read_bytes())
    record = {"judge": record["judge"]}  # a change of which makes it the audit of another judge

    def render(folder, also=""):
        content = json.loads((folder / "audit.json").read_text()) | record
        (folder / "whole").mkdir(exist_ok=True)
        (folder / "whole" / "audit.json").write_text(json.dumps(content))
        made = VQAEvaluator({"kind": "reference"}, audit=folder / "whole", verdicts=folder / FILE)
        return str(made.generate_model_card()) + also

    # the last is the revision of the reference judge: the kit's own
    words = (*WORDING, r"points \(of 100\)", r"at the 5 % level", r"given from 20 on", r"reference, 1;")
    found = trace(render, tmp_path, patterns=("audit.json", FILE), wording=words)
    assert not found.untraced, "\n".join(f"line {n.line}: {n.text}: {n.context}" for n in found.untraced)
    assert len(found.numbers) > 60
    planted = trace(
        lambda folder: render(folder, "\nIt is 97 % right.\n"), tmp_path, patterns=(FILE,), salts=1, wording=words
    )
    assert "97" in {number.text for number in planted.untraced}
