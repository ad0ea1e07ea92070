"""Repos as wholes: made, moved, listed, described, collected."""

from __future__ import annotations


def test_repos_are_made_moved_and_deleted(hub, client):
    assert client.run("api.create_repo('tester/first', private=True).repo_id") == "tester/first"
    assert set(hub.files("tester/first")) == {".gitattributes"}
    assert hub.settings("tester/first") == {"private": True, "gated": False}
    assert client.refuses("api.create_repo('tester/first')").kind == "HfHubHTTPError"
    made = client.run("u = api.create_repo('tester/first', exist_ok=True); [u.repo_id, u.repo_type, str(u)]")
    assert made == ["tester/first", "model", f"{hub.endpoint}/tester/first"]
    client.run("commit('tester/first', ('a.txt', b'a')); api.move_repo('tester/first', 'lab/second')")
    assert "model:lab/second" in hub.repos() and "model:tester/first" not in hub.repos()
    # the old id leads to the new one, in calls and in downloads
    assert client.run("api.model_info('tester/first').id") == "lab/second"
    assert client.run("open(hf_hub_download('tester/first', 'a.txt')).read()") == "a"
    client.run("api.delete_repo('lab/second')")
    assert client.refuses("api.model_info('lab/second')").kind == "RepositoryNotFoundError"
    assert client.refuses("api.delete_repo('lab/second')").kind == "RepositoryNotFoundError"
    client.run("api.delete_repo('lab/second', missing_ok=True)")


def test_types_of_repos_have_names_of_their_own(hub, client):
    client.run("for kind in ('model', 'dataset'): api.create_repo('tester/same', repo_type=kind)")
    client.run("api.create_repo('tester/same', repo_type='space', space_sdk='static')")
    assert {"model:tester/same", "dataset:tester/same", "space:tester/same"} <= set(hub.repos())
    assert (
        client.run("[api.repo_exists('tester/same', repo_type=t) for t in ('model', 'dataset', 'space')]") == [True] * 3
    )
    assert client.refuses("api.create_repo('tester/a..b')").kind == "HFValidationError"
    assert client.refuses("api.create_repo('stranger/x')").args[0].count("403")


def test_listings_page_and_show_what_one_may_see(client):
    client.run("""
        for i in range(6): api.create_repo(f'lab/list-{i}', repo_type='dataset', private=i == 0)
        ids = lambda api, **rest: sorted(one.id for one in api.list_datasets(author='lab', search='list', **rest))
    """)
    assert client.run("ids(api)") == [f"lab/list-{i}" for i in range(6)]
    assert client.run("ids(nobody)") == [f"lab/list-{i}" for i in range(1, 6)]
    assert client.run("len(ids(api, limit=5))") == 5
    assert client.run("api.whoami()['orgs'][0]['name'], api.whoami()['auth']['accessToken']['role']") == [
        "lab",
        "write",
    ]
    assert client.run("reader.whoami()['auth']['accessToken']['role']") == "read"
    assert client.run("all(one.id.startswith('tester/') for one in api.list_user_repos())")


def test_cards_become_metadata(hub, client, repo):
    client.run("""
        import numpy as np
        from safetensors.numpy import save
        data = dict(license='mit', language=['en'], pipeline_tag='video-text-to-text', base_model='a/b', tags=['dpo'])
        card = f'---\\n{ModelCardData(**data).to_yaml()}\\n---\\nHi'
        results = eval_result_entries_to_yaml([EvalResultEntry(dataset_id='tester/d', task_id='test', value=0.5)])
        import yaml
        commit(repo, ('README.md', card.encode()), ('config.json', b'{"model_type": "qwen2_vl"}'),
               ('model.safetensors', save({'w': np.zeros((3, 4), np.float32)})),
               ('.eval_results/d.yaml', yaml.dump(results).encode()))
        info = api.model_info(repo, files_metadata=True)
    """)
    assert client.run("info.card_data.to_dict()['license'], info.pipeline_tag, info.library_name") == [
        "mit", "video-text-to-text", "transformers",
    ]  # fmt: skip
    assert {"dpo", "en", "license:mit", "base_model:a/b"} <= set(client.run("info.tags"))
    assert client.run("info.safetensors.total, info.eval_results[0].value, info.sha") == [
        12,
        0.5,
        hub.commits(repo)[0]["id"],
    ]
    sizes = {path: len(data) for path, data in hub.files(repo).items()}
    assert client.run("{one.rfilename: one.size for one in info.siblings}") == sizes
    assert client.run("api.model_info(repo, expand=['cardData']).sha") is None
    assert client.run("[one.id for one in api.list_models(filter='dpo')]") == [repo]
    for text in ("---\nlicense: [\n---\n", "---\nlicense: A License\n---\n", "---\n- a\n---\n"):
        assert client.refuses(f"commit(repo, ('README.md', {text!r}.encode()))").kind == "ValueError"
        # and without the client's own look
        code = f"api.upload_file(path_or_fileobj={text!r}.encode(), path_in_repo='README.md', repo_id=repo)"
        client.run("keep, type(api)._validate_yaml = type(api)._validate_yaml, lambda self, *a, **k: None")
        assert client.refuses(code).kind == "BadRequestError"
        client.run("type(api)._validate_yaml = keep")


def test_collections(hub, client, repo):
    client.run("""
        api.create_repo('tester/in-collection', repo_type='dataset')
        made = api.create_collection('All of it', description='three repos', private=False)
        api.add_collection_item(made.slug, repo, 'model', note='the model')
        api.add_collection_item(made.slug, 'tester/in-collection', 'dataset')
        api.add_collection_item(made.slug, repo, 'model', exists_ok=True)
    """)
    assert client.run("api.create_collection('All of it', exists_ok=True).slug == made.slug")
    assert "409" in str(client.refuses("api.create_collection('All of it')"))
    assert "409" in str(client.refuses("api.add_collection_item(made.slug, repo, 'model')"))
    assert (
        client.refuses("api.add_collection_item(made.slug, 'tester/absent', 'model')").kind == "RepositoryNotFoundError"
    )
    items = "[(i.item_id, i.item_type, i.note, i.position) for i in {}.get_collection(made.slug).items]"
    both = [[repo, "model", "the model", 0], ["tester/in-collection", "dataset", None, 1]]
    assert client.run(items.format("api")) == both
    assert client.run(items.format("nobody")) == [["tester/in-collection", "dataset", None, 0]]  # the model is private
    client.run("""
        one, two = api.get_collection(made.slug).items
        api.update_collection_item(made.slug, two.item_object_id, position=0, note='the data')
        renamed = api.update_collection_metadata(made.slug, title='Renamed', private=True)
    """)
    assert client.run("renamed.slug").startswith("tester/renamed-")
    assert client.run(items.format("api"))[0] == ["tester/in-collection", "dataset", "the data", 0]
    assert "404" in str(client.refuses("nobody.get_collection(renamed.slug)"))
    assert client.run("[c.title for c in api.list_collections(owner='tester')]") == ["Renamed"]
    assert client.run("len(list(api.list_collections(item=f'models/{repo}')))") == 1
    client.run("api.delete_collection_item(made.slug, one.item_object_id)")
    client.run("api.delete_collection_item(made.slug, one.item_object_id, missing_ok=True)")
    client.run("api.delete_collection(made.slug)")
    assert hub.collections() == []
