/* Answers to be labelled: one row in the tab order, arrows move, digits label. Text only ever meets textContent. */
const root = element.querySelector(".pt-labels");
/* labels: key -> class, "" where a saved one was taken away; those that are not saved outlive a refresh (page.js) */
let value = { items: [] }, labels = {}, rows = [], at = 0;

const visible = (raw) => [...String(raw === null || raw === undefined ? "" : raw)].map((c) => {
  const odd = oddity(c, false);
  return odd && !odd.line && c !== "\t" ? "‹" + odd.chip + "›" : c;
}).join("");

function count() {
  const done = value.items.filter((item) => labels[item.key]).length;
  setText(root.querySelector(".pt-labels-count"), done + " / " + value.items.length);
}
function mark(index) {
  const item = value.items[index];
  for (const button of rows[index].querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(labels[item.key] === button.dataset.choice));
  }
}
function focus(index) {
  if (index < 0 || index >= rows.length) return;
  rows[at].tabIndex = -1;
  at = index;
  rows[at].tabIndex = 0;
  rows[at].focus();
  rows[at].scrollIntoView({ block: "nearest" });
}
function choose(index, choice) {
  const { key, saved } = value.items[index];
  if (choice !== null && labels[key] !== choice) labels[key] = choice;
  else if (saved) labels[key] = "";
  else delete labels[key];
  mark(index);
  count();
  hand();
  unsaved();
  trigger("input", { labels: copy(labels) });
}
function unsaved() {
  const changed = value.items.filter(({ key, saved }) => (labels[key] || "") !== (saved || ""));
  window.patcherKeepLabels(value.case, Object.fromEntries(changed.map(({ key }) => [key, labels[key] || ""])));
}
function hand() {   /* so that a handler gets what is on the page */
  props.value = Object.assign({}, copy(props.value), { labels: copy(labels) });
}
const sorted = (given) => JSON.stringify(Object.entries(given).sort());
function merged(next) {   /* what Python knows, and over it what was labelled here and is not saved */
  const result = {};
  const before = next.case === value.case ? new Map((value.items || []).map((item) => [item.key, item.saved])) : new Map();
  const kept = before.size ? {} : window.patcherLabels(next.case);
  for (const { key, saved } of next.items || []) {
    const changed = before.has(key) && (labels[key] || "") !== (before.get(key) || "");
    const here = changed ? labels[key] || "" : typeof kept[key] === "string" ? kept[key] : saved || "";
    if (here || saved) result[key] = here;
  }
  return result;
}
function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const index = rows.findIndex((row) => row.contains(event.target));
  if (index < 0) return;
  const digit = /^[0-9]$/.test(event.key) ? Number(event.key) : null;
  if (event.key === "ArrowDown") focus(index + 1);
  else if (event.key === "ArrowUp") focus(index - 1);
  else if (digit === 0) choose(index, null);
  else if (digit !== null && digit <= value.choices.length) {
    const choice = value.choices[digit - 1].id;
    if (labels[value.items[index].key] !== choice) choose(index, choice);
    focus(Math.min(index + 1, rows.length - 1));
  } else return;
  event.preventDefault();
}
function row(item, index) {
  const node = el("section", "pt-label-row");
  node.tabIndex = index === at ? 0 : -1;
  node.setAttribute("aria-label", index + 1 + " / " + value.items.length);
  node.append(el("div", "pt-label-prompt", visible(item.prompt)), el("div", "pt-label-answer", visible(item.answer)));
  const bar = el("div", "pt-label-bar");
  bar.setAttribute("role", "group");
  value.choices.forEach((choice, number) => {
    const button = el("button", "pt-small pt-label-choice", number + 1 + " " + choice.word);
    button.type = "button";
    button.tabIndex = -1;
    button.dataset.choice = choice.id;
    button.addEventListener("click", () => { choose(index, choice.id); focus(index); });
    bar.append(button);
  });
  if (item.judged) bar.append(el("span", "pt-label-judged", value.judge + " " + item.judged.mark + " " + item.judged.word));
  node.append(bar);
  return node;
}
function same(next) {
  return rows.length && JSON.stringify(next.items) === JSON.stringify(value.items);
}
function draw() {
  const next = copy(props.value) || { items: [] };
  labels = merged(next);
  if (sorted(labels) !== sorted(next.labels || {})) hand();
  if (same(next)) { value = next; unsaved(); rows.forEach((_, index) => mark(index)); return count(); }
  const held = root.contains(document.activeElement);
  value = next;
  rows = [];
  if (!(value.items || []).length) { root.replaceChildren(el("span", "pt-empty", value.empty || "")); return; }
  at = Math.min(at, value.items.length - 1);
  rows = value.items.map(row);
  const head = el("div", "pt-labels-head");
  head.append(el("span", "pt-labels-count"), el("span", "pt-labels-help", value.help || ""));
  unsaved();
  const list = el("div", "pt-labels-list");
  list.append(...rows);
  list.addEventListener("keydown", press);
  root.replaceChildren(head, list);
  rows.forEach((_, index) => mark(index));
  count();
  if (held) focus(at);
}
watch("value", draw);
draw();
