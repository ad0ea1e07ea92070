"""An audit: every probe that can be run for a judge on a set, and of every other one why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dataset_builder.errors import KitError
from dataset_builder.settings import near
from dataset_builder.stages import ShardStore
from eval.audit import injected, pairs
from eval.audit.asking import AGAIN, BLIND, FIRST, SHUFFLED, KeptJudge, ask_all
from eval.audit.cases import Case, set_fingerprint
from eval.audit.findings import Finding, Measure, Unmeasured, finding, with_p_values
from eval.audit.looking import BLACK, NO_FRAMES, ORDER, RETEST, FrameCount, OtherVideo
from eval.audit.probes import Errors, Length, SelfPreference, Style
from eval.audit.rows import row_of
from eval.audit.sheet import Probe, Setup, Sheet

if TYPE_CHECKING:
    from dataset_builder.judges import Judge, PairJudge
    from dataset_builder.judges.injections import Injection

FORMAT = "mmaip-v-audit/1"
PROBES: tuple[Probe, ...] = (
    Errors(),
    Length(),
    Style(),
    SelfPreference(),
    FrameCount(),
    OtherVideo(),
    BLACK,
    NO_FRAMES,
    RETEST,
    ORDER,
)
_SEPARATE = {injected.NAME: injected.TITLE, pairs.NAME: pairs.TITLE}  # suites with an asking of their own
# In the order of the report: what the answer's text does, then what the video does, then what should do nothing.
_ORDER = (Errors.name, Length.name, Style.name, injected.NAME, SelfPreference.name, pairs.NAME)
TITLES = {name: title for name, title in ({probe.name: probe.title for probe in PROBES} | _SEPARATE).items()}
TITLES = {name: TITLES[name] for name in dict.fromkeys((*_ORDER, *TITLES))}
DRAWS = 20_000
NOT_ASKED = "it was not asked for"


def audit(
    judge: Judge,
    cases: Sequence[Case],
    *,
    again: Judge | None = None,
    blind: Judge | None = None,
    pair_judge: PairJudge | None = None,
    own: Iterable[str] = (),
    probes: Iterable[str] | None = None,
    injections: Sequence[Injection] | None = None,
    injection_cases: int = injected.CASES,
    set_name: str = "",
    seed: int = 0,
    draws: int = DRAWS,
    store: ShardStore | None = None,
    progress: bool = False,
    rows: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Measure the biases of a judge.

    Args:
        judge: any judge of `dataset_builder.judges`.
        cases: questions with their truth, see `eval.audit.cases`.
        again: who is asked for test-retest; the same object by default (an endpoint judge needs one whose cache of
            calls does not know the first replies).
        blind: the same judge without frames, where there is one.
        pair_judge: for the order of two answers.
        own: names of models of the judge's own family.
        probes: names out of ``TITLES``; all by default.
        injections: attacks; all of the suite by default.
        injection_cases: how many videos' wrong answers they are put into.
        set_name: what the record calls the set.
        seed: of every draw.
        draws: random sign flips of each test.
        store: where verdicts of local judges are kept, so that a stopped audit goes on.
        progress: show bars.
        rows: gets the numbers behind the findings, see `eval.audit.rows`.

    Returns:
        JSON values: ``judge`` (see `eval.fingerprint.judge_record`), ``parameters`` of a local judge's model, ``set``,
        ``findings``, ``not_measured`` (reason by probe) and how many verdicts are missing. No times: the same audit
        gives the same record.

    Raises:
        KitError: there are no cases, a probe's name is unknown, or a judge's model cannot be asked.
    """
    chosen = _chosen(probes)
    if not cases:
        raise KitError("audit: there are no questions to audit the judge on")
    endpoint = getattr(judge, "is_endpoint", False)
    setup = Setup(
        cases=cases,
        needs_frames=judge.needs_frames,
        num_frames=judge.num_frames,
        is_endpoint=endpoint,
        asked_anew=again is not None or not endpoint,
        own=frozenset(own),
        blind=blind is not None,
    )
    refused = {name: NOT_ASKED for name in TITLES if name not in chosen}
    for probe in PROBES:
        if probe.name in chosen and (problem := probe.problem(setup)):
            refused[probe.name] = problem
    running = [probe for probe in PROBES if probe.name not in refused]
    judges = {FIRST: judge, AGAIN: again or judge, SHUFFLED: judge, **({BLIND: blind} if blind else {})}
    asks = {ask for probe in running for ask in probe.asks(setup)}
    kept = {name: KeptJudge(one, _store_for(one, store), f"audit-{name}") for name, one in judges.items()}
    readings = _ask(asks, cases, kept, seed, f"audit of {judge.name}", progress)
    sheet = Sheet(setup, readings)
    measured = {probe.name: lambda probe=probe: probe.measures(sheet) for probe in running}
    report: dict[str, Any] = {}
    if injected.NAME in chosen:

        def inject() -> list[Measure]:
            measures, found = injected.measure_injected(kept[FIRST], cases, injection_cases, seed, injections, progress)
            report.update(found)
            return measures

        measured[injected.NAME] = inject
    if pairs.NAME in chosen:
        if pair_judge is None:
            refused[pairs.NAME] = "no pair judge was given (--pair-judge)"
        else:
            measured[pairs.NAME] = lambda: pairs.measure_pairs(
                pair_judge, cases, _store_for(pair_judge, store), progress
            )
    findings, unmeasured = _findings(measured, draws, seed, [] if rows is None else rows)
    from eval.fingerprint import judge_record

    errors = [reading.error or "the judge gave no verdict" for reading in readings.values() if reading.accept is None]
    return {
        "format": FORMAT,
        "judge": judge_record(judge),
        "parameters": parameters_of(judge),
        "pair_judge": judge_record(pair_judge) if pair_judge is not None else None,
        "own": sorted(setup.own),
        "set": {
            "name": set_name,
            "fingerprint": set_fingerprint(cases),
            "cases": len(cases),
            "videos": len({case.video_id for case in cases}),
            "right_are_references": all(set(case.right) <= set(case.answers) for case in cases),
        },
        "seed": seed,
        "draws": draws,
        "asked": len(readings),
        "unjudged": len(errors),
        "failures": dict(Counter(sorted(errors)).most_common(10)),
        "findings": [one.as_dict() for one in findings],
        "not_measured": {**refused, **unmeasured},
        "injections": report or None,
    }


