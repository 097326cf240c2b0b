# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A transformer from scratch
#
# In this lesson you write a language model in plain JAX: no modules, no classes, only functions of arrays. It reads the weights of
# SmolLM2, a real model with 135 million parameters, and after every step you compare what you have computed with what `jaxinterp`
# computes at the same place. You will
#
# * build embedding, norm, rotary positions, grouped-query attention, a gated MLP and the unembedding, a few lines at a time;
# * match the library within 1e-5 at every site of all 30 layers, and then in the logits;
# * add a key/value cache and generate the same text as `ji.generate`;
# * write the layers as one `lax.scan`, and take a gradient through all of them.
#
# You need to have seen NumPy arrays and matrix products. It helps to have gone through [the tour](00_tour.ipynb).
#
# Lines that begin with `assert` check what the text says. If one fails, the lesson stops there rather than telling you something untrue.

# %%
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights of the package index: the numbers in this lesson are theirs

import inspect

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxinterp as ji

jax.config.update("jax_default_matmul_precision", "highest")  # true float32 on every device

# %% [markdown]
# ## The weights
#
# A model is its weights and a function. `jaxinterp` keeps the weights in a nested dictionary, and that is all we take from it.

# %%
lm = ji.load("smollm2-135m-instruct")
params, config = lm.params, lm.config
blocks = params["blocks"][0]  # the layers: every array has a leading axis of 30

print("embed.W_E   ", params["embed"]["W_E"].shape)
for part, arrays in blocks.items():
    for name, array in arrays.items():
        print(f"{part + '.' + name:12}", array.shape)
print("ln_final.w  ", params["ln_final"]["w"].shape)

# %% [markdown]
# Every axis has a letter, and the letters are the same everywhere in the library, in its `einsum`s as in its documentation:
#
# | letter | axis | size here |
# | --- | --- | ---: |
# | B, P | prompt of the batch, position in the prompt | 1, 14 |
# | Q, K | the position that asks, and the one that is looked at (P, in attention) | 14 |
# | L | layer | 30 |
# | D | features of the residual stream, `d_model` | 576 |
# | H, E | head, and features of a head, `d_head` | 9, 64 |
# | G, R | key/value head, and the query heads that share one: H = G x R | 3, 3 |
# | M | neuron of the MLP | 1536 |
# | V | token of the vocabulary | 49152 |

# %%
L, D, V = config.n_layers, config.d_model, config.d_vocab
H, G, E = config.n_heads, config.n_kv_heads, config.d_head
R = H // G
assert (L, D, H, G, R, E, config.d_mlp, V) == (30, 576, 9, 3, 3, 64, 1536, 49152)
assert blocks["attn"]["W_Q"].shape == (L, D, H, E) and blocks["attn"]["W_K"].shape == (L, D, G, E)

# %% [markdown]
# ## What we compare with
#
# One run of the library on one prompt, with every intermediate kept: `sites="all"`. `check` measures how far we are from it.
#
# It takes the error of each token by itself, $\lVert ours - theirs \rVert / \lVert theirs \rVert$, and keeps the largest. An error over
# all tokens at once would be blind: in the middle layers the first token's vector is some hundred times as long as the others, and would
# hide any mistake in them.

# %%
prompt = "When Mary and John went to the store, John gave a drink to"
ids = jnp.asarray(lm.to_tokens(prompt).ids)  # [B P]
words = lm.to_strings(ids)[0]
B, P = ids.shape
reference = ji.run(lm, prompt, sites="all")

lengths = jnp.linalg.norm(reference.at("resid_post", layer=15)[0], axis=-1)
print("length of each token's vector after layer 15:", np.round(lengths).astype(int))
assert lengths[0] > 50 * lengths[1:].max()


def error(site, ours, layer=None):
    """The largest relative error of any token at a site, in one layer or in all that it has."""
    theirs = reference[site] if layer is None else reference.at(site, layer=layer)
    axes = ji.SITES[site].axes if layer is None else ji.SITES[site].inner_axes
    assert ours.shape == theirs.shape, f"{site}: ours has shape {ours.shape}, theirs {theirs.shape}"
    own = tuple(i for i, letter in enumerate(axes) if letter not in ("LBQ" if "Q" in axes else "LBP"))  # the axes within one token
    return (jnp.linalg.norm(ours - theirs, axis=own) / jnp.linalg.norm(theirs, axis=own)).max()


