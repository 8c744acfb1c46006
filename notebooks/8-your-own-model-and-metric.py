# %% [markdown]
# # 8. Can I ask my own question of my own model?
#
# **Question.** My model is not on a hub, and what I care about is not a logit
# difference. Which of its heads does my quantity depend on?
#
# **Answer.** A model object of transformers is enough, and a metric is any callable
# from a run to one number a prompt. Here: a two-layer model trained on the spot to
# repeat what it has seen, and how far the repeated token leads. Patching finds the
# heads that make it repeat. The ready-made score for such heads finds none of them:
# they do the job in a way of their own, which their attention shows.
#
# *Model: a Llama of 0.1 million parameters, trained here in half a minute on two CPU
# cores.*

# %%
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import mechsink as ms

# %% [markdown]
# ## My own model
# Random tokens, said twice: the second time every token can be known from the first.
# That takes two layers, one head that looks one token back and one that uses it.

# %%
VOCABULARY, BLOCK = 48, 14


def blocks(n: int, seed: int, length: int = BLOCK) -> torch.Tensor:
    """`<s>`, then random tokens, then the same again: Int[n, 1 + 2 * length]."""
    draw = torch.Generator().manual_seed(seed)
    once = torch.rand(n, VOCABULARY - 1, generator=draw).argsort(1)[:, :length] + 1
    return torch.cat([torch.zeros(n, 1, dtype=torch.int64), once, once], dim=1)


torch.manual_seed(0)
mine = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )
)
optimizer = torch.optim.AdamW(mine.parameters(), lr=3e-3, weight_decay=0.01)
mine.train()
for step in range(1000):
    length = 6 + step % 9  # varied, or the model would count back instead of looking
    tokens = blocks(64, step, length)
    logits = mine(tokens).logits[:, length:-1]  # from the first block's end on
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, length + 1 :].flatten()
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
mine.eval()
guessing = torch.tensor(VOCABULARY).log()
print(f"loss on the second block: {loss:.3f} nats; by guessing {guessing:.2f}")

# %% [markdown]
# It becomes a model that can be measured by being handed over; hooks are proved on the
# way (`ms.selfcheck`). Without a tokenizer prompts are token tensors. Which of its
# heads are induction heads, that is, look at what followed an earlier copy of their
# token? By the usual score, no head:

# %%
model = ms.load_model(mine, name="mine")
repeated = blocks(32, seed=10**6)
heads = ms.head_scores(model, repeated)
ax = heads.plot(kind="induction")

# %% [markdown]
# ## My own metric
# What a metric must be: callable with a run and the prompts, one number a prompt, in a
# unit that you name. Here it is the lead of the token that should come again over the
# runner-up, in logits: above 0 the model repeats. `reads` names the places that a
# metric needs besides the logits, here none; `logits_read` is a promise that makes
# sweeps faster.


# %%
@dataclass(frozen=True)
class Lead:
    """Logit of the token that came next the first time, minus the largest other."""

    reads: frozenset[ms.Site] = frozenset()
    logits_read = "last"

    def __repr__(self) -> str:
        return "lead"

    def __call__(self, run: ms.Run, prompts: Any) -> torch.Tensor:
        next_time = prompts.clean.shape[1] - BLOCK  # one block before what comes next
        wanted = prompts.clean[:, next_time, None]
        last = run.logits[:, -1]
        others = last.scatter(1, wanted, -torch.inf).amax(1)
        return last.gather(1, wanted)[:, 0] - others


# %% [markdown]
# ## My own question
# The clean prompt ends in the middle of the second block. In the corrupted one the
# first block is another, so there is nothing to repeat. Which head, given back its
# clean output at the last token, makes the model repeat again?

# %%
clean = repeated[:, : -BLOCK // 2]
corrupted = clean.clone()
corrupted[:, 1 : BLOCK + 1] = blocks(32, seed=10**7)[:, 1 : BLOCK + 1]
pairs = ms.PromptPairs(clean, corrupted)
last = clean.shape[1] - 1
sweep = ms.patch_sweep(model, pairs, Lead(), "z", positions=[last])
sweep

# %% [markdown]
# And which can it not do without? The same metric with heads replaced by their mean
# over the prompts, one at a time and all of a layer together; change in logits.

# %%
places = {
    f"L{n}H{head}": ms.Site("z", n, head=head) for n in (0, 1) for head in range(4)
}
places |= {"all of layer 0": ms.Site("z", 0), "all of layer 1": ms.Site("z", 1)}
change = {
    name: ms.ablate(model, pairs, [site], ms.mean(clean), Lead()).mean_change
    for name, site in places.items()
}
{name: round(value, 2) for name, value in change.items()}

# %% [markdown]
# Layer 0 is needed too, though giving its output back at the last token does nothing:
# it works elsewhere. Where do the heads of layer 1 look, from the last token? Its
# earlier copy is at 0 below, the token to say again at 1.

# %%
site = ms.Site("pattern", 1)
pattern = model.run(clean, read=[site]).cache[site][:, :, -1].mean(0)
copy = last - BLOCK
figure, ax = plt.subplots(figsize=(3.4, 2.2))
for head, row in enumerate(pattern):
    ax.plot(range(-copy, len(row) - copy), row, label=f"L1H{head}")
ax.axvline(1, color="0.6", lw=0.8, ls=":")
ax.set(xlabel="key, from the earlier copy", ylabel="attention", ylim=(0, 1.03))
ax.legend(fontsize=7, frameon=False)
ax.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# Two tokens too late, and all three together: the token that they look at knows,
# through layer 0, what stood two and three places before it, which are the token to
# say and the one to match. Trained freely, induction comes out with an offset, and a
# score that expects none misses it.
#
# ## The claim, checked

# %%
effect = sweep.table.groupby(["layer", "head"])["effect"].mean()
means = heads.means()
induction = means[means["kind"] == "induction"]["excess"]
layer, head = effect.idxmax()
assert loss.item() < 0.5  # it learned to repeat
assert layer == 1 and effect[1].max() > 0.3 and effect[0].max() < 0.05
assert change[f"L1H{head}"] < -0.5  # enough for a part of the lead, and missed
assert induction.max() < 0.2  # no induction head by the usual score
assert pattern[head].max() > 0.5 and pattern[head].argmax() > copy + 1  # but late ones
