"""The evaluator: what it says, how it is saved and loaded, and what of a machine never gets into a saved one."""

import json
import math
import re
import shutil
from dataclasses import FrozenInstanceError, asdict
from itertools import groupby
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelHubMixin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_builder.errors import KitError
from dataset_builder.judges import Criterion, JudgeItem, make_judge, make_scores
from dataset_builder.media import sample_frames
from eval.evaluator import Verdict, VQAEvaluator
from eval.evaluator.config import portable, read_config
from tests.endpoints.stub import StubServer

COLOURS = ("red", "green", "blue", "yellow")
QUESTION = "what colour is the shape ?"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Folder with ``videos/test-NNNNN.mp4`` and an untrained ``checkpoints/judge``."""
    from dataset_builder.toy import generate_toy
    from dataset_builder.toy_models import save_tiny

    root = tmp_path_factory.mktemp("toy-evaluator")
    generate_toy(root, seed=3, clips={"test": 3})
    save_tiny("qwen2_vl", root / "checkpoints" / "judge", seed=1)
    return root


def spec(toy: Path, **fields) -> dict:
    return {"kind": "visual", "model": str(toy / "checkpoints" / "judge"), "num_frames": 4, **fields}


@pytest.fixture(scope="module")
def evaluator(toy):
    return VQAEvaluator(spec(toy), device="cpu")


@pytest.fixture(scope="module")
def saved(evaluator, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "mmaip-v-evaluator"
    evaluator.save_pretrained(folder)
    return folder


def rows(toy: Path) -> list[dict]:
    """Rows of all kinds; the video in several forms."""
    clips = [toy / "videos" / f"test-{n:05d}.mp4" for n in range(3)]
    videos = [str(clips[0]), clips[1], clips[2].read_bytes(), sample_frames(str(clips[0]), 4)]
    made = [{"video": video, "question": QUESTION, "answer": answer} for video in videos for answer in COLOURS[:3]]
    made.append({"video": str(clips[0]), "question": QUESTION, "answer": "I'm sorry, I can't help with that."})
    made.append({"video": str(clips[0]), "question": QUESTION, "answer": " ", "references": ["red"]})
    made.append({"video": "no/such/file.mp4", "question": QUESTION, "answer": "red"})
    return made


# Verdicts ------------------------------------------------------------------------------------------------------------


def test_one_call_says_what_the_judge_says(evaluator, toy):
    clip = str(toy / "videos" / "test-00000.mp4")
    verdict = evaluator(clip, QUESTION, "red", references=["red"])
    judge = make_judge(spec(toy), "cpu")
    (score,) = judge.score([JudgeItem(QUESTION, ["red"], sample_frames(clip, 4), "red")])[0]
    assert isinstance(evaluator, ModelHubMixin) and isinstance(verdict, Verdict)
    assert (verdict.probability, verdict.correct) == (score.score, score.score >= 0.5)
    assert (verdict.score, verdict.scores, verdict.error) == (score.score, {"correct": score.score}, None)
    assert 0 < verdict.probability < 1
    with pytest.raises(FrozenInstanceError):
        verdict.correct = True
    assert evaluator.record["settings"] == judge.settings and evaluator.fingerprint == evaluator.record["fingerprint"]


def test_a_video_is_the_same_in_every_form(evaluator, toy, tmp_path):
    from PIL import Image

    clip = toy / "videos" / "test-00001.mp4"
    frames = sample_frames(str(clip), 8)
    for number, picture in enumerate(frames.array):
        Image.fromarray(picture).save(tmp_path / f"{number:03d}.png")
    forms = [str(clip), clip, clip.read_bytes(), frames]
    found = [evaluator(video, QUESTION, "red") for video in forms]
    assert all(each == found[0] for each in found) and found[0].error is None
    folder = evaluator(tmp_path, QUESTION, "red")  # the same pictures at other time stamps
    assert folder.error is None and 0 < folder.probability < 1


def test_what_needs_no_judge_and_what_no_judge_can_see(evaluator, toy):
    *_, refusal, silence, unreadable = evaluator.batch(rows(toy))
    assert (refusal.correct, refusal.scores, refusal.error) == (False, {"correct": 0.0}, None)
    assert "refuses" in refusal.reason and "no answer" in silence.reason and silence.correct is False
    assert unreadable.correct is None and "no/such/file.mp4" in unreadable.error and unreadable.score is None
    nothing = evaluator(None, QUESTION, "red")
    assert nothing.correct is None and "there is no video" in nothing.error


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(15)), cut=st.integers(1, 14))
def test_neither_order_nor_batches_matter(evaluator, toy, order, cut):
    asked = rows(toy)
    whole = evaluator.batch(asked)
    assert evaluator.batch([asked[i] for i in order]) == [whole[i] for i in order]
    for one, other in zip(evaluator.batch(asked[:cut]) + evaluator.batch(asked[cut:]), whole, strict=True):
        assert (one.correct, one.error, one.reason) == (other.correct, other.error, other.reason)
        assert math.isclose(one.probability or 0, other.probability or 0, abs_tol=1e-5)


def test_a_judge_is_asked_the_same_in_every_order(toy):
    """Batches decide a probability's last bits, so rows in another order have to make the same batches."""
    clips = [str(toy / "videos" / f"test-{n:05d}.mp4") for n in range(3)]
    asked = [{"video": clips[n % 3], "question": f"q{n % 7} ?", "answer": f"a{n}"} for n in range(150)]
    batches = []
    for order in (asked, asked[::-1], asked[1::2] + asked[::2]):
        evaluator = VQAEvaluator({"kind": "reference"})
        spy = PositionJudge()
        evaluator.__dict__["judge"] = spy
        verdicts = evaluator.batch(order)
        batches.append((spy.batches, {row["answer"]: verdict for row, verdict in zip(order, verdicts, strict=True)}))
    assert batches[0] == batches[1] == batches[2]
    assert [len(batch) for batch in batches[0][0]] == [64, 64, 22]
    videos = [video for batch in batches[0][0] for video, _ in batch]
    assert [len(list(group)) for _, group in groupby(videos)] == [50, 50, 50]  # side by side


