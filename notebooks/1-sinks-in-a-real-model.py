# %% [markdown]
# # 1. Where does a language model look when it has nothing to look at?
#
# **Question.** Attention must add up to one, so a head that has no use for any token
# still has to look somewhere. Where, how often, and what does it find there?
#
# **Answer.** Three quarters of the heads of this model rest on the first token,
# whatever that token is. It is built for that: its residual norm is hundreds of times
# that of other tokens, and the values that heads read there are small. Hide it from
# the start and the next token takes its place; hide it once it is made and the loss
# soars.
#
# *Model: SmolLM2-135M-Instruct, 4-bit weights. Half a minute on two CPU cores; nothing
# is downloaded.*

# %%
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import torch

import mechsink as ms

model = ms.load_model("smollm2")
model.shape.n_layers, model.shape.n_heads

# %% [markdown]
# ## Texts
# English prose that comes with Python, its headings cut off: 24 documents, the first
# 64 tokens of each, as in the paper that named the sink rate ([Gu et al.
# 2024](https://arxiv.org/abs/2410.10781)).

# %%
prose = [text.split("\n\n", 1)[-1] for text in topics.values()]
rows = [model.to_tokens(text) for text in prose]
rows = [row for row in rows if row.shape[1] >= 80][:24]
tokens = torch.cat([row[:, :64] for row in rows])
model.to_strings(tokens[0])[:12]

# %% [markdown]
# ## How much attention goes to the first token?
# The sink score of a head is its mean attention to one position over the queries from
# there on. A head that looks everywhere alike would score H(64)/64 = 0.074: that is
# the number to compare with, not 0. Results show themselves: a line of origin, a
# figure, the head of a tidy table.

# %%
scores = ms.sink_scores(model, tokens)
scores

# %%
rate = scores.rate(eps=0.3)
print(f"{rate:.0%} of heads score above 0.3 at the first token.")
first = ms.sink_scores(model, tokens, tuple(range(8)))
first.rates().to_frame().T.round(3)

# %% [markdown]
# Only the very first position is a sink. But is it the position, or the words that
# texts begin with? Start every text 16 tokens later, in the middle of a sentence:

# %%
later = torch.cat([row[:, 16:80] for row in rows])
rate_later = ms.sink_scores(model, later).rate(eps=0.3)
print(f"{rate_later:.0%} when texts begin with {model.to_strings(later[:4, 0])}")

# %% [markdown]
# ## What is at the sink?
# The residual stream of the first token grows to an enormous norm within the first
# layers, keeps it to the last, and gives it back there.

# %%
norms = ms.residual_norms(model, tokens)
ax = norms.plot()

# %% [markdown]
# What a head adds to the stream when it looks at the sink is the sink's value. For the
# heads that rest there it is small: looking at the sink is a way to do nothing. Blue
# in this map is a value smaller than that of other tokens, each step of colour a
# factor.

# %%
values = ms.value_norms(model, tokens)
ax = values.plot()

# %%
by_head = ["layer", "head"]
rests = scores.table.groupby(by_head)["score"].mean() > 0.3
ratio = values.table.groupby(by_head)["ratio"].mean()
print(
    f"value at the sink / at other tokens, median of heads that rest there: "
    f"{ratio[rests].median():.2f}; of all others: {ratio[~rests].median():.2f}"
)

# %% [markdown]
# ## What is the sink worth?
# Hide one position from all later queries and give what they paid it to the other
# tokens: in every layer, as if the token were not there, or from layer 8 on, when the
# sink has been made.

# %%
few, layers = tokens[:6], range(model.shape.n_layers)
patterns = [ms.Site("pattern", layer) for layer in layers[12:]]


def hidden(position: int, first: int = 0) -> dict[str, float]:
    """Mean loss after position 8 (nats) and attention to position 1, one hidden."""
    edit = ms.at_layers(ms.hide_span([position]), layers[first:])
    run = model.run(few, read=patterns, edit=edit)
    logs = run.logits[:, 8:-1].log_softmax(-1).gather(-1, few[:, 9:, None])
    to_1 = [run.cache[site][:, :, 2:, 1].mean().item() for site in patterns]
    return {"loss": -logs.mean().item(), "to position 1": sum(to_1) / len(to_1)}


costs = {
    "position 4": hidden(4),
    "the sink": hidden(0),
    "the sink, from layer 8 on": hidden(0, first=8),
}
{name: {k: round(v, 2) for k, v in found.items()} for name, found in costs.items()}

# %% [markdown]
# A sink that never was is not missed: position 1 is now the first that can be seen,
# and takes all that attention. But once the sink has been made there is no other, and
# heads that must look elsewhere bring in what they should not.
#
# ## The claim, checked
# Results are saved as tables and JSON that any program can read, and come back as they
# were.

# %%
with tempfile.TemporaryDirectory() as folder:
    saved = scores.save(Path(folder) / "sink-scores")
    assert ms.SinkScores.load(saved).rate() == rate

assert rate > 0.6 and rate_later > 0.6  # most heads rest there, whatever the token
assert (first.rates()[1:] < 0.05).all()  # and nowhere else
assert norms.summary(0)["ratio"].max() > 100  # an extreme token
assert ratio[rests].median() < 0.5  # that gives little to read
ordinary, never, late = costs.values()
assert never["to position 1"] > 3 * ordinary["to position 1"]  # the next takes over
assert never["loss"] < ordinary["loss"] + 0.2
assert late["loss"] > ordinary["loss"] + 0.3  # too late for that
