"""`thrifty compress`: techniques applied within bounded memory, resumable, into a folder."""
