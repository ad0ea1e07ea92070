"""README.md of an evaluator's repo: what the judge sees and is asked, what is known of its bias, how to use it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dataset_builder.errors import KitError
from eval.evaluator import agreement
from eval.evaluator.folders import PACKAGE
from eval.evaluator.weights import TRAINING
from eval.fingerprint import same_judge
from eval.results import read_json
from eval.templates import environment

NOT_MEASURED = "not measured"
_PROMPTS = ("system", "prompt", "example")  # of a judge's settings: what its model reads
_SHOWN = (*_PROMPTS, "frames")  # what the card does not repeat in its list of settings
_ENTRIES = {
    "reference": "question, reference answers, the answer",
    "visual": "the frames, the question, the answer",
    "vlm": "the frames, the question, the answer",
    "vqa": "the frames, the question, the answer",
    "video_chatgpt": "the question, the reference answers, the answer; no frames",
    "hound": "a caption of the video, the question, the reference answers, the answer; no frames",
}


def render_card(
    spec: Mapping[str, Any],
    record: Mapping[str, Any],
    license: str,
    training: Mapping[str, Any] | None = None,
    audit: Mapping[str, Any] | None = None,
    picture: str | None = None,
    repo_id: str | None = None,
    verdicts: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The card as text.

    Args:
        spec: the judge's specification as it is saved.
        record: of the judge.
        license: of the repo.
        training: content of ``judge_training.json``, for a judge that was trained from other judges' scores.
        audit: content of the bias audit.
        picture: name of its picture in the repo.
        repo_id: what the repo is called.
        verdicts: its own beside those of others on the same answers, see `eval.evaluator.agreement`.
    """
    import jinja2

    from eval.audit import audit_summary
    from eval.audit.report import not_measured
    from eval.benchmarks import BENCHMARKS
    from eval.gold.sampling import FEWEST_VIDEOS

    settings = record["settings"]
    context = dict(
        name=record["name"],
        spec=spec,
        record=record,
        sees=sees(spec),
        frames=settings.get("frames"),
        prompts={key: settings[key] for key in _PROMPTS if settings.get(key)},
        settings={key: value for key, value in settings.items() if key not in _SHOWN},
        endpoint=spec.get("endpoint"),
        carried=str(spec.get("model", "")).startswith("./"),
        training=training,
        bias=audit_summary(audit),
        picture=None if not_measured(audit) else picture,
        said=agreement.said(verdicts),
        compared=agreement.compared(verdicts),
        file=f"{agreement.FOLDER}/{agreement.FILE}",
        fewest=FEWEST_VIDEOS,
        repo=repo_id or "NAMESPACE/NAME",
        folder=(repo_id or "NAMESPACE/NAME").rsplit("/", 1)[-1],
        tasks=list(BENCHMARKS),
        package=PACKAGE,
        dumps=lambda value: json.dumps(value, ensure_ascii=False, sort_keys=True),
    )
    try:
        text = _template().render(context)
    except (jinja2.UndefinedError, TypeError) as error:  # of what is told here, only this comes from other hands
        raise KitError(f"{TRAINING}: is not as recipes/train_evaluator.py writes it: {error}") from error
    return f"---\n{card_data(spec, license)}---\n{text}"


def card_data(spec: Mapping[str, Any], license: str) -> str:
    """The card's YAML block."""
    data: dict[str, Any] = {"license": license, "language": ["en"], "library_name": "mmaip-v"}
    if looks(spec):  # a judge that reads text only takes no video
        data["pipeline_tag"] = "video-text-to-text"
    data["tags"] = ["evaluation", "judge", "lighteval", "mmaip-v", "model_hub_mixin", "video-question-answering"]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def looks(spec: Mapping[str, Any]) -> bool:
    """Whether a judge looks at the video."""
    return bool(spec.get("num_frames"))


def sees(spec: Mapping[str, Any]) -> str:
    """What the judge is shown, in words."""
    words = _ENTRIES.get(spec["kind"], "see the prompts below")
    if "num_frames" in spec and not looks(spec):
        words = words.replace("the frames, ", "") + "; no frames"
    if spec.get("use_references"):
        words += ", and the reference answers if there are any"
    elif "use_references" in spec or spec["kind"] == "visual":
        words += "; never the reference answers"
    return words


def read_audit(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a bias audit.

    Raises:
        KitError: it is no audit, or one of another judge.
    """
    from eval.audit import audit_summary
    from eval.audit.run import FORMAT

    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise KitError(f"{path}: is no bias audit (python -m eval audit-judge writes one)")
    try:
        audit_summary(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise KitError(f"{path}: is no whole audit, or one of an older kit ({error}): make it again") from error
    of, mine = dict(content.get("judge") or {}), dict(record)
    for each in (of, mine):  # without the fingerprint, in which an endpoint's version stands that it reported then
        each.pop("fingerprint", None)
    if not same_judge(of, mine):
        raise KitError(
            f"{path}: audits another judge (revision {of.get('revision')}, settings {of.get('settings_hash')}) than "
            f"this one (revision {record['revision']}, settings {record['settings_hash']})"
        )
    return content


def share(value: float | None) -> str:
    """0.7312 → 73.1 %."""
    return NOT_MEASURED if value is None else f"{100 * value:.1f} %"


def span(found: Any) -> str:
    """The interval of an estimate of a share: 70.1 – 76.0 %."""
    ends = None if found is None else (found.low, found.high)
    return NOT_MEASURED if ends is None or not all(map(math.isfinite, ends)) else f"{_hundred(ends)} %"


def estimate(found: Any) -> str:
    """An estimate of a share with its interval: 73.1 % (70.1 – 76.0 %)."""
    return NOT_MEASURED if found is None else f"{share(found.mean)} ({span(found)})"


def kappa(found: Any) -> str:
    """A coefficient of agreement with its interval: 0.612 (0.560 – 0.664)."""
    if not math.isfinite(found.value):
        return NOT_MEASURED
    return f"{found.value:.3f} ({found.low:.3f} – {found.high:.3f})".replace("-", "−")


def _hundred(ends: tuple[float, float]) -> str:
    return " – ".join(f"{100 * end:.1f}" for end in ends)


def _template():
    made = environment(Path(__file__).parent / "templates")
    made.filters |= {"share": share, "span": span, "estimate": estimate, "kappa": kappa}
    made.globals["NOT_MEASURED"] = NOT_MEASURED
    made.filters["fence"] = _fence
    return made.get_template("evaluator_card.md.j2")


def _fence(text: str) -> str:
    """A prompt as a block of code, whatever it holds."""
    ticks = "```"
    while ticks in text:
        ticks += "`"
    return f"{ticks}text\n{text}\n{ticks}"
