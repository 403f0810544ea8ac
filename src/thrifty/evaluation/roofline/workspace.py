"""About what a model's plan takes beside weights and caches, by its config alone."""

from __future__ import annotations

from thrifty.evaluation.roofline.cache_reads import APPENDED
from thrifty.models.config.model_config import ExpertConfig, ModelConfig

ROTATED = 9 * 128  # positions whose rotations are held
PANEL = 8  # rows of a panel; a mixture may leave so many unused an expert


def workspace(config: ModelConfig, rows: int = APPENDED) -> int:
    """Bytes of a plan's buffers of `rows` rows, of rotations, of the hidden state of a chunk and of one row of logits:
    somewhat more than the plan has, since what it multiplies is taken for fp32. rows: the most of a step.
    """
    hidden, layers = config.hidden_size, range(len(config.layers))
    inner = {config.inner(index) for index in layers}
    attention = {config.widths(index) for index in layers}
    widths = 3 * hidden + sum(inner)
    widths += sum(2 * heads * head_dim + 2 * kv_heads * head_dim for heads, kv_heads, head_dim in attention)
    specs = {layer.recurrent for layer in config.layers if layer.recurrent is not None}
    widths += sum(spec.buffer_width for spec in specs) + max(
        hidden, *inner, *(heads * head_dim for heads, _, head_dim in attention)
    )
    values = rows * widths + config.vocabulary_size + ROTATED * sum(rope.dimension for rope in config.ropes)
    if config.experts is not None:
        values += _experts(config.experts, hidden, rows)
    return 4 * values


def _experts(experts: ExpertConfig, hidden: int, rows: int) -> int:
    gathered = rows * experts.active + PANEL * experts.count
    return gathered * (2 * hidden + experts.intermediate_size) + rows * (
        experts.count + hidden + experts.shared_intermediate_size
    )
