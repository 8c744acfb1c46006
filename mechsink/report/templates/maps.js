"use strict";
// Heat maps: the pointer or the arrow keys read a value, lists and sliders change the
// map. The figure that a map replaces stays for paper.
for (const box of document.querySelectorAll("[data-maps]")) {
  const data = JSON.parse(box.querySelector("script").textContent);
  const canvas = box.querySelector("canvas");
  const [status] = box.querySelectorAll("[data-value]");
  const controls = [...box.querySelectorAll("[data-choice]")];
  const [, nRows, nColumns] = data.shape;
  const bytes = Uint8Array.from(atob(data.values), (char) => char.charCodeAt(0));
  const numbers = data.bytes === 2 ? new Uint16Array(bytes.buffer) : bytes;
  const top = data.bytes === 2 ? 65534 : 254;
  const [low, high] = data.range;
  const step = (high - low) / top;
  // as many digits as were stored
  const digits = Math.min(4, Math.max(0, Math.floor(-Math.log10(step))));
  const ramp = Uint8Array.from(atob(data.colours), (char) => char.charCodeAt(0));
  const [rowName, columnName, valueName] = data.names;
  let cell = null; // [row, column] under the pointer or the arrow keys
  let place = {};

  const frame = () => controls.reduce((at, control, i) => at * data.choices[i].length + Number(control.value), 0);
  const columns = () => data.columns[data.columns.length > 1 ? Number(controls[0].value) : 0];
  const value = (row, column) => {
    const stored = numbers[(frame() * nRows + row) * nColumns + column];
    return stored > top ? NaN : low + stored * step;
  };
  const written = (x) => (Number.isNaN(x) ? "no value" : x.toFixed(digits).replace("-", "−"));
  const line = (row) => (data.upwards ? nRows - 1 - row : row); // row <-> line from the top
  const colour = (x) => {
    const [from, to] = data.limits;
    const i = 3 * Math.round(255 * Math.min(1, Math.max(0, (x - from) / (to - from))));
    return `rgb(${ramp[i]},${ramp[i + 1]},${ramp[i + 2]})`;
  };

  function draw() {
    if (box.hidden || box.clientWidth === 0) return;
    const look = getComputedStyle(box);
    const ink = look.color;
    const soft = look.getPropertyValue("--soft");
    const paper = look.getPropertyValue("--line");
    const accent = look.getPropertyValue("--mark");
    const font = (bold) => `${bold ? "bold " : ""}11px ${look.fontFamily}`;
    const pen = canvas.getContext("2d");
    pen.font = font(false);
    const width = box.clientWidth;
    const cut = (text) => (text.length > 12 ? `${text.slice(0, 11)}…` : text);
    const widest = (texts) => Math.max(...texts.map((text) => pen.measureText(cut(text)).width));
    const left = Math.ceil(widest(data.rows)) + 26;
    const right = 66;
    const w = Math.min(72, Math.max(2, (width - left - right) / nColumns));
    const h = Math.max(9, Math.min(Math.max(w, 14), 26, 520 / nRows));
    const turned = widest(columns()) > w - 4;
    const bottom = (turned ? Math.ceil(widest(columns())) : 12) + 24;
    const height = Math.ceil(h * nRows + bottom + 6);
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    place = { left, top: 4, w, h };
    for (let row = 0; row < nRows; row++) {
      for (let column = 0; column < nColumns; column++) {
        const x = value(row, column);
        pen.fillStyle = Number.isNaN(x) ? paper : colour(x);
        pen.fillRect(left + column * w, 4 + line(row) * h, w + 0.4, h + 0.4);
      }
    }
    pen.textBaseline = "middle";
    const label = (text, bold) => {
      pen.font = font(bold);
      pen.fillStyle = bold ? accent : ink;
      return cut(text);
    };
    const isMarked = (i) => data.marked.includes(i);
    const every = (size) => Math.max(1, Math.ceil(13 / size)); // labels need 13 pixels each
    const stepRows = every(h);
    pen.textAlign = "right";
    for (let row = 0; row < nRows; row += stepRows) {
      pen.fillText(label(data.rows[row], isMarked(row)), left - 5, 4 + (line(row) + 0.5) * h);
    }
    const stepColumns = every(w);
    for (let column = 0; column < nColumns; column += stepColumns) {
      const text = label(columns()[column], isMarked(column));
      const x = left + (column + 0.5) * w;
      pen.save();
      pen.translate(x, 4 + nRows * h + 5);
      if (turned) pen.rotate(-Math.PI / 2);
      pen.textAlign = turned ? "right" : "center";
      pen.fillText(text, 0, turned ? 0 : 6);
      pen.restore();
    }
    pen.font = font(false);
    pen.fillStyle = soft;
    pen.textAlign = "center";
    pen.fillText(columnName, left + (w * nColumns) / 2, height - 8);
    pen.save();
    pen.translate(9, 4 + (h * nRows) / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(rowName, 0, 0);
    pen.restore();
    const [from, to] = data.limits;
    const barHeight = Math.min(h * nRows, 160);
    const bar = left + w * nColumns + 14;
    for (let y = 0; y < barHeight; y++) {
      pen.fillStyle = colour(to - ((to - from) * y) / (barHeight - 1));
      pen.fillRect(bar, 4 + y, 10, 1.4);
    }
    pen.fillStyle = ink;
    pen.textAlign = "left";
    const end = (x) => Number(x.toPrecision(2)).toString().replace("-", "−");
    pen.fillText(end(to), bar + 14, 10);
    pen.fillText(end(from), bar + 14, barHeight - 2);
    if (cell !== null) {
      const [row, column] = cell;
      const x = left + column * w;
      const y = 4 + line(row) * h;
      pen.lineWidth = 3.5;
      pen.strokeStyle = "#fff";
      pen.strokeRect(x, y, w, h);
      pen.lineWidth = 1.5;
      pen.strokeStyle = "#000";
      pen.strokeRect(x, y, w, h);
    }
  }

  function say() {
    if (cell === null) {
      status.textContent = "Point at a cell, or walk with the arrow keys, to read its value.";
      return;
    }
    const [row, column] = cell;
    const x = value(row, column);
    status.textContent = `${rowName} ${data.rows[row]}, ${columnName} ${columns()[column]}: ${Number.isNaN(x) ? "no value" : `${valueName} ${written(x)}`}`;
  }

  function go(to) {
    cell = to;
    say();
    draw();
  }

  function under(event) {
    const at = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - at.left - place.left) / place.w);
    const row = line(Math.floor((event.clientY - at.top - place.top) / place.h));
    const inside = column >= 0 && column < nColumns && row >= 0 && row < nRows;
    return inside ? [row, column] : null;
  }

  canvas.addEventListener("pointermove", (event) => go(under(event)));
  canvas.addEventListener("pointerdown", (event) => go(under(event)));
  canvas.addEventListener("pointerleave", () => {
    if (document.activeElement !== canvas) go(null);
  });
  canvas.addEventListener("keydown", (event) => {
    const up = data.upwards ? 1 : -1;
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [up, 0], ArrowDown: [-up, 0] };
    if (event.key === "Escape") go(null);
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [row, column] = cell ?? [0, 0];
    const [dRow, dColumn] = cell === null ? [0, 0] : moves[event.key];
    const within = (x, n) => Math.min(n - 1, Math.max(0, x));
    go([within(row + dRow, nRows), within(column + dColumn, nColumns)]);
  });
  for (const [i, control] of controls.entries()) {
    control.addEventListener("input", () => {
      const out = control.parentElement.querySelector("output");
      if (out) {
        out.textContent = data.choices[i][Number(control.value)];
        control.setAttribute("aria-valuetext", out.textContent);
      }
      say();
      draw();
    });
  }
  box.hidden = false;
  box.parentElement.classList.add("has-maps");
  say();
  draw();
  new ResizeObserver(draw).observe(box);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
