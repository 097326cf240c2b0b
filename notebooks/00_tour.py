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
# # A tour of jaxinterp
#
# How does a language model do what it does? To find out one has to look inside while it runs, change something there, and see what
# follows. In `jaxinterp` the model is a **pure function**: weights and a prompt go in, the prediction and every intermediate come out, and
# a change is one more argument. So an experiment is an ordinary JAX program.
#
# In this lesson you will, on a real model,
#
# * run prompts and read what the model computes at any **site**;
# * make an **edit**, and see the answer change;
# * batch and differentiate an experiment with `vmap` and `grad`;
# * **patch** a whole grid of activations from one prompt into another;
# * read the layers with the **logit lens**, and **generate** text under an edit.
#
# It takes a quarter of an hour to read and less than a minute to run. The lessons after it go deeper:
# [a transformer from scratch](01_transformer_from_scratch.ipynb), and [patching and steering](02_patching_and_steering.ipynb).
#
# Lines that begin with `assert` check what the text says. If one fails, the lesson stops there rather than telling you something untrue.

# %%
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights of the package index: the numbers in this lesson are theirs

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxinterp as ji
from jaxinterp.views import highlight

np.set_printoptions(precision=2, suppress=True)

# %% [markdown]
# ## 1. A model
#
# SmolLM2 is small (135 million parameters) and open. The first time, it is fetched: 98 MB. Later it loads from your disk in a second or
# two.

# %%
lm = ji.load("smollm2-135m-instruct")
lm

# %% [markdown]
# A model is three things: `lm.params`, its weights, a nested dictionary of arrays; `lm.config`, its architecture; and `lm.tokenizer`. The
# weights of all 30 layers are stacked, so each array has a leading axis of 30.

# %%
assert lm.n_params == 134_515_008 and lm.config.n_layers == 30 and lm.config.n_heads == 9
{name: weight.shape for name, weight in lm.params["blocks"][0]["attn"].items()}

# %% [markdown]
# ## 2. A task
#
# We follow one small piece of behaviour through the model. *When Mary and John went to the store, John gave a drink to* ... whom? To
# Mary: the name that was not repeated. In a second prompt one name is changed, and with it the answer. Researchers call this task
# *indirect object identification* (Wang et al. 2022, arXiv:2211.00593).
#
# A model does not see words but tokens, here 14 for each prompt. Note the spaces: `" Mary"` is one token.

# %%
clean = "When Mary and John went to the store, John gave a drink to"
corrupt = "When Mary and John went to the store, Mary gave a drink to"

tokens = lm.to_tokens([clean, corrupt])
words = lm.to_strings(tokens)[0]
assert tokens.ids.shape == (2, 14)
print(words)

# %% [markdown]
# ## 3. Run it
#
# `ji.run` is one pass through the model. Name the sites that you want to keep; nothing else is stored. The result is a `Trace`.

# %%
trace = ji.run(lm, [clean, corrupt], sites=["resid_post", "pattern", "z"])
trace

# %%
for prompt, best in zip([clean, corrupt], trace.top(3)):
    print(prompt, "...", [f"{one.token} {one.probability:.2f}" for one in best])

assert [best[0].token for best in trace.top(1)] == [" Mary", " John"]

# %% [markdown]
# It knows. To measure *how well*, we need a number: the **logit difference**, how much higher the model scores one name than the other.
# (Logits are scores before the softmax; a difference of 6 means that one token is $e^6 \approx 400$ times as likely as the other.) A metric
# takes a trace and gives one number a prompt.

# %%
difference = ji.metrics.logit_difference(" Mary", " John")
print(difference(trace))
np.testing.assert_allclose(difference(trace), [6.12, -5.49], atol=0.01)

# %% [markdown]
# ## 4. Read what is inside
#
# A **site** is a named place in the computation. Each has one definition on every architecture:

# %%
for name in ("resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "mlp_post", "mlp_out", "resid_post"):
    print(f"{name:11} [{' '.join(ji.SITES[name].axes)}]  {ji.SITES[name].definition}")

# %% [markdown]
# The letters are axes: L layer, B prompt, P position, D features of the residual stream, H head, E features of a head, Q the position that
# looks and K the one it looks at, M neuron. `trace[site]` is the whole array; `trace.at` selects. Positions count from each prompt's own
# beginning, or, when negative, from its own end, whatever the lengths of the others.

# %%
stream = trace["resid_post"]
last = trace.at("resid_post", position=-1)
print("whole:", stream.shape, " last position:", last.shape)
assert stream.shape == (30, 2, 14, 576) and last.shape == (30, 2, 576)

# %% [markdown]
# Where do the two prompts part? They differ in one token, at position 9. At the last position, four tokens later, their vectors are almost
# equal in the first layers. Then they part, most of all in layer 23:

# %%
apart = np.linalg.norm(last[:, 0] - last[:, 1], axis=-1) / np.linalg.norm(last[:, 0], axis=-1)  # [L]
plt.figure(figsize=(7, 3))
plt.plot(apart, marker=".")
plt.xlabel("layer")
plt.ylabel("relative distance")
plt.title("Two prompts at the last position")
plt.show()
print("after layers 0, 10, 22, 23, 29:", apart[[0, 10, 22, 23, 29]])
assert apart[:11].max() < 0.05 and np.diff(apart).argmax() == 22 and apart.argmax() == 23

# %% [markdown]
# Where does a head look? In layer 23, head 3 (we write 23.3) looks from the last position at the second *John*.

# %%
looks = trace.at("pattern", layer=23, head=3, query=-1)[0]  # [K], of the first prompt
assert words[int(looks.argmax())] == " John" and int(looks.argmax()) == 9 and abs(looks.max() - 0.74) < 0.01
highlight("Head 23.3, from the last position", looks, words, signed=False, normalisation="share of attention")

# %% [markdown]
# ## 5. Change what is inside
#
# Looking shows what goes with what. To see what *matters*, change it. An **edit** says what happens at which site: `replace`, `add`,
# `scale`, `zero` and others. Two of the 270 heads are silenced here, by setting what they have read (`z`) to zero.

# %%
silenced = ji.edits.zero("z", where=ji.heads("23.3 29.1"))
without = ji.run(lm, [clean, corrupt], edits=silenced)
print("as it is:", difference(trace), " without two heads:", difference(without))
np.testing.assert_allclose(difference(without), [2.17, -0.79], atol=0.01)

# %% [markdown]
# The answer is still right, but two thirds of the margin are gone. An edit is data, like the prompt. The model itself has not changed, and
# the next run is as if nothing had been:

# %%
assert 1 - difference(without)[0] / difference(trace)[0] > 0.6
np.testing.assert_array_equal(difference(ji.run(lm, [clean, corrupt], sites=["resid_post", "pattern", "z"])), difference(trace))

# %% [markdown]
# ## 6. An experiment is a JAX program
#
# `ji.forward(params, tokens, config, edits=...)` is the same run as a bare function of arrays. An edit's strength, layer, head or value are
# arrays too, so all of JAX applies. Here is an experiment as a function of one number, the strength of head 23.3:

# %%
metric = difference.bind(lm)  # looks up the ids of " Mary" and " John" once


def with_head_scaled(strength):
    """The logit difference [B] with head 23.3 multiplied by a strength."""
    edit = ji.edits.scale("z", strength, layer=23, head=3)
    return metric(ji.forward(lm.params, tokens, lm.config, edits=[edit]))


# %% [markdown]
# `vmap` runs it for many strengths at once; `jacfwd` takes its derivative. At strength 1, the model as it is:

# %%
strengths = np.linspace(-1, 3, 9)
curve = np.asarray(jax.vmap(with_head_scaled)(strengths))  # [9 B]
slope = np.asarray(jax.jacfwd(with_head_scaled)(1.0))  # [B]
print("silenced, as it is, doubled:")
print(curve[[2, 4, 6]])
print("slope at strength 1:", slope)
np.testing.assert_allclose(curve[2], [3.08, -1.06], atol=0.01)
np.testing.assert_allclose(curve[6], [7.57, -10.54], atol=0.01)
np.testing.assert_allclose(slope, [2.6, -6.06], atol=0.01)

plt.figure(figsize=(7, 3.4))
near = np.array([0.4, 1.6])
for which, prompt in enumerate(("clean", "corrupt")):
    plt.plot(strengths, curve[:, which], marker=".", color=f"C{which}", label=prompt)
    plt.plot(near, curve[4, which] + slope[which] * (near - 1), linestyle="--", color=f"C{which}")
plt.axvline(1, color="grey", linewidth=0.5)
plt.xlabel("strength of head 23.3")
plt.ylabel("logit difference")
plt.legend()
plt.show()

# %% [markdown]
# The same works for all heads together: give each head a strength of its own. One pass backwards then says, for each of the 270 heads, how
# the answer would change if it became a little stronger.
#
# Compiled with `jit`, it takes the weights as an argument too. (A compiled function keeps whatever else it uses as constants inside the
# program: fine for a few tokens, slow and large for 135 million weights.)

# %%
@jax.jit
@jax.grad
def slope_of_every_head(strengths, params):
    """The clean prompt's logit difference, with each head multiplied by its strength [L H]."""
    edit = ji.edits.scale("z", strengths[:, None, None, :, None])  # the axes of z: L B P H E
    return metric(ji.forward(params, tokens, lm.config, edits=[edit]))[0]


slopes = np.asarray(slope_of_every_head(jnp.ones((30, 9)), lm.params))
strongest = np.argsort(-np.abs(slopes), axis=None)[:5]
print([f"{head // 9}.{head % 9} {slopes.ravel()[head]:+.2f}" for head in strongest.tolist()])
assert strongest[0] == 23 * 9 + 3 and abs(slopes[23, 3] - slope[0]) < 1e-3  # head 23.3, with the slope of the curve above

# %% [markdown]
# ## 7. Patch a whole grid
#
# A sharper question: *which activations carry what differs between the two prompts?* Run the corrupt prompt, but put in, at one layer and
# position, what the clean run had there. If the answer turns from *John* to *Mary*, that place carried the difference. This is
# **activation patching**. Over 30 layers and 14 positions that makes 420 runs; `ji.patch` makes them in one compiled program, which
# computes only what each cell changes.

# %%
grid = ji.patch(lm, clean, corrupt, difference, site="resid_pre", over=("layer", "position"))
grid.view("Residual stream: 0 is the corrupt answer, 1 the clean one")

# %% [markdown]
# Read it from the top down. In the first layers all of the difference is at position 9, the second name. From layer 20 on it leaves, and
# from layer 24 on nearly all of it is at the last position, where the answer is given. Before position 9 the prompts are the same, so
# patching changes nothing.

# %%
effects = np.asarray(grid.effects)  # [L P]
print(f"layer 19, second name: {effects[19, 9]:.2f};  layer 24, last position: {effects[24, 13]:.2f}")
assert (np.abs(effects[:20, 9] - 1) < 0.05).all() and effects[24:, 13].min() > 0.9 and (np.abs(effects[:, :9]) < 1e-3).all()

# %% [markdown]
# Something moved it from position 9 to position 13. Attention is all that moves anything, so let us patch heads instead:

# %%
heads = ji.patch(lm, clean, corrupt, difference, site="z", over=("layer", "head"))
best = np.argsort(-np.abs(heads.effects), axis=None)[:3]
print([f"{cell // 9}.{cell % 9} {heads.effects.ravel()[cell]:+.2f}" for cell in best.tolist()])
assert best.tolist() == [23 * 9 + 3, 29 * 9 + 1, 24 * 9 + 4]

# %% [markdown]
# Head 23.3 again, then 29.1: the two that were silenced above. And 24.4, which works *against* the right answer.

# %%
heads.view("Heads, at all positions")

# %% [markdown]
# ## 8. The logit lens
#
# What would the model say if it stopped after layer 5? Each layer's vector can be read by the model's own last step, norm and unembedding
# (nostalgebraist 2020). It is a rough reading, since lower layers need not write for that reader; but it shows when an answer appears.

# %%
lens = ji.logit_lens(lm, trace, position=-1, tokens=[" Mary", " John"], k=3)
lens.tables()[0].show()

# %% [markdown]
# *Mary* is the likeliest token after the last layer only. But the choice between the two names is made before. The difference of their
# logits, read at each layer, is nearly the same for both prompts up to layer 22; after layer 23 they are over 11 apart.

# %%
read = lens.logits[..., 0] - lens.logits[..., 1]  # [B L]
assert (lens.ranks[0, :-1, 0] > 0).all() and lens.ranks[0, -1, 0] == 0
assert np.abs(read[0] - read[1])[:23].max() < 2.3 and (read[0] - read[1])[23:].min() > 11

plt.figure(figsize=(7, 3.4))
plt.plot(read.T, marker=".", label=["clean", "corrupt"])
plt.axhline(0, color="grey", linewidth=0.5)
plt.xlabel("after layer")
plt.ylabel("Mary over John, as the lens reads it")
plt.legend()
plt.show()
print("after layers 10, 20, 22, 23, 29:")
print(read[:, [10, 20, 22, 23, 29]])

# %% [markdown]
# ## 9. Generate, under an edit
#
# `ji.generate` writes on. Edits act there too, on the prompt, on the new tokens, or on both, and sites can be kept of every token.

# %%
question = "The capital of France is"
print("as it is:     ", repr(ji.generate(lm, question, 8).text[0]))

weak = ji.edits.scale("mlp_out", 0.0, layer=20, when="new")
print("without MLP 20:", repr(ji.generate(lm, question, 8, edits=weak).text[0]))
assert ji.generate(lm, question, 2).text[0] == " Paris."

# %% [markdown]
# It was trained to answer in a chat:

# %%
chat = lm.chat([{"role": "user", "content": "What is the capital of Italy? Answer in one sentence."}])
answer = ji.generate(lm, chat, 24).text[0]
print(answer)
assert "Rome" in answer

# %% [markdown]
# ## Where to go from here
#
# * [01 A transformer from scratch](01_transformer_from_scratch.ipynb): write this model yourself, and match it at every site.
# * [02 Patching and steering](02_patching_and_steering.ipynb): find out how it solves the task above, and how to change what it says.
# * The README lists the methods: ablation, path patching, causal tracing, attribution, and more.
#
# ## Exercises
#
# Try each before you unfold its answer.
#
# **1. An MLP.** Which single MLP costs the clean prompt most of its logit difference when it is silenced? (`ji.ablate` with site
# `"mlp_out"` over `("layer",)`, or a `vmap` of your own.)

# %% jupyter={"source_hidden": true} tags=["answer"]
# Answer 1.
found = ji.ablate(lm, clean, difference, site="mlp_out", over=("layer",), kind="zero")
best = np.argsort(found.effects)[:3]
print([f"MLP {layer} {found.effects[layer]:+.2f}" for layer in best.tolist()])
assert best[0] == 0  # all later layers have learned to read what MLP 0 makes of each token

# %% [markdown]
# **2. The first token.** This model's prompts have no special first token. Run the two prompts with `bos="<|endoftext|>"`. Does the answer
# change? By how much?

# %% jupyter={"source_hidden": true} tags=["answer"]
# Answer 2. The same names, but other numbers: so every result says how it treated the beginning.
with_bos = difference(ji.run(lm, [clean, corrupt], bos="<|endoftext|>"))
print(with_bos)
np.testing.assert_allclose(with_bos, [3.72, -7.83], atol=0.01)

# %% [markdown]
# **3. Curvature.** The curve of section 6 bends. Take the second derivative at strength 1, for both prompts.

# %% jupyter={"source_hidden": true} tags=["answer"]
# Answer 3. A derivative of a derivative: forward mode twice.
bend = jax.jacfwd(jax.jacfwd(with_head_scaled))(1.0)
print(bend)
assert (bend < 0).all()  # both bend down: for Mary more of the head helps less and less, for John more and more

# %% [markdown]
# **4. By hand.** Put the clean run's value of head 23.3 into the corrupt run with `ji.edits.replace`, and find the number that the grid of
# section 7 has for that head.

# %% jupyter={"source_hidden": true} tags=["answer"]
# Answer 4. The effect is a share of the way from the corrupt answer to the clean one.
value = trace.at("z", layer=23, head=3)[:1]  # [1 P E], of the clean prompt
edit = ji.edits.replace("z", value[:, :, None, :], layer=23, head=3)
patched = difference(ji.run(lm, corrupt, edits=edit))[0]
share = (patched - difference(trace)[1]) / (difference(trace)[0] - difference(trace)[1])
print(f"by hand {share:.3f}, in the grid {heads.effects[23, 3]:.3f}")
assert abs(share - heads.effects[23, 3]) < 1e-4
