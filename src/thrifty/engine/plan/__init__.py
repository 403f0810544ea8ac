"""The native plan: built from a packed model, run by the native runner."""
