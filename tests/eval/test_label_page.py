"""The labelling page: what it serves, and (slow) what happens when a person labels in a real browser."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import av
import numpy as np
import pytest

from dataset_builder.errors import KitError
from dataset_builder.media import file_sha256, probe, sample_frames
from dataset_builder.toy import generate_toy
from eval.gold import LabelFile, Sample, match_gold, pair_gold_for, read_gold, response_hash
from eval.gold.clips import Clips, browser_mp4, plays_in_browsers
from eval.gold.command import run
from eval.gold.items import items_of
from eval.gold.session import Labelling
from eval.results import Results
from eval.runner import load_benchmark

NASTY = (
    'It is <b>bold</b> ${1+1} {{x}} <img src="http://192.0.2.1/x.png" onerror="document.title=1">\n\n* one\n* two'
    "<script>document.title=2</script>"
)
needs_gradio = pytest.mark.skipif(
    find_spec("gradio") is None, reason="the page needs gradio: pip install -e '.[label]'"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def row(question_id: str, video_id: str, response: str | None, answers=("red",)) -> dict:
    return {
        "question_id": question_id,
        "video_id": video_id,
        "question_type": "colour",
        "question": f"what about {question_id} ?",
        "answers": list(answers),
        "response": response,
        "correct": 1,
        "score": 1.0,
        "error": None,
    }


def results_of(rows: list[dict], name: str = "secretrun", dataset: str = "") -> Results:
    judge = {"name": "secretjudge", "revision": "secretrevision", "settings_hash": "0" * 16}
    return Results(name, f"models/{name}", "0" * 16, dataset=dataset, judge=judge, rows=rows)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Three clips, their ``media.json`` and results with two answers on each."""
    folder = tmp_path_factory.mktemp("label")
    generate_toy(folder, seed=3, clips={"test": 3}, types=("colour",))
    clips = {file_sha256(path): str(path) for path in sorted((folder / "videos").glob("*.mp4"))}
    (folder / "media.json").write_text(json.dumps(clips))
    rows = [row(f"q{n}{k}", sha[:16], NASTY if k else "red") for n, sha in enumerate(clips) for k in range(2)]
    results_of(rows).save(folder / "r.json")
    return folder


# Clips ---------------------------------------------------------------------------------------------------------------


def encoded(codec: str, container: str, pixels: str, sides: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container) as target:
        stream = target.add_stream(codec, rate=5)
        (stream.width, stream.height), stream.pix_fmt = sides, pixels
        for number in range(10):
            picture = np.full((sides[1], sides[0], 3), 20 * number, np.uint8)
            target.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        target.mux(stream.encode())
    return out.getvalue()


