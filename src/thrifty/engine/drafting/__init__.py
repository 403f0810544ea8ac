"""Models that draft for another: their runners, caches and bytes."""
