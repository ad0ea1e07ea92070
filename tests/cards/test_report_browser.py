"""The report in a real browser: clips play, filters keep what the rows say, keys and addresses work, nothing leaves."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cards.report import render_report, write_report
from cards.report.drawing import draw
from cards.report.page import script_json
from cards.run_folder import Run
from tests.cards.test_report_pairs import NASTY, change, data_of, odd_run

pytestmark = pytest.mark.slow
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api", reason="browser check skipped: playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("browser check skipped: there is no chromium here")
    with sync_api.sync_playwright() as driver:
        flags = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND"]  # tests may run as root
        made = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield made
        made.close()


@pytest.fixture
def opened(chromium):
    """Opens a report; afterwards nothing but the page itself was asked for, and the console is empty."""
    asked, said, pages = [], [], []

    def open_(path: Path, address: str = "", **context):
        page = chromium.new_page(**{"viewport": {"width": 1280, "height": 900}, **context})
        page.set_default_timeout(15_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        pages.append(page)
        page.goto(path.as_uri() + address)
        return page

    yield open_
    assert pages and said == []
    documents = [url for url in asked if not url.startswith("data:")]
    assert documents and all(re.match(r"file:///[^?]*/report\.html(#|$)", url) for url in documents), documents
    assert all(url.startswith(("data:image/png", "data:video/mp4")) for url in set(asked) - set(documents))
    for page in pages:
        page.close()


@pytest.fixture
def odd(own_run) -> Path:
    return odd_run(own_run)


def rows_of(run: Path) -> list[dict]:
    """The pairs in the order drawn, with all that a filter asks about, from the dataset's rows."""
    answers = {row["response_id"]: row["response"] for row in Run(run).responses}
    pairs = draw(Run(run), 10_000).pairs
    return [
        {**pair, **{side: answers[pair[f"response_id_{side}"]] for side in ("chosen", "rejected")}} for pair in pairs
    ]


def shown(page) -> list[str]:
    """Ids of the pairs in the list."""
    return page.eval_on_selector_all("#pair-list > li", "rows => rows.map(row => row.id.replace('option-', ''))")


def opened_pair(page) -> str:
    """Id of the open pair; the list and the pane agree on it."""
    chosen = page.eval_on_selector_all("#pair-list > [aria-selected=true]", "rows => rows.map(row => row.id)")
    assert chosen == [page.get_attribute("#pair-list", "aria-activedescendant")]
    named = page.get_attribute("#pair .facts a", "href").removeprefix("#pair=")
    assert chosen == [f"option-{named}"]
    return named


def test_every_clip_of_the_page_plays(odd, opened):
    page = opened(write_report(odd))
    rows = rows_of(odd)
    silent = played = 0
    for number, row in enumerate(rows):
        assert opened_pair(page) == row["id"]
        video = page.query_selector("#pair video")
        if video is None:
            silent += 1
            assert page.inner_text("#pair .no-clip")
        elif row["video_id"] not in (seen := {r["video_id"] for r in rows[:number]}) or not seen:
            played += 1
            assert video.evaluate("video => video.paused"), "nothing moves before anybody asks"
            page.keyboard.press("Space")
            page.wait_for_function("() => document.querySelector('#pair video').currentTime > 0.15")
            state = "v => [v.error, v.readyState, v.videoWidth > 0, v.paused, v.muted]"
            assert video.evaluate(state) in ([None, 4, True, False, True], [None, 3, True, False, True])
            page.keyboard.press("Space")
            assert video.evaluate("video => video.paused")
        page.keyboard.press("j")
    videos = sorted({row["video_id"] for row in rows})
    without = videos[1:4]
    assert silent == sum(row["video_id"] in without for row in rows) > 0
    assert played == len(videos) - len(without)


