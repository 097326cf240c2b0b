"""SteeringVector: every way of applying it is its formula at every layer, as data; and it is refused where it does not belong."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.methods.steering import vector as vectors
from jaxinterp.methods.steering.vector import SteeringVector, check_held_out, make_vector, ranges, texts_of
from jaxinterp.runs.cells import gather_cells
from tests.model.test_directions import along, reflected, size, unit
from tests.programs import compiled
from tests.tiny import CONFIGS, params, prompts

CONFIG = CONFIGS["llama"]
TOKENS = prompts(CONFIG, (7, 5))
REAL = np.asarray(TOKENS.mask)
HEADS = np.eye(4)[:2, :, None] * np.ones((1, 1, 6))  # head 0 at the first layer, head 1 at the second
METRIC = ji.metrics.logit_difference(3, 5)


@pytest.fixture(scope="module")
def lm() -> ji.LanguageModel:
    return ji.LanguageModel(params(CONFIG), CONFIG)


def made(lm: ji.LanguageModel, site: str = "resid_post", layers: Any = (0, 1, 2), seed: int = 0) -> SteeringVector:
    shape = {"resid_post": (24,), "z": (4, 6)}[site]
    values = np.random.default_rng(seed).normal(size=(len(layers), *shape)).astype(np.float32)
    if site == "z":
        values[:, 1] = 0  # head 1 is not part of it
        values[0, 3] = 0
    return make_vector(lm, site, layers, values, how=(("method", "test"),))


# --------------------------------------------------------------------------------------------------------- formulas


def before(trace: ji.Trace, site: str) -> np.ndarray:
    """[L B P ...]: what the site would hold without the edit, from the sites that it is made of in the same run."""
    if site == "resid_post":
        return np.asarray(trace["resid_mid"]) + np.asarray(trace["mlp_out"])
    return np.einsum("LBHQK,LBKHE->LBQHE", np.asarray(trace["pattern"]), np.repeat(np.asarray(trace["v"]), 2, axis=3))


APPLIED: dict[str, tuple[Callable[..., ji.edits.Edit], Callable[..., np.ndarray]]] = {
    "add": (lambda v, w, **on: v.add(1.5, **on), lambda x, v, w: x + 1.5 * v),
    "relative": (lambda v, w, **on: v.add(0.5, relative=True, **on), lambda x, v, w: x + 0.5 * size(x) * unit(v)),
    "replace": (lambda v, w, **on: v.replace(0.7, **on), lambda x, v, w: x + (0.7 - along(x, unit(v))) * unit(v)),
    "project_out": (lambda v, w, **on: v.project_out(**on), lambda x, v, w: x - along(x, unit(v)) * unit(v)),
    "clamp": (
        lambda v, w, **on: v.clamp(-0.1, 0.2, **on),
        lambda x, v, w: x + (np.clip(along(x, unit(v)), -0.1, 0.2) - along(x, unit(v))) * unit(v),
    ),
    "swap": (lambda v, w, **on: v.swap(w, **on), reflected),
    "add_if": (
        lambda v, w, **on: v.add_if(1.5, w, 0.05, **on),
        lambda x, v, w: np.where(along(unit(x), unit(w)) > 0.05, x + 1.5 * v, x),
    ),
    "add_if below": (
        lambda v, w, **on: v.add_if(1.5, w, 0.05, below=True, **on),
        lambda x, v, w: np.where(along(unit(x), unit(w)) < 0.05, x + 1.5 * v, x),
    ),
}


@pytest.mark.parametrize("site", ("resid_post", "z"))
@pytest.mark.parametrize("name", APPLIED)
def test_an_edit_is_its_formula_at_every_layer_position_and_head(lm: ji.LanguageModel, name: str, site: str) -> None:
    apply, formula = APPLIED[name]
    v, w = made(lm, site), made(lm, site, seed=1)
    sites = (site, "resid_mid", "mlp_out") if site == "resid_post" else (site, "pattern", "v")
    for layers in ([0, 1, 2], [2, 0]):
        trace = ji.run(lm, TOKENS, sites=sites, edits=[apply(v, w, layer=layers, position=[1, -1])])
        x, found = before(trace, site), np.asarray(trace[site])
        extra = (1,) * (x.ndim - 3)
        selected = np.zeros((3, 2, 7), bool)
        selected[np.ix_(layers, [0, 1], [1])] = True
        selected[layers, [[0], [1]], [[6], [4]]] = True
        acting = (np.asarray(v.values) != 0).any(axis=-1)[:, None, None, ..., None]
        with np.errstate(invalid="ignore"):
            new = formula(x, np.asarray(v.values)[:, None, None], np.asarray(w.values)[:, None, None])
        want = np.where(selected.reshape(3, 2, 7, *extra) & acting, new, x)
        np.testing.assert_allclose(found[:, REAL], want[:, REAL], rtol=1e-4, atol=2e-5)
        assert np.abs(want - x)[:, REAL].max() > 0.01  # it does something


def test_what_is_replaced_is_the_coordinate_and_nothing_else(lm: ji.LanguageModel) -> None:
    v = made(lm)
    trace = ji.run(lm, TOKENS, sites=("resid_post", "resid_mid", "mlp_out"), edits=v.replace(np.asarray([2.0, -3.0])[:, None, None]))
    u, x, new = unit(np.asarray(v.values))[:, None, None], before(trace, "resid_post"), np.asarray(trace["resid_post"])
    np.testing.assert_allclose(along(new, u)[..., 0], np.broadcast_to([[[2.0], [-3.0]]], (3, 2, 7)), atol=1e-4)
    np.testing.assert_allclose((new - along(new, u) * u)[:, REAL], (x - along(x, u) * u)[:, REAL], atol=1e-4)


def test_strengths_may_differ_by_prompt_and_by_layer(lm: ji.LanguageModel) -> None:
    v, sites = made(lm), ("resid_post", "resid_mid", "mlp_out")
    for strength in (np.asarray([2.0, 0.0])[:, None, None], np.asarray([1.0, 0.0, -2.0])[:, None, None, None]):
        trace = ji.run(lm, TOKENS, sites=sites, edits=v.add(strength))
        want = before(trace, "resid_post") + strength * np.asarray(v.values)[:, None, None]
        np.testing.assert_allclose(np.asarray(trace["resid_post"])[:, REAL], want[:, REAL], atol=1e-4)
    base = ji.run(lm, TOKENS).logits[1]
    np.testing.assert_allclose(ji.run(lm, TOKENS, edits=v.add(np.asarray([2.0, 0.0])[:, None, None])).logits[1, :5], base[:5], atol=1e-4)


def test_an_edit_acts_in_generation_by_its_when(lm: ji.LanguageModel) -> None:
    v = made(lm)
    prompt = np.asarray(TOKENS.ids)[:1]
    plain = ji.generate(lm, prompt, 3, sites=("resid_post",))
    for when, moved in (("prompt", slice(0, 7)), ("new", slice(7, None)), ((1,), slice(8, 9))):
        told = ji.generate(lm, prompt, 3, sites=("resid_post",), edits=[v.add(0.01, when=when, layer=2)])
        change = np.abs(np.asarray(told.trace["resid_post"])[2, 0] - np.asarray(plain.trace["resid_post"])[2, 0]).max(axis=-1)
        acted = np.zeros(len(change), bool)
        acted[moved] = True
        np.testing.assert_array_equal(change > 1e-3, acted)


# ----------------------------------------------------------------------------------------------------------- as data


@pytest.mark.parametrize("site", ("resid_post", "z"))
def test_it_jits_vmaps_and_differentiates(lm: ji.LanguageModel, site: str) -> None:
    v = made(lm, site)

    def score(values: Any, strength: Any) -> jax.Array:
        moved = SteeringVector(values, v.norms, v.accuracy, v.sketch, v.site, v.layers, v.depth)
        trace = ji.forward(lm.params, TOKENS, CONFIG, edits=[moved.add(strength, layer=[0, 2])])
        return jnp.tanh(trace.logits[:, -1]).sum()

    strengths = jnp.asarray([0.0, 0.5, -1.0])
    many = jax.jit(jax.vmap(score, (None, 0)))(v.values, strengths)
    np.testing.assert_allclose(many[1], jnp.tanh(ji.run(lm, TOKENS, edits=v.add(0.5, layer=[0, 2])).logits[:, -1]).sum(), rtol=1e-4)
    by_value, by_strength = jax.jit(jax.grad(score, (0, 1)))(v.values, 0.5)
    np.testing.assert_allclose((by_value * v.values).sum(), 0.5 * by_strength, rtol=1e-3)  # s v: both are along one line
    step = 2e-3
    slope = (score(v.values, 0.5 + step) - score(v.values, 0.5 - step)) / (2 * step)
    np.testing.assert_allclose(by_strength, slope, rtol=2e-2)
    assert np.isfinite(by_value).all() and not by_value[1].any() and by_value[0].any()  # layer 1 was not steered
    if site == "z":
        assert not by_value[:, 1].any()


def test_a_vector_used_inside_a_program_is_itself_afterwards(lm: ji.LanguageModel) -> None:
    v = made(lm)
    held = SteeringVector(jnp.asarray(v.values), v.norms, v.accuracy, v.sketch, v.site, v.layers, v.depth)
    inside = jax.jit(lambda: ji.forward(lm.params, TOKENS, CONFIG, edits=[held.add(1.0)]).logits)()
    np.testing.assert_allclose(ji.run(lm, TOKENS, edits=held.add(1.0)).logits, inside, rtol=1e-4, atol=1e-4)
    through = jax.jit(lambda vector: ji.forward(lm.params, TOKENS, CONFIG, edits=[vector.add(1.0)]).logits)(v)  # it is a pytree
    np.testing.assert_allclose(through, inside, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("site", ("resid_post", "z"))
def test_a_sweep_of_layers_and_strengths_shares_the_direction_and_equals_runs(lm: ji.LanguageModel, site: str) -> None:
    v = made(lm, site)
    steer = lambda layer, strength: v.add(strength, layer=layer)  # noqa: E731
    kinds = gather_cells([[steer(layer, strength)] for layer in range(3) for strength in (0.5, 2.0)])
    told = jax.tree.unflatten(kinds.tree, kinds.kinds)[0]
    assert told.select["layer"] == "varying" and told.arguments == ("shared", "varying") and told.where in (None, "shared")
    found = ji.sweep(lm, TOKENS, METRIC, steer, {"layer": range(3), "strength": (0.5, 2.0)})
    for layer in range(3):
        for column, strength in enumerate((0.5, 2.0)):
            want = METRIC(ji.run(lm, TOKENS, edits=steer(layer, strength)))
            np.testing.assert_allclose(found.per_example[:, layer, column], want, rtol=1e-3, atol=1e-4)
    with compiled() as programs:
        ji.sweep(lm, TOKENS, METRIC, steer, {"layer": range(3), "strength": (-1.0, 7.0)})
        v.add(2.0).arguments[0].sum()
    assert not programs


def test_a_layer_may_be_data_where_the_vector_has_all(lm: ji.LanguageModel) -> None:
    v = made(lm)
    run = jax.jit(lambda layer: ji.forward(lm.params, TOKENS, CONFIG, edits=[v.add(1.0, layer=layer)]).logits)
    np.testing.assert_allclose(run(2), ji.run(lm, TOKENS, edits=v.add(1.0, layer=2)).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ji.InputError, match="only has layers 0, 2"):
        jax.jit(lambda layer: v.at([0, 2]).add(1.0, layer=layer).select)(2)


# --------------------------------------------------------------------------------------------------- its own parts


def test_parts_and_multiples(lm: ji.LanguageModel, tmp_path: Any) -> None:
    v = make_vector(lm, "z", (0, 1, 2), made(lm, "z").values, norms=[1, 2, 4], accuracy=[0.5, 0.75, 1.0], how=(("method", "heads"),))
    part = v.at([2, 0])
    assert part.layers == (2, 0) and part.accuracy.tolist() == [1.0, 0.5] and part.norms.tolist() == [4, 1]
    np.testing.assert_array_equal(part.values, v.values[[2, 0]])
    np.testing.assert_allclose(v.sizes, np.sqrt((v.values.reshape(3, -1) ** 2).sum(axis=1)), rtol=1e-6)
    np.testing.assert_allclose(v.unit().sizes, 1, rtol=1e-6)
    np.testing.assert_array_equal((-v).values, -v.values)
    np.testing.assert_array_equal((2 * v).values, v.values * 2)
    np.testing.assert_array_equal(part.add(1.0).arguments[0][1], np.ones((1, 1, 4, 6)))  # a layer that it does not have
    assert repr(v) == "SteeringVector(heads at z, layers 0-2, tells apart 100% at layer 2)"
    assert repr(v.at(1)) == "SteeringVector(heads at z, layers 1, tells apart 75% at layer 1)"
    assert ranges([7, 0, 1, 2, 9, 10]) == "0-2, 7, 9-10"
    v.view().save(tmp_path / "lines.html")
    assert set(v.view().to_json()) and "held-out accuracy" in v.view().to_json() and "size" in made(lm).view().to_json()


def test_its_model_passes_in_other_types_and_layouts_and_others_do_not(lm: ji.LanguageModel) -> None:
    v = made(lm)
    half = lm.replace(params=jax.tree.map(lambda w: w.astype(jnp.bfloat16), lm.params))
    for same in (lm, half, lm.by_layer(), half.by_layer()):
        assert v.check(same) is v
    other = ji.LanguageModel(params(CONFIG, seed=1), CONFIG)
    with pytest.raises(ji.InputError, match=r"made from another model of the same shape \(their weights have cosine -?0\.\d\d\)"):
        v.check(other)
    with pytest.raises(ji.InputError, match="another model of the same shape"):  # the same embedding with other blocks
        v.check(lm.replace(params={**lm.params, "blocks": other.params["blocks"]}))
    assert v.check(other, force=True) is v
    for name in ("one", "llama"):
        config = CONFIGS[name]
        wider = ji.LanguageModel(params(config), config)
        if name == "one":
            with pytest.raises(ji.InputError, match="is for a model of 3 layers"):
                v.check(wider, force=True)
    mixed = CONFIGS["mixed"]
    v.check(ji.LanguageModel(params(mixed), mixed), force=True)  # groups of layers of two kinds have a sketch too


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda lm, v, z: make_vector(lm, "resid_post", (1,), np.zeros((1, 24))), "direction of layer 1 has norm zero or is not finite"),
        (lambda lm, v, z: make_vector(lm, "resid_post", (0, 2), np.asarray([[1.0] * 24, [np.nan] * 24])), "direction of layer 2"),
        (lambda lm, v, z: make_vector(lm, "resid_post", (0, 2), np.ones((2, 23))), r"has shape \[2, 24\]; got \[2, 23\]"),
        (lambda lm, v, z: make_vector(lm, "resid_post", (0, 3), np.ones((2, 24))), "layers are .0, 3.; expected different ones of 0-2"),
        (lambda lm, v, z: make_vector(lm, "resid_post", (0,), np.ones((1, 24)), norms=[1, 2]), "one number for each of 1 layers"),
        (lambda lm, v, z: make_vector(lm, "pattern", (0,), np.ones((1, 24))), "axes L B P and features, such as resid_pre"),
        (lambda lm, v, z: make_vector(lm, "ln1_scale", (0,), np.ones((1, 1))), "axes L B P and features"),
        (lambda lm, v, z: v.add(1.0, layer=5), "no direction for layer 5; it has layers 0, 2"),
        (lambda lm, v, z: v.add(1.0, layer=-1), "no direction for layer -1"),
        (lambda lm, v, z: v.at(0.5), "layers are whole numbers"),
        (lambda lm, v, z: v.swap(v.at(0)), "other vector has no direction for layer 2"),
        (lambda lm, v, z: v.swap(z), "Two vectors of one edit must be of one site"),
        (lambda lm, v, z: z.swap(make_vector(lm, "z", (0, 2), HEADS)), "no direction for head 2 of layer 0"),
        (lambda lm, v, z: z.add(1.0, where=np.ones((3, 1, 1, 4), bool)), "choose among them with head="),
        (lambda lm, v, z: vectors.check_layers([0, 3], lm.config), "expected one or more of 0 to 2"),
        (lambda lm, v, z: vectors.check_layers([], lm.config), "expected one or more of 0 to 2"),
    ),
)  # fmt: skip
def test_what_cannot_steer_is_refused(lm: ji.LanguageModel, make: Any, message: str) -> None:
    v, z = made(lm, layers=(0, 2)), made(lm, "z", layers=(0, 2))
    with pytest.raises(ji.InputError, match=message):
        make(lm, v, z)


def test_prompts_that_it_was_made_from_are_known_whatever_their_padding(lm: ji.LanguageModel) -> None:
    v = make_vector(lm, "resid_post", (0,), np.ones((1, 24)), how=(texts_of(TOKENS),))
    fresh = prompts(CONFIG, (6, 4), seed=9)
    check_held_out(v, fresh)
    ids = np.zeros((2, 8), np.int32)
    ids[0, :6], ids[1, 3:] = np.asarray(fresh.ids)[0, :6], np.asarray(TOKENS.ids)[1, :5]
    mask = np.zeros((2, 8), bool)
    mask[0, :6], mask[1, 3:] = True, True
    with pytest.raises(ji.InputError, match="Prompt 1 is one that the vector was made from"):
        check_held_out(v, ji.Tokens.from_ids(ids, mask))
