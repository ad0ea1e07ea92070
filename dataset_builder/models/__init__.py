"""One chat interface over the models that answer, judge and are evaluated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataset_builder.models.base import (
    BadReply,
    BudgetReached,
    ChatModel,
    ChatReply,
    ChatRequest,
    Decoding,
    chat_messages,
    served_name,
)
from dataset_builder.models.cache import CallCache
from dataset_builder.models.endpoint import EndpointChatModel
from dataset_builder.models.local import TESTED_FAMILIES, LocalChatModel, load_model
from dataset_builder.models.revision import checkpoint_revision, model_revision

if TYPE_CHECKING:
    from dataset_builder.settings import Member

__all__ = [
    "TESTED_FAMILIES",
    "BadReply",
    "BudgetReached",
    "CallCache",
    "ChatModel",
    "ChatReply",
    "ChatRequest",
    "Decoding",
    "EndpointChatModel",
    "LocalChatModel",
    "chat_messages",
    "checkpoint_revision",
    "load_model",
    "model_revision",
    "open_model",
    "served_name",
]


def open_model(member: Member, cache: CallCache | None = None, device: str = "auto") -> ChatModel:
    """The model behind a zoo member.

    Args:
        member: of the configuration; a judge's settings with the same fields will do.
        cache: of the calls to endpoints.
        device: where a checkpoint runs.

    Raises:
        KitError: the checkpoint cannot be loaded, or the endpoint's key is missing.
    """
    if member.endpoint is not None:
        return EndpointChatModel(member.name, member.model, member.endpoint, cache, revision=member.revision)
    return load_model(member.model, revision=member.revision, device=device, name=member.name)
