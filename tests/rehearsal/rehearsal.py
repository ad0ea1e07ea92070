"""The steps of a rehearsal: each is a process of its own, and all are tried whatever became of the others."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from cards.push.plan import BASE_TAG, Options, make_plan
from cards.run_folder import ADAPTER, Run
from dataset_builder.errors import KitError
from tests.hub import LoopbackHub
from tests.rehearsal.lora import LoraRun
from tests.rehearsal.stranger import digest

ROOT = Path(__file__).resolve().parents[2]
STRANGER = Path(__file__).with_name("stranger.py")
RECORD = "rehearsal.json"
OK, FAILED, LEFT_OUT = "ok", "failed", "not rehearsed"
CONFIGS = ("preferences", "benchmark", "responses", "questions")
TIMEOUT = 580  # seconds for one process
STREAMED = 3  # rows
_SECRETS = ("HF_", "HUGGING", "TRANSFORMERS_", "MMAIP_V_")  # variables that a stranger does not have


class Failed(Exception):
    """Why a step failed, in one line."""


class LeftOut(Exception):
    """Why a step was not tried."""


class Rehearsal:
    """A release of a run to a Hub on this machine, and all that a stranger does with it.

    Args:
        run: a finished run folder.
        output: for the Hub, logs, pages and the record; a former rehearsal there is replaced.
        limit: questions for LightEval and answers for the evaluator.

    Raises:
        KitError: the run is not finished, or something else lies in ``output``.
    """

    def __init__(self, run: Path, output: Path, limit: int = 24):
        found = Run(run) if (run / "run.json").is_file() else None
        if found is None or found.release_folder is None or not (run / "evaluator").is_dir():
            raise KitError(f"{run}: is no finished run; `make demo` makes runs/demo")
        if not found.dataset.is_dir():
            raise KitError(f"{found.dataset}: the dataset of {run} is not there; `make demo` makes it")
        if output.exists() and any(output.iterdir()) and not (output / RECORD).is_file():
            raise KitError(f"{output}: is no rehearsal, and is not replaced; --output names another folder")
        self.run, self.output, self.limit = found, output.absolute(), limit
        self.plan = make_plan(run, Options("tester"))
        self.steps: list[dict[str, Any]] = []

    def all(self, say: Callable[[str], None]) -> bool:
        """Do every step.

        Args:
            say: takes a line of the table as soon as its step has ended.

        Returns:
            Whether none failed.
        """
        shutil.rmtree(self.output, ignore_errors=True)
        for name in ("hub", "stranger", "pages", "logs"):
            (self.output / name).mkdir(parents=True)
        self._record()
        dataset, model, evaluator = (self.plan.repo(kind).repo_id for kind in ("dataset", "model", "evaluator"))
        lora = LoraRun(self)
        repos = (dataset, model, evaluator, lora.repo)
        with LoopbackHub(self.output / "hub") as self.hub:
            steps: list[tuple[str, Callable[[], str]]] = [
                ("push", self._push),
                ("push again", self._push_again),
                ("dataset, all configs", lambda: self._dataset(None)),
                ("dataset at its tag", lambda: self._dataset(self.plan.repo("dataset").final.tags[0])),
                ("dataset, streaming", self._streaming),
                ("model, rounds and main", self._model),
                *([("adapter of the run by peft", self._adapter)] if self._has_adapter else []),
                ("a LoRA run by recipes and finish", lora.train),
                ("push of the LoRA run", lora.push),
                ("adapter by peft on its base", lora.load),
                ("code on the cards", self._code),
                ("evaluator", self._evaluator),
                ("LightEval", self._lighteval),
                ("video DPO, one step", self._dpo),
                ("stock TRL on frames, one step", self._trl),
                *((f"verify {repo}", lambda repo=repo: self._verify(repo)) for repo in repos),
                ("repo pages", self._pages),
                ("live card validation", self._live),
                ("nothing left this machine", self._sockets),
            ]
            say(f"{'step':<32}  {'seconds':>7}  {'':<13}  figure")
            for name, step in steps:
                say(self._try(name, step))
        failed = sum(step["state"] == FAILED for step in self.steps)
        left = sum(step["state"] == LEFT_OUT for step in self.steps)
        say(f"{len(self.steps)} steps, {failed} failed, {left} not rehearsed; pages and logs in {self.output}")
        return not failed

    def _try(self, name: str, step: Callable[[], str]) -> str:
        start = time.monotonic()
        try:
            state, figure = OK, step()
        except LeftOut as reason:
            state, figure = LEFT_OUT, str(reason)
        except Failed as reason:
            state, figure = FAILED, str(reason)
        except Exception as error:  # a rehearsal ends with its table, whatever happens
            state, figure = FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        seconds = round(time.monotonic() - start, 1)
        self.steps.append({"step": name, "seconds": seconds, "state": state, "figure": figure})
        self._record()
        return f"{name:<32}  {seconds:>7.1f}  {state:<13}  {figure}"

    def _record(self) -> None:
        made = {"run": self.plan.name, "version": self.plan.version, "steps": self.steps}
        (self.output / RECORD).write_text(json.dumps(made, indent=1) + "\n")

    # Processes -------------------------------------------------------------------------------------------------------

    def process(self, name: str, *words: str | Path, token: str | None = None, **variables: str) -> str:
        """Run a command as somebody without a token, in an empty folder, with an empty home and empty caches.

        Args:
            name: of its log and folder.
            words: after the interpreter.
            token: makes it somebody with rights, who stays where the person is who typed the command.
            variables: further ones.

        Returns:
            What it printed on stdout.

        Raises:
            Failed: it ended with another code than 0; with its last line.
        """
        place = self.output / "stranger" / name
        (place / "home").mkdir(parents=True, exist_ok=True)
        (place / "folder").mkdir(exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if not key.startswith(_SECRETS)}
        environment |= self.hub.environment(place / "home" / "huggingface", token)
        environment |= {
            "HOME": str(place / "home"),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(ROOT / "tests" / "guard"),  # refuses sockets to anywhere but loopback, and keeps a log
            "MMAIP_V_SOCKET_LOG": str(self._socket_log),
            **variables,
        }
        log = self.output / "logs" / f"{name}.txt"
        try:
            done = subprocess.run(
                [sys.executable, *map(str, words)],
                cwd=None if token else place / "folder",
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"did not end within {TIMEOUT} s") from None
        log.write_text(f"{done.stdout}\n{done.stderr}", encoding="utf-8")
        if done.returncode:
            lines = [line.strip() for text in (done.stdout, done.stderr) for line in text.splitlines() if line.strip()]
            told = [line for line in lines if line.startswith("error: ") or " differ, " in line]
            raise Failed(f"exit {done.returncode}: {[*told, *lines[::-1], 'it printed nothing'][0][:200]}")
        return done.stdout

    def stranger(self, name: str, step: str, **keywords: Any) -> Any:
        """Run a step of ``stranger.py``; returns what it found."""
        # -P: the script's own folder is on no path, so that a stranger's imports are the installed ones
        out = self.process(name, "-P", STRANGER, step, json.dumps(keywords))
        return json.loads(out.strip().splitlines()[-1])

    @property
    def _socket_log(self) -> Path:
        return self.output / "logs" / "sockets.txt"

    def _id(self, kind: str) -> str:
        return self.plan.repo(kind).repo_id

    # Steps: each returns its figure -----------------------------------------------------------------------------------

    def _push(self) -> str:
        from tests.cards.pushing import assert_released

        words = ("-m", "cards", "push", self.run.folder, "--namespace", "tester", "--public")
        self.process("push", *words, token=self.hub.token)
        try:
            assert_released(self.hub, self.plan)
        except AssertionError as error:
            raise Failed(f"the Hub does not hold what was planned: {str(error).splitlines()[0][:200]}") from None
        if hidden := [repo for repo in self.plan.repos if self.hub.settings(repo.repo_id, repo.repo_type)["private"]]:
            raise Failed(f"{hidden[0].repo_id} is still private")
        states = [state for repo in self.plan.repos for state in repo.states]
        size = sum({f.sha256: f.size for state in states for f in state.files.values()}.values())
        tags = sorted({tag for state in states for tag in state.tags})
        return f"{len(self.plan.repos)} repos, {size / 1e6:.1f} MB, {len(states)} commits; tags {', '.join(tags)}"

    def _push_again(self) -> str:
        commits, sent = self._commits(), self.hub.counts()["uploaded_bytes"]
        words = ("-m", "cards", "push", self.run.folder, "--namespace", "tester", "--public")
        self.process("push-again", *words, token=self.hub.token)
        new, more = self._commits() - commits, self.hub.counts()["uploaded_bytes"] - sent
        if new or more:
            raise Failed(f"{new} new commits and {more:,} bytes sent, though nothing has changed")
        return "no new commit, no byte sent"

    def _commits(self) -> int:
        return sum(len(self.hub.commits(repo.repo_id, repo.repo_type)) for repo in self.plan.repos)

    def _dataset(self, revision: str | None) -> str:
        configs = [name for name in CONFIGS if (self.run.dataset / name).is_dir()]
        name = "dataset-tag" if revision else "dataset"
        found = self.stranger(name, "dataset", repo=self._id("dataset"), configs=configs, revision=revision)
        for config in configs:
            here = {path.name.split("-")[0] for path in (self.run.dataset / config).glob("*.parquet")}
            if here != set(found[config]):
                raise Failed(f"{config} has the splits {', '.join(found[config])}, not {', '.join(sorted(here))}")
            for split, (count, content) in found[config].items():
                rows = self._rows(config, split)
                if (count, content) != (len(rows), digest(rows)):
                    raise Failed(f"{config}/{split}: its {count} rows are not the {len(rows)} of {self.run.dataset}")
        counts = [f"{config} {sum(split[0] for split in found[config].values()):,}" for config in configs]
        return f"rows equal the local ones{f' at {revision}' if revision else ''}: {', '.join(counts)}"

    def _streaming(self) -> str:
        found = self.stranger("streaming", "streaming", repo=self._id("dataset"), count=STREAMED)
        ids = [row[0] for row in found]
        if ids != [row["question_id"] for row in self._rows("preferences", "train")[:STREAMED]]:
            raise Failed(f"the first rows are {ids}, not those of {self.run.dataset}")
        return f"the first {len(found)} pairs, videos of {', '.join(f'{size:,}' for _, size in found)} bytes"

    def _rows(self, config: str, split: str) -> list[dict[str, Any]]:
        import pyarrow.parquet as pq

        files = sorted((self.run.dataset / config).glob(f"{split}-*.parquet"))
        return [row for file in files for row in pq.read_table(file).to_pylist()]

    def _model(self) -> str:
        arm = self.run.folder.absolute() / "arms" / self.run.release_arm
        states = self.plan.repo("model").states
        rounds = {tag: str(arm / tag) for state in states for tag in state.tags if tag.startswith("round-")}
        places = {**rounds, "main": str(self.run.release_folder.absolute())}
        found = self.stranger("model", "model", repo=self._id("model"), revisions=places)
        for revision, about in found.items():
            if not about["equal"]:
                raise Failed(f"{revision}: the weights are not those of {places[revision]}")
        if len(rounds) > 1 and found["round-1"]["digest"] == found["main"]["digest"]:
            raise Failed("round-1 has the weights of main")
        main = found["main"]
        return f"{main['class']}, {main['parameters']:,} parameters, equal at {', '.join(found)}"

    @property
    def _has_adapter(self) -> bool:
        return any(path.startswith(f"{ADAPTER}/") for path in self.plan.repo("model").final.files)

    def _adapter(self) -> str:
        local = self.run.adapters(self.run.release_arm)[-1]["base"]
        if self.plan.repo("model").states[0].tags != (BASE_TAG,):
            raise LeftOut(f"the adapter's base {local} is not on this Hub")
        places = {"folder": str(self.run.release_folder.absolute() / ADAPTER), "base": str(Path(local).absolute())}
        found = self.stranger("adapter", "adapter", repo=self._id("model"), **places)
        if not (found["weights"] and found["equal"]):
            raise Failed(f"its {found['weights']} LoRA weights on {found['base']} are not those of the run")
        return f"{found['weights']} LoRA weights on {found['base']}, equal to the run's"

    def _code(self) -> str:
        """Type what the cards say, beside a clip of the reader's own and, where a card wants it, the repo's folder."""
        clip = next(row["video"]["bytes"] for row in self._rows("benchmark", "test") if row["video"])
        count = 0
        for repo in self.plan.repos:
            text = self.hub.files(repo.repo_id, repo.repo_type)["README.md"].decode()
            folder = repo.repo_id.rpartition("/")[2]
            for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
                if "debiased_mean(verdicts" in block:
                    continue  # wants the reader's own verdicts and labels
                count += 1
                name = f"code-{count}-{repo.kind}"
                (self.output / "stranger" / name / "folder").mkdir(parents=True)
                (self.output / "stranger" / name / "folder" / "clip.mp4").write_bytes(clip)
                if f'"{folder}"' in block:
                    fetch = f"snapshot_download({repo.repo_id!r}, local_dir={folder!r})"
                    block = f"from huggingface_hub import snapshot_download\n{fetch}\n{block}"
                self.process(name, "-P", "-c", block)
        if count < 3:
            raise Failed(f"{count} blocks of Python on the cards")
        return f"{count} blocks of Python on the cards run as they stand"

    def _evaluator(self) -> str:
        folder = str(self.run.folder.absolute() / "evaluator")
        repos = {"repo": self._id("evaluator"), "data": self._id("dataset")}
        found = self.stranger("evaluator", "evaluator", folder=folder, limit=self.limit, **repos)
        if not (found["equal"] and found["same_fingerprint"]):
            raise Failed("its verdicts are not those of the local folder")
        if found["without"]:
            raise Failed(f"{found['without']} of {found['asked']} answers got no verdict")
        asked = found["asked"]
        return f"{asked} verdicts equal the local ones, {found['right']} right; fingerprint {found['fingerprint']}"

    def _lighteval(self) -> str:
        from eval.details import load_results

        folder = self.output / "stranger" / "lighteval"
        folder.mkdir(exist_ok=True)
        (folder / "settings.yaml").write_text(yaml.safe_dump({"limit": self.limit, "device": "cpu"}))
        words = ("-m", "eval", "custom", self._id("model"), ROOT / "eval" / "video_model.py", "mmaip_v_toy")
        more = ("--custom-tasks", ROOT / "eval" / "tasks.py", "--save-details", "--output-dir", folder / "results")
        variables = {"MMAIP_V_DATA": self._id("dataset"), "MMAIP_V_EVAL": str(folder / "settings.yaml")}
        self.process("lighteval", *words, *more, **variables)
        results = load_results(folder / "results")
        if results.errors:
            raise Failed(f"{results.errors} of {len(results.rows)} answers have no verdict")
        kept = {row["question_id"]: row.get("response") for row in self.run.results(self.run.release_arm)["rows"]}
        both = [row for row in results.rows if kept.get(row["question_id"]) is not None]
        same = sum(row["response"] == kept[row["question_id"]] for row in both)
        against = f"; {same} of {len(both)} answers are those of the run" if both else ""
        return f"accuracy {100 * results.accuracy.mean:.1f} % on {len(results.rows)} questions{against}"

    def _dpo(self) -> str:
        folder = self.output / "stranger" / "dpo" / "out"
        names = {"dataset_name": self._id("dataset"), "model_name_or_path": self._id("model"), "output_dir": folder}
        settings = {"max_steps": 1, "per_device_train_batch_size": 4, "logging_steps": 1}
        plain = {"use_cpu": "true", "bf16": "false", "disable_tqdm": "true", "report_to": "none"}
        pairs = {**names, **settings, **plain}.items()
        out = self.process("dpo", ROOT / "recipes" / "dpo.py", *(w for k, v in pairs for w in (f"--{k}", v)))
        losses = [float(value) for value in re.findall(r"'loss': '?([-+.\w]+)", out)]
        if not losses or not math.isfinite(losses[0]):
            raise Failed(f"no finite loss was printed ({losses})")
        if not any(folder.glob("*.safetensors")):
            raise Failed("it left no weights")
        return f"loss {losses[0]:.4f} (log 2 is {math.log(2):.4f})"

    def _trl(self) -> str:
        folder = self.output / "stranger" / "trl"
        words = ("-m", "dataset_builder", "export", self._id("dataset"), "--shape", "images", "--num-frames", "4")
        self.process("export", *words, "--output", folder / "frames", "--quiet")
        places = {"frames": str(folder / "frames"), "output": str(folder / "out")}
        found = self.stranger("trl", "trl", model=self._id("model"), **places)
        if not math.isfinite(found["loss"]) or not found["grad_norm"] > 0:
            raise Failed(f"loss {found['loss']}, gradient {found['grad_norm']}")
        return f"loss {found['loss']:.4f}, gradient {found['grad_norm']:.3g}, {found['rows']:,} rows exported"

    def _verify(self, repo: str) -> str:
        out = self.process(f"verify-{repo.split('/')[1]}", "-m", "cards", "verify", repo)
        return next((line for line in reversed(out.splitlines()) if " ok, " in line), out.strip().splitlines()[-1])

    def _pages(self) -> str:
        from tests.rehearsal.pages import page

        pictures = 0
        for repo in self.plan.repos:
            files = self.hub.files(repo.repo_id, repo.repo_type)
            folder = self.output / "pages" / repo.repo_id.split("/")[1]
            for path in ("README.md", *(path for path in files if path.endswith((".png", ".svg")))):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(files[path])
            rendered, missing = page(repo.repo_id, files)
            (folder / "index.html").write_text(rendered, encoding="utf-8")
            if missing:
                raise Failed(f"{repo.repo_id}: its README shows {missing[0]}, which is not in the repo")
            pictures += rendered.count('src="data:')
        return f"{len(self.plan.repos)} pages with {pictures} pictures"

    def _live(self) -> str:
        log = (self.output / "logs" / "push.txt").read_text()
        accepted = re.search(r"accepts the YAML block of (\d+) cards", log)
        here = (
            f"the loopback Hub's own check accepted {accepted[1]} cards" if accepted else "nor was the loopback Hub's"
        )
        raise LeftOut(f"not run: it asks huggingface.co, and a rehearsal stays on this machine ({here})")

    def _sockets(self) -> str:
        tried = self._socket_log.read_text().splitlines() if self._socket_log.exists() else []
        if tried:
            raise Failed(f"{len(tried)} attempts: {tried[0][:160]}")
        counts = self.hub.counts()
        if stray := counts["requests"].get("stray", 0):
            raise Failed(f"{stray} requests to hosts elsewhere")
        megabytes = [counts[name] / 1e6 for name in ("uploaded_bytes", "downloaded_bytes")]
        asked = sum(counts["requests"].values())
        return f"all {asked} requests went to the loopback Hub: {megabytes[0]:.1f} MB up, {megabytes[1]:.1f} MB down"
