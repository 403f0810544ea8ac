"""Tools: what a client offers, the grammar of calls, and calls read from an answer; one file a format."""
