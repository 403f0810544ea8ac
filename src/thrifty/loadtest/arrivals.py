"""When requests come: constant, Poisson or in bursts, as vLLM's benchmark draws them."""

from __future__ import annotations

import math
import random

from thrifty.loadtest.errors import LoadError


def arrival_times(count: int, rate: float, burstiness: float, chance: random.Random) -> list[float]:
    """Seconds after the start at which each of `count` requests is sent, ascending.

    rate: requests a second; infinite: all at once. burstiness: the shape of the gamma distribution of the time between
    two requests. 1: a Poisson process; less: more in bursts; infinite: at equal distances. The times are stretched so
    that the last request comes at count / rate whatever was drawn, as in vLLM's `get_request`.

    Raises LoadError where count, rate or burstiness is not positive.
    """
    for name, value in (("requests", count), ("rate", rate), ("burstiness", burstiness)):
        if not value > 0:
            raise LoadError(f"{name} is {value}; it must be more than 0")
    if math.isinf(rate):
        return [0.0] * count
    if math.isinf(burstiness):
        return [(place + 1) / rate for place in range(count)]
    times, now = [], 0.0
    for _ in range(count):
        now += chance.gammavariate(burstiness, 1.0 / (rate * burstiness))
        times.append(now)
    stretch = count / rate / now if now else 1.0
    return [time * stretch for time in times]
