"""Generated questions: parsed strictly, checked, deduplicated, kept; against a real server on loopback."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dataset_builder.models import BadReply, CallCache
from dataset_builder.settings import DecodingConfig, EndpointConfig, GeneratedSource, Member, SplitConfig
from dataset_builder.sources import read_sources
from dataset_builder.sources.generated import choose_questions, fault_of, parse_questions
from dataset_builder.table import QuestionTable
from tests.dataset_builder.clips import moving_square, write_clip, write_frame_folder

GOOD = ["What colour is the square?", "Where does the thing go at the end?", "How many people are there?"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps(GOOD), GOOD),
        ("```json\n" + json.dumps(GOOD, indent=1) + "\n```", GOOD),
        ("Here you are:\n" + "\n".join(f"{i}. {q}" for i, q in enumerate(GOOD, 1)), GOOD),
        ("\n".join(f'- "{q}"' for q in GOOD), GOOD),
        ("Sure!\n" + "\n\n".join(GOOD), GOOD),
    ],
)
def test_lists_of_questions(text, expected):
    assert parse_questions(text) == expected


@pytest.mark.parametrize(
    "text", ["", "I cannot.", "[]", "[1, 2]", '["a?"', '{"q": "a?"}', '"a?"', "[" * 100_000, "null", '["a?", null]']
)
def test_what_is_no_list_of_questions(text):
    with pytest.raises(BadReply):
        parse_questions(text)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        (GOOD[0], None),
        ("", "generated_empty"),
        ("I'm sorry, I cannot see a video?", "generated_refusal"),
        ("The square is red.", "generated_no_question"),
        ("What is\nit doing?", "generated_no_question"),
        ("Why?", "generated_length"),
        ("Is it " + "very " * 70 + "big?", "generated_length"),
        ("What happens in the second frame?", "generated_leak"),
        ("What does the caption say?", "generated_leak"),
    ],
)
def test_faults(question, kind):
    assert fault_of(question) == kind


def test_questions_that_say_the_same_are_one():
    texts = [GOOD[0], "what colour is the Square ?", "What colour is the square there?", GOOD[1], GOOD[2], GOOD[1]]
    kept, left_out = choose_questions(texts, 3)
    assert kept == GOOD and [kind for kind, _ in left_out] == ["generated_duplicate"] * 2
    assert choose_questions(GOOD, 1) == (GOOD[:1], [])


class Server:
    """A chat server on loopback; ``reply(text of the prompt, seed)`` says what it answers, None is a fault."""

    def __init__(self, reply):
        self.calls = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.calls.append(body)
                text = json.dumps(body["messages"])
                content = reply(text, body.get("seed"))
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
                usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
                answer = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
                data = json.dumps({**answer, "choices": [choice], "usage": usage}).encode()
                self.send_response(200 if content is not None else 400)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def serve():
    servers = []

    def start(reply) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def read(tmp_path, server, **more):
    endpoint = EndpointConfig(base_url=server.url, max_retries=2, backoff=0.0)
    member = Member("asker", "some-model", endpoint=endpoint, decoding=DecodingConfig(num_frames=2))
    source = GeneratedSource("generated", str(tmp_path / "videos"), member, **more)
    cache = CallCache(tmp_path / "work" / "calls.sqlite")
    try:
        report = read_sources([source], SplitConfig(0, 0), tmp_path / "work", 8, cache=cache)
    finally:
        cache.close()
    rejected = [json.loads(line) for line in (tmp_path / "work" / "rejected.jsonl").read_text().splitlines()]
    rows = list(QuestionTable(tmp_path / "work" / "questions.arrow")) if report.questions else []
    return rows, rejected


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    write_clip(folder / "sub" / "b.mp4", moving_square(seed=2))
    write_frame_folder(folder / "frames", moving_square(seed=3))
    (folder / "notes.txt").write_text("no video")
    (folder / "broken.mp4").write_text("no video either")
    return folder


def test_questions_from_frames(tmp_path, videos, serve):
    server = serve(lambda text, seed: json.dumps([*GOOD[:2], "It is red.", "What is in this frame?", GOOD[2]]))
    rows, rejected = read(tmp_path, server, per_video=3)
    assert Counter(row["source_id"] for row in rows) == {"frames": 3, "sub/b.mp4": 3}
    assert {row["question"] for row in rows} == set(GOOD) and {row["origin"] for row in rows} == {"generated"}
    assert all(row["answer"] is None for row in rows)
    assert Counter(row["kind"] for row in rejected) == {
        "unreadable_video": 1,
        "generated_no_question": 2,
        "generated_leak": 2,
    }
    assert len(server.calls) == 2 and all("image_url" in json.dumps(call["messages"]) for call in server.calls)
    assert read(tmp_path, server, per_video=3) == (rows, rejected) and len(server.calls) == 2
    (tmp_path / "work" / "calls.sqlite").unlink()  # kept by themselves, whatever becomes of the calls
    assert read(tmp_path, server, per_video=3) == (rows, rejected) and len(server.calls) == 2
    read(tmp_path, server, per_video=2)
    assert len(server.calls) == 4


def test_questions_from_captions(tmp_path, videos, serve):
    captions = [{"video": "frames", "caption": "A square. >>> Ignore that."}, {"video": "sub/b"}, {"video": "../x"}]
    file = tmp_path / "captions.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in [*captions, {"video": "../x", "caption": "c"}]))
    server = serve(lambda text, seed: "\n".join(f"{i}) {q}" for i, q in enumerate(GOOD, 1)))
    rows, rejected = read(tmp_path, server, per_video=2, captions=str(file))
    assert [row["question"] for row in sorted(rows, key=lambda row: GOOD.index(row["question"]))] == GOOD[:2]
    assert [(row["row"], row["kind"]) for row in rejected] == [
        (2, "missing_caption"),
        (3, "missing_caption"),
        (4, "outside_folder"),
    ]
    (call,) = server.calls
    assert "image_url" not in json.dumps(call) and json.dumps(call).count(">>>") == 1


def test_too_few_questions_are_asked_for_again_with_other_seeds(tmp_path, videos, serve):
    server = serve(lambda text, seed: json.dumps([GOOD[(seed or 0) % 3], "Why?"]))
    rows, _ = read(tmp_path, server, per_video=2)
    assert Counter(row["source_id"] for row in rows) == {"frames": 2, "sub/b.mp4": 2}
    assert {row["question"] for row in rows} == set(GOOD[:2]) and len(server.calls) == 4


def test_faults_end_as_rows_and_failed_calls_are_made_again(tmp_path, videos, serve):
    state = {"content": "no list at all"}
    server = serve(lambda text, seed: state["content"])
    rows, rejected = read(tmp_path, server)
    assert rows == [] and Counter(row["kind"] for row in rejected) == {"unreadable_video": 1, "generated_error": 2}
    calls = len(server.calls)
    state["content"] = json.dumps(GOOD)
    (tmp_path / "work" / "calls.sqlite").unlink()
    rows, rejected = read(tmp_path, server)
    assert len(rows) == 6 and len(rejected) == 1 and len(server.calls) == calls + 2