def check(site, ours, layer=None, within=1e-5):
    """Say that ours and theirs agree at every token, or stop."""
    found = error(site, ours, layer)
    assert found < within, f"{site}: a token is off by {found:.1e}"
    print(f"{site:11} {'x'.join(map(str, ours.shape)):12} matches within {within:.0e}")


# %% [markdown]
# ## 1. Embedding
#
# The prompt is 14 numbers, the ids of its tokens. The embedding is a table with one row of 576 numbers for each of the 49152 tokens; we
# look up 14 rows. These vectors begin the **residual stream**: one vector for each position, to which every layer will add something.

# %%
print(words)


def embed(params, ids):
    return params["embed"]["W_E"][ids]  # [B P] -> [B P D]


resid = embed(params, ids)
check("embed", resid)
check("resid_pre", resid, layer=0)

# %% [markdown]
# ## 2. Norm
#
# A layer does not read the stream as it is, but scaled to a common size: each vector is divided by its root mean square, and each
# feature multiplied by a learned gain (RMSNorm, Zhang and Sennrich 2019, arXiv:1910.07467).
#
# $$ \mathrm{norm}(x) = \frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}} \, w $$
#
# From here to step 6 we stay in layer 0. Its weights are the same tree without the leading axis.

# %%
def norm(x, w):
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.norm_eps) * w


first = jax.tree.map(lambda w: w[0], blocks)  # the weights of layer 0
attn_in = norm(resid, first["ln1"]["w"])
check("attn_in", attn_in, layer=0)

# %% [markdown]
# ## 3. Queries, keys and values
#
# Attention moves information between positions. From each position's vector, each head computes a **query** (what am I looking for?), a
# **key** (what do I have to offer?) and a **value** (what do I hand over?). Each is a matrix product. `einsum` says which axes are
# summed: D stands on the left of the arrow and not on the right.
#
# This model has 9 query heads, but only 3 heads of keys and values, each shared by 3 query heads (grouped-query attention, Ainslie et al.
# 2023, arXiv:2305.13245). So the letter of keys and values is G.

# %%
def project(x, w):
    q = jnp.einsum("BPD,DHE->BPHE", x, w["W_Q"])
    k = jnp.einsum("BPD,DGE->BPGE", x, w["W_K"])
    v = jnp.einsum("BPD,DGE->BPGE", x, w["W_V"])
    return q, k, v


q, k, v = project(attn_in, first["attn"])
check("q", q, layer=0)
check("k", k, layer=0)
check("v", v, layer=0)

# %% [markdown]
# ## 4. Positions, as rotations
#
# So far nothing knows where a token stands. Rotary embedding (Su et al. 2021, arXiv:2104.09864) takes the 64 features of a query or key as
# 32 pairs, and turns each pair like the hand of a clock, by an angle that grows with the position. The first pair turns one radian a
# token, the last one hardly at all. Feature i is paired with feature i + 32.

# %%
def rotate(x, positions):
    half = x.shape[-1] // 2
    speed = config.rotary[0].base ** -(np.arange(half) / half)  # [E/2] radians a token
    angle = positions[:, None, None] * speed  # [P 1 E/2]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], axis=-1)


positions = jnp.arange(P)
q_rot, k_rot = rotate(q, positions), rotate(k, positions)
check("q_rot", q_rot, layer=0)
check("k_rot", k_rot, layer=0)

# %% [markdown]
# Why rotations? The product of a query and a key, each turned by its own position, depends on the *distance* of the two only. Put the
# same query and key at positions (5, 3), and then at (105, 103):

# %%
def product_at(m, n):
    return jnp.vdot(rotate(q[:, -1:, :1], jnp.array([m])), rotate(k[:, 3:4, :1], jnp.array([n])))


