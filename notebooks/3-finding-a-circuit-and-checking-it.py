# %% [markdown]
# # 3. Which edges carry a behaviour, and how would we know?
#
# **Question.** A method that scores edges always returns a list, and the top of any
# list can be drawn as a circuit. How do we find out whether it explains the behaviour?
#
# **Answer.** On a model whose circuit is known, edge attribution finds exactly that
# circuit. On a real one, measured on prompts that did not choose them, the hundred
# strongest of seventy thousand edges keep next to nothing of the behaviour, though
# they are far better than chance among larger sets. A circuit is a claim to be
# measured.
#
# *Models: a transformer built by hand; SmolLM2-135M-Instruct, 4-bit weights. A minute
# or two on two CPU cores.*

# %%
from dataclasses import replace

import numpy as np

import mechsink as ms
from toy_tasks.planted import induction

# %% [markdown]
# ## First where the answer is known
# A two-layer transformer whose weights were set by hand to do induction (after `A B
# ... A` comes `B`), among heads and neurons that do not matter.

# %%
case = induction(n_prompts=60)
toy = ms.load_model(case.model)
pairs = ms.PromptPairs(case.clean, case.corrupted, case.answers, case.wrong)
scores = ms.eap_ig(toy, pairs, ms.logit_diff, steps=20)
circuit = ms.top_edges(scores, len(case.edges))
ax = circuit.plot()

# %%
auroc = ms.edge_auroc(scores, case.edges)
found = ms.faithfulness(toy, circuit, pairs, ms.logit_diff)
print(f"same edges as planted: {set(circuit.edges) == case.edges}; AUROC {auroc}")
print(found.describe())

# %% [markdown]
# The edges are the planted ones, no more and no fewer, and keeping them alone keeps
# all of the behaviour. Does each of them do something? `minimality` takes out one at a
# time.

# %%
least = ms.minimality(toy, circuit, pairs, ms.logit_diff)
least

# %% [markdown]
# ## Then where it is not
# Indirect objects in a real model: "When Mary and John went to the shop, John gave a
# drink to" is continued with " Mary"; in the corrupted prompt the names are others.
# Half of the pairs choose edges, the other half measure them: a circuit measured on
# the prompts that chose it flatters itself.

# %%
model = ms.load_model("smollm2")
made = ms.prompt_sets.ioi(model, n=20)
chooses, measures = made.split(0.5, seed=0)
made.accuracy(model)

# %%
found_edges = ms.eap_ig(model, chooses.pairs, ms.logit_diff, steps=5)
print(f"{len(found_edges.table):,} edges")
ax = found_edges.plot(n=12)

# %% [markdown]
# Now keep the best so many edges and cut all others (they carry what the corrupted
# prompt has there). 1 is as good as the whole model, 0 as good as no edge at all.
# Beside it the same with the scores dealt out at random: a large circuit is faithful
# whatever it holds.

# %%
shuffled = found_edges.table.copy()
order = np.random.default_rng(0).permutation(len(shuffled))
shuffled["score"] = shuffled["score"].to_numpy()[order]
chance = replace(found_edges, table=shuffled, method="random")
fractions = (0.002, 0.01, 0.05, 0.1, 0.2, 0.5)
curves = {
    scored.method: ms.faithfulness_curve(
        model, scored, measures.pairs, ms.logit_diff, fractions=fractions
    )
    for scored in (found_edges, chance)
}
ax = ms.compare_curves(curves)

# %%
columns = ["edges", "faithfulness", "low", "high"]
curves[found_edges.method].table[["fraction", *columns]].round(2)

# %% [markdown]
# The strongest edges do not join up into anything that answers; from a tenth or a
# fifth of all edges on, chosen ones carry most of the behaviour where random ones
# carry none. Both facts are invisible in a picture of the top of the list.
#
# ## The claim, checked

# %%
assert set(circuit.edges) == case.edges and auroc == 1
assert abs(found.value - 1) < 0.02
assert (least.table["largest"].abs() > case.noise_bound).all()  # none is idle

chosen, random = (curve.table.set_index("fraction") for curve in curves.values())
assert chosen.loc[0.002, "faithfulness"] < 0.3  # the top of the list is no circuit
assert chosen.loc[0.5, "low"] > 0.5  # enough of it is
assert chosen.loc[0.2, "faithfulness"] > random.loc[0.2, "faithfulness"] + 0.2
