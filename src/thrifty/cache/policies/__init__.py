"""Cache policies, one file each, found by their names."""
