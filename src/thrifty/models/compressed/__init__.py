"""Models that `thrifty compress` wrote: a folder of packed weights, their recipe and their report."""
