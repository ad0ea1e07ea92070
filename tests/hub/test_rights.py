"""Who may see and change what."""

from __future__ import annotations


def test_a_read_token_cannot_write(hub, client, repo):
    client.run("commit(repo, ('a', b'1')); api.create_tag(repo, tag='v1')")
    before = hub.commits(repo)
    assert client.run("reader.list_repo_files(repo)") == [".gitattributes", "a"]
    for code in (
        "reader.create_commit(repo, [Add('a', b'2')], commit_message='x')",
        "reader.upload_file(path_or_fileobj=b'2', path_in_repo='w.bin', repo_id=repo)",
        "reader.create_repo('tester/other')",
        "reader.create_tag(repo, tag='v2')",
        "reader.delete_tag(repo, tag='v1')",
        "reader.create_branch(repo, branch='b')",
        "reader.delete_repo(repo)",
        "reader.move_repo(repo, 'tester/moved')",
        "reader.update_repo_settings(repo, private=False)",
        "reader.create_collection(title='mine', namespace='tester')",
    ):
        assert "403" in str(client.refuses(code)), code
    assert hub.commits(repo) == before and hub.refs(repo)["tags"].keys() == {"v1"}
    client.run("api.auth_check(repo, write=True); reader.auth_check(repo)")
    assert "403" in str(client.refuses("reader.auth_check(repo, write=True)"))


def test_a_private_repo_shows_itself_to_its_namespace_only(hub, client, repo):
    client.run("commit(repo, ('a', b'1'))")
    stranger = hub.add_token("stranger")
    for api in ("nobody", f"HfApi(token='{stranger}')"):
        for code in (
            f"{api}.model_info(repo)",
            f"{api}.hf_hub_download(repo, 'a', cache_dir=tempfile.mkdtemp())",
            f"{api}.snapshot_download(repo, cache_dir=tempfile.mkdtemp())",
            f"{api}.list_repo_files(repo)",
        ):
            assert client.refuses(code).kind == "RepositoryNotFoundError", code
    client.run("api.update_repo_settings(repo, private=False)")
    assert client.run("nobody.list_repo_files(repo)") == [".gitattributes", "a"]
    assert client.run("open(nobody.hf_hub_download(repo, 'a', cache_dir=tempfile.mkdtemp())).read()") == "1"
    assert "403" in str(client.refuses(f"HfApi(token='{stranger}').create_tag(repo, tag='mine')"))
    assert "401" in str(client.refuses("nobody.create_tag(repo, tag='mine')"))


def test_a_revoked_token_is_no_token(hub, client, repo):
    value = hub.add_token("colleague", orgs=("tester",))
    client.run(f"colleague = HfApi(token='{value}'); colleague.create_tag(repo, tag='v1')")
    hub.revoke(value)
    error = client.refuses("colleague.create_tag(repo, tag='v2')")
    assert "401" in str(error) and "Invalid credentials" in str(error)
    assert "Invalid user token" in str(client.refuses("HfApi(token='hf_unknown').whoami()"))
    assert hub.refs(repo)["tags"].keys() == {"v1"}


def test_a_gated_repo_lets_in_whom_it_was_told_to(hub, client, repo):
    client.run("commit(repo, ('a', b'1')); api.update_repo_settings(repo, private=False, gated='manual')")
    fan = hub.add_token("fan", "read")
    load = "open({}.hf_hub_download(repo, 'a', cache_dir=tempfile.mkdtemp())).read()"
    for api in ("nobody", f"HfApi(token='{fan}')"):
        assert client.run(f"{api}.model_info(repo).gated") == "manual"  # that it is there is no secret
        assert client.refuses(load.format(api)).kind == "GatedRepoError"
        assert client.refuses(f"{api}.auth_check(repo)").kind == "GatedRepoError"
    assert client.run(load.format("api")) == "1"
    client.run("api.grant_access(repo, 'fan')")
    assert client.run(load.format(f"HfApi(token='{fan}')")) == "1"
