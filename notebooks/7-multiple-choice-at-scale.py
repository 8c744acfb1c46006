# %% [markdown]
# # 7. Which heads say the right letter?
#
# **Question.** "A. Rome B. Paris C. Oslo D. Bern. Answer:" is answered by a letter.
# Some heads must find the right option and say its label. Which, and do they know the
# letters or only where they stand?
#
# **Answer.** One call takes the margin of the right letter apart, names the heads that
# make it by what they look at, and cuts their queries and keys down to a few
# directions to see how much of them is needed: the analysis that was done on
# Chinchilla 70B ([Lieberum et al. 2023](https://arxiv.org/abs/2307.09458)). On a model
# with a planted correct-letter head it finds that head and nothing else. On a small
# real model the first question is whether there is anything to explain: SmolLM2-135M
# is at chance here, and no circuit should be read from it.
#
# *Models: a transformer built by hand; SmolLM2-135M-Instruct, 4-bit weights. Under a
# minute on two CPU cores. Large models load by name; the calls are the same.*

# %%
import matplotlib.pyplot as plt

import mechsink as ms
from toy_tasks.planted import LABEL_POSITIONS, correct_letter

# %% [markdown]
# ## A model that we know
# Its head in layer 1 looks from the last token at the label whose option is right, and
# copies that label. Each prompt has a partner with another right answer: what nodes
# are patched with. `other` prompts draw four of eight letters in random order, to see
# whether the head knows letters or places.

# %%
case = correct_letter(n_prompts=60)
model = ms.load_model(case.model, name="planted")
given = ms.Choices.at(case.clean, LABEL_POSITIONS, case.answers, case.corrupted)
mixed = correct_letter(n_prompts=60, random_labels=True)
other = ms.Choices.at(mixed.clean, LABEL_POSITIONS, mixed.answers, mixed.corrupted)
" ".join(case.vocab[token] for token in case.clean[0]), case.vocab[case.answers[0]]

# %%
found = ms.multiple_choice(
    model, given, generalise=other, n_nodes=4, ranks=(0, 1, 2, 3, 4)
)
found.accuracy.round(3)

# %% [markdown]
# ## Who makes the margin, and by looking at what?

# %%
ax = found.plot()

# %%
columns = [
    "layer",
    "component",
    "category",
    "direct",
    "total",
    "to_correct",
    "confirmed",
]
found.outputs[columns].round(3)

# %% [markdown]
# The head that was planted carries all of the margin. Its category comes from its
# attention (`to_correct`: of what it pays to labels, the share on the right one), and
# `total` is how much the margin falls when the head alone is given its value from the
# partner prompt.
#
# ## How much of the head is needed?
# Its queries, keys and values are cut to their first few directions, found on the
# given prompts; on letters in random order the same directions are used.

# %%
figure, ax = plt.subplots(figsize=(3.4, 2.4))
for (labels, site), rows in found.low_rank.groupby(["labels", "site"]):
    if site in ("L1H0.q", "L1KV0.v"):
        style = "-" if labels == "given" else "--"
        colour = "#0173b2" if site.endswith("q") else "#de8f05"
        ax.plot(
            rows["rank"],
            rows["accuracy_after"],
            style,
            color=colour,
            marker="o",
            ms=3,
            label=f"{site}, {labels}",
        )
ax.axhline(0.25, color="0.6", lw=0.8, ls=":")
ax.set(xlabel="directions kept", ylabel="right letters", ylim=(0, 1.03))
ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# Three directions of the query are enough, and they serve letters that they were not
# found on: the head picks by content, not by letter. Four directions of the values
# hold A to D and know no others: what is said must be learned letter by letter.
#
# ## A model that we do not know
# The same on a real one, with questions that it has some hope of answering. First: can
# it?

# %%
real = ms.load_model("smollm2")
questions = ms.prompt_sets.multiple_choice(real, n=24)
print(questions.pairs.clean[0])
skill = questions.accuracy(real)
print(
    f"right beats the wrong letter in {skill.beats_wrong:.0%} of questions "
    f"(95 %: {skill.low:.0%} to {skill.high:.0%}; chance is 50 %)"
)

# %% [markdown]
# The interval holds one half. Here an honest analysis stops: heads could still be
# ranked by their part of the margin, but the margin is noise.
#
# ## The claim, checked

# %%
accuracy = found.accuracy.set_index("labels")["accuracy"]
assert accuracy["given"] == accuracy["other"] == 1
assert found.heads("correct letter") == [(1, 0)]
best = found.outputs.iloc[0]
assert best["confirmed"] and best["to_correct"] > 0.9

cut = found.low_rank.set_index(["labels", "site", "rank"])["accuracy_after"]
assert cut["given", "L1H0.q", 3] == cut["other", "L1H0.q", 3] == 1
assert cut["given", "L1KV0.v", 4] == 1 and cut["other", "L1KV0.v", 4] < 0.8
assert skill.low < 0.5 < skill.high  # nothing to explain in the small model
