"""What training makes small."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def next_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy in nats of each token but the first, given those before it.

    logits: [sequences, tokens, vocabulary]. tokens: int64 [sequences, tokens].
    """
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def divergence(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean Kullback-Leibler divergence KL(teacher ‖ student) of the next token, in nats.

    Both [..., vocabulary]. temperature T: both are softened by it, and the result is multiplied by T² so that gradients
    keep their size (Hinton et al., arXiv 1503.02531, §2).
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1).flatten(0, -2)
    wanted = F.log_softmax(teacher.float() / temperature, dim=-1).flatten(0, -2)
    return F.kl_div(student, wanted, reduction="batchmean", log_target=True) * temperature**2


def hidden_error(hidden: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two hidden states of one shape."""
    return F.mse_loss(hidden.float(), teacher.float())
