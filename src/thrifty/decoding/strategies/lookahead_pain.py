"""Lookahead (PAIN): trees of drafts from tries of the prompt and of earlier answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from thrifty.card import Card
from thrifty.decoding.draft import COMMITTED, MOST_ROWS, NO_DRAFT, Accepted, Draft
from thrifty.decoding.kept import Keeps
from thrifty.decoding.scores import Scores
from thrifty.decoding.services import ModelFacts, Services
from thrifty.decoding.strategy import Asked, Continuation, DecodingStrategy, Drafter
from thrifty.decoding.trie import Occurrences, OutputTrie, Trie
from thrifty.decoding.trie_nodes import Roots, behind, best, drafted, followers, path_to, tree
from thrifty.errors import ThriftyError
from thrifty.registry import technique

Mode = Literal["hierarchical", "parallel", "one-branch"]


@technique(
    stage="decoding",
    card=Card(
        title="Lookahead: An Inference Acceleration Framework for Large Language Model with Lossless Generation "
        "Accuracy",
        paper="arXiv:2312.12728",
        year=2023,
        mechanism="Tries hold what followed every token in the prompt and in earlier answers; what followed the newest "
        "tokens most often is verified as one tree of drafts in one forward pass.",
        claim="Llama2-7B-chat on an A100: 2.06 times as fast on Dolly, 2.69 times on GSM8K; AntGLM-10B with retrieval "
        "5.36 times; the output does not change",
        limits=(
            "16 rows a step by default, the paper's 64: on a CPU a row more costs about a fifth of a whole step",
            "drafted are, by the paper's words, half the rows by output count, the rest by prompt + 1e-4 output count",
            "where more match than fit, a comparison of the released code never holds: it takes output counts alone",
            "of equally frequent nodes those come first that the prompt had first, then outputs; released: either",
            "one-branch weighs prompt and outputs as the trees do; in the released code the two are exchanged there",
            "parallel branches share the rows that they begin alike with; which tokens are drafted is as released",
            "the rows are split once among sequences that draft together; the released code divides twice",
            "a prompt's trie is the prompt itself, looked up when asked for: the bound of 65,536 nodes is not needed",
            "prompts are kept whole; released: without the first token and all from the first end token on",
            "outputs are pruned at each answer's end; the released code waits until 1024 trees were touched",
            "all trees share `nodes` nodes, and all are pruned where none is left; the paper has no such bound",
            "outputs are kept where the budget has room, and are forgotten where requests need it",
            'an answer\'s newest tokens join the outputs late, as released; with outputs = "own" at once',
            "outputs are shared by requests of one salt (one API key): how fast an answer comes may tell of another's",
            'outputs = "own", or a request with share_prefix = False, neither reads nor adds to what others share',
            "rows behind a tree's first branch add numbers up in another order, so that close calls may fall otherwise",
            "exact = true (not the paper's): what is taken of such a branch runs again, as a line before the next tree",
            "of the released code's stop words, which are not looked up alone, there is no option",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class LookaheadPain(DecodingStrategy):
    """decoding_length: rows of a step, split among sequences that draft together. branch_length: tokens of a branch.
    mode: a tree (hierarchical), its branches one by one as long as they fit (parallel), or the likeliest branch alone.
    query: newest tokens that are looked up, fewer where they give less than a branch. outputs: drafts from earlier
    answers of the same salt, from its own alone, or from none. output_nodes: a tree with more is pruned. nodes: of all
    trees together, 16 bytes each. exact: answers are those of plain decoding to the bit; false: but for rounding.
    """

    decoding_length: Annotated[int, Field(ge=2, le=MOST_ROWS)] = 16
    branch_length: Annotated[int, Field(ge=1, le=MOST_ROWS - 1)] = 12
    mode: Mode = "hierarchical"
    query: Annotated[int, Field(ge=1, le=16)] = 2
    outputs: Literal["shared", "own", "none"] = "shared"
    output_nodes: Annotated[int, Field(ge=1, le=65_536)] = 512
    nodes: Annotated[int, Field(ge=1024, le=1 << 20)] = 65_536
    exact: bool = True

    @property
    def rows(self) -> int:
        """See DecodingStrategy."""
        return min(self.decoding_length, 1 + self.branch_length) if self.mode == "one-branch" else self.decoding_length

    def keeps(self, facts: ModelFacts) -> Keeps | None:
        """See DecodingStrategy."""
        if self.outputs != "shared":
            return None
        key, size = ("lookahead-pain", self.branch_length, self.output_nodes, self.nodes), facts.vocabulary_size
        return Keeps(
            key, OutputTrie.bytes_of(size, self.nodes), partial(OutputTrie, size, self.nodes, self.output_nodes)
        )

    def open(self, services: Services) -> Drafter:
        """See DecodingStrategy."""
        kept = services.kept if isinstance(services.kept, OutputTrie) else None
        return TrieDrafter(self, kept, services.facts.end_ids)

    def propose(self, asked: Sequence[Asked]) -> list[Draft]:
        """A tree a sequence, of an equal share of the rows each (section 4.4: decoding length // batch)."""
        share = max(1, self.decoding_length // max(1, len(asked)))
        return [_drafter(sequence).draft(sequence.continuation, share) for sequence in asked]


class TrieDrafter(Drafter):
    """Its prompt's trie, and the outputs': kept ones, or those of its own answer."""

    def __init__(self, strategy: LookaheadPain, kept: OutputTrie | None, end_ids: frozenset[int]) -> None:
        """kept: of answers of the same salt; it learns this one. None: outputs are the answer's own, if any."""
        self.strategy = strategy
        self._kept = kept
        self._end_ids = end_ids
        self._prompt: Occurrences | None = None
        self._own = Occurrences()
        self._pending: list[int] = []  # the newest tokens of the answer, whose branches are not whole
        self._learned: set[int] = set()
        self._ended = False
        self._taken: tuple[int, Sequence[int]] = (0, ())  # tokens that another branch gave, and where they come

    def propose(self, continuation: Continuation) -> Draft:
        """See Drafter."""
        return self.draft(continuation, self.strategy.decoding_length)

    def draft(self, continuation: Continuation, rows: int) -> Draft:
        """At most `rows` − 1 tokens: those that another branch gave in the last step, then what the tries have."""
        if self._prompt is None:
            self._prompt = self._begin(continuation)
        place, taken = self._taken
        line = tuple(taken[: rows - 1]) if place == len(continuation.tokens) else ()
        newest = [*continuation.tokens[-self.strategy.query :], *line][-self.strategy.query :]
        return behind(line, self._retrieved(self._prompt, newest, min(rows, self.strategy.rows) - 1 - len(line)))

    def accept(self, continuation: Continuation, draft: Draft, scores: Scores) -> Accepted:
        """The sampler's own choices, as long as the draft has them, and its first branch where rows are to be exact:
        what follows is drafted once more.
        """
        accepted = super().accept(continuation, draft, scores)
        if not self.strategy.exact:
            return accepted
        first = next((at for at, index in enumerate(accepted.path) if index != at), len(accepted.path))
        tokens = [choice.token for choice in accepted.choices]
        self._taken = (len(continuation.tokens) + first + 1, tokens[first + 1 :])
        return Accepted(accepted.choices[: first + 1], accepted.path[:first])

    def committed(self, tokens: Sequence[int]) -> None:
        """Learn them, up to a token that ends an answer."""
        for token in tokens:
            self._ended = self._ended or token in self._end_ids
            if not self._ended:
                self._learn(token)

    def close(self) -> None:
        """The answer's last branches are put as they are, and trees that have become too large are pruned."""
        while self._kept is not None and len(self._pending) > 1:
            self._put()
        self._pending.clear()
        if self._kept is not None:
            self._kept.prune(self._learned)
        self._learned.clear()

    def _begin(self, continuation: Continuation) -> Occurrences:
        """The prompt's trie. Of an answer that goes on (after a pause, of a fork) what was said is not put again."""
        said = continuation.sampler.position
        tokens, prompt = continuation.tokens, len(continuation.tokens) - said
        if self._kept is None and self.strategy.outputs != "none":
            self._own.extend(tokens[prompt : len(tokens) - 1])
        self.committed(tokens[len(tokens) - 1 :] if said else ())
        return Occurrences(tokens[:prompt])

    def _retrieved(self, prompt: Trie, query: Sequence[int], most: int) -> Draft:
        """What followed the longest of the newest tokens that gives a branch's length, else the last one."""
        mode, depth = self.strategy.mode, self.strategy.branch_length
        enough, outputs = depth // 2 if mode == "one-branch" else depth, self._own if self._kept is None else self._kept
        found = NO_DRAFT
        for start in range(len(query)) if most > 0 else ():
            roots = followers(prompt, outputs, query[start:])
            if roots.nodes:
                found = SHAPES[mode](roots, depth, most)
            if 1 + len(found.tokens) >= enough:
                break
        return found

    def _learn(self, token: int) -> None:
        if self._kept is not None:
            self._pending.append(token)
            if len(self._pending) > self.strategy.branch_length + 1:
                self._put()
        elif self.strategy.outputs != "none":
            self._own.extend((token,))

    def _put(self) -> None:
        """The branch behind the oldest pending token, one deeper than drafts are, as released."""
        assert self._kept is not None
        first, *branch = self._pending
        self._kept.put(first, branch)
        self._learned.add(first)
        del self._pending[0]


def hierarchical(roots: Roots, depth: int, most: int) -> Draft:
    """The tree of the `most` best nodes: half of the rows are for those that are most frequent in outputs."""
    chosen = {node.place: node for node in best(roots, depth, (most + 1) // 2, lambda node: node.output)}
    for node in best(roots, depth, most, lambda node: node.rank):
        if len(chosen) == most:
            break
        chosen.setdefault(node.place, node)
    return tree(chosen.values())


def parallel(roots: Roots, depth: int, most: int) -> Draft:
    """The branches of the hierarchical draft, one after the other, while they have no more tokens together than it has:
    what two of them begin alike with counts in both.
    """
    whole = hierarchical(roots, depth, most)
    left, kept = len(whole.tokens), set[int]()
    for leaf in sorted(set(range(left)) - {whole.parent(index) for index in range(left)}):
        path = path_to(whole, leaf)[:left]
        kept.update(path)
        left -= len(path)
    places = {COMMITTED: COMMITTED} | {index: new for new, index in enumerate(sorted(kept))}
    tokens = tuple(whole.tokens[index] for index in sorted(kept))
    return drafted(tokens, tuple(places[whole.parent(index)] for index in sorted(kept)))


def one_branch(roots: Roots, depth: int, most: int) -> Draft:
    """The best node, the best of its children, and so on."""
    tokens: list[int] = []
    nodes = list(roots.nodes)
    while nodes and len(tokens) < min(depth, most):
        node = max(nodes, key=lambda node: node.rank)  # of equal ones the first
        tokens.append(node.token)
        nodes = roots.behind(node)
    return Draft(tuple(tokens))


SHAPES: dict[Mode, Callable[[Roots, int, int], Draft]] = {
    "hierarchical": hierarchical,
    "parallel": parallel,
    "one-branch": one_branch,
}


def _drafter(sequence: Asked) -> TrieDrafter:
    if not isinstance(sequence.drafter, TrieDrafter):
        raise ThriftyError(f"{sequence.drafter!r} was not opened by the lookahead strategy")
    return sequence.drafter
