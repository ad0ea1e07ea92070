"""Gold labels: their file, the sample they are drawn by, what they say of results, and how far people agree."""

import json
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.errors import KitError
from eval.gold import (
    GoldLabel,
    LabelFile,
    Sample,
    draw_sample,
    draw_videos,
    extend_sample,
    gold_for,
    match_gold,
    match_pairs,
    pair_gold_for,
    read_gold,
    response_hash,
    sample_path,
)
from eval.gold.items import items_of
from eval.gold.rows import CHOICES, VERDICTS, clean_name
from eval.results import Results

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
HASH = st.text("0123456789abcdef", min_size=16, max_size=16)


def results_of(answers: dict[str, str | None], name: str = "run") -> Results:
    """``{"v1-q1": "red"}``: the video is what stands before the dash."""
    rows = [
        {
            "question_id": question_id,
            "video_id": question_id.split("-")[0],
            "question_type": "colour",
            "question": f"what is {question_id} ?",
            "answers": ["red"],
            "response": response,
            "correct": None if response is None else 1,
            "score": None if response is None else 1.0,
            "error": "no video" if response is None else None,
        }
        for question_id, response in answers.items()
    ]
    return Results(name=name, model=f"models/{name}", model_revision="0" * 16, rows=rows)


def verdict(question_id: str, response: str, label: str, annotator: str = "ada", **more) -> GoldLabel:
    return GoldLabel(question_id, question_id.split("-")[0], (response_hash(response),), annotator, label, **more)


def choice(question_id: str, left: str, right: str, label: str, annotator: str = "ada", **more) -> GoldLabel:
    hashes = (response_hash(left), response_hash(right))
    models = ("models/x", "models/y")
    return GoldLabel(question_id, question_id.split("-")[0], hashes, annotator, label, models, **more)


# The file ------------------------------------------------------------------------------------------------------------


@given(
    st.builds(
        GoldLabel,
        question_id=TEXT,
        video_id=TEXT,
        responses=st.tuples(HASH),
        annotator=TEXT,
        label=st.sampled_from(VERDICTS),
        reference_shown=st.booleans(),
        labelled_at=st.none() | TEXT,
    )
    | st.builds(
        GoldLabel,
        question_id=TEXT,
        video_id=TEXT,
        responses=st.tuples(HASH, HASH),
        annotator=TEXT,
        label=st.sampled_from(CHOICES),
        models=st.tuples(TEXT, TEXT),
        asked=st.booleans(),
    )
)
@settings(max_examples=40, deadline=None)
def test_a_label_is_one_line_and_reads_back_as_it_was(tmp_path_factory, label):
    path = tmp_path_factory.mktemp("gold") / "gold.jsonl"
    LabelFile(path).append(label)
    assert path.read_bytes().count(b"\n") == 1
    assert read_gold(path) == [label]


def test_the_last_label_of_an_annotator_on_an_item_counts(tmp_path):
    file = LabelFile(tmp_path / "deep" / "gold.jsonl")
    assert file.labels() == []
    first, second = verdict("v1-q1", "red", "correct"), verdict("v1-q1", "red", "incorrect")
    others = [verdict("v1-q1", "red", "unsure", "bob"), verdict("v1-q1", "blue", "correct")]
    for label in (first, *others, second):
        file.append(label)
    assert file.labels() == read_gold(file.path) == [second, *others]
    assert read_gold(file.path, history=True) == [first, *others, second]


def test_swapped_answers_are_the_same_item():
    assert choice("v1-q1", "red", "blue", "A").item == choice("v1-q1", "blue", "red", "B").item
    assert choice("v1-q1", "red", "blue", "A").item != choice("v1-q1", "red", "green", "A").item


def test_a_torn_last_line_is_ignored_with_a_note_and_mended_by_the_next_label(tmp_path, capsys):
    path = tmp_path / "gold.jsonl"
    kept, torn, new = (verdict(f"v1-q{n}", "röt", "correct") for n in range(3))
    whole = (kept.as_json() + "\n").encode()
    for cut in range(1, len(torn.as_json().encode())):
        path.write_bytes(whole + torn.as_json().encode()[:cut])
        assert read_gold(path) == [kept]
        assert capsys.readouterr().err.count("was torn by a kill") == 1
    LabelFile(path).append(new)
    assert path.read_bytes() == whole + (new.as_json() + "\n").encode()
    assert capsys.readouterr().err == ""


