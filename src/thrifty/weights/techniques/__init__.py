"""One file a weight-compression technique, named as its paper names it."""
