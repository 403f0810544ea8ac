"""The small masked-diffusion model under training: its sizes, its masks, and the losses of both stages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from thrifty.models.config.model_config import LayerSpec, ModelConfig, RopeConfig
from thrifty.models.huggingface.names import llama_name
from thrifty.reference.attention import Attend
from thrifty.reference.decoder import Decoder
from thrifty.reference.rotary import rotation

IGNORED = -100
LEAST_RATE = 1e-3  # of masked tokens


@dataclass(frozen=True)
class DiffusionShape:
    """Sizes of the model, and of its twin. masks: whether it is the one that fills in masks."""

    masks: bool
    vocabulary: int = 64
    hidden: int = 96
    intermediate: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 24
    context: int = 256
    theta: float = 1e4
    mask_id: int = 3

    def config(self) -> ModelConfig:
        """As the decoder under training takes it; what sees what is said by `Batch.visible`."""
        rope = RopeConfig(theta=self.theta, dimension=self.head_dim)
        return ModelConfig(
            family="llama",
            vocabulary_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            context_length=self.context,
            layers=(LayerSpec(None, rope),) * self.layers,
            norm_epsilon=1e-5,
            query_scale=self.head_dim**-0.5,
            tied_embeddings=True,
            bos_ids=(1,),
            eos_ids=(2,),
        )

    def published(self) -> dict[str, object]:
        """What config.json says of it: the layout of Dream, without biases; of Llama for the twin."""
        kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        if self.masks:
            kind = {"architectures": ["DreamModel"], "model_type": "Dream"}
        own: dict[str, object] = {"mask_token_id": self.mask_id, "qkv_bias": False} if self.masks else {}
        return {
            **kind,
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": self.theta,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
            **own,
        }

    def tensor_name(self, parameter: str) -> str:
        """What its file calls a parameter of the decoder."""
        return llama_name(parameter)


@dataclass(frozen=True)
class Batch:
    """tokens, targets (IGNORED where none is wanted) and weights of the loss: [sequences, length]; a row predicts the
    token behind it. visible: bool [sequences, length, length], which rows a row sees.
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    visible: Tensor


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of its answer, the end token included."""

    prompt: Sequence[int]
    answer: Sequence[int]


def causal_batch(examples: Sequence[Example]) -> Batch:
    """Every token of the answers is predicted from those before it."""
    length = max(len(one.prompt) + len(one.answer) for one in examples)
    tokens = torch.zeros(len(examples), length, dtype=torch.long)
    targets, weights = torch.full_like(tokens, IGNORED), torch.ones(tokens.shape)
    for row, one in enumerate(examples):
        text = torch.tensor([*one.prompt, *one.answer])
        tokens[row, : len(text)] = text
        targets[row, len(one.prompt) - 1 : len(text) - 1] = text[len(one.prompt) :]
    visible = torch.ones(length, length, dtype=torch.bool).tril().expand(len(examples), -1, -1)
    return Batch(tokens, targets, weights, visible)


@dataclass(frozen=True)
class Canvas:
    """How an example is shown to the model: its canvas is as long as `length` says (end tokens fill it up, or the
    answer is cut), tokens up to `known` are clean and the rows before that one are in the cache already. rate: the
    probability of a mask.
    """

    length: int
    known: int
    rate: float


def draw_canvas(answer: int, room: int, chance: random.Random) -> Canvas:
    """A canvas for an answer of so many tokens; at most `room` long. Two in five are cut short, two in five go on
    behind a block that is finished: so sampling block by block is known from training.
    """
    length = chance.randint(2, answer) if chance.random() < 0.4 else min(room, answer + chance.randint(0, 8))
    known = chance.randint(0, length - 2) if chance.random() < 0.4 else 0
    return Canvas(length, known, (1 - LEAST_RATE) * chance.random() + LEAST_RATE)


def draw_masks(count: int, rate: float, chance: random.Random) -> list[bool]:
    """Which of `count` tokens are masked: each with probability `rate`, one at least."""
    masked = [chance.random() < rate for _ in range(count)]
    if not any(masked):
        masked[chance.randrange(count)] = True
    return masked


def diffusion_batch(
    examples: Sequence[Example], shape: DiffusionShape, chance: random.Random, complementary: bool = True
) -> Batch:
    """Two rows an example. complementary: the second masks what the first leaves (LaViDa, §3.2), so that every token
    of the answer is predicted; else it draws masks of its own.

    The weight of a masked token is 1 / rate, of the example's mean over its canvas (LLaDA, eq. 3).
    """
    room = 24
    drawn = [draw_canvas(len(one.answer), room, chance) for one in examples]
    length = max(len(one.prompt) + canvas.length for one, canvas in zip(examples, drawn, strict=True))
    tokens = torch.zeros(2 * len(examples), length, dtype=torch.long)
    targets, weights = torch.full_like(tokens, IGNORED), torch.zeros(tokens.shape)
    visible = torch.zeros(2 * len(examples), length, length, dtype=torch.bool)
    for index, (one, canvas) in enumerate(zip(examples, drawn, strict=True)):
        free = canvas.length - canvas.known - 1
        first = draw_masks(free, canvas.rate, chance)
        if complementary:
            second, other = [not masked for masked in first], max(LEAST_RATE, 1 - canvas.rate)
        else:
            other = (1 - LEAST_RATE) * chance.random() + LEAST_RATE
            second = draw_masks(free, other, chance)
        for row, masked, rate in ((2 * index, first, canvas.rate), (2 * index + 1, second, other)):
            _show(tokens[row], targets[row], weights[row], one, canvas, masked, rate, shape.mask_id)
            visible[row] = sight(
                length, len(one.prompt), len(one.prompt) + canvas.known, len(one.prompt) + canvas.length
            )
    return Batch(tokens, targets, weights, visible)


def _show(
    tokens: Tensor,
    targets: Tensor,
    weights: Tensor,
    example: Example,
    canvas: Canvas,
    masked: Sequence[bool],
    rate: float,
    mask_id: int,
) -> None:
    """Fill in one row. The first unknown token is predicted by the last row that sees none of the canvas."""
    end, start = example.answer[-1], len(example.prompt)
    answer = [*example.answer, *[end] * canvas.length][: canvas.length]
    text = torch.tensor([*example.prompt, *answer])
    hidden = torch.zeros(len(text), dtype=torch.bool)
    hidden[start + canvas.known + 1 :] = torch.tensor(masked, dtype=torch.bool)
    tokens[: len(text)] = text.masked_fill(hidden, mask_id)
    places = hidden.nonzero().flatten()
    targets[places - 1], weights[places - 1] = text[places], 1 / (rate * max(1, len(masked)))
    first = start + canvas.known
    targets[first - 1], weights[first - 1] = text[first], 1 / max(1, len(masked))


def sight(length: int, prompt: int, known: int, end: int) -> Tensor:
    """bool [length, length]: rows of the prompt see the prompt, both ways, and never the answer, so that its keys can
    be kept; rows of a finished block see it and the prompt; the others see all up to `end`.
    """
    visible = torch.zeros(length, length, dtype=torch.bool)
    visible[:, :end] = True
    visible[:prompt, prompt:] = False
    visible[prompt:known, known:] = False
    return visible


def loss_of(decoder: Decoder, batch: Batch) -> Tensor:
    """The weighted cross-entropy, in nats: a mean over the weights of causal rows, over the rows of a canvas else."""
    count, length = batch.tokens.shape
    table = rotation(decoder.config.ropes[0], torch.arange(length).repeat(count), 1)
    attend = seeing(decoder.config, batch.visible)
    hidden = decoder.embed(batch.tokens.flatten())
    for layer in decoder.layers:
        hidden = layer(hidden, table, attend, None)
    rows = (batch.targets.flatten() != IGNORED).nonzero().flatten()
    losses = functional.cross_entropy(
        decoder.logits(hidden[rows]).float(), batch.targets.flatten()[rows], reduction="none"
    )
    weights = batch.weights.flatten()[rows]
    return (losses * weights).sum() / (weights.sum() if bool((weights == 1).all()) else 2 * count)


def seeing(config: ModelConfig, visible: Tensor) -> Attend:
    """Attention of sequences of one length, each with its own mask, bool [sequences, rows, rows]."""
    count = len(visible)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in (query, key, value))
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible[:, None], scale=config.query_scale, enable_gqa=True
        )
        return mixed.transpose(1, 2).flatten(0, 1)

    return attend
