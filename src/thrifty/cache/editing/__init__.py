"""Carrying out what policies ask for: evicting, merging, storing, renumbering, rolling back."""
