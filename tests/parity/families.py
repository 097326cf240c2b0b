"""docs/families.md: what each family is, and how far its worst site of each kind is from transformers."""

import datetime
from pathlib import Path

from jaxinterp.checkpoints.families import FAMILIES
from jaxinterp.checkpoints.families.family import Family
from jaxinterp.model.sites import SITES
from tests.checkpoints.hf_configs import ON_THE_HUB
from tests.parity.measure import FLOAT32_BOUND, FLOAT64_BOUND, Errors
from tests.parity.report import versions

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "families.md"

ORDER = tuple(SITES)

GROUPS = {
    "embedding": ("embed", "pos_embed", "type_embed"),
    "residual stream": ("resid_pre", "resid_mid", "resid_post"),
    "norms": tuple(site for site in SITES if site.endswith("_scale")),
    "q, k, v": ("attn_in", "q", "k", "v", "q_rot", "k_rot"),
    "attention": ("scores", "sink", "pattern", "z", "head_out", "attn_proj", "attn_out"),
    "MLP and experts": tuple(site for site in ORDER[ORDER.index("mlp_in") : ORDER.index("resid_post")] if not site.endswith("_scale")),
    "output": ("pooled", "ln_final", "logits_raw", "logits"),
}
"""Sites by what they are about; every site is in one group."""

HEAD = """# Families

Written by `make parity` on {date}, with {versions}.

{count} families load from safetensors in Hugging Face layout, {gguf} of them from GGUF files too. Each is compared with transformers at
every site, in values and gradients; the models and every number are in [parity.md](parity.md). Below stands the worst error of
any token, layer and model of the family, for each group of sites: in float64 (bound {float64:.0e}) the larger of value and gradient,
then in float32 (bound {float32:.0e}). `jaxinterp verify MODEL` does the same for any checkpoint.
"""


def write(measured: list[Errors]) -> None:
    """Writes the document from the rows of the parity table."""
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(text(measured, versions(), datetime.datetime.now(datetime.UTC).date().isoformat()))


def text(measured: list[Errors], versions: str, date: str) -> str:
    """The document.

    Args:
        measured: the rows of the table; those of a family are found by their model_type.
        versions: of the packages.
        date: of the measurement.
    """
    rows = {name: [errors for errors in measured if errors.row.config["model_type"] == name] for name in FAMILIES}
    gguf = sum(family.gguf is not None for family in FAMILIES.values())
    head = HEAD.format(date=date, versions=versions, count=len(FAMILIES), gguf=gguf, float64=FLOAT64_BOUND, float32=FLOAT32_BOUND)
    lines = ["## Errors", "", f"| family | {' | '.join(GROUPS)} |", f"|{' --- |' * (len(GROUPS) + 1)}"]
    lines += [f"| [{name}](#{name}) | {' | '.join(_worst(found, GROUPS[group]) for group in GROUPS)} |" for name, found in rows.items()]
    return "\n\n".join([head.rstrip(), "\n".join(lines), *(_section(FAMILIES[name], found) for name, found in rows.items())]) + "\n"


def _worst(found: list[Errors], sites: tuple[str, ...]) -> str:
    """The largest errors at some sites over models, in float64 and float32; a dash where no model has them."""
    cells = []
    for dtype in ("float64", "float32"):
        tables = [table[dtype] for errors in found for table in (errors.values, errors.gradients)]
        sizes = [size for table in tables for site, size in table.items() if site in sites]
        cells += [f"{max(sizes):.0e}"] if sizes else []
    return ", ".join(cells) or "–"


def _section(family: Family, found: list[Errors]) -> str:
    hub = [name for name, config in ON_THE_HUB.items() if config["model_type"] == family.model_type]
    lines = [f"### {family.model_type}", ""]
    lines.append(f"* classes of transformers: {', '.join(f'`{name}`' for name in family.architectures)}")
    lines += [f"* on the hub: {', '.join(f'`{name}`' for name in hub)}"] if hub else []
    lines += [f"* GGUF: `{family.gguf.architecture}`"] if family.gguf else []
    lines += [f"* `{errors.row.name}`: {errors.row.special}" for errors in found]
    return "\n".join(lines)
