# %% [markdown]
# # 6. Which attention operators form sinks?
#
# **Question.** If attention sinks exist because a softmax row must add up to one, then
# attention without that constraint should have none. Does it?
#
# **Answer.** On Bigram-Backcopy it does not: ReLU attention learns the same task and
# puts nothing on `<s>`, and a gate on the head's output makes the sink weaker. Softmax
# plus one could look away too, but rests on `<s>` all the same. The constraint is not
# the whole story: what forms also depends on what is easiest to learn.
#
# *Models: toys of one layer, two seeds each, trained here; smaller and shorter than
# those of `mechsink experiment operators`, whose five seeds are in docs/results. A
# minute or two on two CPU cores.*

# %%
import tempfile

import mechsink as ms

# %% [markdown]
# ## Four operators
# Each differs from the first in one thing. `softmax1` adds one to the denominator, so
# a row may add up to nothing; `relu` divides by the number of tokens seen; `gate`
# multiplies what a softmax head reads by a learned sigmoid of the query's own state.

# %%
folder = tempfile.TemporaryDirectory()
names = ["softmax", "softmax1", "gate", "relu"]
study = ms.operator_study(folder.name, names, quick=True, seeds=[0, 1], workers=2)
study

# %% [markdown]
# The figure is the share of attention that queries other than triggers (those that
# need no other token) pay to `<s>`: a dot a seed, a bar the mean. The dotted line is a
# head that looks everywhere alike.
#
# ## More than attention
# The other marks of a sink: the value of `<s>` next to other values, its residual
# norm, and whether the task was learned at all (excess risk).

# %%
figure = study.figures()["operators"]

# %%
means, _ = study.tables().values()
means[
    [
        "setting",
        "share of <s>, other queries",
        "value of <s> / others",
        "excess risk (nats)",
        "weight on all tokens",
    ]
]

# %% [markdown]
# `weight on all tokens` tells softmax plus one and ReLU apart from the others: their
# rows do not have to add up to one, and ReLU's do not.
#
# ## The claim, checked
# A study carries its claims with what was measured; `check` raises where one fails.

# %%
study.check()
share = study.table[study.table["measure"] == "bos_markov_share"]
share = share.groupby("setting")["value"].mean()
assert share["softmax"] > 0.5 and share["softmax1"] > 0.5
assert share["relu"] < 0.2
assert share["gate"] < share["softmax"]
folder.cleanup()
