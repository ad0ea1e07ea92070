"""One chat interface over the models that answer, judge and are evaluated."""

from dataset_builder.models.base import ChatModel, ChatReply, ChatRequest, Decoding, chat_messages
from dataset_builder.models.local import LocalChatModel, checkpoint_revision, load_model

__all__ = [
    "ChatModel",
    "ChatReply",
    "ChatRequest",
    "Decoding",
    "LocalChatModel",
    "chat_messages",
    "checkpoint_revision",
    "load_model",
]
