"""A rewire that reads attention sees all of it, also where there are as many positions as heads."""

import jax.numpy as jnp
import numpy as np

import jaxinterp as ji
from tests.tiny import CONFIGS, params


def summed(pattern, z):
    return z * pattern.sum(axis=(2, 3))[:, None, :, None]


def test_a_rewire_reads_the_whole_pattern_at_selected_positions() -> None:
    config = CONFIGS["llama"]
    ids = np.arange(config.n_heads)[None] + 1  # as many positions as heads
    weights = params(config)
    plain = ji.forward(weights, ids, config, sites=("z", "pattern"))
    edit = ji.edits.rewire(("pattern", "z"), "z", summed, layer=1, position=2)
    changed = ji.forward(weights, ids, config, sites=("z",), edits=[edit])["z"][1]
    want = jnp.asarray(summed(plain["pattern"][1], plain["z"][1]))
    np.testing.assert_allclose(changed[:, 2], want[:, 2], rtol=1e-5)
    np.testing.assert_allclose(changed[:, [0, 1, 3]], plain["z"][1][:, [0, 1, 3]], rtol=1e-5)
