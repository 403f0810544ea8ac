"""Python starts with this where the folder is on its path: torch is as if it were not installed."""

import sys

sys.modules["torch"] = None  # type: ignore[assignment]  # import raises ModuleNotFoundError, find_spec finds nothing
