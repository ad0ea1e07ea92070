"""Pushes through harm: each ends in a verified release or in one clear line with nothing half-tagged, and goes on."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from cards.push.plan import Options, make_plan
from tests.cards.pushing import ROOT, assert_no_wrong_tag, assert_released, command, copy, push
from tests.hub import Client, Fault, LoopbackHub

pytestmark = pytest.mark.slow
KINDS = ("429", "500", "503", "reset", "cut", "lost")
GONE = ("lost", "cut")  # faults after which a client cannot know that what it sent has arrived


@pytest.fixture(scope="module")
def plan(finished):
    return make_plan(finished, Options("tester"))


def fault(kind: str, share: float) -> Fault:
    if kind.isdigit():
        return Fault("status", status=int(kind), probability=share, headers={"Retry-After": "0"})
    return Fault(kind, probability=share)


@pytest.mark.parametrize("share", [0.05, 0.2])
@pytest.mark.parametrize("kind", [*KINDS, "all"])
def test_a_push_gets_through_faults_everywhere(finished, plan, tmp_path, kind, share):
    with LoopbackHub(tmp_path / "hub") as hub:
        rules = [fault(each, share / len(KINDS)) for each in KINDS] if kind == "all" else [fault(kind, share)]
        hub.plan(*rules, seed=7)
        done = push(finished, hub, tmp_path / "home", quick=True)
        assert sum(hub.counts()["faults"].values()) > 0
        assert done.code == 0, done.err
        assert_released(hub, plan)
        assert_sent_once(hub, plan)
        hub.plan()
        hub.clear_counts()
        assert push(finished, hub, tmp_path / "home").code == 0
        assert hub.counts()["uploads"] == {} and hub.counts()["uploaded_bytes"] == 0
        assert hub.token not in done.out + done.err


def assert_sent_once(hub: LoopbackHub, plan, before: dict[str, int] | None = None) -> None:
    """By the hub's counts of contents and bytes nothing was sent that it had.

    The one exception is made by the client itself: an object whose upload's own reply was lost, it sends again.

    Args:
        hub: the hub, with its counts since they were cleared.
        plan: what was pushed.
        before: uploads that had arrived before that; none of them may come again.
    """
    sizes = {}
    for repo in plan.repos:
        for state in repo.states:
            for file in state.files.values():
                sizes[file.sha256] = sizes[file.git_hash] = file.size
    counts = hub.counts()
    assert not set(counts["uploads"]) & set(before or {})
    unknowing = sum(each["kind"] == "lfs-upload" and each["fault"] in GONE for each in hub.log())
    again = {name: counts["uploads"][name] - 1 for name in counts["repeated"]}
    assert all(" lfs " in name for name in again) and sum(again.values()) <= unknowing, again
    arrived = sum(times * sizes[name.split()[-1]] for name, times in counts["uploads"].items())
    assert counts["uploaded_bytes"] == arrived  # and no half of anything


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_objects_in_parts_and_stale_parents(finished, plan, tmp_path, share):
    """Large objects go up in parts; somebody else's commit is always in between."""
    with LoopbackHub(tmp_path / "hub", part_size=400_000) as hub:
        stale = Fault("status", on=["commit"], status=412, probability=share)
        hub.plan(stale, Fault("status", status=503, probability=share, headers={"Retry-After": "0"}), seed=3)
        done = push(finished, hub, tmp_path / "home", quick=True)
        assert done.code == 0, done.err
        assert_released(hub, plan)
        assert {"lfs-part", "lfs-complete"} <= set(hub.counts()["requests"])
        assert hub.counts()["repeated"] == []