class PositionJudge:
    """Says where in a batch an answer stood."""

    name = kind = "position"
    needs_frames, num_frames, criteria = True, 2, (Criterion("correct"),)
    revision, settings_hash, weight = "1", "0", 1.0

    def __init__(self):
        self.batches = []

    def score(self, items):
        self.batches.append([(item.frames.digest, item.question + item.response) for item in items])
        return [make_scores(self, [place / 64]) for place in range(len(items))]


def test_an_empty_batch_and_a_judge_without_model():
    judge = VQAEvaluator({"kind": "reference"})
    assert judge.batch([]) == []
    verdict = judge(None, QUESTION, "Red!", references="red")
    assert verdict == Verdict(True, None, 1.0, {"match": 1.0, "f1": 1.0})
    assert judge(None, QUESTION, "blue", references=["red"]).correct is False
    assert "no reference" in judge(None, QUESTION, "blue").error


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"video": None, "question": "q ?"}, "row 2: field 'answer' is missing"),
        ({"video": None, "question": "q ?", "answer": "a", "reference": "r"}, "did you mean 'references'"),
        ({"video": None, "question": " ", "answer": "a"}, "row 2: field 'question' must be text, not blank"),
        ({"video": None, "question": "q ?", "answer": None}, "row 2: field 'answer' must be text, not NoneType"),
        ({"video": 7, "question": "q ?", "answer": "a"}, "row 2: field 'video' must be a path, bytes"),
        ({"video": None, "question": "q ?", "answer": "a", "references": [1]}, "row 2: field 'references'"),
        ({"video": None, "question": "q ?", "answer": "a", "caption": 3}, "row 2: field 'caption'"),
        (["clip.mp4", "q ?", "a"], "row 2: must be a mapping"),
    ],
)
def test_a_wrong_row_is_named(row, said):
    good = {"video": None, "question": "q ?", "answer": "a"}
    with pytest.raises(KitError, match=re.escape(said)):
        VQAEvaluator({"kind": "reference"}).batch([good, row])


