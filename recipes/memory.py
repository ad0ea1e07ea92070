"""What GPU memory a run of video DPO would take, before a GPU is rented. A formula, not a measurement.

    python -m recipes.memory recipes/configs/qwen2_5_vl_3b_lora.yaml [--prompt-tokens N] [--answer-tokens N]
    python -m recipes.memory CONFIG.yaml --gpus 4            # one run of recipes/dpo.py with FSDP2, no rounds
    python -m recipes.memory CONFIG.yaml --dtype bfloat16    # likewise with weights in bf16, which rounds refuse
    python -m recipes.memory --table                         # the table of recipes/configs/README.md

It needs the model's configuration only: a checkpoint folder's config.json, or an entry of configs/shapes.yaml. The
parameters are counted on the model itself, built without weights. Everything is in bytes; 1 GB is 10⁹ bytes.

Per GPU, with P parameters, T of them trained, L text layers of hidden size H, attention width Q = heads · head size,
MLP width I, vocabulary V, and S tokens in memory at once:

* weights: 4 P (fp32 masters), 2 P with a bf16 base, and 4 T for adapters, which are fp32 whatever the base is;
* gradients 4 T, AdamW's two moments 8 T; a reference model of its own adds weights (full training, references online);
* S = pairs · (prompt + 2 answers) with a shared prompt, pairs · 2 · (prompt + answer) without;
* one layer keeps for each token (:func:`layer_bytes`): the fp32 inputs of two norms, 8 H; what goes into its linear
  layers; queries, keys, values and the attention's output, 5 c Q; four MLP tensors, 4 c I; c is 2 under bf16, else 4;
  going back through it takes the fp32 gradients of two MLP tensors besides, 8 I;
* with checkpointing L layers keep their input only (S · H each) and one layer at a time is computed again;
* bf16 copies of fp32 weights: autocast casts a weight anew for every use, and the graph keeps the copy. Without
  checkpointing that is 2 bytes for each weight of the text layers, with LoRA too; with checkpointing one layer's, but
  of weights that are trained autocast keeps every copy until the forward pass ends;
* LM head: log-probabilities of answers only, in tiles of 4,096 tokens × 32,768 entries, and one slice of the head's
  weights; when head or embeddings are trained, one more fp32 gradient of them, 4 V H, before it is added;
* a frozen vision tower runs under no_grad: one block's working memory, gone before the text model starts. A trained
  one keeps activations as the text layers do;
* reference log-probabilities computed beforehand stay in CPU memory: 8 bytes a pair, nothing here;
* evaluation between rounds has weights, one batch's keys and values and one layer at work, in fp32 without a graph;
  the optimizer is taken to be gone by then;
* CUDA's own context and libraries: 0.8 GB, an assumption.

These do not all meet: the peak is the largest of the moments that :func:`estimate` adds up.
A run is said to fit a card when the sum and a tenth for the allocator's gaps stay below the card's size.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dataset_builder.errors import KitError, run_cli
from recipes.settings import read_yaml

CONFIGS = Path(__file__).parent / "configs"
GB = 10**9
CARDS = (24, 40, 48, 80)  # GB; sizes that cards are sold in
GAPS = 1.1  # the allocator cannot use every gap between tensors
CONTEXT = 0.8 * GB  # CUDA context, cuBLAS workspace, kernels
ANSWER_TOKENS = 64
TEXT_TOKENS = 64  # of a question with its chat template
TILE_TOKENS, TILE_ENTRIES = 4096, 32768  # TRL's fused LM head
TABLE_FRAMES = (8, 32)
HOST_COPIES = 4  # fp32 states on the CPU while a round ends: base, start, trained, extrapolated


@dataclass(frozen=True)
class Shape:
    """What decides memory in a model.

    Attributes:
        parameters: all, tied weights once.
        vision: of the vision tower and its projector, which are frozen together.
        text_linear: weights of the text layers' linear modules, without the LM head.
        lora_width: sum of inputs and outputs of these modules: an adapter of rank r has r times as many parameters.
        layers, hidden, query, mlp, vocabulary, keys: L, H, Q, I, V, and key heads · head size.
        query_norm: the family normalises queries and keys (Qwen3).
        vision_depth, vision_hidden, vision_mlp: of the vision tower.
        frame_tokens, frame_patches: of one frame in the prompt and in the tower; None when unknown.
    """

    parameters: int
    vision: int
    text_linear: int
    lora_width: int
    layers: int
    hidden: int
    query: int
    keys: int
    mlp: int
    vocabulary: int
    query_norm: bool
    vision_depth: int
    vision_hidden: int
    vision_mlp: int
    frame_tokens: float | None = None
    frame_patches: float | None = None


@dataclass(frozen=True)
class Run:
    """The fields of a recipe's YAML that decide memory; the defaults are the recipe's."""

    model_name_or_path: str = ""
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    num_frames: int = 8
    max_new_tokens: int = 16
    use_peft: bool = False
    lora_r: int = 16
    freeze_vision: bool = True
    share_prompt: bool = True
    precompute_ref_log_probs: bool = True
    bf16: bool = False
    gradient_checkpointing: bool = False
    dtype: str | None = None
    rounds: int = 0

    @property
    def word(self) -> int:
        """Bytes of a loaded weight."""
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def computed(self) -> int:
        """Bytes of a number in a matrix product: c."""
        return 2 if self.bf16 or self.dtype == "bfloat16" else 4

    @property
    def vision_trained(self) -> bool:
        """Adapters never land in the vision tower."""
        return not self.use_peft and not self.freeze_vision

    @property
    def method(self) -> str:
        """The run in a few words."""
        base = "bf16" if self.word == 2 else "fp32"
        words = [f"LoRA r {self.lora_r}, {base} base" if self.use_peft else f"full, {base} weights"]
        words += ["bf16 autocast"] * (self.bf16 and base == "fp32")
        words += ["checkpointing"] * self.gradient_checkpointing
        words += ["vision trained"] * self.vision_trained
        return ", ".join([*words, "shared prompt" if self.share_prompt else "plain layout"])


@dataclass(frozen=True)
class Estimate:
    """Bytes on one GPU.

    Attributes:
        held: what is there through all of training, by name.
        moments: what is there besides at each of a step's heaviest moments, by moment and name.
        evaluation: what evaluation between rounds holds, by name; empty without rounds.
        host: bytes of CPU memory for the fp32 states of a round's end; 0 without rounds.
        prompt_tokens, answer_tokens: of one pair.
    """

    held: dict[str, float]
    moments: dict[str, dict[str, float]]
    evaluation: dict[str, float]
    host: float
    prompt_tokens: int
    answer_tokens: int

    @property
    def working(self) -> float:
        """Bytes of the heaviest moment of a training step, without what is held throughout."""
        return max(sum(parts.values()) for parts in self.moments.values())

    @property
    def total(self) -> float:
        """Bytes at the peak of training or of evaluation, whichever is larger."""
        return max(sum(self.held.values()) + self.working, sum(self.evaluation.values()))

    def fits(self, card: float) -> bool:
        """Whether a card of so many GB has room for it, gaps included."""
        return self.total * GAPS <= card * GB


def read_run(path: str | Path) -> Run:
    """The fields of a YAML that decide memory.

    Raises:
        KitError: when the file cannot be read, names no model or a value is of the wrong type.
    """
    content = read_yaml(str(path))
    values: dict[str, Any] = {}
    for field in fields(Run):
        value = content.get(field.name, field.default)
        kinds = (str, type(None)) if field.name == "dtype" else type(field.default)
        if not isinstance(value, kinds) or (isinstance(value, bool) and not isinstance(field.default, bool)):
            raise KitError(f"{path}: field '{field.name}': {value!r} is not what this field takes; see toy.yaml")
        values[field.name] = value
    if not values["model_name_or_path"]:
        raise KitError(f"{path}: field 'model_name_or_path': which model? give a folder or an entry of shapes.yaml")
    return Run(**values)


def read_shape(name: str) -> Shape:
    """The shape of a checkpoint folder or of an entry of shapes.yaml.

    Raises:
        KitError: for a model that is neither, or whose configuration transformers does not know.
    """
    from transformers import AutoConfig

    known = read_yaml(str(CONFIGS / "shapes.yaml"))
    if name in known:
        entry = known[name]
        shape = measure(build(AutoConfig.for_model(**entry["config"])))
        return replace(shape, frame_tokens=entry["frame_tokens"], frame_patches=entry["frame_patches"])
    if not (Path(name) / "config.json").is_file():
        raise KitError(
            f"{name}: no checkpoint folder, and no entry in recipes/configs/shapes.yaml ({', '.join(known)}); "
            "download its config.json into a folder and give that folder"
        )
    try:
        return measure(build(AutoConfig.from_pretrained(name, trust_remote_code=False)))
    except (OSError, ValueError, KeyError) as error:
        raise KitError(f"{name}/config.json: {str(error).strip().splitlines()[0]}") from error


def build(config):
    """The model of a configuration without memory for its weights (torch's meta device)."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def measure(model) -> Shape:
    """Count a model's parameters and read its shape."""
    from recipes.video.vision import text_linear_names, vision_parameters

    config, head = model.config.get_text_config(), model.get_output_embeddings()
    if (seen := getattr(model.config, "vision_config", None)) is None:
        raise KitError(f"{type(model).__name__}: no vision_config: is it a vision-language model?")
    modules, outside = dict(model.named_modules()), vision_parameters(model)
    text = [modules[name] for name in text_linear_names(model)]
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    vision_hidden = getattr(seen, "embed_dim", None) or seen.hidden_size
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        vision=sum(p.numel() for p in outside.values()),
        text_linear=sum(module.weight.numel() for module in text),
        lora_width=sum(module.in_features + module.out_features for module in text),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        query=config.num_attention_heads * size,
        keys=(config.num_key_value_heads or config.num_attention_heads) * size,
        mlp=config.intermediate_size,
        vocabulary=head.weight.shape[0],
        query_norm=any(name.endswith("self_attn.q_norm") for name in modules),
        vision_depth=getattr(seen, "depth", None) or seen.num_hidden_layers,
        vision_hidden=vision_hidden,
        vision_mlp=getattr(seen, "intermediate_size", None) or vision_hidden * seen.mlp_ratio,
    )


