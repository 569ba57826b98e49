/* One line: what is open, what runs, whether the page process is there. Only what changed is rewritten. */
const root = element.querySelector(".pt-status");
root.removeAttribute("role");
root.removeAttribute("aria-live");
const part = (name) => { const node = el("span", "pt-status-" + name); root.append(node); return node; };
const brand = part("brand");
const fields = { case: part("case"), model: part("model"), device: part("device") };
const state = part("state");
const mark = el("span", "pt-dot");
const word = el("span", "pt-status-word");
const track = el("progress", "pt-progress");
const count = el("span", "pt-status-count");
state.setAttribute("role", "status");
state.setAttribute("aria-live", "polite");
state.append(mark, word);
const progress = part("progress");
progress.append(track, count);
const queue = part("queue");
const gap = part("gap");
const analyst = part("analyst");
const link = part("link");
link.setAttribute("role", "status");
setText(brand, "Patcher");

function draw() {
  const v = props.value || {};
  for (const [name, node] of Object.entries(fields)) {
    setText(node, v[name] || "");
    node.title = v[name] || "";
    node.hidden = !v[name];
  }
  const now = v.state || "empty";
  root.dataset.state = now;
  setText(word, [v.word || now, now === "idle" || now === "empty" ? "" : v.stage, v.message].filter(Boolean).join(" · "));
  state.title = word.textContent;
  const active = ["running", "starting", "stopping"].includes(now);
  progress.hidden = !active;
  if (active && v.total > 0) { track.max = v.total; track.value = Math.min(v.done || 0, v.total); } else track.removeAttribute("value");
  track.setAttribute("aria-label", "progress");
  setText(count, active && v.total > 0 ? (v.done || 0) + "/" + v.total : "");
  const waiting = v.queue || [];
  queue.hidden = !waiting.length;
  setText(queue, waiting.length ? "then " + waiting.join(", ") : "");
  analyst.hidden = !v.analyst;
  setText(analyst, v.analyst || "");
}

/* Connection. Refused twice means the page process is gone; once it answers again, or answers under another name (it was
   started anew between two questions), the page reloads and re-attaches, once: another reload would break off one that is slow.
   A slow answer is no reason: a busy machine is not gone. */
let missed = 0, lost = false, name = null, reloading = false;
function connected(answered) {
  if (answered !== null && (lost || (name !== null && answered !== name))) { reloading = true; location.reload(); return; }
  if (answered !== null) { name = answered; missed = 0; } else missed += 1;
  lost = missed >= 2;
  root.classList.toggle("pt-lost", lost);
  setText(link, lost ? "page process not responding, retrying" : "connected");
}
async function ask() {
  if (!element.isConnected) return;
  if (!document.hidden || lost) {
    try {
      const answer = await fetch(fixed.watch_url, { cache: "no-store" });
      connected(answer.ok ? await answer.text() : name);
    } catch { connected(null); }
  }
  if (!reloading) setTimeout(ask, missed ? 1000 : 4000);
}
watch("value", draw);
draw();
ask();
