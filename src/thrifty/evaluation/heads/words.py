"""The words of the probes' needles: people and things that no task names, and no numbers."""

from __future__ import annotations

import random

PEOPLE = (
    "Abbott",
    "Caldwell",
    "Dunmore",
    "Fenwick",
    "Garrick",
    "Hollis",
    "Ingram",
    "Jarvis",
    "Kemble",
    "Lowther",
    "Marlow",
    "Norwood",
    "Osgood",
    "Pemberton",
    "Quimby",
    "Radcliff",
    "Selwyn",
    "Thorne",
    "Vickers",
    "Wexford",
)
QUALITIES = ("broken", "carved", "dusty", "folded", "heavy", "narrow", "painted", "polished", "rusty", "striped")
STUFFS = ("brass", "canvas", "clay", "glass", "leather", "marble", "paper", "pine", "velvet", "wool")
THINGS = ("bell", "bowl", "coat", "crown", "drum", "flute", "globe", "lamp", "mask", "rope", "shield", "spoon", "tray")


def people(chance: random.Random) -> tuple[str, str]:
    """Two different names."""
    first, second = chance.sample(PEOPLE, 2)
    return first, second


def things(chance: random.Random) -> tuple[str, str]:
    """Two things of three words each that share none, such as "dusty velvet mask"."""
    words = [chance.sample(kind, 2) for kind in (QUALITIES, STUFFS, THINGS)]
    return " ".join(pair[0] for pair in words), " ".join(pair[1] for pair in words)
