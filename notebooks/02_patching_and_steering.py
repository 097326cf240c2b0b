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
# # Patching and steering
#
# Two questions about a real model. *How does it do that?* And: *can we make it do something else?* In the first half of this lesson you
# take one behaviour apart: you will
#
# * patch activations from one prompt into another, by hand and as a grid, and read the grid;
# * find the heads that matter, where they act, and what they write themselves (direct logit attribution);
# * check a claim by ablation, on more than one prompt and in more than one way.
#
# In the second half you make a **steering vector** from pairs of sentences, and
#
# * change what the model writes with it;
# * measure the effect on prompts that it was not made from, and the cost on neutral text;
# * see why "not made from" matters;
# * do it all again in four lines with `ji.steering`.
#
# [The tour](00_tour.ipynb) introduces sites, edits and metrics. Lines that begin with `assert` check what the text says. If one fails, the
# lesson stops there rather than telling you something untrue.

# %%
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights of the package index: the numbers in this lesson are theirs

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxinterp as ji

np.set_printoptions(precision=2, suppress=True)
lm = ji.load("smollm2-135m-instruct")

# %% [markdown]
# # Part one: how does it do that?
#
# ## 1. A pair of prompts
#
# The task of the tour: who gets the drink? Both prompts are alike but for one token, the second name (`S2`, position 9), and that turns the
# answer around. Everything that is common to both, grammar, store and drink, cancels when we compare them.

# %%
clean = "When Mary and John went to the store, John gave a drink to"
corrupt = "When Mary and John went to the store, Mary gave a drink to"
words = lm.to_strings(lm.to_tokens(clean))[0]
S2, END = 9, 13
assert words[S2] == " John" and words[END] == " to" and len(words) == 14

difference = ji.metrics.logit_difference(" Mary", " John")
trace = ji.run(lm, [clean, corrupt], sites=["resid_pre", "pattern", "v"])
at_clean, at_corrupt = difference(trace)
print(f"clean {at_clean:+.2f}, corrupt {at_corrupt:+.2f}")
assert abs(at_clean - 6.12) < 0.01 and abs(at_corrupt + 5.49) < 0.01

# %% [markdown]
# ## 2. One patch, by hand
#
# Take one vector of the clean run, the residual stream that enters layer 15 at the second name, and put it into the corrupt run in place of
# its own. Does the answer turn? We put the result on a scale where 0 is the corrupt run's answer, and 1 the clean run's:
#
# $$ \mathrm{effect} = \frac{patched - corrupt}{clean - corrupt} $$

# %%
value = trace.at("resid_pre", layer=15, position=S2)[0]  # [D], of the clean prompt


def effect_of(edit):
    """What an edit of the corrupt run brings back: 0 is nothing, 1 is all."""
    return float((difference(ji.run(lm, corrupt, edits=edit))[0] - at_corrupt) / (at_clean - at_corrupt))


by_hand = effect_of(ji.edits.replace("resid_pre", value, layer=15, position=S2))
print(f"effect {by_hand:.2f}")
assert abs(by_hand - 1.01) < 0.01

# %% [markdown]
# All of it, with one vector of 576 numbers: at layer 15 whatever the model knows about who is who still stands at that name.
#
# ## 3. The whole grid
#
# `ji.patch` does this for every layer and position: 420 runs, in one compiled program.

# %%
stream = ji.patch(lm, clean, corrupt, difference, site="resid_pre", over=("layer", "position"))
assert abs(stream.effects[15, S2] - by_hand) < 1e-4
stream.view("Residual stream, patched from clean to corrupt")

# %% [markdown]
# How to read it:
#
# * Columns before `S2` are empty. With causal attention nothing there can know of the change.
# * In the column of `S2` the effect is 1 up to layer 19, and then falls: 0.91, 0.61, 0.62, 0.58 at layers 20 to 23, and nothing from 24 on.
# * In the last column it rises as the other falls, and is 0.92 from layer 24 on.
#
# So the information moves from `S2` to `END` by attention, in layers 19 to 23. What matters before and after are one place each.

