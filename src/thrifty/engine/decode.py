"""One decode step of a batch: propose, run, accept, roll back; and no sequence harmed by another's error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from thrifty.arrays import Floats
from thrifty.decoding.sampling import Choice
from thrifty.decoding.strategy import Accepted, Batch, DecodingStrategy, Draft, Scores, choose
from thrifty.engine.ahead import Ahead
from thrifty.engine.runner import Rows, Runner
from thrifty.engine.running import Running

Note = Callable[[BaseException], None]
"""Told of an error that a whole batch met, before its sequences are tried alone."""

Given = TypeVar("Given")


@dataclass(frozen=True)
class Outcome:
    """What a step did for one sequence: choices to commit (with their logits where asked), or its own error."""

    sequence: Running
    choices: tuple[Choice, ...] = ()
    logits: list[Floats] = field(default_factory=list)
    error: BaseException | None = None


@dataclass(frozen=True)
class _Part:
    """A sequence's part of a step: its draft, and the rows that run."""

    sequence: Running
    draft: Draft
    rows: Rows


def decode(
    runner: Runner,
    sequences: Sequence[Running],
    outcomes: list[Outcome],
    note: Note,
    ahead: Ahead | None = None,
    together: bool = False,
) -> None:
    """Run one step of all sequences and add what came of it to `outcomes`. Where the batch fails, each runs alone, and
    only the culprits report an error.

    ahead: what native code can do without Python, it does; together: for several steps.

    Afterwards every cache that reports none holds exactly its committed rows and those of the choices. That holds
    whatever is raised, too: a sequence without an outcome is as before, and those with one must be published.
    """
    try:
        if ahead is not None:
            sequences = _run_ahead(ahead, runner, sequences, together, outcomes, note)
        if sequences and (parts := _prepare(sequences, outcomes, note)):
            _run(runner, parts, outcomes, note)
    except BaseException:
        _roll_back(without_outcome(sequences, outcomes), outcomes)
        raise


def _run_ahead(
    ahead: Ahead, runner: Runner, sequences: Sequence[Running], together: bool, outcomes: list[Outcome], note: Note
) -> Sequence[Running]:
    """Let native code do what it can. Returns the sequences that are left to be run; after an error they are as
    before.
    """
    if not sequences or not ahead.takes(runner, sequences):
        return sequences
    for sequence in sequences:
        try:
            ahead.begin(runner, sequence)
        except BaseException as error:
            outcomes.append(Outcome(sequence, error=error))
    able = without_outcome(sequences, outcomes)
    try:
        tokens = ahead.run(runner, able, together) if able else []
    except BaseException as error:
        note(error)
        _roll_back(able, outcomes)
        return without_outcome(able, outcomes)
    if not all(tokens):
        return able
    for sequence, own in zip(able, tokens, strict=True):
        try:
            _commit_rows(sequence, [sequence.tokens[-1], *own[:-1]])
            outcomes.append(Outcome(sequence, tuple(map(Choice, own))))
        except BaseException as error:
            outcomes.append(Outcome(sequence, error=error))
    return ()


def _commit_rows(sequence: Running, tokens: Sequence[int]) -> None:
    """The rows of these tokens are accepted. Policies may act here."""
    cache = sequence.cache
    assert cache is not None, "a decoding sequence has a cache"
    cache.remember(tokens, sequence.computed)
    cache.commit(len(tokens))


def without_outcome(sequences: Sequence[Running], outcomes: Sequence[Outcome]) -> list[Running]:
    """The sequences that nothing has come of yet."""
    if not outcomes:
        return list(sequences)
    done = {id(outcome.sequence) for outcome in outcomes}
    return [sequence for sequence in sequences if id(sequence) not in done]


def _prepare(sequences: Sequence[Running], outcomes: list[Outcome], note: Note) -> list[_Part]:
    """Drafts, and room for their rows. The errors of those that cannot have them are added to `outcomes`."""
    parts = []
    for sequence, draft in zip(sequences, _propose(sequences, note), strict=True):
        try:
            if isinstance(draft, BaseException):
                raise draft
            draft = _within_period(sequence, draft) if draft.tokens else draft
            rows = _rows(sequence, draft)
            rows.cache.reserve(len(rows.tokens))
            parts.append(_Part(sequence, draft, rows))
        except BaseException as error:
            outcomes.append(Outcome(sequence, error=error))
    return parts