print(f"at (5, 3): {product_at(5, 3):.3f}   at (105, 103): {product_at(105, 103):.3f}   at (5, 4): {product_at(5, 4):.3f}")
assert abs(product_at(5, 3) - product_at(105, 103)) < 1e-3 < abs(product_at(5, 3) - product_at(5, 4))

# %% [markdown]
# ## 5. Attention
#
# **Scores.** Each query is multiplied with each key, over 64 features; dividing by $\sqrt{64}$ keeps the products at a moderate size. The
# query heads are split into groups, `h = g * R + r`, so that the three heads of a group meet the one key head that they share.
#
# **Mask.** A model that predicts the next token may not look at it: query Q sees keys up to itself.
#
# **Pattern.** A softmax over the visible keys makes weights of the scores: they are positive, and each row sums to 1.
#
# **z.** Each head takes the sum of the values, by these weights.

# %%
def attend(q, k, v, visible):
    """Scores and pattern [B H Q K], and weighted values z [B Q H E]; visible [Q K] says which keys a query sees."""
    B, Q, H, E = q.shape
    scores = jnp.einsum("BQGRE,BKGE->BGRQK", q.reshape(B, Q, G, R, E), k) / jnp.sqrt(E)
    pattern = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    z = jnp.einsum("BGRQK,BKGE->BQGRE", pattern, v)
    return scores.reshape(B, H, Q, -1), pattern.reshape(B, H, Q, -1), z.reshape(B, Q, H, E)


causal = jnp.arange(P)[None, :] <= jnp.arange(P)[:, None]  # [Q K]
scores, pattern, z = attend(q_rot, k_rot, v, causal)
check("scores", scores, layer=0)
check("pattern", pattern, layer=0)
check("z", z, layer=0)
np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-5)
assert (jnp.where(causal, 0, pattern) == 0).all()  # nothing looks ahead

# %% [markdown]
# **Writing back.** A last matrix for each head brings its 64 numbers back to 576, and the sum over heads is added to the stream.

# %%
attn_out = jnp.einsum("BPHE,HED->BPD", z, first["attn"]["W_O"])
resid_mid = resid + attn_out
check("attn_out", attn_out, layer=0)
check("resid_mid", resid_mid, layer=0)

# %% [markdown]
# ## 6. MLP
#
# Attention moves information; the MLP works on each position by itself. Its 1536 neurons are a product of two factors: a **gate**, passed
# through $\mathrm{silu}(x) = x \, \sigma(x)$, and a plain linear factor (Shazeer 2020, arXiv:2002.05202). A neuron's activity then writes
# its own row of `W_out` into the stream.

# %%
def mlp(x, w):
    pre, up = x @ w["W_gate"], x @ w["W_in"]  # [B P M]
    post = jax.nn.silu(pre) * up
    return pre, up, post, post @ w["W_out"]


mlp_in = norm(resid_mid, first["ln2"]["w"])
mlp_pre, mlp_up, mlp_post, mlp_out = mlp(mlp_in, first["mlp"])
check("mlp_in", mlp_in, layer=0)
check("mlp_pre", mlp_pre, layer=0)
check("mlp_up", mlp_up, layer=0)
check("mlp_post", mlp_post, layer=0)
check("mlp_out", mlp_out, layer=0)
check("resid_post", resid_mid + mlp_out, layer=0)

# %% [markdown]
# ## 7. A block, and thirty of them
#
# That was a whole layer. Here it is once more in one piece, as a function from the stream to the stream. It returns its intermediates
# beside its result: a pure function has no other way to show what happens inside, and needs none. No hooks, no caches on the side.

# %%
def block(resid, w, positions, visible):
    """One layer: the residual stream [B P D] in and out, and every site on the way."""
    s = {"resid_pre": resid, "attn_in": norm(resid, w["ln1"]["w"])}
    s["q"], s["k"], s["v"] = project(s["attn_in"], w["attn"])
    s["q_rot"], s["k_rot"] = rotate(s["q"], positions), rotate(s["k"], positions)
    s["scores"], s["pattern"], s["z"] = attend(s["q_rot"], s["k_rot"], s["v"], visible)
    s["attn_out"] = jnp.einsum("BPHE,HED->BPD", s["z"], w["attn"]["W_O"])
    s["resid_mid"] = resid + s["attn_out"]
    s["mlp_in"] = norm(s["resid_mid"], w["ln2"]["w"])
    s["mlp_pre"], s["mlp_up"], s["mlp_post"], s["mlp_out"] = mlp(s["mlp_in"], w["mlp"])
    s["resid_post"] = s["resid_mid"] + s["mlp_out"]
    return s["resid_post"], s


