"""Configurations: what is right is read, and whatever is wrong is one line that names file and key."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import dataset_builder
from dataset_builder.errors import KitError
from dataset_builder.settings import (
    BuildConfig,
    ReferenceJudgeConfig,
    VisualJudgeConfig,
    from_dict,
    load_build_config,
    load_yaml,
)

CONFIGS = Path(dataset_builder.__file__).parent / "configs"

SMALL = """
sources:
  - {kind: folder, videos: clips, questions: clips/q.jsonl}
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
    source = config.sources[0]
    # Null: what is known of a well-known source decides, and of any other nothing is passed on.
    assert (source.kind, source.license, source.redistribute, source.fps) == ("folder", None, None, 2.0)
    assert (config.ids_only, config.imports, config.max_shard_mb) == (False, False, 256)
    assert (config.split.validation, config.split.test) == (0.1, 0.1)
    member = config.zoo[0]
    assert (member.samples, member.revision, member.endpoint, member.decoding.num_frames) == (1, None, None, 8)
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
        (
            "kind: reference",
            "weight: 1",
            "judges[0].kind: is missing (known are reference, visual, vlm, vqa, video_chatgpt, hound)",
        ),
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
        ("kind: folder", "kind: foldr", "sources[0].kind: 'foldr' is not known; did you mean 'folder'?"),
        ("kind: folder, ", "", "sources[0].kind: is missing (known are folder, hub, sharegpt, activitynet_qa"),
        ("kind: folder", "kind: hub", "sources[0].questions: is not a known key"),
        ("sources:", "source:", "source: is not a known key; did you mean 'sources'?"),
        ("videos: clips", "videos: clips, redistribute: 1", "sources[0].redistribute: must be true or false"),
        ("videos: clips", "videos:", "sources[0].videos: must be text, not nothing"),
        ("videos: clips", "videos: clips, fps: 0", "sources[0]: fps must be above 0"),
        ("videos: clips", "videos: clips, columns: {questoin: q}", "sources[0]: columns: 'questoin' is not a name of"),
        ("model: models/a", "model: x, prompt: Answer.", "zoo[0]: prompt: must hold {question}"),
        ("model: models/a", "model: x, decoding: {fps: 0}", "zoo[0].decoding: fps must be above 0"),
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


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("{base_url: 127.0.0.1:8000}", "base_url: '127.0.0.1:8000' must begin with http:// or https://"),
        ('{base_url: "http://[::1"}', "is no address"),
        ('{base_url: "https://me:hush@host/v1"}', "base_url: may not hold a name or password"),
        ('{base_url: "http://h/v1", provider: together}', "give base_url or provider, not both"),
        ("{api_key_env: hf-not-a-name}", "api_key_env: must be the name of an environment variable, not a key itself"),
        ("{api_key: hush}", "api_key: is not a known key; did you mean 'api_key_env'?"),
        ("{concurrency: 0}", "concurrency must be at least 1"),
        ("{requests_per_minute: 0}", "requests_per_minute must be above 0"),
        ("{spend_limit: -1}", "max_backoff and spend_limit must be 0 or more"),
        ("{price: {prompt: -1}}", "endpoint.price: prices and frame_tokens must be 0 or more"),
        ("{price: 3}", "endpoint.price: must be `key: value` lines, not a whole number"),
        ("{frames: gif}", "endpoint.frames: must be one of 'images', 'video', not 'gif'"),
        ("{extra_body: {seed: 1}}", "extra_body: may not hold seed, which the kit sets itself"),
    ],
)
def test_wrong_endpoints(tmp_path, endpoint, says):
    said = refusal(tmp_path, SMALL.replace("model: models/a", f"model: x, endpoint: {endpoint}"))
    assert said.startswith("zoo[0].endpoint") and says in said and "hush" not in said


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ("{min_margin: 2}", "pairs: min_margin must be from 0 to 1"),
        ("{min_chosen: 5}", "pairs: min_chosen must be from 0 to 1"),
        ("{margin: 0.1}", "pairs.margin: is not a known key"),
        ("{select: best}", "pairs.select: must be one of 'best_worst', 'all', not 'best'"),
        ("{ties: short}", "pairs.ties: must be one of 'id', 'shorter', 'longer', 'drop', not 'short'"),
        ("{max_per_video: 0}", "pairs: max_per_question and max_per_video must be at least 1"),
        ("{dedup: {questions: meaning}}", "pairs.dedup: model: `meaning` needs a sentence-embedding model"),
        ("{dedup: {threshold: 0}}", "pairs.dedup: threshold must be above 0"),
        ("{decontaminate: [{name: x}]}", "pairs.decontaminate[0]: give a dataset, a questions file or a folder"),
        ("{decontaminate: [{name: x, videos: v, match: [id]}]}", "pairs.decontaminate[0].match[0]: must be one of"),
        ("{confirm: {endpoint: {}}}", "pairs.confirm.model: is missing"),
    ],
)
def test_wrong_rules(tmp_path, pairs, says):
    assert refusal(tmp_path, SMALL + f"pairs: {pairs}").startswith(says)


