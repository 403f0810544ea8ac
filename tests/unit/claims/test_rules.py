"""Verdicts follow from figures by each claim's rule, at the border and on both sides of it."""

from __future__ import annotations

import pytest

from thrifty import claims
from thrifty.claims.harness.claim import Figures, Verdict, combined

HOLDS, PARTLY, FAILS = Verdict.HOLDS, Verdict.PARTLY, Verdict.FAILS


def kl(ours: list[float], theirs: list[float]) -> Figures:
    figures: Figures = {"parts": len(ours)}
    for part, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        figures |= {f"ada-kv_kl_{part}": one, f"snapkv_kl_{part}": other}
    return figures


def pruned(*levels: tuple[float, float]) -> Figures:
    figures: Figures = {}
    for level, (share, recovery) in zip((98, 95, 91), levels, strict=True):
        figures |= {f"pruned_{level}": share, f"recovery_{level}": recovery}
    return figures


def rivals(**found: tuple[float, float]) -> Figures:
    """Recall and KL of each."""
    figures: Figures = {}
    for name, (recall, kl) in found.items():
        figures |= {f"{name}_recall": recall, f"{name}_kl": kl}
    return figures


def r2(full: float, ours: float, other: float) -> Figures:
    return {"full_recall": full, "headkv-r2_recall": ours, "snapkv_recall": 0.5, "ada-kv_recall": other}


THREE = {"snapkv": (0.4, 0.3), "pyramidkv": (0.5, 0.3), "ada-kv": (0.3, 0.2)}


def merging(kl: tuple[float, float], recovery: tuple[float, float]) -> Figures:
    """KVMerger at 50 and 35 % beside an H2O of KL 0.2 and recovery 0.9."""
    figures: Figures = {}
    for share, one, other in zip((50, 35), kl, recovery, strict=True):
        figures |= {f"bias_{share}_kl": one, f"bias_{share}_recovery": other}
        figures |= {f"h2o_{share}_kl": 0.2, f"h2o_{share}_recovery": 0.9}
    return figures


def kvzip(**changes: float) -> Figures:
    figures: Figures = {"kvzip_recovery": 0.98, "smaller": 3.0, "cost": 2.0}
    for task in ("recall", "turns"):
        figures |= {f"full_{task}": 1.0, f"kvzip_{task}": 0.98, f"snapkv_{task}": 0.5}
    return figures | changes


def quest(**changes: float) -> Figures:
    return {"faster_16": 2.23, "recovery_16": 0.98, "recall": 0.9, "full_recall": 0.9} | changes


def turns(**changes: float) -> Figures:
    """First and later turns of the full cache, eviction and quantisation."""
    figures: Figures = {"full_first": 1.0, "full_later": 1.0, "evicting_first": 0.9, "evicting_later": 0.5}
    return figures | {"quantised_later": 0.9} | changes


