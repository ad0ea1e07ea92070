"""The Hub as a push sees it: calls that are made again when they fail, and what a repo holds at a commit.

Every call that goes through :meth:`Remote.patient` may be made twice, because it looks first what is there already: a
reply can be lost after the work was done, and then the second call finds it done.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from dataset_builder.errors import KitError

if TYPE_CHECKING:
    from huggingface_hub import RepoFile

    from cards.push.plan import PlannedFile, RepoPlan, State

ATTEMPTS = 10  # of one call, in all
WAIT, LONGEST = 1.0, 30.0  # seconds before the second attempt, doubled each time, and at most
PASSING = {408, 409, 412, 425, 429}  # beside 5xx
KEY = re.compile(r"^content ([0-9a-f]{16})$", re.MULTILINE)  # in the message of a commit
ATTRIBUTES = ".gitattributes"  # the Hub's own


class PushError(KitError):
    """The push stopped on its way: what has been sent stays, and the same command goes on from there."""

    exit_code = 1


class Remote:
    """The Hub, for one push.

    Args:
        say: where lines about what goes wrong go.

    Raises:
        KitError: the environment forbids the network, or there is no token.
    """

    def __init__(self, say: Callable[[str], None]):
        from huggingface_hub import HfApi, constants, get_token

        if constants.is_offline_mode():
            raise KitError("HF_HUB_OFFLINE is set, and a push needs the Hub: unset it")
        self._secret = get_token()
        if not self._secret:
            raise KitError("there is no token for the Hub: type hf auth login, or set HF_TOKEN")
        self.say, self.api, self.endpoint = say, HfApi(), constants.ENDPOINT

    def patient(self, what: str, call: Callable[[], Any]) -> Any:
        """Make a call until it goes through.

        Args:
            what: it does, for messages.
            call: may be made again at any time.

        Raises:
            PushError: it failed for good, or too often.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except KitError:
                raise
            except Exception as error:  # of many kinds: huggingface_hub's, httpx's, what it makes of a broken body
                passing, reason, wait = self.explain(error)
                if not passing:
                    raise PushError(f"{what}: {reason}") from error
                if attempt == ATTEMPTS:
                    raise PushError(
                        f"{what}: failed {ATTEMPTS} times, the last time with: {reason}. Nothing was tagged that was "
                        "not read back; the same command goes on from here"
                    ) from error
                wait = min(LONGEST, max(wait, WAIT * 2 ** (attempt - 1)))
                self.say(f"  {what}: {reason}; again in {wait:.0f} s")
                time.sleep(wait)
        raise AssertionError

    def explain(self, error: BaseException) -> tuple[bool, str, float]:
        """Whether an error may pass, what it is in one line without secrets, and the seconds the Hub asks to wait."""
        import httpx
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

        while isinstance(error, RuntimeError) and error.__cause__ is not None:
            error = error.__cause__  # the upload of large files wraps what went wrong
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        said = re.sub(r"\?\S*", "", re.sub(r"\(Request ID: [^)]*\)", "", said)).replace(self._secret, "…").strip()
        line = f"{type(error).__name__} {said}"[:240].strip()
        if isinstance(error, (LocalTokenNotFoundError, OfflineModeIsEnabled)):
            return False, line, 0
        if isinstance(error, HfHubHTTPError):
            response = error.response
            status = response.status_code if response is not None else 0
            if status == 401:
                return False, "the Hub refuses the token (401); log in again, and the same command goes on from here", 0
            if status == 403:
                return False, f"the token may not do this (403): {line}; the same command goes on with one that may", 0
            asked = response.headers.get("Retry-After", "") if response is not None else ""
            wait = float(asked) if re.fullmatch(r"\d+(\.\d+)?", asked) else 0.0
            reason = {412: "somebody else changed the repo meanwhile (412)", 429: "the Hub asks to wait (429)"}
            return status in PASSING or status >= 500, reason.get(status, line), wait
        if isinstance(error, (httpx.TransportError, httpx.StreamError, ConnectionError, TimeoutError)):
            return True, f"the connection broke ({line})", 0
        if isinstance(error, (json.JSONDecodeError, httpx.DecodingError)):
            return True, "the reply could not be read", 0
        return False, line, 0

    # What is there ---------------------------------------------------------------------------------------------------

    def exists(self, repo: RepoPlan) -> bool:
        """Whether there is such a repo that the token may see."""
        return self.patient(
            f"{repo.repo_id}: looking for it", lambda: self.api.repo_exists(repo.repo_id, repo_type=repo.repo_type)
        )

    def refs(self, repo: RepoPlan) -> tuple[str, dict[str, str]]:
        """The commit of ``main``, and the commits of the tags by their names."""

        def read() -> tuple[str, dict[str, str]]:
            refs = self.api.list_repo_refs(repo.repo_id, repo_type=repo.repo_type)
            head = next(branch.target_commit for branch in refs.branches if branch.name == "main")
            return head, {tag.name: tag.target_commit for tag in refs.tags}

        return self.patient(f"{repo.repo_id}: reading its tags", read)

    def tree(self, repo: RepoPlan, commit: str) -> dict[str, RepoFile]:
        """Files at a commit by path."""
        from huggingface_hub import RepoFile

        def read() -> dict[str, RepoFile]:
            found = self.api.list_repo_tree(repo.repo_id, recursive=True, revision=commit, repo_type=repo.repo_type)
            return {entry.path: entry for entry in found if isinstance(entry, RepoFile)}

        return self.patient(f"{repo.repo_id}: reading what it holds", read)

    def keys(self, repo: RepoPlan) -> dict[str, list[str]]:
        """Commits of earlier pushes by the key of the state in their message, the newest first."""

        def read() -> dict[str, list[str]]:
            found: dict[str, list[str]] = {}
            for commit in self.api.list_repo_commits(repo.repo_id, repo_type=repo.repo_type):
                for key in KEY.findall(f"{commit.title}\n{commit.message}"):
                    found.setdefault(key, []).append(commit.commit_id)
            return found

        return self.patient(f"{repo.repo_id}: reading its commits", read)

    def card_errors(self, repo: RepoPlan, front: str) -> list[str] | None:
        """What the Hub's own check says against a card's YAML block; None where it cannot be asked.

        Args:
            repo: whose card.
            front: the YAML block with its ``---`` lines; nothing else of the card is sent.
        """
        from huggingface_hub.errors import BadRequestError, HfHubHTTPError
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        def ask() -> list[str] | None:
            body = {"content": front, "repoType": repo.repo_type}
            reply = get_session().post(f"{self.endpoint}/api/validate-yaml", json=body, headers=build_hf_headers())
            try:
                hf_raise_for_status(reply)
            except BadRequestError as error:
                try:
                    told = [str(each.get("message")) for each in reply.json().get("errors", [])]
                except (ValueError, AttributeError):
                    told = []
                return told or [str(error).splitlines()[0]]  # a refusal without reasons is none the less one
            except HfHubHTTPError as error:
                if error.response is not None and error.response.status_code in (404, 405, 501):
                    return None  # not every Hub has it
                raise
            return []

        return self.patient(f"{repo.repo_id}: asking the Hub about its card", ask)

    def text(self, repo: RepoPlan, path: str, revision: str) -> bytes | None:
        """A small file, read as anybody would; None when there is none."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        def read() -> bytes | None:
            url = hf_hub_url(repo.repo_id, path, repo_type=repo.repo_type, revision=revision)
            reply = get_session().get(url, headers=build_hf_headers(), follow_redirects=True)
            try:
                hf_raise_for_status(reply)
            except EntryNotFoundError:
                return None
            return reply.content

        return self.patient(f"{repo.repo_id}: reading {path}", read)


def same(file: PlannedFile, there: RepoFile | None) -> bool:
    """Whether the Hub has a planned file as it is here."""
    if there is None or there.size != file.size:
        return False
    return there.lfs.sha256 == file.sha256 if there.lfs is not None else there.blob_id == file.git_hash


def difference(state: State, tree: dict[str, RepoFile]) -> tuple[list[PlannedFile], list[str]]:
    """Files that a repo lacks or has otherwise, and paths that are none of the state's."""
    missing = [file for path, file in state.files.items() if not same(file, tree.get(path))]
    return missing, [path for path in tree if path not in state.files and path != ATTRIBUTES]


def batches(files: list[PlannedFile], number: int, size: int) -> Iterator[list[PlannedFile]]:
    """Files in groups of at most so many, and of so many bytes unless one file alone is larger.

    Contents that occur twice are in different groups: in one they would be sent twice.
    """
    group: list[PlannedFile] = []
    for file in files:
        full = len(group) == number or sum(other.size for other in group) + file.size > size
        if group and (full or any(other.sha256 == file.sha256 for other in group)):
            yield group
            group = []
        group.append(file)
    if group:
        yield group


def offline_by(environment: dict[str, str]) -> bool:
    """Whether a person's own environment forbids the network."""
    return environment.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
