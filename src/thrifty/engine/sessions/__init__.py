"""Conversations that go on from their own compressed cache."""