resid = embed(params, ids)
layers = []  # the sites of each layer
for index in range(L):
    resid, found = block(resid, jax.tree.map(lambda w: w[index], blocks), positions, causal)
    layers.append(found)

worst = {site: max(error(site, layers[index][site], index) for index in range(L)) for site in layers[0]}
assert max(worst.values()) < 1e-5
print(f"{len(worst)} sites x {L} layers, each within 1e-5 at every token: {', '.join(worst)}")

# %% [markdown]
# The patterns say where the heads look. Head 16.0 (layer 16, head 0) looks at the token before, whatever that is; head 23.3, at the last
# position, looks at a name.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
for axis, (layer, head) in zip(axes, [(16, 0), (23, 3)]):
    axis.imshow(layers[layer]["pattern"][0, head], cmap="Blues", vmin=0, vmax=1)
    axis.set(title=f"head {layer}.{head}", xlabel="key: is looked at", ylabel="query: looks")
    axis.set_xticks(range(P), words, rotation=90)
    axis.set_yticks(range(P), words)
plt.show()

before = layers[16]["pattern"][0, 0].argmax(axis=-1)[1:] == jnp.arange(P - 1)
last = layers[23]["pattern"][0, 3, -1]
print(f"16.0 looks at the token before from {before.sum()} of {P - 1} positions; 23.3 looks at{words[last.argmax()]}: {last.max():.2f}")
assert before.all()
assert words[int(last.argmax())] == " John" and abs(last.max() - 0.74) < 0.01

# %% [markdown]
# ## 8. Unembedding
#
# After the last layer: one more norm, and the product of each position's vector with the row of every token in the embedding table. (In
# this model the table is used twice; others have two.) The results are the **logits**, and a softmax makes probabilities
# of them.
#
# Every sum in float32 rounds in the seventh digit, and thirty layers pass that on. At one of the tokens this adds up to nearly 1e-5, so for
# the logits we allow 3e-5.

# %%
def unembed(params, resid):
    return jnp.einsum("BPD,VD->BPV", norm(resid, params["ln_final"]["w"]), params["embed"]["W_E"])


check("ln_final", norm(resid, params["ln_final"]["w"]))
logits = unembed(params, resid)
check("logits", logits, within=3e-5)

probability = jax.nn.softmax(logits[0, -1])
mary, john = lm.to_id(" Mary"), lm.to_id(" John")
print(f"{prompt} ... Mary {probability[mary]:.2f}, John {probability[john]:.3f}")
print(f"logit difference {logits[0, -1, mary] - logits[0, -1, john]:.2f}")
assert probability.argmax() == mary
assert abs(logits[0, -1, mary] - logits[0, -1, john] - 6.12) < 0.01

# %%
model = (embed, norm, project, rotate, attend, mlp, block, unembed)
lines = sum(len(inspect.getsource(function).strip().splitlines()) for function in model)
print(f"The whole model: {lines} lines.")
assert lines < 60

# %% [markdown]
# ## 9. A key/value cache
#
# To write a text, the model reads what it has just written and predicts the next token. It need not compute the earlier positions again:
# nothing in them depends on what comes later. All that later positions want of them is their keys and values. So we keep those.
#
# A compiled program has fixed shapes, so the cache has room for all tokens from the start, `[B K G E]` for each layer. New keys and values
# go to their positions; what is still empty lies ahead of every query, and the mask hides it.
#
# The same function reads the prompt (14 tokens at once) and then each new token (one at a time).

# %%
def put(past, new, start):
    return jax.lax.dynamic_update_slice_in_dim(past, new, start, axis=1)


