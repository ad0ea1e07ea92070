"""Configurations: what is right is read, and whatever is wrong is one line that names file and key."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import dataset_builder
from dataset_builder.config import BuildConfig, ReferenceJudgeConfig, VisualJudgeConfig, load_build_config, load_yaml
from dataset_builder.errors import KitError

SMALL = """
source: {videos: clips, questions: clips/q.jsonl}
zoo:
  - {name: a, model: models/a}
judges:
  - {kind: reference}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "build.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str, cls: type = BuildConfig) -> str:
    """The one line that a wrong file ends in, without the file's name."""
    path = write(folder, text)
    with pytest.raises(KitError) as caught:
        load_yaml(path, cls)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message.removeprefix(str(path)).lstrip(": ")


def test_defaults(tmp_path):
    config = load_build_config(write(tmp_path, SMALL))
    assert (config.name, config.seed, config.block_size, config.pairs.min_margin) == ("mmaip-v", 0, 64, 0.1)
    assert (config.source.kind, config.source.license, config.source.redistribute) == ("folder", "unknown", False)
    assert (config.split.validation, config.split.test) == (0.1, 0.1)
    member = config.zoo[0]
    assert (member.samples, member.revision, member.decoding.num_frames) == (1, None, 8)
    assert config.judges == [ReferenceJudgeConfig(kind="reference", weight=1.0)]


def test_everything_set(tmp_path):
    text = SMALL.replace("- {kind: reference}", "- {kind: visual, model: v, num_frames: 4, weight: 2, name: eye}")
    text += "seed: 3\nsplit: {validation: 0, test: 0.5}\npairs: {min_margin: 1e-3}\n"
    config = load_build_config(write(tmp_path, text))
    assert config.judges == [VisualJudgeConfig(kind="visual", model="v", num_frames=4, weight=2.0, name="eye")]
    assert config.seed == 3 and config.split.validation == 0.0
    assert config.pairs.min_margin == 0.001  # YAML 1.1 reads 1e-3 as text


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("zoo:", "zooo:", "zooo: is not a known key; did you mean 'zoo'?"),
        ("model: models/a", "modell: x", "zoo[0].modell: is not a known key; did you mean 'model'?"),
        (
            "model: models/a",
            "model: x, temperature: 1.0",
            "zoo[0].temperature: is not a known key; did you mean 'decoding",
        ),
        (
            "model: models/a",
            "model: x, decoding: {top_k: 3}",
            "zoo[0].decoding.top_k: is not a known key; did you mean",
        ),
        (", model: models/a", "", "zoo[0].model: is missing"),
        ("model: models/a", "model: x, samples: many", "zoo[0].samples: must be a whole number, not text ('many')"),
        ("model: models/a", "model: x, samples: 1.5", "zoo[0].samples: must be a whole number, not a number (1.5)"),
        ("model: models/a", "model: x, samples: true", "zoo[0].samples: must be a whole number, not true or false"),
        ("model: models/a", "model: x, samples: 0", "zoo[0]: samples must be at least 1"),
        ("model: models/a", "model: 7", "zoo[0].model: must be text, not a whole number (7); put it in quotes"),
        ("model: models/a", "model: x, decoding: {top_p: 2}", "zoo[0].decoding: top_p must be above 0"),
        ("model: models/a", "model: x, decoding: {top_p: .nan}", "zoo[0].decoding.top_p: must be a number"),
        ("name: a", "name: a/b", "zoo[0]: name: 'a/b' may hold letters"),
        ("kind: reference", "kind: referense", "judges[0].kind: 'referense' is not known; did you mean 'reference'?"),
        ("kind: reference", "weight: 1", "judges[0].kind: is missing (known are reference, visual)"),
        ("kind: reference", "kind: reference, model: x", "judges[0].model: is not a known key"),
        ("kind: reference", "kind: visual", "judges[0].model: is missing"),
        ("kind: reference", "kind: reference, weight: -1", "judges[0]: weight must be 0"),
        ("kind: reference", "kind: reference, weight: 0", "judges: every weight is 0"),
        ("- {kind: reference}", "[]", "judges: names nothing"),
        (
            "- {kind: reference}",
            "- {kind: reference}\n  - {kind: reference}",
            "judges: the name 'reference' stands for two",
        ),
        ("- {kind: reference}", "reference", "judges: must be a list, not text"),
        ("- {kind: reference}", "- reference", "judges[0]: must be `key: value` lines, not text"),
        ("videos: clips", "videos: clips, kind: hub", "source.kind: must be one of 'folder', not 'hub'"),
        ("videos: clips", "videos: clips, redistribute: 1", "source.redistribute: must be true or false"),
        ("videos: clips", "videos:", "source.videos: must be text, not nothing"),
        ("videos: clips", "videos: clips, videos: b", "not valid YAML: 'videos' stands here twice"),
        ("videos: clips", "videos: !!python/object/apply:os.system [ls]", "python/object/apply:os.system is refused"),
        ("videos: clips", "videos: !!python/name:os.system ''", "is refused: plain values only"),
        ("videos: clips", "videos: [", "not valid YAML"),
        ("videos: clips", "videos: &a [*b]", "not valid YAML: found undefined alias"),
    ],
)
def test_wrong_values(tmp_path, old, new, says):
    assert old in SMALL
    assert says in refusal(tmp_path, SMALL.replace(old, new))


