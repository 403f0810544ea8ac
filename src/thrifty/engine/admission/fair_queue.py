"""Who is admitted next: the highest priority, of these the owner that was served least, of its requests the oldest.

Being served is counted in tokens, as the virtual token counter does it (Sheng et al., "Fairness in Serving Large
Language Models", OSDI 2024, arXiv:2401.00588, algorithm 2): a computed prompt token is 1, an answered one 2; an owner
that comes back begins at the least of those who are there, so that nobody saves up turns. Nobody starves: an owner's
count stands still while it waits, and a request gains a priority for every `PATIENCE` seconds, or as many as bring it
to the highest one that waits after `STEPS` times as long.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from thrifty.engine.running import Running

PATIENCE = 30.0
STEPS = 10


class FairQueue:
    """Sequences that wait for their admission, in the order of their arrival when it is read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: list[Running] = []
        self._since: dict[int, float] = {}
        self._kinds: Counter[tuple[str, int]] = Counter()
        self._served: dict[str, float] = {}  # by those who are over, and what an owner began with

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Running]:
        return iter(self._waiting)

    def __contains__(self, sequence: Running) -> bool:
        return any(own is sequence for own in self._waiting)

    def is_full(self, owner: str, most: int) -> bool:
        """Whether one more of an owner would be too many. Where several owners wait, each may have its even part of the
        queue, whatever the others have sent.
        """
        if len(self._waiting) < most:
            return False
        held = Counter(own.owner for own in self._waiting)
        owners = len(held.keys() | {owner})
        return owners == 1 or held[owner] >= max(1, most // owners)

    def append(self, sequence: Running, running: Iterable[Running] = ()) -> None:
        """Let a sequence wait. running: all that were admitted and are not over."""
        owner, running = sequence.owner, list(running)
        present = {own.owner for own in (*self._waiting, *running)}
        if not present:
            self._served.clear()  # nobody waited while they were served
        elif owner not in present:
            counts = self._counts(running)
            least = min(counts.get(own, 0.0) for own in present)
            self._served = {own: count for own, count in self._served.items() if own in present or count > least}
            self._served[owner] = max(least, self._served.get(owner, 0.0))
        self._waiting.append(sequence)
        self._since[sequence.arrival] = self._clock()
        self._kinds[owner, sequence.priority] += 1

    def remove(self, sequence: Running) -> None:
        """It waits no longer."""
        place = next(place for place, own in enumerate(self._waiting) if own is sequence)
        del self._waiting[place], self._since[sequence.arrival]
        kind = sequence.owner, sequence.priority
        self._kinds[kind] -= 1
        if not self._kinds[kind]:
            del self._kinds[kind]

    def first(self, running: Iterable[Running]) -> Running:
        """Who is to be admitted next. running: all that were admitted and are not over."""
        if len(self._kinds) == 1:
            return self._waiting[0]
        counts, now = self._counts(running), self._clock()
        highest = max(own.priority for own in self._waiting)

        def place(own: Running) -> tuple[float, float, int]:
            steps = int((now - self._since[own.arrival]) / PATIENCE)
            gained = max(steps, (highest - own.priority) * steps // STEPS)
            return -min(highest, own.priority + gained), counts.get(own.owner, 0.0), own.arrival

        return min(self._waiting, key=place)

    def settle(self, sequence: Running) -> None:
        """A sequence that was admitted is over: what it cost stays its owner's."""
        self._served[sequence.owner] = self._served.get(sequence.owner, 0.0) + sequence.cost

    def _counts(self, running: Iterable[Running]) -> dict[str, float]:
        counts = dict(self._served)
        for own in running:
            counts[own.owner] = counts.get(own.owner, 0.0) + own.cost
        return counts
