"""Where a sequence's slots lie: segments, spans, the open tail, views for native code. Nothing here knows policies."""
