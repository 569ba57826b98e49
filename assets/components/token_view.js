/* Heat map and span editor. Positions are indices into value.tokens; nothing here reads or writes HTML text. */
const root = element.querySelector(".pt-tokens");
const bar = element.querySelector(".pt-tokens-bar");
const text = element.querySelector(".pt-tokens-text");
const foot = element.querySelector(".pt-tokens-foot");
const help = element.querySelector(".pt-tokens-help");
const editing = fixed.mode === "edit";
root.classList.add(editing ? "pt-edit" : "pt-heat");

let value = { tokens: [] };
let drawn = "";              /* signature of the tokens that are in the page */
let nodes = [];              /* one span a token */
let groups = [];             /* token -> [first, last] of the tokens that share its character */
let units = { token: [], word: [], sentence: [] };   /* token -> [first, last] */
let ranks = new Map();
let granularity = "token";
let cursor = 0;
let anchor = null;           /* where Shift+arrows began, with the selection before it */
let selected = new Set();
let past = [];
let future = [];
let painted = new Set();
let sups = new Map();         /* token node -> its rank number */
const READOUT = "Point at a token, or move with the arrow keys.";
const CONFIRM = "Ctrl + Enter";
const KEYS = [
  ["← → ↑ ↓", "move"], ["Shift + arrows", "extend"], ["Space", "select or clear"],
  ["[  ]", "shrink, grow at the end"], ["{  }", "grow, shrink at the start"], ["w  s", "select word, sentence"],
  ["u  r", "undo, redo"], ["Home  End", "first, last token"], [CONFIRM, "go on to confirm"],
  ["click, drag", "select or clear"], ["Shift + click", "up to here"], ["?", "these keys"],
];

/* ---- the bar and the foot, built once ---- */
const button = (label, title, act) => {
  const node = el("button", "pt-small", label);
  node.type = "button";
  node.title = title;
  node.addEventListener("click", act);
  return node;
};
const legend = el("span", "pt-legend");
const counter = el("span", "pt-count");
const readout = el("span", "pt-readout", READOUT);
const grains = el("span", "pt-segmented");
grains.setAttribute("role", "group");
grains.setAttribute("aria-label", "granularity");
const grainButtons = ["token", "word", "sentence"].map((name) => {
  const node = button(name, "by " + name, () => { granularity = name; colour(); grainPressed(); });
  grains.append(node);
  return node;
});
const grainPressed = () => grainButtons.forEach((node) => node.setAttribute("aria-pressed", node.textContent === granularity));
bar.append(grains);
let undoButton, redoButton;
if (editing) {
  undoButton = button("undo", "u", () => undo());
  redoButton = button("redo", "r", () => redo());
  const keys = button("? keys", "keyboard help", () => showHelp(help.hidden));
  bar.append(undoButton, redoButton, button("clear", "clear the selection", () => commit(new Set())), keys, counter);
} else {
  bar.append(legend);
}
foot.append(readout);
text.setAttribute("role", "listbox");
text.setAttribute("aria-label", fixed.spoken);
if (editing) text.setAttribute("aria-multiselectable", "true");
const live = el("span", "pt-unseen");
live.setAttribute("aria-live", "polite");
foot.append(live);
help.setAttribute("role", "dialog");
help.setAttribute("aria-label", "keys");
const keyList = el("dl");
KEYS.filter(([keys]) => fixed.confirms || keys !== CONFIRM).forEach(([keys, meaning]) => keyList.append(el("dt", "", keys), el("dd", "", meaning)));
help.append(keyList, button("close", "Escape", () => showHelp(false)));
function showHelp(on) {
  help.hidden = !on;
  if (on) help.querySelector("button").focus(); else focusToken(cursor);
}
help.addEventListener("keydown", (event) => { if (event.key === "Escape" || event.key === "?") { event.preventDefault(); showHelp(false); } });