@pytest.mark.parametrize("place", ["commit", "create", "tag", "collections", "settings"])
def test_a_hub_that_stays_broken_ends_in_one_line(finished, plan, tmp_path, place):
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.plan(Fault("status", on=[place], status=503, skip=1))
        done = push(finished, hub, tmp_path / "home", "--public", quick=True)
        assert done.code == 1, done.err
        (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert "failed 10 times" in line and "503" in line and "the same command goes on from here" in line
        assert_no_wrong_tag(hub, plan)
        if place in ("commit", "create"):
            made = [name.split(":") for name in hub.repos()]
            assert not any(hub.refs(repo_id, repo_type)["tags"] for repo_type, repo_id in made)
        hub.plan()
        assert push(finished, hub, tmp_path / "home", "--public").code == 0
        assert_released(hub, plan)
        assert hub.counts()["repeated"] == []


def test_somebody_else_commits_meanwhile(finished, plan, tmp_path):
    """A stale parent is no end: the next attempt builds on what the other has made."""
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.plan(Fault("slow", on=["commit"], seconds=1.5, skip=2, times=1))  # the model's second round
        work = subprocess.Popen(
            command(finished),
            cwd=ROOT,
            env={**os.environ, **hub.environment(tmp_path / "home")},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with Client(hub.environment(tmp_path / "other")) as other:
            other.run("from huggingface_hub import *; import time")
            while not ("model:tester/demo" in hub.repos() and hub.counts()["faults"].get("slow")):
                time.sleep(0.02)
            other.run("""
                create_commit("tester/demo", [CommitOperationAdd("other.txt", b"mine")], commit_message="other")
            """)
        out, err = work.communicate(timeout=120)
        assert work.returncode == 0, err
        assert "somebody else changed the repo meanwhile (412)" in out and "removes other.txt from main" in out
        assert_released(hub, plan)
        assert "other" in [commit["title"] for commit in hub.commits("tester/demo")]


def test_a_token_that_is_revoked_on_the_way(finished, plan, tmp_path):
    for place in ("commit", "preupload", "tag", "tree"):
        with LoopbackHub(tmp_path / place) as hub:
            hub.plan(Fault("revoke", on=[place], skip=1, times=1))
            done = push(finished, hub, tmp_path / "home")
            assert done.code == 1 and "refuses the token (401)" in done.err
            assert len(done.err.strip().splitlines()) == 1 and hub.token not in done.err
            assert_no_wrong_tag(hub, plan)
            hub.plan()
            done = push(finished, hub, tmp_path / "home", token=hub.add_token("tester"))
            assert done.code == 0, done.err
            assert_released(hub, plan)
            assert hub.counts()["repeated"] == []


@pytest.fixture
def full(tmp_path):
    """A file system of its own, without a byte left; by a mount, which takes root."""
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a full file system takes a mount, and this user may not: see the test by a limit on files")
    try:
        for name in ("home", "tmp", "place"):
            (folder / name).mkdir()
        with pytest.raises(OSError), (folder / "filler").open("wb", buffering=0) as stream:
            while True:
                stream.write(b"x" * 4096)
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_file_system_that_is_full(finished, plan, tmp_path, full):
    """A push needs no room; a stranger's download and a release say in one line that they do, and leave no half."""
    with LoopbackHub(tmp_path / "hub") as hub:
        environment = {**os.environ, **hub.environment(full / "home"), "TMPDIR": str(full / "tmp")}

        def typed(*words: object) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "cards", *map(str, words)]
            environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])
            return subprocess.run(command, cwd=full / "place", env=environment, capture_output=True, text=True)

        done = typed("push", finished, "--namespace", "tester")
        assert done.returncode == 0, done.stderr
        assert_released(hub, plan)
        done = typed("verify", "tester/mmaip-v")
        assert done.returncode == 2 and "tester/mmaip-v: cannot be downloaded" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        text = (ROOT / "cards" / "configs" / "demo.yaml").read_text().replace("recipes/", f"{ROOT}/recipes/")
        (tmp_path / "release.yaml").write_text(text)
        done = typed("release", tmp_path / "release.yaml")
        assert done.returncode == 2 and "No space left on device" in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_limit_on_files_stops_nothing(finished, plan, tmp_path):
    """A push writes no file: it works where not a byte can be written."""

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    with LoopbackHub(tmp_path / "hub") as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            command(finished), cwd=ROOT, env=environment, capture_output=True, text=True, check=False, preexec_fn=full
        )
        assert done.returncode == 0, done.stderr
        assert_released(hub, plan)


