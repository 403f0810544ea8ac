"""The report of a search: document, plot, page."""
