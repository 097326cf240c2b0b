"""Causal scrubbing: hypotheses whose outcome is known, and activations computed by hand."""

from typing import Any

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.methods.scrubbing import _Runs
from tests.tiny import CONFIGS, params, prompts

N = 6
EACH = np.arange(N)  # a feature that only the input itself has


def setting(name: str) -> tuple[ji.LanguageModel, ji.Tokens, Any]:
    lm = ji.LanguageModel(params(CONFIGS[name]), CONFIGS[name])
    return lm, prompts(lm.config, (5,) * N), ji.metrics.logit_difference(np.arange(N), np.arange(N) + 20)


def close(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=3e-5)


def rows(tokens: ji.Tokens, chosen: np.ndarray) -> ji.Tokens:
    return ji.Tokens.from_ids(np.asarray(tokens.ids)[chosen])


def test_a_hypothesis_that_names_everything_recovers_all_and_one_that_names_nothing_none() -> None:
    lm, tokens, metric = setting("gemma")
    parts = [ji.ScrubNode("embed", EACH), *(ji.ScrubNode(site, EACH, layer) for layer in range(3) for site in ("attn_out", "mlp_out"))]
    whole = ji.causal_scrubbing(lm, tokens, metric, parts, batch_size=4)
    close(whole.scrubbed, whole.intact)
    close(whole.intact, metric(ji.run(lm, tokens)))
    close(whole.recovered, 1)
    assert abs(whole.intact - whole.random).max() > 0.1
    nothing = ji.causal_scrubbing(lm, tokens, metric, [], draws=2, batch_size=4)
    judge = ji.metrics.logit_difference(nothing.references, nothing.references + 20)
    close(nothing.scrubbed, judge(ji.run(lm, rows(tokens, nothing.others["output"]))))
    assert len(nothing.scrubbed) == 2 * N


def test_a_node_is_taken_from_inputs_with_its_feature_and_reaches_its_parent_directly() -> None:
    lm, tokens, metric = setting("llama")
    feature = np.array(["a", "a", "b", "b", "b", "c"])
    head = ji.ScrubNode("z", feature, layer=1, head=2, position=[2, 4])
    mlp = ji.ScrubNode("mlp_out", EACH % 2, layer=2, position=-1, children=[head])
    found = ji.causal_scrubbing(lm, tokens, metric, [mlp], seed=7)
    x_mlp, x_head = found.inputs["output > mlp_out 2"], found.inputs["output > mlp_out 2 > z 1.2"]
    np.testing.assert_array_equal(x_mlp % 2, found.references % 2)
    np.testing.assert_array_equal(feature[x_head], feature[x_mlp])

    other, root = found.others["output > mlp_out 2"], found.others["output"]
    sites = ("resid_mid", "resid_post", "head_out", "mlp_out")
    y, x, last = (ji.run(lm, rows(tokens, chosen), sites=sites) for chosen in (other, x_head, root))
    change = np.asarray(x["head_out"])[1, :, :, 2] - np.asarray(y["head_out"])[1, :, :, 2]
    change[:, [0, 1, 3]] = 0
    mid = np.asarray(y["resid_mid"])[2] + change
    edit = ji.edits.replace("resid_mid", mid, layer=2)
    mlp_out = np.asarray(ji.run(lm, rows(tokens, other), sites=("mlp_out",), edits=edit)["mlp_out"])[2]
    final = np.array(last["resid_post"])[2]
    final[:, -1] += (mlp_out - np.asarray(last["mlp_out"])[2])[:, -1]
    close(found.scrubbed, metric(ji.run(lm, rows(tokens, root), edits=ji.edits.replace("resid_post", final, layer=2))))


def test_queries_come_from_one_input_and_all_else_of_a_head_from_another() -> None:
    lm, tokens, metric = setting("llama")
    query = ji.ScrubNode("q", EACH, layer=2, head=1)
    found = ji.causal_scrubbing(lm, tokens, metric, [ji.ScrubNode("z", EACH, layer=2, head=1, children=[query])], seed=2)
    q = np.asarray(ji.run(lm, tokens, sites=("q",))["q"])[2]
    other, root = found.others["output > z 2.1"], found.others["output"]
    edit = ji.edits.replace("q", q[found.inputs["output > z 2.1 > q 2.1"]], layer=2, head=1)
    z = np.asarray(ji.run(lm, rows(tokens, other), sites=("z",), edits=edit)["z"])[2]
    mlp = np.asarray(ji.run(lm, rows(tokens, root), sites=("mlp_in",))["mlp_in"])[2]
    edits = [ji.edits.replace("z", z, layer=2, head=1), ji.edits.replace("mlp_in", mlp, layer=2)]
    close(found.scrubbed, metric(ji.run(lm, rows(tokens, root), edits=edits)))