def layer_bytes(hidden: int, query: int, mlp: int, run: Run, trained: bool, query_norm: bool = False) -> float:
    """What one transformer layer keeps for the backward pass, bytes a token.

    Args:
        hidden, query, mlp: H, Q, I.
        run: decides the types.
        trained: whether the layer's own weights are trained, so that a norm keeps its output too.
        query_norm: whether queries and keys are normalised.
    """
    c = run.computed
    casts = 5 if c < run.word else 2  # autocast casts the input of q, k, v, gate and up one by one
    kept = 8 * hidden + casts * c * hidden + 5 * c * query + 4 * c * mlp
    kept += 8 * hidden * trained
    return kept + 16 * query * query_norm


def estimate(
    shape: Shape, run: Run, prompt_tokens: int | None = None, answer_tokens: int = ANSWER_TOKENS, gpus: int = 1
) -> Estimate:
    """Add up the terms that the module's docstring lists.

    Args:
        shape: the model.
        run: the recipe's fields.
        prompt_tokens: of one pair, its video included; None counts the frames of a 640×360 clip.
        answer_tokens: of one answer.
        gpus: that share weights, gradients and optimizer (FSDP2).

    Raises:
        KitError: when the tokens of a frame are unknown and none are given.
    """
    if prompt_tokens is None:
        if shape.frame_tokens is None:
            raise KitError(f"{run.model_name_or_path}: how many tokens is a prompt? give --prompt-tokens N")
        prompt_tokens = round(run.num_frames * shape.frame_tokens) + TEXT_TOKENS
    word = run.word
    pairs = run.per_device_train_batch_size
    tokens = pairs * (prompt_tokens + 2 * answer_tokens if run.share_prompt else 2 * (prompt_tokens + answer_tokens))
    adapters = run.lora_r * shape.lora_width if run.use_peft else 0
    trained = adapters or shape.parameters - (0 if run.vision_trained else shape.vision)
    gradient = 4 if run.use_peft else word
    held = {
        "weights": (word * shape.parameters + 4 * adapters) / gpus,
        "gradients": gradient * trained / gpus,
        "optimizer states": 2 * gradient * trained / gpus,
        "CUDA context": CONTEXT,
    }
    if not run.use_peft and not run.precompute_ref_log_probs:
        held["reference model"] = word * shape.parameters / gpus
    asked = run.per_device_eval_batch_size
    # A layer at work without a graph: two hidden states, three MLP tensors; generation has no autocast.
    evaluation = {
        "weights": float(word * shape.parameters),
        "CUDA context": CONTEXT,
        "keys and values": 2.0 * word * shape.keys * shape.layers * asked * (prompt_tokens + run.max_new_tokens),
        "one layer": float(word * asked * prompt_tokens * (2 * shape.hidden + 3 * shape.mlp)),
    }
    rounds = run.rounds and gpus == 1 and word == 4
    moments = _moments(shape, run, tokens, 2 * pairs * answer_tokens, gpus)
    host = HOST_COPIES * 4.0 * shape.parameters if rounds else 0.0
    return Estimate(held, moments, evaluation if rounds else {}, host, prompt_tokens, answer_tokens)


