"""What `thrifty compress` says of its time, its phases and a stop."""

from __future__ import annotations

import pytest

from thrifty.cli.shared.compressing import Work, stopped
from thrifty.cli.shared.progress import Beside, Steps
from thrifty.weights.results import LAYERS, Phase


def test_a_time_is_told_once_and_before(capsys: pytest.CaptureFixture[str]) -> None:
    with Work("m") as work:
        work.show(0, 30)
        work.tell(Phase("gptq", LAYERS, 1, 30, 290.0, 1))
        work.tell(Phase("gptq", LAYERS, 2, 30, 280.0, 2))
        work.tell(Phase("lora-ft", "training", 1, 20, 600.0))
        work.tell(Phase("lora-ft", "training", 2, 20, 570.0))
        work.tell(Phase("xtc", "training", 1, 20, 1.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "gptq: about 5 min for its layers, by the first layer",
        "lora-ft: about 10 min for training, by the first step",
    ]


def test_a_part_is_told_beside_the_steps_while_it_lasts() -> None:
    steps = Steps("compressing m", 30)
    steps.advance()
    steps.show_beside(Beside("lora-ft, training", 3, 20, 170.0))
    assert steps.line(60) == "compressing m: 1 of 30 in 60 s; lora-ft, training: 3 of 20, about 3 min left of it"
    steps.show_beside(Beside("lora-ft, training", 20, 20, 0.0))
    assert steps.line(60) == "compressing m: 1 of 30 in 60 s, about 29 min left"
    steps.pace = 2.0
    assert steps.line(60) == "compressing m: 1 of 30 in 60 s, about 58 s left"


def test_a_stop_says_what_is_lost() -> None:
    assert stopped(None) == "stopped: what is done is kept, and the same command goes on from there"
    assert stopped(Phase("xtc", "training", 37, 50, 9.0, 20)).endswith(
        "of 37 steps of training (xtc) the last 17 are taken again"
    )
    assert "taken again" not in stopped(Phase("xtc", "training", 40, 50, 9.0, 40))


def test_ctrl_c_in_a_training_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), Work("m") as work:
        work.show(0, 30)
        work.tell(Phase("nxmiformer", "training", 5, 20, 1.0))
        raise KeyboardInterrupt
    assert "of 5 steps of training (nxmiformer) the last 5 are taken again" in capsys.readouterr().err.replace(
        "\n", " "
    )