def test_positions_of_each_input_move_to_those_of_the_input_that_is_run() -> None:
    lm, tokens, metric = setting("llama")
    where = np.asarray([1, 2, 3, 1, 2, 3])
    head = ji.ScrubNode("z", EACH, layer=1, head=2, position=where[:, None])
    mlp = ji.ScrubNode("mlp_out", EACH, layer=2, position={"here": where, "last": -1}, children=[head])
    found = ji.causal_scrubbing(lm, tokens, metric, [mlp], seed=3)
    x, other, root = found.inputs["output > mlp_out 2 > z 1.2"], found.others["output > mlp_out 2"], found.others["output"]
    y = ji.run(lm, rows(tokens, other), sites=("resid_mid", "head_out"))
    heads, mid, each = np.asarray(ji.run(lm, rows(tokens, x), sites=("head_out",))["head_out"])[1], np.array(y["resid_mid"])[2], EACH
    mid[each, where[other]] += heads[each, where[x], 2] - np.asarray(y["head_out"])[1][each, where[other], 2]
    mlp_out = np.asarray(ji.run(lm, rows(tokens, other), sites=("mlp_out",), edits=ji.edits.replace("resid_mid", mid, layer=2))["mlp_out"])[
        2
    ]
    last = ji.run(lm, rows(tokens, root), sites=("mlp_out",))
    value = np.array(last["mlp_out"])[2]
    value[each, where[root]], value[:, -1] = mlp_out[each, where[other]], mlp_out[:, -1]
    close(found.scrubbed, metric(ji.run(lm, rows(tokens, root), edits=ji.edits.replace("mlp_out", value, layer=2))))


def test_finished_batches_are_kept_and_another_call_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, tokens, metric = setting("llama")
    nodes = [ji.ScrubNode("resid_post", EACH % 2, layer=2)]
    options: dict[str, Any] = {"draws": 2, "batch_size": N, "out": tmp_path / "kept"}
    whole = ji.causal_scrubbing(lm, tokens, metric, nodes, **options)
    kept = sorted((tmp_path / "kept").glob("cells-*"))
    assert len(kept) == 2
    kept[1].unlink()
    ran = []
    plain = _Runs.plain
    monkeypatch.setattr(_Runs, "plain", lambda self, rows, *rest: ran.append(rows) or plain(self, rows, *rest))
    again = ji.causal_scrubbing(lm, tokens, metric, nodes, **options)
    for name in ("scrubbed", "intact", "random"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert len(ran) == 5  # for one batch: the leaf, the output twice, and the two that it is judged against
    with pytest.raises(ji.InputError, match="another sweep"):
        ji.causal_scrubbing(lm, tokens, metric, nodes, seed=1, out=tmp_path / "kept")


def test_metrics_are_judged_by_the_reference_inputs() -> None:
    lm, tokens, _ = setting("llama")
    found = ji.causal_scrubbing(lm, tokens, ji.metrics.cross_entropy(), [ji.ScrubNode("resid_post", EACH, layer=2)])
    close(found.scrubbed, ji.metrics.cross_entropy()(ji.run(lm, tokens)))
    close(found.recovered, 1)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([ji.ScrubNode("z", EACH[:3], layer=0)], "a label for each of the 6 inputs"),
        ([ji.ScrubNode("z", EACH)], "expected a layer"),
        ([ji.ScrubNode("z", EACH, layer=3)], "layer 3 is out of range"),
        ([ji.ScrubNode("ln_final", EACH)], "comes after the blocks"),
        ([ji.ScrubNode("z", EACH, layer=1, children=[ji.ScrubNode("mlp_out", EACH, layer=1)])], "not computed before its parent"),
        ([ji.ScrubNode("z", EACH, layer=1), ji.ScrubNode("z", EACH, layer=1, position=2)], "two of its siblings"),
        ([ji.ScrubNode("z", EACH, layer=1, head=EACH[:, None])], "the same in every input"),
        ([ji.ScrubNode("z", EACH, layer=1, position=EACH[:, None])], "position 5 is out of range for prompt 5"),
        ([ji.ScrubNode("z", EACH, layer=1, position=EACH[:5, None])], "for each of the 6 prompts"),
        ([ji.ScrubNode("z", EACH, layer=1, position={"a": 4, "b": -1})], r"input 0 has \[4, 4\]"),
    ],
)  # fmt: skip
def test_what_is_refused(nodes: list[ji.ScrubNode], message: str) -> None:
    lm, tokens, metric = setting("llama")
    with pytest.raises(ji.InputError, match=message):
        ji.causal_scrubbing(lm, tokens, metric, nodes)
    with pytest.raises(ji.InputError, match="align token by token"):
        ji.causal_scrubbing(lm, prompts(lm.config, (5, 6)), metric, [])
