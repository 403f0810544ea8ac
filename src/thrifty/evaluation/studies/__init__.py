"""Studies: published comparisons of many recipes as instruments that run on one's own model. One file a study, found by
its name, imported when it is used; `harness/` runs any of them.
"""

from __future__ import annotations

from thrifty import registry
from thrifty.errors import ThriftyError, nearest
from thrifty.evaluation.studies.harness.study import Study


class StudyError(ThriftyError):
    """A study, or a part of its grid, is unknown."""


def names() -> list[str]:
    """The names of all studies, sorted. Imports none of them."""
    return sorted(registry.found(__path__))


def load(name: str) -> Study:
    """A study by its name. Raises StudyError with the nearest known one."""
    if name not in names():
        raise StudyError(f"no study '{name}'. {nearest(name, names())}")
    module = f"{__name__}.{registry.found(__path__)[name]}"
    study: Study = registry.only(module, lambda defined: issubclass(defined, Study), "study")()
    return study
