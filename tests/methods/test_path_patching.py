"""Path patching against its definition: plain runs in which edits hold everything that is not on the path."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.methods.path_patching import path_patch
from jaxinterp.model.sites import SITES
from jaxinterp.runs import measure
from tests.programs import compiled
from tests.tiny import CONFIGS, params, prompts

METRIC = ji.metrics.logit_difference([3, 4], [5, 9])
SCALES = ("ln1_scale", "ln2_scale", "ln1_post_scale", "ln2_post_scale", "ln_final_scale")
Node = tuple[str, int, int]
SENDERS = ["0.1", "1.2", "2.0", "mlp0", "mlp1", "embed"]


def pair(config: ji.TransformerConfig) -> tuple[ji.Tokens, ji.Tokens]:
    """Two prompts of 5 and 7 tokens and their corrupted twins, which differ from positions 2 and 3 on."""
    clean = prompts(config, (5, 7))
    ids = np.array(clean.ids)
    ids[0, 2], ids[1, 3], ids[1, 5] = (ids[0, 2] + 1) % 50, (ids[1, 3] + 1) % 50, (ids[1, 5] + 7) % 50
    return clean, ji.Tokens.from_ids(ids, clean.mask)


def model(config: ji.TransformerConfig | str) -> ji.LanguageModel:
    config = CONFIGS[config] if isinstance(config, str) else config
    return ji.LanguageModel(params(config), config)


class Slowly:
    """The definition, one path at a time, in two plain runs of one program each."""

    def __init__(self, lm: ji.LanguageModel, base: ji.Tokens, other: ji.Tokens) -> None:
        self.lm, self.base = lm, base
        self.scales = [site for site in SCALES if not SITES[site].absent(lm.config)]
        sends = "mlp_out" if SITES["mlp_proj"].absent(lm.config) else "mlp_proj"  # before a post-norm, whose denominator may be frozen
        self.mlp = [sends, "mlp_out"] if lm.config.has_mlp else []
        sites = list(dict.fromkeys(["z", "resid_pre", *self.mlp, *self.scales]))
        self.ours, self.theirs = (ji.run(lm, tokens, sites=sites) for tokens in (base, other))

    def path(self, senders: list[Node], receiver: Node | list[Node] | None, through: str, frozen: bool) -> np.ndarray:
        """[B]: the metric with one path (or those of a joint sender and receiver) patched; no receiver is the logits."""
        depth = self.lm.config.n_layers
        z, resid = np.array(self.ours["z"]), np.array(self.theirs["resid_pre"])
        held, sent, first = np.full(depth, through == "direct"), np.zeros(depth, bool), np.zeros(depth, bool)
        for part, layer, head in senders:
            if part == "head":
                z[layer, :, :, head] = self.theirs["z"][layer, :, :, head]
            elif part == "mlp":
                sent[layer], held[layer] = True, False
            else:
                first[0] = True
        edits = [ji.edits.replace("resid_pre", resid, where=first), ji.edits.replace("z", z)]
        for site, run, where in zip(self.mlp, (self.theirs, self.ours), (sent, held), strict=False):
            edits.append(ji.edits.replace(site, run[site], where=where))
        edits += [ji.edits.replace(site, self.ours[site], where=np.full((1,), frozen)) for site in self.scales]
        trace = ji.run(self.lm, self.base, sites=("q", "k", "v"), edits=edits)
        if receiver is None:
            return np.asarray(METRIC(trace))
        changed = []
        for part in ("q", "k", "v"):
            where = np.zeros(trace[part].shape[:4], bool)
            for site, layer, head in receiver if isinstance(receiver, list) else [receiver]:
                if site == part:
                    where[layer, :, :, head] = True
            changed.append(ji.edits.replace(part, trace[part], where=where))
        return np.asarray(METRIC(ji.run(self.lm, self.base, edits=changed)))


def masked(theirs: Any, ours: Any, kept: np.ndarray) -> Any:
    """A run whose values are those of another one but at the positions [B P] that are kept."""
    padded = {}
    for site, axes in theirs.axes:
        shape = [kept.shape["BP".index(letter)] if letter in "BP" else 1 for letter in axes]
        padded[site] = np.where(kept.reshape(shape), theirs[site], ours[site])
    return dataclasses.replace(theirs, padded=padded)


def close(got: Any, want: Any, result: Any, what: str = "", terms: int = 1) -> None:
    """Equal to 1e-5 of the difference between the runs; a sum of `terms` rounded values to that times the root of their number."""
    span = max(abs(float(np.mean(result.clean) - np.mean(result.corrupt))), 1)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * span * terms**0.5, err_msg=what)


def node(label: str) -> Node:
    if label == "embed":
        return "embed", -1, 0
    if label.startswith("mlp"):
        return "mlp", int(label[3:]), 0
    layer, head = label.split(".")
    return "head", int(layer), int(head)


def target(label: str) -> Node | None:
    return None if label == "logits" else (label[0], *node(label[2:])[1:])


@pytest.mark.parametrize(
    ("name", "through", "norm", "mode", "receivers"),
    [
        ("llama", "direct", "recompute", "noise", ["q 2.1", "k 1.0", "v 2.1", "logits"]),
        ("llama", "mlps", "freeze", "denoise", ["q 2.1", "k 1.0", "v 2.1", "logits"]),
        ("gemma", "mlps", "recompute", "noise", ["q 2.1", "logits"]),
        ("gemma", "direct", "freeze", "noise", ["q 2.1", "logits"]),
        ("neox", "mlps", "freeze", "noise", ["v 2.1"]),
        ("gptj", "mlps", "recompute", "noise", ["logits"]),
        ("olmo2", "mlps", "freeze", "noise", ["k 2.1", "logits"]),
        ("olmo2", "direct", "recompute", "denoise", ["k 2.1", "logits"]),
        ("gpt2", "mlps", "recompute", "noise", ["v 2.1"]),
        ("granite", "direct", "freeze", "noise", ["logits"]),
        ("mixed", "mlps", "recompute", "noise", ["q 2.1"]),
        ("bert", "direct", "freeze", "noise", ["k 2.1"]),
        ("bert", "mlps", "recompute", "noise", ["k 2.1"]),
    ],
)
def test_every_path_equals_its_definition(name: str, through: Any, norm: Any, mode: Any, receivers: list[str]) -> None:
    lm = model(name)
    clean, corrupt = pair(lm.config)
    given = ["logits" if receiver == "logits" else (receiver[0], receiver[2:]) for receiver in receivers]
    result = path_patch(lm, clean, corrupt, METRIC, SENDERS, given, through=through, norm=norm, mode=mode)
    assert result.axes == (("receiver", tuple(receivers)), ("sender", tuple(SENDERS)))
    slowly = Slowly(lm, *((clean, corrupt) if mode == "noise" else (corrupt, clean)))
    for i, sender in enumerate(SENDERS):
        for j, receiver in enumerate(receivers):
            to = target(receiver)
            if to is not None and to[1] <= node(sender)[1]:
                assert np.isnan(result.per_example[:, j, i]).all(), (sender, receiver)
                continue
            want = slowly.path([node(sender)], to, through, norm == "freeze")
            close(result.per_example[:, j, i], want, result, f"{sender} -> {receiver}")
    assert np.nanmax(np.abs(np.diff(result.effects, axis=1))) > 1e-3
    start, end = (result.clean, result.corrupt) if mode == "noise" else (result.corrupt, result.clean)
    np.testing.assert_allclose(result.effects, (result.values - start.mean()) / (end.mean() - start.mean()), rtol=1e-5, atol=1e-6)


def test_all_senders_together_give_the_other_run() -> None:
    lm = model("gemma")
    clean, corrupt = pair(lm.config)
    everything = {"all": "all heads mlps embed", "below 2": ["embed", "0.0 0.1 0.2 0.3", [(1, 0), (1, 1), (1, 2), (1, 3)], "mlp0 mlp1"]}
    result = path_patch(lm, clean, corrupt, METRIC, everything, [("q", ji.heads("2.1")), "logits"])
    assert result.axes[1] == ("sender", ("all", "below 2"))
    patched = ji.patch(lm, clean, corrupt, METRIC, "q", {"layer": [2], "head": [1]}, "noise")
    for row in (0, 1):
        close(result.per_example[:, 0, row], patched.per_example[:, 0, 0], result)
    close(result.per_example[:, 1, 0], corrupt_metric := METRIC(ji.run(lm, corrupt)), result)
    assert np.abs(result.per_example[:, 1, 1] - corrupt_metric).max() > 1e-2


@pytest.mark.parametrize(("name", "norm"), [("attention", "recompute"), ("granite", "freeze")])
def test_where_the_stream_is_read_linearly_effects_add_up(name: str, norm: Any) -> None:
    lm = model(name)
    clean, corrupt = pair(lm.config)
    parts = "all heads embed" if name == "attention" else "all heads mlps embed"
    alone = path_patch(lm, clean, corrupt, METRIC, parts, "logits", norm=norm)
    joint = path_patch(lm, clean, corrupt, METRIC, {"all": parts, "two": "0.1 2.3"}, "logits", norm=norm)
    assert alone.axes[0][1][1] == "0.1" and alone.axes[0][1][11] == "2.3"
    change = alone.per_example - alone.clean[:, None]
    close(joint.per_example[:, 0], alone.clean + change.sum(axis=1), alone, terms=change.shape[1])
    close(joint.per_example[:, 1], alone.clean + change[:, 1] + change[:, 11], alone)
    if name == "attention":  # nothing between the stream and the logits: the sum is the whole difference
        np.testing.assert_allclose(joint.effects[0], 1, atol=1e-5)


@pytest.mark.parametrize(("name", "part", "position"), [("llama", "v", -1), ("gemma", "k", None)])
def test_one_query_head_sees_what_it_would_see_with_keys_of_its_own(name: str, part: str, position: Any) -> None:
    lm = model(name)
    config = lm.config
    clean, corrupt = pair(config)
    own = {leaf: np.repeat(lm.params["blocks"][0]["attn"][leaf], config.n_heads // config.n_kv_heads, axis=2) for leaf in ("W_K", "W_V")}
    stack = lm.params["blocks"][0] | {"attn": lm.params["blocks"][0]["attn"] | own}
    wide = ji.LanguageModel(lm.params | {"blocks": (stack,)}, config.replace(n_kv_heads=config.n_heads))
    found = [
        path_patch(each, clean, corrupt, METRIC, SENDERS, [(part, "1.1 2.2")], through="mlps", kv="query_head", position=position)
        for each in (lm, wide)
    ]
    close(found[0].per_example, found[1].per_example, found[1])
    whole = path_patch(lm, clean, corrupt, METRIC, SENDERS, [(part, "1.0 2.1")], through="mlps", position=position)
    assert np.nanmax(np.abs(whole.per_example - found[0].per_example)) > 1e-3


def test_a_path_runs_at_the_positions_it_is_given() -> None:
    lm = model("llama")
    clean, corrupt = pair(lm.config)
    where = np.asarray([[3, 4], [3, 6]])
    result = path_patch(lm, clean, corrupt, METRIC, "0.1 mlp1", ("v", "2.1"), through="mlps", position=where)
    slowly = Slowly(lm, clean, corrupt)
    kept = np.zeros((2, 7), bool)
    kept[np.arange(2)[:, None], where] = True
    slowly.theirs = masked(slowly.theirs, slowly.ours, kept)
    for i, sender in enumerate(("0.1", "mlp1")):
        close(result.per_example[:, i], slowly.path([node(sender)], ("v", 2, 1), "mlps", False), result)
    at_end = path_patch(lm, clean, corrupt, METRIC, "mlps", position=-1)
    close(at_end.per_example, path_patch(lm, clean, corrupt, METRIC, "mlps").per_example, at_end)


def test_joint_receivers_change_together() -> None:
    lm = model("llama")
    clean, corrupt = pair(lm.config)
    sets = {"queries": ("q", "1.1 2.3"), "and a value": [("q", "1.1"), ("v", "2.0")]}
    result = path_patch(lm, clean, corrupt, METRIC, "0.1 1.2", sets)
    slowly = Slowly(lm, clean, corrupt)
    close(result.per_example[:, 0, 0], slowly.path([("head", 0, 1)], [("q", 1, 1), ("q", 2, 3)], "direct", False), result)
    close(result.per_example[:, 1, 0], slowly.path([("head", 0, 1)], [("q", 1, 1), ("v", 2, 0)], "direct", False), result)
    close(result.per_example[:, 1, 1], slowly.path([("head", 1, 2)], [("v", 2, 0)], "direct", False), result)


def test_chunks_change_nothing_are_kept_and_new_data_compile_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lm = model("llama")
    clean, corrupt = pair(lm.config)
    whole = path_patch(lm, clean, corrupt, METRIC, "all heads mlps", ("q", "2.1"), through="mlps")
    again = ji.LanguageModel(params(CONFIGS["llama"], seed=1), CONFIGS["llama"])
    with compiled() as events:
        path_patch(again, clean, corrupt, ji.metrics.logit_difference([7, 8], [1, 2]), "all heads mlps", ("q", "2.0"), through="mlps")
    assert not events
    monkeypatch.setattr("jaxinterp.methods.path_streams.BUDGET", 1)
    monkeypatch.setattr("jaxinterp.methods.path_patching.BUDGET", 1000)
    options: dict[str, Any] = {"through": "mlps", "batch_size": 3, "out": tmp_path}
    parts = path_patch(lm, clean, corrupt, METRIC, "all heads mlps", ("q", "2.1"), **options)
    close(parts.per_example, whole.per_example, whole)
    ran, run = [], measure._Job.run
    monkeypatch.setattr(measure._Job, "run", lambda self, chunk, started: ran.append(len(chunk)) or run(self, chunk, started))
    next(iter((tmp_path / "paths 1").glob("cells-*"))).unlink()
    again = path_patch(lm, clean, corrupt, METRIC, "all heads mlps", ("q", "2.1"), **options)
    np.testing.assert_array_equal(again.values, parts.values)
    assert len(ran) == 1
    with pytest.raises(ji.InputError, match="another sweep"):
        path_patch(lm, clean, corrupt, METRIC, "all heads mlps", ("q", "2.2"), **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"senders": "5.5"}, "layer 5 is out of range"),
        ({"senders": "0.4"}, "head 4 is out of range; a layer has heads 0 to 3"),
        ({"senders": "neuron"}, "'neuron' is no sender"),
        ({"senders": []}, "there are no senders"),
        ({"senders": {}}, "the dict of senders is empty"),
        ({"senders": 3}, "3 names no senders"),
        ({"receivers": ("k", "1.3")}, "key/value head 3 is out of range"),
        ({"receivers": ("z", "1.1")}, "receivers are"),
        ({"receivers": ("q", "mlp1")}, "more than heads"),
        ({"senders": "2.0 mlp2", "receivers": ("q", "2.1")}, "there is no path"),
        ({"position": 7}, "position 7 is out of range for prompt 0"),
        ({"receivers": {"both": ("k", "1.1 2.1")}, "kv": "query_head"}, "for one query head together with"),
    ],
)  # fmt: skip
def test_bad_calls_are_refused_in_one_sentence(arguments: dict[str, Any], message: str) -> None:
    lm = model("llama")
    with pytest.raises(ji.InputError, match=re.escape(message)):
        path_patch(lm, *pair(lm.config), METRIC, **arguments)


def test_weights_a_layer_at_a_time_are_refused() -> None:
    lm = model("llama")
    with pytest.raises(ji.InputError, match=re.escape("path_patch() takes weights in stacks")):
        path_patch(lm.by_layer(), *pair(lm.config), METRIC)


def test_prompts_must_differ_and_blocks_without_mlps_have_none() -> None:
    lm = model("attention")
    clean, _ = pair(lm.config)
    with pytest.raises(ji.InputError, match="no scale"):
        path_patch(lm, clean, clean, METRIC)
    with pytest.raises(ji.InputError, match="attention only"):
        path_patch(lm, *pair(lm.config), METRIC, "mlps")


@pytest.mark.weights
def test_name_movers_of_smollm2_write_to_the_logits(smollm2: Any) -> None:
    clean = "When Mary and John went to the store, John gave a drink to"
    corrupt = "When Mary and John went to the store, Mary gave a drink to"
    metric = ji.metrics.logit_difference(" Mary", " John")
    direct = path_patch(smollm2, clean, corrupt, metric)
    assert direct.axes == (("layer", tuple(range(30))), ("head", tuple(range(9))))
    known = {(23, 3): 0.53, (29, 1): 0.26, (29, 0): -0.20, (24, 4): -0.17, (23, 0): 0.16, (20, 0): -0.04}
    for (layer, head), effect in known.items():
        assert abs(direct.effects[layer, head] - effect) < 0.01, (layer, head)
    # 20.0 acts on the logits through later heads only: patched everywhere its z has an effect of 0.22
    assert np.abs(direct.effects).max() == direct.effects[23, 3]