def test_killed_at_ten_points_it_goes_on(finished, plan, tmp_path):
    """SIGKILL: no tag is ever on anything unverified, and nothing that had arrived is sent again."""
    chance = random.Random(11)
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.plan(Fault("slow", seconds=0.02))  # so that there is a middle
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        reached = set()
        for turn in range(10):  # a push takes about a hundred requests, and fewer the more is there
            work = subprocess.Popen(
                command(finished), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            end = sum(hub.counts()["requests"].values()) + 2 + 8 * turn + chance.randrange(8)
            while sum(hub.counts()["requests"].values()) < end and work.poll() is None:
                time.sleep(0.002)
            work.kill()
            work.wait()
            assert_no_wrong_tag(hub, plan)
            reached |= {name for name in hub.repos() if hub.commits(*name.split(":")[::-1])[1:]}
        assert len(reached) > 1  # it was killed in more than one repo
        arrived = hub.counts()["uploads"]
        assert all(times == 1 for times in arrived.values())
        hub.plan()
        hub.clear_counts()
        done = push(finished, hub, tmp_path / "home")
        assert done.code == 0, done.err
        assert_released(hub, plan)
        assert_sent_once(hub, plan, arrived)
        assert [len(hub.commits(repo.repo_id, repo.repo_type)) for repo in plan.repos] == [2, 5, 2]


def test_ctrl_c_and_a_polite_kill_are_one_line(finished, plan, tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM):
        with LoopbackHub(tmp_path / str(number)) as hub:
            hub.plan(Fault("slow", on=["commit"], seconds=5.0))
            code = (
                "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
                "from cards.__main__ import main; sys.exit(main())"
            )
            work = subprocess.Popen(
                [sys.executable, "-c", code, *command(finished)[3:]],
                cwd=ROOT,
                text=True,
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **hub.environment(tmp_path / "home")},
            )
            while "commit" not in hub.counts()["requests"]:
                time.sleep(0.02)
            work.send_signal(number)
            _, err = work.communicate(timeout=30)
            assert work.returncode == 130 and err.strip() == "stopped; the same command goes on from here"
            assert hub.refs("tester/mmaip-v", "dataset")["tags"] == {}


