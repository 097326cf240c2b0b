"""Directional ablation in the weights: equal to the activation edit at every layer, on every architecture."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.errors import InputError
from jaxinterp.methods.steering.vector import make_vector
from jaxinterp.methods.weights.orthogonal import orthogonalise
from jaxinterp.model.config import TransformerConfig
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.sites import SITES
from jaxinterp.model.tokens import Tokens
from tests import tiny
from tests.parity import fixtures, ours

LAYER_NORM: dict[str, Any] = {"norm": "layer", "norm_bias": True}
CONFIGS = tiny.CONFIGS | {
    "output_layer_norm": tiny.CONFIGS["olmo2"].replace(**LAYER_NORM, o_bias=True, mlp_out_bias=True),
    "sandwich_scaled": tiny.CONFIGS["gemma"].replace(**LAYER_NORM, norm_gain="w", residual_multiplier=0.7),
    "sandwich_experts": tiny.CONFIGS["mixed"].replace(norm_position="sandwich"),
    "narrow": tiny.CONFIGS["gpt2"].replace(d_embed=14),
    "narrow_normed": tiny.CONFIGS["bloom"].replace(d_embed=14, embed_scale=1.5),
    "normed_sum": tiny.CONFIGS["gpt2"].replace(embed_norm="sum", n_token_types=2),
}
POST = ("bert", "masked")
STREAM = ("resid_pre", "resid_mid", "resid_post")
QUICK = ("bloom", "glm4", "opt")
"""Families with norms in other places, by default; with `make parity` every row of the table."""

ROWS = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.parity) for name in fixtures.names()]


def model(name: str, dtype: Any = jnp.float32) -> LanguageModel:
    return LanguageModel(params=tiny.params(CONFIGS[name], dtype), config=CONFIGS[name])


def directions(config: TransformerConfig, n: int, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(n, config.d_model)).astype(dtype)


def orthonormal(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.qr(np.asarray(vectors, np.float64).T)[0].T


def before_norm(d: np.ndarray, weights: Any, config: TransformerConfig) -> np.ndarray:
    """What must be projected out before a norm: d times the gain, centred where the norm centres."""
    gain = np.asarray(weights["w"], np.float64) + (config.norm_gain == "1+w") if "w" in weights else np.ones(config.d_model)
    pulled = d * gain[None]
    return orthonormal(pulled - pulled.mean(axis=1, keepdims=True) if config.norm == "layer" else pulled)


def where_added(lm: LanguageModel, d: np.ndarray) -> dict[str, np.ndarray]:
    """What the equal activation edit removes, by site: d where something is added to the stream; before a norm, as the norm sees it."""
    config, basis = lm.config, orthonormal(d)
    normed = config.norm_position in ("sandwich", "output") and config.norm != "none"
    embed = before_norm(d, lm.params["embed"]["ln"], config) if config.embed_norm == "sum" else basis
    sites: dict[str, np.ndarray] = dict.fromkeys(("embed", "pos_embed", "type_embed"), embed)
    if config.embed_norm == "sum":
        sites["resid_pre"] = np.stack([basis] + [np.zeros_like(basis)] * (config.n_layers - 1))
    for part, norm in (("attn", "ln1_post"), ("mlp", "ln2_post")):
        sites[f"{part}_out"] = basis
        if normed:
            flat = [jax.tree.map(lambda w, i=i: w[i], group.get(norm, {})) for group, i in layers_of(lm)]
            sites[f"{part}_proj"] = np.stack([before_norm(d, weights, config) for weights in flat])
    return {site: value for site, value in sites.items() if not SITES[site].absent(config)}


def layers_of(lm: LanguageModel) -> list[tuple[Any, int]]:
    """The stack of each layer, with its place there."""
    return [(stack, i) for stack, group in zip(lm.params["blocks"], lm.config.groups, strict=True) for i in range(group.stop - group.start)]


def in_the_stream(lm: LanguageModel, d: np.ndarray) -> dict[str, np.ndarray]:
    """The same at the residual stream of every layer, which is the same edit where no norm stands behind a sublayer."""
    return {site: orthonormal(d) for site in STREAM if not SITES[site].absent(lm.config)}


def prompts(config: TransformerConfig) -> Tokens:
    tokens = tiny.prompts(config, (7, 5, 6))
    types = np.asarray(tokens.ids) % 2 if config.n_token_types else None
    return Tokens(tokens.ids, tokens.mask, tokens.positions, types)


def untied(lm: LanguageModel) -> LanguageModel:
    """The same model with an unembedding of its own, so that it and the changed one run as one program."""
    if lm.config.unembed != "tied" or lm.config.d_embed is not None:
        return lm
    params = {**lm.params, "unembed": {**lm.params.get("unembed", {}), "W_U": lm.params["embed"]["W_E"].T}}
    return lm.replace(params=params, config=lm.config.replace(unembed="own"))


def remove(x: Any, basis: Any) -> Any:
    return x - jnp.einsum("...n,nD->...D", jnp.einsum("...D,nD->...n", x, basis), basis)


@functools.partial(jax.jit, static_argnames=("config", "sites"), compiler_options=ours.QUICK)
def program(params: Any, tokens: Tokens, removed: dict[str, Any], config: TransformerConfig, sites: tuple[str, ...]) -> Any:
    edits = [ji.edits.apply(site, remove, basis, per_layer=np.ndim(basis) == 3) for site, basis in removed.items()]
    trace = ji.forward(params, tokens, config, sites=sites, edits=edits)
    return {**trace.activations, **({} if trace.logits is None else {"logits": trace.logits})}


def relative(a: Any, b: Any, mask: Any) -> float:
    """The largest relative error of a real token."""
    a, b = (np.asarray(x, np.float64)[..., np.asarray(mask), :] for x in (a, b))
    return float((np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)).max())


def check(lm: LanguageModel, d: np.ndarray, removed: dict[str, np.ndarray], bound: float) -> None:
    """The changed model's stream is free of d, and it and the logits are those of the run from which `removed` is removed."""
    changed, tokens = orthogonalise(lm, d), prompts(lm.config)
    lm = untied(lm)
    sites = tuple(site for site in STREAM if not SITES[site].absent(lm.config))
    removed = {site: value.astype(d.dtype) for site, value in removed.items()}
    nothing = {site: np.zeros_like(value) for site, value in removed.items()}
    edited = program(lm.params, tokens, removed, config=lm.config, sites=sites)
    plain = program(lm.params, tokens, nothing, config=lm.config, sites=sites)
    free = program(changed.params, tokens, nothing, config=changed.config, sites=sites)
    assert relative(plain[sites[-1]], edited[sites[-1]], tokens.mask) > 0.05
    assert {site: error for site in edited if not (error := relative(free[site], edited[site], tokens.mask)) <= bound} == {}
    for site in sites:
        stream = np.asarray(free[site], np.float64)[:, np.asarray(tokens.mask)]
        along = np.abs(stream @ orthonormal(d).T).max(axis=-1) / np.linalg.norm(stream, axis=-1)
        assert along.max() <= bound, site


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in POST])
def test_the_changed_model_equals_the_edit_where_something_is_added(name: str) -> None:
    with jax.enable_x64(True):
        lm = model(name, jnp.float64)
        d = directions(lm.config, 2)
        check(lm, d, where_added(lm, d), 1e-10)