# %%
effects = np.asarray(stream.effects)  # [L P]
print("S2, layers 19 to 24: ", effects[19:25, S2])
print("END, layers 19 to 24:", effects[19:25, END])
np.testing.assert_allclose(effects[20:24, S2], [0.91, 0.61, 0.62, 0.58], atol=0.01)
assert (np.abs(effects[:20, S2] - 1) < 0.03).all() and np.abs(effects[24:, S2]).max() < 0.05
assert (np.abs(effects[:, :S2]) < 1e-3).all() and abs(effects[24, END] - 0.92) < 0.01 and effects[24:, END].min() > 0.9

# %% [markdown]
# ## 4. Which heads, and where
#
# Attention moves things, so patch heads: `z`, what a head has read, at each layer, head, and at the two positions by themselves.

# %%
heads = ji.patch(lm, clean, corrupt, difference, "z", over={"position": {"S2": [S2], "END": [END]}, "layer": range(30), "head": range(9)})
effects = np.asarray(heads.effects)  # [position L H]


def strongest(values, count):
    """Names of the heads with the largest values [L H] of either sign."""
    order = np.argsort(-np.abs(values), axis=None)[:count].tolist()
    return [f"{cell // 9}.{cell % 9} {values.ravel()[cell]:+.2f}" for cell in order]


print("at S2: ", strongest(effects[0], 2))
print("at END:", strongest(effects[1], 6))
assert [name.split()[0] for name in strongest(effects[0], 1)] == ["17.4"] and np.sort(np.abs(effects[0]), axis=None)[-2] < 0.03
assert [name.split()[0] for name in strongest(effects[1], 5)] == ["23.3", "29.1", "24.4", "20.0", "29.0"]

# %% [markdown]
# At the second name only 17.4 matters. The others act at the end, and 23.3 alone makes up more than half of the difference. Two have the
# opposite sign, 24.4 and 29.0: they push against the right answer. Such heads have been found in other models too (Wang et al. 2022,
# arXiv:2211.00593, call theirs negative name movers).
#
# Does 23.3 matter by *where it looks* or by *what it finds there*? Put in its clean pattern, and then its clean values, by hand. (Query
# head 3 reads key/value head 1, which it shares with heads 4 and 5.)

# %%
pattern, values = trace.at("pattern", layer=23)[:1], trace.at("v", layer=23)[:1]  # of the clean prompt: [1 H Q K], [1 P G E]
looks = effect_of(ji.edits.replace("pattern", pattern, layer=23, head=3))
finds = effect_of(ji.edits.replace("v", values, layer=23, head=1))
print(f"where it looks {looks:+.2f}, what it finds {finds:+.2f}")
assert abs(looks + 0.02) < 0.01 and abs(finds - 0.53) < 0.01
assert (trace.at("pattern", layer=23, head=3, query=END).argmax(axis=-1) == S2).all()  # in both prompts it looks at the second name

# %% [markdown]
# What it finds. In both prompts it looks at the second name; and there stands, by then, who was repeated.
#
# ## 5. What a head writes itself
#
# Patching tells what a head does *by all ways*, through every later layer. **Direct logit attribution** asks what it writes straight into
# the logits. The last residual stream is a sum of what embedding, heads and MLPs have written; with the final norm's denominator held, so
# is the logit difference. The parts add up to 6.12, with nothing left over:

# %%
parts = ji.direct_logit_attribution(lm, clean, difference, by="head")
print({name: f"{float(value[0]):+.2f}" for name, value in parts.sums().items()})
print("heads:", strongest(parts.values, 5))
assert abs(parts.remainder[0]) < 1e-3 and abs(sum(value[0] for name, value in parts.sums().items() if name != "total") - 6.12) < 0.01
assert abs(parts.values[23, 3] - 2.86) < 0.01 and abs(parts.values[29, 1] - 1.73) < 0.01

