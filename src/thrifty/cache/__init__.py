"""The KV cache: segments, the views that sequences hold, the prefix tree, edits, and one file a policy.

cache = Cache(model_info, memory="60MB")
sequence = cache.create(policies, tokens=prompt)     # shares a prefix where the tree holds it
sequence.reserve(n); ...append, attend...; sequence.commit(n)
sequence.free()
"""

from __future__ import annotations
