"""Training: what changes weights by gradients. `loop/` is the plain loop that compression needs."""
