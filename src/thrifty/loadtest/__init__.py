"""Load on any OpenAI-compatible server, and the figures that vLLM's benchmark made common."""
