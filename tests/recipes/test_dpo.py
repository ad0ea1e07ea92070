"""`recipes/dpo.py` as somebody uses it who has videos and preferences and nothing else of this kit."""

from __future__ import annotations

import ast
import base64
import json
import math
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch

from dataset_builder.models import load_model
from dataset_builder.models.local import video_inputs
from recipes import dpo
from recipes.dpo_data import load_pairs
from recipes.settings import run_recipe
from recipes.video.collate import VideoDPOCollator
from recipes.video.encoding import ClipEncoder
from recipes.video.score import pair_log_probs
from tests.dataset_builder.clips import real_clips, remux
from tests.recipes.real_shape import IDS, TEMPLATE, save_real_shape

ROOT = Path(__file__).parents[2]
PICKLES = (".bin", ".pt", ".pth", ".pkl")
FRAMES = 64
VIDEO_TOKENS = FRAMES // 2 * 11 * 13  # carphone: 352×288 px, as 11 by 13 tokens for two frames


def words(**fields) -> list[str]:
    """A command line; a list becomes several words."""
    return [
        word
        for name, value in fields.items()
        for word in (f"--{name}", *map(str, value if isinstance(value, list) else [value]))
    ]


def pickles(folder: Path) -> set[str]:
    """Top-level names under which something is pickled."""
    return {p.relative_to(folder).parts[0] for p in folder.rglob("*") if p.suffix in PICKLES}


def logged(output: str, name: str) -> list[float]:
    """The values of a metric in the lines that the trainer prints."""
    lines = [ast.literal_eval(line) for line in output.splitlines() if line.startswith("{")]
    return [float(line[name]) for line in lines if name in line]