def test_a_wrong_specification_is_said_at_once():
    for wrong in ({"kind": "visaul", "model": "x"}, {"kind": "visual", "model": "x", "num_frame": 3}):
        with pytest.raises(KitError, match=r"visaul|num_frame"):
            VQAEvaluator(wrong)


# Saving and loading --------------------------------------------------------------------------------------------------


def test_saved_moved_and_loaded_it_says_the_same(evaluator, saved, toy, tmp_path):
    moved = shutil.copytree(saved, tmp_path / "somewhere" / "else")
    before = evaluator.batch(rows(toy))
    shutil.move(toy / "checkpoints", toy / "gone")  # the checkpoint that it was made from
    try:
        loaded = VQAEvaluator.from_pretrained(moved, device="cpu")
        assert loaded.batch(rows(toy)) == before  # to the last bit
        assert loaded.record == evaluator.record and loaded.fingerprint == evaluator.fingerprint
        loaded.save_pretrained(tmp_path / "again")
    finally:
        shutil.move(toy / "gone", toy / "checkpoints")
    assert contents(tmp_path / "again") == contents(saved)


def test_what_is_in_the_folder(saved, toy, tmp_path_factory):
    names = {path.name for path in saved.iterdir()}
    files = {"README.md", "config.json", "tasks.py", "video_model.py", "run.py", "requirements.txt", "LICENSE"}
    assert names == files | {"judge", "mmaip_v_evaluator"}
    here = str(tmp_path_factory.getbasetemp()).encode()
    for name, content in contents(saved).items():
        assert here not in content and str(Path.home()).encode() + b"/" not in content, name
    config = read_config(saved)
    assert config["judge"]["model"] == "./judge/judge" and config["record"]["settings"]["prompt"]
    card = ModelCard.load(saved / "README.md")
    assert (card.data.license, card.data.pipeline_tag, card.data.library_name) == (
        "apache-2.0",
        "video-text-to-text",
        "mmaip-v",
    )
    for said in ("{question} Answer: {answer} Right, yes or no?", "4 of each video", "not measured", "debiased_mean"):
        assert said in card.text
    assert config["record"]["fingerprint"] in card.text


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_only_what_a_checkpoint_loads_from_is_carried(toy, tmp_path):
    folder = shutil.copytree(toy / "checkpoints" / "judge", tmp_path / "verifier")
    for name in ("pytorch_model.bin", "training_args.bin", "modeling_own.py", "trainer_state.json", "run.log"):
        (folder / name).write_bytes(b"x")
    (folder / "judge_training.json").write_text(json.dumps(TRAINING))
    VQAEvaluator(spec(toy, model=str(folder)), device="cpu").save_pretrained(tmp_path / "out")
    carried = {path.name for path in (tmp_path / "out" / "judge" / "verifier").iterdir()}
    assert "judge_training.json" in carried and "model.safetensors" in carried
    assert not carried & {"pytorch_model.bin", "training_args.bin", "modeling_own.py", "trainer_state.json", "run.log"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trained on 640 answers about 64 clips of `mmaip-v`" in card and "agrees with it on 91.2 %" in card

    (folder / "judge_training.json").write_text('{"answers": 3}')
    with pytest.raises(KitError, match=r"training\.json: is not as recipes"):
        VQAEvaluator(spec(toy, model=str(folder)), device="cpu").save_pretrained(tmp_path / "out")
    assert "640 answers" in (tmp_path / "out" / "README.md").read_text()  # what failed has changed nothing

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/somebody/base"}))
    with pytest.raises(KitError, match="path of this machine"):
        VQAEvaluator(spec(toy, model=str(folder)), device="cpu").save_pretrained(tmp_path / "third")
    assert not (tmp_path / "third").exists()


TRAINING = {
    "from": "0123456789abcdef",
    "dataset": "mmaip-v",
    "target": {"judge": "aggregate", "criterion": None, "threshold": 0.5},
    "answers": 640,
    "clips": 64,
    "validation": {
        "answers": 80,
        "videos": 16,
        "agreement": {"mean": 0.9125, "low": 0.84, "high": 0.98},
        "auc": 0.97,
        "share_right": 0.4,
    },
}


def test_other_weights_under_its_name_are_refused(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(saved, tmp_path / "copy")
    file = folder / "judge" / "judge" / "model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, file, metadata={"format": "pt"})
    with pytest.raises(KitError, match="not the one that this evaluator was saved with"):
        _ = VQAEvaluator.from_pretrained(folder, device="cpu").judge


def test_a_kit_that_asks_otherwise_says_so(saved, tmp_path, capsys):
    folder = shutil.copytree(saved, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["record"]["settings_hash"] = "0" * 16
    (folder / "config.json").write_text(json.dumps(config))
    assert VQAEvaluator.from_pretrained(folder, device="cpu").judge.kind == "visual"
    assert "asks otherwise than when the evaluator was saved" in capsys.readouterr().err
    assert VQAEvaluator.from_pretrained(folder, device="cpu", changes={"num_frames": 2}).judge.num_frames == 2
    assert "asks otherwise" not in capsys.readouterr().err  # it was told to


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "config.json: no such file"),
        ('{"format": ', "config.json:1: not valid JSON"),
        ("[]", "this is no evaluator"),
        ('{"model_type": "qwen2_vl"}', "this is no evaluator"),
        ('{"format": "mmaip-v-evaluator/2"}', "newer than this kit"),
        ('{"format": "mmaip-v-evaluator/x"}', "this is no evaluator"),
        ('{"format": "mmaip-v-evaluator/1", "record": {}, "license": "mit"}', "field 'judge' is missing"),
        ({"kind": "visaul"}, "visaul"),
        ({"kind": "visual", "model": "./judge/none"}, "is not in the repo"),
        ({"kind": "visual", "model": "./../outside"}, "is not in the repo"),
        ({"kind": "visual", "model": "/home/somebody/judge"}, "a path of another machine"),
    ],
)
def test_a_broken_configuration_is_one_clear_line(tmp_path, text, said):
    if isinstance(text, dict):
        text = json.dumps({"format": "mmaip-v-evaluator/1", "judge": text, "record": {}, "license": "mit"})
    folder = tmp_path / "E"
    (tmp_path / "outside").mkdir()
    folder.mkdir()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(KitError) as error:
        VQAEvaluator.from_pretrained(folder)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_place_where_nothing_is(tmp_path):
    for name in (str(tmp_path / "nothing"), "./nothing", "a/b/c"):
        with pytest.raises(KitError, match="there is no evaluator's folder here"):
            VQAEvaluator.from_pretrained(name)
    with pytest.raises(KitError, match=r"nobody/nothing: cannot be downloaded: .+"):  # and no network
        VQAEvaluator.from_pretrained("nobody/nothing")
    with pytest.raises(TypeError):
        VQAEvaluator.from_pretrained(tmp_path, devcie="cpu")


