"""``python -m cards finish``: a run folder that can be pushed, of what ``recipes/iter_w2s.py`` left by itself.

It takes the words of the training command, so that nothing about model, data and decoding has to be said twice, asks
the test split once of base and last round, and writes what a release writes: results, figures, cards, report.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cards.push.plan import DATASET_REPO
from cards.release_config import EvaluatorConfig, ReleaseConfig
from cards.stage_log import StageLog, read_json, write_json
from dataset_builder.errors import KitError

if TYPE_CHECKING:
    from recipes.settings import Settings


def add_finish(verbs: argparse._SubParsersAction) -> None:
    """Add the verb to the room's command line."""
    verb = verbs.add_parser(
        "finish",
        help="test what recipes/iter_w2s.py trained and write its cards, so that it can be pushed",
        usage="python -m cards finish [--name NAME] [--evaluator FILE.yaml] --config FILE.yaml [--any_field value]",
        epilog="All other words are those of the training command: --config FILE.yaml [--any_field value].",
        allow_abbrev=False,
    )
    verb.add_argument("--name", help="of the model repo; the output folder's name by default")
    verb.add_argument("--evaluator", metavar="FILE.yaml", help="judge to release, as a release config's `evaluator:`")


def finish(arguments: argparse.Namespace, words: Sequence[str], say: Callable[[str], None]) -> int:
    """Test, draw, write.

    Args:
        arguments: ``name`` and ``evaluator``.
        words: of the training command.
        say: where lines go.

    Raises:
        KitError: there are no rounds, or the words are not those they were trained with.
    """
    from cards import steps
    from cards.summary import summary_text, write_summary
    from dataset_builder.settings import load_yaml, parse_judge
    from recipes.settings import parse

    judge = load_yaml(arguments.evaluator, EvaluatorConfig) if arguments.evaluator else None
    if judge is not None:
        parse_judge(judge.judge, f"{arguments.evaluator}: judge")
    settings = parse(list(words))
    output = Path(settings.training.output_dir)
    if not (output / "rounds.json").is_file() and not (output / "arms.json").is_file():
        raise KitError(
            f"{output}: holds no rounds of recipes/iter_w2s.py; give the training command's words, also --output_dir"
        )
    folder, repo = dataset_folder(settings.script.dataset_name, output)
    config = ReleaseConfig(
        build={},
        training={"media": settings.training.media},
        evaluator=judge,
        name=arguments.name or output.resolve().name,
        seed=settings.training.seed,
        run_dir=str(output),
        dataset=str(folder),
    )
    built = read_json(folder / "provenance.json", {}).get("summary")
    if built:  # what a release measures while it builds
        write_json(output / "measurements" / "dataset.json", built)
    table = (test_arms if settings.script.arms else test_rounds)(settings, say)
    with StageLog(output, say) as log:
        log.run("arms", table, [output / "arms.json"], lambda: table, lambda m: f"{len(m['arms'])} arms tested")
        run = steps.run_file(config)
        if repo is not None:
            write_json(output / "run.json", {**read_json(output / "run.json"), DATASET_REPO: repo})
        if judge is not None:
            steps.evaluator(config, log, run)
        if config.gold:
            steps.gold(config, log, run)
        steps.figures(config, log, run)
        # A dataset that has its card tells in it of the run that it was made in.
        steps.cards(config, log, run, dataset_card=repo is None and not (folder / "figures").is_dir())
        steps.report(config, log, run)
        say(summary_text(run, write_summary(run, log)))
    say(f"push it: python -m cards push {output} --namespace NAMESPACE")
    return 0


def dataset_folder(name: str, output: Path) -> tuple[Path, str | None]:
    """Where the dataset lies on this machine, and its Hub id if it came from there.

    Raises:
        KitError: it cannot be fetched.
    """
    if Path(name).is_dir():
        return Path(name), None
    from cards.verify.command import fetch

    link = output / "dataset" / name.rsplit("/", 1)[-1]  # whose name the cards tell, and not that of a snapshot
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_dir() and not link.is_symlink():
        raise KitError(f"{link}: is a folder where the snapshot of {name} is linked to; move it elsewhere")
    link.unlink(missing_ok=True)
    link.symlink_to(fetch(name, None, "dataset").absolute())
    return link, name


