/* Answers before and after, side by side, as inert text. */
const root = element.querySelector(".pt-pairs");
const below = element.querySelector(".pt-pairs-below");
const LONG = 600;

function inert(className, raw) {
  const node = el("div", className);
  const body = el("span");
  const full = String(raw === null || raw === undefined ? "" : raw);
  const visible = (piece) => [...piece].map((c) => { const odd = oddity(c, false); return odd && !odd.line && c !== "\t" ? "‹" + odd.chip + "›" : c; }).join("");
  body.textContent = visible(full.slice(0, LONG)) + (full.length > LONG ? "…" : "");
  node.append(body);
  if (full.length > LONG) {
    const more = el("button", "pt-small", "all " + full.length + " characters");
    more.type = "button";
    more.addEventListener("click", () => { body.textContent = visible(full); more.remove(); tellMore(); });
    node.append(more);
  }
  return node;
}
function answer(label, text, outcome) {
  const cell = el("div", "pt-answer");
  const head = el("div", "pt-answer-head");
  head.append(el("span", "pt-answer-label", label));
  if (outcome) {
    const badge = el("span", "pt-badge pt-tone-" + (/^(plain|good|bad)$/.test(outcome.tone) ? outcome.tone : "plain"));
    const mark = el("span", "pt-badge-mark", outcome.mark);
    mark.setAttribute("aria-hidden", "true");
    badge.append(mark, document.createTextNode(" " + outcome.word));
    head.append(badge);
  }
  cell.append(head, inert("pt-answer-text", text));
  return cell;
}
/* Where the box is lower than its content: its lower edge fades, and a line says how many pairs follow. */
function tellMore() {
  const end = root.getBoundingClientRect().top + root.clientTop + root.clientHeight;
  const rest = [...root.querySelectorAll(".pt-pair")].filter((one) => one.getBoundingClientRect().bottom > end + 24).length;
  root.classList.toggle("pt-cut", rest > 0);
  setText(below, rest ? "↓ " + rest + " more below" : "");
}
function draw() {
  const value = copy(props.value) || {};
  const labels = value.labels || { before: "before", after: "after" };
  const pairs = value.pairs || [];
  if (!pairs.length) root.replaceChildren(el("span", "pt-empty", value.empty || ""));
  else root.replaceChildren(...pairs.map((pair) => {
    const row = el("section", "pt-pair");
    const prompt = el("div", "pt-pair-prompt");
    prompt.append(el("span", "pt-pair-kind", pair.kind), inert("pt-pair-text", pair.prompt));
    const two = el("div", "pt-pair-two");
    two.append(answer(labels.before, pair.before, pair.before_outcome), answer(labels.after, pair.after, pair.after_outcome));
    row.append(prompt, two);
    return row;
  }));
  tellMore();
}
root.addEventListener("scroll", tellMore, { passive: true });
new ResizeObserver(tellMore).observe(root);
watch("value", draw);
draw();