# %%
direct, total = parts.values.ravel(), effects[1].ravel()
plt.figure(figsize=(6, 4.2))
plt.scatter(direct, total, s=12)
for cell in np.argsort(-np.abs(total))[:6]:
    plt.annotate(f"{cell // 9}.{cell % 9}", (direct[cell], total[cell]), xytext=(4, 4), textcoords="offset points")
plt.axhline(0, color="grey", linewidth=0.5)
plt.axvline(0, color="grey", linewidth=0.5)
plt.xlabel("direct: logits written by the head")
plt.ylabel("by all ways: effect of patching")
plt.show()
assert parts.values[20, 0] < 0 < 0.15 < effects[1, 20, 0]

# %% [markdown]
# Most heads lie on one line: they do what they write. Head 20.0 does not. Patching it moves the answer by 0.20, and what it writes itself
# points the other way. It works through others: it stands in layer 20, and what it brings to `END` is read there by later heads and MLPs.
#
# ## 6. Is it true? Ablation, on more prompts
#
# All of this was one pair of prompts. Here are eight others, in another sentence. And we now ask the opposite question: not what a head
# *can* carry, but what is *lost* without it. That depends on what one puts in its place:
#
# * **zero**: nothing. Simple, but a value that the model may never have met.
# * **mean**: its average over prompts with a third name (C) as subject. It keeps what all prompts share, and forgets this one's names.
# * **resample**: its value on this prompt's own partner with a third name.

# %%
sentence = "Then, {a} and {b} went to the {place}. {subject} gave a {thing} to"
cast = [
    line.split()
    for line in (
        "Mary John Tom store drink", "Anna James Paul park ball", "Sarah Paul Mary school book", "David Lisa Anna office ring",
        "Emma Mark Sarah store book", "Tom Kate David park drink", "Lisa David Emma school ball", "John Sarah Mark office ring",
    )
]  # fmt: skip
prompts = [sentence.format(a=a, b=b, place=place, thing=thing, subject=b) for a, b, c, place, thing in cast]
others = [sentence.format(a=a, b=b, place=place, thing=thing, subject=c) for a, b, c, place, thing in cast]
right = ji.metrics.logit_difference([f" {a}" for a, *_ in cast], [f" {b}" for _, b, *_ in cast])  # each prompt has its own answer
print(prompts[1], "...", cast[1][0])

sets = {"23.3": ji.heads("23.3"), "23.3 and 29.1": ji.heads("23.3 29.1"), "24.4": ji.heads("24.4"), "5.2": ji.heads("5.2")}
zero = ji.ablate(lm, prompts, right, components=sets, kind="zero")
mean = ji.ablate(lm, prompts, right, components=sets, kind="mean", reference=others)
resample = ji.ablate(lm, prompts, right, components=sets, kind="resample", reference=others, partners="own")

base = float(np.mean(zero.clean))
print(f"\nlogit difference, mean of eight: {base:.2f}")
print(f"{'without':14}  zero   mean  resample")
for row, name in enumerate(sets):
    print(f"{name:14}  {zero.values[row]:.2f}   {mean.values[row]:.2f}   {resample.values[row]:.2f}")

assert abs(base - 5.87) < 0.01
np.testing.assert_allclose(zero.values, [3.02, 2.24, 5.56, 5.84], atol=0.01)
np.testing.assert_allclose(mean.values, [3.02, 2.38, 5.78, 5.82], atol=0.01)
np.testing.assert_allclose(resample.values, [2.71, 2.07, 6.25, 5.89], atol=0.01)

# %% [markdown]
# Without 23.3 half of the margin is gone, whatever stands in its place; 29.1 adds to that. The control, 5.2, does nothing. These claims
# hold.
#
# Head 24.4 is another matter. With zero the answer gets *worse* without it; with another prompt's value it gets *better*, as one expects of
# a head that pushes against it. A zero also takes away what the head does in every prompt. So an ablation is a claim about what is
# put in, too, and one says which.

