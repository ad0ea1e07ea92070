"""The page, in gradio: it shows one item after the other and passes what is said of them on to the session.

Import it after ``server.quiet_gradio``: gradio reads its settings when it is imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import gradio as gr

from dataset_builder.errors import KitError
from eval.gold.page import view
from eval.gold.rows import clean_name
from eval.gold.session import Labelling

# The annotator's name goes into the address, so that reloading the page goes on with it.
REMEMBER = (
    "(shown) => { const who = shown && JSON.parse(shown).annotator; const url = new URL(window.location);"
    " if (who && url.searchParams.get('annotator') !== who) {"
    " url.searchParams.set('annotator', who); window.history.replaceState(null, '', url); } }"
)


def build_page(
    session: Labelling,
    videos: list[str],
    clip_error: Callable[[str], str | None],
    agreement: Callable[[], tuple],
    annotator: str | None = None,
) -> gr.Blocks:
    """The page.

    What is on the screen travels with each event, in the browser's own state: a label always goes to the item that was
    looked at, also when the command was started again below an open page.

    Args:
        session: items and labels.
        videos: video ids by the number that ``/clip/NUMBER`` knows them under.
        clip_error: says why a video cannot be shown, or None.
        agreement: gives the header, rows and note of the table of agreement.
        annotator: whose labels these are unless the address or the person says otherwise; None asks.
    """
    is_pair = session.items[0].is_pair
    what = "pairs" if is_pair else "answers"
    numbers = {video_id: number for number, video_id in enumerate(videos)}

    with gr.Blocks(title="Label answers", analytics_enabled=False) as page:
        shown = gr.Textbox(visible=False)
        top = gr.HTML()
        message = gr.HTML(visible=False)
        with gr.Column(visible=False, elem_id="welcome") as welcome:
            gr.HTML("<h2>Label answers</h2><p>Watch the video, read the question, judge the answer.</p>")
            name = gr.Textbox(label="Your name", max_lines=1, elem_id="name", info="Your labels are stored under it.")
            start = gr.Button("Start", variant="primary", elem_id="start")
        with gr.Row(visible=False, elem_id="desk") as desk:
            with gr.Column(scale=6, min_width=320) as screen:
                clip = gr.HTML()
            with gr.Column(scale=7, min_width=340):
                card = gr.HTML()
                reference = gr.HTML(visible=False)
                with gr.Row(elem_id="labels") as choices:
                    labels = {
                        label: gr.Button(view.NAMES[label], elem_id=f"key-{view.KEYS[label]}")
                        for label in session.choices
                    }
                with gr.Row(elem_id="moves"):
                    back = gr.Button("Back", elem_id="key-left", variant="secondary")
                    forward = gr.Button("Forward", elem_id="key-right", variant="secondary")
                    look = gr.Button("Reference", elem_id="key-r", variant="secondary")
                hint = gr.HTML(view.hint(is_pair))
        with gr.Accordion("Export and agreement", open=False, visible=False, elem_id="more") as more:
            export = gr.HTML()
            table = gr.HTML()
        outputs = [shown, top, message, welcome, desk, screen, clip, card, reference]
        outputs += [choices, *labels.values(), back, forward, look, hint, more, export]

        def optional(html: str) -> dict:
            """An update that leaves no gap where there is nothing to say."""
            return gr.update(value=html, visible=bool(html))

        def show(who: str, position: int | None, opened: bool = False, note: str | None = None) -> dict:
            """The whole screen: an item, its references open or not, or (position None) the end."""
            progress, total, at_end = session.progress(who), len(session.items), position is None
            state = {"annotator": who, "position": position, "opened": opened}
            given = None
            if at_end:
                body = {screen: gr.update(visible=False), clip: "", card: view.finished(progress, what)}
            else:
                item, given = session.items[position], session.given(who, position)
                state["key"] = list(item.key)
                body = {
                    screen: gr.update(visible=True),
                    clip: view.clip(numbers[item.video_id], clip_error(item.video_id)),
                    card: view.card(item, item.order(who), position, total, given),
                }
            buttons = {
                button: gr.update(elem_classes=["given"] if label == given else []) for label, button in labels.items()
            }
            return {
                shown: json.dumps(state),
                top: view.header(who, progress, what),
                message: optional(view.notice(note)),
                welcome: gr.update(visible=False),
                desk: gr.update(visible=True),
                **body,
                choices: gr.update(visible=not at_end),
                **buttons,
                hint: gr.update(visible=not at_end),
                reference: optional("" if at_end else view.reference(item, opened)),
                back: gr.update(interactive=at_end or position > 0),
                forward: gr.update(interactive=not at_end and position + 1 < total),
                look: gr.update(interactive=not at_end, value="Hide reference" if opened else "Reference"),
                more: gr.update(visible=True),
                export: view.export(len(session.file.labels())),
            }

        def ask(note: str | None = None) -> dict:
            """The question for a name."""
            return {
                message: optional(view.notice(note)),
                welcome: gr.update(visible=True),
                desk: gr.update(visible=False),
                more: gr.update(visible=False),
            }

        def begin(who: str | None) -> dict:
            """The first item that this annotator has not labelled."""
            if not who:
                return ask()
            try:
                who = clean_name(who)
                return show(who, session.next_after(who))
            except KitError as error:
                return ask(str(error))

        def on_load(request: gr.Request) -> dict:
            return begin(request.query_params.get("annotator") or annotator)

        def on_screen(step: Callable[[str, int | None, bool], dict]) -> Callable[[str], dict]:
            """Run ``step(annotator, position, opened)`` for what the browser shows."""

            def run(state: str) -> dict:
                try:
                    held = json.loads(state)
                    who, position, opened = clean_name(held["annotator"]), held["position"], held["opened"]
                except (ValueError, KeyError, TypeError):
                    return begin(annotator)
                if position is not None:
                    items = session.items
                    if not 0 <= position < len(items) or list(items[position].key) != held.get("key"):
                        note = "The command was started with other answers; this is the first one to label."
                        return show(who, session.next_after(who), note=note)
                try:
                    return step(who, position, opened)
                except KitError as error:
                    return show(who, position, opened, note=str(error))

            return run

        def give(label: str) -> Callable[[str, int | None, bool], dict]:
            def step(who: str, position: int | None, opened: bool) -> dict:
                if position is None:  # a key that came too late
                    return show(who, None)
                session.give(who, position, label, reference_shown=opened)
                return show(who, session.next_after(who, position))

            return step

        def go_back(who: str, position: int | None, opened: bool) -> dict:
            return show(who, max(0, (len(session.items) if position is None else position) - 1))

        def go_forward(who: str, position: int | None, opened: bool) -> dict:
            return show(who, None if position is None else min(position + 1, len(session.items) - 1))

        def toggle(who: str, position: int | None, opened: bool) -> dict:
            if position is None:
                return show(who, None)
            if not opened:
                session.look(who, position)
            return show(who, position, not opened)

        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(on_load, None, outputs, **quiet).then(None, shown, None, js=REMEMBER)
        gr.on([start.click, name.submit], begin, name, outputs, **quiet).then(None, shown, None, js=REMEMBER)
        for label, button in labels.items():
            button.click(on_screen(give(label)), shown, outputs, **quiet)
        for button, step in ((back, go_back), (forward, go_forward), (look, toggle)):
            button.click(on_screen(step), shown, outputs, **quiet)
        more.expand(lambda: view.table(*agreement()), None, table, **quiet)
    return page
