"""Lookahead's drafts against the paper's words, written out over dictionaries of all paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.decoding.draft import Draft
from thrifty.decoding.possible import NONE_ABSENT
from thrifty.decoding.sampling import Sampler
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.scores import ArrayScores
from thrifty.decoding.services import ModelFacts, Services
from thrifty.decoding.step_costs import StepCosts
from thrifty.decoding.strategies.lookahead_pain import LookaheadPain, TrieDrafter
from thrifty.decoding.strategy import Asked
from thrifty.decoding.trie import OutputTrie
from thrifty.errors import RecipeError, ThriftyError
from thrifty.registry import build

SIZE, END = 8, 7
FACTS = ModelFacts(2, SIZE, frozenset({END}), NONE_ABSENT, 1000)
SMALL = st.lists(st.integers(0, 3), min_size=1, max_size=30)
Counts = dict[tuple[int, ...], list[float]]


@dataclass
class Text:
    """A sequence that grows."""

    tokens: list[int]
    sampler: Sampler = field(default_factory=lambda: Sampler(SamplingParameters(), SIZE))

    def say(self, drafter: TrieDrafter, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.tokens.append(token)
            self.sampler.commit(token)
        drafter.committed(tokens)


def opened(strategy: LookaheadPain, kept: OutputTrie | None) -> TrieDrafter:
    sampler = Sampler(SamplingParameters(), SIZE)
    drafter = strategy.open(Services(FACTS, sampler, {}, StepCosts(), kept))
    assert isinstance(drafter, TrieDrafter)
    return drafter


def kept_of(strategy: LookaheadPain) -> OutputTrie:
    keeps = strategy.keeps(FACTS)
    assert keeps is not None
    made = keeps.make()
    assert isinstance(made, OutputTrie) and made.nbytes == keeps.nbytes
    return made


def counted(prompt: Sequence[int], answers: Sequence[Sequence[int]], branch: int) -> Counts:
    """How often the prompt, and the answers that ended, have each path: the first token, then its branch."""
    counts: Counts = {}
    for start in range(len(prompt)):
        for stop in range(start + 2, len(prompt) + 1):
            counts.setdefault(tuple(prompt[start:stop]), [0.0, 0.0])[0] += 1
    for answer in answers:
        for start in range(len(answer)):
            for stop in range(start + 2, min(len(answer), start + branch + 2) + 1):
                counts.setdefault(tuple(answer[start:stop]), [0.0, 0.0])[1] += 1
    return counts


def rank(pair: Sequence[float]) -> float:
    return (1 - 1e-4) * pair[0] + 1e-4 * pair[1]


def places(nodes: Counts) -> dict[tuple[int, ...], tuple[int, ...]]:
    """For each path its place among siblings, and its parents': the prompt's come first, in the order of their first
    occurrence."""
    found: dict[tuple[int, ...], tuple[int, ...]] = {(): ()}
    seen: dict[tuple[int, ...], int] = {}
    for path in sorted(nodes, key=len):
        parent = path[:-1]
        found[path] = (*found[parent], seen.get(parent, 0))
        seen[parent] = seen.get(parent, 0) + 1
    return found


def slow_nodes(counts: Counts, query: Sequence[int], depth: int, most: int) -> tuple[list[tuple[int, ...]], Any]:
    """The paths that a tree of `most` nodes has, and the key by which equal ones are ordered."""
    size = len(query)
    nodes = {path[size:]: pair for path, pair in counts.items() if path[:size] == tuple(query) and len(path) > size}
    nodes = {path: pair for path, pair in nodes.items() if len(path) <= depth}
    place = places(nodes)
    by_output = sorted((path for path in nodes if nodes[path][1] > 0), key=lambda path: (-nodes[path][1], place[path]))
    chosen = by_output[: (most + 1) // 2]
    for path in sorted(nodes, key=lambda path: (-rank(nodes[path]), place[path])):
        if len(chosen) < most and path not in chosen:
            chosen.append(path)
    return chosen, lambda path: (-rank(nodes[path]), place[path])


def flat(chosen: list[tuple[int, ...]], key: Any) -> list[tuple[int, ...]]:
    """Depth first, the best of siblings first."""
    order: list[tuple[int, ...]] = []

    def walk(parent: tuple[int, ...]) -> None:
        for path in sorted((path for path in chosen if path[:-1] == parent), key=key):
            order.append(path)
            walk(path)

    walk(())
    return order


def slow_draft(counts: Counts, tokens: Sequence[int], strategy: LookaheadPain, rows: int) -> list[tuple[int, ...]]:
    """The paths of a hierarchical or parallel draft, in order."""
    found: list[tuple[int, ...]] = []
    for start in range(2):
        query = tokens[-2:][start:]
        chosen, key = slow_nodes(counts, query, strategy.branch_length, rows - 1)
        found = flat(chosen, key) or found
        if 1 + len(found) >= strategy.branch_length:
            break
    if strategy.mode == "parallel":
        leaves = [path for path in found if not any(other[: len(path)] == path and other != path for other in found)]
        left, kept = len(found), list[tuple[int, ...]]()
        for leaf in leaves:
            branch = [leaf[: stop + 1] for stop in range(len(leaf))][:left]
            kept += [path for path in branch if path not in kept]
            left -= len(branch)
        found = [path for path in found if path in kept]
    return found


def paths_of(draft: Draft) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = []
    for index, token in enumerate(draft.tokens):
        parent = draft.parent(index)
        paths.append((token,) if parent == -1 else (*paths[parent], token))
    return paths


@settings(max_examples=150, deadline=None)
@given(
    SMALL, st.lists(SMALL, max_size=3), SMALL, st.integers(2, 16), st.integers(1, 6),
    st.sampled_from(["hierarchical", "parallel"]),
)  # fmt: skip
def test_drafts_are_those_of_the_papers_words(
    prompt: list[int], answers: list[list[int]], said: list[int], rows: int, branch: int, mode: Any
) -> None:
    strategy = LookaheadPain(decoding_length=rows, branch_length=branch, mode=mode)
    kept = kept_of(strategy)
    for answer in answers:
        other = Text([5])
        drafter = opened(strategy, kept)
        drafter.propose(other)
        other.say(drafter, answer)
        drafter.close()
    drafter, text = opened(strategy, kept), Text(list(prompt))
    for place, token in enumerate(said):
        text.say(drafter, [token]) if place else (text.tokens.append(token), text.sampler.commit(token))
        whole = max(0, place + 1 - (branch + 1))  # branches of its own that are whole by now
        own = [said[start : start + branch + 2] for start in range(whole)]
        counts = counted(prompt, answers, branch)
        for part in own:
            for stop in range(2, len(part) + 1):
                counts.setdefault(tuple(part[:stop]), [0.0, 0.0])[1] += 1
        draft = drafter.propose(text)
        assert paths_of(draft) == slow_draft(counts, text.tokens, strategy, rows)
        assert draft == drafter.propose(text), "it may be asked again"
        assert len(draft.tokens) < strategy.rows <= rows


@settings(max_examples=80, deadline=None)
@given(SMALL, SMALL, st.integers(1, 6))
def test_one_branch_follows_the_best_node(prompt: list[int], said: list[int], branch: int) -> None:
    strategy = LookaheadPain(mode="one-branch", branch_length=branch, outputs="own")
    drafter, text = opened(strategy, None), Text([*prompt, said[0]])
    text.sampler.commit(said[0])
    drafter.propose(text)
    for token in said[1:]:
        text.say(drafter, [token])
        counts = counted(prompt, [text.tokens[len(prompt) :]], 99)
        wanted: list[int] = []
        for start in range(2):
            line: list[int] = []
            query = tuple(text.tokens[-2:][start:])
            while len(line) < branch:
                children = {p: c for p, c in counts.items() if p[:-1] == (*query, *line)}
                if not children:
                    break
                line.append(max(children, key=lambda p: rank(children[p]))[-1])
            wanted = line or wanted
            if 1 + len(wanted) >= branch // 2:
                break
        draft = drafter.propose(text)
        assert draft.parents is None and list(draft.tokens) == wanted


def test_rows_are_split_among_sequences_that_draft_together() -> None:
    strategy = LookaheadPain(decoding_length=16, branch_length=15, outputs="none")
    prompt = [0, 1, 2, 3, 4, 5, 6] * 5
    asked = [Asked(Text([*prompt, 0]), opened(strategy, None)) for _ in range(20)]
    for each in asked:
        each.continuation.sampler.commit(0)
    for count, tokens in ((1, 15), (2, 7), (5, 2), (8, 1), (16, 0), (20, 0)):
        drafts = strategy.propose(asked[:count])
        assert [len(draft.tokens) for draft in drafts] == [tokens] * count


def test_nothing_is_learned_behind_an_end_token() -> None:
    strategy = LookaheadPain()
    kept = kept_of(strategy)
    drafter, text = opened(strategy, kept), Text([5, 1])
    text.sampler.commit(1)
    drafter.propose(text)
    text.say(drafter, [2, 3, END, 4, 4, 4])
    text.say(drafter, [4])
    drafter.close()
    drafter.close()
    assert [step.token for step in kept.after([1])] == [2] and [step.token for step in kept.after([2])] == [3]
    assert kept.after([3]) == kept.after([END]) == kept.after([4]) == kept.after([5]) == []


def test_a_drafter_that_opens_again_learns_nothing_twice() -> None:
    strategy = LookaheadPain()
    kept, text = kept_of(strategy), Text([5, 1])
    text.sampler.commit(1)
    for part in ([2, 3, 4], [2, 3, 4]):
        drafter = opened(strategy, kept)
        drafter.propose(text)
        text.say(drafter, part)
        drafter.close()
    frequencies = {step.token: step.frequency for step in kept.after([2, 3])}
    assert frequencies == {4: 2.0} and kept.after([1, 2])[0].frequency == 1.0


def test_what_another_branch_gave_comes_first_in_the_next_draft() -> None:
    strategy = LookaheadPain(decoding_length=8, branch_length=3, outputs="none")
    drafter, text = opened(strategy, None), Text([0, 1, 2, 2, 0, 1, 3, 4, 4, 0])
    text.sampler.commit(0)
    draft = drafter.propose(text)
    assert paths_of(draft) == [(1,), (1, 2), (1, 2, 2), (1, 3), (1, 3, 4)]
    rows = np.eye(SIZE, dtype=np.float32)[[1, 3, 0, 0, 4, 6]]
    for _ in range(2):
        accepted = drafter.accept(text, draft, ArrayScores(rows))
        assert [choice.token for choice in accepted.choices] == [1, 3] and accepted.path == (0,)
    text.say(drafter, [1, 3])
    again = drafter.propose(text)
    assert paths_of(again)[:2] == [(4,), (4, 6)]
    loose = opened(LookaheadPain(decoding_length=8, branch_length=3, outputs="none", exact=False), None)
    assert loose.accept(text, draft, ArrayScores(rows)).path == (0, 3, 4)


def test_options_that_make_no_sense_are_refused() -> None:
    for options, message in [
        ({"decoding_length": 1}, "greater than or equal to 2"),
        ({"decoding_length": 65}, "less than or equal to 64"),
        ({"mode": "tree"}, "hierarchical"),
        ({"branch": 3}, "Did you mean 'branch_length'"),
        ({"outputs": "all"}, "'shared', 'own' or 'none'"),
    ]:
        with pytest.raises(RecipeError, match=message):
            build("decoding", {"technique": "lookahead-pain", **options})
    strategy = LookaheadPain()
    with pytest.raises(ThriftyError, match="was not opened by the lookahead strategy"):
        strategy.propose([Asked(Text([1]), object())])  # type: ignore[arg-type]
