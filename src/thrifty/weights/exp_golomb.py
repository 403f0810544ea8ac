"""Exp-Golomb codes of whole numbers: the fewer bits, the nearer to 0.

Of order k a number n ≥ 0 is written as its last k binary digits behind the code of the rest m: m + 1 in binary behind
as many zeros as it has digits after the first. Signed ones go to 2n − 1 above 0 and to −2n below (as in H.264, §9.1.1).
It is the entropy coding of weights that BackSlash (arXiv 2504.16968) and DeepShape make small.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Bytes
from thrifty.errors import CheckpointError

Numbers = npt.NDArray[np.int64]
ORDERS = 24  # that are tried


def bits_of(numbers: Numbers, order: int = 0) -> int:
    """How many bits the codes of all numbers take."""
    digits = _digits((_unsigned(numbers) >> order) + 1)
    return int((2 * digits - 1 + order).sum())


def best_order(numbers: Numbers) -> int:
    """The order whose codes are the shortest: wide weights want a higher one than narrow ones."""
    return min(range(ORDERS), key=lambda order: bits_of(numbers, order))


def encode(numbers: Numbers, order: int = 0) -> Bytes:
    """The codes of int64 [n] one behind the other, the last byte filled with zeros."""
    # With 2^k added, the digits behind the first of m + 1 and the last k are those of one number.
    values = _unsigned(numbers.reshape(-1)) + (1 << order)
    digits = _digits(values)
    ends = np.cumsum(2 * digits - 1 - order)
    stream = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for place in range(int(digits.max(initial=0))):  # a digit of every number that has so many
        has = digits > place
        stream[ends[has] - 1 - place] = (values[has] >> place) & 1
    packed: Bytes = np.packbits(stream)
    return packed


def decode(codes: Bytes, count: int, order: int = 0) -> Numbers:
    """The first `count` numbers, int64. Raises CheckpointError where the codes end before."""
    stream = np.unpackbits(codes)
    ones = np.flatnonzero(stream)
    made = np.empty(count, np.int64)
    place = 0
    for number in range(count):
        where = np.searchsorted(ones, place)
        if where == len(ones) or 2 * int(ones[where]) - place + order >= len(stream):
            raise CheckpointError(f"entropy-coded weights end after {number} of {count} numbers: the file is damaged")
        first = int(ones[where])
        end = 2 * first - place + 1 + order
        value = int("".join(map(str, stream[first:end].tolist())), 2) - (1 << order)
        made[number] = (value + 1) // 2 if value % 2 else -(value // 2)
        place = end
    return made


def _unsigned(numbers: Numbers) -> Numbers:
    mapped: Numbers = np.where(numbers > 0, 2 * numbers - 1, -2 * numbers)
    return mapped


def _digits(values: Numbers) -> Numbers:
    """Binary digits of numbers from 1 to 2^52, exactly."""
    digits: Numbers = np.frexp(values.astype(np.float64))[1].astype(np.int64)
    return digits
