"""The least time that a machine allows: operations, bytes, rates."""