/* ---- structure ---- */
const selectable = (index) => value.tokens[index] && value.tokens[index].message !== null && value.tokens[index].message !== undefined;
function makeGroups() {
  const tokens = value.tokens;
  groups = tokens.map((_, index) => [index, index]);
  for (let i = 1; i < tokens.length; i++) {
    const a = tokens[i - 1], b = tokens[i];
    if (b.message !== null && b.message === a.message && b.start !== null && b.start === a.start && b.end === a.end && b.end > b.start) {
      const first = groups[i - 1][0];
      for (let j = first; j <= i; j++) groups[j] = [first, i];
    }
  }
}
function makeUnits() {
  const tokens = value.tokens;
  const cut = (starts) => {
    const result = new Array(tokens.length);
    let first = 0;
    for (let i = 1; i <= tokens.length; i++) {
      if (i === tokens.length || starts(i)) { for (let j = first; j < i; j++) result[j] = [first, i - 1]; first = i; }
    }
    return result;
  };
  const turn = (i) => tokens[i].message !== tokens[i - 1].message || tokens[i].segment !== tokens[i - 1].segment;
  const same = (i) => groups[i][0] !== i;
  units.token = groups;
  units.word = cut((i) => !same(i) && (turn(i) || /^\s/u.test(tokens[i].text) || /\s$/u.test(tokens[i - 1].text) || !selectable(i)));
  units.sentence = cut((i) => !same(i) && (turn(i) || !selectable(i) || /\n\s*$/u.test(tokens[i - 1].text)
    || (/[.!?…。！？]["'”’)\]]*\s*$/u.test(tokens[i - 1].text) && (/^\s/u.test(tokens[i].text) || /\s$/u.test(tokens[i - 1].text)))));
}
function rank() {
  const scores = value.scores || [];
  const order = scores.map((score, index) => [score, index]).filter(([score]) => score !== null && score !== undefined)
    .sort((a, b) => Math.abs(b[0]) - Math.abs(a[0]));
  ranks = new Map(order.map(([, index], place) => [index, place + 1]));
}

/* ---- drawing ---- */
function fill(node, token, index) {
  const piece = token.text;
  if (groups[index][0] !== index) {
    node.append(el("span", "pt-chip", "+" + (index - groups[index][0])));
    return;
  }
  const latinAround = LATIN.test(piece) || LATIN.test(around(index));
  let plain = "";
  const flush = () => { if (plain) { node.append(document.createTextNode(plain)); plain = ""; } };
  for (const character of piece) {
    const odd = oddity(character, latinAround);
    if (!odd) { plain += character; continue; }
    flush();
    if (odd.line) { node.append(el("span", "pt-eol", odd.chip), document.createTextNode("\n")); continue; }
    if (odd.keep) plain += character;
    flush();
    const chip = el("span", "pt-chip", odd.chip);
    chip.title = odd.why;
    node.append(chip);
  }
  flush();
  if (piece === "") node.append(el("span", "pt-chip", "∅"));
}
const LATIN = /[A-Za-z]/;
function around(index) {
  const [first, last] = units.word[index] || [index, index];
  let word = "";
  for (let i = Math.max(first, index - 4); i <= Math.min(last, index + 4); i++) word += value.tokens[i].text;
  return word.slice(0, 64);
}
function build() {
  makeGroups();
  makeUnits();
  const fragment = document.createDocumentFragment();
  let block = null, key = null;
  nodes = value.tokens.map((token, index) => {
    const here = token.segment + ":" + token.message;
    if (here !== key || !block) {
      block = el("span", "pt-seg pt-seg-" + (/^[a-z]+$/.test(token.segment) ? token.segment : "template"));
      block.dataset.segment = token.segment;
      fragment.append(block);
      key = here;
    }
    const node = el("span", "pt-tok");
    node.dataset.i = index;
    node.tabIndex = -1;
    node.setAttribute("role", "option");
    fill(node, token, index);
    block.append(node);
    return node;
  });
  text.replaceChildren(fragment);
  if (!nodes.length) text.append(el("span", "pt-empty", value.empty || ""));
  painted = new Set();
  sups = new Map();
}

/* ---- colour: over the theme's background, text black or white, whichever contrasts more ---- */
const rgb = (name) => {
  const found = cssVar(name).replace("#", "");
  return [0, 2, 4].map((i) => parseInt(found.slice(i, i + 2), 16));
};
const luminance = (c) => {
  const [r, g, b] = c.map((x) => (x /= 255, x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const mix = (a, b, t) => a.map((x, i) => Math.round(x + (b[i] - x) * t));
function ramp(signed) {
  const back = rgb("--pt-back"), accent = rgb("--pt-accent"), cool = rgb("--pt-cool"), far = rgb("--pt-far");
  const at = (t) => {
    if (signed) return mix(back, t < 0 ? cool : accent, Math.abs(t));
    return t < 0.6 ? mix(back, accent, t / 0.6) : mix(accent, far, (t - 0.6) / 0.4);
  };
  const made = new Map();
  return (exact) => {
    const t = Math.round(exact * 100) / 100;         /* a hundred tones a side */
    if (made.has(t)) return made.get(t);
    const found = tone(t);
    made.set(t, found);
    return found;
  };
  function tone(t) {
    let best = null;
    for (let step = 0; step <= 8; step++) {          /* near the grey where black and white tie, step a little aside */
      for (const side of [1, -1]) {
        const moved = Math.max(-1, Math.min(1, t + side * step * 0.01 * (t < 0 ? -1 : 1)));
        const c = at(signed ? moved : Math.max(0, moved));
        const l = luminance(c);
        const onBlack = (l + 0.05) / 0.05, onWhite = 1.05 / (l + 0.05);
        const found = { back: c, ink: onBlack >= onWhite ? "#000000" : "#ffffff", contrast: Math.max(onBlack, onWhite) };
        if (!best || found.contrast > best.contrast) best = found;
        if (found.contrast >= 4.65) return found;
      }
    }
    return best;
  }
}
const strongest = (first, last) => {
  let best = null;
  for (let i = first; i <= last; i++) {
    const score = value.scores[i];
    if (score !== null && score !== undefined && (best === null || Math.abs(score) > Math.abs(best))) best = score;
  }
  return best;
};
function colour() {
  const scores = value.scores || [];
  const clip = (value.legend && value.legend.clip) || Math.max(...scores.map((s) => Math.abs(s || 0)), 1e-12);
  const paint = ramp(!!value.signed);
  const labels = value.labels || [];
  const bySize = [...ranks.keys()];
  const out = bySize.filter((index) => labels[index] === 1);
  const numbered = new Map((out.length ? out.slice(0, 9) : bySize.slice(0, 3)).map((index, place) => [index, place + 1]));
  const scoredAtAll = scores.some((score) => score !== null && score !== undefined);
  nodes.forEach((node, index) => {
    const own = scores[index];
    const score = own === null || own === undefined ? null : strongest(...(units[granularity][index] || [index, index]));
    node.classList.toggle("pt-quiet", (score === null && scoredAtAll) || !selectable(index));
    const heat = score !== null;
    if (!heat) { node.style.backgroundColor = ""; node.style.color = ""; } else {
      const tone = paint(Math.max(-1, Math.min(1, score / clip)));
      node.style.backgroundColor = Math.abs(score / clip) < 0.02 ? "" : "rgb(" + tone.back.join(",") + ")";
      node.style.color = Math.abs(score / clip) < 0.02 ? "" : tone.ink;
    }
    node.classList.toggle("pt-negative", heat && value.signed && score / clip < -0.25);
    const place = numbered.get(index);
    const marked = heat && place !== undefined && own;
    const old = sups.get(node);
    const wanted = marked ? place + (value.signed ? (own < 0 ? "−" : "+") : "") : null;
    if (old && wanted === null) { old.remove(); sups.delete(node); }
    if (wanted !== null) {
      const sup = old || el("sup", "pt-rank");
      if (!old) { sup.setAttribute("aria-hidden", "true"); node.append(sup); sups.set(node, sup); }
      setText(sup, wanted);
    }
  });
  drawLegend(clip, paint);
}
function drawLegend(clip, paint) {
  legend.replaceChildren();
  if (!value.legend) return;
  const stops = [];
  for (let i = 0; i <= 16; i++) stops.push("rgb(" + paint(value.signed ? i / 8 - 1 : i / 16).back.join(",") + ")");
  const scale = el("span", "pt-scale");
  scale.style.background = "linear-gradient(to right," + stops.join(",") + ")";
  const low = value.signed ? short(-clip) : "0";
  legend.append(el("span", "", value.legend.name), el("span", "", low), scale, el("span", "", (value.signed ? "+" : "") + short(clip)));
  const range = el("span", "pt-faint", "min " + short(value.legend.min) + ", max " + short(value.legend.max));
  range.title = "Colour is clipped at the 98th percentile of the absolute score. By word or sentence, the strongest token counts.";
  legend.append(range);
  if (value.signed) legend.append(el("span", "pt-faint pt-negative", "negative"));
  if (sups.size) legend.append(el("span", "pt-faint", value.signed ? "raised: rank and sign" : "raised: rank"));
}

/* ---- selection ---- */
function paintSelection(preview) {
  const shownSet = preview || selected;
  const touched = new Set([...painted, ...shownSet]);
  for (const index of [...touched]) { if (index > 0) touched.add(index - 1); if (index + 1 < nodes.length) touched.add(index + 1); }
  for (const index of touched) {
    const node = nodes[index];
    if (!node) continue;
    const on = shownSet.has(index);
    node.classList.toggle("pt-on", on);
    node.classList.toggle("pt-first", on && !joined(shownSet, index - 1, index));
    node.classList.toggle("pt-last", on && !joined(shownSet, index, index + 1));
    if (editing) node.setAttribute("aria-selected", on ? "true" : "false");
  }
  painted = new Set(shownSet);
  text.classList.toggle("pt-dragging", !!preview);
  const spans = [...shownSet].filter((index) => !joined(shownSet, index - 1, index)).length;
  const words = shownSet.size + (shownSet.size === 1 ? " token" : " tokens") + " in " + spans + (spans === 1 ? " span" : " spans");
  setText(counter, shownSet.size ? words : "nothing selected");
  if (undoButton) { undoButton.disabled = !past.length; redoButton.disabled = !future.length; }
}
const joined = (set, a, b) => set.has(a) && set.has(b) && value.tokens[a].message === value.tokens[b].message;
const same = (a, b) => a.size === b.size && [...a].every((index) => b.has(index));
const whole = (set) => {
  const result = new Set();
  for (const index of set) {
    const [first, last] = groups[index] || [index, index];
    for (let i = first; i <= last; i++) if (selectable(i)) result.add(i);
  }
  return result;
};
function adopt(set) {
  selected = set;
  paintSelection();
  const positions = [...selected].sort((a, b) => a - b);
  value.selected = positions;
  props.value = Object.assign({}, value, { selected: positions });
  trigger("input", { selected: positions });
  setText(live, counter.textContent);
}
function commit(set, keepAnchor) {
  const next = whole(set);
  if (!keepAnchor) anchor = null;
  if (same(next, selected)) return paintSelection();
  past.push(selected);
  if (past.length > 500) past.shift();
  future = [];
  adopt(next);
}
function undo() { if (past.length) { anchor = null; future.push(selected); adopt(past.pop()); } }
function redo() { if (future.length) { anchor = null; past.push(selected); adopt(future.pop()); } }
const unitOf = (index) => (units[granularity][index] || [index, index]);
const range = (a, b) => {
  const first = Math.min(unitOf(a)[0], unitOf(b)[0]), last = Math.max(unitOf(a)[1], unitOf(b)[1]);
  const result = [];
  for (let i = first; i <= last; i++) if (selectable(i)) result.push(i);
  return result;
};
const toggled = (base, indices, on) => {
  const result = new Set(base);
  indices.forEach((index) => (on ? result.add(index) : result.delete(index)));
  return result;
};
function runAt(index) {
  if (!selected.has(index)) return null;
  let first = index, last = index;
  while (joined(selected, first - 1, first)) first--;
  while (joined(selected, last, last + 1)) last++;
  return [first, last];
}
function nearestRun() {
  for (const index of [cursor, cursor - 1, cursor + 1]) { const run = runAt(index); if (run) return run; }
  return null;
}

/* ---- readout ---- */
const reasons = (token) => {
  const found = [];
  for (const character of token.text) {
    const odd = oddity(character, true);
    if (odd && !found.some((item) => item.startsWith(hex(character)))) found.push(hex(character) + " " + odd.why);
    if (found.length === 4) break;
  }
  return found;
};
function describe(index) {
  const token = value.tokens[index];
  if (!token) return READOUT;
  const score = (value.scores || [])[index];
  const cutText = token.text.length > 60 ? token.text.slice(0, 60) + "…" : token.text;
  const visible = [...cutText].map((c) => { const odd = oddity(c, false); return odd ? (odd.line ? "⏎" : "‹" + odd.chip + "›") : c; }).join("");
  const parts = ["#" + index, "“" + visible + "”", "id " + token.id, token.segment];
  if (score !== null && score !== undefined) {
    parts.push("score " + (value.signed ? signedShort(score) : short(score)), "rank " + ranks.get(index) + " of " + ranks.size);
  } else parts.push("not scored");
  if (token.start !== null && token.start !== undefined) parts.push("message " + token.message + ", " + token.start + "–" + token.end);
  parts.push(bytes(token.text) + " bytes");
  return parts.concat(reasons(token)).join("  ·  ");
}
const encoder = new TextEncoder();
const bytes = (piece) => encoder.encode(piece).length;
let over = null;
const showReadout = () => setText(readout, over !== null ? describe(over) : nodes.length && text.contains(document.activeElement) ? describe(cursor) : READOUT);

/* ---- moving ---- */
function setCursor(index) {
  if (nodes[cursor]) nodes[cursor].tabIndex = -1;
  cursor = Math.max(0, Math.min(nodes.length - 1, index));
  if (nodes[cursor]) nodes[cursor].tabIndex = 0;
}
function focusToken(index) {
  setCursor(index);
  const node = nodes[cursor];
  if (!node) return;
  node.setAttribute("aria-label", describe(cursor));
  node.focus({ preventScroll: true });
  reveal(node);
  over = null;
  showReadout();
}
function reveal(node) {
  const box = text.getBoundingClientRect(), own = node.getBoundingClientRect();
  if (own.top < box.top) text.scrollTop -= box.top - own.top + 8;
  else if (own.bottom > box.bottom) text.scrollTop += own.bottom - box.bottom + 8;
}
function vertical(direction) {
  const own = nodes[cursor].getClientRects();
  if (!own.length) return cursor;
  const from = direction > 0 ? own[own.length - 1] : own[0];
  const x = (from.left + from.right) / 2;
  let line = null, best = cursor, distance = Infinity;
  for (let i = cursor + direction; i >= 0 && i < nodes.length; i += direction) {
    const rects = nodes[i].getClientRects();
    if (!rects.length) continue;
    const rect = direction > 0 ? rects[rects.length - 1] : rects[0];
    if (Math.abs(rect.top - from.top) < 6) continue;
    if (line === null) line = rect.top;
    if (Math.abs(rect.top - line) > 6) break;
    const away = Math.abs((rect.left + rect.right) / 2 - x);
    if (away < distance) { distance = away; best = i; }
  }
  return best;
}
const step = (direction) => {
  const [first, last] = unitOf(cursor);
  return direction > 0 ? Math.min(nodes.length - 1, last + 1) : first - 1 < 0 ? 0 : unitOf(first - 1)[0];
};

/* ---- events ---- */
const indexOf = (event) => {
  const node = event.target.closest && event.target.closest(".pt-tok");
  return node && text.contains(node) ? Number(node.dataset.i) : null;
};
text.addEventListener("pointerover", (event) => { over = indexOf(event); showReadout(); });
text.addEventListener("pointerleave", () => { over = null; showReadout(); });
text.addEventListener("focusin", showReadout);
text.addEventListener("focusout", () => setTimeout(showReadout, 0));

let drag = null;
text.addEventListener("pointerdown", (event) => {
  const index = indexOf(event);
  if (index === null || event.button) return;
  if (!editing) { setCursor(index); nodes[index].focus({ preventScroll: true }); return; }
  event.preventDefault();
  if (event.shiftKey) {
    const from = cursor;
    focusToken(index);
    return commit(toggled(selected, range(from, index), true));
  }
  const [first, last] = unitOf(index);
  const here = range(first, last);
  drag = { from: index, on: !here.every((i) => selected.has(i)) || !here.length, base: new Set(selected), now: null };
  focusToken(index);
  const sweep = (to) => { drag.now = toggled(drag.base, range(drag.from, to), drag.on); paintSelection(whole(drag.now)); };
  sweep(index);
  const move = (moved) => {
    const under = document.elementFromPoint(moved.clientX, moved.clientY);
    const node = under && under.closest(".pt-tok");
    if (node && text.contains(node)) sweep(Number(node.dataset.i));
  };
  const stop = (result) => {
    window.removeEventListener("pointermove", move);
    window.removeEventListener("pointerup", done);
    window.removeEventListener("pointercancel", cancel);
    drag = null;
    if (result) commit(result); else paintSelection();
  };
  const done = () => stop(drag && drag.now);
  const cancel = () => stop(null);
  window.addEventListener("pointermove", move);
  window.addEventListener("pointerup", done);
  window.addEventListener("pointercancel", cancel);
});
text.addEventListener("click", (event) => {
  const index = indexOf(event);
  if (!editing && index !== null) trigger("select", { position: index });
});
text.addEventListener("keydown", (event) => {
  if (!nodes.length || event.altKey) return;
  const key = event.key;
  const control = event.ctrlKey || event.metaKey;
  const moves = { ArrowRight: () => step(1), ArrowLeft: () => step(-1), ArrowDown: () => vertical(1), ArrowUp: () => vertical(-1), Home: () => 0, End: () => nodes.length - 1 };
  if (editing && fixed.confirms && control && key === "Enter") { event.preventDefault(); return trigger("confirm", {}); }
  if (editing && control && key.toLowerCase() === "z") { event.preventDefault(); return event.shiftKey ? redo() : undo(); }
  if (control) return;
  if (moves[key]) {
    event.preventDefault();
    const from = cursor;
    focusToken(moves[key]());
    if (editing && event.shiftKey) {
      if (!anchor) anchor = { at: from, base: new Set(selected) };
      commit(toggled(anchor.base, range(anchor.at, cursor), true), true);
    } else anchor = null;
    return;
  }
  if (!editing) {
    if (key === "Enter" || key === " ") { event.preventDefault(); trigger("select", { position: cursor }); }
    return;
  }
  const act = EDIT_KEYS[key] || EDIT_KEYS[key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
  nodes[cursor].focus({ preventScroll: true });
  if (key === "?") showHelp(true);
});
function resize(side, outward) {
  const run = nearestRun();
  if (!run) return outward ? commit(toggled(selected, range(cursor, cursor), true)) : undefined;
  const [first, last] = run;
  if (outward) {
    const next = side > 0 ? last + 1 : first - 1;
    if (next < 0 || next >= nodes.length || !selectable(next) || value.tokens[next].message !== value.tokens[first].message) return;
    const [a, b] = unitOf(next);
    commit(toggled(selected, range(a, b), true));
    setCursor(side > 0 ? Math.max(cursor, first) : Math.min(cursor, last));
  } else {
    const [a, b] = unitOf(side > 0 ? last : first);
    const gone = range(a, b).filter((index) => index >= first && index <= last);
    commit(toggled(selected, gone, false));
    const rest = nearestRun();
    if (!rest && selected.size && last > first) focusToken(side > 0 ? Math.max(first, gone[0] - 1) : Math.min(last, gone[gone.length - 1] + 1));
  }
}
const grab = (kind) => { const [a, b] = units[kind][cursor]; const list = []; for (let i = a; i <= b; i++) if (selectable(i)) list.push(i); commit(toggled(selected, list, true)); };
const EDIT_KEYS = {
  " ": () => { const here = range(cursor, cursor); commit(toggled(selected, here, !here.every((i) => selected.has(i)))); },
  "[": () => resize(1, false), "]": () => resize(1, true), "{": () => resize(-1, true), "}": () => resize(-1, false),
  w: () => grab("word"), s: () => grab("sentence"), u: undo, r: redo, "?": () => {},
};

/* ---- updates from Python ---- */
function draw() {
  const began = performance.now();
  const focused = text.contains(document.activeElement);
  value = copy(props.value) || { tokens: [] };
  value.tokens = value.tokens || [];
  value.scores = value.scores || value.tokens.map(() => null);
  const signature = JSON.stringify(value.tokens);
  const fresh = signature !== drawn;
  if (fresh) {
    drawn = signature;
    build();
    past = []; future = []; anchor = null;
    selected = new Set();
    granularity = value.granularity || "token";
    const first = value.tokens.findIndex((token) => token.segment === "user");
    setCursor(Math.max(0, first));
  }
  const incoming = whole(new Set((value.selected || []).filter((index) => index >= 0 && index < nodes.length)));
  if (!same(incoming, selected)) {
    if (!fresh) past.push(selected);
    future = [];
    selected = incoming;
  }
  const hinted = new Set(value.suggested || []);
  const framed = new Set(value.highlight || []);
  nodes.forEach((node, index) => {
    node.classList.toggle("pt-hint", hinted.has(index));
    node.classList.toggle("pt-framed", framed.has(index));
  });
  rank();
  colour();
  grainPressed();
  root.classList.toggle("pt-none", !nodes.length);
  bar.hidden = !nodes.length;
  foot.hidden = !nodes.length;
  paintSelection();
  if (framed.size) { const node = nodes[Math.min(...framed)]; if (node) reveal(node); }
  if (focused) focusToken(cursor);
  text.getBoundingClientRect();            /* lay out now, so that the measure tells what a reader waits for */
  performance.measure("token-view", { start: began });
}
watch("value", draw);
onTheme(colour);
draw();