def result(folder: Path) -> dict[str, bytes]:
    """The files of the result itself."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


@pytest.fixture
def few(dataset, base, tmp_path) -> dict:
    """Fields of a run of two steps on the toy dataset."""
    return {
        "dataset_name": dataset,
        "model_name_or_path": base,
        "output_dir": tmp_path / "out",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "use_cpu": "true",
        "disable_tqdm": "true",
    }


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """A checkpoint of the released shape and two rows about the same pictures, the second at half their speed."""
    folder = tmp_path_factory.mktemp("real-shape")
    save_real_shape(folder / "base")
    clip = real_clips()["carphone_pristine.mp4"]
    shutil.copy(clip, folder / "carphone.mp4")

    def slower(number, packet):
        packet.pts, packet.dts, packet.duration = 2 * packet.pts, 2 * packet.dts, 2 * packet.duration

    remux(clip, folder / "slow.mp4", slower)
    answers = {"prompt": "Who speaks?", "chosen": "A man.", "rejected": "A small dog."}
    rows = [json.dumps({"video": video, **answers}) for video in ("carphone.mp4", "slow.mp4")]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def launched(real) -> str:
    """What `accelerate launch` of one round prints; its result is in `out`, its features in `features`."""
    argv = words(
        dataset_name=real / "rows.jsonl",
        model_name_or_path=real / "base",
        output_dir=real / "out",
        num_frames=FRAMES,
        use_peft="true",
        lora_r=4,
        lora_dropout=0,
        learning_rate=0.01,
        max_steps=2,
        per_device_train_batch_size=1,
        precompute_ref_log_probs="true",
        feature_cache=real / "features",
        logging_steps=1,
        bf16="false",
        use_cpu="true",
        disable_tqdm="true",
    )
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1"]
    done = subprocess.run(
        [*launch, "recipes/dpo.py", *argv], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def real_base(real):
    """(checkpoint of the released shape, its encoder, the two rows)."""
    loaded = load_model(real / "base", device="cpu", dtype="float32")
    rows, _ = load_pairs(str(real / "rows.jsonl"), say=lambda line: None)
    return loaded.model.requires_grad_(False), ClipEncoder(loaded.processor, FRAMES), [rows[0], rows[1]]


class TestRealShape:
    """What people have: Qwen2.5-VL's processor, template and shapes, an mp4 file, 64 frames."""

    def test_the_template_is_the_released_format(self, real_base):
        processor, rows = real_base[1].processor, real_base[2]
        said = processor.apply_chat_template(rows[0]["prompt"] + rows[0]["chosen"], tokenize=False)
        assert said == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Who speaks?<|im_end|>\n"
            "<|im_start|>assistant\nA man.<|im_end|>\n"
        )
        assert type(processor).__name__ == "Qwen2_5_VLProcessor" and processor.chat_template == TEMPLATE
        for token, number in IDS.items():
            assert processor.tokenizer.convert_tokens_to_ids(token) == number

    def test_one_launched_round(self, real, launched):
        losses = logged(launched, "loss")
        assert losses[0] == pytest.approx(math.log(2), abs=1e-4) and len(losses) == 2
        assert all(map(math.isfinite, [*losses, *logged(launched, "grad_norm")])) and min(losses) > 0
        assert losses[1] < losses[0], "the second row has the same answers"
        found = re.search(r"self-check: shared and plain prompts differ by (\S+) nats a token", launched)
        assert float(found[1]) < 1e-4
        assert "world size 1" in launched and "the video is put in front" in launched

        [prompts] = [list(folder.glob("*.json")) for folder in (real / "features").iterdir()]
        ids = [json.loads(path.read_text())[0] for path in prompts]
        assert [row.count(IDS["<|video_pad|>"]) for row in ids] == [VIDEO_TOKENS] * 2
        stored = list((real / "features").rglob("*.safetensors"))
        assert len(stored) == 2, "both clips' features are kept"
        [references] = (real / "out" / "references").glob("*.jsonl")
        assert len(references.read_text().splitlines()) == 2
        assert not pickles(real / "out"), "nothing in the result is pickled"

    def test_the_adapter_loads_in_stock_peft_and_prefers_the_chosen_answers(self, real, launched, real_base):
        from peft import PeftModel

        _, encoder, rows = real_base
        before = pair_log_probs(real_base[0], encoder, rows, 1)
        model = load_model(real / "base", device="cpu", dtype="float32").model
        after = pair_log_probs(PeftModel.from_pretrained(model, real / "out").merge_and_unload(), encoder, rows, 1)
        margins = [(logps[:, 0] - logps[:, 1]) for logps in (before, after)]
        assert (margins[1] - margins[0] > 0.1).all(), margins

    def test_log_probs_are_those_of_stock_transformers(self, real_base):
        model, encoder, rows = real_base
        found = pair_log_probs(model, encoder, rows[1:], 1)[0]
        frames = encoder.frames(rows[1]["video"])
        assert len(frames) == FRAMES
        for side, expected in zip(("chosen", "rejected"), found.tolist(), strict=True):
            text = encoder.processor.apply_chat_template(rows[1]["prompt"] + rows[1][side], tokenize=False)
            inputs = encoder.processor(text=[text.rstrip()], return_tensors="pt", **video_inputs([frames]))
            assert inputs["input_ids"][0].tolist().count(IDS["<|video_pad|>"]) == VIDEO_TOKENS
            answer = len(encoder.processor.tokenizer(rows[1][side][0]["content"][0]["text"])["input_ids"]) + 1
            with torch.no_grad():
                logits = model(**inputs, logits_to_keep=answer + 1).logits[0, :-1].double()
            ids = inputs["input_ids"][0, -answer:]
            assert logits.log_softmax(-1)[range(answer), ids].sum().item() == pytest.approx(expected, abs=1e-3)

    def test_time_positions_reach_the_model(self, real_base):
        """The same pictures at half the speed: other time positions, other log-probabilities."""
        model, encoder, rows = real_base
        batch = VideoDPOCollator(encoder)(rows)
        first, second = batch["clips"]
        assert torch.equal(first["pixel_values_videos"], second["pixel_values_videos"])
        seen = []
        text = model.base_model.language_model
        hook = text.register_forward_pre_hook(lambda m, a, k: seen.append(k["position_ids"]), with_kwargs=True)
        try:
            logps = pair_log_probs(model, encoder, rows, 2)
        finally:
            hook.remove()
        video = batch["prompt_ids"] == IDS["<|video_pad|>"]
        for row, rate in enumerate((1, 0.5)):
            frames = encoder.frames(rows[row]["video"])
            assert frames.fps == pytest.approx(rate * encoder.frames(rows[0]["video"]).fps)
            # Two tokens a second, as far apart as two sampled frames.
            apart = 2 * 2 * frames.total / frames.fps / FRAMES
            steps = torch.arange(FRAMES // 2) * apart
            times = seen[0][0, row, : video.shape[1]][video[row]].view(FRAMES // 2, -1)
            assert (times == times[:, :1]).all()
            assert (times[:, 0] - times[0, 0]).tolist() == steps.long().tolist()
        assert (logps[0] - logps[1]).abs().min() > 1e-3

    @pytest.mark.slow
    @pytest.mark.parametrize(("clip", "tokens"), [("bikes.mp4", 10 * 23), ("bigbuckbunny.mp4", 20 * 36)])
    def test_tokens_of_other_clips(self, clip, tokens, real_base):
        _, encoder, rows = real_base
        _, [encoded] = ClipEncoder(encoder.processor, FRAMES).encode([{**rows[0], "video": str(real_clips()[clip])}])
        assert encoded.ids.count(IDS["<|video_pad|>"]) == FRAMES // 2 * tokens


class TestCommand:
    """Newcomers: help, mistakes, stopping, evaluating, pushing."""

    def refused(self, capsys, argv: list[str]) -> str:
        """The one line that a command says before it ends with exit code 2."""
        capsys.readouterr()
        assert run_recipe(lambda: dpo.main(argv)) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    def test_help(self, capsys):
        with pytest.raises(SystemExit) as ended:
            dpo.main(["--help"])
        text = capsys.readouterr().out
        assert ended.value.code == 0 and dpo.__doc__.strip() in text
        for name in ("dataset_name", "dataset_test_split", "num_frames", "feature_cache", "share_prompt", "lora_r"):
            assert f"--{name}" in text

    def test_arguments_of_dpo_vlm(self):
        """What TRL's script documents is understood, flags without a value too."""
        given = words(dataset_name="a/b", dataset_config="x", dataset_test_split="validation", model_name_or_path="c/d")
        given += words(output_dir="o", per_device_train_batch_size=2, gradient_accumulation_steps=32, dtype="bfloat16")
        given += words(dataset_num_proc=32, lora_target_modules=["q_proj", "v_proj"], report_to="none", use_cpu="true")
        script, training, model = dpo.parse([*given, "--gradient_checkpointing", "--use_peft"])
        assert (script.dataset_config, script.dataset_test_split) == ("x", "validation")
        assert model.use_peft and model.dtype == "bfloat16" and training.gradient_checkpointing
        assert training.save_strategy == "no" and not training.push_to_hub

    def test_mistakes_are_one_line(self, few, capsys, tmp_path):
        command = words(**few)
        assert "--model_name_or_path is needed" in self.refused(capsys, [])
        assert "--dataset_name is needed" in self.refused(capsys, words(model_name_or_path="x"))
        assert "['--frames', '8']" in self.refused(capsys, [*command, "--frames", "8"])
        assert "leave it out" in self.refused(capsys, [*command, "--dataset_streaming"])
        assert "--dtype bfloat16" in self.refused(capsys, [*command, "--load_in_4bit"])
        assert "no checkpoint folder" in self.refused(capsys, [*command, *words(model_name_or_path=tmp_path / "x")])
        assert "no such dataset" in self.refused(capsys, [*command, *words(dataset_name=tmp_path / "x.jsonl")])
        assert "cannot load split 'dev'" in self.refused(capsys, [*command, *words(dataset_train_split="dev")])
        assert "Unknown loss type: dpo" in self.refused(capsys, [*command, *words(loss_type="dpo")])
        wrong = [*command, "--use_peft", *words(lora_target_modules="nothing")]
        assert "Target modules nothing not found" in self.refused(capsys, wrong)
        pushed = self.refused(capsys, [*command, "--push_to_hub"])
        assert (
            "--push_to_hub: out cannot be made: Cannot reach" in pushed and not (tmp_path / "out/config.json").exists()
        )
        assert "video_size: size must have" in self.refused(capsys, [*command, *words(video_size='{"edge": 3}')])

    def test_a_clip_that_cannot_be_read_names_its_row(self, few, rows, capsys, tmp_path):
        (tmp_path / "good.mp4").write_bytes(rows[0]["video"]["bytes"])
        (tmp_path / "bad.mp4").write_bytes(rows[0]["video"]["bytes"][:500])
        answers = {"prompt": "what ?", "chosen": "red", "rejected": "blue"}
        lines = [json.dumps({"video": name, **answers}) for name in ("good.mp4", "bad.mp4")]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        line = self.refused(capsys, words(**{**few, "dataset_name": tmp_path / "rows.jsonl"}))
        assert re.match(r"error: row 2: field video: \S+bad.mp4: ", line)

    def test_a_stopped_run_goes_on(self, few, capsys, tmp_path, base):
        saving = {**few, "save_strategy": "steps", "save_steps": 1, "lr_scheduler_type": "constant"}
        dpo.main(words(**saving))
        out, stopped = tmp_path / "out", tmp_path / "stopped"
        whole = result(out)
        assert pickles(out) == {"checkpoint-1", "checkpoint-2"}
        assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= set(whole)
        # As a stop leaves it that comes while the second step is saved.
        shutil.copytree(out / "checkpoint-1", stopped / "checkpoint-1")
        shutil.copy(out / "dpo.json", stopped)
        (stopped / "checkpoint-2").mkdir()
        (stopped / "checkpoint-2" / "model.safetensors").write_bytes(b"half")
        capsys.readouterr()
        dpo.main(words(**{**saving, "output_dir": stopped}))
        assert f"going on at {stopped / 'checkpoint-1'}" in capsys.readouterr().out
        assert result(stopped) == whole
        dpo.main(words(**{**saving, "output_dir": stopped}))
        assert result(stopped) == whole, "typed once more, it makes no further step"

        # The same folder and another configuration.
        line = self.refused(capsys, words(**{**saving, "learning_rate": 2e-3}))
        assert "another configuration (learning_rate 0.001 → 0.002)" in line and result(out) == whole
        shutil.rmtree(out / "checkpoint-1")
        shutil.rmtree(out / "checkpoint-2")
        assert "another configuration" in self.refused(capsys, words(**{**saving, "num_frames": 4}))
        assert "holds config.json of something else" in self.refused(capsys, words(**{**saving, "output_dir": base}))
        # Trained weights answer like any checkpoint's.
        assert load_model(out, device="cpu").model.config.model_type == "qwen2_vl"

    def test_evaluation_and_push(self, few, rows, capsys, tmp_path, hub):
        for split, numbers in (("train", range(4)), ("test", range(4, 7))):
            lines = []
            for number in numbers:
                row = rows[number]
                (tmp_path / f"{number}.mp4").write_bytes(row["video"]["bytes"])
                said = {side: row[side][0]["content"][0]["text"] for side in ("chosen", "rejected")}
                lines.append(json.dumps({"video": f"{number}.mp4", "prompt": row["question"], **said}))
            (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
        data = {**few, "dataset_name": tmp_path, "eval_strategy": "steps", "eval_steps": 1, "use_peft": "true"}
        dpo.main(words(**data, precompute_ref_log_probs="true"))
        losses = logged(capsys.readouterr().out, "eval_loss")
        assert len(losses) == 2 and all(map(math.isfinite, losses))
        assert hub.received == [], "nothing is sent unless it is asked for"

        saving = {**few, "output_dir": tmp_path / "my-model", "save_strategy": "steps", "save_steps": 1}
        dpo.main([*words(**saving), "--push_to_hub"])
        assert f"pushed to {hub.url}/me/my-model" in capsys.readouterr().out
        assert hub.received[0] == ("/api/repos/create", "my-model")
        files = dict(hub.received[1:])
        wanted = {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"}
        assert wanted <= set(files) and not any("/" in name or name == "dpo.json" for name in files)
        assert files["config.json"] == (tmp_path / "my-model" / "config.json").read_bytes()


@pytest.fixture
def hub(monkeypatch):
    """A loopback Hub that takes one commit; `received` lists what it was sent."""
    received: list[tuple] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if self.path == "/api/repos/create":
                received.append((self.path, json.loads(body)["name"]))
                reply = {"url": f"{url}/me/my-model", "name": "me/my-model"}
            elif "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(body)["files"]]
                reply = {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
            else:
                values = [line["value"] for line in map(json.loads, body.splitlines()) if line["key"] == "file"]
                received.extend((value["path"], base64.b64decode(value["content"])) for value in values)
                reply = {"commitUrl": f"{url}/me/my-model/commit/1", "commitOid": "1" * 40, "hookOutput": ""}
            self.answer(reply)

        def do_GET(self):
            self.answer({"id": "me/my-model", "sha": "0" * 40, "siblings": []})

        def answer(self, reply):
            content = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    server.received, server.url = received, url
    yield server
    server.shutdown()


def test_out_of_memory_is_one_line_that_says_what_helps(capsys):
    """Nothing here runs out of a GPU's memory, so torch's own error is raised in its place."""

    def main() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. \nmore")

    assert run_recipe(main) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: CUDA out of memory. Tried to allocate 2.00 GiB: lower per_device_train_batch_size")
    assert "python -m recipes.memory" in said and said.count("\n") == 1
    with pytest.raises(RuntimeError, match="something else"):
        run_recipe(lambda: (_ for _ in ()).throw(RuntimeError("something else")))