def _moments(shape: Shape, run: Run, tokens: int, scored: int, gpus: int) -> dict[str, dict[str, float]]:
    """The heaviest moments of a step.

    Args:
        shape: the model.
        run: the recipe's fields.
        tokens: S.
        scored: answer tokens whose log-probabilities are computed.
        gpus: that share the weights.
    """
    word, computed = run.word, run.computed
    layer = tokens * layer_bytes(shape.hidden, shape.query, shape.mlp, run, not run.use_peft, shape.query_norm)
    hidden = word * tokens * shape.hidden
    kept = {"embedded prompt": 2.0 * hidden}
    again = {"one layer again": layer} if run.gradient_checkpointing else {}
    kept |= {"layer inputs": shape.layers * hidden} if again else {"layers": shape.layers * layer}
    patches = run.per_device_train_batch_size * run.num_frames * (shape.frame_patches or 0)
    if run.vision_trained:
        block = patches * layer_bytes(shape.vision_hidden, shape.vision_hidden, shape.vision_mlp, run, True)
        inputs = word * patches * shape.vision_hidden
        kept["vision tower"] = (
            block + shape.vision_depth * inputs if run.gradient_checkpointing else shape.vision_depth * block
        )
    ends = 4 * shape.vocabulary * shape.hidden  # an fp32 gradient as large as the head or the embeddings
    one, all_layers = _copies(shape, run, gpus)
    entries = min(TILE_ENTRIES, shape.vocabulary)
    head = {
        "hidden states": 2.0 * 4 * scored * shape.hidden,
        "one tile": float(computed * (min(scored, TILE_TOKENS) * entries + entries * shape.hidden)),
    }
    forward = {**kept, "copies of weights": all_layers, **head}
    # Where the graph holds the copies they are there on the way back too; autocast's own are gone.
    held = one if run.gradient_checkpointing or gpus > 1 else all_layers
    backward = {**kept, **again, "copies of weights": held, "gradients on the way": 8.0 * tokens * shape.mlp}
    moments = {"the forward pass ends": forward, "going back through a layer": backward}
    if not run.use_peft:
        more = {"copies of weights": 0.0 if again else all_layers, "head's gradient": float(ends)}
        moments["going back through the head"] = {**kept, **head, **more}
    if not run.vision_trained:
        # A block at work: residual, norm and its cast, three projections and the output; the MLP once more than once.
        width = (8 + 5 * computed) * shape.vision_hidden + 3 * computed * shape.vision_mlp
        moments["the vision tower"] = {"one block": float(patches * width)}
    return moments


