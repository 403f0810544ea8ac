"""Endpoints of OpenAI's API, and those that other servers of it added: rerank, tokenize, detokenize."""
