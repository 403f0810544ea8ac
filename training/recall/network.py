"""The recall model under training: the sizes of Thrifty's own decoder, and its loss over a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from thrifty.models.config.model_config import LayerSpec, ModelConfig, RopeConfig
from thrifty.models.huggingface.names import llama_name
from thrifty.reference.attention import Attend
from thrifty.reference.decoder import Decoder
from thrifty.reference.recurrent import Recur
from thrifty.reference.rotary import rotation

ROWS = 256  # query rows scored at a time
IGNORED = -100


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; heads are 64 wide, as native attention takes them."""

    vocabulary: int = 2048
    hidden: int = 192
    intermediate: int = 384
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    context: int = 8192
    theta: float = 1e7

    def config(self) -> ModelConfig:
        """As the engine takes it."""
        rope = RopeConfig(theta=self.theta, dimension=64)
        return ModelConfig(
            family="llama",
            vocabulary_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=64,
            context_length=self.context,
            layers=(LayerSpec(None, rope),) * self.layers,
            norm_epsilon=1e-5,
            query_scale=64**-0.5,
            tied_embeddings=True,
            bos_ids=(1,),
            eos_ids=(2,),
        )

    def published(self) -> dict[str, object]:
        """What config.json says of it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": 64,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": self.theta,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }

    def begin(self, decoder: Decoder) -> None:
        """Changes to random first weights that belong to the shape; none here."""

    def tensor_name(self, parameter: str) -> str:
        """What its file calls a parameter of the decoder."""
        return llama_name(parameter)


@dataclass(frozen=True)
class Batch:
    """tokens, positions, targets (IGNORED where none is wanted), weights: [sequences, length]. answers: the number of
    the answer that a target belongs to, counted over the batch; below 0 where it is not to be judged.
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    answers: Tensor


@dataclass(frozen=True)
class Outcome:
    """loss: to go backward from. answers, right: how many answers there were and were right in every token."""

    loss: Tensor
    answers: int
    right: int


def evaluate(decoder: Decoder, batch: Batch) -> Outcome:
    """The weighted loss of a batch, and how many of its answers the model would have given."""
    count = len(batch.tokens)
    table = rotation(decoder.config.ropes[0], batch.positions.flatten(), 1)
    attend, recur = batched(count, decoder.config), batched_recurrence(count)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = decoder.embed(batch.tokens.flatten())
        for layer in decoder.layers:
            hidden = layer(hidden, table, attend, recur)
        rows = (batch.targets.flatten() != IGNORED).nonzero().flatten()
        logits = decoder.logits(hidden[rows])
    targets, weights = batch.targets.flatten()[rows], batch.weights.flatten()[rows]
    losses = functional.cross_entropy(logits, targets, reduction="none")
    loss = (losses * weights).sum() / weights.sum()
    return Outcome(loss, *_right(logits.argmax(1) == targets, batch.answers.flatten()[rows]))


def _right(hits: Tensor, answers: Tensor) -> tuple[int, int]:
    mask = answers >= 0
    if not mask.any():
        return 0, 0
    numbers, places = answers[mask].unique(return_inverse=True)
    worst = torch.ones(len(numbers)).scatter_reduce(0, places, hits[mask].float(), "amin")
    return len(numbers), int(worst.sum())


def batched(count: int, config: ModelConfig) -> Attend:
    """Causal attention within each of `count` sequences of one length, as matrix products of blocks of rows: backward
    much faster here than torch's fused attention.
    """

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length, group = len(query) // count, config.heads // config.kv_heads
        query, key = (query * config.query_scale).to(value.dtype), key.to(value.dtype)
        query = query.view(count, length, config.kv_heads, group, -1).permute(0, 2, 3, 1, 4)
        key, value = (x.view(count, length, config.kv_heads, -1).transpose(1, 2).flatten(0, 1) for x in (key, value))
        blocks = []
        for start in range(0, length, ROWS):
            stop = min(start + ROWS, length)
            rows = query[:, :, :, start:stop].flatten(2, 3).flatten(0, 1)
            mixed = _block(rows, key[:, :stop], value[:, :stop], start, group)
            blocks.append(mixed.view(count, config.kv_heads, group, stop - start, -1))
        return torch.cat(blocks, 3).permute(0, 3, 1, 2, 4).reshape(count * length, config.heads, -1)

    return attend


def batched_recurrence(count: int) -> Recur:
    """The recurrence of `count` sequences of one length, with one decay a head, as a masked product of all rows
    (arXiv 2405.21060, §6.1): o_i = Σ_{j ≤ i} (Π_{j < l ≤ i} a_l) (q_i · k_j) v_j.
    """

    def recur(layer: int, query: Tensor, key: Tensor, value: Tensor, decay: Tensor) -> Tensor:
        length = len(query) // count
        query, key, value = (
            x.unflatten(0, (count, length)).transpose(1, 2).to(value.dtype) for x in (query, key, value)
        )
        faded = decay.squeeze(-1).unflatten(0, (count, length)).transpose(1, 2).log().cumsum(-1)
        later = torch.full((length, length), float("-inf")).triu(1)
        weights = (faded[..., :, None] - faded[..., None, :] + later).exp()
        scores = (query @ key.transpose(-1, -2)) * weights.to(value.dtype)
        return (scores @ value).transpose(1, 2).flatten(0, 1)

    return recur


def _block(query: Tensor, key: Tensor, value: Tensor, start: int, group: int) -> Tensor:
    rows = query.shape[1] // group
    hidden = torch.full((rows, rows), float("-inf"), dtype=query.dtype).triu(1)
    hidden = functional.pad(hidden, (start, 0)).repeat(group, 1)
    return torch.bmm((torch.bmm(query, key.transpose(1, 2)) + hidden).softmax(-1), value)


def parameters(decoder: Decoder) -> list[nn.Parameter]:
    """What is trained."""
    return [one for one in decoder.parameters() if one.requires_grad]
