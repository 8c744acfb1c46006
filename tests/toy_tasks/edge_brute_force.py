"""Edges of a toy transformer by brute force: slow, and written from the weights alone.

It names edges as the attribution room does, but shares no code with it.
"""

import torch


def edges_of(model) -> list[tuple[str, str]]:
    """Every source with every target that reads after it, from the architecture."""
    config, edges, written = model.config, [], ["input"]
    kv = "h" if config.kv_heads == config.n_heads else "kv"
    for n, block in enumerate(model.blocks):
        targets = [f"a{n}.h{h}<q>" for h in range(config.n_heads)]
        targets += [f"a{n}.{kv}{h}<{x}>" for x in "kv" for h in range(config.kv_heads)]
        edges += [(s, t) for t in targets for s in written]
        written += [f"a{n}.h{h}" for h in range(config.n_heads)]
        if block.mlp is not None:
            edges += [(s, f"m{n}") for s in written]
            written.append(f"m{n}")
    return edges + [(s, "logits") for s in written]


def forward(model, embedded, instead=None, probes=None):
    """Logits, and what every source writes.

    Every target reads the sum of all sources before it. `instead`: (source, target)
    to what that target reads in place of that source; `probes`: target to what is
    added to its reading.
    """
    config, instead, probes = model.config, instead or {}, probes or {}
    kv = "h" if config.kv_heads == config.n_heads else "kv"
    writes = {"input": embedded}

    def read(target):
        parts = [instead.get((s, target), out) for s, out in writes.items()]
        return sum(parts) + probes.get(target, 0)

    n_pos = embedded.shape[1]
    future = torch.ones(n_pos, n_pos, dtype=torch.bool).triu(1)
    for n, block in enumerate(model.blocks):
        attn, new = block.attn, {}
        for h in range(config.n_heads):
            g = h * config.kv_heads // config.n_heads
            q = block.ln1(read(f"a{n}.h{h}<q>")) @ attn.W_Q[h]
            k = block.ln1(read(f"a{n}.{kv}{g}<k>")) @ attn.W_K[g]
            v = block.ln1(read(f"a{n}.{kv}{g}<v>")) @ attn.W_V[g]
            scores = q @ k.mT / config.d_head**0.5
            pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
            new[f"a{n}.h{h}"] = pattern @ v @ attn.W_O[h]
        writes.update(new)
        if block.mlp is not None:
            hidden = block.ln2(read(f"m{n}")) @ block.mlp.W_in
            writes[f"m{n}"] = hidden.relu() @ block.mlp.W_out
    return model.ln_final(read("logits")) @ model.W_U, writes


@torch.no_grad()
def effects(case) -> dict[tuple[str, str], float]:
    """Mean drop of the metric for each edge, patched alone."""
    model, out = case.model, {}
    x = model.embed(case.clean)
    logits, _ = forward(model, x)
    _, corrupted = forward(model, model.embed(case.corrupted))
    base = case.logit_diff(logits)
    for s, t in edges_of(model):
        patched, _ = forward(model, x, {(s, t): corrupted[s]})
        out[s, t] = (base - case.logit_diff(patched)).mean().item()
    return out


def integrated(case, points) -> dict[tuple[str, str], float]:
    """Gradients at `points` (0 corrupted, 1 clean, of the embedding), times change.

    > 0: corrupting the edge lowers the metric. [1.0] is plain attribution patching.
    """
    model, edges = case.model, edges_of(case.model)
    with torch.no_grad():
        start, end = model.embed(case.corrupted), model.embed(case.clean)
        _, clean = forward(model, end)
        _, corrupted = forward(model, start)
    out = dict.fromkeys(edges, 0.0)
    for point in points:
        x = torch.lerp(start, end, point)
        # Zeros added where an edge ends: their gradients are the target's.
        probes = {t: torch.zeros_like(x, requires_grad=True) for _, t in edges}
        logits, _ = forward(model, x, probes=probes)
        found = torch.autograd.grad(case.logit_diff(logits).mean(), [*probes.values()])
        gradients = dict(zip(probes, found, strict=True))
        for s, t in edges:
            change = (clean[s] - corrupted[s]) * gradients[t]
            out[s, t] += change.sum().item() / len(points)
    return out


@torch.no_grad()
def pruned(case, tau, moved) -> set[tuple[str, str]]:
    """ACDC, from the outputs back: drop an edge where `moved` grows by less than tau.

    `moved(logits of the full model, of the pruned one)` is one number. Edges into
    what reaches the logits no more are dropped unmeasured.
    """
    model = case.model
    x = model.embed(case.clean)
    full, _ = forward(model, x)
    _, corrupted = forward(model, model.embed(case.corrupted))
    removed, now, alive = {}, 0.0, {"logits"}
    config = model.config
    for s, t in reversed(edges_of(model)):
        node, _, port = t.partition("<")
        layer, _, head = node.partition(".")
        heads = [head]
        if head.startswith("kv"):
            size = config.n_heads // config.kv_heads
            heads = [f"h{int(head[2:]) * size + i}" for i in range(size)]
        nodes = {f"{layer}.{h}" for h in heads} if port else {node}
        trial = {**removed, (s, t): corrupted[s]}
        if not nodes & alive:
            removed = trial
            continue
        value = moved(full, forward(model, x, trial)[0])
        if value - now < tau:
            removed, now = trial, value
        else:
            alive.add(s)
    return set(edges_of(model)) - set(removed)


def auroc(scores, true) -> float:
    """Share of (true, false) pairs ranked right by |score|; ties count half."""
    yes = torch.tensor([abs(x) for e, x in scores.items() if e in true])
    no = torch.tensor([abs(x) for e, x in scores.items() if e not in true])
    wins = (yes[:, None] > no).double() + 0.5 * (yes[:, None] == no)
    return wins.mean().item()