@pytest.mark.parametrize("name", ["neox", "bloom", "mixed"])
def test_without_norms_behind_sublayers_it_equals_the_edit_of_the_stream(name: str) -> None:
    lm = model(name)
    d = directions(lm.config, 1, np.float32)
    check(lm, d, in_the_stream(lm, d), 1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_it_equals_the_edit_on_every_family(name: str, tmp_path: Path) -> None:
    lm = ours.load_ours(fixtures.load(name).write_folder(tmp_path), "float32")
    d = directions(lm.config, 1, np.float32)
    if lm.config.norm_position == "post":
        with pytest.raises(InputError, match="stand on the residual stream itself"):
            orthogonalise(lm, d)
        return
    check(lm, d, where_added(lm, d), 1e-5)


def test_that_edit_is_project_out() -> None:
    lm = model("gpt2")
    d = directions(lm.config, 1, np.float32)[0]
    edits = [ji.edits.project_out(site, d) for site in ("embed", "pos_embed", "attn_out", "mlp_out")]
    edited, free = ji.run(lm, prompts(lm.config), edits=edits), ji.run(orthogonalise(lm, d), prompts(lm.config))
    assert relative(free.logits, edited.logits, edited.tokens.mask) <= 1e-5


def test_several_directions_are_removed_as_their_span() -> None:
    lm = model("llama")
    a, b = directions(lm.config, 2, np.float32)
    changed = orthogonalise(lm, np.stack([a, a + 0.3 * b, 3 * a]))
    same = orthogonalise(lm, np.stack([b, a]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), changed.params, same.params)


def test_what_reads_from_the_stream_is_the_same_array() -> None:
    lm = model("mixed")
    changed = orthogonalise(lm, directions(lm.config, 1))
    for old, new in zip(lm.params["blocks"], changed.params["blocks"], strict=True):
        part = "experts" if "experts" in new else "mlp"
        assert new["attn"]["W_Q"] is old["attn"]["W_Q"] and new[part]["W_in"] is old[part]["W_in"] and new["ln1"] is old["ln1"]
        assert not np.allclose(new[part]["b_out"], old[part]["b_out"])


def test_it_vmaps_over_directions_and_differentiates() -> None:
    lm = model("gemma")
    d = directions(lm.config, 2, np.float32)
    both = jax.vmap(lambda one: orthogonalise(lm, one))(d)
    for i in range(2):
        one = orthogonalise(lm, d[i])
        assert both.config == one.config
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i] if x.ndim > y.ndim else x, y, atol=1e-5), both.params, one.params)
    tokens = prompts(lm.config)

    def loss(d: Any) -> Any:
        changed = orthogonalise(lm, d)
        return (ji.forward(changed.params, tokens, changed.config).padded_logits[0, -1] * np.linspace(-1, 1, lm.config.d_vocab)).sum()

    slope = jax.jit(jax.grad(loss))(d[0])
    assert np.isfinite(slope).all() and np.abs(slope).max() > 1e-3
    assert abs(slope @ d[0]) < 1e-3 * np.linalg.norm(slope) * np.linalg.norm(d[0])  # the length of a direction does not count