def test_a_file_that_changes_while_it_is_sent_is_no_release(finished, tmp_path):
    run = copy(finished, tmp_path / "copy")
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.plan(Fault("slow", on=["create"], seconds=1.0, skip=1, times=1))  # before the model's files are read
        work = subprocess.Popen(
            command(run),
            cwd=ROOT,
            env={**os.environ, **hub.environment(tmp_path / "home")},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        while not hub.counts()["faults"]:
            time.sleep(0.02)
        weights = run / "arms" / "iter_w2s" / "round-2" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
        _, err = work.communicate(timeout=60)
        assert work.returncode == 1 and "changed while it was sent" in err and len(err.strip().splitlines()) == 1
        assert hub.refs("tester/demo")["tags"] == {}
        assert push(run, hub, tmp_path / "home").code == 0


def test_a_new_version_of_changed_content_moves_on(finished, tmp_path):
    """Rounds' tags follow the newest version, the older one's own tag stays, files that are gone are removed."""
    with LoopbackHub(tmp_path / "hub") as hub:
        assert push(finished, hub, tmp_path / "home").code == 0
        old = hub.refs("tester/demo")["tags"]
        run = copy(finished, tmp_path / "copy")
        first = run / "arms" / "iter_w2s" / "round-1"
        (first / "generation_config.json").write_text("{}")
        (run / "arms" / "iter_w2s" / "round-3" / "figures" / "arms.png").unlink()
        done = push(run, hub, tmp_path / "home", "--version", "0.2.0")
        assert done.code == 0, done.err
        tags = hub.refs("tester/demo")["tags"]
        assert tags["v0.1.0"] == old["v0.1.0"] and tags["round-1"] != old["round-1"]
        assert hub.files("tester/demo", revision="round-1")["generation_config.json"] == b"{}"
        assert "figures/arms.png" not in hub.files("tester/demo") and "figures/arms.png" in hub.files(
            "tester/demo", revision="v0.1.0"
        )
        said = hub.commits("tester/demo")[0]["message"]
        assert "tester/demo: the same rows, models and scores as v0.1.0" in said


def test_the_notes_of_a_second_version_say_what_is_different(finished, tmp_path):
    """Rows, models and scores, of dataset, model and evaluator, in commits and tags; and the changelog's section."""
    from eval.evaluator import VQAEvaluator

    with LoopbackHub(tmp_path / "hub") as hub:
        assert push(finished, hub, tmp_path / "home").code == 0
        assert "The first version." in hub.commits("tester/demo")[0]["message"]
        run = copy(finished, tmp_path / "copy")
        data, last = run.parent / "mmaip-v", run / "arms" / "iter_w2s" / "round-3"
        pairs = data / "preferences" / "train-00000-of-00001.parquet"
        table = pq.read_table(pairs)
        pq.write_table(table.slice(0, len(table) - 2), pairs)
        provenance = json.loads((data / "provenance.json").read_text())
        provenance.pop("files", None)
        provenance["zoo"] = [{"name": "eve", "revision": "e" * 16}]
        (data / "provenance.json").write_text(json.dumps(provenance))
        old, new = f"num_examples: {len(table)}\n", f"num_examples: {len(table) - 2}\n"
        (data / "README.md").write_text((data / "README.md").read_text().replace(old, new, 1))
        arms = json.loads((run / "arms.json").read_text())
        arms["arms"]["iter_w2s"]["accuracy"] = 0.75
        (run / "arms.json").write_text(json.dumps(arms))
        (last / "README.md").write_text((last / "README.md").read_text().replace("value: 0.68", "value: 0.75", 1))
        VQAEvaluator({"kind": "reference", "name": "stern"}).save_pretrained(run / "evaluator")
        (run / "CHANGELOG.md").write_text("# Log\n\n## 0.2.0\n\n- Two pairs fewer.\n\n## 0.1.0\n\n- Begun.\n")
        done = push(run, hub, tmp_path / "home", "--version", "0.2.0", "--base", "lab/base")
        assert done.code == 0, done.err
        for repo_id, repo_type in (("tester/mmaip-v", "dataset"), ("tester/demo", "model")):
            said = hub.commits(repo_id, repo_type)[0]["message"]
            for words in (
                f"tester/mmaip-v: rows of preferences/train: {len(table)} in v0.1.0, {len(table) - 2} now",
                "tester/mmaip-v: member eve: not there in v0.1.0, eeeeeeeeeeeeeeee now",
                "tester/demo: accuracy: 0.68 in v0.1.0, 0.75 now",
                "tester/demo: base: not there in v0.1.0, lab/base now",
                "tester/demo-evaluator: judge: reference in v0.1.0, stern now",
                "## 0.2.0\n\n- Two pairs fewer.",
            ):
                assert words in said, (words, said)
            assert "Begun" not in said


def test_a_repo_of_others_is_left_alone(finished, tmp_path):
    with LoopbackHub(tmp_path / "hub") as hub:
        with Client(hub.environment(tmp_path / "other")) as other:
            other.run("""
                from huggingface_hub import *
                create_repo("tester/demo")
                create_commit("tester/demo", [CommitOperationAdd("app.py", b"mine")], commit_message="mine")
            """)
        done = push(finished, hub, tmp_path / "home")
        assert done.code == 2 and "app.py" in done.err and len(done.err.strip().splitlines()) == 1
        assert hub.repos() == ["model:tester/demo"]
        assert push(finished, hub, tmp_path / "home", "--name", "mine").code == 0
        assert "model:tester/mine-evaluator" in hub.repos()
