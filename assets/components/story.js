// A headline with facts and quotes. Text reaches the page through textContent only; links only lead to this page's own paths.
const root = element.querySelector(".pt-story");

function node(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined && text !== null) made.textContent = String(text);
  return made;
}

function factList(facts) {
  const list = node("dl", "pt-facts");
  for (const [label, text] of facts) list.append(node("dt", "", label), node("dd", "", text));
  return list;
}

function quote(entry) {
  const box = node("figure", "pt-quote pt-tone-" + (entry.tone || "plain"));
  const body = node("blockquote", "", entry.text);
  body.tabIndex = 0;
  box.append(node("figcaption", "", entry.label), body);
  return box;
}

function link(entry) {
  const made = node("a", "pt-link", entry.text);
  if (!/^\/[A-Za-z0-9]/.test(entry.href)) return made;
  made.href = entry.href;
  made.rel = "noopener noreferrer";
  if (entry.download) made.setAttribute("download", "");
  else made.target = "_blank";
  return made;
}

let drawn = "";
function draw() {
  const value = props.value || {};
  const text = JSON.stringify(value);
  if (text === drawn) return;
  const open = root.querySelector("details")?.open;
  drawn = text;
  root.className = "pt-story pt-tone-" + (value.tone || "plain");
  const parts = [];
  if (value.headline) parts.push(node("p", "pt-headline", value.headline));
  if (value.line) parts.push(node("p", "pt-line", value.line));
  if (value.facts?.length) parts.push(factList(value.facts));
  for (const entry of value.quotes || []) parts.push(quote(entry));
  if (value.note) parts.push(node("p", "pt-note", value.note));
  if (value.links?.length) {
    const row = node("p", "pt-links");
    row.append(...value.links.map(link));
    parts.push(row);
  }
  if (value.why) {
    const why = node("details", "pt-why");
    why.open = Boolean(open);
    why.append(node("summary", "", value.why_label || "why"), node("p", "", value.why));
    parts.push(why);
  }
  root.replaceChildren(...parts);
  root.hidden = parts.length === 0;
}
watch("value", draw);
draw();
