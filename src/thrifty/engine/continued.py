"""A sequence in native code, from one call to the next."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from thrifty.decoding.native_sampling import native_sampler
from thrifty.kernels import dispatch

if TYPE_CHECKING:
    from thrifty.decoding.sampling import Sampler


class Continued:
    """A sequence as native code goes on with it: the native object, and the block of positions that it has turned."""

    def __init__(self, sampler: Sampler, ends: Collection[int]) -> None:
        """ends: tokens that end the answer."""
        self.native = dispatch.require().Continuation(native_sampler(sampler), sorted(ends))
        self.block = -1