def test_nothing_else_is_written_over(tmp_path):
    evaluator = VQAEvaluator({"kind": "reference"})
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    with pytest.raises(KitError, match="holds something else"):
        evaluator.save_pretrained(used)
    (used / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(KitError, match="this is no evaluator"):
        evaluator.save_pretrained(used)
    clone = tmp_path / "clone"
    (clone / ".git").mkdir(parents=True)
    for _ in range(2):
        evaluator.save_pretrained(clone)
    assert (clone / ".git").is_dir() and VQAEvaluator.from_pretrained(clone)(None, "q ?", "a", "a").correct
    assert not (clone / "judge").exists() and not list(tmp_path.glob(".*"))


def test_a_saved_evaluator_can_become_another(saved, toy, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "E")
    VQAEvaluator.from_pretrained(folder, device="cpu").save_pretrained(folder)  # onto the weights it is made from
    assert contents(folder) == contents(saved)
    (folder / "notes.txt").write_text("mine")
    VQAEvaluator({"kind": "reference"}).save_pretrained(folder)
    assert not (folder / "judge").exists() and (folder / "notes.txt").read_text() == "mine"
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag is None  # it sees no video


# Endpoints and Hub ids -----------------------------------------------------------------------------------------------

SERVED = {
    "kind": "video_chatgpt",
    "model": "/home/somebody/judge-7b",
    "endpoint": {"base_url": "http://gpu-3:8000/v1", "api_key_env": "JUDGE_KEY", "max_retries": 0},
}


def test_an_endpoints_key_and_machine_are_not_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    VQAEvaluator(SERVED).save_pretrained(tmp_path / "E")
    for name, content in contents(tmp_path / "E").items():
        assert not re.search(rb"sk-very-secret|/home/somebody|gpu-3", content), name
    stored = read_config(tmp_path / "E")["judge"]
    assert stored["model"] == "judge-7b" and stored["endpoint"]["base_url"] == "http://localhost:8000/v1"
    assert stored["endpoint"]["api_key_env"] == "JUDGE_KEY"
    card = (tmp_path / "E" / "README.md").read_text()
    assert "`judge-7b`, served by an endpoint" in card and "no frames" in card and "JUDGE_KEY" in card

    with StubServer(reply=lambda body: "{'pred': 'yes', 'score': 4}", key="sk-very-secret") as server:
        changes = {"endpoint": {"base_url": server.url}}
        loaded = VQAEvaluator.from_pretrained(tmp_path / "E", changes=changes, cache=tmp_path / "calls.sqlite")
        for _ in range(2):
            verdict = loaded(None, QUESTION, "red", references=["red"])
        assert server.calls == 1  # the second came from the cache
    assert verdict.correct is True and verdict.scores == {"correct": 1.0, "score": 4.0}
    assert loaded.record["reported"] == ["judge-7b-stub"]
    assert loaded.saved_record() == read_config(tmp_path / "E")["record"]  # whatever a server said meanwhile


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ({"base_url": "https://host.example/v1?api-key=sk-1"}, "an address with a query is not saved"),
        ({"base_url": "https://host.example/v1", "extra_body": {"api_key": "sk-1"}}, "looks like a key"),
        ({"base_url": "https://host.example/v1", "extra_body": {"h": {"Authorization": "x"}}}, "looks like a key"),
        ({"base_url": "https://host.example/v1", "extra_body": {"adapter": "/data/lora"}}, "a path of this machine"),
    ],
)
def test_what_must_not_be_published_is_refused(tmp_path, endpoint, said):
    evaluator = VQAEvaluator({"kind": "video_chatgpt", "model": "judge", "endpoint": endpoint})
    with pytest.raises(KitError, match=said) as error:
        evaluator.save_pretrained(tmp_path / "E")
    assert "sk-1" not in str(error.value) and not (tmp_path / "E").exists()


