"""Filling the repos: each state a commit, read back before anything is tagged, made public last.

What the Hub has already is found by comparing hashes, never by remembering: a push that was stopped, or typed twice,
sends what is missing and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable

from cards.push.copies import FRONT
from cards.push.notes import release_notes
from cards.push.plan import CARD, Plan, PlannedFile, RepoPlan, State
from cards.push.remote import ATTRIBUTES, PushError, Remote, batches, difference
from cards.stage_log import progress_lines
from dataset_builder.errors import KitError

THE_HUB = "https://huggingface.co"
GROUP, GROUP_BYTES = 16, 100 * 2**20  # files sent before progress is counted: a stop loses no more


class Push:
    """One push.

    Args:
        plan: what goes where; checked already.
        say: where lines go.
        public: make everything public at the end.
    """

    def __init__(self, plan: Plan, say: Callable[[str], None], public: bool = False):
        self.plan, self.say, self.public = plan, say, public
        self.remote = Remote(say)
        self.api = self.remote.api
        self.sent = 0  # bytes
        self.cards_accepted = 0  # by the Hub's own check
        self._commits: dict[tuple[str, str], dict[str, str]] = {}  # by repo, then state

    def run(self) -> None:
        """Do all of it.

        Raises:
            KitError: nothing was sent, because it may not be.
            PushError: it stopped on its way.
        """
        from huggingface_hub.utils import disable_progress_bars

        if not sys.stderr.isatty():
            disable_progress_bars()
        self.look_first()
        for repo in self.plan.repos:
            self.fill(repo)
        for repo in self.plan.repos:
            self.read_back(repo)
        self.tag()
        self.collect()
        if self.public:
            self.publish()

    # Before anything is sent ------------------------------------------------------------------------------------------

    def look_first(self) -> None:
        """Whether the token may push here, and whether the repos are free for it."""
        plan = self.plan
        about = self.remote.patient("asking whose the token is", self.api.whoami)
        names = {about["name"], *(org["name"] for org in about.get("orgs", []))}
        role = about.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise KitError("the token may only read: make one that may write (https://huggingface.co/settings/tokens)")
        if plan.namespace not in names:
            raise KitError(
                f"--namespace {plan.namespace}: the token's user may write to {', '.join(sorted(names))} only"
            )
        for repo in plan.repos:
            if self.remote.exists(repo):
                self._look_at(repo)
        if plan.dataset is not None:
            self._look_for_dataset(plan.dataset)
        for repo in plan.repos:
            self._ask_about_card(repo)

    def _look_for_dataset(self, repo_id: str) -> None:
        """Refuse a dataset on the Hub that is not there, or not the one the run was trained on."""
        there = RepoPlan("dataset", repo_id, [])
        if not self.remote.exists(there):
            raise KitError(f"--dataset {repo_id}: there is no such dataset on the Hub, or the token may not read it")
        try:
            built = json.loads(self.remote.text(there, "provenance.json", "main") or b"{}").get("fingerprint")
        except (ValueError, AttributeError):
            built = None
        trained = self.plan.run.info.get("dataset_fingerprint")
        if built and trained and built != trained:
            raise KitError(f"--dataset {repo_id}: is another build ({built}) than the run was trained on ({trained})")

    def _ask_about_card(self, repo: RepoPlan) -> None:
        """Refuse a card that the Hub would refuse, before anything else is sent."""
        text = repo.final.files[CARD].read().decode("utf-8", "replace")
        found = FRONT.match(text)
        errors = self.remote.card_errors(repo, found[0] if found else text)
        if errors:
            raise KitError(f"{repo.kind} {repo.repo_id}: {CARD}: the Hub refuses its YAML block: {'; '.join(errors)}")
        if errors is not None:
            self.cards_accepted += 1

    def _look_at(self, repo: RepoPlan) -> None:
        """Refuse a repo with other content: a released version never changes, and files of others are not ours."""
        head, tags = self.remote.refs(repo)
        version = self.plan.version
        if version in tags:
            missing, stale = difference(repo.final, self.remote.tree(repo, tags[version]))
            if missing or stale:
                first = missing[0].path if missing else stale[0]
                raise KitError(
                    f"{repo.kind} {repo.repo_id}: {version} is released already, with other content ({first} and "
                    f"{len(missing) + len(stale) - 1} more differ); give another --version"
                )
            return
        if not self.remote.keys(repo):
            strange = sorted(set(self.remote.tree(repo, head)) - {ATTRIBUTES, CARD} - set(repo.final.files))
            if strange:
                raise KitError(
                    f"{repo.kind} {repo.repo_id}: holds files that no push of this kit has put there ({strange[0]}); "
                    "give another --name, or empty it"
                )

    # Sending ---------------------------------------------------------------------------------------------------------

    def fill(self, repo: RepoPlan) -> None:
        """Make the repo if need be, and commit the states that it lacks."""
        self.remote.patient(
            f"{repo.repo_id}: making the repo",
            lambda: self.api.create_repo(repo.repo_id, repo_type=repo.repo_type, private=True, exist_ok=True),
        )
        before, made = self.sent, 0
        commits = self._commits[(repo.kind, repo.repo_id)] = {}
        for state in repo.states:
            found = self._find(repo, state)
            if found is None:
                found, made = self._commit(repo, state), made + 1
            commits[state.name] = found
        sent = self.sent - before
        done = f"{made} commit{'s' if made != 1 else ''}, {size(sent)} sent" if made else "all of it is there already"
        self.say(f"{repo.kind} {repo.repo_id}: {done}")

    def _find(self, repo: RepoPlan, state: State) -> str | None:
        """The commit that shows a state already: ``main`` for the final one, for a round any of its commits."""
        head, tags = self.remote.refs(repo)
        if state is repo.final:
            candidates = [head]
        else:
            candidates = [tags[tag] for tag in state.tags if tag in tags] + self.remote.keys(repo).get(state.key, [])
        for commit in dict.fromkeys(candidates):
            if difference(state, self.remote.tree(repo, commit)) == ([], []):
                return commit
        return None

    def _commit(self, repo: RepoPlan, state: State) -> str:
        """Bring ``main`` to a state, in one commit.

        Returns:
            The commit.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        progress: list[Callable[[int], None]] = []

        def attempt() -> str:
            head, _ = self.remote.refs(repo)
            missing, stale = difference(state, self.remote.tree(repo, head))
            if not missing and not stale:
                return head  # the last reply was lost
            if gone := [path for path in stale if not any(path in other.files for other in repo.states)]:
                self.say(f"  {repo.repo_id}: removes {', '.join(gone[:3])}{' and more' if gone[3:] else ''} from main")
            if not progress:
                progress.append(self._bar(state, missing))
            additions = {file.path: CommitOperationAdd(file.path, _content(file)) for file in missing}
            for group in batches(missing, GROUP, GROUP_BYTES):
                self.remote.patient(
                    f"{repo.repo_id}: sending {group[0].path}",
                    lambda group=group: self.api.preupload_lfs_files(
                        repo.repo_id,
                        [additions[file.path] for file in group],
                        repo_type=repo.repo_type,
                        free_memory=False,
                        gitignore_content="",
                    ),
                )
                for file in group:
                    info = additions[file.path].upload_info
                    if info.size != file.size or (info.is_hashed and info.sha256.hex() != file.sha256):
                        raise PushError(f"{file.source}: changed while it was sent; type the command again")
                progress[0](sum(file.size for file in group))
            info = self.api.create_commit(
                repo.repo_id,
                [*additions.values(), *(CommitOperationDelete(path) for path in stale)],
                commit_message=state.title,
                commit_description=f"{self._description(state)}content {state.key}",
                repo_type=repo.repo_type,
                parent_commit=head,
            )
            self.sent += sum(file.size for file in missing)
            return info.oid

        return self.remote.patient(f"{repo.repo_id}: committing {state.name}", attempt)

    def _description(self, state: State) -> str:
        return f"{self.notes}\n" if state.name == "final" else ""

    @property
    def notes(self) -> str:
        """Notes of this version; read from the Hub once."""
        if not hasattr(self, "_notes"):
            made = [
                repo
                for repo in self.plan.repos
                if (repo.kind, repo.repo_id) in self._commits or self.remote.exists(repo)
            ]
            plan = Plan(self.plan.run, self.plan.name, self.plan.namespace, self.plan.version, made)
            self._notes = release_notes(plan, self.remote)
        return self._notes

    def _bar(self, state: State, files: list[PlannedFile]) -> Callable[[int], None]:
        """Counts bytes, and says lines with rate and time left."""
        total, done, started = sum(file.size for file in files), 0, time.monotonic()
        said = progress_lines(lambda line: self.say(f"{line} ({state.title})"), "kB")

        def count(more: int) -> None:
            nonlocal done
            done = min(total, done + more)
            if done < total and time.monotonic() > started:
                said(max(1, done // 1000), max(2, total // 1000))

        return count

    # Afterwards ------------------------------------------------------------------------------------------------------

    def read_back(self, repo: RepoPlan) -> None:
        """Compare every commit with the plan once more, through a client that has seen nothing yet.

        Raises:
            PushError: the Hub has something else.
        """
        fresh = Remote(self.say)
        head, _ = fresh.refs(repo)
        for state in repo.states:
            commit = self._commits[(repo.kind, repo.repo_id)][state.name]
            missing, stale = difference(state, fresh.tree(repo, commit))
            if missing or stale or (state is repo.final and commit != head):
                first = missing[0].path if missing else stale[0] if stale else "main"
                raise PushError(
                    f"{repo.kind} {repo.repo_id}: what the Hub has is not what was sent ({state.name}: {first}); "
                    "nothing was tagged: see who else writes to it, and type the command again"
                )
        card = repo.final.files.get(CARD)
        if card is not None and hashlib.sha256(fresh.text(repo, CARD, head) or b"").hexdigest() != card.sha256:
            raise PushError(
                f"{repo.kind} {repo.repo_id}: {CARD} comes back otherwise than it was sent; nothing was tagged"
            )
        number = len({file.sha256 for state in repo.states for file in state.files.values()})
        self.say(f"{repo.kind} {repo.repo_id}: read back, {number} files as planned")

    def tag(self) -> None:
        """Put the tags on: those of rounds, then the version on every repo. What has its version tag is released."""
        for versions in (False, True):
            for repo in self.plan.repos:
                for state in repo.states:
                    for name in state.tags:
                        if (name == self.plan.version) == versions:
                            self._tag(repo, name, self._commits[(repo.kind, repo.repo_id)][state.name])

    def _tag(self, repo: RepoPlan, name: str, commit: str) -> None:
        def attempt() -> None:
            there = self.remote.refs(repo)[1].get(name)
            if there == commit:
                return
            if there is not None and name == self.plan.version:
                missing, stale = difference(repo.final, self.remote.tree(repo, there))
                if missing or stale:
                    raise PushError(f"{repo.kind} {repo.repo_id}: {name} was put on other content meanwhile")
                return
            if there is not None:  # of an earlier version, whose own tag still leads to it
                self.api.delete_tag(repo.repo_id, tag=name, repo_type=repo.repo_type)
            message = self.notes if name == self.plan.version else f"{self.plan.name} {name}"
            self.api.create_tag(
                repo.repo_id, tag=name, revision=commit, tag_message=message, repo_type=repo.repo_type, exist_ok=True
            )
            if self.remote.refs(repo)[1].get(name) != commit:
                raise PushError(f"{repo.kind} {repo.repo_id}: tag {name} leads elsewhere; type the command again")

        self.remote.patient(f"{repo.repo_id}: tagging {name}", attempt)

    def collect(self) -> None:
        """Tie the repos by a collection, which is private too until it is published."""
        plan = self.plan
        found = self.remote.patient(
            "making the collection",
            lambda: self.api.create_collection(plan.collection, namespace=plan.namespace, private=True, exists_ok=True),
        )
        self._collection = found.slug
        have = {(item.item_type, item.item_id) for item in found.items}
        for repo in plan.repos:
            if (repo.repo_type, repo.repo_id) not in have:
                self.remote.patient(
                    f"{repo.repo_id}: into the collection",
                    lambda repo=repo: self.api.add_collection_item(
                        found.slug, item_id=repo.repo_id, item_type=repo.repo_type, note=repo.kind, exists_ok=True
                    ),
                )

    def publish(self) -> None:
        """Make repos and collection public: the last step."""
        for repo in self.plan.repos:
            self.remote.patient(
                f"{repo.repo_id}: making it public",
                lambda repo=repo: self.api.update_repo_settings(repo.repo_id, private=False, repo_type=repo.repo_type),
            )
        self.remote.patient(
            "making the collection public",
            lambda: self.api.update_collection_metadata(self._collection, private=False),
        )

    def verified(self) -> list[str]:
        """What was verified of the release, and what was not; a line each."""
        repos, endpoint = self.plan.repos, self.remote.endpoint
        files = sum(len({file.sha256 for s in repo.states for file in s.files.values()}) for repo in repos)
        tags = sum(len(state.tags) for repo in repos for state in repo.states)
        lines = [
            f"verified: {files} files in {len(repos)} repos, by hash through a fresh client; {tags} tags lead to them"
        ]
        if self.cards_accepted == len(repos):
            lines.append(f"verified: {endpoint} accepts the YAML block of {len(repos)} cards")
        else:
            lines.append(f"not verified: {endpoint} has no check of cards that could be asked")
        if endpoint != THE_HUB:
            lines.append(f"not verified: the cards by {THE_HUB} itself, which was not asked (HF_ENDPOINT is another)")
        named = ", ".join(repo.repo_id for repo in repos)
        again = "python -m cards verify NAMESPACE/NAME computes them again from the released rows"
        return [*lines, f"not verified: the numbers on the cards; {again} ({named})"]

    def addresses(self) -> list[str]:
        """Where everything is now, and the collection."""
        base = self.remote.endpoint
        pages = [
            f"{base}/{'datasets/' if repo.repo_type == 'dataset' else ''}{repo.repo_id}/tree/{self.plan.version}"
            for repo in self.plan.repos
        ]
        return [*pages, f"{base}/collections/{self._collection}"]


def size(number: int) -> str:
    """Bytes for a person."""
    value = float(number)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _content(file: PlannedFile) -> str | bytes:
    return file.source if isinstance(file.source, bytes) else str(file.source)
