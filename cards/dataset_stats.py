"""What the dataset card says of answers, scores and pairs: each figure a plain function of released rows.

The card reads the rows through `cards.run_folder`, ``python -m cards verify`` through `cards.verify.rows`; both call
these functions, so that a figure has one definition. Intervals take the video as the unit that was sampled.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from dataset_builder.control import reference_match
from dataset_builder.judges.base import judge_values
from dataset_builder.selection.balance import correlation, ranks
from eval.stats import Estimate, cluster_mean, krippendorff_alpha

Row = Mapping[str, Any]
STEPS = 6  # columns of the table of coverage, at most


def reference_judge(provenance: Mapping, names: Iterable[str]) -> str | None:
    """Name of the judge that compares with the true answers: by its kind, where ``provenance.json`` names the judges,
    else by its name; None without one.

    Args:
        provenance: of the dataset.
        names: of the judges in the rows.
    """
    kinds = {judge["name"]: judge.get("kind") for judge in provenance.get("judges") or []}
    of_kind = [name for name, kind in kinds.items() if kind == "reference"]
    names = list(names)
    by_name = [name for name in names if name not in kinds and name.startswith("reference")]
    return next((name for name in (*of_kind, *by_name) if name in names), None)


def truth_readers(provenance: Mapping, names: Iterable[str]) -> list[str]:
    """Names of the judges that are given the true answers: the reference judge, and those whose prompt has a place
    for them.

    Args:
        provenance: of the dataset.
        names: of the judges in the rows.
    """
    names = list(names)
    compares = reference_judge(provenance, names)
    prompted = {
        judge["name"]
        for judge in provenance.get("judges") or []
        for settings in (judge.get("settings") or {}).values()
        if any("{reference" in text for text in (settings or {}).values() if isinstance(text, str))
    }
    return [name for name in names if name == compares or name in prompted]


def judge_agreement(answers: Sequence[Row]) -> list[dict]:
    """How far every two judges agree on the answers that both scored, each judge's value normalised to 0–1.

    Args:
        answers: rows with ``scores`` and ``video_id``.

    Returns:
        One entry for every two judges that share an answer: ``a, b, answers, alpha`` (Krippendorff's, interval level),
        its 95 % interval ``low, high`` clustered by video, and Spearman's ``rho``; None where a judge gave every
        answer the same.
    """
    values = [judge_values(row["scores"] or []) for row in answers]
    found = []
    for a, b in combinations(sorted({name for row in values for name in row}), 2):
        both = [n for n, row in enumerate(values) if row.get(a) is not None and row.get(b) is not None]
        if len(both) < 2:
            continue
        sides = [[values[n][name] for n in both] for name in (a, b)]
        measured = krippendorff_alpha(sides, "interval", [answers[n]["video_id"] for n in both])
        told = not math.isnan(measured.value)
        rho = correlation(*(ranks(np.round(np.array(side), 9)) for side in sides))
        entry = {"a": a, "b": b, "answers": len(both), "alpha": measured.value if told else None, "rho": rho}
        found.append({**entry, "low": measured.low if told else None, "high": measured.high if told else None})
    return found


def length_of_judges(answers: Sequence[Row]) -> dict[str, float | None]:
    """Spearman's correlation of an answer's characters with each judge's value of it; None where one is constant."""
    found: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for row in answers:
        for judge, value in judge_values(row["scores"] or []).items():
            if value is not None:
                found[judge][0].append(len(row["response"] or ""))
                found[judge][1].append(round(value, 9))
    return {judge: correlation(*(ranks(np.array(side)) for side in sides)) for judge, sides in sorted(found.items())}


def length_of_pairs(pairs: Sequence[Row]) -> dict[str, Estimate] | None:
    """How often the chosen answer is the ``longer``, the ``shorter`` one or of ``equal`` length in characters.

    Args:
        pairs: ``chosen`` and ``rejected`` texts with ``video_id``.

    Returns:
        Shares of pairs with intervals clustered by video; None without pairs.
    """
    if not pairs:
        return None
    signs = np.sign([len(pair["chosen"]) - len(pair["rejected"]) for pair in pairs])
    videos = [pair["video_id"] for pair in pairs]
    sides = {"longer": 1, "equal": 0, "shorter": -1}
    return {name: cluster_mean((signs == sign).astype(float), videos) for name, sign in sides.items()}


def coverage(answers: Mapping[str, Sequence[Row]], judge: str | None) -> dict | None:
    """Share of questions with at least one right answer among k, as a function of k: of the zoo and of each member.

    k answers are drawn from the n of a question without putting back; the share is exact over all draws, that is
    ``1 - C(wrong, k) / C(n, k)``. Right is what the reference judge's ``match`` is 1 for.

    Args:
        answers: by question, rows with ``scores``, ``model`` and ``video_id``.
        judge: the reference judge; None measures nothing.

    Returns:
        ``{questions, steps: [k, …], zoo: [Estimate], members: {name: [Estimate]}}``: an estimate for every k that each
        question has as many answers for; None where no question was judged so.
    """
    counts: dict[str | None, list[tuple[int, int, str]]] = defaultdict(list)
    for rows in answers.values() if judge is not None else ():
        right: dict[str | None, list[bool]] = defaultdict(list)
        for row in rows:
            match = reference_match(row, judge)
            if match is not None:
                right[None].append(match == 1)
                right[row["model"]].append(match == 1)
        for name, marks in right.items():
            counts[name].append((len(marks), sum(marks), rows[0]["video_id"]))
    if not counts[None]:
        return None
    steps = _steps(min(n for n, _, _ in counts[None]))
    curves = {name: _curve(counts[name], steps) for name in (None, *sorted(name for name in counts if name))}
    return {"questions": len(counts[None]), "steps": steps, "zoo": curves.pop(None), "members": curves}


def _steps(most: int) -> list[int]:
    """1, 2, 3 … as many as there are; of many, doubling and ending at all."""
    if most <= STEPS:
        return list(range(1, most + 1))
    doubling = [2**power for power in range(STEPS - 1) if 2**power < most]
    return [*doubling, most]


def _curve(counts: list[tuple[int, int, str]], steps: list[int]) -> list[Estimate]:
    fewest = min(n for n, _, _ in counts)
    videos = [video for _, _, video in counts]
    shares = ([1 - math.comb(n - right, k) / math.comb(n, k) for n, right, _ in counts] for k in steps if k <= fewest)
    return [cluster_mean(values, videos) for values in shares]


def criterion_scores(answers: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Scores (0–1 by the declared range) by ``judge · criterion``, then by member; failed scores are left out."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in answers:
        for s in row.get("scores") or []:
            if s["score"] is not None:
                part = (s["score"] - s["low"]) / (s["high"] - s["low"])
                found[f"{s['judge']} · {s['criterion']}"][row["model"]].append(part)
    return {name: dict(sorted(members.items())) for name, members in found.items()}


def criterion_means(answers: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Means of :func:`criterion_scores` by member, then by ``judge · criterion``."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for name, members in sorted(criterion_scores(answers).items()):
        for member, values in members.items():
            found[member][name] = math.fsum(values) / len(values)
    return dict(sorted(found.items()))


def self_judged(answers: Sequence[Row]) -> list[dict]:
    """Judges that are a member of the zoo, told by equal revisions, and how they score themselves.

    Returns:
        ``judge, member`` (one model under several names is all of them), ``revision``, and mean values (0–1) of that
        judge and of all others, for the member's answers and for those of the rest: ``own, rest, others_own,
        others_rest``; None where there is nothing.
    """
    members: dict[str, set[str]] = defaultdict(set)
    for row in answers:
        if row.get("model_revision"):
            members[row["model_revision"]].add(row["model"])
    judges = {(s["judge"], s["judge_revision"]) for row in answers for s in row["scores"] or []}
    same = sorted((judge, revision) for judge, revision in judges if revision in members)
    found = []
    for judge, revision in same:
        parts: dict[str, list[float]] = defaultdict(list)
        for row in answers:
            own = row["model"] in members[revision]
            for name, value in judge_values(row["scores"] or []).items():
                if value is not None:
                    side = "own" if own else "rest"
                    parts[side if name == judge else f"others_{side}"].append(value)
        means = {key: _mean(parts[key]) for key in ("own", "rest", "others_own", "others_rest")}
        found.append({"judge": judge, "member": ", ".join(sorted(members[revision])), "revision": revision, **means})
    return found


def sources(questions: Sequence[Row], pairs: Sequence[Row], held: Mapping[str, bool]) -> list[dict]:
    """One row for every source and licence.

    Args:
        questions: with ``question_id, video_id, source, license``.
        pairs: with ``question_id``.
        held: by video id, whether rows of preferences or benchmark hold the video's bytes; videos in neither are not
            in it.

    Returns:
        ``source, license, clips, questions, pairs``, and of the clips: ``embedded``, ``ids_only`` (rows have a null
        video) and ``elsewhere`` (in no pair and no row of the benchmark).
    """
    paired: dict[str, int] = defaultdict(int)
    for pair in pairs:
        paired[pair["question_id"]] += 1
    table: dict[tuple, dict] = {}
    for row in questions:
        key = (row.get("source") or "not stated", row.get("license") or "not stated")
        entry = table.setdefault(key, {"videos": set(), "questions": 0, "pairs": 0})
        entry["videos"].add(row["video_id"])
        entry["questions"] += 1
        entry["pairs"] += paired[row["question_id"]]
    found = []
    for (source, license), entry in sorted(table.items()):
        state = [held.get(video) for video in entry["videos"]]
        clips = {"clips": len(state), "embedded": state.count(True), "ids_only": state.count(False)}
        counts = {"questions": entry["questions"], "pairs": entry["pairs"], "elsewhere": state.count(None)}
        found.append({"source": source, "license": license, **clips, **counts})
    return found


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
