"""The metadata of a GGUF file as a `ModelConfig`. Every size is checked against the shapes of the tensors."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from thrifty.errors import ConfigError
from thrifty.models.config.model_config import (
    LIMITS,
    ExpertConfig,
    LayerSpec,
    ModelConfig,
    RopeConfig,
)
from thrifty.models.gguf.architectures import architecture
from thrifty.models.gguf.file import GGUF
from thrifty.models.gguf.known_fields import check_fields
from thrifty.models.gguf.rope import read_rope
from thrifty.models.tokens.settings import TokenizerSettings

_SOFTMAX_GATING = 1


def read_config(file: GGUF, tokenizer: TokenizerSettings) -> ModelConfig:
    """The config of a GGUF file. Raises ConfigError or CheckpointError naming the field."""
    return _Reader(file).config(tokenizer)


class _Reader:
    def __init__(self, file: GGUF) -> None:
        self.file, self.metadata = file, file.metadata
        self.kind = architecture(file)
        self.name = file.architecture
        self.layers = self.metadata.integer(self.key("block_count"), minimum=1, maximum=LIMITS["layers"])
        check_fields(file, self.kind)

    def key(self, field: str) -> str:
        return f"{self.name}.{field}"

    def config(self, tokenizer: TokenizerSettings) -> ModelConfig:
        hidden = self.size("embedding_length", "hidden_size")
        heads = self.uniform("attention.head_count", LIMITS["heads"])
        kv_heads = self.uniform("attention.head_count_kv", LIMITS["kv_heads"], default=heads)
        head_dim = self.head_dim(hidden, heads)
        experts = self.experts()
        return ModelConfig(
            family="mixtral" if self.name == "llama" and experts else self.name,
            vocabulary_size=self.vocabulary_size(),
            hidden_size=hidden,
            intermediate_size=self.intermediate_size(experts),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            context_length=self.size("context_length", "context_length"),
            layers=self.mixed(self.layer_configs(head_dim, experts is not None)),
            norm_epsilon=self.metadata.number(self.key(self.epsilon), above=0),
            query_scale=self.query_scale(hidden, heads, head_dim),
            qk_norm=self.kind.qk_norm,
            attention_bias="blk.0.attn_q.bias" in self.file.tensors,
            output_bias="blk.0.attn_output.bias" in self.file.tensors,
            mlp_bias="blk.0.ffn_down.bias" in self.file.tensors,
            activation=self.kind.activation,
            embedding_scale=math.sqrt(hidden) if self.kind.gemma else self.scale("embedding_scale"),
            norm=self.kind.norm,
            pre_norms=self.kind.pre_norms,
            post_norms=self.kind.post_norms,
            mlp=self.kind.mlp,
            residual_scale=self.scale("residual_scale"),
            logit_scale=1.0 / self.scale("logit_scale"),
            attention_softcap=self.softcap("attn_logit_softcapping", self.kind.softcaps[0]),
            final_softcap=self.softcap("final_logit_softcapping", self.kind.softcaps[1]),
            tied_embeddings="output.weight" not in self.file.tensors,
            experts=experts,
            bos_ids=() if tokenizer.bos_id is None else (tokenizer.bos_id,),
            eos_ids=tokenizer.eos_ids,
            pad_id=tokenizer.pad_id,
        )

    @property
    def epsilon(self) -> str:
        return "attention.layer_norm_rms_epsilon" if self.kind.norm == "rms" else "attention.layer_norm_epsilon"

    def scale(self, field: str) -> float:
        """A factor of Granite's; 0, and a file that has none, mean 1."""
        return self.metadata.number(self.key(field), 0.0, above=-1e-9) or 1.0 if self.kind.scales else 1.0

    def size(self, field: str, limit: str) -> int:
        return self.metadata.integer(self.key(field), minimum=1, maximum=LIMITS[limit])

    def uniform(self, field: str, maximum: int, default: int | None = None) -> int:
        """An integer, or one value a layer as long as all are equal."""
        value = self.metadata.get(self.key(field))
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and len(value):
            if (value != value[0]).any():
                raise ConfigError(f"{self.file.path}: '{self.key(field)}' differs between layers; not supported")
            if not 1 <= int(value[0]) <= maximum:
                raise ConfigError(f"{self.file.path}: '{self.key(field)}' is {value[0]}; 1 to {maximum} is allowed")
            return int(value[0])
        return self.metadata.integer(self.key(field), default, minimum=1, maximum=maximum)

    def head_dim(self, hidden: int, heads: int) -> int:
        if self.key("attention.key_length") not in self.metadata and hidden % heads:
            raise ConfigError(
                f"{self.file.path}: '{self.key('embedding_length')}' {hidden} is not a multiple of "
                f"'{self.key('attention.head_count')}' {heads}, and '{self.key('attention.key_length')}' is missing"
            )
        default = hidden // heads or None
        keys = self.metadata.integer(self.key("attention.key_length"), default, minimum=1, maximum=LIMITS["head_dim"])
        values_ = self.metadata.integer(self.key("attention.value_length"), keys)
        if values_ != keys:
            raise ConfigError(f"{self.file.path}: keys of {keys} and values of {values_} channels; they must be equal")
        return keys

    def vocabulary_size(self) -> int:
        rows = self.file.tensor("token_embd.weight").shape[0]
        stated = self.metadata.integer(self.key("vocab_size"), rows)
        if stated != rows:
            raise ConfigError(
                f"{self.file.path}: '{self.key('vocab_size')}' is {stated}, "
                f"but tensor 'token_embd.weight' has {rows} rows"
            )
        return rows

    def intermediate_size(self, experts: ExpertConfig | None) -> int:
        default = None if experts is None else experts.intermediate_size
        return self.uniform("feed_forward_length", LIMITS["intermediate_size"], default)

    def query_scale(self, hidden: int, heads: int, head_dim: int) -> float:
        width = hidden // heads if self.layers == self.kind.wide_layers else head_dim
        return self.metadata.number(self.key("attention.scale"), 0.0, above=-1e-9) or 1 / math.sqrt(width)

    def softcap(self, field: str, default: float) -> float | None:
        value = self.metadata.number(self.key(field), default, above=-1e-9)
        return value or None

    def experts(self) -> ExpertConfig | None:
        count = self.metadata.integer(self.key("expert_count"), 0, maximum=LIMITS["experts.count"])
        if count == 0:
            if self.name.endswith("moe"):
                raise ConfigError(f"{self.file.path}: '{self.key('expert_count')}' is 0 or missing")
            return None
        self._check_gating()
        block = f"blk.{self.dense_layers()}"
        gate = self.file.tensor(f"{block}.ffn_gate_exps.weight").shape
        if len(gate) != 3 or gate[0] != count:
            raise ConfigError(
                f"{self.file.path}: tensor '{block}.ffn_gate_exps.weight' has shape {list(gate)}; "
                f"'{self.key('expert_count')}' is {count}"
            )
        shared = self.file.tensors.get(f"{block}.ffn_gate_shexp.weight")
        return ExpertConfig(
            count=count,
            active=self.metadata.integer(self.key("expert_used_count"), minimum=1, maximum=count),
            intermediate_size=gate[1],
            normalise_probabilities=self.metadata.flag(self.key("expert_weights_norm"), self.kind.normalise),
            shared_intermediate_size=shared.shape[0] if shared is not None else 0,
            shared_gate=f"{block}.ffn_gate_inp_shexp.weight" in self.file.tensors,
        )

    def dense_layers(self) -> int:
        """How many of the first layers have no experts, in a file that has some."""
        if not self.kind.dense_layers:
            return 0
        return self.metadata.integer(self.key("leading_dense_block_count"), 0, maximum=self.layers - 1)

    def _check_gating(self) -> None:
        gating = self.metadata.integer(self.key("expert_gating_func"), _SOFTMAX_GATING)
        scale = self.metadata.number(self.key("expert_weights_scale"), 1.0)
        if gating not in (0, _SOFTMAX_GATING):
            raise ConfigError(
                f"{self.file.path}: '{self.key('expert_gating_func')}' is {gating}; only 1 (softmax) works"
            )
        if scale not in (0.0, 1.0):
            raise ConfigError(f"{self.file.path}: '{self.key('expert_weights_scale')}' is {scale}; only 1 is supported")

    def layer_configs(self, head_dim: int, experts: bool) -> tuple[LayerSpec, ...]:
        last = f"blk.{self.layers - 1}.{'attn_norm' if self.kind.pre_norms else 'attn_output'}.weight"
        if last not in self.file.tensors:
            raise ConfigError(
                f"{self.file.path}: '{self.key('block_count')}' is {self.layers}, but tensor '{last}' is missing"
            )
        self._refuse_variants()
        rope, window, step = self.rope(head_dim), self.window(), self.kind.without_rope
        if window is None or self.kind.period == 1:
            turned, still = LayerSpec(window, rope, experts), LayerSpec(window, RopeConfig(rope.theta, 0), experts)
            return tuple(still if step and (index + 1) % step == 0 else turned for index in range(self.layers))
        local = LayerSpec(window, self.local_rope(rope), experts)
        whole = LayerSpec(None, rope, experts)
        return tuple(local if is_local else whole for is_local in self.local_layers())

    def mixed(self, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
        """The layers, the first dense ones without experts."""
        dense = self.dense_layers()
        return tuple(replace(layer, experts=layer.experts and index >= dense) for index, layer in enumerate(layers))

    def local_rope(self, rope: RopeConfig) -> RopeConfig:
        """Of the layers with a window."""
        if self.kind.local_rope == "same":
            return rope
        theta = rope.theta if self.kind.local_rope == "unscaled" else 10_000.0
        return RopeConfig(self.metadata.number(self.key("rope.freq_base_swa"), theta, above=1), rope.dimension)

    def _refuse_variants(self) -> None:
        """Raise ConfigError for what some files of an architecture have and the decoder has not."""
        if self.name != "stablelm":
            return
        if "blk.0.ffn_norm.weight" not in self.file.tensors:
            raise ConfigError(
                f"{self.file.path}: no tensor 'blk.0.ffn_norm.weight': attention and MLP side by side "
                f"('{self.key('use_parallel_residual')}') are not supported; use another model"
            )
        if "blk.0.attn_q_norm.weight" in self.file.tensors:
            raise ConfigError(
                f"{self.file.path}: tensor 'blk.0.attn_q_norm.weight': a layer norm of each head of query and key is "
                "not supported; use another model"
            )

    def window(self) -> int | None:
        """Tokens of the layers that have one; None where it is off, or as long as the context."""
        window = self.metadata.integer(self.key("attention.sliding_window"), 0, maximum=LIMITS["window"])
        return window if 0 < window < self.size("context_length", "context_length") else None

    def local_layers(self) -> list[bool]:
        key = self.key("attention.sliding_window_pattern")
        if isinstance(self.metadata.get(key), np.ndarray):
            return [bool(value) for value in self.metadata.numbers(key, self.layers)]
        period = self.metadata.integer(key, self.kind.period, minimum=1, maximum=LIMITS["layers"])
        return [bool((index + 1) % period) for index in range(self.layers)]

    def rope(self, head_dim: int) -> RopeConfig:
        dimension = self.metadata.integer(self.key("rope.dimension_count"), head_dim, minimum=2, maximum=head_dim)
        if self.kind.permuted and dimension != head_dim:
            raise ConfigError(
                f"{self.file.path}: '{self.key('rope.dimension_count')}' is {dimension}; "
                f"the architecture '{self.name}' is supported with all {head_dim} channels only"
            )
        theta = self.metadata.number(self.key("rope.freq_base"), 10_000.0, above=1)
        return read_rope(self.file, theta, dimension, self.size("context_length", "context_length"))
