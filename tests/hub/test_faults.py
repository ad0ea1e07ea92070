"""Planned faults, each as a client meets it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.hub import Client, Fault, LoopbackHub, describe
from tests.hub.faults import Faults

SIZE = 400_000  # bytes of a file that a cut leaves half read


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """A client that does not wait before it tries again."""
    with Client(hub.environment(tmp_path_factory.mktemp("home"))) as process:
        process.run("""
            import pathlib, tempfile, time
            time.sleep = lambda seconds: None
            from huggingface_hub import *
            from huggingface_hub import constants
            api = HfApi()
            def push(repo, **files):
                operations = [CommitOperationAdd(name, data) for name, data in files.items()]
                return api.create_commit(repo, operations, commit_message='work').oid
            def load(repo, name):
                return open(hf_hub_download(repo, name, cache_dir=tempfile.mkdtemp()), 'rb').read()
        """)
        yield process


@pytest.fixture
def repo(hub, client, request):
    """A new repo, before which all goes well again."""
    hub.plan()
    name = f"tester/{''.join(c if c.isalnum() else '-' for c in request.node.name).strip('-')}"
    client.run(f"repo = api.create_repo('{name}').repo_id")
    hub.clear_counts()
    yield name
    hub.plan()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_clients_retry_succeeds(hub, client, repo, status):
    kinds = ["preupload", "lfs-batch", "lfs-upload", "lfs-verify"]
    hub.plan(*[Fault("status", on=[kind], status=status, times=2, headers={"Retry-After": "0"}) for kind in kinds])
    client.run("push(repo, w=b'\\0' * 999)")
    counts = hub.counts()
    assert {kind: counts["requests"][kind] for kind in kinds} == dict.fromkeys(kinds, 3)
    assert counts["faults"] == {"status": 8} and not counts["repeated"]
    assert hub.files(repo)["w"] == b"\0" * 999


@pytest.mark.parametrize("kind", ["status", "reset"])
def test_a_commit_that_failed_is_not_there(hub, client, repo, kind):
    hub.plan(Fault(kind, on=["commit"], times=1))
    error = client.refuses("push(repo, a=b'1', w=b'\\0' * 999)")
    assert "503" in str(error) if kind == "status" else error.kind in ("ReadError", "RemoteProtocolError")
    assert set(hub.files(repo)) == {".gitattributes"}
    client.run("push(repo, a=b'1', w=b'\\0' * 999)")
    assert set(hub.files(repo)) == {".gitattributes", "a", "w"}
    assert hub.counts()["uploaded_bytes"] == 1000  # the large object had arrived before


def test_a_commit_whose_reply_is_lost_is_there(hub, client, repo):
    hub.plan(Fault("lost", on=["commit"], times=1))
    assert client.refuses("push(repo, a=b'1')").kind in ("ReadError", "RemoteProtocolError")
    assert hub.files(repo)["a"] == b"1" and len(hub.commits(repo)) == 2
    assert client.run("push(repo, a=b'1')") == hub.commits(repo)[0]["id"]  # the client finds nothing left to do
    assert len(hub.commits(repo)) == 2 and not hub.counts()["repeated"]


def test_an_upload_whose_reply_is_lost_is_seen_twice(hub, client, repo):
    hub.plan(Fault("lost", on=["lfs-upload"], times=1))
    client.run("push(repo, w=b'\\0' * 999)")
    assert len(hub.counts()["repeated"]) == 1 and hub.counts()["uploaded_bytes"] == 2 * 999
    assert hub.files(repo)["w"] == b"\0" * 999


def test_a_cut_download_goes_on_where_it_stopped(hub, client, repo):
    client.run("constants.DOWNLOAD_CHUNK_SIZE = 10_000")  # what a client throws away when a download breaks off
    client.run(f"import os; data = os.urandom({SIZE}); push(repo, w=b'\\0' + data, t=b'text ' * {SIZE // 5})")
    for name, size in (("w", SIZE + 1), ("t", SIZE)):
        hub.clear_counts()
        hub.plan(Fault("cut", on=["download", "resolve"], methods=["GET"], times=2))
        assert client.run(f"len(load(repo, '{name}'))") == size
        counts = hub.counts()
        assert size <= counts["downloaded_bytes"] <= size + 2 * 10_000 and counts["faults"] == {"cut": 2}
    assert client.run("load(repo, 'w') == b'\\0' + data")


def test_a_cut_listing_is_an_error(hub, client, repo):
    hub.plan(Fault("cut", on=["tree"], times=1))
    assert client.refuses("api.list_repo_files(repo)").kind == "RemoteProtocolError"
    assert client.run("api.list_repo_files(repo)") == [".gitattributes"]


def test_a_slow_reply_can_be_too_late(hub, client, repo):
    hub.plan(Fault("slow", on=["info"], seconds=0.5, times=2))
    assert client.refuses("api.model_info(repo, timeout=0.05)").kind == "ReadTimeout"
    assert client.run("api.model_info(repo, timeout=60).id") == repo  # late, and whole


def test_a_token_can_be_revoked_in_the_middle(hub, client, repo):
    value = hub.add_token("colleague", orgs=("tester",))
    hub.plan(Fault("revoke", on=["lfs-batch"], times=1))
    client.run(f"colleague = HfApi(token='{value}')")
    push = "colleague.create_commit(repo, [CommitOperationAdd('w', b'\\0' * 9)], commit_message='work')"
    assert "401" in str(client.refuses(push)) and "401" in str(client.refuses(push))
    assert set(hub.files(repo)) == {".gitattributes"} and client.run("api.whoami()['name']") == "tester"


def test_a_hub_that_goes_away_hangs_up(tmp_path, client):
    with LoopbackHub(tmp_path / "hub") as hub:
        client.run(f"other = HfApi(endpoint='{hub.endpoint}', token='{hub.token}'); other.whoami()")
        hub.stop()
        assert client.refuses("other.whoami()").kind in ("ConnectError", "RemoteProtocolError", "ReadError")


def test_its_own_mistakes_do_not_pass_for_faults(tmp_path, client, monkeypatch):
    monkeypatch.setattr(describe, "info", lambda *args, **rest: 1 / 0)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        with LoopbackHub(tmp_path / "hub") as hub:
            client.run(f"other = HfApi(endpoint='{hub.endpoint}', token='{hub.token}')")
            client.run("other.create_repo('tester/m')")
            assert "500" in str(client.refuses("other.model_info('tester/m')"))


def test_which_requests_a_rule_strikes():
    faults = Faults()
    faults.plan([Fault("reset", on=["commit"], skip=1, times=2), Fault("status", methods=["PUT"], status=500)])
    asked = [("commit", "POST")] * 5 + [("info", "GET"), ("lfs-upload", "PUT"), ("commit", "PUT")]
    struck = [faults.strike(kind, method) for kind, method in asked]
    assert [rule and rule.kind for rule in struck] == [None, "reset", "reset", None, None, None, "status", "status"]

    def strikes(seed):
        faults.plan([Fault("reset", probability=0.3)], seed)
        return [faults.strike("info", "GET") is not None for _ in range(1000)]

    assert strikes(1) == strikes(1) != strikes(2)
    assert 230 < sum(strikes(1)) < 370  # 300 ± 5 standard deviations
    with pytest.raises(ValueError, match="take one of"):
        Fault("flood")


def test_control_over_http(hub, client, repo):
    def ask(method, path, body=None):
        content = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(hub.endpoint + path, content, method=method)) as reply:
            return json.load(reply)

    ask("PUT", "/_control/faults", {"rules": [{"kind": "status", "on": ["info"], "status": 418, "times": 1}]})
    assert ask("GET", "/_control/faults")[0]["times"] == 1
    assert "418" in str(client.refuses("api.model_info(repo)"))
    assert ask("GET", "/_control/faults")[0]["times"] == 0 and ask("DELETE", "/_control/faults") == []
    assert ask("GET", "/_control/counts")["requests"] == {"info": 1}
    assert ask("GET", "/_control/log") == [
        {"kind": "info", "method": "GET", "path": f"/api/models/{repo}", "fault": "status"}
    ]
    assert ask("DELETE", "/_control/counts")["requests"] == {}
    value = ask("POST", "/_control/tokens", {"user": "guest", "role": "read"})["token"]
    assert client.run(f"HfApi(token='{value}').whoami()['name']") == "guest"
    ask("POST", "/_control/revoke", {"token": value})
    assert "Invalid user token" in str(client.refuses(f"HfApi(token='{value}').whoami()"))
    for path, body in (("faults", {"rules": [{"kind": "flood"}]}), ("faults", {"rules": [{"sort": "reset"}]})):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask("PUT", f"/_control/{path}", body)


PUSH = """
    import random
    content = {f'd/{i}.bin': random.Random(i).randbytes(3000 + i) for i in range(8)}
    content |= {f'{i}.txt': b'x' * i for i in range(8)}
    folder = pathlib.Path(tempfile.mkdtemp())
    for name, data in content.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    def until_it_works(function):
        for attempt in range(200):
            try:
                return function()
            except Exception as error:
                last = error
        raise last

    until_it_works(lambda: api.upload_folder(repo_id=repo, folder_path=folder))
    until_it_works(lambda: api.create_tag(repo, tag='v1', exist_ok=True))
    root = pathlib.Path(until_it_works(lambda: snapshot_download(repo, revision='v1', cache_dir=folder / 'cache')))
    all((root / name).read_bytes() == data for name, data in content.items())
