"""Self-repair: how much of an ablated component's direct effect the rest of the model makes up for.

    direct   the change of the metric when the ablation reaches the logits directly, and every other component still
             sees what it saw in the intact run
    total    the change when everything after the component responds
    repair   total - direct: 0 without self-repair; of the opposite sign to `direct` where later components compensate

Definitions of McGrath et al. 2023 (the Hydra effect, arXiv:2307.15771: impact by unembedding against impact by ablation) and
Rushing & Nanda 2024 (arXiv:2402.15390: self-repair is the change of the logit plus the direct effect that was removed). Exact:
both are runs; in the direct one the inputs of all attention and MLP layers from the first ablated one on are those of the
intact run. With `norm="freeze"`, as in both papers, the final norm's denominator is the intact run's too, so that its
rescaling counts as repair; with "recompute" it counts as direct.

Cost: twice an ablation. Misleads for components that work through later ones: their total effect is then mostly the
loss of those, `repair` holds it with the opposite meaning, and is no repair. It speaks of components that write the answer.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxinterp.errors import InputError
from jaxinterp.methods.ablation.ablate import AblationResult, Over, Setting, lay_out, measure, prepare
from jaxinterp.methods.ablation.draws import draw
from jaxinterp.methods.ablation.recipe import Kind, Recipe
from jaxinterp.model import edits as edit_makers
from jaxinterp.model.edits import Edit
from jaxinterp.model.language_model import LanguageModel, Prompts
from jaxinterp.model.sites import SITES
from jaxinterp.runs.run import run


@functools.partial(jax.tree_util.register_dataclass, data_fields=["total", "direct"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class SelfRepair:
    """Two effects of the same ablations; arrays have the axes of `total.axes`.

    Attributes:
        total: everything after the components responds.
        direct: only what the components write to the residual stream changes.
    """

    total: AblationResult
    direct: AblationResult

    @property
    def repair(self) -> np.ndarray:
        """Of the total effect, what is not direct: total - direct, what the rest of the model adds."""
        return np.asarray(self.total.values) - np.asarray(self.direct.values)

    @property
    def per_example(self) -> np.ndarray:
        """[B ...]: the same of each prompt."""
        return np.asarray(self.total.per_example) - np.asarray(self.direct.per_example)

    def __repr__(self) -> str:
        return f"SelfRepair(total={self.total!r}, direct={self.direct!r})"


def self_repair(
    lm: LanguageModel,
    prompts: Prompts,
    metric: Any,
    site: str | Sequence[str] = "z",
    over: Over = ("layer", "head"),
    kind: Kind = "resample",
    *,
    norm: Literal["freeze", "recompute"] = "freeze",
    components: Sequence[Any] | Mapping[str, Any] | None = None,
    at: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    **how: Any,
) -> Any:
    """The direct and the total effect of ablating every cell of a grid, and their difference.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: what is measured, or {name: metric}; a logit difference is linear in what components write, so that direct effects add up.
        site: as for `ablate`.
        over: as for `ablate`.
        kind: as for `ablate`.
        norm: the final norm in the direct run: the intact run's denominator ("freeze"), or its own ("recompute").
        components: as for `ablate`.
        at: as for `ablate`.
        out: a folder that keeps finished chunks, as for `ablate`.
        **how: reference, by, groups, seed, draws, edits ... as for `ablate`.

    Returns:
        SelfRepair: `.total.effects`, `.direct.effects` and `.repair`, their difference, on the axes of `.total.axes`.
        With several metrics, {name: SelfRepair}.

    Raises:
        InputError: as for `ablate`; also another norm.

    Example:
        >>> found = ji.self_repair(lm, prompts, metric, kind="mean", reference=abc)
        >>> found.direct.effects[23, 3], found.total.effects[23, 3], found.repair[23, 3]
    """
    if norm not in ("freeze", "recompute"):
        raise InputError(f"self_repair(): norm is {norm!r}; expected 'freeze' or 'recompute'.")
    setting = prepare(lm, prompts, site, Recipe(kind, **how), "self_repair()")
    layout = lay_out(setting, over, components, False, at or {})
    drawn = draw(setting.recipe, lm, setting.tokens, setting.sites, layout, setting.what)
    folders = (None, None) if out is None else (Path(out) / "total", Path(out) / "direct")
    total = measure(setting, layout, drawn, metric, (("effect", "total"),), out=folders[0])
    told, frozen = (("effect", f"direct, final norm: {norm}"),), _final_norm(setting) if norm == "freeze" else ()
    direct = measure(setting, layout, drawn, metric, told, intact_inputs=True, base_edits=frozen, out=folders[1])
    found = {name: SelfRepair(total[name], direct[name]) for name in total}
    return found if isinstance(metric, Mapping) else found[""]


def _final_norm(setting: Setting) -> tuple[Edit, ...]:
    """The final norm's denominator of the intact run, in every run; nothing where there is no such norm."""
    if SITES["ln_final_scale"].absent(setting.lm.config):
        return ()
    recipe = setting.recipe
    trace = run(setting.lm, setting.tokens, sites=("ln_final_scale",), edits=recipe.edits, precision=recipe.precision)
    return (edit_makers.replace("ln_final_scale", trace["ln_final_scale"]),)
