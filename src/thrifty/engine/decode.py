"""One decode step of a batch: propose, run, accept, roll back; and no sequence harmed by another's error."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from thrifty.arrays import Floats
from thrifty.decoding.draft import Accepted, Draft, check_path
from thrifty.decoding.sampling import Choice
from thrifty.decoding.scores import Scores
from thrifty.decoding.strategy import choose
from thrifty.engine.ahead import Ahead
from thrifty.engine.proposing import Note, accept, caught_up, propose, rows_of, within_bounds
from thrifty.engine.runner import Rows, Runner
from thrifty.engine.running import Running


class Outcome(NamedTuple):
    """What a step did for one sequence: choices to commit (with their logits and taps where asked), or its own
    error.
    """

    sequence: Running
    choices: tuple[Choice, ...] = ()
    logits: Sequence[Floats] = ()
    taps: Sequence[Mapping[int, Floats]] = ()
    error: BaseException | None = None


class _Part(NamedTuple):
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
        parts = _prepare(sequences, outcomes, note) if sequences else []
        for group in _groups(parts, runner.most_rows):
            _run(runner, group, outcomes, note)
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
    parts, ready = [], _ready(sequences, outcomes)
    for sequence, draft in zip(ready, propose(ready, note), strict=True):
        try:
            if isinstance(draft, BaseException):
                raise draft
            draft = within_bounds(sequence, draft) if draft.tokens else draft
            rows = rows_of(sequence, draft)
            rows.cache.reserve(len(rows.tokens))
            parts.append(_Part(sequence, draft, rows))
        except BaseException as error:
            outcomes.append(Outcome(sequence, error=error))
    return parts


def _ready(sequences: Sequence[Running], outcomes: list[Outcome]) -> list[Running]:
    """The sequences that can be asked for drafts; the others sit this step out. Errors are added to `outcomes`."""
    ready = []
    for sequence in sequences:
        try:
            if caught_up(sequence):
                ready.append(sequence)
        except BaseException as error:
            outcomes.append(Outcome(sequence, error=error))
    return ready


def _run(runner: Runner, parts: Sequence[_Part], outcomes: list[Outcome], note: Note) -> None:
    try:
        scores = _decoded(runner, parts)
        first_rows = _offsets([part.rows for part in parts])
        accepted = accept([part.sequence for part in parts], [part.draft for part in parts], first_rows, scores, note)
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
            outcome = _settle(part, first, own, scores)
            if outcome is not None:
                outcomes.append(outcome)
        except BaseException as error:
            outcomes.append(Outcome(part.sequence, error=error))


def _decoded(runner: Runner, parts: Sequence[_Part]) -> Scores:
    """The scores of all rows; strategies that draft are told what the step took."""
    drafting = next((part.sequence.ticket.drafting for part in parts if part.sequence.drafted_rows), None)
    start = time.perf_counter()
    scores = runner.decode([part.rows for part in parts])
    if drafting is not None:
        drafting.costs.note(sum(len(part.rows.tokens) for part in parts), time.perf_counter() - start)
    return scores


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
            choices = (choose(sequence.sampler, scores, 0),)
            outcomes.append(Outcome(sequence, choices, wanted, _taps(sequence, scores, 0, (0,))))
        except BaseException as error:
            outcomes.append(Outcome(sequence, error=error))


def _settle(part: _Part, first: int, accepted: Accepted | BaseException, scores: Scores) -> Outcome | None:
    """Commit the rows that were accepted, forget the others. Policies may act here. None where nothing is committed,
    and the drafter goes on. Raises the sequence's own error.
    """
    if isinstance(accepted, BaseException):
        raise accepted
    sequence, cache, request = part.sequence, part.rows.cache, part.sequence.ticket.request
    if not accepted.choices and accepted.unfinished is not None and sequence.drafter is not None:
        cache.discard()
        sequence.drafter.go_on(accepted.unfinished)
        return None
    single = len(accepted.choices) == 1 and not accepted.path and not part.draft.tokens
    if single and not (sequence.drafted_rows or request.logits or request.taps):  # as in most steps
        _commit_rows(sequence, part.rows.tokens)
        return Outcome(sequence, accepted.choices)
    if part.draft.tokens or len(accepted.choices) != 1:
        check_path(part.draft, accepted)
    kept, tokens = (0, *(index + 1 for index in accepted.path)) if accepted.path else (0,), part.rows.tokens
    logits = [scores.logits(first + row).copy() for row in kept] if request.logits else []
    taps = _taps(sequence, scores, first, kept)
    if len(kept) < len(tokens):
        cache.keep(kept)
        tokens = [tokens[row] for row in kept]
    _commit_rows(sequence, tokens)
    if sequence.drafted_rows and sequence.drafter is not None:
        sequence.drafter.committed([choice.token for choice in accepted.choices])
    return Outcome(sequence, accepted.choices, logits, taps)


def _taps(sequence: Running, scores: Scores, first: int, rows: Sequence[int]) -> list[dict[int, Floats]]:
    """Copies of the states that the request asked for, by row, counted from `first`; none where it did not."""
    layers = sequence.ticket.request.taps
    return [{layer: scores.taps[layer][first + row].copy() for layer in layers} for row in rows] if layers else []


def _groups(parts: list[_Part], most: int) -> list[list[_Part]]:
    """The parts in their order, at most `most` rows together."""
    if not any(part.draft.tokens for part in parts):
        return [parts] if parts else []
    groups: list[list[_Part]] = []
    room = 0
    for part in parts:
        rows = len(part.rows.tokens)
        if rows > room:
            groups.append([])
            room = most
        groups[-1].append(part)
        room -= rows
    return groups


def _offsets(batch: Sequence[Rows]) -> list[int]:
    offsets, total = [], 0
    for rows in batch:
        offsets.append(total)
        total += len(rows.tokens)
    return offsets
