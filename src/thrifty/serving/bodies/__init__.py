"""What the bodies of several endpoints have in common."""
