"""Numerics without policy: `reference/` in plain torch is the oracle, `native/` is C++; `dispatch` picks."""
