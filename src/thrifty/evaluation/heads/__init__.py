"""Which heads retrieve: items and the probe."""
