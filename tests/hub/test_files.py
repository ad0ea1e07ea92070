"""Files: uploaded, committed, listed and downloaded."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request

import pytest

from tests.hub.conftest import LARGE, PART
from tests.hub.repo import LFS_RULE, git_hash


def test_a_folder_is_uploaded_once(hub, client, repo, tmp_path):
    content = {
        "README.md": b"---\nlicense: mit\n---\n# Hello\n",
        "data/rows.parquet": b"PAR1" * 50,
        "clip.mp4": b"\0" * 30,
        "weights.bin": bytes(range(256)) * 30,
        "note.custom": b"by rule",
        "binary": b"\0\1\2",
        "large.json": b"[" + b"1," * LARGE + b"1]",
        "empty.parquet": b"",
        "skipped.tmp": b"x",
        ".gitattributes": f"*.custom {LFS_RULE}\n*.parquet {LFS_RULE}\n".encode(),
    }
    for name, data in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    client.run(
        f"api.upload_file(path_or_fileobj='{tmp_path}/.gitattributes', path_in_repo='.gitattributes', repo_id=repo)"
    )
    hub.clear_counts()
    upload = f"api.upload_folder(repo_id=repo, folder_path='{tmp_path}', ignore_patterns=['*.tmp']).oid"
    first = client.run(upload)
    del content["skipped.tmp"]
    stored = hub.files(repo)
    # a large object that no rule names gets one
    rules = stored.pop(".gitattributes").decode().splitlines()
    assert {rule.split()[0] for rule in rules} >= {"*.custom", "*.parquet", "large.json", "binary", "clip.mp4"}
    assert stored == {name: data for name, data in content.items() if name != ".gitattributes"}
    large = {path for path, entry in hub.commits(repo)[0]["tree"].items() if "lfs" in entry}
    assert large == {"data/rows.parquet", "clip.mp4", "weights.bin", "note.custom", "binary", "large.json"}
    counts = hub.counts()
    assert counts["uploaded_bytes"] == sum(map(len, stored.values())) and not counts["repeated"]
    # the same folder again: nothing is sent, nothing is committed but the rules, which are another file by now
    (tmp_path / ".gitattributes").write_text("\n".join(rules) + "\n")
    assert client.run(upload) == first
    assert hub.counts()["uploads"] == counts["uploads"]


def test_large_objects_come_in_parts(hub, client, repo):
    hub.clear_counts()
    client.run(f"data = os.urandom({2 * PART} + 7); commit(repo, ('w.bin', data))")
    counts = hub.counts()
    assert counts["requests"]["lfs-part"] == 3 and counts["requests"]["lfs-complete"] == 1
    assert "lfs-upload" not in counts["requests"]
    assert counts["uploaded_bytes"] == 2 * PART + 7 == len(hub.files(repo)["w.bin"])
    assert client.run("open(hf_hub_download(repo, 'w.bin'), 'rb').read() == data")


def test_an_object_that_was_sent_before_its_commit_is_not_sent_again(hub, client, repo):
    hub.clear_counts()
    client.run("""
        ahead = [Add('a.bin', b'one' * 1000)]
        api.preupload_lfs_files(repo, ahead)
        before = api.list_repo_files(repo)
        commit(repo, ('a.bin', b'one' * 1000), ('copy.bin', b'one' * 1000))
    """)
    assert client.run("before") == [".gitattributes"]
    assert hub.counts()["uploaded_bytes"] == 3000 and not hub.counts()["repeated"]
    assert hub.files(repo)["copy.bin"] == b"one" * 1000


def test_an_object_that_never_came_cannot_be_committed(hub, client, repo):
    lines = [{"key": "header", "value": {"summary": "x"}}]
    lines += [{"key": "file", "value": {"path": "a", "content": "YQ==", "encoding": "base64"}}]
    lines += [{"key": "lfsFile", "value": {"path": "b.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}}]
    body = "\n".join(map(json.dumps, lines)).encode()
    address = f"{hub.endpoint}/api/models/{repo}/commit/main"
    asked = urllib.request.Request(address, body, {"Authorization": f"Bearer {hub.token}"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked)
    assert caught.value.code == 400 and "never uploaded" in caught.value.headers["X-Error-Message"]
    assert set(hub.files(repo)) == {".gitattributes"}  # nothing of the commit


def test_the_storage_takes_only_what_was_announced(hub, repo):
    oid = hashlib.sha256(b"right").hexdigest()
    body = json.dumps({"operation": "upload", "objects": [{"oid": oid, "size": 5}]}).encode()
    address, headers = f"{hub.endpoint}/{repo}.git/info/lfs/objects/batch", {"Authorization": f"Bearer {hub.token}"}
    with urllib.request.urlopen(urllib.request.Request(address, body, headers)) as reply:
        place = json.load(reply)["objects"][0]["actions"]["upload"]["href"]

    def put(place, content, **headers):
        with urllib.request.urlopen(urllib.request.Request(place, content, headers, method="PUT")) as reply:
            return reply.status

    for change in (
        {"content": b"wrong"},
        {"content": b"right", "Authorization": f"Bearer {hub.token}"},  # a token has no business there
        {"content": b"right", "place": place[:-1] + ("0" if place[-1] != "0" else "1")},  # another signature
    ):
        with pytest.raises(urllib.error.HTTPError, match=r"40[03]"):
            put(**{"place": place, **change})
    assert put(place, b"right") == 200
    hub.clear_counts()  # the leak above was meant


def test_a_stale_parent_is_refused(hub, client, repo):
    first = client.run("first = commit(repo, ('a', b'1')); first")
    client.run("second = commit(repo, ('a', b'2'), parent_commit=first); second")
    error = client.refuses("commit(repo, ('a', b'3'), parent_commit=first)")
    assert "412" in str(error) and "A commit has happened since" in str(error)
    assert [commit["title"] for commit in hub.commits(repo)] == ["work", "work", "initial commit"]
    assert hub.commits(repo)[0]["parent"] == first and hub.files(repo)["a"] == b"2"


def test_files_are_deleted_and_copied(hub, client, repo):
    client.run("""
        commit(repo, ('d/a.txt', b'a'), ('d/e/b.txt', b'b'), ('keep.txt', b'k'), ('w.bin', b'w' * 100))
        commit(repo, Copy('w.bin', 'd2/w.bin'), Copy('keep.txt', 'kept.txt'), Delete('d/'), Delete('w.bin'))
    """)
    stored = hub.files(repo)
    assert set(stored) == {".gitattributes", "keep.txt", "kept.txt", "d2/w.bin"}
    assert stored["d2/w.bin"] == b"w" * 100 and stored["kept.txt"] == b"k"
    assert client.refuses("commit(repo, Delete('w.bin'), ('new', b'n'))").kind == "RemoteEntryNotFoundError"
    assert client.refuses("commit(repo, Delete('d/'))").kind == "RemoteEntryNotFoundError"
    assert "new" not in hub.files(repo)


def test_branches_tags_and_history(hub, client, repo):
    client.run("""
        start = commit(repo, ('a', b'1'), title='one', commit_description='why')
        api.create_tag(repo, tag='v1', tag_message='first'); api.create_branch(repo, branch='try/it')
        on_branch = commit(repo, ('a', b'2'), title='two', revision='try/it')
        api.create_tag(repo, tag='v2', revision=on_branch[:9]); api.create_branch(repo, branch='from-v1', revision='v1')
    """)
    start, on_branch = client.run("start, on_branch")
    branches = {"main": start, "try/it": on_branch, "from-v1": start}
    assert hub.refs(repo) == {"branches": branches, "tags": {"v1": start, "v2": on_branch}}
    refs = client.run(
        "refs = api.list_repo_refs(repo); [[(r.name, r.target_commit) for r in x] for x in (refs.branches, refs.tags)]"
    )
    assert [dict(found) for found in refs] == [branches, {"v1": start, "v2": on_branch}]
    assert hub.files(repo)["a"] == b"1" and hub.files(repo, revision="try/it")["a"] == b"2"
    for code in ("api.create_tag(repo, tag='v1')", "api.create_branch(repo, branch='try/it')"):
        assert "409" in str(client.refuses(code))
        client.run(code.replace(")", ", exist_ok=True)"))
    assert "403" in str(client.refuses("api.delete_branch(repo, branch='main')"))
    assert client.refuses("commit(repo, ('a', b'3'), revision='v1')").kind == "BadRequestError"  # a tag cannot grow
    assert client.refuses("commit(repo, ('a', b'3'), revision='nowhere')").kind == "RevisionNotFoundError"
    assert client.refuses("api.create_tag(repo, tag='v9', revision='nowhere')").kind == "RevisionNotFoundError"
    client.run("api.delete_tag(repo, tag='v2'); api.delete_branch(repo, branch='from-v1')")
    assert client.refuses("api.delete_tag(repo, tag='v2')").kind == "RevisionNotFoundError"
    assert client.run("[api.revision_exists(repo, one) for one in ('v1', 'v2', 'try/it', 'from-v1', start)]") == [
        True, False, True, False, True,
    ]  # fmt: skip
    client.run("for i in range(6): commit(repo, ('a', str(i).encode()), title=f'more {i}')")
    history = client.run("[(c.title, c.message, c.authors) for c in api.list_repo_commits(repo)]")
    titles = [f"more {i}" for i in range(5, -1, -1)] + ["one", "initial commit"]
    assert [title for title, _, _ in history] == titles and history[6][1:] == ["why", ["tester"]]
    client.run("api.super_squash_history(repo)")
    assert len(hub.commits(repo)) == 1 and hub.files(repo)["a"] == b"5" and hub.files(repo, revision="v1")["a"] == b"1"


def test_a_pull_request_is_a_branch_of_its_own(hub, client, repo):
    found = client.run("""
        pull = api.create_commit(repo, [Add('a', b'1')], commit_message='please', create_pr=True)
        [pull.pr_revision, pull.pr_num, api.list_repo_refs(repo, include_pull_requests=True).pull_requests[0].ref]
    """)
    assert found == ["refs/pr/1", 1, "refs/pr/1"]
    assert "a" not in hub.files(repo) and hub.files(repo, revision="refs/pr/1")["a"] == b"1"
    assert client.run("open(hf_hub_download(repo, 'a', revision='refs/pr/1')).read()") == "1"


def test_trees_page_and_tell_sizes_hashes_and_last_commits(hub, client, repo):
    client.run("""
        first = commit(repo, *[(f'd/{i}.txt', b'x' * i) for i in range(9)], ('d/w.bin', b'w' * 77), ('top', b't'))
        second = commit(repo, ('d/3.txt', b'new'))
    """)
    hub.clear_counts()
    assert client.run("sorted(api.list_repo_files(repo))") == sorted(hub.files(repo))
    assert hub.counts()["requests"] == {"tree": 4}  # 13 entries, the folder among them
    assert client.run("[type(one).__name__ + one.path for one in api.list_repo_tree(repo)]") == [
        "RepoFile.gitattributes", "RepoFolderd", "RepoFiletop",
    ]  # fmt: skip
    told = client.run("""
        last = {one.path: one.last_commit.oid for one in api.list_repo_tree(repo, 'd', expand=True)}
        one, large = api.get_paths_info(repo, ['d/8.txt', 'absent', 'd/w.bin'])
        [last['d/3.txt'] == second, last['d/8.txt'] == first, one.blob_id, one.size, large.lfs.sha256, large.lfs.size]
    """)
    large = hub.commits(repo)[0]["tree"]["d/w.bin"]["lfs"]["sha256"]
    assert told == [True, True, git_hash(b"x" * 8), 8, large, 77]
    assert client.run("api.get_paths_info(repo, 'd', expand=True)[0].last_commit.oid == second")
    assert client.refuses("list(api.list_repo_tree(repo, 'absent'))").kind == "RemoteEntryNotFoundError"
    assert client.run("[api.file_exists(repo, one) for one in ('d/w.bin', 'absent')]") == [True, False]


def test_what_was_downloaded_moves_no_more_bytes(hub, client, repo):
    client.run("old = commit(repo, ('a.txt', b'old'), ('d/w.bin', b'w' * 1000)); commit(repo, ('a.txt', b'new'))")
    hub.clear_counts()
    load = """
        root = pathlib.Path(snapshot_download(repo))
        {path: (root / path).read_bytes().hex() for path in api.list_repo_files(repo)}
    """
    assert client.run(load) == {path: data.hex() for path, data in hub.files(repo).items()}
    moved = hub.counts()["downloaded_bytes"]
    assert moved == sum(map(len, hub.files(repo).values()))
    assert client.run(load) and client.run("open(hf_hub_download(repo, 'a.txt')).read()") == "new"
    assert hub.counts()["downloaded_bytes"] == moved
    # another revision: only what differs
    assert client.run("(pathlib.Path(snapshot_download(repo, revision=old)) / 'a.txt').read_text()") == "old"
    assert hub.counts()["downloaded_bytes"] == moved + 3
    assert hub.counts()["leaks"] == 0  # the storage origin never saw a token
    assert client.refuses("hf_hub_download(repo, 'absent')").kind == "RemoteEntryNotFoundError"
    assert client.refuses("hf_hub_download(repo, 'a.txt', revision='absent')").kind == "RevisionNotFoundError"


def test_parts_of_files_can_be_read(hub, client, repo):
    read = client.run("""
        commit(repo, ('w.bin', bytes(range(256)) * 4), ('t.txt', b'0123456789'))
        fs = HfFileSystem()
        middle, end = fs.cat_file(f'{repo}/w.bin', start=300, end=303), fs.cat_file(f'{repo}/t.txt', start=-3, end=None)
        [middle.hex(), end.decode(), fs.glob(f'{repo}/*.txt')]
    """)
    assert read == [bytes([44, 45, 46]).hex(), "789", [f"{repo}/t.txt"]]
    place = client.run("hf_hub_url(repo, 't.txt')")
    for wanted, content in (("bytes=2-4", b"234"), ("bytes=7-", b"789"), ("bytes=-2", b"89"), ("bytes=8-99", b"89")):
        headers = {"Authorization": f"Bearer {hub.token}", "Range": wanted}
        with urllib.request.urlopen(urllib.request.Request(place, headers=headers)) as reply:
            assert (reply.status, reply.read()) == (206, content)
    with pytest.raises(urllib.error.HTTPError) as caught:
        headers = {"Authorization": f"Bearer {hub.token}", "Range": "bytes=10-"}
        urllib.request.urlopen(urllib.request.Request(place, headers=headers))
    assert (caught.value.code, caught.value.headers["Content-Range"]) == (416, "bytes */10")
