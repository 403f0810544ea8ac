"""The native plan: a decoder compiled into an ordered list of native operations, replayed once a step.

The plan holds the addresses of the decoder's own tensors and of its own buffers, nothing else: caches travel with each
call as native views. A row's result does not depend on the other rows of a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

import torch
from torch import Tensor

from thrifty.engine.plan_build import PlanBuilder, plain
from thrifty.engine.plan_options import StepOptions, adapter_entries, sight
from thrifty.engine.rotary_tables import RotaryTables
from thrifty.errors import KernelError, ThriftyError
from thrifty.kernels import dispatch
from thrifty.models.config import ModelConfig, RopeConfig

PATIENCE = 60.0  # seconds that a layer waits for what has to arrive


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
    if not dispatch.takes_head_dim(config.head_dim):
        raise PlanUnsupported(
            f"head_dim is {config.head_dim}; native attention takes even ones from 16 to 256 and multiples of 64 up to "
            "1024"
        )
    for name, linear in decoder.linears():
        if plain(linear):
            continue
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
        self._logits = torch.empty(0, config.vocabulary_size)
        self._best = torch.empty(0, dtype=torch.int32)
        self._rows_of_logits = 0
        self._rotary = RotaryTables(self.ropes, config.context_length)
        self._built = PlanBuilder(self._native, decoder, self.ropes)
        self._built.build()

    @property
    def nbytes(self) -> int:
        """Bytes of the plan's workspace: buffers, scratch of the workers, logits since `keep_logits`."""
        return int(self._native.nbytes) + self._logits.nbytes + self._best.nbytes + self._rotary.nbytes

    @property
    def argmax(self) -> Tensor:
        """int32 [r]: the most probable token of each row of the last call that made logits, `decode` left out.

        Valid until the next.
        """
        return self._best[: self._rows_of_logits]

    @property
    def by_length(self) -> bool:
        """Whether steps need the lengths of their sequences."""
        return self._rotary.by_length

    @contextmanager
    def profile(self) -> Iterator[dict[str, float]]:
        """Times what runs inside: seconds by kind of operation, waiting at its barrier included, filled at the end."""
        seconds: dict[str, float] = {}
        self._native.profile(True)
        try:
            yield seconds
        finally:
            self._native.profile(False)
            seconds.update(self._native.seconds())

    def step(
        self,
        token_ids: Tensor,
        positions: Tensor,
        views: Sequence[Any],
        counts: Sequence[int],
        logit_rows: Tensor,
        **options: Unpack[StepOptions],
    ) -> Tensor:
        """All layers over rows of several sequences; appends their keys and values to the views.

        token_ids, positions: int32 [n], the rows of sequence 0, then of sequence 1, …; counts: rows of each;
        logit_rows: int32 [r], the rows to score. Returns fp32 [r, vocabulary], valid until the next call. Options: see
        StepOptions. Raises KernelError, and then nothing is appended.
        """
        token_ids = dispatch.check(token_ids, "token_ids", torch.int32, (len(positions),), copy=True)
        return self._run(
            token_ids, None, positions, views, counts, 0, len(self.config.layers), None, logit_rows, options
        )

    def decode(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        views: Sequence[Any],
        counts: Sequence[int],
        accumulate: Sequence[Any] = (),
    ) -> tuple[Tensor, list[int]]:
        """`step` that scores every row, from plain lists: logits fp32 [n, vocabulary], valid until the next call, and
        the most probable token of each row. Raises KernelError where a rope depends on the sequence's length.
        """
        if self._rotary.by_length:
            raise KernelError("the rotary frequencies depend on the sequence's length: use step, which takes lengths")
        logits = self._logits_of(len(tokens))
        turns, alive = self._rotary.addresses(positions)
        sums = [_sums(one) for one in accumulate]
        try:
            best = self._native.decode(
                list(tokens), list(views), list(counts), turns, sums, len(self.config.layers), logits.data_ptr()
            )
        except (ValueError, RuntimeError) as error:
            raise KernelError(str(error)) from error
        del alive
        return logits, best

    def forward(
        self,
        hidden: Tensor,
        positions: Tensor,
        views: Sequence[Any],
        counts: Sequence[int],
        logit_rows: Tensor,
        **options: Unpack[StepOptions],
    ) -> Tensor:
        """As `step`, from the rows' first hidden states fp32 [n, hidden] instead of tokens; they are overwritten."""
        return self._run(None, hidden, positions, views, counts, 0, len(self.config.layers), None, logit_rows, options)

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
        **options: Unpack[StepOptions],
    ) -> Tensor:
        """Layers first..last−1 over hidden fp32 [n, hidden], in place; appends keys and values of these layers.

        queries_out: fp32 [n, heads, head_dim], filled with the rotated queries; for one layer at a time.
        Options: see StepOptions.
        """
        self._run(None, hidden, positions, views, counts, first, last, queries_out, None, options)
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
        options: StepOptions | None = None,
    ) -> Tensor:
        options = {} if options is None else options
        rows = len(tokens) if tokens is not None else len(hidden)  # type: ignore[arg-type]
        config, float32 = self.config, torch.float32
        wide = (rows, config.hidden_size)
        if hidden is not None:
            dispatch.check(hidden, "hidden", float32, wide)
        if last > first:
            dispatch.check(positions, "positions", positions.dtype, (rows,))
        if queries_out is not None:
            dispatch.check(queries_out, "queries_out", float32, (rows, config.heads, config.head_dim))
        tap = options.get("tap")
        if tap is not None:
            dispatch.check(tap[1], "tap", float32, wide)
        tables = self._rotation(positions, counts, options.get("lengths")) if last > first else []
        tree, ahead = sight(options, rows)
        adapters = adapter_entries(options.get("adapters", ()), self._built.numbers, self._built.shapes)
        wanted, logits, best = self._logit_buffers(logit_rows)
        try:
            self._native.run(
                rows, _address(tokens), _address(hidden), list(views), list(counts),
                [table.data_ptr() for table in tables], first, last, list(options.get("skip", ())),
                _address(queries_out), -1 if tap is None else tap[0], _address(None if tap is None else tap[1]),
                _address(wanted), len(wanted), _address(logits), _address(best),
                [_sums(one) for one in options.get("accumulate", ())],
                _address(tree), _address(ahead), adapters, list(options.get("adapter_rows", ())),
                options.get("arrivals"), options.get("patience", PATIENCE),
            )  # fmt: skip
        except (ValueError, RuntimeError) as error:
            raise KernelError(str(error)) from error
        return logits

    def _rotation(self, positions: Tensor, counts: Sequence[int], lengths: Sequence[int] | None) -> list[Tensor]:
        """The table of each rope, by row."""
        of_rows: Tensor | None = None
        if self._rotary.by_length:
            if lengths is None or len(lengths) != len(counts):
                raise KernelError(
                    f"the rotary frequencies depend on the sequence's length, and lengths is {lengths}; "
                    f"it must hold one for each of {len(counts)} sequences"
                )
            of_rows = torch.tensor(lengths).repeat_interleave(torch.tensor(counts))
            dispatch.check(of_rows, "lengths by row", torch.int64, (len(positions),))
        return self._rotary.of(positions, of_rows)

    def _logit_buffers(self, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if rows is None:
            rows = torch.empty(0, dtype=torch.int32)
        count = len(rows)
        rows = dispatch.check(rows, "logit_rows", torch.int32, (count,), copy=True)
        logits = self._logits_of(count)
        if count:
            self._rows_of_logits = count
        return rows, logits, self._best[:count]

    def keep_logits(self, rows: int) -> None:
        """Give back the buffers of logits beyond so many rows. What earlier calls returned stays as it is."""
        if rows < len(self._logits):
            self._logits = torch.empty(rows, self.config.vocabulary_size)
            self._best = torch.empty(rows, dtype=torch.int32)
            self._rows_of_logits = min(rows, self._rows_of_logits)

    def _logits_of(self, count: int) -> Tensor:
        if count > len(self._logits):
            self._logits = torch.empty(count, self.config.vocabulary_size)
            self._best = torch.empty(count, dtype=torch.int32)
        return self._logits if count == len(self._logits) else self._logits[:count]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _sums(one: Any) -> tuple[list[int], int, int]:
    """Where a sequence's attention adds its probabilities: addresses by layer, and strides."""
    return ([], 0, 0) if one is None else (one.layers, one.stride, one.row)
