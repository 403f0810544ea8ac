"""The plain training loop over the reference decoder: data, losses, steps, checkpoints; and what it trains."""
