"""Settings of the models that answer: local checkpoints and OpenAI-compatible endpoints."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit


@dataclass(frozen=True)
class DecodingConfig:
    """How a zoo member answers.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus sampling.
        max_new_tokens: an answer is cut after this many.
        num_frames: frames of the video that the member sees, at most.
        fps: frames a second of the video; null spreads `num_frames` evenly over it.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 16
    num_frames: int = 8
    fps: float | None = None

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError("temperature must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError("top_p must be above 0 and at most 1")
        if self.max_new_tokens < 1 or self.num_frames < 1:
            raise ValueError("max_new_tokens and num_frames must be at least 1")
        if self.fps is not None and self.fps <= 0:
            raise ValueError("fps must be above 0")


@dataclass(frozen=True)
class PriceConfig:
    """What an endpoint costs, in one currency for the whole build.

    Attributes:
        prompt: per million prompt tokens (frames are prompt tokens).
        completion: per million completion tokens.
        frame_tokens: tokens that one frame counts for, for estimates.
    """

    prompt: float = 0.0
    completion: float = 0.0
    frame_tokens: int = 256

    def __post_init__(self):
        if min(self.prompt, self.completion, self.frame_tokens) < 0:
            raise ValueError("prices and frame_tokens must be 0 or more")


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible server (vLLM, Inference Providers, `transformers serve`, a commercial one).

    Attributes:
        base_url: of the server, up to and with `/v1`; null asks Inference Providers.
        provider: which of the Inference Providers.
        api_key_env: name of the environment variable that holds the key. The key itself never stands in a config.
        concurrency: most calls at once.
        requests_per_minute: most calls a minute; null for no limit.
        max_retries: how often a call is repeated after a fault, on the wire or in the reply's content.
        timeout: seconds that one call may take.
        backoff: most seconds before the first repetition (anything from 0 on, by chance); doubled each time. A server's
            `Retry-After` is waited for besides.
        max_backoff: most seconds between two repetitions, unless the server asks for more.
        spend_limit: the build stops before it spends more than this here.
        price: of its tokens.
        frames: `images` sends JPEG image parts, `video` one mp4 as a `video_url` part.
        max_side: frames are shrunk so that the longer side has at most so many pixels; null keeps them.
        structured: whether the server is asked for JSON of a schema: `none`, or `json_schema` as `response_format`.
        send_seed: whether the server takes `seed`.
        logprobs: how many of the likeliest tokens to ask for at each place of a reply, from which a `vqa` judge reads
            how sure it is; 0 asks for none. A server that knows no log-probabilities gives none.
        extra_body: further fields of every request, such as `top_k`; null leaves out a field that the server refuses.
    """

    base_url: str | None = None
    provider: str | None = None
    api_key_env: str | None = None
    concurrency: int = 16
    requests_per_minute: float | None = None
    max_retries: int = 5
    timeout: float = 120.0
    backoff: float = 0.5
    max_backoff: float = 60.0
    spend_limit: float | None = None
    price: PriceConfig = field(default_factory=PriceConfig)
    frames: Literal["images", "video"] = "images"
    max_side: int | None = None
    structured: Literal["none", "json_schema"] = "none"
    send_seed: bool = True
    logprobs: int = 0
    extra_body: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.base_url is not None:
            check_url(self.base_url)
        if self.base_url and self.provider:
            raise ValueError("give base_url or provider, not both")
        if self.api_key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):
            raise ValueError("api_key_env: must be the name of an environment variable, not a key itself")
        if self.concurrency < 1 or self.max_retries < 0 or self.timeout <= 0 or self.backoff < 0:
            raise ValueError("concurrency must be at least 1, timeout above 0, max_retries and backoff 0 or more")
        if self.requests_per_minute is not None and self.requests_per_minute <= 0:
            raise ValueError("requests_per_minute must be above 0")
        if self.max_backoff < 0 or (self.spend_limit is not None and self.spend_limit < 0):
            raise ValueError("max_backoff and spend_limit must be 0 or more")
        if not 0 <= self.logprobs <= 20:
            raise ValueError("logprobs must be from 0 (do not ask) to 20")
        if self.max_side is not None and self.max_side < 1:
            raise ValueError("max_side must be at least 1")
        if own := sorted({"model", "messages", "seed", "stream", "n", "response_format"} & set(self.extra_body)):
            raise ValueError(f"extra_body: may not hold {', '.join(own)}, which the kit sets itself")


def check_url(url: str) -> None:
    """A base_url is an address that can be called, and holds no key.

    Raises:
        ValueError: it does not.
    """
    if not re.match(r"https?://", url):
        raise ValueError(f"base_url: {url!r} must begin with http:// or https://")
    try:
        parts = urlsplit(url)
        fine = bool(parts.hostname) and parts.port != 0 and not re.search(r"\s", url)
    except ValueError:  # half an IPv6 address, or a port that is none
        fine = False
    if not fine:
        raise ValueError(f"base_url: {url!r} is no address")
    if parts.username is not None or parts.password is not None:
        raise ValueError("base_url: may not hold a name or password; name a variable with the key in api_key_env")


@dataclass(frozen=True)
class Member:
    """One model of the zoo.

    Attributes:
        name: how the dataset calls it.
        model: a checkpoint folder or Hub id; with `endpoint`, the model's name at the endpoint.
        endpoint: where it is served; null loads the checkpoint here.
        revision: commit of a Hub model; with `endpoint`, what to record instead of the model that it reports.
        samples: answers to each question.
        decoding: how it answers.
        prompt: template of the user turn; `{question}` stands for the question.
        system: system turn, if any.
    """

    name: str
    model: str
    endpoint: EndpointConfig | None = None
    revision: str | None = None
    samples: int = 1
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    prompt: str = "{question}"
    system: str | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name: {self.name!r} may hold letters, digits, '.', '_' and '-' only")
        if self.samples < 1:
            raise ValueError("samples must be at least 1")
        if "{question}" not in self.prompt:
            raise ValueError("prompt: must hold {question}")
