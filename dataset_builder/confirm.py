"""Confirmation of pairs: a pair judge sees both answers, in both orders, and must prefer the chosen one twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dataset_builder.errors import KitError
from dataset_builder.judges.prompts import prompt_hash
from dataset_builder.plan import identity
from dataset_builder.settings import ConfirmConfig
from dataset_builder.stages import ShardStore, fingerprint
from dataset_builder.stages.clips import FrameCache
from dataset_builder.stages.job import CALL_CACHE
from dataset_builder.stages.local import judge_item, model_room
from dataset_builder.table import QuestionTable

STAGE = "confirming"
_AT_ONCE = 16  # pairs whose frames are in memory together, for a local judge


class Confirmer:
    """Asks a pair judge about pairs, chunk by chunk; finished chunks are stored like every other stage's blocks.

    Args:
        config: the pair judge.
        table: the questions; pairs come in its order.
        work: the work folder.
        device: where a local judge runs.
    """

    def __init__(self, config: ConfirmConfig, table: QuestionTable, work: Path, device: str = "auto"):
        self.config, self.device = config, device
        self.store, self.frames, self.cache = ShardStore(work), FrameCache(), None
        self._judge, self._chunk = None, 0
        self._questions: Iterator[dict] = iter(table)
        self._current: dict = {"question_id": None}
        settings = {k: v for k, v in asdict(config).items() if k not in ("model", "revision", "endpoint", "name")}
        self.identity = {"settings": settings, "prompt": prompt_hash(), **identity(config)}
        self._cache_path = work / CALL_CACHE

    def confirm_many(self, pairs: list[dict]) -> list[SimpleNamespace]:
        """Verdicts on a chunk of pairs.

        Args:
            pairs: ``{question_id, chosen, rejected, …}`` in the table's order.

        Returns:
            One ``confirmed: bool, flipped: bool, error: str | None`` a pair. A video that cannot be read is an error.
        """
        asked = [(self._question(pair["question_id"]), pair) for pair in pairs]
        content = [[q["question"], q["answers"], q["sha256"], p["chosen"], p["rejected"]] for q, p in asked]
        key, block = fingerprint({"judge": self.identity, "pairs": content}), self._chunk
        self._chunk += 1
        rows = self.store.read(STAGE, self.config.name, block, key)
        if rows is None:
            rows = self._ask(asked)
            self.store.write(STAGE, self.config.name, block, key, rows)
        return [SimpleNamespace(**row) for row in rows]

    def _question(self, question_id: str) -> dict:
        while self._current["question_id"] != question_id:
            try:
                self._current = next(self._questions)
            except StopIteration:
                raise KitError(f"pair of question {question_id}: the question is not in the table") from None
        return self._current

    def _ask(self, asked: list[tuple[dict, dict]]) -> list[dict]:
        from dataset_builder.judges import make_pair_judge

        if self._judge is None:
            if self.config.endpoint is not None:
                from dataset_builder.models import CallCache

                self.cache = CallCache(self._cache_path)
            self._judge = make_pair_judge(self.config, self.cache, self.device)
        if self._judge.is_endpoint:
            return asyncio.run(self._ask_endpoint(asked))
        rows = []
        for start in range(0, len(asked), _AT_ONCE):
            items = list(map(self._items, asked[start : start + _AT_ONCE]))
            with model_room(1):
                found = iter(self._judge.compare_many([pair for pair in items if not isinstance(pair, KitError)]))
            rows += [_row(error=str(pair)) if isinstance(pair, KitError) else _row(next(found)) for pair in items]
        return rows

    async def _ask_endpoint(self, asked: list[tuple[dict, dict]]) -> list[dict]:
        gate = asyncio.Semaphore(self.config.endpoint.concurrency)

        async def one(entry: tuple[dict, dict]) -> dict:
            async with gate:
                items = await asyncio.to_thread(self._items, entry)
                if isinstance(items, KitError):
                    return _row(error=str(items))
                return _row(await self._judge.aconfirm(*items))

        try:
            results = await asyncio.gather(*map(one, asked), return_exceptions=True)
        finally:
            await self._judge.model.aclose()
        for result in results:  # only now: calls that went well are in the cache
            if isinstance(result, BaseException):
                raise result
        return results

    def _items(self, entry: tuple[dict, dict]) -> Any:
        question, pair = entry
        clip = self.frames.get(question, self.config.num_frames)
        if isinstance(clip, KitError):
            return clip
        return tuple(judge_item(question, {"response": pair[side]}, clip) for side in ("chosen", "rejected"))


def _row(result: Any = None, error: str | None = None) -> dict:
    if result is None:
        return {"confirmed": False, "flipped": False, "error": error}
    return {"confirmed": result.confirmed, "flipped": result.flipped, "error": result.error}
