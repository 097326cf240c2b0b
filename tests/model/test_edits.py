"""Edits: live at every site of every architecture, selected by one rule, and never a reason to compile again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.model.sites import SITES
from tests.live import check_live
from tests.tiny import CONFIGS, params, prompts


@pytest.mark.parametrize("name", ["oss", "mixed", "masked", "attention", "solu", "one"])  # the other kinds are among the rows
def test_every_site_is_live_and_a_switched_off_edit_changes_no_bit(name: str) -> None:
    config = CONFIGS[name]
    check_live(config, params(config), prompts(config), since=2)


LLAMA = CONFIGS["llama"]


def resid_after(
    edit: ji.edits.Edit, *, tokens: ji.Tokens | None = None, site: str = "resid_pre", config: ji.TransformerConfig = LLAMA
) -> np.ndarray:
    """The site itself after an edit of it, in one run."""
    trace = ji.forward(params(config), tokens or prompts(config), config, edits=[edit], sites=(site,))
    return np.asarray(trace[site])


def changed(edit: ji.edits.Edit, **options: Any) -> np.ndarray:
    """Where (over the site's leading axes) an edit that writes a huge constant shows."""
    return np.asarray(np.isclose(resid_after(edit, **options), 777.0).all(-1))


def mask_of(shape: tuple[int, ...], *places: tuple[Any, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


@pytest.mark.parametrize(
    ("selection", "places"),
    [
        ({"layer": 1}, [(1,)]),
        ({"layer": [0, 2]}, [(0,), (2,)]),
        ({"layer": 1, "position": 3}, [(1, slice(None), 3)]),
        ({"layer": 1, "position": [3, 5]}, [(1, slice(None), 3), (1, slice(None), 5)]),
        ({"layer": 1, "position": [[3], [5]]}, [(1, 0, 3), (1, 1, 5)]),
        ({"layer": 1, "position": [[3, 4], [5, 0]]}, [(1, 0, 3), (1, 0, 4), (1, 1, 5), (1, 1, 0)]),
        ({"layer": 1, "position": -1}, [(1, 0, 6), (1, 1, 6)]),
        ({"layer": 1, "batch": 1}, [(1, 1)]),
        ({"layer": 1, "batch": [0], "position": [0, -2]}, [(1, 0, 0), (1, 0, 5)]),
        ({"layer": [[0], [2]], "position": 2}, [(0, 0, 2), (2, 1, 2)]),
        ({"where": mask_of((3, 2), (0, 1), (2, 0))}, [(0, 1), (2, 0)]),
        ({"where": mask_of((3, 1, 7), (1, 0, 4)), "batch": 0}, [(1, 0, 4)]),
        ({"where": mask_of((1, 2, 7), (0, 1, 2)), "layer": 2}, [(2, 1, 2)]),
        ({}, [(slice(None),)]),
    ],
)  # fmt: skip
def test_selection_rule(selection: dict[str, Any], places: list[tuple[Any, ...]]) -> None:
    np.testing.assert_array_equal(changed(ji.edits.replace("resid_pre", 777.0, **selection)), mask_of((3, 2, 7), *places))


def test_negative_positions_count_from_each_prompts_own_end() -> None:
    for left in (False, True):
        tokens = prompts(LLAMA, (5, 7), width=9, left=left)
        hit = changed(ji.edits.replace("resid_pre", 777.0, layer=0, position=[0, -2]), tokens=tokens)[0]
        columns = [[4, 7], [2, 7]] if left else [[0, 3], [0, 5]]
        np.testing.assert_array_equal(hit, mask_of((2, 9), (0, columns[0]), (1, columns[1])))


def test_heads_are_query_heads_on_z_and_key_value_heads_on_k() -> None:
    np.testing.assert_array_equal(
        changed(ji.edits.replace("z", 777.0, layer=0, head=3, position=1), site="z"), mask_of((3, 2, 7, 4), (0, slice(None), 1, 3))
    )
    np.testing.assert_array_equal(
        changed(ji.edits.replace("k", 777.0, layer=0, head=1), site="k"), mask_of((3, 2, 7, 2), (0, slice(None), slice(None), 1))
    )
    np.testing.assert_array_equal(
        changed(ji.edits.replace("z", 777.0, where=ji.heads("0.3 2.1"), position=0), site="z"),
        mask_of((3, 2, 7, 4), (0, slice(None), 0, 3), (2, slice(None), 0, 1)),
    )
    with pytest.raises(ji.InputError, match="head 2 is out of range"):
        resid_after(ji.edits.zero("k", layer=0, head=2), site="k")


def test_a_mask_equals_the_product_it_spells() -> None:
    base = {"site": "z", "value": np.random.default_rng(0).normal(size=6)}
    product = ji.edits.replace(**base, layer=[0, 2], position=[1, 4], head=[0, 3])
    where = np.zeros((3, 2, 7, 4), bool)
    where[np.ix_([0, 2], [0, 1], [1, 4], [0, 3])] = True
    np.testing.assert_array_equal(resid_after(product, site="z"), resid_after(ji.edits.replace(**base, where=where), site="z"))


def test_a_value_broadcasts_against_the_site_and_with_one_more_axis_is_per_layer() -> None:
    shared, each = np.random.default_rng(0).normal(size=(7, 24)), np.random.default_rng(1).normal(size=(3, 1, 7, 24))
    np.testing.assert_allclose(resid_after(ji.edits.replace("resid_pre", shared))[1, 0], shared, rtol=1e-6)
    np.testing.assert_allclose(resid_after(ji.edits.replace("resid_pre", each, layer=[0, 2]))[[0, 2], 1], each[[0, 2], 0], rtol=1e-6)
    np.testing.assert_allclose(resid_after(ji.edits.replace("resid_pre", each, layer=2))[2, 1], each[2, 0], rtol=1e-6)


def test_operations_do_what_their_formula_says() -> None:
    base = np.asarray(ji.forward(params(LLAMA), prompts(LLAMA), LLAMA, sites=("resid_pre",))["resid_pre"])[0]
    random = np.random.default_rng(3)
    a, b = random.normal(size=24), random.normal(size=24)
    ua, ub = a / np.linalg.norm(a), b / np.linalg.norm(b)

    def first(edit: ji.edits.Edit) -> np.ndarray:
        return resid_after(edit)[0]

    along = base @ ua
    np.testing.assert_allclose(first(ji.edits.add("resid_pre", a, layer=0)), base + a, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first(ji.edits.scale("resid_pre", -2, layer=0)), -2 * base, rtol=1e-5)
    np.testing.assert_array_equal(first(ji.edits.zero("resid_pre", layer=0)), 0)
    np.testing.assert_allclose(first(ji.edits.project_out("resid_pre", a, layer=0)) @ ua, 0, atol=1e-5)
    np.testing.assert_allclose(first(ji.edits.clamp("resid_pre", a, -0.1, 0.2, layer=0)) @ ua, np.clip(along, -0.1, 0.2), atol=1e-5)
    swapped = first(ji.edits.swap("resid_pre", a, b, layer=0))
    np.testing.assert_allclose(swapped @ ua, base @ ub, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(swapped @ ub, base @ ua, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first(ji.edits.swap("resid_pre", a, a, layer=0)), base, rtol=1e-5)


def test_edits_act_in_the_order_given_and_capture_sees_the_last() -> None:
    run = lambda *edits: np.asarray(ji.forward(params(LLAMA), prompts(LLAMA), LLAMA, edits=edits, sites=("z",))["z"])  # noqa: E731
    add, scale = ji.edits.add("z", 1.0, layer=0), ji.edits.scale("z", 3.0, layer=0)
    base = run()[0]
    np.testing.assert_allclose(run(add, scale)[0], (base + 1) * 3, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(scale, add)[0], base * 3 + 1, rtol=1e-4, atol=1e-5)


def test_knockout_removes_keys_and_a_row_without_keys_is_zero() -> None:
    edit = ji.edits.knockout(query=-1, key=[0, 2], layer=1, head=2)
    trace = ji.forward(params(LLAMA), prompts(LLAMA), LLAMA, edits=[edit], sites=("pattern",))
    row = np.asarray(trace["pattern"])[1, :, 2, -1]
    assert not row[:, [0, 2]].any()
    np.testing.assert_allclose(row.sum(-1), 1, atol=1e-5)
    whole = ji.edits.knockout(query=3, layer=1, head=2)
    loss = lambda x: ji.forward(params(LLAMA), prompts(LLAMA), LLAMA, edits=[whole], inputs=x, sites=("pattern", "z"))  # noqa: E731
    x = ji.forward(params(LLAMA), prompts(LLAMA), LLAMA, sites=("embed",))["embed"]
    trace = loss(x)
    assert not np.asarray(trace["pattern"])[1, :, 2, 3].any()
    assert not np.asarray(trace["z"])[1, :, 3, 2].any()
    assert jnp.isfinite(jax.grad(lambda x: loss(x).logits.sum())(x)).all()


def ratio(x: jax.Array) -> jax.Array:
    return jnp.sqrt(x) / x  # infinite value or slope at 0 and below


def reversed_in_position(x: jax.Array) -> jax.Array:
    return x[:, ::-1]


def test_what_is_not_selected_never_leaks_a_nan() -> None:
    """Forward and backward, with a function that is NaN at unselected places, and with NaN values there."""
    config, weights, tokens = LLAMA, params(LLAMA), prompts(LLAMA)
    x = ji.forward(weights, tokens, config, sites=("embed",))["embed"].at[:, 0].set(0.0).at[:, 3].set(2.0)
    bad = np.where(np.arange(7)[None, :, None] == 3, 1.5, np.nan)
    edits = [
        ji.edits.apply("resid_pre", ratio, position=3, layer=0),
        ji.edits.scale("resid_pre", bad, position=3, layer=0),
        ji.edits.project_out("resid_mid", np.ones(24), position=3, layer=1),
    ]
    value = lambda x: ji.forward(weights, tokens, config, edits=edits, inputs=x).logits.sum()  # noqa: E731
    assert jnp.isfinite(value(x))
    assert jnp.isfinite(jax.grad(value)(x)).all()


def test_apply_sees_the_whole_axes_that_it_mixes() -> None:
    edit = ji.edits.apply("resid_pre", reversed_in_position, mixes=("position",), layer=0, position=[0, 1])
    base = np.asarray(ji.forward(params(LLAMA), prompts(LLAMA), LLAMA, sites=("resid_pre",))["resid_pre"])[0]
    got = resid_after(edit)[0]
    np.testing.assert_allclose(got[:, :2], base[:, :-3:-1], rtol=1e-6)
    np.testing.assert_allclose(got[:, 2:], base[:, 2:], rtol=1e-6)


def test_apply_runs_its_function_only_at_the_layers_selected() -> None:
    seen = []

    def noted(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda: seen.append(1))
        return x * 2

    jax.block_until_ready(ji.forward(params(LLAMA), prompts(LLAMA), LLAMA, edits=[ji.edits.apply("z", noted, layer=1)]).logits)
    jax.effects_barrier()
    assert len(seen) == 1


def transcode(x: jax.Array, weight: jax.Array) -> jax.Array:
    return jnp.einsum("BPD,DO->BPO", x, weight)


def test_rewire_writes_a_function_of_other_sites_of_the_block() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 24, 24)).astype(np.float32)
    edit = ji.edits.rewire("mlp_in", "mlp_out", transcode, weight, per_layer=True, layer=[0, 2], position=[1, 2])
    trace = ji.forward(params(LLAMA), prompts(LLAMA), LLAMA, edits=[edit], sites=("mlp_in", "mlp_out"))
    want = np.einsum("LBPD,LDO->LBPO", trace["mlp_in"], weight)
    np.testing.assert_allclose(np.asarray(trace["mlp_out"])[[0, 2], :, 1:3], want[[0, 2], :, 1:3], rtol=1e-4, atol=1e-4)
    assert not np.isclose(trace["mlp_out"][1], want[1], atol=1e-2).all()
    with pytest.raises(ji.InputError, match="computed after"):
        ji.forward(params(LLAMA), prompts(LLAMA), LLAMA, edits=[ji.edits.rewire("mlp_out", "z", transcode, weight[0])])


def test_a_sweep_is_vmap_over_the_arrays_of_an_edit() -> None:
    config, weights, tokens = LLAMA, params(LLAMA), prompts(LLAMA)
    values = np.random.default_rng(0).normal(size=(3, 24)).astype(np.float32)
    sweep = jax.vmap(
        lambda layer, value: ji.forward(weights, tokens, config, edits=[ji.edits.add("resid_pre", value, layer=layer, position=-1)]).logits
    )
    got = sweep(jnp.arange(3), values)
    for layer in range(3):
        want = ji.forward(weights, tokens, config, edits=[ji.edits.add("resid_pre", values[layer], layer=layer, position=-1)]).logits
        np.testing.assert_allclose(got[layer], want, rtol=1e-4, atol=2e-5)


def test_gradients_reach_edit_values_of_every_layer() -> None:
    config, weights, tokens = LLAMA, params(LLAMA), prompts(LLAMA)
    zeros = jnp.zeros(SITES["z"].shape(config, *tokens.ids.shape))
    gradient = jax.grad(lambda v: jnp.square(ji.forward(weights, tokens, config, edits=[ji.edits.add("z", v)]).logits).sum())(zeros)
    assert (np.abs(np.asarray(gradient)).max(-1) > 0).all()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: ji.edits.zero("residual"), "no site 'residual'"),
        (lambda: ji.edits.zero("pos_embed"), "positions are rotary"),
        (lambda: ji.edits.zero("z", layer=3), "layer 3 is out of range"),
        (lambda: ji.edits.zero("z", layer=-1), "layer -1 is out of range"),
        (lambda: ji.edits.zero("z", head=4), "head 4 is out of range"),
        (lambda: ji.edits.zero("z", position=7), "position 7 is out of range for prompt 0, which has 7 tokens"),
        (lambda: ji.edits.zero("z", position=[[1], [-8]]), "position -8 is out of range for prompt 1"),
        (lambda: ji.edits.zero("mlp_post", neuron=20), "neuron 20 is out of range"),
        (lambda: ji.edits.zero("pattern", position=0), "use query= and key="),
        (lambda: ji.edits.zero("z", neuron=0), "cannot be selected by neuron"),
        (lambda: ji.edits.zero("z", token=0), "unknown selection token"),
        (lambda: ji.edits.zero("z", where=ji.heads("0.9")), "head 9 is out of range"),
        (lambda: ji.edits.zero("resid_pre", where=ji.heads("0.1")), "no head axis"),
        (lambda: ji.edits.zero("z", where=np.ones((3, 5), bool)), "expected a mask over the leading axes"),
        (lambda: ji.edits.zero("z", layer=0.5), "must be integers"),
        (lambda: ji.edits.replace("z", np.zeros(5)), "does not broadcast"),
        (lambda: ji.edits.replace("z", np.zeros((2, 2, 7, 4, 6))), "needs 3 of them"),
        (lambda: ji.edits.apply("z", lambda x: x[..., :2]), "the function returned shape"),
        (lambda: ji.edits.project_out("resid_pre", np.zeros(24)), "norm zero"),
        (lambda: ji.edits.rewire("embed", "mlp_out", transcode), "cannot read 'embed'"),
        (lambda: ji.heads("3"), "layer.head"),
        (lambda: ji.edits.zero("z", when="later"), "expected 'all', 'prompt', 'new'"),
    ],
)  # fmt: skip
def test_bad_edits_are_refused_in_one_sentence(edit: Any, message: str) -> None:
    with pytest.raises(ji.InputError, match=message):
        ji.forward(params(LLAMA), prompts(LLAMA), LLAMA, edits=[edit()])


def test_an_edit_of_a_site_with_an_mlp_is_refused_where_there_is_none() -> None:
    with pytest.raises(ji.InputError, match="blocks have attention only"):
        config = CONFIGS["attention"]
        ji.forward(params(config), prompts(config), config, edits=[ji.edits.zero("mlp_out")])
