"""Prompt programs: what runs a model over a prompt to decide how the prompt is read."""
