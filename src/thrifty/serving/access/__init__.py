"""What a request must show and may not exceed before it is read."""