def cached_block(resid, w, past_k, past_v, start):
    """A layer for the tokens from position `start` on; the earlier ones are in the cache."""
    positions = start + jnp.arange(resid.shape[1])
    q, k, v = project(norm(resid, w["ln1"]["w"]), w["attn"])
    past_k, past_v = put(past_k, rotate(k, positions), start), put(past_v, v, start)
    visible = jnp.arange(past_k.shape[1])[None, :] <= positions[:, None]  # [Q K]
    z = attend(rotate(q, positions), past_k, past_v, visible)[-1]
    resid = resid + jnp.einsum("BPHE,HED->BPD", z, w["attn"]["W_O"])
    return resid + mlp(norm(resid, w["ln2"]["w"]), w["mlp"])[-1], past_k, past_v


def extend(params, ids, cache, start):
    """Logits of the last of these tokens [B V], and the cache with them."""
    resid, after = embed(params, ids), []
    for index, (past_k, past_v) in enumerate(cache):
        w = jax.tree.map(lambda w: w[index], params["blocks"][0])
        resid, past_k, past_v = cached_block(resid, w, past_k, past_v, start)
        after.append((past_k, past_v))
    return unembed(params, resid[:, -1:])[:, 0], after


N = 8  # new tokens
cache = [(jnp.zeros((B, P + N, G, E)), jnp.zeros((B, P + N, G, E))) for _ in range(L)]
following, cache = extend(params, ids, cache, 0)
assert jnp.linalg.norm(following - logits[:, -1]) < 1e-5 * jnp.linalg.norm(logits[:, -1])

written, told = [], []
for step in range(N):
    told.append(jax.nn.log_softmax(following).max(axis=-1))
    written.append(following.argmax(axis=-1))  # the likeliest token
    following, cache = extend(params, written[-1][:, None], cache, P + step)

written = jnp.stack(written, axis=1)
print(repr("".join(lm.to_strings(written)[0])))

# %% [markdown]
# `ji.generate` says the same, with the same confidence; and so does a run of the whole text without any cache.

# %%
theirs = ji.generate(lm, prompt, N, stop_tokens=())
assert (theirs.ids == written).all()
np.testing.assert_allclose(jnp.stack(told, axis=1), theirs.log_probabilities, atol=1e-4)

whole = ji.run(lm, jnp.concatenate([ids, written], axis=1))
assert (whole.logits[:, P - 1 : -1].argmax(axis=-1) == written).all()
assert jnp.linalg.norm(following - whole.logits[:, -1]) < 1e-5 * jnp.linalg.norm(following)
theirs.text[0]

# %% [markdown]
# ## 10. One scan
#
# The thirty layers are the same program with other weights. JAX has a loop for that, `lax.scan`: it takes the stacked weights, one layer
# at a time, carries the stream along, and stacks what each layer returns. So the sites come out with a leading axis L, as a trace of the
# library has them. That is the whole transformer:

# %%
@jax.jit
def transformer(params, ids):
    """Logits [B P V], and every site of every layer [L ...]."""
    positions = jnp.arange(ids.shape[1])
    visible = positions[None, :] <= positions[:, None]
    resid, sites = jax.lax.scan(lambda resid, w: block(resid, w, positions, visible), embed(params, ids), params["blocks"][0])
    return unembed(params, resid), sites


logits, sites = transformer(params, ids)
check("logits", logits, within=3e-5)
for site, values in sites.items():
    check(site, values)

# %% [markdown]
# Why not the `for` loop? Both compute the same. But a loop in Python is unrolled: the compiler sees thirty copies of the layer. With a
# scan it sees one, and compiling takes a fraction of the time. Counting the operations that JAX hands to the compiler:

# %%
def unrolled(params, ids):
    positions = jnp.arange(ids.shape[1])
    visible = positions[None, :] <= positions[:, None]
    resid = embed(params, ids)
    for index in range(L):
        resid, _ = block(resid, jax.tree.map(lambda w: w[index], params["blocks"][0]), positions, visible)
    return unembed(params, resid)


