"""``python -m cards push``: its options, and the order of its steps."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cards.push.plan import WEIGHTS, Options, Plan, make_plan
from dataset_builder.errors import EXIT_CANNOT_RUN, EXIT_OK, KitError


def add_push(verbs: argparse._SubParsersAction) -> None:
    """Add the verb to the room's command line."""
    push = verbs.add_parser("push", help="put a finished run on the Hub: dataset, model and evaluator; resumable")
    push.add_argument("run", metavar="RUN_DIR", help="a run folder that python -m cards release finished")
    push.add_argument("--namespace", required=True, metavar="NS", help="Hub user or organisation")
    push.add_argument("--name", help="of the model repo; the run's name by default")
    push.add_argument("--version", help="tag of this release without its v; the kit's version by default")
    push.add_argument("--weights", choices=WEIGHTS, default="both", help="of LoRA rounds (default: both)")
    push.add_argument("--base", metavar="ID", help="what a base that was started from a folder is called on the Hub")
    push.add_argument("--dataset", metavar="ID", help="the dataset's Hub id, when it is there already: not pushed then")
    push.add_argument("--public", action="store_true", help="make the repos public when all is read back and tagged")
    push.add_argument("--allow", metavar="TEXT", action="append", default=[], help="a string that is no secret or path")
    push.add_argument("--dry-run", action="store_true", help="say what would go where, and stop")
    push.add_argument("--check", action="store_true", help="also check it, and stop; still nothing is sent")


def push(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Plan, check, send, read back, tag.

    Returns:
        The exit code: 2 when a check found something, in which case nothing was sent.

    Raises:
        KitError: see :mod:`cards.push.plan`, :mod:`cards.push.upload`.
    """
    given = (arguments.namespace, arguments.name, arguments.version, arguments.weights, arguments.base)
    options = Options(*given, arguments.dataset)
    signal.signal(signal.SIGTERM, _stop)
    with _reading(Path(arguments.run)):
        plan = make_plan(arguments.run, options)
        if arguments.dry_run:
            say(describe(plan, arguments.public))
            return EXIT_OK
        from cards.push.checks import problems

        found = problems(plan, arguments.allow, progress=sys.stderr.isatty())
        if found:
            for line in found:
                print(f"error: {line}", file=sys.stderr)
            print(f"error: {len(found)} thing{'s' * (len(found) > 1)} to put right; nothing was sent", file=sys.stderr)
            return EXIT_CANNOT_RUN
        if arguments.check:
            say(describe(plan, arguments.public))
            say("checked: nothing is wrong, nothing was sent")
            return EXIT_OK
        from cards.push.upload import Push

        work = Push(plan, say, arguments.public)
        work.run()
    say(f"released {plan.name} {plan.version}{'' if arguments.public else ' (what was private stays private)'}")
    for address in work.addresses():
        say(f"  {address}")
    for line in work.verified():
        say(line)
    return EXIT_OK


def describe(plan: Plan, public: bool = False) -> str:
    """A plan as text: every repo, commit, file, size, hash and tag, then a table of the repos.

    Of a commit only those files are listed that the commit before it has not.
    """
    from cards.push.upload import size

    lines, rows, total = [f"push {plan.name} {plan.version} to {plan.namespace}: nothing was sent"], [], 0
    for repo in plan.repos:
        contents = {file.sha256: file.size for state in repo.states for file in state.files.values()}
        total += sum(contents.values())
        lines.append(f"{repo.kind} {repo.repo_id}")
        before: dict[str, str] = {}
        for state in repo.states:
            hashes = {path: file.sha256 for path, file in state.files.items()}
            new = [file for path, file in state.files.items() if before.get(path) != file.sha256]
            kept = f", {len(hashes) - len(new)} of them as before" if len(new) < len(hashes) else ""
            gone = f", {len(before.keys() - hashes.keys())} removed" if before.keys() - hashes.keys() else ""
            lines.append(
                f"  commit '{state.title}': {len(hashes)} files{kept}{gone}, {size(state.size)}"
                + (f", tag {', '.join(state.tags)}" if state.tags else "")
                + (", main" if state is repo.final else "")
            )
            width = max((len(file.path) for file in new), default=0)
            for file in new:
                made = "" if isinstance(file.source, Path) else "  (written for the Hub)"
                lines.append(f"    {file.path:<{width}}  {size(file.size):>9}  {file.sha256}{made}")
            before = hashes
        card = "yes" if "README.md" in repo.final.files else "NONE"
        tags = ", ".join(tag for state in repo.states for tag in state.tags)
        row = [repo.kind, repo.repo_id, str(len(repo.final.files)), str(len(repo.states)), size(sum(contents.values()))]
        rows.append([*row, card, tags])
    whole = [
        "all",
        "",
        str(sum(int(row[2]) for row in rows)),
        str(sum(int(row[3]) for row in rows)),
        size(total),
        "",
        "",
    ]
    head = ["repo", "id", "files on main", "commits", "size", "card", "tags"]
    lines += ["", *_columns([head, *rows, whole]), "", f"collection {plan.namespace}: {plan.collection}"]
    lines += plan.remarks
    lines.append(
        "public at the end, when all is read back and tagged"
        if public
        else "new repos and the collection are private, what is public stays so; --public makes all public at the end"
    )
    return "\n".join(lines)


def _columns(rows: list[list[str]]) -> list[str]:
    """Rows of text in columns; what is a number or a size stands right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    right = [any(row[place][:1].isdigit() for row in rows) for place in range(len(widths))]
    cells = [[c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right)] for row in rows]
    return ["  ".join(row).rstrip() for row in cells]


def push_leg(run_dir: str, namespace: str, name: str, offline: str | None, more: Sequence[str] = ()) -> int:
    """The last leg of a release, in a process of its own: the release itself runs without network.

    Args:
        run_dir: the run folder.
        namespace: where to.
        name: of the release.
        offline: ``HF_HUB_OFFLINE`` as the person's environment had it.
        more: further options of ``python -m cards push``.

    Returns:
        The exit code.
    """
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    if offline is not None:
        environment["HF_HUB_OFFLINE"] = offline
    command = [sys.executable, "-m", "cards", "push", run_dir, "--namespace", namespace, "--name", name, *more]
    return subprocess.run(command, env=environment, check=False).returncode


class _reading:
    """Keeps a release from working in the run folder meanwhile.

    Raises:
        KitError: one is at work there, or there is no such folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> None:
        if not (self.folder / "run.json").is_file():
            if (self.folder / "rounds.json").is_file() or (self.folder / "arms.json").is_file():
                raise KitError(
                    f"{self.folder}: holds what recipes/iter_w2s.py trained, not tested and without cards yet: type "
                    "python -m cards finish with the words of the training command first"
                )
            raise KitError(f"{self.folder}: is no run folder (it has no run.json); python -m cards release makes one")
        lock = self.folder / ".lock"
        self._lock = lock.open() if lock.is_file() else None
        if self._lock is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                self._lock.close()
                raise KitError(f"{self.folder}: a release is at work here; wait for it or stop it") from None

    def __exit__(self, *_error: object) -> None:
        if self._lock is not None:
            self._lock.close()


def _stop(*_signal: object) -> None:
    """A polite kill means what Ctrl-C means."""
    raise KeyboardInterrupt