def _copies(shape: Shape, run: Run, gpus: int) -> tuple[float, float]:
    """Bytes of weights in the type that is computed in: for one layer, and what is there when the forward pass ends."""
    if gpus > 1:  # FSDP gathers a layer and the next; embeddings and head belong to no layer and are gathered whole
        size = run.computed * (2 * shape.text_linear / shape.layers + 2 * shape.vocabulary * shape.hidden)
        return size, size
    cast = run.computed if run.computed != run.word else 0
    one = cast * shape.text_linear / shape.layers
    return one, one if run.use_peft and run.gradient_checkpointing else cast * shape.text_linear


def describe(name: str, run: Run, found: Estimate, gpus: int = 1) -> str:
    """The estimate as lines for a person."""
    where = f"one of {gpus} GPUs" if gpus > 1 else "one GPU"
    lines = [
        f"{name}: {run.model_name_or_path}, {run.method}",
        f"estimate (formula) for {where}: {run.per_device_train_batch_size} pair(s) at a time, "
        f"{found.prompt_tokens:,} prompt and {found.answer_tokens:,} answer tokens",
    ]
    lines += _listed("training, throughout", found.held)
    for moment, parts in found.moments.items():
        lines += _listed(f"and when {moment}" if moment == "the forward pass ends" else f"or {moment}", parts)
    if found.evaluation:
        lines += _listed("evaluation", found.evaluation)
    lines.append(f"{'at the peak':<32}{found.total / GB:>8.2f} GB")
    fitting = [f"{card} GB" for card in CARDS if found.fits(card)]
    lines.append(f"fits a card of {', '.join(fitting)}" if fitting else f"fits no card of up to {CARDS[-1]} GB")
    if found.host:
        lines.append(f"CPU memory at the end of a round: about {found.host / GB:.0f} GB ({HOST_COPIES} fp32 states)")
    return "\n".join(lines)


