"""One block: attention and MLP around the residual stream, for every norm position.

pre         x = x + attn(ln1(x));             x = x + mlp(ln2(x))
sandwich    x = x + ln1_post(attn(ln1(x)));   x = x + ln2_post(mlp(ln2(x)))
output      x = x + ln1_post(attn(x));        x = x + ln2_post(mlp(x))
post        x = ln1(x + attn(x));             x = ln2(x + mlp(x))
parallel    x = x + attn(ln1(x)) + mlp(ln2(x)), or with ln1 for both
"""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from jaxinterp.model.attention import Attention, Place
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.experts import MixtureOfExperts
from jaxinterp.model.mlp import MLP
from jaxinterp.model.norm import Norm
from jaxinterp.model.tap import Tap


class Block(nn.Module):
    """One layer of the transformer.

    Attributes:
        config: the model's config.
        experts: whether the MLP of this layer is a mixture of experts.
    """

    config: TransformerConfig
    experts: bool = False

    @nn.compact
    def __call__(self, resid: Float[Array, "B P D"], place: Place, tap: Tap) -> tuple[Float[Array, "B P D"], dict[str, Any]]:
        """The residual stream after the block, and what the tap recorded."""
        config = self.config
        before = config.norm_position in ("pre", "sandwich")
        resid = tap("resid_pre", resid)

        normed = self._norm("ln1", resid, tap) if before else resid
        attn_out = self._added("attn", Attention(config, name="attn")(tap("attn_in", normed), place, tap), tap)
        if config.parallel == "no" and config.has_mlp:
            mid = resid + attn_out
            mid = tap("resid_mid", self._norm("ln1", mid, tap) if config.norm_position == "post" else mid)
            out = mid + self._mlp(self._norm("ln2", mid, tap) if before else mid, tap)
            out = self._norm("ln2", out, tap) if config.norm_position == "post" else out
        elif config.has_mlp:
            out = resid + attn_out + self._mlp(normed if config.parallel == "one_norm" else self._norm("ln2", resid, tap), tap)
        else:
            out = resid + attn_out
            out = self._norm("ln1", out, tap) if config.norm_position == "post" else out
        return tap("resid_post", out), tap.activations

    def _mlp(self, normed: Float[Array, "B P D"], tap: Tap) -> Float[Array, "B P D"]:
        """What the MLP adds to the residual stream."""
        layer = MixtureOfExperts(self.config, name="experts") if self.experts else MLP(self.config, name="mlp")
        return self._added("mlp", layer(tap("mlp_in", normed), tap), tap)

    def _norm(self, name: str, x: Float[Array, "B P D"], tap: Tap) -> Float[Array, "B P D"]:
        rule = "post" if name.endswith("_post") else name
        return Norm(self.config, (self.config.d_model,), rule, name=name)(x, tap.rules, lambda scale: tap(f"{name}_scale", scale))

    def _added(self, part: str, out: Float[Array, "B P D"], tap: Tap) -> Float[Array, "B P D"]:
        """What a sublayer adds: its output through the post-norm and the residual multiplier, where there is one."""
        config = self.config
        post_norm = config.norm_position in ("sandwich", "output")
        if (post_norm and config.norm != "none") or config.residual_multiplier != 1.0:
            out = tap(f"{part}_proj", out)
        if post_norm:
            out = self._norm("ln1_post" if part == "attn" else "ln2_post", out, tap)
        if config.residual_multiplier != 1.0:
            out = out * config.residual_multiplier
        return tap(f"{part}_out", out)
