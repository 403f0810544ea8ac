"""One decode step of a batch: propose, run, accept, roll back; and no sequence harmed by another's error."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from torch import Tensor

from thrifty.decoding.sampling import Choice
from thrifty.decoding.strategy import Accepted, Batch, DecodingStrategy, Draft, Scores, choose
from thrifty.engine.runner import Rows, Runner
from thrifty.engine.sequence import Sequence


@dataclass(frozen=True)
class Outcome:
    """What a step did for one sequence: choices to commit (with their logits where asked), or its own error."""

    sequence: Sequence
    choices: tuple[Choice, ...] = ()
    logits: list[Tensor] = field(default_factory=list)
    error: Exception | None = None


def decode(runner: Runner, sequences: Items[Sequence]) -> list[Outcome]:
    """Run one step of all sequences. Where the batch fails, each runs alone, and only the culprits report
    an error.

    Afterwards every cache holds exactly its committed rows and those of the choices.
    """
    if not sequences:
        return []
    try:
        return _together(runner, sequences)
    except Exception as error:
        for sequence in sequences:
            _roll_back(sequence)
        if len(sequences) == 1:
            return [Outcome(sequences[0], error=error)]
        return [outcome for sequence in sequences for outcome in decode(runner, [sequence])]


def _together(runner: Runner, sequences: Items[Sequence]) -> list[Outcome]:
    drafts = _propose(sequences)
    batch = [_rows(sequence, draft) for sequence, draft in zip(sequences, drafts, strict=True)]
    for rows in batch:
        rows.cache.reserve(len(rows.tokens))
    scores = runner.decode(batch)
    first_rows = _offsets(batch)
    accepted = _accept(sequences, drafts, first_rows, scores)
    parts = zip(sequences, batch, first_rows, accepted, strict=True)
    return [_settle(*part, scores) for part in parts]


def first_choice(sequence: Sequence, scores: Scores) -> Outcome:
    """A sample's first token, from the scores of its prompt's last row."""
    wanted = [scores.logits(0).clone()] if sequence.handle.request.logits else []
    try:
        return Outcome(sequence, (choose(sequence.sampler, scores, 0),), wanted)
    except Exception as error:
        return Outcome(sequence, error=error)


def _settle(sequence: Sequence, rows: Rows, first: int, accepted: Accepted, scores: Scores) -> Outcome:
    """Truncate what was rejected, commit what was accepted. Policies may act here; their error stays here."""
    kept = len(accepted.choices)
    try:
        if kept < len(rows.tokens):
            rows.cache.truncate(len(rows.tokens) - kept)
        rows.cache.remember(rows.tokens[:kept], rows.start)
        rows.cache.commit(kept)
    except Exception as error:
        return Outcome(sequence, error=error)
    wanted = range(first, first + kept) if sequence.handle.request.logits else range(0)
    return Outcome(sequence, accepted.choices, [scores.logits(row).clone() for row in wanted])


def _propose(sequences: Items[Sequence]) -> list[Draft]:
    drafts = [Draft()] * len(sequences)
    for strategy, places in _by_strategy(sequences):
        proposed = strategy.propose(Batch([sequences[place] for place in places]))
        for place, draft in zip(places, proposed, strict=True):
            drafts[place] = draft
    return drafts


def _accept(sequences: Items[Sequence], drafts: Items[Draft], first_rows: Items[int], scores: Scores) -> list[Accepted]:
    accepted: list[Accepted] = [Accepted(())] * len(sequences)
    for strategy, places in _by_strategy(sequences):
        batch = Batch(
            [sequences[place] for place in places],
            [drafts[place] for place in places],
            [first_rows[place] for place in places],
        )
        for place, one in zip(places, strategy.accept(batch, scores), strict=True):
            accepted[place] = one
    return accepted


def _by_strategy(sequences: Items[Sequence]) -> list[tuple[DecodingStrategy, list[int]]]:
    groups: dict[DecodingStrategy, list[int]] = {}
    for place, sequence in enumerate(sequences):
        groups.setdefault(sequence.strategy, []).append(place)
    return list(groups.items())


def _rows(sequence: Sequence, draft: Draft) -> Rows:
    cache = sequence.cache
    assert cache is not None, "a decoding sequence has a cache"
    tokens = (sequence.tokens[-1], *draft.tokens)
    return Rows(cache, tokens, sequence.computed, sequence.computed + len(tokens))


def _offsets(batch: Items[Rows]) -> list[int]:
    offsets, total = [], 0
    for rows in batch:
        offsets.append(total)
        total += len(rows.tokens)
    return offsets


def _roll_back(sequence: Sequence) -> None:
    """Drop the uncommitted rows that a failed step left."""
    if sequence.cache is not None:
        sequence.cache.discard()
