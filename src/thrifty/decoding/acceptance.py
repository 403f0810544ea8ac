"""How many tokens to draft: by how many were taken, and by what steps were measured to take."""

from __future__ import annotations

from thrifty.decoding.step_costs import StepCosts

REMEMBERED = 0.9  # what a step's drafts weigh beside those of the step after it
PRIOR, PRIOR_TOKENS = 0.7, 4.0  # the rate that is assumed before anything was judged, and the tokens that it stands for


class Acceptance:
    """The share of drafted tokens that one sequence takes (the papers' α), newer ones weighing more."""

    def __init__(self) -> None:
        self._tried, self._taken = PRIOR_TOKENS, PRIOR * PRIOR_TOKENS

    @property
    def rate(self) -> float:
        """α, 0 to 1."""
        return self._taken / self._tried

    def note(self, drafted: int, taken: int) -> None:
        """A draft of so many tokens was judged, and so many were taken: those behind the first that was not have not
        been tried.
        """
        self._tried = REMEMBERED * self._tried + min(taken + 1, drafted)
        self._taken = REMEMBERED * self._taken + taken


def expected_tokens(rate: float, length: int) -> float:
    """Tokens of a step with a draft of so many: (1 − α^(γ+1)) / (1 − α) (Leviathan et al. 2022, equation 1)."""
    return length + 1.0 if rate >= 1 else (1 - rate ** (length + 1)) / (1 - rate)


def best_length(rate: float, most: int, target: StepCosts, draft: StepCosts, sequences: int = 1) -> int:
    """The γ, 0 to `most`, that gives the most tokens a second: E(γ) / (γ·d + t(γ + 1)).

    d: seconds of a draft step of so many sequences; t(r): of a target's step of r rows each. Where rows cost the target
    nothing this is the papers' (1 − α^(γ+1)) / ((1 − α)(γc + 1)) with c = d / t (their theorem 3.8). All sequences are
    taken to be like this one.
    """
    step = draft.seconds(sequences)

    def rate_of(length: int) -> float:
        return expected_tokens(rate, length) / (length * step + target.seconds(sequences * (length + 1)))

    return max(range(most + 1), key=rate_of)
