"""Floating-point work of a DPO step with LoRA on Qwen2.5-VL, vision frozen: the floor for a layout.

Matrix products only, 2·m·n·k each; norms, rotary embedding and softmax are left out (under 2 % at 7B). With W the text
model's weights in linear layers and A the adapters' weights, a token costs

    forward             2·(W + A)
    reference           2·W                  the adapter is off; nothing when log-probabilities are stored
    recomputation       2·(W + A)            with gradient checkpointing
    backward            2·W + 4·A            frozen weights pass the gradient on, adapters also get one

Without checkpointing nothing below the first layer's adapters wants a gradient, so that layer's q, k and v pass none
on.

Attention costs 4·heads·head_dim per pair of query and key it looks at, forward, and 2.5 times that backward (flash
attention makes five products there, one of them the scores again). A causal sequence of T tokens has T·(T + 1)/2 such
pairs. In the stock layout a pair of answers is two sequences of P + R tokens; with a shared prompt it is one of
P + 2R, whose answers look at the prompt and at their own branch. The LM head scores the answers' positions: forward, in
the backward pass, and for the reference.

Vision is frozen: a pass over a clip needs its forward alone. Stock makes four passes a pair (chosen and rejected,
policy and reference), vision once one, stored features none. With checkpointing stock makes the vision tower's input
want a gradient too: the policy's two passes are computed again and back-propagated, three times the work, so that it
does the work of eight passes a pair.
"""

from __future__ import annotations

from dataclasses import dataclass

STOCK_PASSES = {False: 4, True: 8}  # of the vision tower for a pair; the key: with checkpointing


@dataclass(frozen=True)
class TextShape:
    """Sizes of the text model and of the adapters on its seven linear layers."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    rank: int

    @classmethod
    def of(cls, config, rank: int) -> TextShape:
        """From a model's configuration."""
        text = config.get_text_config()
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        sizes = (text.num_hidden_layers, text.hidden_size, text.intermediate_size, text.num_attention_heads)
        return cls(*sizes, text.num_key_value_heads, head_dim, text.vocab_size, rank)

    @property
    def _layers(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a decoder layer's q, k, v, o, gate, up and down."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, query), (self.hidden, key), (self.hidden, key), (query, self.hidden)]
        wide = (self.hidden, self.intermediate)
        return [*attention, wide, wide, wide[::-1]]

    @property
    def weights(self) -> int:
        """W: weights in linear layers, the LM head left out."""
        return self.layers * sum(a * b for a, b in self._layers)

    @property
    def adapter(self) -> int:
        """A: weights of the adapters."""
        return self.layers * self.rank * sum(a + b for a, b in self._layers)

    @property
    def first_inputs(self) -> int:
        """Weights that pass no gradient on where the embeddings want none: q, k and v of layer one, and their A."""
        return sum(a * b + self.rank * a for a, b in self._layers[:3])


@dataclass(frozen=True)
class Work:
    """What a step does.

    Attributes:
        pairs: B.
        prompt: P, tokens of a prompt with its video.
        answer: R, tokens of an answer.
        shared: chosen and rejected share their prompt.
        reference: computed in the step.
        vision_passes: passes over the clip of a pair; :data:`STOCK_PASSES` for stock.
        checkpointing: decoder layers are computed again in the backward pass.
        causal: count the pairs of query and key that attention needs. Otherwise whole rectangles, as PyTorch's own
            counter does and as kernels compute under a mask.
        scored: positions that the LM head scores; those of the answers by default.
    """

    pairs: int
    prompt: int
    answer: int
    shared: bool
    reference: bool
    vision_passes: int
    checkpointing: bool = True
    causal: bool = True
    scored: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens that go through the text model in one forward."""
        per_pair = self.prompt + 2 * self.answer if self.shared else 2 * (self.prompt + self.answer)
        return self.pairs * per_pair

    @property
    def looks(self) -> int:
        """Pairs of query and key in one layer of one forward."""
        prompt, answer = self.prompt, self.answer
        if self.shared:
            own = 2 * answer
            if self.causal:
                return self.pairs * (_triangle(prompt) + own * prompt + 2 * _triangle(answer))
            return self.pairs * (prompt**2 + own * (prompt + own))
        length = prompt + answer
        return 2 * self.pairs * (_triangle(length) if self.causal else length**2)


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


def step_flops(text: TextShape, work: Work, clip_flops: float = 0.0) -> float:
    """Floating-point operations of one step.

    Args:
        text: sizes of the model.
        work: what the step does.
        clip_flops: one pass of the vision tower over one clip; see :func:`vision_flops`.
    """
    tokens, attention = work.tokens, 4 * text.heads * text.head_dim * text.layers * work.looks
    forwards = 1 + work.checkpointing  # of the policy
    linear = 2 * tokens * (forwards * (text.weights + text.adapter) + work.reference * text.weights)
    linear += tokens * (2 * text.weights + 4 * text.adapter)
    if not work.checkpointing:
        linear -= 2 * tokens * text.first_inputs
    scored = 2 * work.pairs * work.answer if work.scored is None else work.scored
    head = 2 * scored * text.hidden * text.vocabulary * (2 + work.reference)
    vision = work.pairs * work.vision_passes * clip_flops
    return linear + attention * (forwards + work.reference + 2.5) + head + vision


def vision_flops(config, frames: int, height: int, width: int) -> float:
    """Floating-point operations of one pass of Qwen2.5-VL's vision tower over a clip.

    Args:
        config: of the vision tower.
        frames: of the clip; two make one layer of patches.
        height, width: pixels, multiples of patch size times merge size.
    """
    rows, columns = height // config.patch_size, width // config.patch_size
    layers = frames // config.temporal_patch_size
    patches, hidden = layers * rows * columns, config.hidden_size
    unit = config.spatial_merge_size**2
    side = config.window_size // config.patch_size  # patches along a window's edge
    windows = sum(
        (min(side, rows - top) * min(side, columns - left)) ** 2
        for top in range(0, rows, side)
        for left in range(0, columns, side)
    )
    full = len([i for i in config.fullatt_block_indexes if i < config.depth])
    looks = layers * ((config.depth - full) * windows + full * (rows * columns) ** 2)
    weights = config.depth * (4 * hidden**2 + 3 * hidden * config.intermediate_size)
    weights += config.in_channels * config.temporal_patch_size * config.patch_size**2 * hidden
    merger = (unit * hidden) ** 2 + unit * hidden * config.out_hidden_size
    return 2.0 * patches * weights + 2.0 * patches // unit * merger + 4.0 * hidden * looks
