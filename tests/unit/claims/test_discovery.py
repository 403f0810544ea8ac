"""A claim is a file named after its technique; nothing else lists it."""

from __future__ import annotations

from pathlib import Path

import pytest

from thrifty import claims, registry
from thrifty.claims.harness.running import unclaimed
from thrifty.errors import RecipeError

BODY = """
from thrifty.claims.harness.claim import Claim, Measurement

class {name}(Claim):
    paper, source, rule, minutes = "p", "s", "r", 0.1
    def measure(self, context): return Measurement.untestable("recall", "a model")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose files count as claims too."""
    monkeypatch.setattr(claims, "__path__", [*claims.__path__, str(tmp_path)])
    return tmp_path


SMALL = ("recall-2m", "mixture-2m", "smollm2-135m")
FINDINGS = {"iss", "scbench"}
"""Claims of a paper that is no technique: what it found of others, or a way to train a model of its own."""


def test_claims_are_the_files_and_every_one_belongs_to_a_technique_or_is_a_finding() -> None:
    package = Path(str(claims.__file__)).parent
    files = {path.stem.replace("_", "-") for path in package.glob("*.py") if path.stem != "__init__"}
    assert set(claims.names()) == files >= {"kivi", "h2o", "snapkv", "ada-kv", "streaming"}
    techniques = {name for stage in registry.STAGES for name in registry.names(stage)}
    assert files - techniques == FINDINGS
    assert set(unclaimed()) == techniques - files - {"random-eviction", "random-tokens"}, "a control has no claim"


@pytest.mark.parametrize("name", claims.names())
def test_every_claim_says_what_the_paper_says_and_how_it_is_judged(name: str) -> None:
    claim = claims.load(name)
    assert claim.paper and claim.source and claim.rule
    assert any(character.isdigit() for character in claim.paper) and len(set(claim.models)) == len(claim.models) > 0
    trains = name in registry.names("weights")  # some heal what they compressed
    assert 0 < claim.minutes <= (12 if trains else 4 if claim.models[0] in SMALL else 8)


@pytest.mark.parametrize(("weights", "most"), [(True, 90), (False, 45)])
def test_claims_on_small_models_together_take_at_most_two_hours_and_a_quarter(weights: bool, most: float) -> None:
    """Those on weights an hour and a half, all others 45 minutes."""
    of_weights = set(registry.names("weights"))
    known = [claims.load(name) for name in claims.names() if (name in of_weights) == weights]
    assert 0 < sum(claim.minutes for claim in known if claim.models[0] in SMALL) <= most


def test_a_new_file_is_a_new_claim(folder: Path) -> None:
    (folder / "new_method.py").write_text(BODY.format(name="New"))
    assert "new-method" in claims.names()
    assert claims.load("new-method").paper == "p"


def test_a_file_holds_one_claim(folder: Path) -> None:
    (folder / "two_claims.py").write_text(BODY.format(name="One") + BODY.format(name="Two"))
    with pytest.raises(RecipeError, match="must define one claim; it defines 2"):
        claims.load("two-claims")


def test_an_unknown_name_says_the_nearest() -> None:
    with pytest.raises(RecipeError, match="no claim is known of 'kvii'. Did you mean 'kivi'"):
        claims.load("kvii")
