"""``audit-judge``: how biased a judge is, on answers whose truth is known."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_builder.errors import EXIT_UNJUDGED, KitError
from eval.settings import EvalSettings, dataset_name

if TYPE_CHECKING:
    from eval.audit.cases import Case

LIMIT = 200  # questions: about thirty verdicts each

_EPILOG = """Writes DIR/audit.json, DIR/audit.md, DIR/audit.png and DIR/audit_rows.json (the numbers behind them).
Verdicts are kept in DIR/.audit-work, so that a stopped audit goes on where it was. A set of one's own is a JSONL file,
one question a line:

  {"id": "q7", "video": "clips/kitchen.mp4", "question": "what is she cutting ?", "answers": ["an onion"],
   "right": ["an onion", "onions"], "wrong": ["a tomato"],
   "responses": [{"model": "qwen-7b", "response": "a red onion", "right": true}]}

`right` is `answers` when it is left out, `wrong` a right answer to another question of the same `question_type`;
`responses` are for self-preference only. Videos are sought from the file's own folder."""


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    top = argparse.ArgumentParser(
        prog="python -m eval audit-judge",
        description="Measure error rates of a judge, and what length, style, hidden instructions, the author, the "
        "number of frames, the wrong video, repetition and order do to its verdicts.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("judge", metavar="JUDGE.yaml", help="settings with a `judge:`, as for MMAIP_V_EVAL")
    source = top.add_mutually_exclusive_group()
    source.add_argument("--dataset", help="dataset folder or Hub id with a `benchmark` (default: MMAIP_V_DATA)")
    source.add_argument("--set", metavar="FILE", help="a set of one's own (JSONL), see below")
    top.add_argument("--output", metavar="DIR", required=True, help="folder for the table, the picture and the JSON")
    top.add_argument("--split", default="test", help="of the dataset (default: %(default)s)")
    top.add_argument("--media", metavar="FILE", help="media.json of a build, for a dataset without videos")
    top.add_argument(
        "--limit", type=int, default=LIMIT, help="questions, whole videos at random (default: %(default)s)"
    )
    top.add_argument("--pair-judge", metavar="YAML", help="a pair judge (the fields of a build's `confirm:`)")
    top.add_argument("--own", nargs="+", metavar="MODEL", default=[], help="models of the judge's own family")
    top.add_argument("--probes", nargs="+", metavar="NAME", help="only these (default: all)")
    top.add_argument("--injection-cases", type=int, help="videos whose wrong answers get injections")
    top.add_argument("--seed", type=int, default=0, help="of every draw (default: %(default)s)")
    top.add_argument("--max-unjudged", type=float, help="share without a verdict from which the exit code is 5")
    top.add_argument("--device", help="where a local judge runs")
    return top


def run(arguments: list[str]) -> int:
    """Audit, print, write."""
    top = parser()
    options = top.parse_args(arguments)
    if options.limit < 1 or (options.injection_cases is not None and options.injection_cases < 1):
        top.error("--limit and --injection-cases must be at least 1")
    from dataset_builder.settings import ConfirmConfig, load_yaml, parse_judge
    from dataset_builder.stages import ShardStore
    from eval.audit.figure import draw_audit
    from eval.audit.injected import CASES
    from eval.audit.report import audit_markdown
    from eval.audit.rows import NAME, write_rows
    from eval.audit.run import audit
    from eval.results import write_text

    settings = load_yaml(Path(options.judge), EvalSettings)
    config = parse_judge(dict(settings.judge), f"{options.judge}: judge")
    pair_config = load_yaml(Path(options.pair_judge), ConfirmConfig) if options.pair_judge else None
    output = Path(options.output)
    store = ShardStore(output / ".audit-work")  # better now than after hours of judging
    cases, name = read_cases(options, settings)
    device = options.device or settings.device
    rows: list[dict[str, Any]] = []
    with quiet_models(config, pair_config):
        record = audit(
            cases=cases,
            set_name=name,
            own=options.own,
            probes=options.probes,
            injection_cases=options.injection_cases or CASES,
            seed=options.seed,
            store=store,
            progress=True,
            rows=rows,
            **make_judges(config, pair_config, store.work, device),
        )
    report = audit_markdown(record)
    write_text(output / "audit.json", json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(output / "audit.md", report + "\n")
    write_rows(output / NAME, rows)
    draw_audit(record, output / "audit.png")
    print(report)
    limit = settings.max_unjudged if options.max_unjudged is None else options.max_unjudged
    if record["unjudged"] > limit * record["asked"]:
        share = record["unjudged"] / record["asked"]
        print(f"error: {share:.1%} of the verdicts are missing (limit {limit:.1%}); see above", file=sys.stderr)
        return EXIT_UNJUDGED
    return 0


def read_cases(options: argparse.Namespace, settings: EvalSettings) -> tuple[list[Case], str]:
    """The questions of the audit, and what their set is called."""
    from dataset_builder.settings import near
    from eval.audit.cases import cases_of_benchmark, draw_cases, read_responses, read_set

    if options.set:
        cases, name = read_set(options.set, options.seed), Path(options.set).name
    else:
        from eval.runner import load_benchmark

        dataset = options.dataset or dataset_name()
        items = load_benchmark(dataset, options.split, options.media or settings.media)
        responses = read_responses(dataset, options.split) if options.own else None
        cases = cases_of_benchmark(items, options.seed, responses)
        name = f"{Path(dataset).name} ({options.split})" if Path(dataset).is_dir() else f"{dataset} ({options.split})"
    models = {known.model for case in cases for known in case.responses}
    for model in options.own:
        if models and model not in models:
            hint = near(model, models) or f"; there are {', '.join(sorted(models))}"
            raise KitError(f"--own: nobody called {model!r} has answered{hint}")
    return draw_cases(cases, options.limit, options.seed), name


def make_judges(config: Any, pair_config: Any, work: Path, device: str) -> dict[str, Any]:
    """The judge, the one that is asked again, the one without frames, and the pair judge, as `audit` takes them."""
    from dataset_builder.judges import make_judge, make_pair_judge, without_frames
    from dataset_builder.models import CallCache

    served = is_served(config) or is_served(pair_config)
    cache = CallCache(work / "calls.sqlite") if served else None
    judge = make_judge(config, device, cache)
    pair_judge = make_pair_judge(pair_config, cache, device) if pair_config is not None else None
    again = None
    if is_served(config):  # a cache of its own: the first replies must not answer the second asking
        again = make_judge(config, device, CallCache(work / "calls-again.sqlite"))
    return {"judge": judge, "again": again, "blind": without_frames(judge), "pair_judge": pair_judge}


def is_served(config: Any) -> bool:
    """Whether a judge's settings name an endpoint."""
    return getattr(config, "endpoint", None) is not None


def quiet_models(*configs: Any) -> Any:
    """While local models judge: one thread as everywhere, and no bars but ours; nothing where all are endpoints."""
    from contextlib import nullcontext

    if all(getattr(config, "model", None) is None or is_served(config) for config in configs):
        return nullcontext()
    from dataset_builder.stages.local import model_room

    return model_room(1)