def test_a_last_line_that_only_lacks_its_newline_counts(tmp_path, capsys):
    path = tmp_path / "gold.jsonl"
    first, second = verdict("v1-q1", "red", "correct"), verdict("v1-q2", "red", "correct")
    path.write_text(first.as_json())
    assert read_gold(path) == [first]
    LabelFile(path).append(second)
    assert read_gold(path) == [first, second]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "yes"}, "field 'label': must be one of correct, incorrect, unsure, not 'yes'"),
        ({"label": "A"}, "field 'label'"),
        ({"annotator": None}, "field 'annotator': must be a text, not None"),
        ({"question_id": 7}, "field 'question_id': must be a text, not 7"),
        ({"response_sha256": "red"}, "field 'response_sha256': must be the first 16 hex digits"),
        ({"reference_shown": "no"}, "field 'reference_shown': must be true or false"),
        ({"left": "red"}, "field 'left': must hold model and response_sha256"),
    ],
)
def test_a_row_that_is_no_label_is_named_with_line_and_field(tmp_path, change, message):
    path = tmp_path / "gold.jsonl"
    row = json.loads(verdict("v1-q1", "red", "correct").as_json())
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, **change}) + "\n")
    with pytest.raises(KitError, match=r"gold\.jsonl:2: ") as caught:
        read_gold(path)
    assert message in str(caught.value)


def test_a_broken_line_before_the_last_is_an_error(tmp_path):
    path = tmp_path / "gold.jsonl"
    path.write_text('{"question_id": "v1\n' + verdict("v1-q1", "red", "correct").as_json() + "\n")
    with pytest.raises(KitError, match=r"gold\.jsonl:1: not a JSON object"):
        read_gold(path)
    with pytest.raises(KitError, match="no such file"):
        read_gold(tmp_path / "none.jsonl")


