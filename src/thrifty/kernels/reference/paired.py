"""Two weights in one 16-bit word: a magnitude that both may have, and for each a sign and whether it has it.

Bits 15 and 14: the signs of the first and the second; 13 and 12: whether they have the value; 11 to 7: the exponent,
less 112; 6 to 0: the mantissa, as bf16 has both (PuzzleMoE, arXiv 2511.04805, §3.3).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from thrifty.arrays import BFLOAT16, Array, Floats
from thrifty.errors import KernelError

Words = npt.NDArray[np.uint16]
BIAS = 112  # the least exponent that a word holds, as bf16 writes it
LEAST = 2.0 ** (BIAS - 127)
LARGEST = 2.0 ** (BIAS + 32 - 127)
_BODY = np.uint16(0x0FFF)


def join(magnitude: Floats, signs: tuple[Array, Array], has: tuple[Array, Array]) -> Words:
    """Words uint16 of magnitudes fp32 ≥ 0, with whether each member is negative and has the value, all of one shape.

    A magnitude below 2^−15 is rounded to that or to nothing, whichever is nearer. Raises KernelError for one of 2^17 or
    more, or that is no number.
    """
    if not (magnitude < LARGEST * (1 - 2**-8)).all():
        largest = float(magnitude[~(magnitude < LARGEST * (1 - 2**-8))][0])
        raise KernelError(
            f"a weight's magnitude is {largest:g}; words that two weights share hold finite ones below {LARGEST:g}"
        )
    nothing = magnitude < LEAST / 2
    bits = np.maximum(magnitude, np.float32(LEAST)).astype(BFLOAT16).view(np.uint16)
    words = bits - np.uint16(BIAS << 7)
    for member, (negative, own) in enumerate(zip(signs, has, strict=True)):
        words = words | (negative.astype(np.uint16) << np.uint16(15 - member))
        words = words | ((own & ~nothing).astype(np.uint16) << np.uint16(13 - member))
    return words.astype(np.uint16)


def split(words: Words, member: int) -> Array:
    """The bf16 numbers of member 0 or 1."""
    sign = (words << np.uint16(member)) & np.uint16(0x8000)
    has = (words >> np.uint16(13 - member)) & np.uint16(1)
    bits = np.where(has != 0, sign | ((words & _BODY) + np.uint16(BIAS << 7)), np.uint16(0))
    return bits.astype(np.uint16).view(BFLOAT16)
