"""A model's operations as a native plan, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from thrifty.arrays import Floats
from thrifty.engine.plan.recurrent import PROJECTIONS, RecurrentBuffers, add_recurrence
from thrifty.errors import KernelError
from thrifty.kernels import dispatch
from thrifty.models.config.model_config import ModelConfig, RecurrentSpec, RopeConfig

if TYPE_CHECKING:
    from thrifty.models.model import Model

HIDDEN = 0  # the first buffer of a native plan is the hidden state
NONE = -1  # of a buffer: there is none
LOGITS = -2  # the layer of what runs where logits are wanted


@dataclass(frozen=True)
class AttentionBuffers:
    """The buffers of attention layers of one width, by number."""

    query: int
    key: int
    value: int
    out: int

    @classmethod
    def of(cls, widths: tuple[int, int, int], add: Callable[[int], int]) -> AttentionBuffers:
        """New ones. widths: heads, KV heads and head_dim. add: makes a buffer of a width."""
        heads, kv_heads, head_dim = widths
        queries, keys = heads * head_dim, kv_heads * head_dim
        return cls(add(queries), add(keys), add(keys), add(queries))


def check_layers(config: ModelConfig) -> None:
    """Raise KernelError naming the first layer that the plan cannot do."""
    for index, layer in enumerate(config.layers):
        if layer.mixer == "latent":
            raise KernelError(f"layers.{index} mixes by latent attention, which the plan does not do")


class PlanBuilder:
    """Adds the operations of `model` to the plan `native`, which keeps the arrays that it points to.

    `numbers` and `shapes`: of the linears that take adapters, by name.
    """

    def __init__(self, native: Any, model: Model, ropes: list[RopeConfig]) -> None:
        self.native, self.model, self.ropes = native, model, ropes
        self.config: ModelConfig = model.config
        self.activation = 0 if self.config.activation == "silu" else 1
        self.numbers: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, int]] = {}

    def build(self) -> None:
        """All of it. Raises KernelError naming the linear, or the layer, that no native operation takes."""
        config, native = self.config, self.native
        check_layers(config)
        self._buffers()
        embedding = self._linear("embedding")
        self._embed(embedding)
        for index, layer in enumerate(config.layers):
            native.add_await(index)
            self._mixer(index)
            if layer.experts:
                self._mixture(index)
            else:
                self._mlp(index)
        head = embedding if config.tied_embeddings else self._linear("head")
        softcap = config.final_softcap or 0.0
        source, norm = self._normed(LOGITS, "final_norm", config.logit_scale)
        native.add_logits(source=source, **norm, linear=head, softcap=softcap)

    def _embed(self, embedding: int) -> None:
        """Rows of an embedding that is not the output matrix too are read from their file, not mapped: few are used,
        and each would bring up to 2 MB of the mapping into memory.
        """
        file, config = self.model.file, self.config
        if file is None or config.tied_embeddings:
            self.native.add_embed(embedding, config.embedding_scale, HIDDEN)
        else:
            self.native.add_embed(embedding, config.embedding_scale, HIDDEN, file.descriptor, file.content)

    def _buffers(self) -> None:
        config, experts, add = self.config, self.config.experts, self.native.add_buffer
        assert add(config.hidden_size) == HIDDEN
        own = [config.widths(index) for index, layer in enumerate(config.layers) if layer.recurrent is None]
        self.attention = {widths: AttentionBuffers.of(widths, add) for widths in dict.fromkeys(own)}
        specs = [layer.recurrent for layer in config.layers if layer.recurrent is not None]
        self.recurrent = {spec: RecurrentBuffers.of(spec, add) for spec in dict.fromkeys(specs)}
        mixed = [layer.experts for layer in config.layers]
        apart = config.post_norms or any(mixed) or config.residual_scale != 1.0
        self.branch = add(config.hidden_size) if apart else HIDDEN
        self.normed = add(config.hidden_size) if config.norm == "layer" else HIDDEN
        inner = [config.inner(index) for index, layer in enumerate(config.layers) if not layer.experts]
        self.inner = {width: add(width) for width in dict.fromkeys(inner)}
        if experts is None or not any(mixed):
            return
        self.scores = add(experts.count)
        if experts.shared_intermediate_size:
            self.shared_inner, self.shared = add(experts.shared_intermediate_size), add(config.hidden_size)
        self.gate = add(1) if experts.shared_gate else NONE

    def _mixer(self, index: int) -> None:
        spec = self.config.layers[index].recurrent
        if spec is None:
            self._attention(index)
        else:
            self._recurrent(index, spec)

    def _recurrent(self, index: int, spec: RecurrentSpec) -> None:
        """What the recurrence makes of the normed hidden state is added to it."""
        path, buffers = f"layers.{index}.recurrent", self.recurrent[spec]
        source, norm = self._normed(index, f"layers.{index}.attention_norm")
        linears = {name: self._named(f"{path}.{name}") for name in PROJECTIONS}
        inner_norm, epsilon = self._weights(f"{path}.norm"), self.config.norm_epsilon
        assert inner_norm is not None, "a recurrent layer has a norm of its own"
        add_recurrence(self.native, index, spec, buffers, (source, norm), linears, inner_norm, epsilon)
        self._residual(index, buffers.out, self._named(f"{path}.output"), "post_attention_norm")

    def _attention(self, index: int) -> None:
        native, config, options = self.native, self.config, self.config.layers[index]
        path, own = f"layers.{index}.attention", self.attention[self.config.widths(index)]
        buffers = [own.query, own.key, own.value]
        linears = [self._named(f"{path}.{name}") for name in ("query", "key", "value")]
        source, norm = self._normed(index, f"layers.{index}.attention_norm")
        native.add_project(layer=index, source=source, **norm, linears=linears, outs=buffers)
        query_norm, key_norm = self._weights(f"{path}.query_norm"), self._weights(f"{path}.key_norm")
        epsilon = config.norm_epsilon
        if config.qk_norm == "full":
            native.add_norm_rows(layer=index, buffers=buffers[:2], norms=[query_norm, key_norm], epsilon=epsilon)
            query_norm = key_norm = None
        native.add_rotate(
            layer=index, query=own.query, key=own.key, value=own.value, query_norm=query_norm, key_norm=key_norm,
            epsilon=epsilon, rope=self.ropes.index(options.rope), dimension=options.rope.dimension,
        )  # fmt: skip
        native.add_attend(
            layer=index, query=own.query, out=own.out, scale=config.query_scale, window=options.window or 0,
            softcap=config.attention_softcap or 0.0,
        )  # fmt: skip
        self._residual(index, own.out, self._named(f"{path}.output"), "post_attention_norm")

    def _mlp(self, index: int) -> None:
        path, inner = f"layers.{index}.mlp", self.inner[self.config.inner(index)]
        source, norm = self._normed(index, f"layers.{index}.mlp_norm")
        if self.config.mlp == "gated":
            self._gated(index, path, source, norm, inner)
        else:
            up = self._named(f"{path}.up")
            self.native.add_project(layer=index, source=source, **norm, linears=[up], outs=[inner])
            self.native.add_activate(layer=index, buffer=inner, activation=self.activation)
        self._residual(index, inner, self._named(f"{path}.down"), "post_mlp_norm")

    def _gated(self, index: int, path: str, source: int, norm: dict[str, Any], out: int) -> None:
        gate, up = self._named(f"{path}.gate"), self._named(f"{path}.up")
        self.native.add_gated(layer=index, source=source, **norm, gate=gate, up=up, out=out, activation=self.activation)

    def _mixture(self, index: int) -> None:
        """branch = the experts' weighted sum + the gated shared expert; hidden += branch, or its norm."""
        native, path, experts = self.native, f"layers.{index}.mlp", self.config.experts
        assert experts is not None, "a layer of experts has their configuration"
        source, norm = self._normed(index, f"layers.{index}.mlp_norm")
        routers, buffers = [self._linear(f"{path}.router")], [self.scores]
        if experts.shared_gate:
            routers, buffers = [*routers, self._linear(f"{path}.shared_gate")], [*buffers, self.gate]
        native.add_project(layer=index, source=source, **norm, linears=routers, outs=buffers)
        shared = bool(experts.shared_intermediate_size)
        last = not shared and not self.config.post_norms and self.config.residual_scale == 1.0
        gates, ups, downs = (
            [self._linear(f"{path}.experts.{kind}.{number}") for number in range(experts.count)]
            for kind in ("gate", "up", "down")
        )
        native.add_mixture(
            layer=index, source=source, **norm, scores=self.scores, gates=gates, ups=ups, downs=downs,
            active=experts.active, normalise=experts.normalise_probabilities, activation=self.activation,
            sum=self.branch, out=HIDDEN if last else NONE,
        )  # fmt: skip
        if shared:
            self._gated(index, f"{path}.shared", source, norm, self.shared_inner)
            down = self._named(f"{path}.shared.down")
            native.add_project(layer=index, source=self.shared_inner, linears=[down], outs=[self.shared])
            native.add_rows(layer=index, source=self.shared, gate=self.gate, out=self.branch)
        if not last:
            self._add_branch(index, "post_mlp_norm")

    def _residual(self, index: int, source: int, linear: int, post_norm: str) -> None:
        """hidden += scale·W·source, or hidden += scale·norm(W·source)."""
        apart = self.config.post_norms or self.config.residual_scale != 1.0
        out = self.branch if apart else HIDDEN
        self.native.add_project(layer=index, source=source, linears=[linear], outs=[out], add=not apart)
        if apart:
            self._add_branch(index, post_norm)

    def _add_branch(self, index: int, post_norm: str) -> None:
        """hidden += scale·branch, or scale·norm(branch)."""
        config = self.config
        if not config.post_norms and config.residual_scale == 1.0:
            self.native.add_rows(layer=index, source=self.branch, out=HIDDEN)
        elif not config.post_norms:
            self.native.add_scaled(layer=index, source=self.branch, factor=config.residual_scale, out=HIDDEN)
        else:
            name = f"layers.{index}.{post_norm}"
            source, norm = self._normed(index, name, config.residual_scale, self.branch)
            self.native.add_rows(layer=index, source=source, **({} if norm["norm"] is None else norm), out=HIDDEN)

    def _named(self, name: str) -> int:
        linear = self.model.linears[name]
        self.numbers[name], self.shapes[name] = self._linear(name), (linear.out_features, linear.in_features)
        return self.numbers[name]

    def _linear(self, name: str) -> int:
        try:
            linear = self.model.linears[name]
            return int(self.native.add_linear(dispatch.packed(linear, linear.bias)))
        except KernelError as error:
            raise KernelError(f"{name}: {error}") from error

    def _normed(self, layer: int, name: str, factor: float = 1.0, source: int = HIDDEN) -> tuple[int, dict[str, Any]]:
        """The buffer that holds `source`, normed where that is an operation of its own, and the norm (weight + offset,
        times `factor`) that the reader of it has yet to apply; None where there is none.
        """
        weights, epsilon = self._weights(name), self.config.norm_epsilon
        if weights is None:
            return source, {"norm": None, "epsilon": 0.0}
        weights *= np.float32(factor)
        if self.config.norm == "rms":
            return source, {"norm": weights, "epsilon": epsilon}
        bias = self.model.norms[f"{name}.bias"] * np.float32(factor)
        out = self.normed
        self.native.add_layer_norm(layer=layer, source=source, norm=weights, bias=bias, epsilon=epsilon, out=out)
        return out, {"norm": None, "epsilon": 0.0}

    def _weights(self, name: str) -> Floats | None:
        weights = self.model.norms.get(name)
        return None if weights is None else weights.astype(np.float32) + np.float32(self.config.norm_offset)