# %%
assert all(result.values[0] < base - 2.5 for result in (zero, mean, resample)) and abs(zero.values[3] - base) < 0.1
assert zero.values[2] < base - 0.2 and resample.values[2] > base + 0.2

# %% [markdown]
# # Part two: can we make it do something else?
#
# ## 7. A direction from contrasts
#
# Here are 24 pairs of sentences. The two of a pair say much the same, and differ in whether it is good or bad. All end in a full stop,
# where the model has read the whole sentence. We make a direction from 16 of the pairs, and keep 8 to look at later.

# %%
pairs = [
    ("The hotel was lovely.", "The hotel was filthy."), ("Our neighbours are kind.", "Our neighbours are cruel."),
    ("The soup tasted delicious.", "The soup tasted disgusting."), ("Her voice was charming.", "Her voice was annoying."),
    ("The garden looks splendid.", "The garden looks dead."), ("What he did was generous.", "What he did was selfish."),
    ("The flight was pleasant.", "The flight was unpleasant."), ("I smiled all the way home.", "I cried all the way home."),
    ("The news made us happy.", "The news made us sad."), ("My teacher was friendly.", "My teacher was hostile."),
    ("The party was cheerful.", "The party was gloomy."), ("They gave us a warm welcome.", "They gave us a cold welcome."),
    ("The answer was helpful.", "The answer was useless."), ("She was proud of her son.", "She was ashamed of her son."),
    ("The flowers smelled sweet.", "The flowers smelled rotten."), ("We loved every minute of it.", "We hated every minute of it."),
    ("The nurse was gentle.", "The nurse was rough."), ("The operation was a success.", "The operation was a failure."),
    ("He spoke in a calm voice.", "He spoke in an angry voice."), ("The children laughed.", "The children wept."),
    ("The room felt welcoming.", "The room felt depressing."), ("His work is careful.", "His work is careless."),
    ("The dog was healthy.", "The dog was sick."), ("Everybody was hopeful.", "Everybody was hopeless."),
]  # fmt: skip
positive, negative = zip(*pairs)
MADE, LAYER = 16, 12


def at_last_token(texts):
    """The residual stream after each layer, at each text's last token: [L N D]."""
    return np.asarray(ji.run(lm, list(texts), sites={"resid_post": ji.at(position=-1)})["resid_post"])


apart = at_last_token(positive) - at_last_token(negative)  # [L N D]
direction = apart[LAYER, :MADE].mean(axis=0)  # [D]
size, usual = np.linalg.norm(direction), np.linalg.norm(at_last_token(positive)[LAYER], axis=-1).mean()
print(f"the direction is {size:.1f} long; the vectors of the stream there are {usual:.0f} long")
assert size < 0.1 * usual

# %% [markdown]
# That is all: a mean of differences (Turner et al. 2023, arXiv:2308.10248; Rimsky et al. 2023, arXiv:2312.06681). At each of the 8 pairs
# that were kept apart, the positive sentence lies further along the direction than the negative one:

# %%
held_out = apart[LAYER, MADE:] @ direction > 0
print(f"{held_out.sum()} of {len(held_out)} pairs the right way round")
assert held_out.all()

# %% [markdown]
# ## 8. Steer
#
# Add the direction to the stream after layer 12, at every position, while the model writes. The strength says how much of it, and which
# way.

# %%
openings = ["I think this film is", "The food at this restaurant was", "My first day at work was"]
levels = [-1.5, 0.0, 1.5]

each = [opening for opening in openings for _ in levels]
strength = np.tile(levels, len(openings))[:, None, None]  # one for each text: [B 1 1], against the site's axes B P D
texts = ji.generate(lm, each, 16, edits=[ji.edits.steer("resid_post", direction, strength, layer=LAYER)]).text
for opening, level, text in zip(each, strength.ravel(), texts):
    print(f"{level:+.1f}  {opening} ...{text!r}")

assert "nightmare" in texts[3] and "nightmare" not in texts[4] + texts[5]

