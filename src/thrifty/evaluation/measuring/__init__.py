"""Measuring an engine: speed, memory, profile, noise."""