"""


@pytest.mark.parametrize("share", [0.2, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.05, 0.4))])
def test_a_patient_client_gets_everything_through(hub, client, repo, share):
    kinds = ["status", "reset", "cut", "lost"]
    hub.plan(*[Fault(kind, probability=share / len(kinds)) for kind in kinds], seed=3)
    assert client.run(PUSH, timeout=300) is True
    assert sum(hub.counts()["faults"].values()) > 0
    assert len(hub.files(repo, revision="v1")) == 17 and hub.files(repo, revision="v1") == hub.files(repo)


@pytest.mark.slow
def test_writers_at_the_same_time_lose_nothing(hub, client, repo, tmp_path):
    """Eight processes of two commits each, on the newest parent or once more: sixteen commits in one line."""
    script = f"""
        from huggingface_hub import *
        from huggingface_hub.errors import HfHubHTTPError
        def add(name):
            file = CommitOperationAdd(name, name.encode())
            while True:
                parent = list_repo_refs('{repo}').branches[0].target_commit
                try:
                    return create_commit('{repo}', [file], commit_message=name, parent_commit=parent)
                except HfHubHTTPError as error:
                    if error.response.status_code != 412:
                        raise
    """

    def write(number):
        with Client(hub.environment(tmp_path / str(number))) as writer:
            writer.run(script)
            writer.run(f"add('{number}-a'); add('{number}-b')")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    commits = hub.commits(repo)
    assert len(commits) == 17 and len(hub.files(repo)) == 17
    assert [commit["parent"] for commit in commits[:-1]] == [commit["id"] for commit in commits[1:]]
