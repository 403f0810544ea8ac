"""Measuring: quality against the uncompressed model of the same run, speed, memory, and the roofline."""