def test_preference_rows_stand_alone(tmp_path):
    rows = "sources:\n  - {kind: preferences, rows: p.jsonl}\n"
    assert load_build_config(write(tmp_path, rows)).imports
    with_zoo = SMALL.replace("sources:", rows.rstrip()).replace(
        "- {kind: folder, videos: clips, questions: clips/q.jsonl}", ""
    )
    assert refusal(tmp_path, with_zoo) == "preference rows are taken as they are: leave out zoo and judges"
    mixed = SMALL.replace("sources:", rows.rstrip())
    assert refusal(tmp_path, mixed) == "sources: preference rows and questions cannot be mixed in one build"
    assert refusal(tmp_path, "sources: []") == "sources: names nothing; at least one entry is needed"
    assert refusal(tmp_path, SMALL.split("zoo:")[0]) == "zoo: names nothing; at least one entry is needed"


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
    ["name", "seed", "sources", "split", "zoo", "judges", "pairs", "block_size", "sources.0", "zoo.0", "judges.0"]
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


def test_every_shipped_config_is_read():
    found = {path.name: load_build_config(path) for path in sorted(CONFIGS.glob("*.yaml"))}
    assert {"own_videos.yaml", "mmaip_v.yaml", "import_preferences.yaml", "only_videos.yaml"} <= set(found)
    own = found["own_videos.yaml"]
    assert {judge.kind for judge in own.judges} == {"reference", "visual"}
    assert len(own.zoo) >= 4 and own.sources[0].redistribute is False
    assert found["import_preferences.yaml"].imports
    assert [source.kind for source in found["only_videos.yaml"].sources] == ["generated"]


def test_the_config_of_the_papers_shape_has_that_shape():
    config = load_build_config(CONFIGS / "mmaip_v.yaml")
    families = {member.model.split("/")[0] for member in config.zoo}
    assert len(config.zoo) >= 4 and len(families) == len(config.zoo)
    assert {judge.kind for judge in config.judges} == {"reference", "visual", "vlm"}
    assert len(config.pairs.decontaminate) == 7  # the evaluation sets of the paper
    # Nothing decides in the config what may be passed on: that is for licenses.yaml, and it allows none of these.
    assert all(source.redistribute is None and source.license is None for source in config.sources)


def test_the_sources_of_the_papers_shape_are_well_known_and_not_passed_on():
    from dataset_builder.sources.licenses import find_set, terms_of

    for source in load_build_config(CONFIGS / "mmaip_v.yaml").sources:
        assert find_set(source.source) is not None, source.source
        assert not terms_of(source.source, source.license, source.redistribute).embed


def options(text: str) -> list[tuple[int, int]]:
    """Line ranges of a config's commented-out options, each with the deeper lines that belong to it."""
    lines, found = text.splitlines(), []
    depth = {i: len(re.match(r"\s*#\|\s*", line).group()) for i, line in enumerate(lines) if re.match(r"\s*#\|", line)}
    for i, own in depth.items():
        if found and i < found[-1][1]:
            continue
        end = i + 1
        while depth.get(end, -1) > own:
            end += 1
        found.append((i, end))
    return found


def take(text: str, start: int = 0, end: int | None = None) -> dict:
    """The config's values with the options of a line range taken."""
    lines = text.splitlines()
    for i in range(start, len(lines) if end is None else end):
        lines[i] = re.sub(r"^(\s*)#\| ?", r"\1", lines[i])
    return yaml.safe_load("\n".join(lines))


@pytest.mark.parametrize(("name", "least"), [("own_videos.yaml", 12), ("only_videos.yaml", 1), ("mmaip_v.yaml", 4)])
def test_every_option_of_a_shipped_config_works_when_it_is_taken(name, least):
    text = (CONFIGS / name).read_text(encoding="utf-8")
    found = options(text)
    assert len(found) >= least
    for start, end in [*found, (0, None)]:  # each alone, then all of them
        data = take(text, start, end)
        assert data != yaml.safe_load(text), start + 1
        from_dict(data, BuildConfig, f"{name}:{start + 1}")


def test_the_options_of_the_shipped_example_show_what_there_is():
    everything = from_dict(take((CONFIGS / "own_videos.yaml").read_text()), BuildConfig, "own_videos.yaml")
    assert [member.name for member in everything.zoo if member.endpoint] == ["served"]
    assert [judge.kind for judge in everything.judges] == ["reference", "visual", "vlm"]
    assert len(everything.pairs.decontaminate) == 2 and everything.pairs.confirm is not None


def test_the_shipped_example_names_the_models_that_the_demo_makes():
    root = Path(dataset_builder.__file__).parent
    config = load_build_config(root / "configs" / "own_videos.yaml")
    demo = yaml.safe_load((root.parent / "cards" / "configs" / "demo.yaml").read_text())
    made = [entry["model"] for entry in [*demo["build"]["zoo"], *demo["build"]["judges"]] if "model" in entry]
    named = [entry["model"] for key in ("zoo", "judges") for entry in asdict(config)[key] if "model" in entry]
    assert sorted(named) == sorted(path.replace("{run}", demo["run_dir"]) for path in made)
