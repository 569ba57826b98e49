/* Shared by all components; each script gets its own copy in its own scope. Evidence text only ever meets textContent. */
const el = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = String(text);
  return node;
};
const copy = (value) => (value === undefined || value === null ? value : JSON.parse(JSON.stringify(value)));
const isDark = () => document.body.classList.contains("dark");
const cssVar = (name) => getComputedStyle(element).getPropertyValue(name).trim();
const setText = (node, text) => { if (node.textContent !== text) node.textContent = text; };

/* Colours of the theme as Plotly wants them; the names are those of figures.py ("theme:text"). */
const themeColours = () => ({
  text: cssVar("--pt-text"), muted: cssVar("--pt-muted"), grid: cssVar("--pt-grid"), back: cssVar("--pt-back"),
  accent: cssVar("--pt-accent"), cool: cssVar("--pt-cool-line"), pass: cssVar("--pt-pass"), fail: cssVar("--pt-fail"),
});
const dress = (node, colours) => {
  if (typeof node === "string") return node.startsWith("theme:") ? colours[node.slice(6)] || node : node;
  if (Array.isArray(node)) return node.map((item) => dress(item, colours));
  if (node && typeof node === "object") {
    return Object.fromEntries(Object.entries(node).map(([key, item]) => [key, dress(item, colours)]));
  }
  return node;
};

/* Call back when dark or light is chosen; ends by itself once the component has left the page. */
const onTheme = (redraw) => {
  let last = isDark();
  const observer = new MutationObserver(() => {
    if (!element.isConnected) return observer.disconnect();
    if (isDark() !== last) { last = isDark(); redraw(); }
  });
  observer.observe(document.body, { attributes: true, attributeFilter: ["class"] });
};

/* Our own plotly.js, once its script has run. */
/* A chart that was drawn while its tab was hidden, or whose column changed its width, takes the new width. */
const followWidth = (area) => {
  let width = area.clientWidth;
  new ResizeObserver(() => {
    if (!area.clientWidth || area.clientWidth === width) return;
    width = area.clientWidth;
    if (area._fullLayout) window.Plotly.Plots.resize(area);
  }).observe(area);
};
const whenPlotly = () => new Promise((resolve) => {
  const ask = () => (window.Plotly ? resolve(window.Plotly) : element.isConnected ? setTimeout(ask, 50) : undefined);
  ask();
});

/* Numbers in three figures, with a true minus sign. */
const short = (number) => {
  if (number === null || number === undefined) return "–";
  const size = Math.abs(number);
  const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? number.toExponential(2) : String(+number.toPrecision(3));
  return text.replace("-", "−");
};
const signedShort = (number) => (number > 0 ? "+" : "") + short(number);

/* Characters that must not pass unseen: chip text and reason, or null for ordinary ones. */
const LOOKALIKES = /[\u0370-\u03ff\u0400-\u04ff\uff01-\uff5e\u{1d400}-\u{1d7ff}]/u;
const hex = (character) => "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
const oddity = (character, latinAround) => {
  if (character === "\n") return { chip: "⏎", why: "line end", line: true };
  if (character === "\r") return { chip: "␍", why: "carriage return" };
  if (character === "\t") return { chip: "⇥", why: "tab" };
  if (character === " ") return null;
  if (/\p{Zs}/u.test(character)) return { chip: hex(character), why: "unusual space" };
  if (/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/u.test(character)) return { chip: hex(character), why: "text direction" };
  if (/[\u200b-\u200d\u2060-\u2064\ufeff\u00ad\u034f\u115f\u1160\u3164\u180e]/u.test(character)) return { chip: hex(character), why: "invisible" };
  if (/[\ufe00-\ufe0f\u{e0100}-\u{e01ef}\u{e0000}-\u{e007f}]/u.test(character)) return { chip: hex(character), why: "variation or tag" };
  if (/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{Cn}\ufffd]/u.test(character)) return { chip: hex(character), why: "control" };
  if (/\p{Cs}/u.test(character)) return { chip: hex(character), why: "lone surrogate" };
  if (latinAround && LOOKALIKES.test(character)) return { chip: hex(character), why: "looks like a Latin letter", keep: true };
  return null;
};
