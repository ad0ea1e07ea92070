"""The YAML blocks of all three cards are such as the Hub documents them, and tell what the data is."""

from __future__ import annotations

import shutil

import pytest
import yaml

from cards.dataset_card import check_card, front_matter, render_dataset_card
from cards.hub_fields import check_fields, hub_license, known, license_name, problems
from cards.run_folder import Run
from dataset_builder.errors import KitError


def front(path) -> dict:
    return yaml.safe_load(front_matter(path))


def test_every_card_of_a_release_has_fields_that_the_hub_knows(finished):
    run = Run(finished)
    cards = {"dataset": run.dataset, "model": run.release_folder, "evaluator": finished / "evaluator"}
    for kind, folder in cards.items():
        data = front(folder / "README.md")
        assert list(problems(data, kind)) == []
        assert data["language"] == ["en"] and data["license"] in known()["licenses"] and data["tags"]
    data = front(run.dataset / "README.md")
    assert {"pretty_name", "task_categories", "size_categories", "configs", "dataset_info"} <= set(data)
    model = front(run.release_folder / "README.md")
    assert model["pipeline_tag"] == "video-text-to-text" and model["model-index"] and model["datasets"]


PLANTED = [
    ("dataset", {"license": "webvid-terms-of-use"}, "'license' is 'webvid-terms-of-use', which is no licence id"),
    ("dataset", {"license": "other"}, "wants a 'license_name'"),
    ("dataset", {"license": "other", "license_name": "Two Words"}, "wants a 'license_name'"),
    ("dataset", {"license_link": "see there"}, "'license_link' is 'see there'"),
    ("dataset", {"language": ["en", "english"]}, "'language' has 'english', which is no ISO 639 code"),
    ("dataset", {"language": ["zh-Hant"]}, "'language' has 'zh-Hant', which is no ISO 639 code"),
    ("dataset", {"language": [False]}, "'language' has 'False'"),  # YAML 1.1 reads a bare `no` so
    ("dataset", {"task_categories": ["video-qa"]}, "'task_categories' has 'video-qa', which the Hub does not know"),
    ("dataset", {"task_categories": "video-text-to-text"}, "'task_categories' is no list"),
    ("dataset", {"size_categories": ["tiny"]}, "'size_categories' has 'tiny'"),
    ("dataset", {"tags": ["video", ""]}, "'tags' has '', which is no word"),
    ("dataset", {"configs": {"preferences": "*"}}, "'configs' is no list"),
    ("dataset", {"configs": [{"config_name": "a", "data_files": "/x/*"}]}, "data_files of a are no {split, path}"),
    ("dataset", {"configs": [{"config_name": "a", "data_files": [{"path": "a/*"}]}]}, "no {split, path}"),
    ("dataset", {"configs": [{"data_files": "*"}]}, "the config_name 'None'"),
    ("dataset", {"configs": [{"config_name": n, "data_files": "*", "default": True} for n in "ab"]}, "one default"),
    ("model", {"pipeline_tag": "video-question-answering"}, "'pipeline_tag' has 'video-question-answering'"),
    ("model", {"base_model": "/models/base"}, "'base_model' has '/models/base', which is no id of a repo"),
    ("model", {"base_model_relation": "child"}, "'base_model_relation' has 'child'"),
    ("model", {"model-index": [{"name": "m", "results": [{"task": {"type": "vqa"}}]}]}, "of the task 'vqa'"),
    ("evaluator", {"library_name": 3}, "'library_name' is no text"),
]


@pytest.mark.parametrize(("kind", "planted", "said"), PLANTED, ids=[said for _, _, said in PLANTED])
def test_a_wrong_value_is_one_clear_line(kind, planted, said):
    data = {"license": "mit", "language": "en", "tags": ["video"], **planted}
    with pytest.raises(KitError) as error:
        check_fields(data, kind)
    assert said in str(error.value) and "\n" not in str(error.value) and str(error.value).startswith(f"the {kind} card")
    if "tags" not in planted:
        with pytest.raises(KitError):
            check_card(f"---\n{yaml.safe_dump(data)}---\ntext\n", "dataset" if kind == "dataset" else "model")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda info: info["splits"][0].update(num_examples="34"), "no whole num_bytes and num_examples"),
        (lambda info: info.update(dataset_size=1), "dataset_size is not the sum"),
        (lambda info: info.update(download_size=None), "download_size is no whole number"),
        (lambda info: info.update(config_name="pairs"), "the config 'pairs', which 'configs' does not have"),
        (lambda info: info["features"][0].pop("dtype"), "is no column as datasets writes one"),
        (lambda info: info["features"][9]["list"].append({"name": "part"}), "is no column as datasets writes one"),
    ],
)
def test_a_wrong_dataset_info_is_told(made_run, edit, said):
    data = front(Run(made_run).dataset / "README.md")
    assert list(problems(data, "dataset")) == []
    edit(data["dataset_info"][0])
    assert said in next(problems(data, "dataset"))


def test_rendering_refuses_what_somebody_wrote_into_the_card(own_run):
    readme = Run(own_run).dataset / "README.md"
    readme.write_text(readme.read_text().replace("---\n", "---\nlicense: free-for-all\n", 1))
    with pytest.raises(KitError, match="'license' is 'free-for-all', which is no licence id of the Hub"):
        render_dataset_card(readme.parent, own_run)


def test_languages_of_two_and_three_letters_are_known():
    assert not list(problems({"license": "mit", "language": ["en", "no", "yue", "fil", "multilingual"]}, "dataset"))


def test_licences_that_the_hub_does_not_know_become_other_with_a_name():
    assert [hub_license(names) for names in (["CC-BY-4.0"], ["webvid-terms-of-use"], ["mit", "cc0-1.0"], [])] == [
        *("cc-by-4.0", "other", "other", "other")
    ]
    assert license_name(["WebVid terms of use"]) == "webvid-terms-of-use"
    assert license_name(["cc0-1.0", "own"]) == "cc0-1.0-and-own" and license_name([]) == "not-stated"
    for names in (["Ünknown ™"], ["a b", "(c)"], []):
        assert not list(problems({"license": "other", "license_name": license_name(names)}, "dataset"))


def test_configs_and_dataset_info_are_those_of_the_data(made_run, tmp_path):
    """What `datasets` computes from the files alone, without the card."""
    import datasets

    folder = Run(made_run).dataset
    data = front(folder / "README.md")
    infos = {info["config_name"]: info for info in data["dataset_info"]}
    for entry in data["configs"]:
        name, bare = entry["config_name"], tmp_path / entry["config_name"]
        shutil.copytree(folder / name, bare)  # without the README there is nothing to copy figures from
        files = {file["split"]: str(tmp_path / file["path"]) for file in entry["data_files"]}
        assert sum(len(list(tmp_path.glob(f["path"]))) for f in entry["data_files"]) == len(list(bare.iterdir()))
        builder = datasets.load_dataset_builder("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare()
        info, made = infos[name], builder.info
        assert info["features"] == made._to_yaml_dict()["features"]
        assert {s["name"]: s["num_examples"] for s in info["splits"]} == {
            split: value.num_examples for split, value in made.splits.items()
        }
        assert info["download_size"] == made.download_size == sum(p.stat().st_size for p in bare.iterdir())
        for split in info["splits"]:
            # Arrow keeps offsets and padding by batch: the writer's batches are others than the loader's
            assert split["num_bytes"] == pytest.approx(made.splits[split["name"]].num_bytes, rel=0.01)
        assert info["dataset_size"] == sum(split["num_bytes"] for split in info["splits"])
