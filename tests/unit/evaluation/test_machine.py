"""The table of machines, and this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from thrifty.evaluation.roofline import machine
from thrifty.evaluation.roofline.machine import Machine, MachineError


def test_the_table_has_fifteen_machines_and_every_entry_says_where_it_is_from() -> None:
    assert len(machine.names()) >= 15
    for name in machine.names():
        one = machine.named(name)
        assert one.source and one.title
        assert 10e9 < one.bandwidth < 20e12 and 4 << 30 <= one.memory <= 2 << 40
        for kind in ("int4-g32", "int8", "bf16", "f32"):
            assert one.rate(kind) > 1e11


@pytest.mark.parametrize("name", machine.names())
def test_narrower_numbers_are_never_slower(name: str) -> None:
    rates = machine.named(name).rates
    ordered = [rates[kind] for kind in ("fp32", "bf16", "int8", "int4") if kind in rates]
    assert ordered == sorted(ordered)


def test_units_are_bytes_and_operations_a_second() -> None:
    card = machine.named("rtx-4090")
    assert card.bandwidth == 1008e9 and card.memory == 24 << 30
    assert card.rates["bf16"] == pytest.approx(165.2e12)


def test_an_unknown_name_says_the_nearest() -> None:
    with pytest.raises(MachineError, match="no machine is called 'rtx-4091'. Did you mean 'rtx-4090'"):
        machine.named("rtx-4091")


def test_codes_meet_8_bit_activations_where_the_machine_can() -> None:
    full = Machine("full", 1e9, {"int8": 4e9, "bf16": 2e9, "fp32": 1e9}, 1)
    assert (full.rate("int4-g32"), full.rate("bf16"), full.rate("f32")) == (4e9, 2e9, 1e9)
    assert full.rate("q4_k") == full.rate("iq4_xs") == 4e9 and full.rate("f16") == 1e9
    plain = Machine("plain", 1e9, {"fp32": 1e9}, 1)
    assert plain.rate("int4-g32") == plain.rate("bf16") == 1e9
    with pytest.raises(MachineError, match="none that multiplies 'bf16' weights; add one of bf16, fp16, fp32"):
        Machine("odd", 1e9, {"int8": 4e9}, 1).rate("bf16")


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.roofline, "read_bandwidth", lambda threads, megabytes: (12.5, "native"))
    monkeypatch.setattr(machine.roofline, "gemm_rate", lambda: (300.0, "native"))
    found = machine.this_machine(1)
    assert found.bandwidth == 12.5e9 and found.rates["int8"] == 300e9
    assert found.rates["fp32"] > 1e8 and found.rates["bf16"] > 1e7
    assert found.memory > 1 << 28
    assert "cores" in found.title


@pytest.mark.parametrize(
    ("sizes", "megabytes"), [(["48K", "1024K", "32768K"], 134), (["2M", "300M"], 512), (["32K"], 128), ([], 512)]
)
def test_a_sparing_measurement_reads_four_times_the_largest_cache(
    sizes: list[str], megabytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, size in enumerate(sizes):
        (tmp_path / f"index{place}").mkdir()
        (tmp_path / f"index{place}" / "size").write_text(size + "\n")
    monkeypatch.setattr(machine.roofline, "CACHES", tmp_path)
    assert machine.roofline.least_megabytes() == megabytes