def operations(program):
    """How many operations a program has, with those inside its loops and functions counted once."""
    inner = [value for equation in program.eqns for value in jax.tree.leaves(list(equation.params.values())) if hasattr(value, "jaxpr")]
    return len(program.eqns) + sum(operations(value.jaxpr) for value in inner)


scanned = operations(jax.make_jaxpr(transformer)(params, ids).jaxpr)
copied = operations(jax.make_jaxpr(unrolled)(params, ids).jaxpr)
print(f"{scanned} operations with a scan, {copied} without")
assert copied > 20 * scanned

# %% [markdown]
# ## 11. A gradient
#
# Everything above is a function of arrays, so JAX can differentiate it. Which vectors of the residual stream does the answer depend on?
# Add a nudge to the stream at each layer and position, all of them zero: they change nothing. The derivative of the answer by the nudges
# says what a small change would do, at 30 layers and 14 positions, from one pass backwards. The nudges are scanned beside the weights.

# %%
def difference(nudges, params, ids):
    """logit(Mary) - logit(John) at the last position; nudges [L B P D] are added to what enters each layer."""
    positions = jnp.arange(ids.shape[1])
    visible = positions[None, :] <= positions[:, None]

    def layer(resid, per_layer):
        w, nudge = per_layer
        return block(resid + nudge, w, positions, visible)[0], None

    resid, _ = jax.lax.scan(layer, embed(params, ids), (params["blocks"][0], nudges))
    last = unembed(params, resid[:, -1:])[0, 0]
    return last[mary] - last[john]


value, slope = jax.jit(jax.value_and_grad(difference))(jnp.zeros((L, B, P, D)), params, ids)
print(f"{value:.2f}", slope.shape)
assert abs(value - 6.12) < 0.01

theirs = ji.gradients(lm, prompt, ji.metrics.logit_difference(" Mary", " John"), ["resid_pre"])["resid_pre"]
off = jnp.linalg.norm((slope - theirs).reshape(L, -1), axis=1) / jnp.linalg.norm(theirs.reshape(L, -1), axis=1)
assert off.max() < 1e-4

# %% [markdown]
# `ji.gradients` finds the same. It does it in the same way, at all sites, by edits instead of nudges.
#
# The picture shows how long the derivative is: where a step of a given length can change the answer the most. Up to layer 23 that is
# always at one of the names; from layer 24 on, at the last position. In between, heads such as 23.3 have carried over what the names say.

# %%
size = jnp.linalg.norm(slope, axis=-1)[:, 0]  # [L P]
plt.figure(figsize=(8, 5))
plt.imshow(size / size.max(axis=1, keepdims=True), aspect="auto", origin="lower", cmap="Blues")
plt.xticks(range(P), words, rotation=90)
plt.ylabel("layer")
plt.title("length of the gradient, each layer's largest = 1")
plt.colorbar()
plt.show()

most = [words[at] for at in size.argmax(axis=1)]
assert set(most[:24]) == {" Mary", " John"} and set(most[24:]) == {" to"} and (size[24:].argmax(axis=1) == P - 1).all()

# %% [markdown]
# You have written a language model: forward, with a cache, and backward. `jaxinterp` is this program, with every choice that other models
# make (`jaxinterp/model/` reads in the same order: `norm.py`, `position.py`, `attention.py`, `mlp.py`, `block.py`, `transformer.py`), and
# with one addition: at each site it can put something else in place of what was computed.
# [The next lesson](02_patching_and_steering.ipynb) is about what that is good for.
#
# ## Exercises
#
# Try each before you unfold its answer.
#
# **1. A mistake that fits.** `W_gate` and `W_in` have the same shape. Exchange them: does anything complain? What does the model say then?

# %% jupyter={"source_hidden": true} tags=["answer"]
# Answer 1. Nothing complains, and the answer is gone: shapes are no check of meaning. This is why every step above was compared.
swapped = {**blocks, "mlp": {**blocks["mlp"], "W_gate": blocks["mlp"]["W_in"], "W_in": blocks["mlp"]["W_gate"]}}
wrong, _ = transformer({**params, "blocks": (swapped,)}, ids)
print(f"the model says {lm.to_strings(wrong[0, -1].argmax())!r}; P(Mary) = {jax.nn.softmax(wrong[0, -1])[mary]:.1e}")
assert jax.nn.softmax(wrong[0, -1])[mary] < 0.01