def _chosen(probes: Iterable[str] | None) -> set[str]:
    if probes is None:
        return set(TITLES)
    chosen = list(probes)
    for name in chosen:
        if name not in TITLES:
            known = near(name, TITLES) or f"; there are {', '.join(TITLES)}"
            raise KitError(f"audit: there is no probe {name!r}{known}")
    return set(chosen)


def _store_for(judge: Any, store: ShardStore | None) -> ShardStore | None:
    return None if getattr(judge, "is_endpoint", False) else store


def _ask(asks: set, cases: Sequence[Case], judges: Mapping[str, Any], seed: int, title: str, progress: bool) -> dict:
    from tqdm import tqdm

    with tqdm(total=len(asks), desc=title, unit="answer", disable=not progress) as bar:

        def on_block(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return ask_all(asks, cases, judges, seed, on_block)


def _findings(
    measured: Mapping[str, Callable[[], Iterable[Measure]]], draws: int, seed: int, rows: list[dict[str, Any]]
) -> tuple[list[Finding], dict[str, str]]:
    """All findings in the order of ``TITLES``, and the reason why a probe, or a part of it, has none."""
    found, unmeasured = [], {}
    for name in TITLES:
        if name not in measured:
            continue
        reasons, parts = {}, 0
        try:
            for measure in measured[name]():
                parts += 1
                try:
                    found.append((finding(name, measure), measure.values))
                    rows.append(row_of(name, measure))
                except Unmeasured as reason:
                    reasons[f"{name}.{measure.name}"] = str(reason)
        except Unmeasured as reason:
            unmeasured[name] = str(reason)
            continue
        unmeasured.update({name: next(iter(reasons.values()))} if len(reasons) == parts else reasons)
    return with_p_values(found, draws, seed), unmeasured


def parameters_of(judge: Any) -> int | None:
    """How many parameters a local judge's model has; None for an endpoint, and for a judge without a model."""
    model = getattr(getattr(judge, "model", None), "model", None)
    count = getattr(model, "num_parameters", None)
    return int(count()) if callable(count) else None