@pytest.mark.parametrize(
    ("codec", "container", "pixels", "sides"),
    [
        ("mjpeg", "mp4", "yuvj420p", (33, 47)),  # what packed frame folders are
        ("mpeg4", "avi", "yuv420p", (32, 32)),
        ("libx264", "matroska", "yuv420p", (32, 48)),
        ("libx264", "mp4", "yuv444p", (33, 33)),
    ],
)
def test_codecs_that_browsers_lack_become_the_same_pictures_in_h264(codec, container, pixels, sides):
    original = encoded(codec, container, pixels, sides)
    assert not plays_in_browsers(original)
    shown = browser_mp4(original)
    assert plays_in_browsers(shown)
    before, after = probe(original), probe(shown)
    assert (after.frames, after.duration, after.fps) == (before.frames, before.duration, before.fps)
    assert (after.width, after.height) == tuple(side // 2 * 2 for side in sides)
    means = [[frame.mean() for frame in sample_frames(video, 10).array] for video in (original, shown)]
    np.testing.assert_allclose(*means, atol=4)


def test_a_clip_that_plays_is_served_as_it_is_and_one_that_does_not_is_made_once(toy, tmp_path):
    content = json.loads((toy / "media.json").read_text())
    odd = tmp_path / "odd.avi"
    odd.write_bytes(encoded("mpeg4", "avi", "yuv420p", (32, 32)))
    (tmp_path / "media.json").write_text(json.dumps({**content, file_sha256(odd): str(odd)}))
    clips = Clips(None, tmp_path / "media.json")
    first = next(iter(content))
    assert clips.file(first[:16]) == Path(content[first])
    made = clips.file(file_sha256(odd)[:16])
    assert plays_in_browsers(str(made))
    assert clips.file(file_sha256(odd)[:16]) == made
    with pytest.raises(KitError, match=r"video 0123 cannot be shown: .*media\.json does not know it$"):
        clips.check([first[:16], "0123"])
    with pytest.raises(KitError, match=r"\(2 of 3 videos are missing\)"):
        clips.check([first[:16], "0123", "4567"])
    with pytest.raises(KitError, match="give --dataset DATASET or --media FILE"):
        Clips(None, None)


# The command, before a page is there ---------------------------------------------------------------------------------


@needs_gradio
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--videos", "4"], "there are only 3 videos; --videos 3 takes all of them"),
        (["--annotator", " "], "an annotator's name needs 1 to 64 visible characters"),
        ([], "the results name no dataset folder of this machine: give --dataset DATASET or --media FILE"),
        (["--media", "MEDIA", "--seed", "8"], "this sample was drawn with seed 7; leave --seed out"),
        (["--media", "MEDIA", "--output", "OTHER"], "the sample was drawn from 1 other videos than these 3"),
        (["--media", "MEDIA", "--port", "TAKEN"], "give another --port"),
    ],
)
def test_what_cannot_work_is_one_line(toy, tmp_path, arguments, message):
    sample = Sample(7, 3, "0" * 16, ())
    if "--seed" in arguments:
        sample.save(tmp_path / "gold.sample.json")
    Sample(0, 1, "0" * 16, ("other",)).save(tmp_path / "other.sample.json")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = {
            "MEDIA": str(toy / "media.json"),
            "OTHER": str(tmp_path / "other.jsonl"),
            "TAKEN": str(taken.getsockname()[1]),
        }
        given = [words.get(word, word) for word in arguments]
        if "--output" not in given:
            given += ["--output", str(tmp_path / "gold.jsonl")]
        with pytest.raises(KitError) as caught:
            run([str(toy / "r.json"), *given])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# The application -----------------------------------------------------------------------------------------------------


@pytest.fixture
def client(toy, tmp_path):
    from starlette.testclient import TestClient

    from eval.gold.page.server import make_app

    results = Results.load(toy / "r.json")
    videos = list(dict.fromkeys(r["video_id"] for r in results.rows))
    session = Labelling(items_of(results, videos), LabelFile(tmp_path / "gold.jsonl"))
    app = make_app(session, Clips(None, toy / "media.json"), lambda: ([], [], ""), None, 7860)
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:
        client.session = session
        yield client


@needs_gradio
def test_the_application_serves_clips_and_labels_and_keeps_to_itself(client, toy):
    page = client.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert not re.search(r"https?:|\*", policy)
    for secret in ("secret", "what about", NASTY[:10]):
        assert secret not in page.text  # nothing is on the page before it is shown, and these never
    video = Path(json.loads((toy / "media.json").read_text()).popitem()[1])
    clip = client.get("/clip/2")
    assert (clip.content, clip.headers["content-type"]) == (video.read_bytes(), "video/mp4")
    part = client.get("/clip/2", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, video.read_bytes()[10:20])
    assert [client.get(f"/clip/{n}").status_code for n in ("3", "-1", "..%2f..%2fetc%2fpasswd")] == [404, 404, 404]
    assert client.get("/labels.jsonl").content == b""
    client.session.give("ada", 0, "correct")
    assert client.get("/labels.jsonl").content == client.session.file.path.read_bytes()
    assert client.get("/", headers={"Host": "elsewhere.example"}).status_code == 400


@needs_gradio
def test_no_page_names_itself_to_the_network(client):
    import gradio

    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert gradio.analytics.analytics_enabled() is False
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert not config.get("share")


# In a browser --------------------------------------------------------------------------------------------------------


