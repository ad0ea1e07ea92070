"""What a build would take: calls, frames, tokens, money, hours and storage, before anything is spent.

For Q questions on V videos, member m with S_m samples, F_m frames and at most N_m new tokens:

* calls_m = Q · S_m; every judge with a model makes at most Q · Σ S calls (equal answers are judged once), the
  reference judge none; a pair judge makes 2 calls a pair: at most one pair a question with `best_worst`, with `all`
  min(``max_per_question``, Σ S · (Σ S - 1) / 2); a model that writes questions is called once a video, at most for V;
* frames = calls · F; prompt tokens = calls · (F · ``frame_tokens`` + text tokens); completion tokens ≤ calls · N;
* money = (prompt tokens · prompt price + completion tokens · completion price) / 10⁶;
* hours at an endpoint = max(calls · latency / concurrency, calls / requests_per_minute · 60 s) / 3600; with a local
  model calls · seconds / 3600. Endpoints work side by side, local models one after the other; judging follows sampling.

The text tokens, the latency, the seconds and the sizes are assumptions and are printed with the figures. Calls repeated
after a fault, or because a reply could not be used, are not counted.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from dataset_builder.errors import RowError
from dataset_builder.settings import BuildConfig, EndpointConfig, GeneratedSource

TEXT_TOKENS = 40  # of a question with its chat template
ASK_TOKENS = 120  # of the request to write questions
JUDGE_TOKENS = 320  # of a judge's instructions, question, references and answer
LOCAL_FRAME_TOKENS = 256  # of one frame, for local models, whose price is nothing
ANSWER_BYTES = 900  # of one stored answer with its settings
SCORE_BYTES = 260  # of one stored score with its reason
CRITERIA = {"reference": 2, "visual": 1, "vlm": 4, "vqa": 2, "video_chatgpt": 2, "hound": 2}
STAGES = ("asking", "sampling", "judging", "confirming")


@dataclass(frozen=True)
class Row:
    """One member or judge, or a model that writes questions.

    Attributes:
        name: of the member or judge.
        stage: one of :data:`STAGES`.
        where: ``endpoint``, ``local`` or ``no model``.
        calls, frames, prompt_tokens, completion_tokens: most that it can come to without faults.
        money: in the currency of the price table.
        hours: alone.
    """

    name: str
    stage: str
    where: str
    calls: int
    frames: int
    prompt_tokens: int
    completion_tokens: int
    money: float
    hours: float


@dataclass(frozen=True)
class Estimate:
    """The rows, their sums, and what was assumed.

    Attributes:
        rows: one a member and judge.
        questions, videos: what was counted or given.
        answers, scores: rows that will be stored.
        storage_bytes: of answers and scores.
        video_bytes: of embedded videos, at most (0 when none may be embedded).
        latency, local_seconds, video_mb: the assumptions.
    """

    rows: tuple[Row, ...]
    questions: int
    videos: int
    answers: int
    scores: int
    storage_bytes: int
    video_bytes: int
    latency: float
    local_seconds: float
    video_mb: float

    @property
    def money(self) -> float:
        """All money."""
        return sum(row.money for row in self.rows)

    @property
    def hours(self) -> float:
        """Hours from start to end: stage after stage; in a stage endpoints side by side, beside all local models."""
        total = 0.0
        for stage in STAGES:
            rows = [row for row in self.rows if row.stage == stage]
            local = sum(row.hours for row in rows if row.where == "local")
            total += max([local, *(row.hours for row in rows if row.where == "endpoint")])
        return total

    def __str__(self) -> str:
        names = ("calls", "frames", "prompt tokens", "completion", "money", "hours")
        lines = [f"{'who':<20} {'stage':<10} {'where':<8}" + "".join(f" {name:>15}" for name in names)]
        for row in self.rows:
            numbers = (row.calls, row.frames, row.prompt_tokens, row.completion_tokens)
            lines.append(
                f"{row.name:<20} {row.stage:<10} {row.where:<8}"
                + "".join(f" {number:>15,}" for number in numbers)
                + f" {row.money:>15,.2f} {row.hours:>15,.2f}"
            )
        sums = [sum(getattr(row, key) for row in self.rows) for key in ("calls", "frames", "prompt_tokens")]
        sums.append(sum(row.completion_tokens for row in self.rows))
        lines.append(
            f"{'all, at most':<20} {'':<10} {'':<8}"
            + "".join(f" {number:>15,}" for number in sums)
            + f" {self.money:>15,.2f} {self.hours:>15,.2f}"
        )
        lines.append(
            f"stored: {self.answers:,} answers and {self.scores:,} scores, {_size(self.storage_bytes)}; "
            f"embedded videos: {_size(self.video_bytes) if self.video_bytes else 'none'}"
        )
        lines.append(
            f"assumed: {self.questions:,} questions on {self.videos:,} videos; {self.latency:g} s a call at an "
            f"endpoint, {self.local_seconds:g} s with a local model; {TEXT_TOKENS} text tokens a question, "
            f"{JUDGE_TOKENS} a verdict, {ASK_TOKENS} a request for questions; {LOCAL_FRAME_TOKENS} tokens a frame for "
            f"local models, `frame_tokens` of the price for endpoints; no call repeated; {ANSWER_BYTES} bytes "
            f"an answer, {SCORE_BYTES} a score, {self.video_mb:g} MB a video; the prices of the config"
        )
        return "\n".join(lines)


def estimate(
    config: BuildConfig,
    questions: int,
    videos: int,
    latency: float = 4.0,
    local_seconds: float = 1.0,
    video_mb: float = 2.0,
) -> Estimate:
    """Estimate a build; see the module's text for the formulas.

    Args:
        config: of the build.
        questions: their number.
        videos: their number.
        latency: seconds that an endpoint takes a call.
        local_seconds: seconds that a local model takes a call.
        video_mb: megabytes of one video.
    """
    rows = [_asking(source, videos, latency, local_seconds) for source in config.sources if source.kind == "generated"]
    for member in config.zoo:
        decoding = member.decoding
        calls = questions * member.samples
        shape = (calls, decoding.num_frames, TEXT_TOKENS, decoding.max_new_tokens)
        rows.append(_row(member.name, "sampling", member.endpoint, shape, latency, local_seconds))
    answers = questions * sum(member.samples for member in config.zoo)
    for judge in config.judges:
        if judge.kind == "reference":
            rows.append(Row(judge.name, "judging", "no model", 0, 0, 0, 0, 0.0, 0.0))
            continue
        shape = (answers, getattr(judge, "num_frames", 0), JUDGE_TOKENS, getattr(judge, "max_new_tokens", 1))
        rows.append(_row(judge.name, "judging", getattr(judge, "endpoint", None), shape, latency, local_seconds))
    confirm = config.pairs.confirm
    if confirm is not None:
        calls = 2 * questions * _pairs_a_question(config)
        shape = (calls, confirm.num_frames, JUDGE_TOKENS, confirm.max_new_tokens)
        rows.append(_row(confirm.name, "confirming", confirm.endpoint, shape, latency, local_seconds))
    scores = answers * sum(CRITERIA[judge.kind] for judge in config.judges)
    return Estimate(
        rows=tuple(rows),
        questions=questions,
        videos=videos,
        answers=answers,
        scores=scores,
        storage_bytes=answers * ANSWER_BYTES + scores * SCORE_BYTES,
        video_bytes=int(videos * video_mb * 1e6) if may_embed(config) else 0,
        latency=latency,
        local_seconds=local_seconds,
        video_mb=video_mb,
    )


def may_embed(config: BuildConfig) -> bool:
    """Whether any source may bring videos into the dataset."""
    return not config.ids_only and any(source.redistribute for source in config.sources)


def _asking(source: GeneratedSource, videos: int, latency: float, local_seconds: float) -> Row:
    from dataset_builder.sources.generated import TOKENS_A_QUESTION

    member, decoding = source.member, source.member.decoding
    frames = decoding.num_frames if source.captions is None else 0
    new = max(decoding.max_new_tokens, TOKENS_A_QUESTION * source.per_video)
    return _row(member.name, "asking", member.endpoint, (videos, frames, ASK_TOKENS, new), latency, local_seconds)


def _pairs_a_question(config: BuildConfig) -> int:
    if config.pairs.select == "best_worst":
        return 1
    answers = sum(member.samples for member in config.zoo)
    return min(config.pairs.max_per_question, answers * (answers - 1) // 2)


def _row(
    name: str,
    stage: str,
    endpoint: EndpointConfig | None,
    shape: tuple[int, int, int, int],
    latency: float,
    local_seconds: float,
) -> Row:
    calls, frames, text, new = shape
    if endpoint is None:
        prompt, money, hours = calls * (frames * LOCAL_FRAME_TOKENS + text), 0.0, calls * local_seconds / 3600
    else:
        price = endpoint.price
        prompt = calls * (frames * price.frame_tokens + text)
        money = (prompt * price.prompt + calls * new * price.completion) / 1e6
        seconds = calls * latency / endpoint.concurrency
        if endpoint.requests_per_minute:
            seconds = max(seconds, calls / endpoint.requests_per_minute * 60)
        hours = seconds / 3600
    where = "local" if endpoint is None else "endpoint"
    return Row(name, stage, where, calls, calls * frames, prompt, calls * new, money, hours)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def count_sources(config: BuildConfig) -> tuple[int, int] | None:
    """Questions and videos of a config's sources, counted from their files without opening a video.

    Returns:
        (questions, videos), or None where that cannot be known here: a dataset, or preference rows. Of videos without
        questions, the most that a model will be asked to write.

    Raises:
        KitError: a file is missing or cannot be read.
    """
    from dataset_builder.sources import readers

    reader = {
        "folder": readers.read_folder,
        "sharegpt": readers.read_sharegpt,
        "activitynet_qa": readers.read_activitynet,
        "video_chatgpt": readers.read_video_chatgpt,
    }
    questions, videos = 0, set()
    for number, source in enumerate(config.sources):
        if source.kind in ("hub", "preferences"):
            return None
        if source.kind == "generated":
            found = _videos_to_ask_about(source, f"sources[{number}]")
            questions, videos = questions + len(found) * source.per_video, videos | {(number, name) for name in found}
            continue
        for item in reader[source.kind](source, f"sources[{number}]"):
            if not isinstance(item, RowError):
                questions += 1
                videos.add((number, str(item[1].get("video"))))
    return questions, len(videos)


def _videos_to_ask_about(source: GeneratedSource, key: str) -> set[str]:
    """Names of the source's videos (or of those with a caption); none is opened."""
    from dataset_builder.sources.files import read_rows
    from dataset_builder.sources.videos import FactsCache, VideoFolder

    if source.captions is not None:
        rows = [item for item in read_rows(source.captions, f"{key}.captions") if not isinstance(item, RowError)]
        return {str(row.get("video")) for _, row in rows}
    with tempfile.TemporaryDirectory() as scratch:
        facts = FactsCache(Path(scratch) / "facts.sqlite")
        try:
            return set(VideoFolder(source.videos, Path(scratch), facts, source.fps, f"{key}.videos").names())
        finally:
            facts.close()
