"""The converted copies in the user's cache directory: keys, checksums, files."""
