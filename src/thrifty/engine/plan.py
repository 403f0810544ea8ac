"""The native plan: a decoder compiled into an ordered list of native operations, replayed once a step.

The plan holds the addresses of the decoder's own tensors and of its own buffers, nothing else: caches travel with each
call as native views. A row's result does not depend on the other rows of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thrifty.errors import KernelError, ThriftyError
from thrifty.kernels import dispatch
from thrifty.models.config import ModelConfig, RopeConfig
from thrifty.models.rope import depends_on_length, rotation

HIDDEN = 0  # the first buffer of a native plan is the hidden state


class PlanUnsupported(ThriftyError):
    """This model cannot run as a native plan; the message names why. The reference runner takes it."""


def compile_plan(decoder: Any, max_rows: int) -> NativePlan:
    """A plan of `decoder` (models/decoder.py) for steps of up to `max_rows` rows.

    Raises PlanUnsupported naming what the native operations do not do, KernelError for damaged tensors.
    """
    _check(decoder)
    return NativePlan(decoder, max_rows)


def _check(decoder: Any) -> None:
    config: ModelConfig = decoder.config
    if dispatch.native() is None:
        raise PlanUnsupported("the native kernels are not available")
    if config.head_dim % 64 or config.head_dim > 1024:
        raise PlanUnsupported(f"head_dim is {config.head_dim}; native attention takes multiples of 64 up to 1024")
    if config.qk_norm == "full":
        raise PlanUnsupported("qk_norm is 'full'; native plans normalise queries and keys by head only")
    if any(layer.experts for layer in config.layers):
        raise PlanUnsupported("the model has mixture-of-experts layers")
    if any(depends_on_length(layer.rope) for layer in config.layers):
        raise PlanUnsupported("the rotary frequencies depend on the sequence's length (dynamic or longrope scaling)")
    for name, linear in decoder.linears():
        try:
            dispatch.packed(linear)
        except KernelError as error:
            raise PlanUnsupported(f"{name}: {error}") from error


class NativePlan:
    """One step of a decoder in native code. Calls are not thread-safe among themselves.

    It keeps the decoder's tensors alive. Replacing one of the decoder's linears needs a new plan.
    """

    def __init__(self, decoder: Any, max_rows: int) -> None:
        config: ModelConfig = decoder.config
        self.config = config
        self.max_rows = max_rows
        self.ropes: list[RopeConfig] = list(dict.fromkeys(layer.rope for layer in config.layers))
        self._native = dispatch.require().Plan(
            max_rows, len(config.layers), config.heads, config.kv_heads, config.head_dim
        )
        self._weights_alive: list[Any] = [decoder]
        self._logits = torch.empty(0, config.vocabulary_size)
        self._best = torch.empty(0, dtype=torch.int32)
        self._rows_of_logits = 0
        _Builder(self._native, decoder, self.ropes, self._weights_alive).build()

    @property
    def nbytes(self) -> int:
        """Bytes of the plan's workspace: buffers, scratch of the workers, logits of the largest call so far."""
        return int(self._native.nbytes) + self._logits.nbytes + self._best.nbytes

    @property
    def argmax(self) -> Tensor:
        """int32 [r]: the most probable token of each row of the last call that made logits; valid until the next."""
        return self._best[: self._rows_of_logits]

    def step(
        self,
        token_ids: Tensor,
        positions: Tensor,
        views: Sequence[Any],
        counts: Sequence[int],
        logit_rows: Tensor,
        *,
        skip: Sequence[int] = (),
        tap: tuple[int, Tensor] | None = None,
        accumulate: Sequence[Any] = (),
    ) -> Tensor:
        """All layers over rows of several sequences; appends their keys and values to the views.

        token_ids, positions: int32 [n], the rows of sequence 0, then of sequence 1, …; counts: rows of each;
        logit_rows: int32 [r], the rows to score. Returns fp32 [r, vocabulary], valid until the next call. `skip`:
        layers that pass the hidden state through. `tap` (l, fp32 [n, hidden]): filled with the state after layer l.
        `accumulate`: nothing, or one cache.sums.Accumulator (or None) a view, to which attention adds probabilities.
        Raises KernelError before anything is appended.
        """
        token_ids = dispatch.check(token_ids, "token_ids", torch.int32, (len(positions),), copy=True)
        last = len(self.config.layers)
        return self._run(token_ids, None, positions, views, counts, 0, last, None, logit_rows, skip, tap, accumulate)

    def embed(self, token_ids: Tensor) -> Tensor:
        """int32 [n] → the first hidden state, a new fp32 [n, hidden]."""
        token_ids = dispatch.check(token_ids, "token_ids", torch.int32, (len(token_ids),), copy=True)
        hidden = torch.empty(len(token_ids), self.config.hidden_size)
        self._run(token_ids, hidden, torch.empty(0), (), (), 0, 0)
        return hidden

    def layers(
        self,
        hidden: Tensor,
        positions: Tensor,
        views: Sequence[Any],
        counts: Sequence[int],
        first: int,
        last: int,
        queries_out: Tensor | None = None,
        accumulate: Sequence[Any] = (),
    ) -> Tensor:
        """Layers first..last−1 over hidden fp32 [n, hidden], in place; appends keys and values of these layers.

        queries_out: fp32 [n, heads, head_dim], filled with the rotated queries; for one layer at a time.
        accumulate: as for `step`.
        """
        self._run(None, hidden, positions, views, counts, first, last, queries_out, accumulate=accumulate)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Final hidden rows fp32 [r, hidden] → fp32 [r, vocabulary], valid until the next call."""
        rows = torch.arange(len(hidden), dtype=torch.int32)
        return self._run(None, hidden, torch.empty(0), (), (), 0, 0, logit_rows=rows)

    def _run(
        self,
        tokens: Tensor | None,
        hidden: Tensor | None,
        positions: Tensor,
        views: Sequence[Any],
        counts: Sequence[int],
        first: int,
        last: int,
        queries_out: Tensor | None = None,
        logit_rows: Tensor | None = None,
        skip: Sequence[int] = (),
        tap: tuple[int, Tensor] | None = None,
        accumulate: Sequence[Any] = (),
    ) -> Tensor:
        rows = len(tokens) if tokens is not None else len(hidden)  # type: ignore[arg-type]
        config, float32 = self.config, torch.float32
        wide = (rows, config.hidden_size)
        if hidden is not None:
            dispatch.check(hidden, "hidden", float32, wide)
        if last > first:
            dispatch.check(positions, "positions", positions.dtype, (rows,))
        if queries_out is not None:
            dispatch.check(queries_out, "queries_out", float32, (rows, config.heads, config.head_dim))
        if tap is not None:
            dispatch.check(tap[1], "tap", float32, wide)
        tables = [torch.cat(rotation(rope, positions)) for rope in self.ropes] if last > first else []
        wanted, logits, best = self._logit_buffers(logit_rows)
        try:
            self._native.run(
                rows, _address(tokens), _address(hidden), list(views), list(counts),
                [table.data_ptr() for table in tables], first, last, list(skip), _address(queries_out),
                -1 if tap is None else tap[0], _address(None if tap is None else tap[1]),
                _address(wanted), len(wanted), _address(logits), _address(best),
                [([], 0, 0) if one is None else (one.layers, one.stride, one.row) for one in accumulate],
            )  # fmt: skip
        except ValueError as error:
            raise KernelError(str(error)) from error
        return logits

    def _logit_buffers(self, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if rows is None:
            rows = torch.empty(0, dtype=torch.int32)
        count = len(rows)
        rows = dispatch.check(rows, "logit_rows", torch.int32, (count,), copy=True)
        if count > len(self._logits):
            self._logits = torch.empty(count, self.config.vocabulary_size)
            self._best = torch.empty(count, dtype=torch.int32)
        if count:
            self._rows_of_logits = count
        return rows, self._logits[:count], self._best[:count]


class _Builder:
    """Adds a decoder's operations to a native plan, in the order in which they run."""

    def __init__(self, native: Any, decoder: Any, ropes: list[RopeConfig], alive: list[Any]) -> None:
        self.native, self.decoder, self.ropes, self.alive = native, decoder, ropes, alive
        self.config: ModelConfig = decoder.config

    def build(self) -> None:
        config, native = self.config, self.native
        assert native.add_buffer(config.hidden_size) == HIDDEN
        self.query = native.add_buffer(config.query_width)
        self.key = native.add_buffer(config.kv_width)
        self.value = native.add_buffer(config.kv_width)
        self.attended = native.add_buffer(config.query_width)
        self.inner = native.add_buffer(config.intermediate_size)
        self.branch = native.add_buffer(config.hidden_size) if config.post_norms else HIDDEN
        embedding = self.linear(self.decoder.embedding)
        native.add_embed(embedding, config.embedding_scale, HIDDEN)
        for index, layer in enumerate(self.decoder.layers):
            self.attention(index, layer)
            self.mlp(index, layer)
        head = embedding if self.decoder.head is None else self.linear(self.decoder.head)
        native.add_logits(HIDDEN, *self.norm(self.decoder.final_norm), head, config.final_softcap or 0.0)

    def attention(self, index: int, layer: Any) -> None:
        native, config, module, options = self.native, self.config, layer.attention, self.config.layers[index]
        linears = [self.linear(linear) for linear in (module.query, module.key, module.value)]
        buffers = [self.query, self.key, self.value]
        native.add_project(index, HIDDEN, *self.norm(layer.attention_norm), linears, buffers, False)
        norms = [self.norm(norm) for norm in (module.query_norm, module.key_norm)]
        rope = (self.ropes.index(options.rope), options.rope.dimension)
        native.add_rotate(index, *buffers, norms[0][0], norms[1][0], norms[0][1], *rope)
        softcap = config.attention_softcap or 0.0
        native.add_attend(index, self.query, self.attended, config.query_scale, options.window or 0, softcap)
        self.residual(index, self.attended, module.output, layer.post_attention_norm)

    def mlp(self, index: int, layer: Any) -> None:
        gate, up = self.linear(layer.mlp.gate), self.linear(layer.mlp.up)
        activation = 0 if self.config.activation == "silu" else 1
        self.native.add_gated(index, HIDDEN, *self.norm(layer.mlp_norm), gate, up, self.inner, activation)
        self.residual(index, self.inner, layer.mlp.down, layer.post_mlp_norm)

    def residual(self, index: int, source: int, linear: Any, post_norm: Any) -> None:
        """hidden += W·source, or hidden += norm(W·source)."""
        plain = post_norm is None
        weights = [self.linear(linear)]
        self.native.add_project(index, source, 0, 0.0, weights, [HIDDEN if plain else self.branch], plain)
        if not plain:
            self.native.add_norm_add(index, self.branch, *self.norm(post_norm), HIDDEN)

    def linear(self, linear: Any) -> int:
        kind, codes, scales, minimums, group = dispatch.packed(linear)
        bias = 0
        if linear.bias is not None:
            bias = self.keep(dispatch.check(linear.bias, "bias", torch.float32, (linear.out_features,)))
        self.alive.append(linear)
        sizes = (linear.out_features, linear.in_features, group)
        return int(self.native.add_linear(kind, codes, scales, minimums, bias, *sizes))

    def norm(self, norm: Any) -> tuple[int, float]:
        """Address of weight + offset, and epsilon; 0 where there is no norm."""
        if norm is None:
            return 0, 0.0
        weight = (norm.weight.detach().float() + norm.offset).contiguous()
        return self.keep(weight), norm.epsilon

    def keep(self, tensor: Tensor) -> int:
        self.alive.append(tensor)
        return tensor.data_ptr()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