def test_weights_by_layer_stay_by_layer() -> None:
    lm = model("gemma")
    d = directions(lm.config, 1, np.float32)
    changed, stacked = orthogonalise(lm.by_layer(), d), orthogonalise(lm, d)
    assert isinstance(changed.params["blocks"][0], tuple)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), changed.stacked().params, stacked.params)


def test_a_vector_of_one_layer_and_bad_directions() -> None:
    lm = model("llama")
    d = directions(lm.config, 2, np.float32)
    vector = make_vector(lm, "resid_post", [0, 2], d)
    jax.tree.map(np.testing.assert_array_equal, orthogonalise(lm, vector.at(2)).params, orthogonalise(lm, d[1]).params)
    wrong = {
        "2 layers": vector,
        "residual stream": make_vector(lm, "attn_in", [1], d[:1]),
        r"expected a direction \[24\]": np.ones(23),
        r"got shape \[\]": np.float32(1),
        "norm zero": np.zeros(24),
        "not finite": np.full(24, np.nan),
    }
    for message, bad in wrong.items():
        with pytest.raises(InputError, match=message):
            orthogonalise(lm, bad)
    other = LanguageModel(params=tiny.params(lm.config, seed=1), config=lm.config)
    with pytest.raises(InputError, match="another model"):
        orthogonalise(other, vector.at(2))
    orthogonalise(other, vector.at(2), force=True)
    for name in POST:
        with pytest.raises(InputError, match="stand on the residual stream itself"):
            orthogonalise(model(name), d[0])
