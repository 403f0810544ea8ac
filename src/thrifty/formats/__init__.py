"""How numbers are stored: linear weights (`linear`) and key-value segments (`kv`)."""
