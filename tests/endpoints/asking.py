"""Requests, checks and models at an endpoint, as several test files use them."""

from __future__ import annotations

import asyncio
import json

import numpy as np

from dataset_builder.media import Frames
from dataset_builder.models import BadReply, CallCache, ChatRequest, Decoding, EndpointChatModel
from dataset_builder.settings import EndpointConfig
from tests.endpoints.stub import CRITERIA

GREEDY = Decoding(temperature=0.0, max_new_tokens=32)
KEY = "sk-very-secret-0123456789"


def clip(seed: int = 0, frames: int = 4, side: int = 16) -> Frames:
    pixels = np.random.default_rng(seed).integers(0, 255, (frames, side, side, 3), dtype=np.uint8)
    times = [i / 2 for i in range(frames)]
    return Frames(
        array=pixels, timestamps=times, fps=2.0, indices=list(range(frames)), total=frames, duration=frames / 2
    )


def question(number: int) -> ChatRequest:
    return ChatRequest(question=f"What happens in scene {number:04d}?", frames=None)


def judging(number: int) -> ChatRequest:
    return ChatRequest(question=f"Score {', '.join(CRITERIA)} from 1 to 5. Answer {number:04d}", frames=None)


def check_verdict(text: str) -> None:
    """As a judge would: four numbers from 1 to 5."""
    try:
        values = [json.loads(text)[name] for name in CRITERIA]
    except (ValueError, TypeError, KeyError) as error:
        raise BadReply(f"no verdict: {error}") from None
    if not all(type(value) in (int, float) and 1 <= value <= 5 for value in values):
        raise BadReply("a score is not a number from 1 to 5")


async def no_wait(seconds: float) -> None:
    await asyncio.sleep(0)


def model_at(url: str, cache: CallCache | None = None, sleep=no_wait, revision=None, **settings) -> EndpointChatModel:
    return EndpointChatModel("a", "m", EndpointConfig(base_url=url, **settings), cache, revision, sleep=sleep)


def ask_all(model: EndpointChatModel, requests: list, check=None) -> list:
    return model.generate(requests, GREEDY, seed=5, check=check)
