"""The operations of a step: what each must compute and read, from sizes alone (arXiv 2402.16363, LLM-Viewer).

Counted are matrix products (a multiply-add is two operations), weights, and the cache. Norms, rotations, softmax and
activations are left out: kernels fuse them into the products, and they are thousandths of the sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from thrifty.evaluation.roofline.cache_reads import LayerCache
from thrifty.evaluation.roofline.machine import Machine
from thrifty.evaluation.roofline.sizes import ModelSizes, StoredLinear
from thrifty.models.config.layer_spec import RecurrentSpec
from thrifty.models.config.model_config import ModelConfig

ATTENTION, RECURRENCE, LOGITS = "attention", "recurrence", "logits"
KINDS = {
    "attention.query": "query, key, value",
    "attention.key": "query, key, value",
    "attention.value": "query, key, value",
    "attention.output": "attention output",
    "recurrent.query": "query, key, value",
    "recurrent.key": "query, key, value",
    "recurrent.value": "query, key, value",
    "recurrent.output": "attention output",
    "mlp.gate": "gate and up",
    "mlp.up": "gate and up",
    "mlp.down": "down",
    "mlp.router": "router",
}


@dataclass(frozen=True)
class Operation:
    """One kind of operation of one layer (None: outside the layers), over the whole batch. operations: of arithmetic.
    weight_bytes: read. cache_bytes: read, or written by a prefill. stored: the format that decides the arithmetic.
    """

    kind: str
    layer: int | None
    operations: int
    weight_bytes: int
    cache_bytes: int
    stored: str

    @property
    def nbytes(self) -> int:
        """All that must move between memory and processor."""
        return self.weight_bytes + self.cache_bytes

    def memory_seconds(self, machine: Machine) -> float:
        """Time to move the bytes."""
        return self.nbytes / machine.bandwidth

    def compute_seconds(self, machine: Machine) -> float:
        """Time to compute."""
        return self.operations / machine.rate(self.stored) if self.operations else 0.0

    def seconds(self, machine: Machine) -> float:
        """The roofline: whichever takes longer, the other hidden behind it."""
        return max(self.memory_seconds(machine), self.compute_seconds(machine))

    def bound(self, machine: Machine) -> str:
        """ "memory" or "compute"."""
        return "compute" if self.compute_seconds(machine) > self.memory_seconds(machine) else "memory"


def decode(sizes: ModelSizes, caches: Sequence[LayerCache], batch: int = 1, rows: int = 1) -> list[Operation]:
    """One step of `batch` sequences, each with `caches` (one a layer, the step's own token in it). rows: of a sequence,
    1 and what is drafted; they read its cache once.
    """
    step = _products(sizes, rows=batch * rows, last=batch * rows)
    for layer, held in enumerate(caches):
        spec = sizes.config.layers[layer].recurrent
        if spec is not None:  # the state is read and written
            step.append(_recurrence(layer, spec, batch, 2 * held.nbytes * batch))
            continue
        work = 4 * query_width(sizes.config, layer) * held.slots * batch * rows
        step.append(Operation(ATTENTION, layer, work, 0, held.nbytes * batch, "bf16"))
    return _in_order(step)


def prefill(sizes: ModelSizes, written: Sequence[int], tokens: int, batch: int = 1) -> list[Operation]:
    """Prompts of `tokens` tokens, `batch` of them. written: by layer, bytes of keys and values that
    one prompt computes. Logits are computed of every prompt's last token alone.
    """
    step = _products(sizes, rows=batch * tokens, last=batch)
    for index, layer in enumerate(sizes.config.layers):
        if layer.recurrent is not None:
            state = 4 * layer.recurrent.state_numbers * batch
            step.append(_recurrence(index, layer.recurrent, tokens * batch, state))
            continue
        work = 4 * query_width(sizes.config, index) * attended(tokens, layer.window) * batch
        step.append(Operation(ATTENTION, index, work, 0, written[index] * batch, "bf16"))
    return _in_order(step)


def query_width(config: ModelConfig, layer: int) -> int:
    """Channels of all query heads of a layer together."""
    heads, _, head_dim = config.widths(layer)
    return heads * head_dim


def _recurrence(layer: int, spec: RecurrentSpec, rows: int, nbytes: int) -> Operation:
    """A state's part in `rows` tokens: decay, key times value, and the query's product with it."""
    return Operation(RECURRENCE, layer, spec.step_operations * rows, 0, nbytes, "f32")


def attended(tokens: int, window: int | None) -> int:
    """Pairs of query and key in causal attention over a prompt: a token sees itself and window − 1 before it."""
    if window is None or window >= tokens:
        return tokens * (tokens + 1) // 2
    return window * (window + 1) // 2 + (tokens - window) * window


def distinct_share(config: ModelConfig, rows: int) -> float:
    """The expected share of a layer's experts that `rows` tokens choose, were every choice equally likely."""
    if config.experts is None:
        return 1.0
    share = config.experts.active / config.experts.count
    return share if rows == 1 else 1.0 - (1.0 - share) ** rows


def weight_bytes(linear: StoredLinear, config: ModelConfig, rows: int) -> int:
    """What a step of `rows` tokens reads of a linear: all of it; of an expert's, its chance of being chosen. An
    embedding that is not also the logits' matrix gives one row a token, which does not count.
    """
    if linear.name == "embedding" and not config.tied_embeddings:
        return 0
    if ".experts." in linear.name:
        return round(linear.nbytes * distinct_share(config, rows))
    return linear.nbytes


def _products(sizes: ModelSizes, rows: int, last: int) -> list[Operation]:
    """The matrix products, one entry for every linear. rows: tokens through the layers; last: through the logits."""
    config = sizes.config
    products = []
    for linear in sizes.linears:
        if linear.name == "embedding" and not config.tied_embeddings:
            continue
        through = last if linear.layer is None else rows
        work = 2 * linear.rows * linear.columns * through
        if ".experts." in linear.name and config.experts is not None:
            work = work * config.experts.active // config.experts.count
        read = weight_bytes(linear, config, rows)
        products.append(Operation(kind_of(linear), linear.layer, work, read, 0, linear.label))
    return products


def kind_of(linear: StoredLinear) -> str:
    """The kind of operation that a linear takes part in."""
    if linear.layer is None:
        return LOGITS
    if ".experts." in linear.name:
        return "experts"
    if ".shared" in linear.name:
        return "shared expert"
    return KINDS.get(linear.place, linear.place)


def merged(operations: Iterable[Operation]) -> list[Operation]:
    """Operations of one layer, kind and format as one, in the order of their first."""
    sums: dict[tuple[int | None, str, str], Operation] = {}
    for operation in operations:
        key = (operation.layer, operation.kind, operation.stored)
        if key in sums:
            operation = replace(
                operation,
                operations=operation.operations + sums[key].operations,
                weight_bytes=operation.weight_bytes + sums[key].weight_bytes,
                cache_bytes=operation.cache_bytes + sums[key].cache_bytes,
            )
        sums[key] = operation
    return list(sums.values())


ORDER = (
    "query, key, value",
    ATTENTION,
    RECURRENCE,
    "attention output",
    "router",
    "gate and up",
    "down",
    "experts",
    "shared expert",
)


def _in_order(operations: Iterable[Operation]) -> list[Operation]:
    """Layer by layer, logits last."""

    def place(operation: Operation) -> tuple[float, int]:
        kind = ORDER.index(operation.kind) if operation.kind in ORDER else len(ORDER)
        return (float("inf") if operation.layer is None else operation.layer, kind)

    return sorted(merged(operations), key=place)
