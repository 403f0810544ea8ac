"""Stronger cache recipes for new requests while a server is short of memory or time."""
