"""Numerics without policy: `reference/` in plain NumPy is the oracle, `native/` is C++; `dispatch` picks."""
