"""The evaluator: one judge with its settings, loaded from a folder or the Hub, asked in one line."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelHubMixin

from dataset_builder.errors import KitError
from dataset_builder.settings import parse_judge
from eval.evaluator import agreement
from eval.evaluator.config import CONFIG, local_weights, portable, read_config, resolved, write_config
from eval.evaluator.folders import PACKAGE, drop, fetched, first_line, refuse_other_content, replace
from eval.evaluator.verdict import Asked, Verdict
from eval.evaluator.weights import WEIGHTS, copy_weights, read_training
from eval.fingerprint import fingerprint_of, judge_record

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from dataset_builder.judges import Judge

BLOCK = 64  # answers that a local judge gets at once
AUDIT, AUDIT_PICTURE, AUDIT_ROWS = "audit.json", "audit.png", "audit_rows.json"
VERDICTS = f"{agreement.FOLDER}/{agreement.FILE}"
_LOADED = (
    CONFIG,
    f"{WEIGHTS}/*",
    AUDIT,
    AUDIT_PICTURE,
    AUDIT_ROWS,
    VERDICTS,
)  # of a repo, what an evaluator is made from


class VQAEvaluator(ModelHubMixin):
    """A judge of answers to questions about videos, as a model on the Hub.

    Args:
        judge: its specification, as for :func:`dataset_builder.judges.make_judge` (``{"kind": "vqa", …}``). A local
            checkpoint's folder as ``model`` is carried in the repo; a Hub id is pinned to its commit; an endpoint's
            key and machine are not stored.
        audit: a bias audit of this judge, which the card shows: the folder or JSON that ``python -m eval audit-judge``
            wrote; its picture and its rows lie beside the JSON.
        verdicts: Parquet of this judge's verdicts beside those of others on the same answers, see
            `eval.evaluator.agreement`; the card shows how far they agree.
        license: of the repo, such as that of the weights it carries.
        device: where a local judge runs: ``auto``, ``cpu``, ``cuda`` …
        cache: SQLite file for the replies of an endpoint, which is then never asked the same twice.

    Raises:
        KitError: the specification is wrong.
    """

    def __init__(
        self,
        judge: Mapping[str, Any],
        *,
        audit: str | Path | None = None,
        verdicts: str | Path | None = None,
        license: str = "apache-2.0",
        device: str = "auto",
        cache: str | Path | None = None,
    ):
        parse_judge(dict(judge))
        self.spec, self.device, self.cache, self.license = dict(judge), device, cache, license
        if (weights := local_weights(self.spec)) is not None:
            self.spec["model"] = str(weights.absolute())  # a relative path is another model's name elsewhere
        self.audit = None if audit is None else Path(audit) / AUDIT if Path(audit).is_dir() else Path(audit)
        self.verdicts = None if verdicts is None else Path(verdicts)
        self._saved: Mapping[str, Any] | None = None  # the record that stands in the repo this was loaded from

    @cached_property
    def judge(self) -> Judge:
        """The judge itself; its model is loaded when it is first needed.

        Raises:
            KitError: the model cannot be loaded, or its weights are not those that were saved.
        """
        from dataset_builder.judges import make_judge
        from dataset_builder.models import CallCache

        cache = CallCache(self.cache) if self.cache is not None and self.spec.get("endpoint") else None
        judge = make_judge(self.spec, self.device, cache)
        saved = self._saved or {}
        if saved.get("revision", judge.revision) != judge.revision:
            raise KitError(
                f"the judge is not the one that this evaluator was saved with (revision {judge.revision}, not "
                f"{saved['revision']}): its files are damaged or were replaced, or the kit's judge has changed since"
            )
        if saved.get("settings_hash", judge.settings_hash) != judge.settings_hash:
            print(
                f"warning: this kit's judge of kind '{judge.kind}' asks otherwise than when the evaluator was saved "
                f"(settings {judge.settings_hash}, not {saved['settings_hash']}): verdicts may differ; the package in "
                "its repo asks as it did",
                file=sys.stderr,
            )
        return judge

    @property
    def record(self) -> dict[str, Any]:
        """What results say of their judge (:func:`eval.fingerprint.judge_record`); after judging, an endpoint's version
        is in it."""
        return judge_record(self.judge)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over model, revision and settings: equal ones give comparable figures."""
        return self.record["fingerprint"]

    def __call__(
        self,
        video: Any,
        question: str,
        answer: str,
        references: Sequence[str] | str | None = None,
        caption: str | None = None,
    ) -> Verdict:
        """Judge one answer.

        Args:
            video: a path, the bytes of a video file, a folder of frames, sampled ``Frames``, or None for a judge that
                reads text only.
            question: text.
            answer: what is judged. A refusal or silence is wrong, and no judge is asked.
            references: right answers, for judges that read them.
            caption: what is known of the video in words, for judges that read that.

        Raises:
            KitError: an argument is of the wrong kind, or the judge's model cannot be asked.
        """
        row = {"video": video, "question": question, "answer": answer, "references": references, "caption": caption}
        return self.batch([row])[0]

    def batch(self, rows: Iterable[Mapping[str, Any]]) -> list[Verdict]:
        """Judge many answers; what one gets does not depend on the others or their order.

        Answers are ordered by video before they are judged, so each video is decoded once and the same rows in another
        order give the same numbers. A local model computes several answers at once, so that a probability can differ in
        its last digits between batches of different answers.

        Args:
            rows: mappings with ``video``, ``question``, ``answer`` and, if there are any, ``references`` and
                ``caption``.

        Returns:
            One verdict a row, in their order. A video that cannot be read or a judge that fails gives one with
            ``error``.

        Raises:
            KitError: naming the row and field that is wrong, or what keeps the judge's model from being asked.
        """
        from tqdm.auto import tqdm

        from eval.runner import FramesCache

        asked = [Asked.from_row(row, number) for number, row in enumerate(rows, 1)]
        order = sorted(range(len(asked)), key=lambda place: asked[place].key())
        size = max(BLOCK, 4 * self.judge.model.config.concurrency) if self.spec.get("endpoint") else BLOCK
        found: dict[int, Verdict] = {}
        frames = FramesCache()
        with tqdm(total=len(asked), desc="judging", unit="answer", disable=len(asked) <= size or None) as bar:
            for start in range(0, len(order), size):
                places = order[start : start + size]
                found.update(zip(places, self._judge([asked[place] for place in places], frames), strict=True))
                bar.update(len(places))
        return [found[place] for place in range(len(asked))]

    def _judge(self, block: list[Asked], cache: Any) -> list[Verdict]:
        from dataset_builder.judges import JudgeItem
        from dataset_builder.media import Frames
        from eval.runner import frames_of
        from eval.verdicts import judge_answers

        answers: list[str | Exception] = []
        items = []
        for each in block:
            answer, frames = each.answer, None
            if self.judge.needs_frames:
                try:
                    if each.video is None:
                        raise KitError("there is no video, and this judge looks at it")
                    video = each.video
                    frames = video if isinstance(video, Frames) else frames_of(video, self.judge.num_frames, cache)
                except KitError as error:
                    answer = error
            answers.append(answer)
            items.append(JudgeItem(each.question, list(each.references), frames, each.answer, each.caption))
        return [Verdict.from_row(row) for row in judge_answers(answers, items, self.judge)]

    # The Hub ---------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        device: str = "auto",
        cache: str | Path | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> VQAEvaluator:
        """Load an evaluator.

        Args:
            pretrained_model_name_or_path: a folder, or a Hub id.
            revision, token, cache_dir, force_download, local_files_only: of the download, as for ``ModelHubMixin``.
            device, cache: as for the class.
            changes: fields of the judge's specification to set otherwise, such as
                ``{"endpoint": {"base_url": "http://localhost:8000/v1"}}``.

        Raises:
            KitError: there is none, it cannot be fetched, or its ``config.json`` is broken or too new.
        """
        download = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
        }
        folder = fetched(str(pretrained_model_name_or_path), list(_LOADED), download)
        read_config(folder)  # checked before the mixin reads it unchecked
        return super().from_pretrained(folder, device=device, cache=cache, changes=changes)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        device: str = "auto",
        cache: str | Path | None = None,
        changes: Mapping[str, Any] | None = None,
        **stored: Any,
    ) -> VQAEvaluator:
        folder = Path(model_id)
        config = read_config(folder)
        spec = resolved(_changed(config["judge"], changes or {}), folder)
        audit = folder / AUDIT if (folder / AUDIT).is_file() else None
        verdicts = folder / VERDICTS if (folder / VERDICTS).is_file() else None
        evaluator = cls(spec, audit=audit, verdicts=verdicts, license=config["license"], device=device, cache=cache)
        evaluator._saved = None if changes else config["record"]
        return evaluator

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> str | None:
        """Write the repo: card, configuration, weights of a local judge, the tasks and the package they need.

        Args:
            save_directory: a new or empty folder, or an evaluator's, of which only what is written is replaced.
            push_to_hub: push it too, as ``repo_id`` (the folder's name by default), ``options`` as for
                :meth:`push_to_hub`.
            repo_id: see ``push_to_hub``.
            model_card_kwargs: ``{"repo_id": …}`` names the repo in the card.

        Returns:
            The commit's address if it was pushed.

        Raises:
            KitError: the folder holds something else, or the evaluator cannot be saved.
        """
        folder = Path(save_directory).absolute()
        refuse_other_content(folder)
        partial = folder.with_name(f".{folder.name}.partial")
        drop(partial)
        try:
            super().save_pretrained(partial, model_card_kwargs=model_card_kwargs)
            replace(partial, folder, optional=(WEIGHTS, AUDIT, AUDIT_PICTURE, AUDIT_ROWS, agreement.FOLDER))
        finally:
            drop(partial)
        if push_to_hub:
            return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **options)
        return None

    def _save_pretrained(self, save_directory: Path) -> None:
        from eval.evaluator.repo import write_repo

        spec = self.saved_spec()  # first what can be wrong with it, and with the audit
        self.bias()
        if self.verdicts is not None:
            rows = agreement.read_verdicts(self.verdicts)
            agreement.write_verdicts(save_directory / VERDICTS, rows)
        if (weights := local_weights(self.spec)) is not None:
            copy_weights(weights, save_directory)
        beside = ((self.audit, AUDIT), (self.picture, AUDIT_PICTURE), (self.audit_rows, AUDIT_ROWS))
        for source, name in beside:
            if source is not None:
                shutil.copyfile(source, save_directory / name)
        write_repo(save_directory)
        write_config(save_directory, spec, self.saved_record(), self.license)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Push the evaluator's repo in one commit.

        Args:
            repo_id: ``NAMESPACE/NAME``; made if it is not there.
            options: ``private``, ``token``, ``branch``, ``commit_message`` … as for ``ModelHubMixin.push_to_hub``.

        Returns:
            The commit's address.

        Raises:
            KitError: it cannot be saved, or the Hub does not take it.
        """
        options["model_card_kwargs"] = {"repo_id": repo_id, **(options.get("model_card_kwargs") or {})}
        options.setdefault("commit_message", "An evaluator of answers to questions about videos")
        options.setdefault(
            "delete_patterns", [f"{WEIGHTS}/*", f"{PACKAGE}/*", AUDIT, AUDIT_PICTURE, AUDIT_ROWS, VERDICTS]
        )
        try:
            return super().push_to_hub(repo_id, **options)
        except KitError:
            raise
        except Exception as error:  # of many kinds: huggingface_hub's, httpx's, an id that is none
            raise KitError(f"{repo_id}: cannot be pushed: {first_line(error)}") from error

    def generate_model_card(self, repo_id: str | None = None) -> ModelCard:
        """The card; ``repo_id`` is what it calls the repo."""
        from huggingface_hub import ModelCard

        from eval.evaluator.card import render_card

        training = read_training(local_weights(self.spec))
        picture = AUDIT_PICTURE if self.picture is not None else None
        known = (self.saved_spec(), self.saved_record(), self.license)
        rows = [] if self.verdicts is None else agreement.read_verdicts(self.verdicts)
        return ModelCard(render_card(*known, training, self.bias(), picture, repo_id, rows))

    def saved_spec(self) -> dict[str, Any]:
        """The judge's specification as it is saved.

        Raises:
            KitError: it holds what looks like a key or a path of this machine.
        """
        weights = local_weights(self.spec)
        return portable(self.spec, self.judge.revision, weights and f"{WEIGHTS}/{weights.name}")

    def saved_record(self) -> dict[str, Any]:
        """The judge's record as it is saved: without what an endpoint happens to have reported so far."""
        record = {**self.record, "reported": []}
        record["fingerprint"] = fingerprint_of(record)
        return {key: value for key, value in record.items() if key != "reported"}

    @property
    def picture(self) -> Path | None:
        """The audit's picture; None without one."""
        place = self.audit and self.audit.with_suffix(".png")
        return place if place is not None and place.is_file() else None

    @property
    def audit_rows(self) -> Path | None:
        """The numbers behind the audit's findings; None without them."""
        place = self.audit and self.audit.with_name(AUDIT_ROWS)
        return place if place is not None and place.is_file() else None

    def bias(self) -> dict[str, Any] | None:
        """The audit's content; None without one.

        Raises:
            KitError: it cannot be read, or is of another judge.
        """
        from eval.evaluator.card import read_audit

        return None if self.audit is None else read_audit(self.audit, self.saved_record())


def _changed(spec: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A specification with some fields set otherwise, also within its endpoint."""
    merged = dict(spec)
    for key, value in changes.items():
        inner = merged.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        merged[key] = {**inner, **value} if both else value
    return merged
