"""The papers' prompt programs once more in torch: slow, and after their equations and published code alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from thrifty.models.model import Model
from thrifty.reference.attention import causal
from thrifty.reference.loading import build


@dataclass
class Seen:
    """By layer the rotated queries [tokens, heads, d], keys and values [tokens, kv heads, d] of a text."""

    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


def look(model: Model, tokens: Sequence[int]) -> tuple[Seen, Tensor]:
    """(what attention is given, logits [tokens, vocabulary]) of a whole text."""
    seen, plain = Seen(), causal(model.config)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        for held, part in ((seen.queries, query), (seen.keys, key), (seen.values, value)):
            held.append(part)
        return plain(layer, query, key, value)

    with torch.no_grad():
        logits = build(model).decoder(torch.tensor(tokens), torch.arange(len(tokens)), attend)
    return seen, logits


def repeated(model: Model, keys: Tensor) -> Tensor:
    """Keys or values [heads, tokens, d], one for every query head."""
    return keys.transpose(0, 1).repeat_interleave(model.config.heads // model.config.kv_heads, dim=0)


def gemfilter(model: Model, tokens: Sequence[int], layer: int, count: int, kernel: int = 5) -> list[int]:
    """Places that stay: `find_context` and `standard_dis_index` of the official code (pool and sum over heads on)."""
    seen, _ = look(model, tokens)
    product = (seen.queries[layer][-1][:, None] @ repeated(model, seen.keys[layer]).transpose(1, 2))[:, 0]
    pooled = F.avg_pool1d(product.sum(0, keepdim=True), kernel, padding=kernel // 2, stride=1)
    places: list[int] = pooled.topk(count, dim=-1).indices[0].sort().values.tolist()
    return places


def probabilities(model: Model, seen: Seen, layer: int, rows: int) -> Tensor:
    """Softmax attention [heads, rows, tokens] of a text's last rows."""
    keys = repeated(model, seen.keys[layer])
    logits = seen.queries[layer][-rows:].transpose(0, 1) @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5
    mask = torch.full((rows, rows), -torch.inf).triu(1)
    logits[:, :, -rows:] += mask
    return logits.softmax(dim=-1)


def specpc(
    draft: Model, tokens: Sequence[int], count: int, window: int, kernel: int, neighbours: int, first_layer: int
) -> list[int]:
    """Places that stay: `get_aggreated_attention` and `specpc_select_input_token_indices` (max, weighted queries)."""
    seen, _ = look(draft, tokens)
    weights = torch.linspace(0, 1, window)[None, :, None] if window > 1 else torch.ones(1)
    layers = [(probabilities(draft, seen, layer, window) * weights).amax((0, 1)) for layer in range(len(seen.keys))][
        first_layer:
    ]
    scores = torch.stack(layers).amax(0)
    sides = ((kernel - 1) // 2, kernel - 1 - (kernel - 1) // 2)
    pooled = F.max_pool1d(F.pad(scores[None], sides), kernel, stride=1)[0]
    ranked = sorted(range(len(tokens)), key=lambda place: (-float(pooled[place]), place))[:count]
    around = range(-((neighbours - 1) // 2), neighbours - 1 - (neighbours - 1) // 2 + 1) if neighbours else range(1)
    order = list(range(len(tokens) - window, len(tokens)))
    for place in ranked:
        for offset in sorted(around, key=abs):
            order.append(min(max(place + offset, 0), len(tokens) - 1))
    return sorted(list(dict.fromkeys(order))[:count])


def greedy(model: Model, tokens: Sequence[int], count: int) -> list[int]:
    """What a model says behind a text, computed anew for every token, up to one that ends it."""
    said: list[int] = []
    while len(said) < count and not (said and said[-1] in model.tokenizer.eos_ids):
        said.append(int(look(model, [*tokens, *said])[1][-1].argmax()))
    return said


def speckv_kept(model: Model, seen: Seen, ahead: int, capacity: int, window: int, kernel: int) -> list[list[list[int]]]:
    """Places that stay, by layer and KV head: `compress_kv` (max over group and queries, max pooling), then the cut to
    `capacity`. Of equal scores, of which pooling makes many, the first stay: there it is open."""
    rows, group = window + ahead + 1, model.config.heads // model.config.kv_heads
    kept = []
    for layer in range(len(seen.keys)):
        attention = probabilities(model, seen, layer, rows)[..., :-rows]
        scores = attention.reshape(-1, group * rows, attention.shape[-1]).amax(1)
        pooled = F.max_pool1d(scores, kernel, padding=kernel // 2, stride=1)
        end = attention.shape[-1]
        chosen = pooled.sort(dim=-1, descending=True, stable=True).indices[:, : capacity - window]
        kept.append([[*sorted(own.tolist()), *range(end, end + window)] for own in chosen])
    return kept


def speckv_answer(
    model: Model, draft: Model, tokens: Sequence[int], lookahead: int, count: int, **options: int
) -> tuple[list[int], list[list[list[int]]]]:
    """(a greedy answer from the slots that stay, these slots): each row attends to them, and to the answer so far."""
    ahead = greedy(draft, tokens, lookahead)
    seen, _ = look(model, [*tokens, *ahead])
    kept = speckv_kept(model, seen, len(ahead), **options)
    config, decoder = model.config, build(model).decoder
    keys = [[seen.keys[at][own, head] for head, own in enumerate(heads)] for at, heads in enumerate(kept)]
    values = [[seen.values[at][own, head] for head, own in enumerate(heads)] for at, heads in enumerate(kept)]

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, group = torch.empty_like(query), config.heads // config.kv_heads
        for head in range(config.kv_heads):
            keys[layer][head] = torch.cat([keys[layer][head], key[:, head]])
            values[layer][head] = torch.cat([values[layer][head], value[:, head]])
            for own in range(head * group, (head + 1) * group):
                chances = (query[0, own] @ keys[layer][head].T * config.query_scale).softmax(-1)
                out[0, own] = chances @ values[layer][head]
        return out

    answer: list[int] = []
    with torch.no_grad():
        while len(answer) < count:
            last = answer[-1] if answer else tokens[-1]
            place = torch.tensor([len(tokens) - 1 + len(answer)])
            answer.append(int(decoder(torch.tensor([last]), place, attend)[-1].argmax()))
    return answer, kept
