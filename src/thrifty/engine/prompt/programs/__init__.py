"""One prompt program a file."""
