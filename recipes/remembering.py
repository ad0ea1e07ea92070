"""The model in training as a chat model that keeps what it has prepared and what it has said."""

from __future__ import annotations

from dataset_builder.models import LocalChatModel


class RememberingChat(LocalChatModel):
    """Keeps the inputs it has prepared: the alpha search asks one model the same questions again and again."""

    LIMIT = 1 << 30  # bytes
    remembered: dict

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.replies: list = []

    def generate(self, requests, decoding, seed, batch_size=64):
        """As in the base class; the replies are kept, for what a verdict does not say (did an answer end?)."""
        replies = super().generate(requests, decoding, seed, batch_size)
        self.replies += replies
        return replies

    def prepare(self, requests, texts=None):
        """As in the base class; whole batches are kept, with their frames, up to a limit."""
        key = tuple((id(request.frames), request.question, request.system) for request in requests)
        if texts is not None or any(request.frames is None for request in requests):
            return super().prepare(requests, texts)
        if key not in self.remembered:
            batch = super().prepare(requests)
            used = sum(size for *_, size in self.remembered.values())
            size = sum(tensor.nbytes for tensor in batch.values())
            if used + size > self.LIMIT:
                return batch
            # Frames are kept too: as long as they live, nothing else can have their ids.
            self.remembered[key] = (batch, [request.frames for request in requests], size)
        return self.remembered[key][0]