@contextmanager
def labelling(*arguments: str, port: int = 0):
    """The command in a process of its own; gives it and the page's address."""
    command = [sys.executable, "-m", "eval", "label", *arguments, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    heard: list[str] = []
    threading.Thread(target=lambda: heard.extend(server.stderr), daemon=True).start()
    try:
        address = next((m[0] for line in server.stdout if (m := re.search(r"http://127\.0\.0\.1:\d+/", line))), None)
        assert address, "".join(heard)
        yield server, address
        assert not any("Traceback" in line for line in heard), "".join(heard)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.fixture
def browser(tmp_path):
    """A page in headless Chromium; afterwards everything it asked for must have been on loopback."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="browser check skipped: playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("browser check skipped: there is no chromium here")
    asked, said = [], []
    with sync_api.sync_playwright() as driver:
        flags = [
            "--no-sandbox",  # tests may run as root
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--log-net-log={tmp_path / 'net.json'}",
        ]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(20_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        yield page
        chromium.close()
    assert len(asked) > 10
    assert [url for url in asked if not re.match(r"http://127\.0\.0\.1:\d+/|data:|blob:", url)] == []
    assert hosts_of_the_page(tmp_path / "net.json") == {"127.0.0.1"}
    assert [text for text in said if "ERR_CONNECTION" not in text and "Failed to fetch" not in text] == []


def hosts_of_the_page(log: Path) -> set[str]:
    """Hosts that the page asked or connected to ahead of asking, by Chromium's own network log.

    What Chromium asks for itself (dictionaries, what it might fill into a field) has no page as its initiator, and a
    flag keeps it on this machine.
    """
    found = set()
    for event in json.loads(log.read_text())["events"]:
        params = event.get("params", {})
        asked = "127.0.0.1" in str(params.get("initiator"))
        ahead = params.get("is_preconnect") and "127.0.0.1" in str(params.get("network_anonymization_key"))
        if (asked or ahead) and "url" in params:
            found.add(urlsplit(params["url"]).hostname)
    return found


def hosts_named(page) -> set[str]:
    """Hosts that anything in the document points to, names that are only to be looked up among them."""
    return set(
        page.evaluate("[...document.querySelectorAll('[href], [src]')].map(e => new URL(e.href || e.src).hostname)")
    )


def where(page) -> str:
    return page.inner_text(".card .where").split("\n")[0]


def press(page, key: str) -> None:
    """Press a key and wait until the page shows something else."""
    before = page.inner_html(".card")
    page.wait_for_timeout(320)  # the page ignores a label that comes too soon for anybody to have looked
    page.keyboard.press(key)
    page.wait_for_function("before => document.querySelector('.card').innerHTML !== before", arg=before)


@needs_gradio
@pytest.mark.slow
def test_ten_items_by_keyboard_reload_go_on_and_export(world, browser, tmp_path):
    page, output = browser, tmp_path / "gold.jsonl"
    items = load_benchmark(world.dataset, "test")
    rows = [row(i.question_id, i.video_id, NASTY if n % 4 == 1 else f"answer {n}") for n, i in enumerate(items)]
    assert len(rows) == 12
    results = results_of(rows, dataset=str(world.dataset))
    results.save(tmp_path / "r.json")
    command = [str(tmp_path / "r.json"), "--output", str(output)]
    texts, pressed = {r["question_id"]: r for r in rows}, {}

    def label(key: str) -> None:
        shown = page.inner_text(".card .question .text")
        question_id = shown.removeprefix("what about ").removesuffix(" ?")
        assert page.inner_text(".card .answer .text") == texts[question_id]["response"]
        press(page, key)
        pressed[question_id] = {"c": "correct", "i": "incorrect", "u": "unsure"}[key]

    with labelling(*command, "--videos", "6", "--seed", "3") as (server, address):
        page.goto(address)
        page.locator("#name input, #name textarea").fill("  ada ")
        page.keyboard.press("Enter")
        page.wait_for_selector(".card .question")
        assert where(page) == "answer 1 of 12"
        page.wait_for_function("document.querySelector('.clip video')?.currentTime > 0.2")
        assert page.evaluate("document.querySelector('.clip video').videoWidth") == 32
        for key in ("Control+c", "Alt+i", "x"):  # none of them is a label
            page.keyboard.press(key)
        for key in "ciucicuicu":
            label(key)
        assert where(page) == "answer 11 of 12"
        assert "secret" not in page.content()
        assert hosts_named(page) == {"127.0.0.1"}
        assert "red" not in page.inner_text("#desk").split()
        page.reload()
        page.wait_for_selector(".card .question")
        assert where(page) == "answer 11 of 12"
        assert page.inner_text("#done") == "10"
        port = int(address.rsplit(":", 1)[1].strip("/"))
        server.send_signal(signal.SIGKILL)
        server.wait()
    assert [label.label for label in read_gold(output)] == list(pressed.values())
    with open(output, "ab") as stream:  # a kill in the middle of a line
        stream.write(b'{"question_id": "tor')

    with labelling(*command, port=port) as (_, address):
        page.goto(address + "?annotator=ada")
        page.wait_for_selector(".card .question")
        assert where(page) == "answer 11 of 12"
        page.keyboard.press("r")
        page.wait_for_selector(".reference")
        assert page.inner_text(".reference li") == "red"
        page.wait_for_timeout(320)
        for _ in range(5):  # held down, a key is one label
            page.keyboard.down("i")
            page.wait_for_timeout(150)
        page.keyboard.up("i")
        page.wait_for_function("document.querySelector('#done').innerText === '11'")
        assert where(page) == "answer 12 of 12"
        press(page, "ArrowLeft")
        assert page.inner_text(".card .given") == "labelled: incorrect"
        label("c")
        assert where(page) == "answer 12 of 12"
        with page.expect_download() as download:
            page.locator("#more button").first.click()
            page.click("#download")
        exported = Path(download.value.path()).read_bytes()
        assert exported == output.read_bytes()
        page.click("#key-u")  # the mouse works as well
        page.wait_for_selector(".card.finished")
        assert not page.locator("#key-c").is_visible()
        page.goto(address + "?annotator=bob")
        page.wait_for_selector(".card .question")
        for key in "ccc":
            press(page, key)
        page.locator("#more button").first.click()
        page.wait_for_selector(".agreement td")
        assert page.inner_text(".agreement td >> nth=0") == "ada, bob"

    labels = read_gold(output)
    ada = [label for label in labels if label.annotator == "ada"]
    assert {label.question_id: label.label for label in ada[:11]} == pressed
    order = Sample.load(tmp_path / "gold.sample.json").videos
    assert [label.video_id for label in ada] == [video for video in order for _ in range(2)]
    assert all(label.responses == (response_hash(texts[label.question_id]["response"]),) for label in labels)
    assert [label.reference_shown for label in ada] == [False] * 10 + [True, False]
    assert len(read_gold(output, history=True)) == 12 + 1 + 3
    assert len(labels) == 15
    assert match_gold(results, ada).labelled == sum(label.label != "unsure" for label in ada)


@needs_gradio
@pytest.mark.slow
def test_pairs_by_keyboard_blind_to_who_stands_left(world, browser, tmp_path):
    page, output = browser, tmp_path / "pairs.jsonl"
    items = load_benchmark(world.bare, "test")
    a, b = (
        results_of([row(i.question_id, i.video_id, f"{name} {i.question_id}") for i in items], f"secret-{name}")
        for name in ("first", "second")
    )
    b.rows[0]["response"] = a.rows[0]["response"]
    a.save(tmp_path / "a.json")
    b.save(tmp_path / "b.json")
    command = [str(tmp_path / name) for name in ("a.json", "b.json")]
    command += ["--dataset", str(world.bare), "--media", str(world.media), "--output", str(output)]
    keys, expected = [], {}
    with labelling(*command, "--annotator", "eve") as (_, address):
        page.goto(address)
        page.wait_for_selector(".card .sides")
        assert where(page) == "pair 1 of 11"
        for key in "abtuabatbau":
            sides = page.locator(".sides .answer .text").all_inner_texts()
            first = next(n for n, text in enumerate(sides) if text.startswith("first"))
            better = {"a": 0, "b": 1}.get(key)
            value = {"t": 0.5, "u": None}.get(key, float(better == first))
            expected[sides[0].split()[1]] = value
            keys.append((key, first))
            assert "secret" not in page.content()
            press(page, key)
        page.wait_for_selector(".card.finished")
    assert {first for _, first in keys} == {0, 1}
    expected[a.rows[0]["question_id"]] = 0.5  # equal answers: nobody was asked
    labels = read_gold(output)
    found = dict(zip((r["question_id"] for r in a.rows), pair_gold_for(a, b, labels)))
    assert found == expected
    assert [label.asked for label in labels].count(False) == 1
    assert all({*label.models} == {"models/secret-first", "models/secret-second"} for label in labels)
