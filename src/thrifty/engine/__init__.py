"""The engine: sequences, scheduler, continuous batching and the step loop."""
