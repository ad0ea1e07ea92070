"""The report is one page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cards.figures import ALT, FIGURES
from cards.report import render_report, write_report
from cards.report.drawing import draw
from cards.report.players import ClipFinder, frame_images, sample_pairs
from cards.run_folder import Run
from tests.cards.test_report_pairs import NASTY, change

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects what a page refers to, its ids, its scripts, and whether its elements are closed."""

    def __init__(self, text: str):
        super().__init__()
        self.references, self.ids, self.open, self.tags, self.handlers, self.policy = [], [], [], set(), [], None
        self.scripts: list[list] = []  # [type, text]
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append([dict(attributes).get("type"), ""])
        if tag == "meta" and ("http-equiv", "Content-Security-Policy") in attributes:
            self.policy = dict(attributes)["content"]
        for name, value in attributes:
            if name in ("src", "href", "srcset", "xlink:href", "poster", "data", "action"):
                self.references.append((tag, value))
            if name == "id":
                self.ids.append(value)
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1][1] += data


@pytest.fixture(scope="module")
def text(made_run) -> str:
    return render_report(Run(made_run))


def test_page_is_self_contained(text):
    page = Page(text)
    assert page.open == []
    for tag, value in page.references:
        inside = value.startswith(("#", "data:image/png;base64,"))
        assert inside or (tag == "a" and value.startswith("https://arxiv.org/")), (tag, value[:80])
    assert not page.tags & {"link", "iframe", "object", "embed", "base", "form"}
    assert "@import" not in text and "@font-face" not in text
    outside = re.findall(r"https?://[^\s\"'<)]+", text)
    assert all(address.startswith(("https://arxiv.org/", "http://www.w3.org/2000/svg")) for address in outside), outside
    assert not re.search(r"url\((?!#)", text)


def test_the_policy_forbids_every_request_and_every_script_but_its_own(text):
    page = Page(text)
    own = [script for kind, script in page.scripts if kind is None]
    assert len(own) == 1 and page.handlers == []
    policy = dict(rule.split(" ", 1) for rule in page.policy.split("; "))
    digest = base64.b64encode(hashlib.sha256(own[0].encode()).digest()).decode()
    assert policy.pop("script-src") == f"'sha256-{digest}'"
    assert policy.pop("style-src") == "'unsafe-inline'"
    assert policy.pop("img-src") == policy.pop("media-src") == "data:"
    assert set(policy) == {"default-src", "base-uri", "form-action"} and set(policy.values()) == {"'none'"}
    assert text.index("Content-Security-Policy") < text.index("<style>")
    assert {kind for kind, _ in page.scripts} == {None, "application/json", "text/plain"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(", own[0])


def test_every_figure_is_there_and_ids_are_unique(text, made_run):
    page = Page(text)
    drawn = [name for name in FIGURES if (made_run / "figures" / f"{name}.svg").is_file()]
    assert len(drawn) > 5
    for name in drawn:
        assert f"figure-{name}" in page.ids and f'aria-label="{ALT[name]}"' in text
    own = [name for name in page.ids if not re.search(r"DejaVu", name)]
    assert len(own) == len(set(own))
    used = {value[1:] for tag, value in page.references if tag == "use"} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used and used <= set(page.ids)
    links = {value[1:] for tag, value in page.references if tag == "a" and value.startswith("#")}
    assert links and links <= set(page.ids)


def test_page_follows_light_and_dark(text):
    assert "prefers-color-scheme: dark" in text and 'name="color-scheme" content="light dark"' in text
    assert "prefers-reduced-motion" in text
    drawn = text[text.index("<svg") :]
    assert "var(--ink)" in drawn and "#1b1f24" not in drawn


def test_page_shows_the_run(text, made_run):
    run = Run(made_run)
    for words in ("iter_w2s", "65.0 – 71.0 %", "68.0 %", "44.0 %", "96.4 %", "order, shape", "identical answers"):
        assert words in text, words
    assert f"<dd>{len(run.pairs)}</dd>" in text
    assert "None" not in re.sub(r"base64,[^\"]+|<script.*?</script>", "", text, flags=re.DOTALL)


def test_samples_have_frames_and_both_answers(made_run):
    from PIL import Image

    run = Run(made_run)
    drawing = draw(run, 10)
    samples = sample_pairs(ClipFinder(run, drawing), drawing, 6)
    assert len(samples) == 6 and {s["question_type"] for s in samples} == {"colour", "count", "direction"}
    for sample in samples:
        assert len(sample["frames"]) == 8 and sample["reason"] is None
        assert sample["chosen"]["response"] == sample["text_chosen"] != sample["text_rejected"]
        assert sample["rejected"]["response"] == sample["text_rejected"] and len(sample["others"]) == 2
    frame = samples[0]["frames"][0]
    image = Image.open(io.BytesIO(base64.b64decode(frame["src"].split(",")[1])))
    assert image.size == (96, 96) == (frame["width"], frame["height"])  # 32 px, three times larger
    block = image.crop((0, 0, 3, 3)).getcolors()
    assert len(block) == 1  # nearest neighbour: a pixel is one square of one colour


def test_a_clip_that_is_not_at_hand_is_no_failure():
    assert frame_images(None) == [] and frame_images(b"not a video") == []


def test_page_without_measurements(own_run):
    (own_run / "arms.json").unlink()
    for path in [*(own_run / "measurements").glob("*.json"), *(own_run / "figures").glob("*")]:
        path.unlink()
    text = write_report(own_run).read_text()
    assert "not measured" in text and "<svg" not in text
    assert Page(text).open == []


def test_text_from_models_never_becomes_a_part_of_the_page(own_run):
    plain = Page(render_report(Run(own_run)))
    dataset = own_run.parent / "mmaip-v"

    def spoil(row):
        for side in ("chosen", "rejected"):
            row[side][-1]["content"][0]["text"] = f"{side} {NASTY}"
        return {**row, "question": NASTY, "answer": NASTY, "model_chosen": NASTY}

    change(dataset / "preferences", spoil)
    change(dataset / "responses", lambda row: {**row, "response": NASTY, "model": NASTY})
    change(dataset / "questions", lambda row: {**row, "question_type": NASTY, "source": f"toy-{NASTY}"})
    text = render_report(Run(own_run))
    page = Page(text)
    assert page.open == [] and page.handlers == [] and page.tags == plain.tags
    assert len(page.scripts) == len(plain.scripts) and page.references[:20] == plain.references[:20]
    assert "<img src=http" not in text and "<!--" not in text
    assert "&lt;img src=http" in text


def test_the_same_run_gives_the_same_bytes_wherever_it_lies(text, made_run, own_run):
    assert render_report(Run(own_run)) == text
    for place in (made_run.parent, own_run.parent, Path.home(), Path.cwd()):
        assert str(place) not in text
