"""What a sweep costs: operations of its cells, and bytes beyond the weights."""

import dataclasses
import math

import jax
import numpy as np

from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.sites import site_of
from jaxinterp.model.tokens import Tokens
from jaxinterp.runs.layout import room_for
from jaxinterp.runs.plan import layer_operations

KEPT = ("resid_pre", "k_rot", "v")
"""What the engine keeps of base runs in any case."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Operations and bytes of cells of one sweep.

    Attributes:
        lm: the model.
        base: the padded prompts.
        columns: [B n], what metrics read; None: cells are whole runs.
        whole: whether a metric reads the whole vocabulary.
        runs: batches of prompts that run as a whole: the base, and the other one.
        block: tokens computed at once.
        sites: whose values of the other run are kept for the cells.
    """

    lm: LanguageModel
    base: Tokens
    columns: np.ndarray | None
    whole: bool
    runs: int
    block: int
    sites: tuple[str, ...] = ()

    def operations(self, tokens: np.ndarray, start: np.ndarray) -> np.ndarray:
        """[c]: operations of cells that change so many tokens from a layer on."""
        above = np.append(np.cumsum(layer_operations(self.lm.config)[::-1])[::-1], 0)
        return tokens * above[np.minimum(start, len(above) - 1)]

    @property
    def base_operations(self) -> float:
        """Operations of the runs that every chunk repeats."""
        return float(self.runs * self.base.ids.size * layer_operations(self.lm.config).sum())

    def bytes(self, cells: int, tokens: int) -> int:
        """Bytes beyond the weights of a chunk of so many cells that change so many tokens.

        Packed: one layer's weights, what the base runs keep of all layers, the residual stream of the sequence, a block's
        values, and what metrics read. Whole runs: a block's values of every cell at once.
        """
        config, (batch, width) = self.lm.config, self.base.ids.shape
        wide = max(4, jax.tree.leaves(self.lm.params)[0].dtype.itemsize)
        neurons = (config.axis_sizes["M"] * config.axis_sizes["S"] if config.experts else config.d_mlp) * (3 if config.gated else 2)
        heads = config.n_heads * config.d_head
        kept = self.runs * batch * width * (config.d_model + 2 * config.n_kv_heads * config.d_head) * config.n_layers
        extra = [site for site in self.sites if site not in KEPT]
        kept += sum(self.runs * math.prod(site_of(site, config).shape(config, batch, width)) for site in extra)
        layer = max(sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(stack)) for stack in self.lm.params["blocks"])
        base = self.runs * batch * width * (neurons + 4 * heads + 2 * config.n_heads * width)
        if self.columns is None:
            cell = batch * width * (8 * config.d_model + neurons + 4 * heads + 3 * config.n_heads * width)
            return wide * (layer + kept + cells * (cell + (2 * batch * width * config.d_vocab if self.whole else 0)))
        places, block = room_for(tokens, cells * batch * width, config, self.block)
        packed = block * (neurons + 4 * heads + 3 * config.d_model + 3 * config.n_heads * (width + block))
        read = (cells + self.runs) * self.columns.size * (3 * config.d_model + (2 * config.d_vocab if self.whole else 2 * config.d_model))
        return wide * (layer + kept + places * (config.d_model + 8) + max(base, packed, read))
