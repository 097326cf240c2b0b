"""Mixture of experts: exact routing against the dense formula, and experts that can be ablated, forced and read like heads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.model.experts import grouped_linear, route
from tests.tiny import CONFIGS, params, prompts

CONFIG = CONFIGS["moe"]
WEIGHTS = params(CONFIG)
TOKENS = prompts(CONFIG)


@pytest.mark.parametrize(("assignments", "experts"), [(1, 4), (7, 3), (40, 4), (200, 5), (12, 60), (3000, 2)])
def test_grouped_products_equal_each_assignments_own_matrix(assignments: int, experts: int) -> None:
    random = np.random.default_rng(assignments)
    index = random.choice(experts, assignments, p=random.dirichlet(np.full(experts, 0.5)))
    x, weight = random.normal(size=(assignments, 6)).astype(np.float32), random.normal(size=(experts, 6, 5)).astype(np.float32)
    routing = route(jnp.asarray(index), experts)
    out = grouped_linear(jnp.asarray(x), jnp.asarray(weight), routing)
    np.testing.assert_allclose(out, np.einsum("AI,AIO->AO", x, weight[index]), rtol=1e-4, atol=1e-5)
    assert len(set(np.asarray(routing.slot).tolist())) == assignments
    assert routing.used.sum() * routing.block <= assignments + experts * routing.block


def test_rows_multiplied_are_few_beside_running_every_expert_on_every_token() -> None:
    """256 tokens, 2 of 16 experts: at most 1.5 times the routed rows, an eighth of what dense experts would take."""
    index = np.random.default_rng(0).integers(0, 16, 512)
    routing = route(jnp.asarray(index), 16)
    assert int(routing.used.sum()) * routing.block <= 1.5 * 512
    assert routing.used.shape[0] * routing.block <= 2 * 512


def test_grouped_products_are_differentiated_and_mapped_as_the_formula_is() -> None:
    random = np.random.default_rng(3)
    x, weight = (jnp.asarray(random.normal(size=size), jnp.float32) for size in ((2, 9, 6), (4, 6, 5)))
    index = jnp.asarray(random.integers(0, 3, (2, 9)))  # nothing goes to the last expert
    near: Any = {"rtol": 1e-4, "atol": 1e-5}

    def ours(x: jax.Array, weight: jax.Array, index: jax.Array = index[0]) -> jax.Array:
        return jnp.sin(grouped_linear(x, weight, route(index, 4)))

    def plain(x: jax.Array, weight: jax.Array, index: jax.Array = index[0]) -> jax.Array:
        return jnp.sin(jnp.einsum("AI,AIO->AO", x, weight[index]))

    change = (jnp.cos(x[0]), jnp.cos(weight))
    for arguments in ((x[0],), (x[0], weight)):
        partial = [lambda *given, f=f: f(*given, *(x[0], weight)[len(given) :]) for f in (ours, plain)]
        pushed = [jax.jvp(f, arguments, change[: len(arguments)])[1] for f in partial]
        np.testing.assert_allclose(pushed[0], pushed[1], **near)
        slopes = [jax.grad(lambda *given, f=f: (f(*given) ** 2).sum(), tuple(range(len(arguments))))(*arguments) for f in partial]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **near), *slopes)
    batched = [jax.vmap(f, (0, None, 0))(x, weight, index) for f in (ours, plain)]
    np.testing.assert_allclose(batched[0], batched[1], **near)
    second = [jax.jvp(jax.grad(lambda x, f=f: f(x, weight).sum()), (x[0],), (change[0],))[1] for f in (ours, plain)]
    np.testing.assert_allclose(second[0], second[1], **near)


def test_a_backward_pass_keeps_no_copy_of_a_matrix_for_each_block() -> None:
    x, weight, index = jnp.ones((200, 64)), jnp.ones((4, 64, 256)), jnp.arange(200) % 4
    _, pull = jax.vjp(lambda x: grouped_linear(x, weight, route(index, 4)), x)
    kept = sum(leaf.size for leaf in jax.tree.leaves(pull) if isinstance(leaf, jax.Array))
    blocks = route(index, 4).used.shape[0]
    assert kept < weight.size + 4 * x.size < blocks * 64 * 256


def dense(x: np.ndarray, layer: int, weights: np.ndarray) -> np.ndarray:
    """What the experts of a layer write, every expert on every token."""
    p = jax.tree.map(lambda w: np.asarray(w[layer]), WEIGHTS["blocks"][0]["experts"])
    gate, up = (np.einsum("BPD,XDM->BPXM", x, p[name]) for name in ("W_gate", "W_in"))
    out = np.einsum("BPXM,XMD->BPXD", gate / (1 + np.exp(-gate)) * up, p["W_out"])
    return np.einsum("BPXD,BPX->BPD", out, weights)


def run(*edits: ji.edits.Edit) -> ji.Trace:
    return ji.forward(WEIGHTS, TOKENS, CONFIG, edits=edits, sites="all")


def test_experts_write_the_weighted_sum_of_those_chosen() -> None:
    trace = run()
    weights = np.asarray(trace["expert_weights"])
    assert ((weights > 0).sum(-1) == 2).all()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(np.sort(np.argsort(-weights, -1)[..., :2]), np.sort(trace["expert_index"]))
    for layer in range(3):
        np.testing.assert_allclose(
            trace["mlp_out"][layer], dense(np.asarray(trace["mlp_in"][layer]), layer, weights[layer]), rtol=1e-3, atol=1e-4
        )


def test_an_expert_is_ablated_and_forced_by_its_number() -> None:
    base = run()
    expert = int(base["expert_index"][1, 0, 3, 0])
    gone = run(ji.edits.zero("expert_weights", layer=1, expert=expert))
    kept = np.asarray(base["expert_weights"])[1] * (np.arange(6) != expert)
    np.testing.assert_allclose(gone["mlp_out"][1], dense(np.asarray(base["mlp_in"][1]), 1, kept), rtol=1e-3, atol=1e-4)
    forced = run(ji.edits.replace("expert_weights", np.eye(6)[4], layer=1))
    only = np.broadcast_to(np.eye(6)[4], kept.shape)
    np.testing.assert_allclose(forced["mlp_out"][1], dense(np.asarray(base["mlp_in"][1]), 1, only), rtol=1e-3, atol=1e-4)
    neurons = np.asarray(run(ji.edits.zero("mlp_post", layer=1, expert=expert))["mlp_post"])[1]
    chosen = np.asarray(base["expert_index"])[1] == expert
    assert not neurons[chosen].any()
    assert neurons[~chosen].any(-1).all()


def test_layers_of_mixed_kinds_are_groups_and_sites_know_their_layers() -> None:
    config = CONFIGS["mixed"]
    trace = ji.forward(params(config), TOKENS, config, sites="all")
    assert [(group.start, group.stop) for group in config.groups] == [(0, 1), (1, 3)]
    assert trace["resid_post"].shape[0] == 3
    assert trace.layers_of("router_logits") == (1, 2)
    assert trace.layers_of("dense_post") == (0,)
    assert trace["dense_post"].shape == (1, 2, 7, 20)
    assert trace["mlp_post"].shape == (2, 2, 7, 3, 10)
    np.testing.assert_array_equal(trace.at("router_logits", layer=2), trace["router_logits"][1])
    each = np.random.default_rng(0).normal(size=(2, 2, 7, 5)).astype(np.float32)
    edited = ji.forward(params(config), TOKENS, config, edits=[ji.edits.replace("router_logits", each)], sites=("router_logits",))
    np.testing.assert_allclose(edited["router_logits"], each, rtol=1e-6)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: ji.edits.zero("expert_index"), "read-only"),
        (lambda: ji.edits.zero("expert_weights", expert=6), "expert 6 is out of range"),
        (lambda: ji.edits.zero("shared_out"), "no shared expert"),
        (lambda: ji.edits.zero("dense_post"), "all its layers are of one kind"),
    ],
)  # fmt: skip
def test_bad_expert_edits_are_refused(edit: Any, message: str) -> None:
    with pytest.raises(ji.InputError, match=message):
        run(edit())


def test_a_layer_without_the_site_is_refused_with_those_that_have_it() -> None:
    config = CONFIGS["mixed"]
    with pytest.raises(ji.InputError, match="layer 0 is out of range; this model has site 'router_logits' at layers 1 to 2"):
        ji.forward(params(config), TOKENS, config, edits=[ji.edits.zero("router_logits", layer=0)])
