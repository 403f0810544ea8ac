"""One file a decoding strategy; a file here is registered by being here."""