def test_wrong_shares(tmp_path):
    assert refusal(tmp_path, SMALL + "split: {validation: 0.6, test: 0.6}").startswith("split: validation and test")


def test_wrong_files(tmp_path):
    assert refusal(tmp_path, "") == "is empty"
    assert refusal(tmp_path, "- a\n- b") == "must hold `key: value` lines, not a list"
    assert refusal(tmp_path, "when: 2024-99-99").startswith("not valid YAML")
    (tmp_path / "latin.yaml").write_bytes("name: Müller".encode("latin-1"))
    for name, says in (("none.yaml", "no such file"), (".", "is a folder"), ("latin.yaml", "not UTF-8")):
        with pytest.raises(KitError, match=says):
            load_yaml(tmp_path / name, BuildConfig)


def test_a_yaml_tag_never_runs_anything(tmp_path):
    mark = tmp_path / "mark"
    refusal(tmp_path, f"name: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]")
    assert not mark.exists()


@dataclass
class Inner:
    rate: float = 1.0


@dataclass
class Outer:
    path: Path
    inner: Inner | None = None
    table: dict[str, Inner] = field(default_factory=dict)
    numbers: tuple[int, ...] = ()
    either: int | str = 0
    free: dict = field(default_factory=dict)


def test_other_dataclasses(tmp_path):
    text = (
        "path: a/b\ninner: {rate: 2}\ntable: {x: {rate: 3}}\nnumbers: [1, 2]\neither: hello\nfree: {a: [1, {b: null}]}"
    )
    outer = load_yaml(write(tmp_path, text), Outer)
    assert outer == Outer(Path("a/b"), Inner(2.0), {"x": Inner(3.0)}, (1, 2), "hello", {"a": [1, {"b": None}]})
    assert load_yaml(write(tmp_path, "path: a\ninner: null"), Outer).inner is None
    assert refusal(tmp_path, "path: a\ntable: {x: {rat: 3}}", Outer).startswith("table.x.rat: is not a known key")
    assert refusal(tmp_path, "path: a\nnumbers: [1, b]", Outer).startswith("numbers[1]: must be a whole number")
    assert refusal(tmp_path, "path: a\neither: [1]", Outer).startswith("either: must be int or str, not a list")
    assert refusal(tmp_path, "path: a\nrate: 1", Outer) == "rate: is not a known key; did you mean 'inner.rate'?"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
places = st.sampled_from(
    ["name", "seed", "source", "split", "zoo", "judges", "pairs", "block_size", "zoo.0", "judges.0"]
)


@settings(max_examples=200, deadline=None)
@given(place=places, value=values)
def test_any_value_anywhere_is_read_or_refused_in_one_line(tmp_path_factory, place, value):
    data = yaml.safe_load(SMALL)
    key, _, index = place.partition(".")
    if index:
        data[key][0] = value
    else:
        data[key] = value
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    try:
        config = load_yaml(path, BuildConfig)
    except KitError as error:
        assert len(str(error).splitlines()) == 1 and str(path) in str(error)
    else:
        assert isinstance(asdict(config), dict)


def test_the_shipped_example_is_read():
    path = Path(dataset_builder.__file__).parent / "configs" / "own_videos.yaml"
    config = load_build_config(path)
    assert {judge.kind for judge in config.judges} == {"reference", "visual"}
    assert len(config.zoo) >= 4 and not config.source.redistribute


def test_the_shipped_example_names_the_models_that_the_demo_makes():
    root = Path(dataset_builder.__file__).parent
    config = load_build_config(root / "configs" / "own_videos.yaml")
    demo = yaml.safe_load((root.parent / "cards" / "configs" / "demo.yaml").read_text())
    made = [entry["model"] for entry in [*demo["build"]["zoo"], *demo["build"]["judges"]] if "model" in entry]
    named = [entry["model"] for key in ("zoo", "judges") for entry in asdict(config)[key] if "model" in entry]
    assert sorted(named) == sorted(path.replace("{run}", demo["run_dir"]) for path in made)
