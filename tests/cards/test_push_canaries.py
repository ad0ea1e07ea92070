"""Canaries: a secret, a path or a pickle hidden where nobody looks is found before anything leaves."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cards.push import checks, notes
from cards.push.binary import EDGE
from cards.push.checks import problems
from cards.push.leaks import Leaks
from cards.push.plan import Options, PlannedFile, make_plan
from tests.cards.pushing import copy

TOKEN = "hf_" + "QmZkTrYvWbNcLpXsDgHjKfAqRtEyUiOpMn"  # put together here, so that nobody's scanner finds one
KEY = "AKIA" + "Q3EGRIZ6LN2PXYT4"
PLACE = "/home/somebody/secret/clip.mp4"


@pytest.fixture(scope="module")
def leaks() -> Leaks:
    return Leaks()


def said(leaks: Leaks, path: str, content: bytes) -> list[str]:
    found = [f"{finding.where}: {finding.what}" for finding in leaks.in_file(PlannedFile.of(path, content))]
    assert not any(secret in line for line in found for secret in (TOKEN, KEY))
    return found


def picture(**metadata: object) -> bytes:
    """A PNG as matplotlib writes it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    stream = io.BytesIO()
    Figure(figsize=(1, 1)).savefig(stream, format="png", metadata=metadata)
    return stream.getvalue()


def with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:-12] + chunk + png[-12:]


def test_metadata_of_pictures(leaks):
    clean = picture()
    assert said(leaks, "figures/a.png", clean) == []
    for png in (
        picture(Comment=f"made with {TOKEN}"),
        picture(Source=PLACE),
        with_chunk(clean, b"zTXt", b"Comment\0\0" + zlib.compress(f"by {KEY}".encode())),
        with_chunk(clean, b"iTXt", b"XML\0\1\0\0\0" + zlib.compress(f"<x>at {PLACE}</x>".encode())),
        with_chunk(clean, b"eXIf", f"UNICODE {TOKEN}".encode("utf-16-le")),
        clean + f"trailing {KEY}".encode(),
    ):
        line, *more = said(leaks, "figures/a.png", png)
        assert not more, more
        assert line.startswith("figures/a.png: in what it says of itself: ")


def test_text_inside_vector_pictures_json_and_the_report(leaks):
    svg = f'<svg xmlns="http://www.w3.org/2000/svg"><metadata>{TOKEN}</metadata></svg>'
    report = f"<html><script>const rows = {json.dumps([{'video': PLACE}])}</script></html>"
    for path, text, word in (
        ("figures/a.svg", svg, "Hugging Face Token"),
        ("results/a.json", json.dumps({"metadata": {"made": [{"by": PLACE}]}}), PLACE),
        ("report.html", report, PLACE),
        ("report.html", report.replace(PLACE, KEY), "AWS"),
        (f"notes-{TOKEN}.txt", "nothing", "Hugging Face Token"),
    ):
        (line,) = said(leaks, path, text.encode())
        assert word in line and line.startswith((f"{path}:", "the name of a file in the top folder: "))


def parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def test_cells_and_metadata_of_parquet(leaks):
    messages = [[{"role": "user", "content": [{"type": "text", "text": f"see {PLACE}"}]}]]
    (line,) = said(leaks, "a.parquet", parquet(pa.table({"prompt": messages})))
    assert line == f"a.parquet: column prompt: a path of this machine ({PLACE})"
    padding = b"\xff\x01" * EDGE  # longer than what is looked at in the middle
    for place in (b"%s" + padding * 2, padding * 2 + b"%s"):
        video = [{"bytes": b"\0\0\0\x1cftypmp42" + place.replace(b"%s", b"\0" + TOKEN.encode()), "path": None}]
        table = pa.table({"video": pa.array(video, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
        (line,) = said(leaks, "a.parquet", parquet(table))
        assert line.startswith("a.parquet: column video: in what it says of itself: what looks like a secret")
    table = pa.table({"a": [1]}).replace_schema_metadata({"made_by": PLACE})
    assert PLACE in said(leaks, "a.parquet", parquet(table))[0]


def test_a_clip_that_says_who_made_it(leaks, tmp_path):
    import av
    import numpy as np

    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["comment"] = f"from {PLACE}"
        stream = container.add_stream("libx264", rate=4)
        stream.width = stream.height = 32
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    video = pa.array([{"bytes": path.read_bytes()}], pa.struct([("bytes", pa.binary())]))
    (line,) = said(leaks, "a.parquet", parquet(pa.table({"video": video})))
    assert f"a path of this machine ({PLACE})" in line


def test_words_for_commits_tags_and_notes(finished, tmp_path, monkeypatch):
    """Nothing of the sort reaches a commit message: neither by the release's name nor by the changelog."""
    monkeypatch.setattr(Leaks, "in_file", lambda *_: iter(()))
    plan = make_plan(finished, Options("tester"))
    assert problems(plan) == []
    run = copy(finished, tmp_path / "copy")
    (run / "CHANGELOG.md").write_text(f"# Log\n\n## 1.1\n\n- trained on {PLACE}\n")
    (line,) = problems(make_plan(run, Options("tester")))
    assert line.startswith("words for commits and tags:") and PLACE in line
    assert notes.changelog(plan.run).startswith("## ")  # the kit's own, where the run has none
    (run / "CHANGELOG.md").unlink()
    (line,) = problems(make_plan(run, Options("tester", name=TOKEN)))[:1]
    assert "Hugging Face Token" in line


def test_pickles_under_innocent_names(finished, tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(checks, "_leaks", lambda *rest: iter(()))
    run = copy(finished, tmp_path / "copy")
    torch.save({"a": torch.ones(1)}, run / "evaluator" / "weights.data")
    (run / "evaluator" / "old.dat").write_bytes(pickle.dumps(Path("x"), protocol=0))
    lines = problems(make_plan(run, Options("tester")))
    assert any("weights.data: is a pickle by its content" in line for line in lines)
    assert any("old.dat: is a pickle by its content" in line for line in lines)
