# %% [markdown]
# # 2. When, and why, does an attention sink form?
#
# **Question.** The sinks of notebook 1 were found in a finished model. What makes one
# grow, in what order do its parts appear, and what would the model lose without it?
#
# **Answer.** A head that is needed for some tokens only learns to rest on `<s>` for
# all others. In a one-layer toy this takes a few hundred steps: first the head learns
# its work, then the sink's attention and the drain of its value grow together.
#
# *Model: a toy transformer trained here on Bigram-Backcopy ([Guo et al.
# 2024](https://arxiv.org/abs/2410.13835)). A minute on two CPU cores.*

# %%
import tempfile
from dataclasses import replace

import mechsink as ms
from toy_tasks import PRESETS, BigramBackcopy, train

# %% [markdown]
# ## The task
# Characters follow each other as in English, one by one, except after a trigger
# (space, `e` and `t`): there the character *before* the trigger comes again. A bigram
# table does the first part without attention. The second needs one head, which must
# look one token back at triggers and has nothing to do anywhere else.

# %%
task = BigramBackcopy.from_text()
example = task.sample(1, 40, seed=1)
"".join(task.vocab[token] for token in example[0])

# %% [markdown]
# ## Training, with its checkpoints kept

# %%
folder = tempfile.TemporaryDirectory()
preset = replace(PRESETS["bb-cpu"], steps=700, checkpoints=20)
run = train(task, preset, folder.name, seed=0)

# %% [markdown]
# ## The timeline
# Every checkpoint is measured on the same fresh sequences. Excess risk is loss above
# what is possible; the sink logit is the score of `<s>` above that of the other keys,
# in nats.

# %%
timeline = ms.formation(run)
figure = timeline.panels()

# %% [markdown]
# Read the panels from the top. Losses off triggers fall first: the bigram table. Then
# the head finds the token before a trigger. Only then does attention to `<s>` rise for
# the *other* queries, while it stays at nothing for triggers; its value drains to a
# fraction of the others' over the same steps.

# %%
final = {
    name: timeline.final(name)["value"].mean()
    for name in ("bos_markov", "bos_trigger", "previous_trigger", "value_ratio")
}
{name: round(float(value), 3) for name, value in final.items()}

# %% [markdown]
# ## One head, two states
# The trained head on one sequence, a row a query. Rows of triggers have their weight
# one step left of the diagonal; all others put it in the first column.

# %%
import matplotlib.pyplot as plt
import seaborn as sns

model = ms.load_model(run.model())
tokens = task.sample(1, 24, seed=3)
site = ms.Site("pattern", 0)
pattern = model.run(tokens, read=[site]).cache[site][0, 0].numpy()
names = [task.vocab[token].replace(" ", "␣") for token in tokens[0]]
figure, ax = plt.subplots(figsize=(4.2, 3.6))
sns.heatmap(
    pattern,
    cmap="mako_r",
    vmin=0,
    vmax=1,
    ax=ax,
    square=True,
    xticklabels=names,
    yticklabels=names,
    cbar_kws={"label": "attention"},
)
ax.set(xlabel="key", ylabel="query")
ax.tick_params(labelsize=6, length=0)

# %% [markdown]
# ## What is the sink for?
# Swap the head's attention in the trained model and see what each kind of token loses,
# in nats above the best possible.

# %%
unseen = task.sample(256, 65, seed=2**31)
swaps = ms.swap_effects(model, task, unseen)
swaps = swaps.pivot(index="swap", columns="measure", values="value")
swaps.round(3)

# %% [markdown]
# *All to sink*: with every query resting on `<s>` triggers lose more than six nats, the
# other tokens about a hundredth of one: there the head does next to nothing. *Masked
# sink*: with `<s>` hidden the others lose, because the head must look elsewhere and
# reads what it should not. Triggers do not notice that the sink is gone. The sink is
# the head's off switch.
#
# ## The claim, checked

# %%
assert final["bos_markov"] > 0.7 and final["bos_trigger"] < 0.05
assert final["previous_trigger"] > 0.9 and final["value_ratio"] < 0.4

step = timeline.table.pivot_table(index="step", columns="measure", values="value")
learned = step.index[step["previous_trigger"] > 0.5][0]
rested = step.index[step["bos_markov"] > 0.5][0]
assert learned < rested  # it works before it rests

none, rest, hidden = (
    swaps.loc[name] for name in ("none", "all to sink", "masked sink")
)
lost = rest - none
assert lost["trigger_excess"] > 1  # where there is work, it is not done
assert lost["markov_excess"] < lost["trigger_excess"] / 100  # elsewhere there is none
assert hidden["markov_excess"] > none["markov_excess"]  # no off switch
folder.cleanup()