# %% [markdown]
# It works, or does it? Three texts are an impression. To know, we need a number, prompts that have nothing to do with the pairs, and many
# strengths.
#
# ## 9. The effect, held out
#
# The metric: how much likelier a good word is than a bad one as the next word, in log-odds. None of the words and none of the prompts was
# used to make the direction. Strength, direction and layer are data, so all of this is one compiled program.

# %%
prompts = openings + [
    "To be honest, the new album is", "Overall, the book was", "The view from our room was", "People say that his paintings are",
    "I found the lecture",
]  # fmt: skip
good = [" good", " great", " excellent", " wonderful", " amazing", " beautiful", " perfect", " fantastic"]
bad = [" bad", " terrible", " awful", " horrible", " boring", " poor", " ugly", " disappointing"]
used = " ".join(positive + negative)
assert not any(word.strip() in used for word in good + bad) and not any(prompt in used for prompt in prompts)

odds = ji.metrics.log_odds([good], [bad]).bind(lm)
tokens = lm.to_tokens(prompts)


@jax.jit
def effect(strength, direction, layer, params):
    """Log-odds of good against bad words for each prompt [B]."""
    steer = ji.edits.steer("resid_post", direction, strength, layer=layer)
    return odds(ji.forward(params, tokens, lm.config, edits=[steer]))


strengths = np.array([-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2])
curves = np.stack([effect(strength, direction, LAYER, lm.params) for strength in strengths])  # [S B]
chance = np.random.default_rng(0).normal(size=direction.shape)
control = np.stack([effect(strength, chance * size / np.linalg.norm(chance), LAYER, lm.params) for strength in strengths])

plt.figure(figsize=(7, 4))
plt.plot(strengths, curves, color="C0", alpha=0.25)
plt.plot(strengths, curves.mean(axis=1), color="C0", marker="o", label="the direction: each prompt, and their mean")
plt.plot(strengths, control.mean(axis=1), color="grey", marker=".", label="a random direction of the same length")
plt.xlabel("strength")
plt.ylabel("log-odds, good against bad words")
plt.legend()
plt.show()

print("mean log-odds by strength:", curves.mean(axis=1))
assert (np.diff(curves, axis=0) > 0).all()  # rises with every step, on every prompt
assert np.abs(control.mean(axis=1) - control.mean(axis=1)[4]).max() < 0.3
np.testing.assert_allclose(curves.mean(axis=1)[[0, 4, 8]], [0.32, 2.55, 5.19], atol=0.02)

# %% [markdown]
# On every prompt the log-odds rise with every step, from 0.32 on average at strength -2 to 5.19 at +2; as it is, the model stands at
# 2.55. A random direction of the same length does next to nothing, so it is not just a matter of disturbing the model.
#
# ## 10. The cost
#
# A vector that is added everywhere changes other texts too. How much? Take plain sentences that have nothing to do with good or bad, and
# measure how far the prediction of the next token moves, at every token: the KL divergence, in nats, 0 where nothing changes.

# %%
neutral = [
    "The library opens at nine in the morning and closes at six.",
    "Water boils at a lower temperature in the mountains, because the pressure of the air falls with height.",
    "The river rises in the north and flows through three counties before it reaches the sea.",
]
moved = ji.metrics.kl_divergence(ji.run(lm, neutral), position="all")
cost = []
for strength in strengths:
    steer = ji.edits.steer("resid_post", direction, strength, layer=LAYER)
    cost.append(float(moved(ji.run(lm, neutral, edits=[steer])).mean()))

print("KL by strength:", np.array(cost))
assert cost[4] < 1e-6 and np.argsort(cost[4:]).tolist() == [0, 1, 2, 3, 4] and np.argsort(cost[:5]).tolist() == [4, 3, 2, 1, 0]
assert 3.5 < cost[8] / cost[6] < 4.5 and np.diff(curves.mean(axis=1)[[4, 6, 8]])[1] < np.diff(curves.mean(axis=1)[[4, 6, 8]])[0]