def test_the_player_by_mouse_and_by_its_own_keys(made_run, opened, tmp_path):
    page = opened(report_of(made_run, tmp_path))
    page.click("#pair .controls button >> nth=0")
    page.wait_for_function("() => document.querySelector('#pair video').currentTime > 0.1")
    assert page.get_attribute("#pair .controls button >> nth=0", "aria-label") == "pause"
    page.keyboard.press("Space")  # on the button itself: once, not twice
    assert page.eval_on_selector("#pair video", "video => video.paused")
    page.focus("#next")
    page.keyboard.press("Space")  # on any other button: what that button does
    assert page.inner_text("#place").startswith("2 of") and page.eval_on_selector(
        "#pair video", "video => video.paused"
    )
    page.fill("#pair .controls input", "0.5")
    page.wait_for_function("() => Math.abs(document.querySelector('#pair video').currentTime - 1) < 0.1")
    page.click("#pair video")
    page.wait_for_function("() => !document.querySelector('#pair video').paused")


def report_of(run: Path, folder: Path) -> Path:
    """The report of a run that tests only read."""
    path = folder / "report.html"
    path.write_text(render_report(Run(run)))
    return path


def test_filters_keep_what_the_rows_say(odd, opened):
    page = opened(write_report(odd))
    rows = rows_of(odd)

    def expect(keep, order=None) -> int:
        kept = [row for row in rows if keep(row)]
        if order:
            kept.sort(key=order)
        assert shown(page) == [row["id"] for row in kept]
        assert page.inner_text("#shown") == f"{len(kept)} of {len(rows)} pairs"
        return len(kept)

    counts = {"all": expect(lambda row: True)}
    for member in sorted({row["model_chosen"] for row in rows} | {row["model_rejected"] for row in rows}):
        page.select_option("#filter-member", member)
        counts[member] = expect(lambda row, m=member: m in (row["model_chosen"], row["model_rejected"]))
        page.select_option("#filter-side", "chosen")
        expect(lambda row, m=member: m == row["model_chosen"])
        page.select_option("#filter-side", "rejected")
        expect(lambda row, m=member: m == row["model_rejected"])
        page.select_option("#filter-side", "either")
    page.select_option("#filter-member", "")
    for field, column in (("type", "question_type"), ("source", "source")):
        values = sorted({row[column] for row in rows})
        assert len(values) == 3
        for value in values:
            page.select_option(f"#filter-{field}", value)
            counts[value] = expect(lambda row, c=column, v=value: row[c] == v)
        page.select_option(f"#filter-{field}", "")
    assert all(0 < n < counts["all"] for name, n in counts.items() if name != "all")

    number = lambda row, name: -1 if row[name] is None else row[name]  # noqa: E731
    for field, column in (("score", "score_chosen"), ("margin", "margin")):
        values = sorted(row[column] for row in rows if row[column] is not None)
        low, high = (int(100 * values[len(values) * part // 4]) for part in (1, 3))
        page.fill(f"#filter-{field}-low", str(low))
        above = expect(lambda row, c=column, low=low: number(row, c) >= low / 100)
        page.fill(f"#filter-{field}-high", str(high))
        between = expect(lambda row, c=column, low=low, high=high: low / 100 <= number(row, c) <= high / 100)
        assert 0 < between < above < len(rows)
        page.fill(f"#filter-{field}-low", "0")
        page.fill(f"#filter-{field}-high", "75")  # on the edge is inside
        edge = [row for row in rows if row[column] == 0.75]
        assert edge and expect(lambda row, c=column: row[c] is not None and row[c] <= 0.75) >= len(edge)
        page.fill(f"#filter-{field}-low", "75")
        expect(lambda row, c=column: row[c] == 0.75)
        page.fill(f"#filter-{field}-low", "0")
        page.fill(f"#filter-{field}-high", str(high))
        page.fill(f"#filter-{field}-low", "100")  # cannot pass the other end
        assert page.input_value(f"#filter-{field}-low") == str(high)
        page.keyboard.press("Escape")
        expect(lambda row: True)
        assert page.input_value(f"#filter-{field}-low") == "0" and page.input_value(f"#filter-{field}-high") == "100"

    texts = ("question", "answer", "chosen", "rejected", "question_id", "id")
    for words in ("RED", "shape move", "zzz", rows[5]["id"]):
        page.fill("#filter-q", words)
        expect(lambda row, w=words: all(any(x in row[t].lower() for t in texts) for x in w.lower().split()))
    page.fill("#filter-q", "zzz")
    assert "No pair matches" in page.inner_text("#pair") and page.is_disabled("#next")
    page.click("#clear")
    expect(lambda row: True)

    page.check("#filter-video")
    without = sorted({row["video_id"] for row in rows})[1:4]
    assert 0 < expect(lambda row: row["video_id"] not in without) < len(rows)
    page.uncheck("#filter-video")

    place = {row["id"]: n for n, row in enumerate(rows)}
    last = lambda row, name: row[name] is None  # noqa: E731
    for value, order in {
        "margin-down": lambda r: (last(r, "margin"), -number(r, "margin"), place[r["id"]]),
        "margin-up": lambda r: (last(r, "margin"), number(r, "margin"), place[r["id"]]),
        "score-down": lambda r: (last(r, "score_chosen"), -number(r, "score_chosen"), place[r["id"]]),
        "score-up": lambda r: (last(r, "score_chosen"), number(r, "score_chosen"), place[r["id"]]),
        "drawn": lambda r: place[r["id"]],
    }.items():
        page.select_option("#filter-sort", value)
        expect(lambda row: True, order)

    page.select_option("#filter-type", "colour")  # together
    page.select_option("#filter-source", "toy-b")
    page.fill("#filter-score-low", "60")

    def together(row: dict) -> bool:
        return (row["question_type"], row["source"]) == ("colour", "toy-b") and number(row, "score_chosen") >= 0.6

    assert expect(together) > 1


def test_keys(made_run, opened, tmp_path):
    page = opened(report_of(made_run, tmp_path))
    order = shown(page)
    assert page.evaluate("scrollY") == 0 and page.evaluate("location.hash") == ""
    for key, place in zip(("j", "j", "k", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowLeft", "End", "j", "Home", "k"),
                          (1, 2, 1, 2, 3, 2, 1, len(order) - 1, len(order) - 1, 0, 0), strict=True):  # fmt: skip
        page.keyboard.press(key)
        assert opened_pair(page) == order[place], key
        assert page.inner_text("#place") == f"{place + 1} of {len(order)}"
        line = page.locator("#pair-list > [aria-selected=true]").bounding_box()
        box = page.locator("#pair-list").bounding_box()
        assert box["y"] - 1 <= line["y"] and line["y"] + line["height"] <= box["y"] + box["height"] + 1
    assert page.evaluate("document.activeElement.id") == "pair-list"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "focus can be seen"

    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "filter-q"
    page.keyboard.type("jk? red")  # letters in a field are letters
    assert page.input_value("#filter-q") == "jk? red" and not page.is_visible("#keys")
    page.keyboard.press("Escape")
    assert page.input_value("#filter-q") == "" and shown(page) == order
    assert page.evaluate("document.activeElement.id") == "pair-list"

    page.keyboard.press("?")
    assert page.is_visible("#keys") and "previous pair" in page.inner_text("#keys")
    page.keyboard.press("j")  # nothing moves behind it
    page.keyboard.press("Escape")
    assert not page.is_visible("#keys") and opened_pair(page) == order[0]
    page.keyboard.press("?")
    page.keyboard.press("?")
    assert not page.is_visible("#keys")

    page.click("#pair .others summary")
    page.evaluate("document.querySelector('#pair .others').scrollIntoView({behavior: 'instant'})")
    page.keyboard.press("j")  # the next pair is seen from its top
    assert page.evaluate("document.getElementById('pair').getBoundingClientRect().top") >= 0

    page.focus("#filter-type")
    page.keyboard.press("ArrowDown")  # a field keeps its own keys
    assert page.input_value("#filter-type") != "" and opened_pair(page) == shown(page)[0]
    page.keyboard.press("/")
    page.evaluate(
        "document.activeElement.blur(); document.getElementById('limits').scrollIntoView({behavior: 'instant'})"
    )
    place = page.evaluate("scrollY")
    page.keyboard.press("ArrowUp")  # elsewhere, arrows scroll
    page.wait_for_function("place => scrollY < place", arg=place)


def test_the_tab_key_reaches_every_field(made_run, opened, tmp_path):
    page = opened(report_of(made_run, tmp_path))
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')"))
    wanted = ["filter-q", "show-keys", "filter-member", "filter-type", "filter-source", "filter-score-low"]
    wanted += ["filter-score-high", "filter-margin-low", "filter-margin-high", "filter-sort", "next", "pair-list"]
    wanted += ["play", "place in the clip", "full screen"]
    assert [name for name in dict.fromkeys(reached) if name in wanted] == wanted
    unnamed = """[...document.querySelectorAll('#pairs :is(button, input, select, video, [role])')].filter(e =>
        !(e.labels?.length || e.ariaLabel || e.getAttribute('aria-labelledby') || e.textContent.trim()
          || e.getAttribute('role') === 'status')).map(e => e.outerHTML)"""
    assert page.evaluate(unnamed) == []


def test_an_address_holds_the_filters_and_the_open_pair(odd, opened):
    path = write_report(odd)
    rows = rows_of(odd)
    page = opened(path)
    page.select_option("#filter-member", "ada")
    page.select_option("#filter-side", "chosen")
    page.select_option("#filter-source", "toy-b")
    page.fill("#filter-margin-low", "40")
    page.fill("#filter-score-high", "95")
    page.fill("#filter-q", "the")
    page.select_option("#filter-sort", "margin-up")
    page.check("#filter-video")
    page.keyboard.press("k")
    page.keyboard.press("j")
    before = shown(page), opened_pair(page)
    assert len(before[0]) > 2
    page.wait_for_function("() => location.hash.includes('pair=')")
    page.wait_for_timeout(200)
    address = page.evaluate("location.hash")
    for words in ("member=ada", "side=chosen", "source=toy-b", "margin=0.4..", "score=..0.95", "q=the", "video=yes"):
        assert words in address
    again = opened(path, address)
    assert (shown(again), opened_pair(again)) == before
    assert again.evaluate("document.getElementById('pairs').getBoundingClientRect().top") < 10
    again.keyboard.press("Escape")
    assert len(shown(again)) == len(rows)

    far = rows[-1]
    single = opened(path, f"#pair={far['id']}")
    assert opened_pair(single) == far["id"] and len(shown(single)) == len(rows)
    single.evaluate("id => { location.hash = '#pair=' + id }", rows[3]["id"])
    single.wait_for_function("id => document.querySelector('#pair .facts a').hash === '#pair=' + id", arg=rows[3]["id"])
    single.evaluate("location.hash = '#arms'")  # an ordinary anchor stays one
    assert opened_pair(single) == rows[3]["id"]
    by_question = opened(path, f"#pair={far['question_id']}")
    assert opened_pair(by_question) == far["id"]
    odd_ones = opened(path, "#pair=nobody&member=nobody&sort=constructor&side=toString&margin=x..y&score=2")
    assert len(shown(odd_ones)) == len(rows) and "“nobody” is not on this page" in odd_ones.inner_text("#shown")


def test_the_open_pair_shows_every_score(made_run, opened, tmp_path):
    page = opened(report_of(made_run, tmp_path))
    run = Run(made_run)
    responses = {row["response_id"]: row for row in run.responses}
    page.click("#pair .others summary")
    for row in rows_of(made_run)[:5]:
        for side in ("chosen", "rejected"):
            card, source = page.locator(f"#pair .answer-card.{side}"), responses[row[f"response_id_{side}"]]
            assert card.locator(".said").inner_text() == source["response"]
            assert card.locator(".total").inner_text() == f"{row[f'score_{side}']:.2f}"
            names = [text.split("\n")[0] for text in card.locator(".judged dt").all_inner_texts()]
            assert names == [f"{s['judge']} · {s['criterion']}" for s in source["scores"]]
            assert card.locator(".judged .value").all_inner_texts() == [f"{s['score']:.2f}" for s in source["scores"]]
        others = [r for r in responses.values() if r["question_id"] == row["question_id"]]
        others = [r for r in others if r["model"] not in (row["model_chosen"], row["model_rejected"])]
        others.sort(key=lambda r: (-r["score"], r["model"]))
        assert page.locator("#pair .others .model").all_inner_texts() == [r["model"] for r in others]
        assert page.locator("#pair .others .judged .value").count() == 3 * len(others)
        facts = page.inner_text("#pair .facts")
        assert row["answer"] in facts and f"{row['margin']:.2f}" in facts
        page.keyboard.press("j")


def test_text_of_models_is_text(own_run, opened):
    dataset = own_run.parent / "mmaip-v"
    change(dataset / "preferences", lambda row: {**row, "question": NASTY, "answer": NASTY, "model_chosen": NASTY})
    change(dataset / "responses", lambda row: {**row, "response": NASTY, "model": NASTY})
    page = opened(write_report(own_run))
    for selector in ("#pair h3 .text", "#pair .answer-card.chosen .said .text", "#pair-list li .q .text"):
        assert page.text_content(selector) == NASTY
    page.fill("#filter-q", "onerror=document")
    assert len(shown(page)) == len(Run(own_run).pairs)
    page.select_option("#filter-member", NASTY)
    page.wait_for_timeout(200)
    again = opened(own_run / "report.html", page.evaluate("location.hash"))
    assert again.input_value("#filter-q") == "onerror=document" and len(shown(again)) == len(shown(page)) > 0
    assert again.title() == page.title() == "demo, seed 0: report"
    assert page.locator("img[src^=http], #pairs img").count() == 0


@pytest.mark.parametrize("width", [360, 400, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(odd, opened, width, scheme):
    context = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme, "reduced_motion": "reduce"}
    change(odd.parent / "mmaip-v" / "responses", lambda row: {**row, "response": "long" * 200, "model": "m" * 90})
    page = opened(write_report(odd), **context)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    if width < 720:
        assert not page.is_visible("#filter-member")
        page.click("#filters > summary")
    assert page.is_visible("#filter-member")
    page.fill("#filter-margin-low", "1")
    outside = """() => { const edge = document.querySelector('#browser').getBoundingClientRect().right + 1;
        return [...document.querySelectorAll('.search *, .fields *, .bar-line *, .panes > *, #pair > *, .cards > *')]
            .filter(e => e.getBoundingClientRect().right > edge).map(e => e.outerHTML.slice(0, 80)); }"""
    for _ in range(3):
        page.keyboard.press("j")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(outside) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(16, 20, 24)") == (scheme == "dark")
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_without_javascript_everything_but_the_browser_is_there(made_run, opened, tmp_path):
    page = opened(report_of(made_run, tmp_path), java_script_enabled=False)
    assert page.is_visible("noscript p") and not page.is_visible("#browser")
    assert page.locator("#samples article").count() == 6 and page.locator("#samples img").count() == 48
    assert page.locator("figure svg").count() > 5


def test_the_policy_stops_what_would_leave(made_run, chromium, tmp_path):
    page, failed, arrived = chromium.new_page(), [], []
    page.on("requestfailed", lambda request: failed.append((request.url, request.failure)))
    page.on("response", lambda response: arrived.append(response.url))
    page.goto(report_of(made_run, tmp_path).as_uri())
    stopped = page.evaluate("""async () => {
        const stopped = [];
        document.addEventListener("securitypolicyviolation", (event) => stopped.push(event.effectiveDirective));
        new Image().src = "http://127.0.0.1:9/x.png";
        await fetch("http://127.0.0.1:9/").catch(() => {});
        document.body.insertAdjacentHTML("beforeend", "<img src='data:,' onerror='window.owned = 1'>");
        const script = document.createElement("script");
        script.textContent = "window.owned = 2";
        document.body.append(script);
        await new Promise((done) => setTimeout(done, 300));
        return [stopped, window.owned ?? 0];
    }""")
    assert stopped[1] == 0
    assert {"img-src", "connect-src", "script-src-elem", "script-src-attr"} <= set(stopped[0])
    assert all(reason == "csp" for url, reason in failed if url.startswith("http"))
    assert not [url for url in arrived if url.startswith("http")]
    page.close()


def test_two_thousand_pairs(made_run, opened, tmp_path):
    text = render_report(Run(made_run))
    data, many = re.search(r'id="pairs-data">(.*?)</script>', text)[1], data_of(text)
    pairs = many["pairs"]
    many["pairs"] = [{**pairs[n % len(pairs)], "id": f"{n:012x}"} for n in range(2000)]
    (tmp_path / "report.html").write_text(text.replace(data, script_json(many)))
    page = opened(tmp_path / "report.html")
    assert len(shown(page)) == 2000 and page.inner_text("#place") == "1 of 2,000"
    page.keyboard.press("j")
    page.keyboard.press("End")
    assert opened_pair(page) == f"{1999:012x}"
    page.fill("#filter-q", "colour")
    assert 0 < len(shown(page)) < 2000
