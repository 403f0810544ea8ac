"""An OpenAI-compatible server over one engine. Needs the extra `serve`; imports no torch."""