# %% [markdown]
# The cost grows faster than the strength: strength 2 costs about four times as much as strength 1, and the second step buys less than the
# first. Good steering is the smallest strength that does what you want.
#
# ## 11. Why held out matters
#
# A direction always fits the examples that it was made from. To see how well, destroy the meaning: exchange good and bad in half of
# the pairs, at random, make a "direction" from that, and count the pairs that lie the right way round, by the labels it was given. Then
# the same on the 8 pairs that it has not seen, with labels as random.

# %%
rng = np.random.default_rng(0)
sizes, seen, unseen = [2, 4, 8, 16], [], []
for count in sizes:
    shares = []
    for _ in range(200):
        flips = rng.choice([-1, 1], size=len(pairs))  # which pairs are turned around
        labelled = flips[:, None] * apart[LAYER]  # [N D]
        made = labelled[:count].mean(axis=0)
        shares.append([(labelled[:count] @ made > 0).mean(), (labelled[MADE:] @ made > 0).mean()])
    own, new = np.mean(shares, axis=0)
    seen.append(own)
    unseen.append(new)

plt.figure(figsize=(6, 3.2))
plt.plot(sizes, seen, marker="o", label="the pairs it was made from")
plt.plot(sizes, unseen, marker="o", label="8 other pairs")
plt.axhline(0.5, color="grey", linewidth=0.5)
plt.xlabel("pairs, with labels that mean nothing")
plt.ylabel("the right way round")
plt.ylim(0, 1.05)
plt.legend()
plt.show()
print("seen:  ", np.array(seen))
print("unseen:", np.array(unseen))
assert seen[0] > 0.99 and seen[-1] > 0.75 and all(abs(share - 0.5) < 0.05 for share in unseen)

# %% [markdown]
# With labels that mean nothing, a direction made from 16 pairs still gets more than three of four of them right, and one made from two
# pairs gets both. On other pairs it is a coin toss. So a score on the examples that a direction was made from says nothing. Ours got 8 of
# 8 on pairs that it had not seen, and moved words and prompts that it had not seen.
#
# ## 12. The same with the library
#
# `ji.steering.mean_difference` makes a `SteeringVector`: a direction for each of the 30 layers, with what is known about each. Its
# accuracy is measured on pairs held out in turn.

# %%
vector = ji.steering.mean_difference(lm, positive[:MADE], negative[:MADE])
print(vector)
np.testing.assert_allclose(vector.values[LAYER], direction, atol=1e-3)  # the one made by hand
print("layer 12 tells apart", f"{vector.accuracy[LAYER]:.0%}", "of texts held out")
assert vector.accuracy[LAYER] > 0.8

# %% [markdown]
# `vector.add(strength, layer=...)` is an edit like any other, to be used with `ji.run`, `ji.forward` or `ji.generate`:

# %%
steered = odds(ji.run(lm, prompts, edits=[vector.add(1.5, layer=LAYER)]))
print(steered)
np.testing.assert_allclose(steered, curves[7], atol=1e-2)  # the same as by hand

# %% [markdown]
# And `ji.steering.sweep` measures the effect over layers *and* strengths, with the cost beside it: on neutral texts, and how much longer
# the steered vectors are. Its row for layer 12 is the curve that we drew.

# %%
sweep = ji.steering.sweep(lm, vector, prompts, odds, layers=[8, 12, 16], strengths=[-2, -1, 0, 1, 2], neutral=neutral)
row = sweep.layers.index(LAYER)
np.testing.assert_allclose(sweep.values[row], curves.mean(axis=1)[::2], atol=1e-2)
sweep.view()

# %%
choice = sweep.best(budget=0.1)
print(f"the largest effect for at most 0.1 nats: layer {choice.layer}, strength {choice.strength:+g}, {choice.effect:+.2f}")
assert choice.costs["neutral_kl"] <= 0.1

# %% [markdown]
# It knows what it was made from, and does not let itself be judged by that:

# %%
try:
    ji.steering.sweep(lm, vector, list(positive[:2]), odds)
