"""Tables of values that codes of 4 bits stand for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

CODEBOOKS: Mapping[str, npt.NDArray[np.int8]] = {
    # `kvalues_iq4nl` of ggml, denser about zero
    "iq4": np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8),
}
