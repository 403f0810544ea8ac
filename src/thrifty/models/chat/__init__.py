"""Chat templates and messages, in a sandbox with an allowance."""
