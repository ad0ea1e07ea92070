"""The report is one page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import pytest

from cards.figures import ALT, FIGURES
from cards.report import frame_images, render_report, sample_pairs, write_report
from cards.run_folder import Run

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects what a page refers to, its ids, and whether its elements are closed."""

    def __init__(self, text: str):
        super().__init__()
        self.references, self.ids, self.open, self.tags = [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "xlink:href", "poster", "data", "action"):
                self.references.append((tag, value))
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def text(made_run) -> str:
    return render_report(Run(made_run))


def test_page_is_self_contained(text):
    page = Page(text)
    assert page.open == []
    for tag, value in page.references:
        inside = value.startswith(("#", "data:image/png;base64,"))
        assert inside or (tag == "a" and value.startswith("https://arxiv.org/")), (tag, value[:80])
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "video"}
    assert "@import" not in text and "@font-face" not in text
    outside = re.findall(r"https?://[^\s\"'<)]+", text)
    assert all(address.startswith("https://arxiv.org/") for address in outside), outside
    assert not re.search(r"url\((?!#)", text)


def test_every_figure_is_there_and_ids_are_unique(text):
    page = Page(text)
    for name in FIGURES:
        assert f"figure-{name}" in page.ids and f'aria-label="{ALT[name]}"' in text
    own = [name for name in page.ids if not re.search(r"DejaVu", name)]
    assert len(own) == len(set(own))
    used = {value[1:] for tag, value in page.references if tag == "use"} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used and used <= set(page.ids)


def test_page_follows_light_and_dark(text):
    assert "prefers-color-scheme: dark" in text and 'name="color-scheme" content="light dark"' in text
    drawn = text[text.index("<svg") :]
    assert "var(--ink)" in drawn and "#1b1f24" not in drawn


def test_page_shows_the_run(text, made_run):
    run = Run(made_run)
    for words in ("iter_w2s", "65.0 – 71.0 %", "68.0 %", "44.0 %", "96.4 %", "order, shape", "identical answers"):
        assert words in text, words
    assert f"<dd>{len(run.pairs)}</dd>" in text
    assert "None" not in re.sub(r"base64,[^\"]+", "", text)


def test_samples_have_frames_and_both_answers(made_run):
    from PIL import Image

    samples = sample_pairs(Run(made_run))
    assert len(samples) == 6 and {s["question_type"] for s in samples} == {"colour", "count", "direction"}
    for sample in samples:
        assert len(sample["frames"]) == 8
        assert sample["chosen"]["response"] != sample["rejected"]["response"] and len(sample["others"]) == 2
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


def test_text_from_models_is_escaped(own_run, monkeypatch):
    run = Run(own_run)
    evil = "<img src=http://example.org/x onerror=alert(1)>"
    for row in run.responses:
        row["response"] = evil
    text = render_report(run)
    assert evil not in text and "&lt;img src=http" in text
