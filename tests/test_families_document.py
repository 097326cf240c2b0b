"""docs/families.md as it is generated: every family, its classes, and the worst error of each group of sites."""

from jaxinterp.checkpoints.families import FAMILIES
from jaxinterp.model.sites import SITES
from tests.parity import families
from tests.parity.measure import Errors
from tests.parity.table import ROWS


def test_every_site_is_in_one_group() -> None:
    grouped = [site for group in families.GROUPS.values() for site in group]
    assert sorted(grouped) == sorted(SITES)


def test_every_family_has_a_row_and_the_worst_of_its_models_counts() -> None:
    def errors(name: str, size: float) -> Errors:
        table = {"float64": {"q": size, "logits": 1e-15}, "float32": {"q": 1e-6, "logits": 2e-6}}
        return Errors(ROWS[name], table, {"float64": {"q": 3e-14}, "float32": {"q": 4e-6}}, {})

    document = families.text([errors("bert", 1e-15), errors("bert_model", 5e-14), errors("llama", 1e-15)], "jax 1", "2026-01-01")
    lines = document.splitlines()
    assert {line.removeprefix("### ") for line in lines if line.startswith("### ")} == set(FAMILIES)
    (row,) = (line for line in lines if line.startswith("| [bert](#bert)"))
    assert row.split(" | ")[4] == "5e-14, 4e-06" and row.split(" | ")[1] == "–"
    assert "`BertForMaskedLM`" in document and "`sentence-transformers/all-MiniLM-L6-v2`" in document
    assert {row.config["model_type"] for row in ROWS.values()} <= set(FAMILIES)
