"""The tap: the one mechanism by which a run is read and changed.

Every site passes its value through `tap(site, value)`, which detaches it where the rules say so, applies the edits of
that site in order, records the result if it was asked for, and returns it. A tap lives for one block (or for the parts
outside the blocks) and hands back what it recorded; nothing outside it is changed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxinterp.errors import InputError
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.edits import Edit, apply_edit
from jaxinterp.model.rules import Rules
from jaxinterp.model.selection import At, Rows, axis_of, gather
from jaxinterp.model.sites import SITES, Site, site_of
from jaxinterp.model.tokens import Tokens


class Tap:
    """Applies edits and records activations at the sites of one block.

    Attributes:
        rules: how the backward pass treats the block's nonlinear parts.
        activations: what was recorded, by site, without a layer axis.
        chosen: [B P S], the experts that this block's router chose, once it has.
    """

    def __init__(
        self,
        tokens: Tokens,
        config: TransformerConfig,
        *,
        edits: Sequence[Edit] = (),
        arguments: Sequence[Sequence[Array]] | None = None,
        requests: Mapping[str, At] | None = None,
        rules: Rules | None = None,
        layer: Int[Array, ""] | None = None,
        dtype: Any = None,
        rows: Rows | None = None,
        active: Bool[Array, "n"] | None = None,
    ) -> None:
        """A tap for one block.

        Args:
            tokens: the prompts.
            config: the architecture.
            edits: all edits of the run; those of other sites do nothing here.
            arguments: for each edit its arrays, cut to this layer.
            requests: what to record, by site.
            rules: rules of the backward pass.
            layer: this block's index, or None outside the blocks.
            dtype: type of recorded values; None keeps each value's own.
            rows: which tokens the axes of a value stand for, where queries and keys are not those of `tokens`.
            active: for each edit whether it acts now, as data; None: by its `when`, as on a prompt.
        """
        self._rows = rows or tokens
        self.rules = rules or Rules()
        self.activations: dict[str, Any] = {}
        self.chosen: Int[Array, "B P S"] | None = None
        self._tokens, self._config, self._layer, self._dtype = tokens, config, layer, dtype
        self._edits = list(zip(edits, arguments if arguments is not None else [edit.arguments for edit in edits], strict=True))
        self._requests = requests or {}
        self._active = active
        self._seen: dict[str, Array] = {}
        self._read = {name for edit in edits for name in edit.reads}

    @property
    def first_columns(self) -> Int[Array, "B"]:
        """[B]: the column of each prompt's first real token."""
        return self._tokens.mask.argmax(axis=1)

    def touches(self, site: str) -> bool:
        """Whether anything at all happens at a site: sites that cost extra are computed only then."""
        edited = any(edit.site == site for edit, _ in self._edits)
        return edited or site in self._requests or site in self._read or site in self.rules.detach

    def __call__(self, site: str, value: Array) -> Array:
        """The value that the forward pass goes on with."""
        if site in self.rules.detach:
            value = self._detached(site, value)
        for number, (edit, arguments) in enumerate(self._edits):
            if edit.site == site and (self._active is not None or edit.when in ("all", "prompt")):
                inputs = [self._input(name, value, edit) for name in edit.reads] or [value]
                place = site_of(site, self._config)
                new = apply_edit(edit, arguments, inputs, value, self._layer, self._rows, place, self.chosen, self._slot(place))
                value = new if self._active is None else jnp.where(self._active[number], new, value)
        if site in self._read:
            self._seen[site] = value
        if site in self._requests:
            kept = gather(value, site_of(site, self._config).inner_axes, self._requests[site].select, self._tokens)
            self.activations[site] = kept if self._dtype is None or SITES[site].read_only else kept.astype(self._dtype)
        return value

    def _slot(self, site: Site) -> Int[Array, ""] | None:
        """This layer's number among those that have a site."""
        layers = site.layers(self._config)
        if self._layer is None or len(layers) == self._config.n_layers:
            return self._layer
        return jnp.searchsorted(jnp.asarray(layers), self._layer)

    def _input(self, name: str, value: Array, edit: Edit) -> Array:
        if name == edit.site:
            return value
        if name not in self._seen:
            raise InputError(f"rewire: {name!r} is computed after {edit.site!r} in a block, so it cannot be read there.")
        return self._seen[name]

    def _detached(self, site: str, value: Array) -> Array:
        """The value with a stopped gradient where the rule's mask, over nothing, [L] or [L H], is True."""
        mask = jnp.asarray(self.rules.detach[site]).astype(bool)
        if mask.ndim and self._layer is not None:
            mask = jax.lax.dynamic_index_in_dim(mask, self._layer, keepdims=False)
        shape = [1] * value.ndim
        if mask.ndim:
            axis = axis_of("head", SITES[site].inner_axes)
            if mask.ndim > 1 or axis < 0 or mask.shape[0] != value.shape[axis]:
                axes = " ".join(SITES[site].axes)
                raise InputError(f"Rules.detach[{site!r}]: expected True, a mask [L], or [L heads] at a site with heads; axes are {axes}.")
            shape[axis] = -1
        return jnp.where(mask.reshape(shape), jax.lax.stop_gradient(value), value)
