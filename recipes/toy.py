"""The toy world's models: a zoo of specialists, a verifier, and a base whose skill is masked by a bias.

All are trained from config by the SFT recipe on the `pretrain` clips, which no dataset contains. The base first learns
every question type, and must prove it (≥ 95 % on validation clips), then a few dozen steps on answers drawn from a
fixed prior per type mask that skill. So preference training brings back skill that the base already has; that is
the easy case, and the README says so.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

from dataset_builder.errors import KitError
from dataset_builder.toy import ANSWERS, QUESTIONS, TYPES

MASTERED = 0.95  # accuracy before the bias that a question type needs to be claimed
OTHER_WEIGHT = 0.1  # chance per epoch of the types a member is no specialist in (0 would leave them at 0 %)


@dataclass(frozen=True)
class Job:
    """One model to train.

    Attributes:
        folder: where below `models/` it goes.
        arch: of `dataset_builder.toy_models.ARCHS`.
        specialities: types always shown; the others with `OTHER_WEIGHT`. All for base and verifier.
        steps, batch, learning_rate: of the first training.
        verify_steps: then learn "is this answer right?", with the vision tower as it is by now; 0 for no verifier.
        bias_steps: steps on answers drawn from the prior, after the gate; 0 for none.
    """

    folder: str
    arch: str
    specialities: tuple[str, ...] = TYPES
    steps: int = 120
    batch: int = 32
    learning_rate: float = 2e-3
    verify_steps: int = 0
    bias_steps: int = 0
    gate: bool = False

    @property
    def clips_seen(self) -> int:
        """Clips shown in all trainings, for the time left; what a gate may add is not known beforehand."""
        return self.batch * (self.steps + self.verify_steps + self.bias_steps)


JOBS = (
    Job("base", "qwen2_vl", steps=170, batch=48, bias_steps=30, gate=True),
    Job("verifier", "qwen2_vl", steps=100, batch=48, verify_steps=280),
    Job("zoo/qwen2_5_vl", "qwen2_5_vl", ("colour", "count")),
    Job("zoo/qwen3_vl", "qwen3_vl", ("direction", "order")),
    Job("zoo/internvl", "internvl", ("shape", "direction")),
    Job("zoo/llava_onevision", "llava_onevision", ("shape", "colour")),
)


@dataclass
class Trained:
    """What a job measured, stored beside its checkpoint as `training.json`."""

    folder: str
    arch: str
    specialities: list[str]
    steps: int
    train_seconds: float
    accuracy_before_bias: dict[str, float] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)


def train_toy_models(
    run_dir: str | Path,
    toy_dir: str | Path,
    seed: int = 0,
    workers: int = 2,
    jobs: tuple[Job, ...] = JOBS,
    say: Callable[[str], None] | None = print,
) -> dict:
    """Train every model of the toy world, the longest first, in one-thread worker processes.

    A model whose checkpoint is complete and was made from the same job and toy world is not trained again.

    Args:
        run_dir: checkpoints go to `run_dir/models/{base,verifier,zoo/NAME}`.
        toy_dir: of `dataset_builder.toy.generate_toy`.
        seed: of weights and data order.
        workers: processes, one thread each.
        jobs: what to train.
        say: gets a line per finished model and one every few seconds, with rate and time left; None for silence.

    Returns:
        `{"models": {folder: training record}, "types_used": [...], "types_left_out": [...]}`; the types are those the
        base answered right at least 95 % of the time before its bias.
    """
    run_dir, toy_dir = Path(run_dir), Path(toy_dir)
    truth = (toy_dir / "truth.json").read_text()
    records: dict[str, dict] = {}
    waiting: list[tuple[Job, str]] = []
    for job in jobs:
        key = _fingerprint(job, truth, seed)
        stored = run_dir / "models" / job.folder / "training.json"
        if stored.exists() and (record := json.loads(stored.read_text())).get("key") == key:
            records[job.folder] = record
        else:
            waiting.append((job, key))
    if waiting:
        for record in _train_all(waiting, run_dir, toy_dir, seed, workers, say or (lambda line: None)):
            records[record["folder"]] = record
    base = records.get("base", {}).get("accuracy_before_bias", {})
    return {
        "models": {job.folder: records[job.folder] for job in jobs},
        "types_used": [t for t in TYPES if base.get(t, 0) >= MASTERED],
        "types_left_out": [t for t in TYPES if base.get(t, 0) < MASTERED],
    }


def _train_all(
    waiting: list[tuple[Job, str]], run_dir: Path, toy_dir: Path, seed: int, workers: int, say: Callable[[str], None]
) -> Iterator[dict]:
    """Records of the jobs in the order in which they are finished.

    Ctrl-C or an error in one job drops those that have not begun; workers whose parent is gone end by themselves.
    """
    context = get_context("spawn")
    seen = context.Value("q", 0)  # clips that all workers have trained on so far
    others = multiprocessing.active_children()
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (seen,))
    total = sum(job.clips_seen for job, _ in waiting)
    began = spoke = time.monotonic()
    try:
        running = {pool.submit(_run, job, key, str(run_dir), str(toy_dir), seed) for job, key in waiting}
        while running:
            finished, running = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in finished:
                record = future.result()
                mean = sum(record["accuracy"].values()) / len(record["accuracy"])
                done = len(waiting) - len(running)
                say(f"  trained {record['folder']:<20} {mean:6.1%} right   {done}/{len(waiting)}")
                yield record
            now, so_far = time.monotonic(), seen.value
            if not so_far:
                began = spoke = now  # workers that still import are not slow at training
            elif so_far < total and running and now - spoke >= PROGRESS_EVERY:
                spoke, rate = now, so_far / (now - began)
                left = (total - so_far) / rate
                say(f"  {so_far:,} of {total:,} clips seen, {rate:,.0f} clips/s, {left:.0f} s left")
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()).difference(others):
            worker.terminate()
        if isinstance(error, BrokenProcessPool):
            raise KitError("a worker that trains the toy models died; the same command goes on from here") from error
        raise
    pool.shutdown()


PROGRESS_EVERY = 10.0  # seconds
_SEEN = None  # the shared counter, in a worker


def _begin_worker(seen) -> None:
    """Set up a worker: Ctrl-C is the parent's business, and a worker does not outlive it."""
    global _SEEN
    _SEEN = seen
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _fingerprint(job: Job, truth: str, seed: int) -> str:
    import hashlib

    content = json.dumps([asdict(job), truth, seed, MASTERED, OTHER_WEIGHT], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


_FRAMES = None  # decoded clips (`Kept`), shared by the models one worker process trains


def _run(job: Job, key: str, run_dir: str, toy_dir: str, seed: int) -> dict:
    """Train one job in this process and store its checkpoint, record included."""
    import torch
    import transformers

    from dataset_builder.models import LocalChatModel
    from dataset_builder.toy_models import make_tiny
    from recipes.checkpoints import place, save_checkpoint
    from recipes.video.encoding import ClipEncoder, Kept
    from recipes.video.vision import freeze_vision

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    started = time.time()
    rng = random.Random(f"{job.folder}-{seed}")
    torch.manual_seed(rng.randrange(2**31))
    model, processor = make_tiny(job.arch, rng.randrange(2**31))
    global _FRAMES
    _FRAMES = _FRAMES or Kept(1 << 30)
    encoder = ClipEncoder(processor, decoded=_FRAMES)
    scenes = json.loads((Path(toy_dir) / "truth.json").read_text())["clips"]
    videos = Path(toy_dir) / "videos"
    steps = job.steps
    _fit(model, processor, encoder, _clips(job, scenes, videos), job.steps, job, rng)
    if job.verify_steps:
        freeze_vision(model)
        # One question a sequence: packed, a verifier listens to its own earlier verdicts and is slow to learn to look.
        verdicts = _verdicts(scenes, videos)
        _fit(model, processor, encoder, verdicts, job.verify_steps, job, rng, VERIFIER_LEARNING_RATE, pack=False)
    chat = LocalChatModel(model, processor, job.folder, "training")
    record = Trained(job.folder, job.arch, list(job.specialities), steps, 0.0)
    measured = measure(chat, encoder, scenes, videos, bool(job.verify_steps))
    if job.gate:
        # A base that has not learned to see has no skill to bring back: give it more time before giving up.
        for _ in range(3):
            if min(measured.values()) >= MASTERED:
                break
            steps += job.steps // 2
            _fit(model, processor, encoder, _clips(job, scenes, videos), job.steps // 2, job, rng)
            measured = measure(chat, encoder, scenes, videos, bool(job.verify_steps))
        record.accuracy_before_bias = measured
    if job.bias_steps:
        _fit(model, processor, encoder, _biased(scenes, videos, rng), job.bias_steps, job, rng, BIAS_LEARNING_RATE)
        measured = measure(chat, encoder, scenes, videos, bool(job.verify_steps))
    record.accuracy, record.steps, record.train_seconds = measured, steps, round(time.time() - started, 1)
    stored = {**asdict(record), "key": key}

    def write(folder: Path) -> None:
        save_checkpoint(model, processor, folder)
        (folder / "training.json").write_text(json.dumps(stored, indent=1) + "\n")

    place(Path(run_dir) / "models" / job.folder, write)
    return stored


BIAS_LEARNING_RATE = 3e-4
VERIFIER_LEARNING_RATE = 3e-3


def _fit(
    model, processor, encoder, clips, steps: int, job: Job, rng: random.Random, rate: float = 0.0, pack: bool = True
):
    """Run the SFT recipe's training on these clips."""
    from transformers import TrainerCallback

    from recipes.sft import train

    class Count(TrainerCallback):
        """Tells the parent how far this worker is."""

        def on_step_end(self, args, state, control, **kwargs):
            if _SEEN is not None:
                with _SEEN.get_lock():
                    _SEEN.value += job.batch

    args = tiny_arguments(job.batch, steps, rate or job.learning_rate, rng.randrange(2**31))
    train(model, processor, clips, args, pack=pack, encoder=encoder, callbacks=(Count(),))


def tiny_arguments(batch: int, steps: int, rate: float, seed: int):
    """How tiny models are trained on a CPU: a cosine after a short warm-up, nothing saved or logged."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is saved there
        per_device_train_batch_size=batch,
        max_steps=steps,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(20, steps // 4),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        adam_beta2=0.98,
        seed=seed,
    )


def _clips(job: Job, scenes: dict, videos: Path) -> list:
    """The pretrain clips with what this job asks about them."""
    from recipes.sft_data import Clip, Turn

    weights = {kind: 1.0 if kind in job.specialities else OTHER_WEIGHT for kind in TYPES}
    return [
        Clip(videos / f"{name}.mp4", [Turn(QUESTIONS[kind], scene["answers"][kind], weights[kind]) for kind in TYPES])
        for name, scene in scenes.items()
        if scene["split"] == "pretrain"
    ]


def _verdicts(scenes: dict, videos: Path) -> list:
    """The pretrain clips with every possible answer shown for a verdict; yes and no are equally likely per type."""
    from recipes.sft_data import Clip, Turn

    clips = []
    for name, scene in scenes.items():
        if scene["split"] != "pretrain":
            continue
        turns = []
        for kind in TYPES:
            for shown in ANSWERS[kind]:
                right = shown == scene["answers"][kind]
                chance = 0.5 if right else 0.5 / (len(ANSWERS[kind]) - 1)
                turns.append(Turn(verifier_question(kind, shown), "yes" if right else "no", chance))
        clips.append(Clip(videos / f"{name}.mp4", turns))
    return clips


def verifier_question(kind: str, answer: str) -> str:
    """The prompt by which the visual judge asks whether an answer is right."""
    from dataset_builder.judges.visual import VERIFIER_PROMPT

    return VERIFIER_PROMPT.format(question=QUESTIONS[kind], answer=answer)


def _biased(scenes: dict, videos: Path, rng: random.Random) -> list:
    """The pretrain clips with answers that do not look at them: drawn from a fixed prior per type."""
    from recipes.sft_data import Clip, Turn

    priors = {}
    for kind in TYPES:
        weights = [0.5**position for position in range(len(ANSWERS[kind]))]
        priors[kind] = rng.sample(weights, len(weights))
    return [
        Clip(
            videos / f"{name}.mp4",
            [Turn(QUESTIONS[kind], rng.choices(ANSWERS[kind], priors[kind])[0]) for kind in TYPES],
        )
        for name, scene in scenes.items()
        if scene["split"] == "pretrain"
    ]


def measure(chat, encoder, scenes: dict, videos: Path, verifier: bool = False) -> dict[str, float]:
    """Greedy accuracy per question type on the validation clips (for a verifier: of its yes and no)."""
    from dataset_builder.models import ChatRequest, Decoding

    clips = [(videos / f"{name}.mp4", s) for name, s in scenes.items() if s["split"] == "validation"]
    if not clips:
        raise KitError("the toy world has no validation clips")
    right: dict[str, float] = {}
    for kind in TYPES:
        if verifier:
            requests, truth = [], []
            for number, (video, scene) in enumerate(clips):
                options = ANSWERS[kind]
                shown = scene["answers"][kind] if number % 2 else options[number // 2 % len(options)]
                requests.append(ChatRequest(verifier_question(kind, shown), encoder.frames(video)))
                truth.append(shown == scene["answers"][kind])
            said = chat.choice_probability(requests)[:, 0] > 0.5
            right[kind] = float(sum(said == truth) / len(clips))
        else:
            requests = [ChatRequest(QUESTIONS[kind], encoder.frames(video)) for video, _ in clips]
            replies = chat.generate(requests, Decoding(temperature=0.0, max_new_tokens=6), seed=0)
            right[kind] = sum(r.text == s["answers"][kind] for r, (_, s) in zip(replies, clips)) / len(clips)
    return right
