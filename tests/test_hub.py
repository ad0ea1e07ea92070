"""The loopback Hub as a whole: it can be stopped, run by hand, and the real libraries use it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.hub import Client, LoopbackHub
from tests.hub.client import REPO


def test_its_state_outlives_it_and_the_same_work_has_the_same_ids(tmp_path):
    script = """
        import sys
        from huggingface_hub import *
        api = HfApi()
        api.create_repo('tester/m', private=True, exist_ok=True)
        api.upload_file(path_or_fileobj=b'w' * 5000, path_in_repo='w.bin', repo_id='tester/m')
        api.create_tag('tester/m', tag='v1', exist_ok=True)
        api.add_collection_item(api.create_collection('c', exists_ok=True).slug, 'tester/m', 'model', exists_ok=True)
    """

    def state(hub):
        return hub.repos(), hub.files("tester/m"), hub.commits("tester/m"), hub.refs("tester/m"), hub.collections()

    with LoopbackHub(tmp_path / "one") as hub:
        token, port = hub.token, int(hub.endpoint.rpartition(":")[2])
        with Client(hub.environment(tmp_path / "home")) as client:
            client.run(script)
            before = state(hub)
            hub.stop()
            with LoopbackHub(tmp_path / "one", port=port) as again:
                assert state(again) == before and again.token == token
                client.run(script)  # the same process goes on with it, and finds everything done
                assert state(again)[:4] == before[:4] and again.counts()["uploaded_bytes"] == 0
    with LoopbackHub(tmp_path / "two") as other, Client(other.environment(tmp_path / "home2")) as client:
        client.run(script)
        assert [commit["id"] for commit in other.commits("tester/m")] == [commit["id"] for commit in before[2]]


def test_small_files_may_be_redirected_within_the_hub(tmp_path):
    with LoopbackHub(tmp_path / "hub", resolve_cache=True) as hub, Client(hub.environment(tmp_path / "home")) as client:
        read = client.run("""
            from huggingface_hub import *
            create_repo('tester/m', private=True)
            upload_file(path_or_fileobj=b'text', path_in_repo='a b/ü.txt', repo_id='tester/m')
            open(hf_hub_download('tester/m', 'a b/ü.txt')).read()
        """)
        assert read == "text" and hub.counts()["requests"]["resolve-cache"] >= 1


def test_run_by_hand(tmp_path):
    command = [sys.executable, "-m", "tests.hub", str(tmp_path / "hub"), "--user", "me", "--org", "us"]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True) as process:
        about = json.loads(process.stdout.readline())
        headers = {"Authorization": f"Bearer {about['read_token']}"}
        asked = urllib.request.Request(f"{about['endpoint']}/api/whoami-v2", headers=headers)
        with urllib.request.urlopen(asked) as reply:
            told = json.load(reply)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert told["name"] == "me" and told["orgs"][0]["name"] == "us"
    assert told["auth"]["accessToken"]["role"] == "read"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    with Client(hub.environment(tmp_path_factory.mktemp("home"))) as process:
        yield process


def test_datasets_are_pushed_and_loaded(hub, client, tmp_path):
    client.run("""
        from datasets import Dataset, DatasetDict, load_dataset
        from huggingface_hub import HfApi
        rows = lambda *ends: Dataset.from_dict({'n': list(range(*ends)), 's': [str(n) for n in range(*ends)]})
        splits = DatasetDict({'train': rows(0, 50), 'test': rows(50, 55)})
        splits.push_to_hub('tester/d', config_name='one', private=True, set_default=True)
        rows(0, 7).push_to_hub('tester/d', config_name='two')
        HfApi().create_tag('tester/d', tag='v1', repo_type='dataset')
        rows(100, 103).push_to_hub('tester/d', config_name='two')
    """)
    assert hub.settings("tester/d", "dataset")["private"]
    default = client.run("{name: list(split['n']) for name, split in load_dataset('tester/d').items()}")
    assert default == {"train": list(range(50)), "test": list(range(50, 55))}
    load = "[row['n'] for row in load_dataset('tester/d', 'two', split='train', {})]"
    assert client.run(load.format("")) == [100, 101, 102]
    assert client.run(load.format("revision='v1'")) == list(range(7))
    assert client.run(load.format("revision='v1', streaming=True")) == list(range(7))
    hub.clear_counts()
    # pushed again, the rows are there already: nothing is sent but, at most, the card
    client.run("rows(100, 103).push_to_hub('tester/d', config_name='two')")
    assert hub.counts()["requests"].get("lfs-upload", 0) == 0
    with Client(hub.environment(tmp_path / "stranger", token=None)) as stranger:
        code = "from datasets import load_dataset; load_dataset('tester/d', 'one')"
        assert stranger.refuses(code).kind == "DatasetNotFoundError"
        client.run("HfApi().update_repo_settings('tester/d', private=False, repo_type='dataset')")
        assert stranger.run("load_dataset('tester/d', 'one', split='test')[0]['n']") == 50
    # it asked for a dataset viewer, which is no part of a hub, and for nothing else
    assert hub.counts()["requests"]["viewer"] > 0 and "stray" not in hub.counts()["requests"]


def test_models_and_adapters_are_pushed_and_loaded(hub, client):
    client.run("""
        import torch
        from huggingface_hub import HfApi
        from peft import LoraConfig, PeftModel, get_peft_model
        from transformers import AutoModelForImageTextToText, AutoProcessor
        from dataset_builder.toy_models import make_tiny

        def same(one, other):
            pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
            return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)

        (first, processor), (second, _) = make_tiny('qwen2_vl', 0), make_tiny('qwen2_vl', 1)
        first.push_to_hub('tester/m', private=True)
        processor.push_to_hub('tester/m')
        HfApi().create_tag('tester/m', tag='round-1')
        second.push_to_hub('tester/m')
        load = AutoModelForImageTextToText.from_pretrained
    """)
    assert client.run("same(load('tester/m', revision='round-1'), first), same(load('tester/m'), second)") == [
        True,
        True,
    ]
    assert not client.run("same(first, second)")
    assert client.run("type(AutoProcessor.from_pretrained('tester/m')) is type(processor)")
    client.run("""
        adapter = get_peft_model(load('tester/m'), LoraConfig(target_modules=['q_proj'], init_lora_weights=False))
        adapter.push_to_hub('tester/adapter')
        again = PeftModel.from_pretrained(load('tester/m'), 'tester/adapter')
    """)
    assert client.run("same(adapter, again)") and hub.counts()["leaks"] == 0
    total = client.run("HfApi().model_info('tester/m').safetensors.total")
    assert total == client.run("sum(p.numel() for p in second.parameters())")
