"""The least time that a step can take on a machine: the roofline, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from thrifty.evaluation.roofline import operations
from thrifty.evaluation.roofline.cache_reads import exact_bytes, held, model_info, peak_bytes
from thrifty.evaluation.roofline.machine import Machine
from thrifty.evaluation.roofline.operations import ATTENTION, Operation
from thrifty.evaluation.roofline.sizes import ModelSizes, of_model

if TYPE_CHECKING:
    from thrifty.cache.policy import CachePolicy
    from thrifty.models.model import Model


def decode_seconds(model: Model | ModelSizes, cache_bytes: int, batch: int, machine: Machine) -> float:
    """One decode step of `batch` sequences that hold `cache_bytes` of cache each; weights are read once.

    Attention is counted by the bytes it reads alone. A lower bound: no kernel reaches it, `thrifty bench` prints how
    near this machine's come. Who asks often passes `sizes.of_model(model)`, made once.
    """
    step = operations.decode(_sizes(model), (), batch)
    products = sum(operation.seconds(machine) for operation in step)
    return products + cache_bytes * batch / machine.bandwidth


def prefill_seconds(model: Model | ModelSizes, tokens: int, machine: Machine) -> float:
    """A prompt of `tokens` tokens, alone. A lower bound likewise."""
    sizes = _sizes(model)
    written = exact_bytes(model_info(sizes), tokens)
    return sum(operation.seconds(machine) for operation in operations.prefill(sizes, written, tokens))


def _sizes(model: Model | ModelSizes) -> ModelSizes:
    return model if isinstance(model, ModelSizes) else of_model(model)


@dataclass(frozen=True)
class LayerClass:
    """Equal layers folded: their numbers (empty: what stands outside the layers) and the operations of all of them."""

    layers: tuple[int, ...]
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Estimate:
    """What a model would do on a machine at one length. length: tokens of the prompt, and of the context that a decode
    step attends to. memory: bytes of weights and of the caches at their peak. rows: of a sequence in a decode step, 1
    and what is drafted. draft: of the model that drafts them one by one, at the same length.
    """

    sizes: ModelSizes
    machine: Machine
    batch: int
    length: int
    decode: tuple[Operation, ...]
    prefill: tuple[Operation, ...]
    cache_peak: int
    rows: int = 1
    draft: Estimate | None = None

    @property
    def memory(self) -> int:
        """Bytes of weights and caches, those of a model that drafts among them; workspace is left out."""
        return self.sizes.nbytes + self.cache_peak + (0 if self.draft is None else self.draft.memory)

    @property
    def fits(self) -> bool:
        """Whether the machine's memory holds both."""
        return self.memory <= self.machine.memory

    @property
    def decode_seconds(self) -> float:
        """Of one step with its draft, which gives every sequence of the batch 1 to `rows` tokens."""
        drafting = 0.0 if self.draft is None else (self.rows - 1) * self.draft.decode_seconds
        return sum(operation.seconds(self.machine) for operation in self.decode) + drafting

    @property
    def prefill_seconds(self) -> float:
        """Of all prompts of the batch, which a model that drafts reads as well."""
        drafting = 0.0 if self.draft is None else self.draft.prefill_seconds
        return sum(operation.seconds(self.machine) for operation in self.prefill) + drafting


def estimate(
    sizes: ModelSizes,
    policies: Sequence[CachePolicy],
    machine: Machine,
    *,
    length: int,
    batch: int = 1,
    rows: int = 1,
    draft: Estimate | None = None,
) -> Estimate:
    """The roofline of a model with a recipe's cache policies at a length, for a batch of equal sequences. rows, draft:
    see Estimate.
    """
    info = model_info(sizes)
    return Estimate(
        sizes,
        machine,
        batch,
        length,
        tuple(operations.decode(sizes, held(info, policies, length), batch, rows)),
        tuple(operations.prefill(sizes, exact_bytes(info, length), length, batch)),
        peak_bytes(info, policies, length) * batch,
        rows,
        draft,
    )


def folded(step: Sequence[Operation], sizes: ModelSizes) -> list[LayerClass]:
    """Operations by classes of equal layers: the same window, shapes and formats."""
    by_layer: dict[int | None, list[Operation]] = {}
    for operation in step:
        by_layer.setdefault(operation.layer, []).append(operation)
    classes: dict[object, list[int | None]] = {}
    for layer, own in by_layer.items():
        window = None if layer is None else sizes.config.layers[layer].window
        shape = tuple(
            (operation.kind, operation.stored, operation.operations, operation.weight_bytes) for operation in own
        )
        classes.setdefault((layer is None, window, shape), []).append(layer)
    return [_folded(members, by_layer) for members in classes.values()]


def _folded(members: list[int | None], by_layer: dict[int | None, list[Operation]]) -> LayerClass:
    numbers = tuple(layer for layer in members if layer is not None)
    summed = operations.merged(replace(operation, layer=None) for member in members for operation in by_layer[member])
    return LayerClass(numbers, tuple(summed))


def weight_bytes(step: Sequence[Operation]) -> int:
    """Bytes of weights over all operations."""
    return sum(operation.weight_bytes for operation in step)


def cache_bytes(step: Sequence[Operation]) -> int:
    """Bytes of cache over all operations."""
    return sum(operation.cache_bytes for operation in step if operation.kind == ATTENTION)
