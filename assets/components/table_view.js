/* A sortable table. Cells are text nodes; the CSV is made here, with formulas disarmed. */
const bar = element.querySelector(".pt-table-bar");
const area = element.querySelector(".pt-table-scroll");
const AT_ONCE = 300;
let order = { key: null, down: false };
let all = false;
let value = {};
let shape = "";
let picked = new Map();      /* row that can be chosen -> its key */
const MARKS = { pass: "✓", fail: "✕", open: "○", yes: "✓", no: "✕" };

const isCell = (cell) => cell !== null && typeof cell === "object";
const sortValue = (cell, kind) => {
  if (!isCell(cell)) return cell === undefined ? null : cell;
  if (kind === "rate" && "low" in cell) return cell.value;
  return cell.sort !== undefined && cell.sort !== null ? cell.sort : cell.text;
};
const cellText = (cell, kind) => {
  if (cell === null || cell === undefined) return "";
  if (isCell(cell)) return "low" in cell ? (cell.value === null ? "–" : cell.k + "/" + cell.n) : cell.text;
  return kind === "number" && typeof cell === "number" ? short(cell) : String(cell);
};
const csvText = (cell) => {
  if (isCell(cell)) {
    if ("low" in cell) return cell.value === null ? "" : cell.value;
    return cell.csv !== undefined && cell.csv !== null ? cell.csv : cell.text;
  }
  return cell === null || cell === undefined ? "" : cell;
};
function rateCell(node, cell) {
  if (cell.value === null) { node.textContent = "–"; return; }
  const box = el("span", "pt-interval");
  const scale = el("span", "pt-interval-scale");
  const span = el("span", "pt-interval-span");
  span.style.left = 100 * cell.low + "%";
  span.style.width = 100 * Math.max(0, cell.high - cell.low) + "%";
  const dot = el("span", "pt-interval-dot");
  dot.style.left = 100 * cell.value + "%";
  scale.append(span, dot);
  const share = 100 * cell.value; /* a decimal only where 0 or 100 would mislead, as in core/intervals.py */
  const shown = (share > 0 && share < 1) || (share > 99 && share < 100) ? share.toFixed(1) : Math.round(share);
  const text = shown + " % [" + Math.round(100 * cell.low) + "–" + Math.round(100 * cell.high) + "]";
  box.append(el("span", "pt-interval-count", cell.k + "/" + cell.n), scale, el("span", "pt-interval-text", text));
  box.title = "95 % interval " + (100 * cell.low).toFixed(1) + "–" + (100 * cell.high).toFixed(1) + " %";
  node.append(box);
}
function makeCell(cell, column) {
  const node = el("td", "pt-" + column.kind);
  if (isCell(cell) && "low" in cell) rateCell(node, cell);
  else if (isCell(cell) && column.kind === "rate" && cell.text) { /* a plain number stands where the counts do */
    const box = el("span", "pt-interval");
    box.append(el("span", "pt-interval-count", cell.text));
    node.append(box);
  }
  else if (isCell(cell) && cell.mark) {
    node.append(el("span", "pt-mark pt-mark-" + cell.mark, MARKS[cell.mark] || ""), document.createTextNode(" " + cell.text));
  } else if (isCell(cell) && cell.rest) {
    const more = el("details", "pt-more");
    more.addEventListener("click", (event) => event.stopPropagation());
    more.append(el("summary", "", cell.text), el("p", "", cell.rest));
    node.append(more);
  } else node.textContent = cellText(cell, column.kind);
  if (isCell(cell) && cell.title) node.title = cell.title;
  return node;
}
function sorted() {
  if (!order.key) return value.rows;
  const column = value.columns.find((item) => item.key === order.key);
  if (!column) return value.rows;
  const key = (row) => sortValue(row.cells[order.key], column.kind);
  return [...value.rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (x === y) return 0;
    if (x === null || x === "") return 1;
    if (y === null || y === "") return -1;
    const result = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return order.down ? -result : result;
  });
}
function choose(row, node) {
  if (row.key === null || row.key === undefined) return;
  area.querySelectorAll("tr[aria-selected=true]").forEach((old) => old.setAttribute("aria-selected", "false"));
  node.setAttribute("aria-selected", "true");
  value.selected = row.key;
  trigger("select", { key: row.key });
}
function download() {
  const quote = (raw) => {
    let text = String(raw);
    if (typeof raw === "string" && /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(text)) text = "'" + text;
    return '"' + text.replace(/"/g, '""') + '"';
  };
  const head = [], pick = [];
  value.columns.forEach((column) => {
    const parts = column.kind === "rate" ? ["", "k", "n", "low", "high"] : [""];
    parts.forEach((part) => {
      head.push(quote((column.label || column.key) + (part ? " " + part : "")));
      pick.push((row) => { const cell = row.cells[column.key]; return part ? (isCell(cell) && part in cell ? cell[part] : "") : csvText(cell); });
    });
  });
  const lines = [head.join(",")].concat(value.rows.map((row) => pick.map((get) => quote(get(row))).join(",")));
  const link = el("a");
  link.href = URL.createObjectURL(new Blob(["\ufeff" + lines.join("\r\n") + "\r\n"], { type: "text/csv;charset=utf-8" }));
  link.download = value.file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
function draw() {
  const rows = value.rows || [], focused = picked.get(document.activeElement);
  picked = new Map();
  bar.replaceChildren();
  if (value.caption) bar.append(el("span", "pt-caption", value.caption));
  if (value.file && rows.length) {
    const save = el("button", "pt-small", "CSV");
    save.type = "button";
    save.addEventListener("click", download);
    bar.append(save);
  }
  if (!rows.length) { area.replaceChildren(el("span", "pt-empty", value.empty || "")); return; }
  const table = el("table");
  if (value.caption) table.setAttribute("aria-label", value.caption);
  const head = el("tr");
  value.columns.forEach((column) => {
    const cell = el("th", "pt-" + column.kind);
    cell.scope = "col";
    if (column.label) {
      const sorter = el("button", "pt-sort", column.label);
      sorter.type = "button";
      if (column.title) sorter.title = column.title;
      const here = order.key === column.key;
      cell.setAttribute("aria-sort", here ? (order.down ? "descending" : "ascending") : "none");
      sorter.addEventListener("click", () => {
        order = { key: column.key, down: order.key === column.key ? !order.down : ["number", "rate"].includes(column.kind) };
        draw();
        const again = [...area.querySelectorAll(".pt-sort")].find((node) => node.textContent === column.label);
        if (again) again.focus();
      });
      cell.append(sorter);
    }
    head.append(cell);
  });
  const thead = el("thead");
  thead.append(head);
  const body = el("tbody");
  const list = sorted();
  const first = value.at_once || AT_ONCE;
  list.slice(0, all ? list.length : first).forEach((row) => {
    const node = el("tr");
    if (row.key !== null && row.key !== undefined) {
      node.tabIndex = 0;
      node.className = "pt-pick";
      picked.set(node, row.key);
      node.setAttribute("aria-selected", row.key === value.selected ? "true" : "false");
      node.addEventListener("click", () => choose(row, node));
      node.addEventListener("keydown", (event) => {
        if (event.target !== node) return;
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(row, node); }
        const next = event.key === "ArrowDown" ? node.nextElementSibling : event.key === "ArrowUp" ? node.previousElementSibling : null;
        if (next) { event.preventDefault(); next.focus(); }
      });
    }
    value.columns.forEach((column) => node.append(makeCell(row.cells[column.key], column)));
    body.append(node);
  });
  table.append(thead, body);
  area.replaceChildren(table);
  if (focused !== undefined) [...picked].find(([, key]) => key === focused)?.[0].focus({ preventScroll: true });
  if (!all && list.length > first) {
    const more = el("button", "pt-small", "show all " + list.length);
    more.type = "button";
    more.addEventListener("click", () => { all = true; draw(); });
    area.append(more);
  }
}
function update() {
  value = copy(props.value) || {};
  value.columns = value.columns || [];
  value.rows = value.rows || [];
  const now = JSON.stringify(value.columns.map((column) => column.key));
  if (now !== shape) { shape = now; order = { key: null, down: false }; all = false; }
  draw();
}
watch("value", update);
update();