WRITER = """
import sys
from eval.gold import GoldLabel, LabelFile, read_gold
from pathlib import Path
file = LabelFile(sys.argv[1])
for number in range(len(file.labels()), 10**6):
    file.append(GoldLabel(f"q{number}", "v", ("0" * 16,), sys.argv[2], "correct"))
    print(number, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill_and_a_new_process_goes_on(tmp_path):
    path, told = tmp_path / "gold.jsonl", -1
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", WRITER, path, "ada"], stdout=subprocess.PIPE, text=True) as writer:
            first = int(writer.stdout.readline())
            for _ in range(30):
                told = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            told = max([told, *(int(line) for line in writer.stdout.read().split("\n")[:-1])])
        with open(path, "ab") as stream:
            stream.write(b'{"question_id": "torn by the ki')
        labels = read_gold(path)
        assert [label.question_id for label in labels] == [f"q{n}" for n in range(len(labels))]
        assert told + 1 <= len(labels) <= told + 2  # one may have been stored and not told
        assert first < told


def test_two_processes_add_to_one_file(tmp_path):
    path = tmp_path / "gold.jsonl"
    code = WRITER.replace("10**6", "40").replace("len(file.labels())", "0")
    writers = [subprocess.Popen([sys.executable, "-c", code, path, who], stdout=subprocess.PIPE) for who in "ab"]
    assert [writer.communicate() and writer.returncode for writer in writers] == [0, 0]
    assert Counter(label.annotator for label in read_gold(path)) == {"a": 40, "b": 40}


def test_a_label_that_does_not_fit_on_the_disk_is_refused_and_leaves_the_file_whole(tmp_path):
    path = tmp_path / "gold.jsonl"
    LabelFile(path).append(verdict("v1-q1", "red", "correct"))
    before = path.read_bytes()
    code = (
        "import resource, signal, sys\nfrom eval.gold import GoldLabel, LabelFile\n"
        "from dataset_builder.errors import run_cli\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 20},) * 2)\n"
        "label = GoldLabel('q2', 'v', ('0' * 16,), 'ada', 'correct')\n"
        "sys.exit(run_cli(lambda: LabelFile(sys.argv[1]).append(label)))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the label could not be stored" in done.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 65, "\x1b[31m"])
def test_names_that_cannot_be_read_are_refused(name):
    with pytest.raises(KitError, match="annotator's name"):
        clean_name(name)
    assert clean_name(" Ada Lovelace ") == "Ada Lovelace"


# The sample ----------------------------------------------------------------------------------------------------------

IDS = st.lists(TEXT, min_size=1, max_size=30, unique=True)


@given(IDS, st.data(), st.integers(0, 2**32))
@settings(deadline=None)
def test_sample_whole_videos_prefix_and_determinism(ids, data, seed):
    results = results_of({f"{number}-q{q}": "red" for number in range(len(ids)) for q in range(3)})
    for row in results.rows:
        row["video_id"] = ids[int(row["question_id"].split("-")[0])]
    size = data.draw(st.integers(1, len(ids)))
    sample = draw_sample(results, size, seed)
    assert len(set(sample.videos)) == len(sample.videos) == size
    assert sample.population == len(ids)
    assert Counter(i.video_id for i in items_of(results, sample.videos)) == dict.fromkeys(sample.videos, 3)
    assert draw_sample(replace(results, rows=data.draw(st.permutations(results.rows))), size, seed) == sample
    longer = draw_sample(results, len(ids), seed)
    assert longer.videos[:size] == sample.videos
    assert extend_sample(sample, ids, len(ids)) == longer
    assert extend_sample(longer, ids, size) == longer


def test_each_video_is_as_likely_at_each_place():
    """1,000 seeds: counts of 10 videos in each of 10 places have mean 100 and standard deviation 9.5."""
    places = [Counter() for _ in range(10)]
    for seed in range(1000):
        for place, video in enumerate(draw_videos("abcdefghij", 10, seed).videos):
            places[place][video] += 1
    assert all(55 < count < 145 for place in places for count in place.values())
    assert sum((c - 100) ** 2 / 100 for p in places for c in p.values()) < 81 + 5 * 162**0.5


def test_a_sample_is_saved_and_read_back_and_refuses_what_does_not_fit(tmp_path):
    path = sample_path(tmp_path / "gold.jsonl")
    assert path.name == "gold.sample.json"
    sample = draw_videos("abcde", 3, seed=4)
    assert Sample.load(sample.save(path)) == sample
    with pytest.raises(KitError, match="5 other videos than these 6"):
        extend_sample(sample, "abcdef", 4)
    with pytest.raises(KitError, match="only 5 videos; --videos 5 takes all"):
        draw_videos("abcde", 6)
    path.write_text(path.read_text().replace('"seed": 4', '"seed": "4"'))
    with pytest.raises(KitError, match="field 'seed' must be of type int"):
        Sample.load(path)
    path.write_text("[]")
    with pytest.raises(KitError, match="not a sample of this kit"):
        Sample.load(path)


# What labels say of results ------------------------------------------------------------------------------------------


def test_gold_is_aligned_with_rows_and_counts_what_it_leaves_out():
    results = results_of({"v1-q1": "red", "v1-q2": "blue", "v2-q1": None, "v2-q2": "two", "v3-q1": "up"})
    labels = [
        verdict("v1-q1", "red", "correct"),
        verdict("v1-q2", "blue", "correct"),
        verdict("v1-q2", "blue", "incorrect"),
        verdict("v2-q2", "three", "incorrect"),
        verdict("v3-q1", "up", "unsure"),
        verdict("v9-q1", "red", "correct"),
        replace(verdict("v1-q1", "red", "incorrect", "bob"), video_id="v2"),
        choice("v1-q1", "red", "blue", "A"),
    ]
    matched = match_gold(results, labels)
    assert matched.values == gold_for(results, labels) == [1.0, 0.0, None, None, None]
    assert (matched.labelled, matched.undecided, matched.other_response, matched.unknown) == (2, 1, 1, 2)
    assert gold_for(results, []) == [None] * 5
    with pytest.raises(KitError, match="none of the 1 gold labels is about an answer in the results 'run'"):
        gold_for(results, [verdict("v1-q1", "green", "correct")])


@pytest.mark.parametrize(
    ("said", "value"),
    [("ccc", 1.0), ("cci", 1.0), ("ci", None), ("cu", None), ("cuu", None), ("ii", 0.0), ("ciu", None), ("cciu", None)],
)
def test_majority_of_annotators(said, value):
    words = {word[0]: word for word in VERDICTS}
    labels = [verdict("v1-q1", "red", words[letter], f"annotator {n}") for n, letter in enumerate(said)]
    assert gold_for(results_of({"v1-q1": "red"}), labels) == [value]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(CHOICES), st.booleans()), max_size=8))
def test_choices_do_not_depend_on_side_and_turn_round_with_the_results(said):
    a, b = results_of({"v1-q1": "red", "v1-q2": "x"}, "a"), results_of({"v1-q2": "x", "v1-q1": "blue"}, "b")
    other_side = {"A": "B", "B": "A"}
    labels = [choice("v1-q1", "red", "blue", label, who) for who, label, _ in said]
    turned = [
        choice("v1-q1", "blue", "red", other_side.get(label, label), who) if turn else straight
        for straight, (who, label, turn) in zip(labels, said)
    ]
    value = pair_gold_for(a, b, labels)[0]
    assert pair_gold_for(a, b, turned)[0] == value
    assert pair_gold_for(b, a, labels)[1] == (None if value is None else 1 - value)
    if said and {label for _, label, _ in said} == {"A"}:
        assert value == 1.0


def test_choices_on_other_answers_are_counted():
    a, b = results_of({"v1-q1": "red", "v2-q1": "x"}, "a"), results_of({"v1-q1": "blue", "v2-q1": None}, "b")
    labels = [
        choice("v1-q1", "blue", "red", "B"),
        choice("v1-q1", "blue", "green", "A"),
        choice("v7-q1", "a", "b", "A"),
    ]
    matched = match_pairs(a, b, labels)
    assert matched.values == [1.0, None]
    assert (matched.labelled, matched.other_response, matched.unknown) == (1, 1, 1)
