/* The page itself, before Gradio: what it was opened with, and its part in who writes a case (core/lease.py). A browser writes
   with one id, a cookie that this script cannot read, so the last of its tabs gives a case back; a tab that comes back to its case,
   refreshed, takes it again. */
const mark = "patcher-tab/", left = "patcher-left", typed = ["analyst", "reason"];
const fresh = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (one) => one.toString(16).padStart(2, "0")).join("");
const tab = mark + fresh();
const attempt = (act) => { try { return act(); } catch { return null; } };   /* a browser may keep nothing */
const here = () => new URLSearchParams(window.location.search).get("case") || "";
const post = (act) => "/" + act + "/" + encodeURIComponent(here());

/* What was typed and chosen in step 4, and answers that were labelled and not saved, are this tab's own, and its case's. */
const keep = (name, value) => attempt(() => sessionStorage.setItem("patcher-" + name, JSON.stringify([here(), value])));
const kept = (name) => attempt(() => { const [of, value] = JSON.parse(sessionStorage.getItem("patcher-" + name)); return of === here() ? value : null; });
window.patcherChosen = (value) => keep("chosen", value);
const labels = (of) => "patcher-labels/" + of;
window.patcherLabels = (of) => attempt(() => JSON.parse(sessionStorage.getItem(labels(of)))) || {};
window.patcherKeepLabels = (of, value) => attempt(() => sessionStorage.setItem(labels(of), JSON.stringify(value)));

window.patcherStart = window.location.search;
window.patcherKept = new URLSearchParams([
  ["left", attempt(() => sessionStorage.getItem(left)) || ""],
  ...[...typed, "chosen"].map((name) => [name, kept(name)]).filter(([, value]) => value !== null),
]).toString();
attempt(() => sessionStorage.removeItem(left));
window.patcherOpened = () => attempt(() => localStorage.setItem(tab, JSON.stringify([here(), Date.now()])));

/* Whether another tab of this browser has the same case open; one that crashed says nothing for long and is forgotten. */
function shared() {
  return Object.keys(localStorage).filter((name) => name.startsWith(mark)).some((name) => {
    const [of, seen] = JSON.parse(localStorage.getItem(name));
    if (Math.abs(Date.now() - seen) > fixed.stale_ms) { localStorage.removeItem(name); return false; }
    return of === here();
  });
}
window.patcherOpened();
setInterval(() => {   /* not by Gradio's timer, which rests in a tab that is not seen */
  window.patcherOpened();
  if (here()) fetch(post("keep"), { method: "POST" }).catch(() => {});
}, fixed.renew_ms);
window.addEventListener("pagehide", () => {
  attempt(() => { localStorage.removeItem(tab); sessionStorage.setItem(left, here()); });
  if (here() && !attempt(shared)) navigator.sendBeacon(post("leave"));
});
document.addEventListener("input", (event) => {
  const name = typed.find((one) => event.target.closest && event.target.closest("#confirm-" + one));
  if (name) keep(name, event.target.value);
});