@pytest.mark.parametrize(
    ("address", "saved_as"),
    [
        ("https://api.example.com/v1", "https://api.example.com/v1"),
        ("http://8.8.8.8:9000/v1", "http://8.8.8.8:9000/v1"),
        ("http://127.0.0.1:8000/v1", "http://localhost:8000/v1"),
        ("http://192.168.1.7/v1", "http://localhost/v1"),
        ("http://[::1]:8000/v1", "http://localhost:8000/v1"),
        ("http://judge.cluster.internal:80/v1", "http://localhost:80/v1"),
        (None, None),
    ],
)
def test_addresses(address, saved_as):
    judge = {"kind": "video_chatgpt", "model": "judge", "endpoint": {"base_url": address}}
    assert portable(judge, "endpoint:judge", None)["endpoint"]["base_url"] == saved_as


def test_a_hub_id_is_pinned_and_every_default_is_spelled_out():
    commit = "0123456789abcdef0123456789abcdef01234567"
    found = portable({"kind": "vqa", "model": "NS/judge", "revision": "main"}, commit, None)
    assert found["revision"] == commit and found["model"] == "NS/judge" and found["num_frames"] == 8
    assert portable(found, commit, None) == found


def test_verdicts_are_plain_values(evaluator, toy):
    verdict = evaluator(str(toy / "videos" / "test-00002.mp4"), QUESTION, "blue")
    assert json.loads(json.dumps(asdict(verdict))) == asdict(verdict)