CASES: list[tuple[str, Figures, Verdict]] = [
    ("scbench", turns(), HOLDS),
    ("scbench", turns(quantised_later=0.89), PARTLY),
    ("scbench", turns(evicting_first=0.89), PARTLY),
    ("scbench", turns(evicting_later=0.51), PARTLY),
    ("scbench", turns(evicting_first=0.1, evicting_later=0.9, quantised_later=0.1), FAILS),
    ("scbench", turns(full_later=0.0, evicting_later=0.0, quantised_later=0.0), FAILS),
    ("kivi", {"recovery_2": 12.74 / 13.50, "memory_ratio": 2.6}, HOLDS),
    ("kivi", {"recovery_2": 0.943, "memory_ratio": 2.6}, PARTLY),
    ("kivi", {"recovery_2": 1.0, "memory_ratio": 2.59}, PARTLY),
    ("kivi", {"recovery_2": 0.9, "memory_ratio": 2.0}, FAILS),
    ("minikv", {"recovery": 34.65 / 35.19, "smaller": 0.86}, HOLDS),
    ("minikv", {"recovery": 0.984, "smaller": 0.86}, PARTLY),
    ("minikv", {"recovery": 1.0, "smaller": 0.859}, PARTLY),
    ("minikv", {"recovery": 0.97, "smaller": 0.85}, FAILS),
    ("h2o", {"recovery": 0.98, "kl": 0.1, "local_kl": 0.2}, HOLDS),
    ("h2o", {"recovery": 0.97, "kl": 0.1, "local_kl": 0.2}, PARTLY),
    ("h2o", {"recovery": 0.97, "kl": 0.2, "local_kl": 0.2}, FAILS),
    ("snapkv", {"faster": 3.6, "smaller": 8.2, "recall": 1.0, "recall_4": 0.95}, HOLDS),
    ("snapkv", {"faster": 3.5, "smaller": 8.2, "recall": 1.0, "recall_4": 0.95}, PARTLY),
    ("snapkv", {"faster": 3.5, "smaller": 8.1, "recall": 1.0, "recall_4": 0.94}, FAILS),
    ("snapkv", {"faster": 3.5, "smaller": 8.1, "recall": 0.0, "recall_4": 0.0}, FAILS),
    ("ada-kv", kl([0.1, 0.1], [0.2, 0.2]), HOLDS),
    ("ada-kv", kl([0.1, 0.3], [0.4, 0.2]), PARTLY),
    ("ada-kv", kl([0.2, 0.2], [0.2, 0.2]), FAILS),
    ("pyramidkv", rivals(pyramidkv=(0.6, 0.1), snapkv=(0.5, 0.2)), HOLDS),
    ("pyramidkv", rivals(pyramidkv=(0.5, 0.1), snapkv=(0.5, 0.2)), PARTLY),
    ("pyramidkv", rivals(pyramidkv=(0.6, 0.2), snapkv=(0.5, 0.2)), PARTLY),
    ("pyramidkv", rivals(pyramidkv=(0.5, 0.2), snapkv=(0.5, 0.2)), FAILS),
    ("headkv", rivals(headkv=(0.6, 0.1), **THREE), HOLDS),
    ("headkv", rivals(headkv=(0.5, 0.1), **THREE), PARTLY),
    ("headkv", rivals(headkv=(0.6, 0.2), **THREE), PARTLY),
    ("headkv", rivals(headkv=(0.5, 0.2), **THREE), FAILS),
    ("headkv-r2", r2(full=1.0, ours=0.97, other=0.9), HOLDS),
    ("headkv-r2", r2(full=1.0, ours=0.96, other=0.9), PARTLY),
    ("headkv-r2", r2(full=0.9, ours=0.9, other=0.9), PARTLY),
    ("headkv-r2", r2(full=0.0, ours=0.9, other=0.9), FAILS),
    ("knorm", {"full_recall": 0.9, "half_recall": 0.9, "tenth_recall": 0.9}, HOLDS),
    ("knorm", {"full_recall": 0.9, "half_recall": 0.9, "tenth_recall": 0.8}, PARTLY),
    ("knorm", {"full_recall": 0.9, "half_recall": 0.8, "tenth_recall": 0.8}, FAILS),
    ("knorm", {"full_recall": 0.0, "half_recall": 0.0, "tenth_recall": 0.0}, FAILS),
    ("streaming", {"full": 10.0, "sinks": 11.0, "alone": 22.0}, HOLDS),
    ("streaming", {"full": 10.0, "sinks": 11.1, "alone": 23.0}, PARTLY),
    ("streaming", {"full": 10.0, "sinks": 10.5, "alone": 20.9}, PARTLY),
    ("streaming", {"full": 10.0, "sinks": 12.0, "alone": 12.0}, FAILS),
    ("fastgen", pruned((0.169, 0.98), (0.3, 0.9), (0.4, 0.9)), HOLDS),
    ("fastgen", pruned((0.168, 1.0), (0.169, 0.98), (0.4, 0.9)), PARTLY),
    ("fastgen", pruned((0.169, 0.979), (0.168, 1.0), (0.4, 0.98)), PARTLY),
    ("fastgen", pruned((0.168, 1.0), (0.169, 0.979), (0.4, 0.9)), FAILS),
    ("kvmerger", merging((0.1, 0.1), (0.9, 0.95)), HOLDS),
    ("kvmerger", merging((0.1, 0.2), (0.95, 0.95)), PARTLY),
    ("kvmerger", merging((0.1, 0.1), (0.89, 0.95)), PARTLY),
    ("kvmerger", merging((0.3, 0.3), (0.95, 0.95)), FAILS),
    ("kvzip", kvzip(), HOLDS),
    ("kvzip", kvzip(kvzip_recovery=0.97), PARTLY),
    ("kvzip", kvzip(smaller=2.9), PARTLY),
    ("kvzip", kvzip(cost=2.1), PARTLY),
    ("kvzip", kvzip(snapkv_turns=0.98), PARTLY),
    ("kvzip", kvzip(kvzip_recall=0.9, cost=2.1, smaller=2.9), FAILS),
    ("quest", quest(), HOLDS),
    ("quest", quest(faster_16=2.22), PARTLY),
    ("quest", quest(recovery_16=0.97), PARTLY),
    ("quest", quest(recall=0.8), PARTLY),
    ("quest", quest(faster_16=2.0, recall=0.0, full_recall=0.0), FAILS),
    ("rtn", {"rise": 0.107}, HOLDS),
    ("rtn", {"rise": 0.2}, PARTLY),
    ("rtn", {"rise": 0.22}, FAILS),
]


@pytest.mark.parametrize(("name", "figures", "expected"), CASES)
def test_the_rule_decides(name: str, figures: Figures, expected: Verdict) -> None:
    assert claims.load(name).judge(figures) is expected


def test_every_claim_has_a_case_of_every_verdict() -> None:
    for name in claims.names():
        assert {verdict for case, _, verdict in CASES if case == name} == {HOLDS, PARTLY, FAILS}


def test_parts_combine() -> None:
    assert combined(True, True, True) is HOLDS
    assert combined(False, True, False) is PARTLY
    assert combined(False, False) is FAILS
