"""One process an engine and variant; each speaks the protocol of `protocol`."""
