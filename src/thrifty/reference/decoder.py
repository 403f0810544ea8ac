"""One decoder for all Llama-shaped families: the differences are data in `ModelConfig`.

Tokens are a flat batch without a batch dimension: rows of one sequence, or of many. Which rows see which is
the business of the injected `attend`, and of the injected `recur` in recurrent layers. Plain torch throughout, so it
trains.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from thrifty.errors import ConfigError
from thrifty.models.config.model_config import ModelConfig, RopeConfig
from thrifty.reference.attention import Attend
from thrifty.reference.experts import GatedMLP, MixtureMLP, PlainMLP
from thrifty.reference.linear import Linear
from thrifty.reference.norm import LayerNorm, RMSNorm
from thrifty.reference.recurrent import GatedLinearAttention, Recur, from_zero
from thrifty.reference.rotary import Rotation, rotate, rotation
from thrifty.reference.slot import Slot


class Attention(nn.Module):
    """Projections, norms and rotation around the injected attention. x: [tokens, hidden]."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        heads, kv_heads, head_dim = config.widths(index)
        self.index, self.head_dim, self.qk_norm = index, head_dim, config.qk_norm
        hidden, queries, keys = config.hidden_size, heads * head_dim, kv_heads * head_dim
        self.query: nn.Module = Slot(queries, hidden, config.attention_bias)
        self.key: nn.Module = Slot(keys, hidden, config.attention_bias)
        self.value: nn.Module = Slot(keys, hidden, config.attention_bias)
        self.output: nn.Module = Slot(hidden, queries, config.output_bias)
        self.query_norm = self.key_norm = None
        if config.qk_norm != "none":
            whole = config.qk_norm == "full"
            self.query_norm = _head_norm(config, queries if whole else head_dim)
            self.key_norm = _head_norm(config, keys if whole else head_dim)

    def forward(self, x: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        query = rotate(self._heads(self.query(x), self.query_norm), *rotation)
        key = rotate(self._heads(self.key(x), self.key_norm), *rotation)
        value = self._heads(self.value(x), None)
        return self.output(attend(self.index, query, key, value).flatten(1))

    def _heads(self, x: Tensor, norm: RMSNorm | None) -> Tensor:
        """[tokens, heads · head_dim] -> [tokens, heads, head_dim], normalised by head or before the split."""
        if norm is not None and self.qk_norm == "full":
            return norm(x).unflatten(-1, (-1, self.head_dim))
        x = x.unflatten(-1, (-1, self.head_dim))
        return x if norm is None else norm(x)


class Layer(nn.Module):
    """A mixer (attention, or what the layer has instead) and an MLP, each in a residual branch with a norm before it,
    after it, or both.
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.scale = config.residual_scale
        self.attention_norm = _norm(config) if config.pre_norms else None
        self.attention: Attention | None = None
        self.recurrent: GatedLinearAttention | None = None
        spec = config.layers[index].recurrent
        if spec is None:
            self.attention = Attention(config, index)
        else:
            self.recurrent = GatedLinearAttention(config, index, spec)
        self.post_attention_norm = _norm(config) if config.post_norms else None
        self.mlp_norm = _norm(config) if config.pre_norms else None
        self.mlp = _mlp(config, index)
        self.post_mlp_norm = _norm(config) if config.post_norms else None

    def forward(self, hidden: Tensor, rotation: Rotation, attend: Attend, recur: Recur = from_zero) -> Tensor:
        branch = self._mixed(_normed(self.attention_norm, hidden), rotation, attend, recur)
        hidden = self._added(hidden, _normed(self.post_attention_norm, branch))
        branch = self.mlp(_normed(self.mlp_norm, hidden))
        return self._added(hidden, _normed(self.post_mlp_norm, branch))

    def _mixed(self, x: Tensor, rotation: Rotation, attend: Attend, recur: Recur) -> Tensor:
        mixed: Tensor
        if self.attention is not None:
            mixed = self.attention(x, rotation, attend)
            return mixed
        assert self.recurrent is not None, "a layer has one mixer"
        mixed = self.recurrent(x, recur)
        return mixed

    def _added(self, hidden: Tensor, branch: Tensor) -> Tensor:
        return hidden + (branch if self.scale == 1.0 else self.scale * branch)


class Decoder(nn.Module):
    """The whole model between token ids and logits. Built without memory; `loading.build` assigns its linears
    and norms. Raises ConfigError naming a layer whose mixer it does not have.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        for index, layer in enumerate(config.layers):
            if layer.mixer == "latent":
                raise ConfigError(f"layers.{index}.mixer is 'latent', which the decoder does not have.")
        self.config = config
        self.embedding: nn.Module = Slot(config.vocabulary_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(len(config.layers)))
        self.final_norm = _norm(config)
        self.head: nn.Module | None = None
        if not config.tied_embeddings:
            self.head = Slot(config.vocabulary_size, config.hidden_size)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attend: Attend,
        sequence_length: int | Tensor | None = None,
        recur: Recur = from_zero,
    ) -> Tensor:
        """Logits [tokens, vocabulary] fp32 of `token_ids` [tokens] at `positions` [tokens].

        `sequence_length` (see `rope.rotation`) matters to dynamic and longrope scaling only. recur: by default the rows
        are one whole sequence.
        """
        rotations: dict[RopeConfig, Rotation] = {}
        hidden = self.embed(token_ids)
        for layer, config in zip(self.layers, self.config.layers, strict=True):
            if config.rope not in rotations:
                rotations[config.rope] = rotation(config.rope, positions, sequence_length)
            hidden = layer(hidden, rotations[config.rope], attend, recur)
        return self.logits(hidden)

    def embed(self, token_ids: Tensor) -> Tensor:
        """The first hidden state [tokens, hidden] fp32 of `token_ids` [tokens]."""
        hidden: Tensor = self.embedding.rows(token_ids)  # type: ignore[operator]
        return hidden if self.config.embedding_scale == 1.0 else hidden * self.config.embedding_scale

    def layer(
        self,
        index: int,
        hidden: Tensor,
        positions: Tensor,
        attend: Attend,
        sequence_length: int | Tensor | None = None,
        recur: Recur = from_zero,
    ) -> Tensor:
        """The hidden state [tokens, hidden] after layer `index`, for passes that go layer by layer."""
        table = rotation(self.config.layers[index].rope, positions, sequence_length)
        return self.layers[index](hidden, table, attend, recur)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [tokens, vocabulary] fp32 of the last hidden state [tokens, hidden]."""
        head = self.embedding if self.head is None else self.head
        logits = head(self.final_norm(hidden)).float()
        if self.config.logit_scale != 1.0:
            logits = logits * self.config.logit_scale
        cap = self.config.final_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def linears(self) -> Iterator[tuple[str, Linear]]:
        """Name and module of every loaded linear, the embedding included, in the model's order."""
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                yield name, module

    def replace(self, name: str, linear: Linear) -> None:
        """Put `linear` in the place called `name`, such as "layers.0.attention.query"; nothing is copied."""
        path, _, leaf = name.rpartition(".")
        setattr(self.get_submodule(path), leaf, linear)


def _norm(config: ModelConfig) -> nn.Module:
    kind = RMSNorm if config.norm == "rms" else LayerNorm
    return kind(config.hidden_size, config.norm_epsilon, config.norm_offset)


def _head_norm(config: ModelConfig, width: int) -> RMSNorm:
    return RMSNorm(width, config.norm_epsilon, config.norm_offset)


def _normed(norm: nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


def _mlp(config: ModelConfig, index: int) -> nn.Module:
    if config.layers[index].experts and config.experts is not None:
        return MixtureMLP(config, config.experts)
    return (GatedMLP if config.mlp == "gated" else PlainMLP)(config, config.inner(index))
