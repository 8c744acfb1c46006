"use strict";
// Click or Enter on a column's name sorts by it, a second time the other way.
for (const box of document.querySelectorAll("[data-table]")) {
  const body = box.querySelector("tbody");
  const heads = [...box.querySelectorAll("thead th")];
  const key = (row, i) => {
    const cell = row.cells[i];
    return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") {
      // not-measured cells are NaN and stay last in both directions
      return a - b;
    }
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  heads.forEach((head, i) => {
    head.querySelector("button").addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const now = head.getAttribute("aria-sort");
      const first = numeric ? "descending" : "ascending";
      const other = numeric ? "ascending" : "descending";
      const next = now === first ? other : first;
      const sign = next === "ascending" ? 1 : -1;
      const missing = (value) => typeof value === "number" && Number.isNaN(value);
      const rows = [...body.rows].map((row) => [key(row, i), row]);
      rows.sort(([a], [b]) => missing(a) - missing(b) || (missing(a) ? 0 : sign * compare(a, b)));
      body.append(...rows.map(([, row]) => row));
      heads.forEach((h) => h.setAttribute("aria-sort", h === head ? next : "none"));
    });
  });
  const filter = box.querySelector("[data-filter]");
  if (filter) {
    const count = box.querySelector("[data-count]");
    filter.addEventListener("input", () => {
      const wanted = filter.value.toLowerCase();
      let shown = 0;
      for (const row of body.rows) {
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
        shown += !row.hidden;
      }
      count.textContent = `${shown} of ${body.rows.length} rows`;
    });
  }
}
