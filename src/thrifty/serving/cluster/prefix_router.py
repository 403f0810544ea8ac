"""Which replica a prompt goes to: where most of its beginning was read before, with bounded imbalance.

The bound is that of "Consistent Hashing with Bounded Loads" (Mirrokni, Thorup, Zadimoghaddam, SODA 2018): of m requests
on n replicas, the next one included, none takes more than ceil(c · m / n). So a beginning that all prompts share fills
one replica up to that bound, and is then read by the next one.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

IMBALANCE = 1.25
BLOCKS = 200_000


class PrefixRouter:
    """Remembers which replica was sent which beginnings of prompts.

    imbalance: c of the bound, 1 or more; larger values prefer cached prefixes to even loads. blocks: most blocks that
    are remembered, about 200 bytes each; those that were not sent for the longest time are forgotten first.
    Raises ValueError for an imbalance below 1, or no blocks.
    """

    def __init__(self, imbalance: float = IMBALANCE, blocks: int = BLOCKS) -> None:
        if imbalance < 1 or blocks < 1:
            raise ValueError(f"imbalance is {imbalance} and blocks {blocks}; both must be 1 or more")
        self._imbalance = imbalance
        self._most = blocks
        self._holders: OrderedDict[bytes, set[str]] = OrderedDict()
        self._sessions: OrderedDict[str, str] = OrderedDict()
        self._last_sent: dict[str, int] = {}
        self._sent = 0

    def ranked(self, blocks: Sequence[bytes], loads: Mapping[str, int], session: str | None = None) -> list[str]:
        """The replicas, best first. blocks: names of the prompt's beginnings, shortest first (see
        `prompt_blocks.blocks_of`). loads: requests under way by replica. session: of a conversation whose cache lies on
        the replica that has it; that one comes first, whatever its load.
        """
        bound = self.bound(loads)
        known = self.known_blocks(blocks, loads)
        home = self._sessions.get(session) if session is not None else None

        def place(replica: str) -> tuple[bool, bool, int, int, int]:
            is_full = loads[replica] >= bound
            return replica != home, is_full, -known[replica], loads[replica], self._last_sent.get(replica, -1)

        return sorted(loads, key=place)

    def bound(self, loads: Mapping[str, int]) -> int:
        """Most requests that a replica may have, the next one included."""
        return math.ceil(self._imbalance * (sum(loads.values()) + 1) / max(1, len(loads)))

    def known_blocks(self, blocks: Sequence[bytes], replicas: Mapping[str, object]) -> dict[str, int]:
        """How many blocks of a prompt's beginning each replica was sent before."""
        known = dict.fromkeys(replicas, 0)
        left = set(replicas)
        for count, block in enumerate(blocks, 1):
            left &= self._holders.get(block, set())
            if not left:
                break
            known.update(dict.fromkeys(left, count))
        return known

    def sent(self, replica: str, blocks: Sequence[bytes], session: str | None = None) -> None:
        """A prompt went to a replica, which knows its beginnings from now on."""
        self._last_sent[replica] = self._sent
        self._sent += 1
        for block in reversed(blocks):  # a beginning outlives what goes on from it
            self._holders.setdefault(block, set()).add(replica)
            self._holders.move_to_end(block)
        while len(self._holders) > self._most:
            self._holders.popitem(last=False)
        if session is not None:
            self._sessions[session] = replica
            self._sessions.move_to_end(session)
            while len(self._sessions) > self._most:
                self._sessions.popitem(last=False)

    def keep_only(self, replicas: Mapping[str, object]) -> None:
        """Forget replicas that are no more. What they were sent is forgotten as it grows old."""
        for replica in [name for name in self._last_sent if name not in replicas]:
            del self._last_sent[replica]
        for session in [name for name, home in self._sessions.items() if home not in replicas]:
            del self._sessions[session]


class RoundRobinRouter(PrefixRouter):
    """One replica after the other, whatever the prompt: what prefixes are measured against. Sessions stay."""

    def known_blocks(self, blocks: Sequence[bytes], replicas: Mapping[str, object]) -> dict[str, int]:
        """None."""
        return dict.fromkeys(replicas, 0)

    def ranked(self, blocks: Sequence[bytes], loads: Mapping[str, int], session: str | None = None) -> list[str]:
        """The one that was sent a prompt the longest time ago comes first."""
        home = self._sessions.get(session) if session is not None else None
        return sorted(loads, key=lambda replica: (replica != home, self._last_sent.get(replica, -1)))


ROUTERS: dict[str, type[PrefixRouter]] = {"prefix": PrefixRouter, "round-robin": RoundRobinRouter}
