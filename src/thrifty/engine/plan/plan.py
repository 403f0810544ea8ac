"""The native plan: a model compiled into an ordered list of native operations, replayed once a step.

The plan holds the model's own arrays and its own buffers, nothing else: caches travel with each call as native views. A
row's result does not depend on the other rows of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Array, Floats, Integers
from thrifty.engine.plan.adapter_tables import AdapterTables
from thrifty.engine.plan.build import PlanBuilder
from thrifty.engine.plan.options import StepOptions, native_sums, set_options
from thrifty.engine.plan.rotary_tables import RotaryTables
from thrifty.errors import KernelError
from thrifty.kernels import dispatch
from thrifty.models.config.model_config import ModelConfig, RopeConfig

if TYPE_CHECKING:
    from thrifty.cache.watching.sums import Accumulator
    from thrifty.models.model import Model

Whole = npt.NDArray[np.int32]  # token ids and numbers of rows, as native code takes them
NOWHERE: Integers = np.empty(0, np.int64)


def compile_plan(model: Model, max_rows: int) -> NativePlan:
    """A plan of the model's linears and norms for steps of up to `max_rows` rows.

    Raises KernelError naming what the native operations do not do, or which arrays are damaged.
    """
    return NativePlan(model, max_rows)


class NativePlan:
    """One step of a model in native code. Calls are not thread-safe among themselves.

    It keeps the model's arrays alive. Replacing one of the model's linears needs a new plan.
    """

    def __init__(self, model: Model, max_rows: int) -> None:
        config: ModelConfig = model.config
        self.config = config
        self.max_rows = max_rows
        self.ropes: list[RopeConfig] = config.ropes
        self._module = dispatch.require()
        self.native = _called(
            self._module.Plan, max_rows=max_rows, widths=[config.widths(index) for index in range(len(config.layers))]
        )
        self._logits: Floats = np.empty((0, config.vocabulary_size), np.float32)
        self._best: Whole = np.empty(0, np.int32)
        self._rows_of_logits = 0
        self.rotary = RotaryTables(self.ropes, config.context_length)
        built = PlanBuilder(self.native, model, self.ropes)
        _called(built.build)
        self._adapters = AdapterTables(self.native, built.numbers, built.shapes)

    @property
    def nbytes(self) -> int:
        """Bytes of the plan's workspace: buffers, scratch of the workers, logits since `keep_logits`."""
        return int(self.native.nbytes) + self._logits.nbytes + self._best.nbytes + self.rotary.nbytes

    @property
    def argmax(self) -> Whole:
        """int32 [r]: the most probable token of each row of the last call that made logits. Valid until the next."""
        return self._best[: self._rows_of_logits]

    @property
    def by_length(self) -> bool:
        """Whether steps need the lengths of their sequences."""
        return self.rotary.by_length

    @property
    def spent(self) -> tuple[float, float]:
        """Seconds spent in native steps so far: wall time, and what the calling thread took of a processor."""
        wall, processor = self.native.spent
        return wall, processor

    @contextmanager
    def profile(self) -> Iterator[dict[str, float]]:
        """Times what runs inside: seconds by kind of operation, waiting at its barrier included, filled at the end."""
        seconds: dict[str, float] = {}
        self.native.profile(True)
        try:
            yield seconds
        finally:
            self.native.profile(False)
            seconds.update(self.native.seconds())

    def step(
        self,
        token_ids: Array,
        positions: Array,
        views: Sequence[Any],
        counts: Sequence[int],
        logit_rows: Array,
        **options: Unpack[StepOptions],
    ) -> Floats:
        """All layers over rows of several sequences; appends their keys and values to the views.

        token_ids, positions: integers [n], the rows of sequence 0, then of sequence 1, … (positions [3, n] for ropes of
        three axes); counts: rows of each; logit_rows: integers [r], the rows to score. Returns fp32 [r, vocabulary],
        valid until the next call. Options: see StepOptions. Raises KernelError, and then nothing is appended.
        """
        token_ids = dispatch.check(token_ids, "token_ids", np.int32, (positions.shape[-1],), copy=True)
        return self._run(self._rows(token_ids, None, positions, views, counts), positions, logit_rows, options)

    def decode(
        self, sequences: list[Any], steps: int, waiting: Any, accumulate: Sequence[Accumulator | None] = ()
    ) -> tuple[list[int], Exception | None]:
        """Up to `steps` tokens of each native Continuation: [step][sequence], flat; and the error that ended them.

        Fewer after 0.1 seconds, where a token ends an answer, and where somebody waits; none where no token can be
        chosen. The views have the rows of all tokens but the newest; nothing else has moved on. accumulate: see
        StepOptions, for one step. Raises KernelError as `step` where the first step fails.
        """
        logits, sums = self.logits_of(len(sequences)), native_sums(accumulate)
        tokens, error = _called(self.native.decode, sequences, steps, waiting, logits, sums)
        return tokens, error

    def forward(
        self,
        hidden: Floats,
        positions: Array,
        views: Sequence[Any],
        counts: Sequence[int],
        logit_rows: Array,
        **options: Unpack[StepOptions],
    ) -> Floats:
        """As `step`, from the rows' first hidden states fp32 [n, hidden] instead of tokens; they are overwritten."""
        return self._run(self._rows(None, hidden, positions, views, counts), positions, logit_rows, options)

    def embed(self, token_ids: Array) -> Floats:
        """Integers [n] → the first hidden state, a new fp32 [n, hidden]."""
        hidden = np.empty((len(token_ids), self.config.hidden_size), np.float32)
        self._run(self._rows(token_ids, hidden, NOWHERE, (), (), last=0), NOWHERE)
        return hidden

    def layers(
        self,
        hidden: Floats,
        positions: Array,
        views: Sequence[Any],
        counts: Sequence[int],
        first: int,
        last: int,
        queries_out: Floats | None = None,
        **options: Unpack[StepOptions],
    ) -> Floats:
        """Layers first..last−1 over hidden fp32 [n, hidden], in place; appends keys and values of these layers.

        queries_out: fp32 [n, heads, head_dim] of the layer, filled with the rotated queries; for one at a time.
        Options: see StepOptions.
        """
        rows = self._rows(None, hidden, positions, views, counts, first, last)
        rows.queries_out = queries_out
        self._run(rows, positions, None, options)
        return hidden

    def logits(self, hidden: Floats) -> Floats:
        """Final hidden rows fp32 [r, hidden] → fp32 [r, vocabulary], valid until the next call."""
        rows = self._rows(None, hidden, NOWHERE, (), (), last=0)
        return self._run(rows, NOWHERE, np.arange(len(hidden), dtype=np.int32))

    def keep_logits(self, rows: int) -> None:
        """Give back the buffers of logits beyond so many rows. What earlier calls returned stays as it is."""
        if rows < len(self._logits):
            self._logits = np.empty((rows, self.config.vocabulary_size), np.float32)
            self._best = np.empty(rows, np.int32)
            self._rows_of_logits = min(rows, self._rows_of_logits)

    def logits_of(self, count: int) -> Floats:
        """The buffer of logits [count, vocabulary]; the next call overwrites it."""
        if count > len(self._logits):
            self._logits = np.empty((count, self.config.vocabulary_size), np.float32)
            self._best = np.empty(count, np.int32)
        return self._logits if count == len(self._logits) else self._logits[:count]

    def _rows(
        self,
        tokens: Array | None,
        hidden: Floats | None,
        positions: Array,
        views: Sequence[Any],
        counts: Sequence[int],
        first: int = 0,
        last: int | None = None,
    ) -> Any:
        """A native Step of these rows: one token or hidden state each; `last`: None for all layers."""
        rows = self._module.Step()
        if tokens is not None:
            rows.tokens = np.ascontiguousarray(tokens, np.int32)
        rows.hidden = hidden
        rows.views, rows.counts = list(views), list(counts)
        rows.first_layer, rows.last_layer = first, len(self.config.layers) if last is None else last
        return rows

    def _run(
        self, rows: Any, positions: Array, logit_rows: Array | None = None, options: StepOptions | None = None
    ) -> Floats:
        options = {} if options is None else options
        if rows.last_layer > rows.first_layer:
            count = len(rows.hidden if rows.tokens is None else rows.tokens)
            shape = (count,) if positions.ndim != 2 else (3, count)
            positions = dispatch.check(positions, "positions", positions.dtype, shape)
            rows.rotation = self._rotation(positions, rows.counts, options.get("lengths"))
        _called(set_options, rows, options, self._adapters)
        logits = self._score(rows, NOWHERE if logit_rows is None else logit_rows)
        _called(self.native.run, rows)
        return logits

    def _score(self, rows: Any, wanted: Array) -> Floats:
        """Give the step buffers for the logits of the wanted rows; returns that of the logits."""
        count = len(wanted)
        logits = self.logits_of(count)
        if count:
            self._rows_of_logits = count
            rows.logit_rows = np.ascontiguousarray(wanted, np.int32)
            rows.logits, rows.arg_max = logits, self._best[:count]
        return logits

    def _rotation(self, positions: Array, counts: Sequence[int], lengths: Sequence[int] | None) -> list[Floats]:
        """The table of each rope, by row."""
        of_rows: Integers | None = None
        if self.rotary.by_length:
            if lengths is None or len(lengths) != len(counts):
                raise KernelError(
                    f"the rotary frequencies depend on the sequence's length, and lengths is {lengths}; "
                    f"it must hold one for each of {len(counts)} sequences"
                )
            of_rows = np.repeat(np.array(lengths, np.int64), counts)
            dispatch.check(of_rows, "lengths by row", np.int64, (positions.shape[-1],))
        return self.rotary.of(positions, of_rows)


def _called(native: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """The result of a native call; what it refuses is a KernelError."""
    try:
        return native(*arguments, **named)
    except (ValueError, RuntimeError) as error:
        raise KernelError(str(error)) from error
