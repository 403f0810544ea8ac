"""Processes that train together: what they exchange is the mean, or the sum, over all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from training.recall.team import Team, together


def write_what_is_exchanged(team: Team, folder: Path) -> None:
    """A process's part: gradients that tell the processes apart, exchanged."""
    torch.set_num_threads(1)
    weights = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(5))]
    for number, one in enumerate(weights[:2]):
        one.grad = torch.full_like(one, float(10 * team.rank + number))
    team.average_gradients(weights)
    found = {
        "gradients": [None if one.grad is None else one.grad.flatten().tolist() for one in weights],
        "totals": team.total(1.0, team.rank),
        "share": team.share(7),
    }
    (folder / f"{team.rank}.json").write_text(json.dumps(found))


@pytest.mark.parametrize(("size", "mean", "share"), [(1, 0.0, 7), (2, 5.0, 3)])
@pytest.mark.long
def test_gradients_are_averaged_and_numbers_summed(tmp_path: Path, size: int, mean: float, share: int) -> None:
    together(size, write_what_is_exchanged, tmp_path)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(size)]
    for found in told:
        assert found["gradients"] == [[mean] * 6, [mean + 1] * 4, None]
        assert found["totals"] == [size, sum(range(size))]
        assert found["share"] == share
    assert len(list(tmp_path.iterdir())) == size
