"""Servers under the same load: Thrifty's, its peers', and the engine without any."""
