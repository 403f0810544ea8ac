"""Thrifty's caches under a model of the transformers library: `with compressed_cache(model, recipe) as cache:`.

A room of its own behind the extra `bridge`: nothing else of the package imports it, and the serving path never does.
"""

from thrifty.bridge.compressed_cache import compressed_cache

__all__ = ["compressed_cache"]
