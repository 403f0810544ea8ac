"""A decoder's operations as a native plan, in the order in which they run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thrifty.formats.linear import DenseLinear
from thrifty.kernels import dispatch
from thrifty.models.config import ModelConfig, RopeConfig

HIDDEN = 0  # the first buffer of a native plan is the hidden state
NONE = -1  # of a buffer: there is none


def plain(linear: Any) -> bool:
    """Whether a linear is fp32 rows as they are."""
    return isinstance(linear, DenseLinear) and not linear.packed and linear.weight.dtype == torch.float32


class PlanBuilder:
    """Adds the operations of `decoder` to the plan `native`.

    `numbers` and `shapes`: of the linears that take adapters, by name. `alive` holds what the plan points to.
    """

    def __init__(self, native: Any, decoder: Any, ropes: list[RopeConfig]) -> None:
        self.native, self.decoder, self.ropes = native, decoder, ropes
        self.alive: list[Any] = [decoder]
        self.config: ModelConfig = decoder.config
        self.activation = 0 if self.config.activation == "silu" else 1
        self.numbers: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, int]] = {}

    def build(self) -> None:
        self._buffers()
        config, native = self.config, self.native
        embedding = self._linear(self.decoder.embedding)
        native.add_embed(embedding, config.embedding_scale, HIDDEN)
        for index, layer in enumerate(self.decoder.layers):
            native.add_await(index)
            self._attention(index, layer)
            if config.layers[index].experts:
                self._mixture(index, layer)
            else:
                self._mlp(index, layer)
        head = embedding if self.decoder.head is None else self._linear(self.decoder.head)
        native.add_logits(HIDDEN, *self._norm(self.decoder.final_norm), head, config.final_softcap or 0.0)

    def _buffers(self) -> None:
        config, experts, add = self.config, self.config.experts, self.native.add_buffer
        assert add(config.hidden_size) == HIDDEN
        self.query, self.key, self.value = add(config.query_width), add(config.kv_width), add(config.kv_width)
        self.attended = add(config.query_width)
        mixed = [layer.experts for layer in config.layers]
        self.branch = add(config.hidden_size) if config.post_norms or any(mixed) else HIDDEN
        self.inner = NONE if all(mixed) else add(config.intermediate_size)
        if experts is None or not any(mixed):
            return
        self.scores = add(experts.count)
        if experts.shared_intermediate_size:
            self.shared_inner, self.shared = add(experts.shared_intermediate_size), add(config.hidden_size)
        self.gate = add(1) if experts.shared_gate else NONE

    def _attention(self, index: int, layer: Any) -> None:
        native, config, module, options = self.native, self.config, layer.attention, self.config.layers[index]
        path, buffers = f"layers.{index}.attention", [self.query, self.key, self.value]
        linears = [self._named(f"{path}.{name}", getattr(module, name)) for name in ("query", "key", "value")]
        native.add_project(index, HIDDEN, *self._norm(layer.attention_norm), linears, buffers, False)
        (query_norm, epsilon), (key_norm, _) = self._norm(module.query_norm), self._norm(module.key_norm)
        if config.qk_norm == "full":
            native.add_norm_rows(index, buffers[:2], [query_norm, key_norm], epsilon)
            query_norm = key_norm = 0
        rope = (self.ropes.index(options.rope), options.rope.dimension)
        native.add_rotate(index, *buffers, query_norm, key_norm, epsilon, *rope)
        softcap = config.attention_softcap or 0.0
        native.add_attend(index, self.query, self.attended, config.query_scale, options.window or 0, softcap)
        output = self._named(f"{path}.output", module.output)
        self._residual(index, self.attended, output, layer.post_attention_norm)

    def _mlp(self, index: int, layer: Any) -> None:
        self._gated(index, layer.mlp, f"layers.{index}.mlp", self._norm(layer.mlp_norm), self.inner)
        down = self._named(f"layers.{index}.mlp.down", layer.mlp.down)
        self._residual(index, self.inner, down, layer.post_mlp_norm)

    def _gated(self, index: int, mlp: Any, path: str, norm: tuple[int, float], out: int) -> None:
        gate, up = self._named(f"{path}.gate", mlp.gate), self._named(f"{path}.up", mlp.up)
        self.native.add_gated(index, HIDDEN, *norm, gate, up, out, self.activation)

    def _mixture(self, index: int, layer: Any) -> None:
        """branch = the experts' weighted sum + the gated shared expert; hidden += branch, or its norm."""
        native, mlp, norm = self.native, layer.mlp, self._norm(layer.mlp_norm)
        routers, buffers = [self._linear(mlp.router)], [self.scores]
        if mlp.shared_gate is not None:
            routers, buffers = [*routers, self._linear(mlp.shared_gate)], [*buffers, self.gate]
        native.add_project(index, HIDDEN, *norm, routers, buffers, False)
        experts = [[self._linear(x) for x in kind] for kind in (mlp.experts.gate, mlp.experts.up, mlp.experts.down)]
        last = mlp.shared is None and layer.post_mlp_norm is None
        choice = (mlp.active, mlp.normalise, self.activation)
        native.add_mixture(index, HIDDEN, *norm, self.scores, *experts, *choice, self.branch, HIDDEN if last else NONE)
        if mlp.shared is not None:
            path = f"layers.{index}.mlp.shared"
            self._gated(index, mlp.shared, path, norm, self.shared_inner)
            down = self._named(f"{path}.down", mlp.shared.down)
            native.add_project(index, self.shared_inner, 0, 0.0, [down], [self.shared], False)
            native.add_rows(index, self.shared, 0, 0.0, self.gate, self.branch)
        if not last:
            native.add_rows(index, self.branch, *self._norm(layer.post_mlp_norm), NONE, HIDDEN)

    def _residual(self, index: int, source: int, linear: int, post_norm: Any) -> None:
        """hidden += W·source, or hidden += norm(W·source)."""
        at_once = post_norm is None
        self.native.add_project(index, source, 0, 0.0, [linear], [HIDDEN if at_once else self.branch], at_once)
        if not at_once:
            self.native.add_rows(index, self.branch, *self._norm(post_norm), NONE, HIDDEN)

    def _named(self, name: str, linear: Any) -> int:
        number = self._linear(linear)
        self.numbers[name], self.shapes[name] = number, (linear.out_features, linear.in_features)
        return number

    def _linear(self, linear: Any) -> int:
        if plain(linear):
            kind, scales, minimums, group = 32, 0, 0, 0
            shape = (linear.out_features, linear.in_features)
            codes = dispatch.check(linear.weight, "weight", torch.float32, shape).data_ptr()
        else:
            kind, codes, scales, minimums, group = dispatch.packed(linear)
        bias = 0
        if linear.bias is not None:
            bias = self._keep(dispatch.check(linear.bias, "bias", torch.float32, (linear.out_features,)))
        self.alive.append(linear)
        sizes = (linear.out_features, linear.in_features, group)
        return int(self.native.add_linear(kind, codes, scales, minimums, bias, *sizes))

    def _norm(self, norm: Any) -> tuple[int, float]:
        """Address of weight + offset, and epsilon; 0 where there is no norm."""
        if norm is None:
            return 0, 0.0
        weight = (norm.weight.detach().float() + norm.offset).contiguous()
        return self._keep(weight), norm.epsilon

    def _keep(self, tensor: Tensor) -> int:
        self.alive.append(tensor)
        return tensor.data_ptr()
