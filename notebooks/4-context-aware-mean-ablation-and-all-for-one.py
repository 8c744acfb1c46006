# %% [markdown]
# # 4. When must the last token look at the others?
#
# **Question.** "3 + 4 + 5 =" is answered at its last token. Do the numbers have to be
# combined on the way there, or can every token wait by itself and the last one do it
# all, late and in one go?
#
# **Answer.** It depends on how the model was trained, and can be measured. Replace
# every token's residual by its mean given the token alone (context-aware mean
# ablation) up to some layer, let the last token look once, and count the answers that
# survive. One toy waits two layers and needs a single peek; another, as accurate,
# cannot wait a single layer.
#
# *Models: two four-layer toys that add three digits, trained here ([Mamidanna et al.
# 2025](https://arxiv.org/abs/2509.09650) is the source of the question). A minute on
# two CPU cores.*

# %%
import tempfile

import matplotlib.pyplot as plt
import pandas as pd

import mechsink as ms
from toy_tasks import PRESETS, Sums, train

task = Sums(10)
prompts = ms.SlotPrompts(
    "{A} + {B} + {C} =", dict.fromkeys("ABC", range(10)), lambda A, B, C: A + B + C
)

# %% [markdown]
# ## Two models with the same skill
# The first was built so that its tokens can only see each other in layer 2: a known
# answer for the search. The second is free to do as it likes.

# %%
folder = tempfile.TemporaryDirectory()
models = {}
for name in ("sums-planted-small", "sums-free-small"):
    train(task, PRESETS[name], f"{folder.name}/{name}", seed=0)
    models[name] = ms.load_model(f"toy:{folder.name}/{name}")

{name: float(prompts.answered(model).double().mean()) for name, model in models.items()}

# %% [markdown]
# ## What a token is without its context
# A context-aware mean keeps the token and redraws all others: what is left is what the
# token knows by itself. Put it in below layer 2, peek in layer 2, and compare with the
# usual ways of ablating, on the model whose answer we know.

# %%
planted = models["sums-planted-small"]
few = prompts.sample(200)
kept = {
    name: ms.all_for_one(planted, few, wait=2, peek=[2], means=means).kept
    for name, means in ms.waiting_baselines(planted, few, wait=2).items()
}
figure, ax = plt.subplots(figsize=(3.4, 1.9))
pd.Series(kept)[::-1].plot.barh(ax=ax, color="#0173b2")
ax.set(xlim=(0, 1), xlabel="right answers kept, waiting two layers")
ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# The plain mean and a resampled residual forget which token is there; zero forgets
# even that there is one. In this model "no attention" and "self attention" do well
# too, because its first layers were built to use none; the context-aware mean needs no
# such luck.
#
# ## How long can each model wait?
# `search_all_for_one` tries every waiting depth, and at the largest that keeps 95 % of
# the right answers looks for the fewest layers in which the last token must peek.
# Choices are made on one half of the operands and reported on prompts with the other.

# %%
searches = {
    name: ms.search_all_for_one(model, prompts) for name, model in models.items()
}
figure, axes = plt.subplots(1, 2, figsize=(6.8, 2.6), sharey=True)
for ax, (name, search) in zip(axes, searches.items(), strict=True):
    search.plot(ax)
    ax.set_title(name, fontsize="small")

# %%
for name, search in searches.items():
    print(f"{name}: {search.message}")

# %% [markdown]
# And from the other side, in the untouched model: undo the last token's look at the
# others in one layer at a time.

# %%
searches["sums-planted-small"].necessity.round(3)

# %% [markdown]
# ## The claim, checked

# %%
one, other = searches.values()
assert (one.wait, one.peek) == (2, [2]) and one.kept_interval[0] > 0.95
assert other.wait in (None, 0)  # not a single layer
assert all(
    search.meta["settings"]["full_accuracy"] > 0.9 for search in searches.values()
)
assert kept["context mean"] > 0.95 and max(kept["mean"], kept["zero"]) < 0.5
undone = one.necessity.set_index("undone")["kept"]
assert undone["2"] < 0.5 and (undone[["0", "1", "3"]] > 0.95).all()
folder.cleanup()
