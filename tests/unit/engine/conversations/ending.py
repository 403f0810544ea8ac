"""The end of an engine, and what it may leave."""

from __future__ import annotations

from thrifty.engine.engine import Engine


def close(engine: Engine) -> None:
    """Nothing but the weights may be left, in memory or on disk."""
    disk = engine.memory.cache.tiers.disk
    engine.close()
    assert engine.memory.ledger.current == engine.memory.ledger.bytes_of("weights")
    assert disk is not None and disk.used == 0
