"""What a strategy proposes for one sequence, and what is accepted of it."""

from __future__ import annotations

from dataclasses import dataclass

from thrifty.decoding.sampling import Choice
from thrifty.errors import ThriftyError

COMMITTED = -1
"""The parent of a draft's tokens that continue the last committed token."""

MOST_ROWS = 64
"""Rows that a sequence may run in one step: its last committed token and its draft."""


@dataclass(frozen=True)
class Draft:
    """Tokens to try behind the last committed one. None at all for plain decoding.

    parents: for each token the index of the draft's token that it continues, an earlier one, or −1: the last committed
    token. Siblings differ. None: a line, each token continues the one before.
    both_ways: a line whose tokens, and the last committed one, all see each other: the canvas of a model that fills in
    masks.

    Raises ThriftyError for parents that are no tree.
    """

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] | None = None
    both_ways: bool = False

    def __post_init__(self) -> None:
        if self.parents is None:
            return
        if self.both_ways:
            raise ThriftyError("a draft is a tree and sees both ways; a canvas is a line: leave parents out")
        if len(self.parents) != len(self.tokens):
            raise ThriftyError(
                f"a draft of {len(self.tokens)} tokens has {len(self.parents)} parents: give one a token"
            )
        for index, parent in enumerate(self.parents):
            if not COMMITTED <= parent < index:
                raise ThriftyError(f"token {index} of a draft continues token {parent}; use an earlier one, or -1")
        branches = set(zip(self.parents, self.tokens, strict=True))
        if len(branches) != len(self.tokens):
            raise ThriftyError("two tokens of a draft are alike and continue the same token; leave one of them out")

    def parent(self, index: int) -> int:
        """The token that token `index` continues."""
        return index - 1 if self.parents is None else self.parents[index]

    def child(self, index: int, token: int) -> int | None:
        """The index of the `token` that continues token `index`, None where the draft has none."""
        if self.parents is None:
            after = index + 1
            return after if after < len(self.tokens) and self.tokens[after] == token else None
        branches = zip(self.parents, self.tokens, strict=True)
        return next((place for place, branch in enumerate(branches) if branch == (index, token)), None)

    def depths(self) -> list[int]:
        """How many tokens of the draft lie between each one and the last committed token, itself included."""
        depths: list[int] = []
        for index in range(len(self.tokens)):
            parent = self.parent(index)
            depths.append(1 if parent == COMMITTED else depths[parent] + 1)
        return depths

    def within(self, depth: int) -> Draft:
        """The draft without the tokens deeper than `depth`."""
        if self.parents is None:
            cut = self.tokens[: max(0, depth)]
            return self if len(self.tokens) <= depth else Draft(cut, both_ways=self.both_ways)
        depths = self.depths()
        if max(depths, default=0) <= depth:
            return self
        kept = [index for index, own in enumerate(depths) if own <= depth]
        place = {COMMITTED: COMMITTED} | {index: new for new, index in enumerate(kept)}
        parents = tuple(place[self.parents[index]] for index in kept)
        return Draft(tuple(self.tokens[index] for index in kept), parents)


NO_DRAFT = Draft()


@dataclass(frozen=True)
class Accepted:
    """What a step commits for one sequence: at least one choice; all but the last are tokens of its draft. None at all
    where `unfinished` says what the drafter goes on from: then no row stays.

    path: the indices of these, in order: a way through the draft from the last committed token. Their rows stay in
    the cache, all others are forgotten.
    """

    choices: tuple[Choice, ...]
    path: tuple[int, ...] = ()
    unfinished: object = None


def check_path(draft: Draft, accepted: Accepted) -> None:
    """Raise ThriftyError where what was accepted is no way through the draft."""
    tokens = [choice.token for choice in accepted.choices]
    if len(tokens) != len(accepted.path) + 1:
        raise ThriftyError(
            f"{len(tokens)} tokens were accepted with a path of {len(accepted.path)} of the draft's tokens: "
            "choose one more than the path has"
        )
    last = COMMITTED
    for index, token in zip(accepted.path, tokens, strict=False):
        if not 0 <= index < len(draft.tokens) or draft.parent(index) != last or draft.tokens[index] != token:
            raise ThriftyError(
                f"the path {accepted.path} of accepted tokens {tokens} is no way through the draft {draft.tokens} "
                f"with parents {draft.parents}"
            )
        last = index