# %% [markdown]
# **2. The other pairs.** Some models rotate features (0, 1), (2, 3) ... instead of (0, 32), (1, 33) ... Write `rotate` that way, and see
# what the model makes of it. Then find the order of each head's features in `W_Q` and `W_K` that makes it right again.

# %% jupyter={"source_hidden": true} tags=["answer"]
# Answer 2. The prediction breaks, until feature i of the first half goes to place 2i, and feature i of the second half to 2i + 1.
def rotate_neighbours(x, positions):
    half = x.shape[-1] // 2
    angle = positions[:, None, None] * config.rotary[0].base ** -(np.arange(half) / half)
    a, b = x[..., 0::2], x[..., 1::2]
    return jnp.stack([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], axis=-1).reshape(x.shape)


order = np.arange(E).reshape(2, E // 2).T.reshape(-1)  # 0, 32, 1, 33, ...
attention = {**blocks["attn"], "W_Q": blocks["attn"]["W_Q"][..., order], "W_K": blocks["attn"]["W_K"][..., order]}
reordered = {**params, "blocks": ({**blocks, "attn": attention},)}

halves, rotate = rotate, rotate_neighbours  # block() now finds the other one
broken, repaired = (transformer.__wrapped__(weights, ids)[0] for weights in (params, reordered))  # what jax.jit wraps: not compiled before
rotate = halves

print(f"broken: off by {error('logits', broken):.2f}; repaired: within 3e-5, {error('logits', repaired) < 3e-5}")
assert error("logits", broken) > 0.1 and error("logits", repaired) < 3e-5

# %% [markdown]
# **3. No look ahead.** Show by a gradient that the logits at position 5 do not depend on tokens 6 to 13, exactly. What do you expect of
# tokens 0 to 5?

# %% jupyter={"source_hidden": true} tags=["answer"]
# Answer 3. The derivative by the embeddings of later tokens is exactly zero, not merely small: the mask multiplies by nothing.
def at_position_5(embeddings, params):
    positions = jnp.arange(P)
    visible = positions[None, :] <= positions[:, None]
    resid, _ = jax.lax.scan(lambda resid, w: (block(resid, w, positions, visible)[0], None), embeddings, params["blocks"][0])
    return jnp.square(unembed(params, resid[:, 5:6])).sum()


slope = jnp.linalg.norm(jax.jit(jax.grad(at_position_5))(embed(params, ids), params)[0], axis=-1)
print(["0" if one == 0 else "not 0" for one in slope])
assert (slope[6:] == 0).all() and (slope[:6] > 0).all()

# %% [markdown]
# **4. Silence a head.** Give the layer a number for each head that multiplies its z, scanned beside the weights as the nudges were. With
# heads 23.3 and 29.1 at zero, the tour found a logit difference of 2.17. Do you?

# %% jupyter={"source_hidden": true} tags=["answer"]
# Answer 4. An intervention is one more argument of a pure function: that is what an edit of the library is.
@jax.jit
def with_heads_scaled(factors, params, ids):
    """Logits, with each head's z multiplied by its factor [L H]."""
    positions = jnp.arange(ids.shape[1])
    visible = positions[None, :] <= positions[:, None]

    def layer(resid, per_layer):
        w, factor = per_layer
        scaled = {**w, "attn": {**w["attn"], "W_O": w["attn"]["W_O"] * factor[:, None, None]}}  # the same as scaling z
        return block(resid, scaled, positions, visible)[0], None

    return unembed(params, jax.lax.scan(layer, embed(params, ids), (params["blocks"][0], factors))[0])


factors = jnp.ones((L, H)).at[23, 3].set(0).at[29, 1].set(0)
last = with_heads_scaled(factors, params, ids)[0, -1]
print(f"{last[mary] - last[john]:.2f}")
assert abs(last[mary] - last[john] - 2.17) < 0.01
