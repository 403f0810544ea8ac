"""Recipes under a budget: candidates, what each takes and costs, and the one to serve with."""
