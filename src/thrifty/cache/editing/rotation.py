"""Renumbering: keys that were rotated at one position, rotated to another.

RoPE turns each pair (x₁, x₂) of a key by the angle position·frequency and scales it by the attention factor that some
scalings carry: R(p) = a·[[cos pθ, −sin pθ], [sin pθ, cos pθ]]. Going from p to q multiplies by R(q)·R(p)⁻¹, a turn by
(q−p)θ without scale, whose cosine and sine follow from the tables of both positions:
cos = (c_q·c_p + s_q·s_p)/a², sin = (s_q·c_p − c_q·s_p)/a², with a² = c_p² + s_p².
"""

from __future__ import annotations

import numpy as np

from thrifty.arrays import Floats, Integers
from thrifty.cache.model_info import ModelInfo
from thrifty.errors import RecipeError


def rotate_again(model: ModelInfo, layer: int, keys: Floats, before: Integers, after: Integers) -> Floats:
    """keys fp32 [..., n, head_dim] rotated at positions `before` int64 [n] → rotated at `after`, fp32.

    Channels beyond the rotated dimension pass through. Half-split convention: channel i pairs with i + dimension/2.
    Raises RecipeError where the model brought no RoPE tables.
    """
    if model.rotation is None:
        raise RecipeError("this model has no RoPE tables to renumber with: use a policy that keeps original positions")
    cos_before, sin_before = model.rotation(layer, before)
    cos_after, sin_after = model.rotation(layer, after)
    scale = np.square(cos_before) + np.square(sin_before)
    cos = (cos_after * cos_before + sin_after * sin_before) / scale
    sin = (sin_after * cos_before - cos_after * sin_before) / scale
    half = cos.shape[-1]
    first, second, rest = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin, rest), axis=-1)