def _run(runner: Runner, parts: Sequence[_Part], outcomes: list[Outcome], note: Note) -> None:
    try:
        scores = runner.decode([part.rows for part in parts])
        first_rows = _offsets([part.rows for part in parts])
        accepted = _accept(parts, first_rows, scores, note)
    except BaseException as error:
        if len(parts) == 1:
            outcomes.append(Outcome(parts[0].sequence, error=error))
            return
        _roll_back([part.sequence for part in parts], outcomes)
        note(error)
        left = without_outcome([part.sequence for part in parts], outcomes)
        for part in parts:
            if part.sequence in left:
                _run(runner, [part], outcomes, note)
        return
    for part, first, own in zip(parts, first_rows, accepted, strict=True):
        try:
            outcomes.append(_settle(part, first, own, scores))
        except BaseException as error:
            outcomes.append(Outcome(part.sequence, error=error))


def _roll_back(sequences: Sequence[Running], outcomes: list[Outcome]) -> None:
    """Drop the uncommitted rows that a failed run left. Where that fails, the error is added to `outcomes`."""
    for sequence in sequences:
        try:
            if sequence.cache is not None:
                sequence.cache.discard()
        except BaseException as error:
            outcomes.append(Outcome(sequence, error=error))


def first_choices(sequences: Sequence[Running], scores: Scores, outcomes: list[Outcome]) -> None:
    """Add the samples' first tokens, from the scores of their prompt's last row, to `outcomes`."""
    for sequence in sequences:
        try:
            wanted = [scores.logits(0).copy()] if sequence.ticket.request.logits else []
            outcomes.append(Outcome(sequence, (choose(sequence.sampler, scores, 0),), wanted))
        except BaseException as error:
            outcomes.append(Outcome(sequence, error=error))


def _settle(part: _Part, first: int, accepted: Accepted | BaseException, scores: Scores) -> Outcome:
    """Truncate what was rejected, commit what was accepted. Policies may act here. Raises the sequence's own error."""
    if isinstance(accepted, BaseException):
        raise accepted
    sequence, rows = part.sequence, part.rows
    kept = len(accepted.choices)
    wanted = range(first, first + kept) if sequence.ticket.request.logits else range(0)
    logits = [scores.logits(row).copy() for row in wanted]
    if kept < len(rows.tokens):
        rows.cache.truncate(len(rows.tokens) - kept)
    _commit_rows(sequence, rows.tokens[:kept])
    return Outcome(sequence, accepted.choices, logits)


def _propose(sequences: Sequence[Running], note: Note) -> list[Draft | BaseException]:
    def propose(strategy: DecodingStrategy, places: Sequence[int]) -> Sequence[Draft]:
        return strategy.propose(Batch([sequences[place] for place in places]))

    return _ask(sequences, propose, note)


def _accept(
    parts: Sequence[_Part], first_rows: Sequence[int], scores: Scores, note: Note
) -> list[Accepted | BaseException]:
    def accept(strategy: DecodingStrategy, places: Sequence[int]) -> Sequence[Accepted]:
        batch = Batch(
            [parts[place].sequence for place in places],
            [parts[place].draft for place in places],
            [first_rows[place] for place in places],
        )
        return strategy.accept(batch, scores)

    return _ask([part.sequence for part in parts], accept, note)


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


def _by_strategy(sequences: Sequence[Running]) -> list[tuple[DecodingStrategy, list[int]]]:
    groups: dict[DecodingStrategy, list[int]] = {}
    for place, sequence in enumerate(sequences):
        groups.setdefault(sequence.strategy, []).append(place)
    return list(groups.items())


def _within_period(sequence: Running, draft: Draft) -> Draft:
    """No more of a draft than can be committed before a policy acts: later tokens would see what it lets go of."""
    cache = sequence.cache
    assert cache is not None, "a decoding sequence has a cache"
    most = max(0, cache.schedule.next - cache.length - 1)
    return draft if len(draft.tokens) <= most else dataclasses.replace(draft, tokens=draft.tokens[:most])


def _rows(sequence: Running, draft: Draft) -> Rows:
    cache = sequence.cache
    assert cache is not None, "a decoding sequence has a cache"
    tokens = (sequence.tokens[-1], *draft.tokens)
    return Rows(cache, tokens, sequence.computed, sequence.computed + len(tokens))


def _offsets(batch: Sequence[Rows]) -> list[int]:
    offsets, total = [], 0
    for rows in batch:
        offsets.append(total)
        total += len(rows.tokens)
    return offsets