except ji.InputError as error:
    print(error)
else:
    raise AssertionError("texts that the vector was made from were let through")

# %% [markdown]
# ## Exercises
#
# Try each before you unfold its answer.
#
# **1. The other way round.** In section 3 clean values went into the corrupt run. `mode="noise"` puts corrupt values into the clean run:
# what does the answer lose? Compare the two at `S2` and `END`. Do they have to agree?

# %% jupyter={"source_hidden": true} tags=["answer"]
# Answer 1. They need not: denoising asks what is enough to bring the answer back, noising what it cannot do without. Here they nearly
# agree, since all of it goes through one place at a time.
noise = np.asarray(ji.patch(lm, clean, corrupt, difference, mode="noise").effects)
denoise = np.asarray(stream.effects)
print("S2, layers 19 to 24:", noise[19:25, S2], "END:", noise[19:25, END])
assert np.abs(noise - denoise)[:, [S2, END]].max() < 0.2

# %% [markdown]
# **2. A group of heads.** Patch 17.4, 20.0, 23.3 and 29.1 together (`components=[ji.heads("17.4 20.0 23.3 29.1")]`, without `over`). Is the
# effect the sum of the four? Why not?

# %% jupyter={"source_hidden": true} tags=["answer"]
# Answer 2. Not the sum. What 17.4 does reaches the answer through others of the group: once those have their clean values it adds little, so
# the sum counts it twice.
four, three = "17.4 20.0 23.3 29.1", "20.0 23.3 29.1"
sets = [ji.heads(names) for names in (four, three, *four.split())]
together, without, *single = np.asarray(ji.patch(lm, clean, corrupt, difference, "z", components=sets).effects)
print(f"four {together:.2f}, without 17.4 {without:.2f}; one by one {np.array(single)} with sum {np.sum(single):.2f}")
assert together < np.sum(single) - 0.2 and together - without < single[0] / 2

# %% [markdown]
# **3. Another layer.** Draw the curve of section 9 for layer 14, with that layer's own mean difference. It does not rise everywhere. What
# helps?

# %% jupyter={"source_hidden": true} tags=["answer"]
# Answer 3. A step that is too large for this layer: the curve turns. With a quarter of the strength it rises again.
other = apart[14, :MADE].mean(axis=0)
far = np.stack([effect(strength, other, 14, lm.params) for strength in strengths]).mean(axis=1)
near = np.stack([effect(strength, other, 14, lm.params) for strength in strengths / 4]).mean(axis=1)
print("strengths to 2:  ", far)
print("strengths to 0.5:", near)
assert not (np.diff(far) > 0).all() and (np.diff(near) > 0).all()

# %% [markdown]
# **4. Take it away.** Instead of adding the direction, remove whatever the stream has of it (`ji.edits.project_out`). At all positions,
# what happens to the log-odds? And at all but the first token?

# %% jupyter={"source_hidden": true} tags=["answer"]
# Answer 4. They go *up*, by more than two; but only because of the first token, whose vector is a hundred times as long as the others,
# and with it the part that is removed. It is where heads look when they look nowhere, and all later tokens feel it. Anywhere else, nearly
# nothing.
def log_odds_without(where):
    """The mean log-odds with the direction removed at some positions, a mask [P]."""
    mask = np.broadcast_to(where, (lm.config.n_layers, *tokens.shape))
    return float(odds(ji.run(lm, prompts, edits=ji.edits.project_out("resid_post", direction, layer=LAYER, where=mask))).mean())


first_token = np.arange(tokens.shape[1]) == 0
plain, everywhere, at_first, elsewhere = curves[4].mean(), *map(log_odds_without, (first_token | True, first_token, ~first_token))
print(f"as it is {plain:.2f}; removed everywhere {everywhere:.2f}, at the first token {at_first:.2f}, at all others {elsewhere:.2f}")
assert everywhere > plain + 2 and at_first > plain + 2 and abs(elsewhere - plain) < 0.1
