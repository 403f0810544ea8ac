"""What a request may take: bounds, footprints, memory, the door."""
