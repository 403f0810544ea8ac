"""What runs any study: its grid of cells, the state that a kill leaves whole, the time it takes, and its figures."""
