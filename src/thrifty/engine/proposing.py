"""Drafts of a step's sequences, from their strategies, and the rows that they become."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

from thrifty.decoding.draft import MOST_ROWS, Accepted, Draft
from thrifty.decoding.scores import Scores
from thrifty.decoding.strategy import Asked, DecodingStrategy, Drafter, Judged
from thrifty.engine.row_extra import RowExtra, everyone, shifted
from thrifty.engine.runner import Rows
from thrifty.engine.running import Running
from thrifty.errors import ThriftyError

Note = Callable[[BaseException], None]
"""Told of an error that a whole batch met, before its sequences are tried alone."""

Given = TypeVar("Given")


def caught_up(sequence: Running) -> bool:
    """Whether a draft can be asked for now. Where a model that drafts has still to compute much of the prompt, it does
    a piece of that here.
    """
    return not sequence.ticket.drafting.models or _drafter(sequence).catch_up(sequence.tokens)


def propose(sequences: Sequence[Running], note: Note) -> list[Draft | BaseException]:
    """The draft of each sequence, or its error."""

    def ask(strategy: DecodingStrategy, places: Sequence[int]) -> Sequence[Draft]:
        return strategy.propose([Asked(sequences[place], _drafter(sequences[place])) for place in places])

    return _ask(sequences, ask, note)


def accept(
    sequences: Sequence[Running], drafts: Sequence[Draft], first_rows: Sequence[int], scores: Scores, note: Note
) -> list[Accepted | BaseException]:
    """What is accepted of each sequence's draft, or its error. first_rows: where their rows begin in `scores`."""

    def ask(strategy: DecodingStrategy, places: Sequence[int]) -> Sequence[Accepted]:
        judged = [Judged(sequences[at], _drafter(sequences[at]), drafts[at], first_rows[at]) for at in places]
        return strategy.accept(judged, scores)

    return _ask(sequences, ask, note)


def within_bounds(sequence: Running, draft: Draft) -> Draft:
    """No more of a draft than can be committed before a policy acts (later tokens would see what it lets go of), than
    the page holds where rows select pages, nor than the answer may still have. Raises ThriftyError for a draft that a
    step cannot take.
    """
    cache, rows = sequence.cache, 1 + len(draft.tokens)
    assert cache is not None, "a decoding sequence has a cache"
    most = min(sequence.strategy.rows, MOST_ROWS)
    if rows > most:
        raise ThriftyError(
            f"a draft of {rows - 1} tokens; a step of this strategy takes at most {most - 1}: draft fewer, or let its "
            f"`rows` say so (at most {MOST_ROWS})"
        )
    window = min((own for own in cache.model.windows if own is not None), default=rows)
    if draft.parents is not None and rows > window:
        raise ThriftyError(f"a tree of {rows} rows is longer than the attention window of {window}: draft fewer tokens")
    left = min(cache.schedule.next - cache.length, sequence.total - len(sequence.tokens))
    if cache.selection is not None:
        left = min(left, cache.selection.rows_left(cache.tail.rows))
    return draft.within(left - 1)


def rows_of(sequence: Running, draft: Draft) -> Rows:
    """The rows that a sequence runs: its last committed token, and its draft."""
    cache = sequence.cache
    assert cache is not None, "a decoding sequence has a cache"
    committed, start = sequence.tokens, sequence.computed
    if not draft.tokens and not sequence.shift:
        return Rows(cache, committed[-1:], start, start + 1, extra=sequence.extra)
    tokens, depths = (committed[-1], *draft.tokens), (0, *draft.depths())
    extra = shifted(sequence.extra, sequence.shift, start, depths)
    if draft.parents is not None:
        extra = dataclasses.replace(extra or RowExtra(), parents=(-1, *(parent + 1 for parent in draft.parents)))
    if draft.both_ways:
        extra = dataclasses.replace(extra or RowExtra(), ahead=everyone(len(tokens)))
    return Rows(cache, tokens, start, start + 1 + max(depths), extra=extra)


def _drafter(sequence: Running) -> Drafter:
    """The sequence's drafter; it is opened with its first step."""
    if sequence.drafter is None:
        sequence.drafter = sequence.ticket.drafting.open(sequence.sampler)
    return sequence.drafter


def _ask(
    sequences: Sequence[Running], ask: Callable[[DecodingStrategy, Sequence[int]], Sequence[Given]], note: Note
) -> list[Given | BaseException]:
    """What the strategies give for each sequence, or its error. A strategy that fails for all is asked for each
    alone.
    """
    given: dict[int, Given | BaseException] = {}
    waiting = _by_strategy(sequences)
    while waiting:
        strategy, places = waiting.pop()
        try:
            given.update(zip(places, ask(strategy, places), strict=True))
        except BaseException as error:
            if len(places) == 1:
                given[places[0]] = error
                continue
            note(error)
            waiting += [(strategy, [place]) for place in places]
    return [given[place] for place in range(len(sequences))]


def _by_strategy(sequences: Sequence[Running]) -> list[tuple[DecodingStrategy, Sequence[int]]]:
    if sequences and all(sequence.strategy == sequences[0].strategy for sequence in sequences):
        return [(sequences[0].strategy, range(len(sequences)))]  # as in most steps
    groups: dict[DecodingStrategy, list[int]] = {}
    for place, sequence in enumerate(sequences):
        groups.setdefault(sequence.strategy, []).append(place)
    return [*groups.items()]
