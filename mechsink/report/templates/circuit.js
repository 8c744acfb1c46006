"use strict";
// Hover or focus lights a node's edges; click or Enter keeps what leads to it; the
// slider keeps the strongest edges; the table of edges follows.
for (const box of document.querySelectorAll("[data-circuit]")) {
  const find = (what) => [...box.querySelectorAll(what)];
  const [canvas] = find(".canvas");
  canvas.scrollLeft = (canvas.scrollWidth - canvas.clientWidth) / 2;
  const [svg] = find("svg");
  const [tools] = find("[data-tools]");
  const [slider] = find("[data-slider]");
  const [shown] = find("[data-shown]");
  const [all] = find("[data-all]");
  const [status] = find("[data-status]");
  const edges = find("svg .edge").map((path) => ({ path, ...path.dataset, rank: Number(path.dataset.rank) }));
  const links = find("svg .link").map((path) => ({ path, ...path.dataset }));
  const nodes = new Map(find("svg .node").map((group) => [group.dataset.name, group]));
  const rows = new Map();
  for (const table of document.querySelectorAll("[data-table]")) {
    if (table.querySelector("h4").textContent !== box.dataset.rows) continue;
    for (const row of table.querySelector("tbody").rows) {
      rows.set(`${row.cells[0].textContent} ${row.cells[1].textContent}`, row);
    }
  }
  if (edges.length === 0) continue;
  const hint = "Hover or focus a node to see its edges. Click it, or press Enter, to keep only what leads to it.";
  const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  let kept = null; // the node whose ancestors are kept
  let visible = new Set(edges);

  // what an edge's end goes into: the node itself, and the heads that it feeds
  const feeds = (part) => [part, ...links.filter((l) => l.low === part).map((l) => l.high)];
  const into = (name) => [...visible].filter((e) => feeds(e.part).includes(name));
  const from = (name) => [...visible].filter((e) => e.source === name);

  function ancestors(name, among) {
    const wanted = new Set([name]);
    const found = new Set();
    for (let size = -1; size < found.size; ) {
      size = found.size;
      for (const edge of among) {
        if (feeds(edge.part).some((part) => wanted.has(part))) {
          found.add(edge);
          wanted.add(edge.source);
        }
      }
    }
    return found;
  }

  function light(name) {
    const mine = name === null ? [] : [...into(name), ...from(name)];
    const ends = new Set([name]);
    for (const edge of mine) ends.add(edge.source).add(edge.part);
    svg.classList.toggle("lit", name !== null);
    for (const edge of edges) {
      edge.path.classList.toggle("on", mine.includes(edge));
      rows.get(`${edge.source} ${edge.target}`)?.classList.toggle("on", mine.includes(edge));
    }
    for (const link of links) link.path.classList.toggle("on", ends.has(link.low) && ends.has(link.high) && (link.low === name || link.high === name));
    for (const [other, group] of nodes) group.classList.toggle("on", ends.has(other));
    say(name);
  }

  function say(name) {
    if (name !== null) {
      status.textContent = `${name}: ${plural(into(name).length, "edge")} in, ${from(name).length} out.`;
    } else if (kept !== null) {
      status.textContent = `Only what leads to ${kept}: ${plural(visible.size, "edge")}. Escape shows all.`;
    } else {
      status.textContent = hint;
    }
  }

  function show() {
    const strong = edges.filter((edge) => edge.rank < Number(slider.value));
    visible = kept === null ? new Set(strong) : ancestors(kept, strong);
    const ends = new Set([kept]);
    for (const edge of edges) {
      const gone = !visible.has(edge);
      edge.path.classList.toggle("gone", gone);
      rows.get(`${edge.source} ${edge.target}`)?.classList.toggle("gone", gone);
      if (!gone) ends.add(edge.source).add(edge.part);
    }
    for (const [name, group] of nodes) {
      group.classList.toggle("bare", !ends.has(name));
      group.classList.toggle("kept", name === kept);
      group.setAttribute("aria-pressed", String(name === kept));
    }
    for (const link of links) link.path.classList.toggle("gone", !(ends.has(link.low) && ends.has(link.high)));
    const weakest = [...visible].reduce((least, edge) => Math.min(least, Number(edge.size)), Infinity);
    const bound = Number.isFinite(weakest) ? `, |score| from ${Number(weakest.toPrecision(2))}` : "";
    shown.textContent = `${visible.size} of ${edges.length}${bound}`;
    all.disabled = kept === null && visible.size === edges.length;
    say(null);
  }

  function keep(name) {
    kept = name === kept ? null : name;
    light(null);
    show();
  }

  function reset() {
    kept = null;
    slider.value = slider.max;
    light(null);
    show();
  }

  for (const [name, group] of nodes) {
    group.setAttribute("tabindex", "0");
    group.setAttribute("role", "button");
    group.setAttribute("aria-label", `${name}, ${into(name).length} in, ${from(name).length} out`);
    group.addEventListener("pointerenter", () => light(name));
    group.addEventListener("pointerleave", () => light(null));
    group.addEventListener("focus", () => light(name));
    group.addEventListener("blur", () => light(null));
    group.addEventListener("click", () => keep(name));
    group.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        keep(name);
      }
    });
  }
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") reset();
  });
  slider.addEventListener("input", show);
  all.addEventListener("click", reset);
  tools.hidden = false;
  show();
}