def test_arms(settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """The table of arms that ``--arms true`` trained and tested; trains what is missing."""
    from recipes.arms.run import run_parsed

    return run_parsed(settings, say)


def test_rounds(settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Ask the test split of base and last round, and write the table and folders of an arm; once.

    Returns:
        The content of ``arms.json``.

    Raises:
        KitError: the rounds are of another configuration, or none was kept; or the folder holds arms that were trained.
    """
    from recipes.arms.specs import parse_arm
    from recipes.arms.table import write_table
    from recipes.arms.worker import Job
    from recipes.checkpoints import load_state
    from recipes.iter_w2s import plan_of
    from recipes.rounds import SUMMARY, run_rounds
    from recipes.workbench import Workbench

    output = Path(settings.training.output_dir)
    mark = output / "arms" / ".work" / "tested.json"
    if (output / "arms").is_dir() and not mark.is_file():
        raise KitError(
            f"{output / 'arms'}: holds arms of --arms true, which testing rounds would replace; give the words that "
            "they were trained with, --arms true among them"
        )
    bench = Workbench(settings, say)
    rounds = run_rounds(bench, plan_of(settings), output)  # refuses other words; trains what is missing
    summary = read_json(output / SUMMARY)
    if not rounds:
        raise KitError(f"{output}: no round was kept, so there is nothing to release (stopped {summary['stopped']})")
    arm = parse_arm(arm_name(settings))
    job = Job(replace(settings, script=replace(settings.script, arm_names=[arm.name])), output)
    identity = json.loads(json.dumps(job.identity(), default=str))
    tested = {"config": identity, "rounds": summary["fingerprint"]}
    if read_json(mark) == tested and (output / "arms.json").is_file():
        return read_json(output / "arms.json")
    shutil.rmtree(output / "arms", ignore_errors=True)
    write_json(mark, {})  # what lies in arms/ from here on was put there by this function
    last = output / "arms" / arm.name / f"round-{len(rounds)}"
    for number in range(1, len(rounds) + 1):
        source = output / f"round-{number}"
        shutil.copytree(source, last.with_name(f"round-{number}"), copy_function=_link)
    search = {"learning_rate": settings.training.learning_rate}
    for name, state, model, record in (
        ("base", bench.theta_base, settings.model.model_name_or_path, {**summary["base"], "rounds": []}),
        (arm.name, load_state(last), str(last), {**rounds[-1], "rounds": rounds}),
    ):
        bench.load(state)
        revision = bench.base_revision if name == "base" else _revision(last)
        bench.evaluate(settings.script.test_split, name, model, revision).save(output / "results" / f"{name}.json")
        if name == "base":  # rounds keep the rows behind their choices themselves
            bench.validate(name)
            bench.validated.save(output / "results" / "validation" / f"{name}.json")
        accuracy = record["validation_accuracy"]
        content = {"validation_accuracy": accuracy, "rounds": record["rounds"], "stopped": None, "lr_search": []}
        content |= {"arm": name, "learning_rate": None, "sampled": 0, "judge_calls": 0}
        if name != "base":
            content |= {**search, "stopped": summary["stopped"]}
            content["lr_search"] = [{**search, "validation_accuracy": accuracy}]
            for count in ("sampled", "judge_calls"):
                content[count] = sum((each.get("pairs") or {}).get(count, 0) for each in rounds)
        write_json(job.arm_file(name), content)
        say(f"{name}: tested")
    table = write_table(output, settings, job)
    write_json(job.work / "job.json", {"argv": settings.argv, "config": identity})
    write_json(mark, tested)
    return table


def arm_name(settings: Settings) -> str:
    """What rounds of these settings are called as an arm; see `recipes.arms.specs`."""
    script = settings.script
    extrapolates = len(script.alphas) > 1
    scheme = "iter_w2s" if extrapolates else "iter" if script.rounds > 1 else "dpo"
    name = scheme + ("_on_policy" if script.pairs == "on_policy" else "") + ("+sft" if script.sft_weight else "")
    blind = {spec.get("name", spec["kind"]) for spec in script.judges if spec["kind"] == "reference"}
    visual = script.judge_names and not blind & set(script.judge_names)
    return name + ("+visual" if visual else "")


def _link(source: str, target: str) -> None:
    """A second name for a file, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _revision(folder: Path) -> str:
    from dataset_builder.models import checkpoint_revision

    return checkpoint_revision(folder)