def _listed(title: str, parts: dict[str, float]) -> list[str]:
    lines = [f"{title:<32}{sum(parts.values()) / GB:>8.2f} GB"]
    return lines + [f"  {key:<30}{value / GB:>8.2f}" for key, value in parts.items() if value]


def table() -> str:
    """The Markdown table of all configs: an estimate a row."""
    head = ["config", "model", "method", "frames", "prompt tokens", "GB", *(f"{c} GB" for c in CARDS), "source"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    known = read_yaml(str(CONFIGS / "shapes.yaml"))
    for path in sorted(CONFIGS.glob("*.yaml")):
        if (name := read_yaml(str(path)).get("model_name_or_path")) not in known:
            continue
        shape = read_shape(name)
        for frames in TABLE_FRAMES:
            run = replace(read_run(path), num_frames=frames)
            found = estimate(shape, run)
            model = run.model_name_or_path.split("/")[1]
            row = [f"[{path.name}]({path.name})", model, run.method, f"{frames}", f"{found.prompt_tokens:,}"]
            row += [f"{found.total / GB:.1f}", *("yes" if found.fits(c) else "no" for c in CARDS)]
            lines.append("| " + " | ".join([*row, "estimate (formula)"]) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Parse and print."""
    parser = argparse.ArgumentParser(prog="python -m recipes.memory", description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="?", help="a recipe's YAML")
    parser.add_argument("--table", action="store_true", help="all shipped configs, as Markdown")
    parser.add_argument("--prompt-tokens", type=int, help="of one pair, the video included")
    parser.add_argument("--answer-tokens", type=int, default=ANSWER_TOKENS, help="of one answer (default %(default)s)")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that share the model (FSDP2)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="type of the loaded weights")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if arguments.table:
        print(table())
        return 0
    if arguments.config is None:
        raise KitError("which config? give a YAML, or --table for all of them")
    given = arguments.prompt_tokens
    if min(1 if given is None else given, arguments.answer_tokens, arguments.gpus) < 1:
        raise KitError("--prompt-tokens, --answer-tokens and --gpus must be at least 1")
    run = read_run(arguments.config)
    run = replace(run, dtype=arguments.dtype or run.dtype)
    shape = read_shape(run.model_name_or_path)
    found = estimate(shape, run, given, arguments.answer_tokens, arguments.gpus)
    print(describe(Path(arguments.config).name, run, found, arguments.gpus))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    raise SystemExit(run_cli(main))
