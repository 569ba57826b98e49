/* Follows a repair with Plotly.react; keeps every point, redraws without tearing anything down. */
const bar = element.querySelector(".pt-live-bar");
const area = element.querySelector(".pt-live-plot");
const summary = element.querySelector(".pt-live-summary");
const spoken = element.querySelector(".pt-live-spoken");
const SHOWN = 3000;          /* points of a line that are drawn; all are kept */
const SUMMARY_EVERY = 10000; /* ms between announcements */
const COLUMNS = ["step", "loss", "refusal", "kl_harmful", "kl_safe", "kl_trigger", "kl"];
let run = null;
let kept = null;
let logScale = false;
let said = 0, sayLater = null;
let Plot = null;
let total = null;
let asked = { key: null, end: 0 }; /* the end of the step axis that was last asked for */

const logButton = el("button", "pt-small", "log loss");
logButton.type = "button";
logButton.setAttribute("aria-pressed", "false");
logButton.addEventListener("click", () => { logScale = !logScale; logButton.setAttribute("aria-pressed", String(logScale)); draw(); });
const wholeButton = el("button", "pt-small", "whole run");
wholeButton.type = "button";
wholeButton.title = "undo zoom";
wholeButton.addEventListener("click", () => { zoomKey += 1; draw(); });
const csvButton = el("button", "pt-small", "CSV");
csvButton.type = "button";
csvButton.addEventListener("click", download);
const meter = el("meter"), meterText = el("label", "pt-live-meter");
meter.min = 0; meter.max = 1; meter.low = 0.8; meter.high = 0.999; meter.optimum = 0;
meterText.append(el("span"), meter);
bar.append(logButton, wholeButton, csvButton, meterText);
let zoomKey = 0;

function empty() {
  const columns = { marks: [] };
  COLUMNS.forEach((name) => { columns[name] = []; });
  return columns;
}
function take() {
  const value = copy(props.value) || {};
  if (value.run !== run) { run = value.run; kept = null; total = null; zoomKey += 1; }
  const from = value.from || 0;
  if (!kept || from === 0) {
    if (from > 0) { kept = empty(); trigger("resync", { have: 0 }); return value; }
    kept = empty();
  }
  if (from > kept.step.length) { trigger("resync", { have: kept.step.length }); return value; }
  COLUMNS.forEach((name) => { kept[name] = kept[name].slice(0, from).concat(value[name] || []); });
  const firstNew = (value.step || [])[0];
  kept.marks = kept.marks.filter((mark) => from > 0 && (firstNew === undefined || mark.step < firstNew)).concat(value.marks || []);
  return value;
}
/* Display only: of each bucket of steps the first, lowest and highest point stay, so spikes do. */
function thin(x, y) {
  if (x.length <= SHOWN) return [x, y];
  const size = Math.ceil(x.length / (SHOWN / 3));
  const outX = [], outY = [];
  for (let at = 0; at < x.length; at += size) {
    let low = at, high = at;
    for (let i = at; i < Math.min(x.length, at + size); i++) {
      if (y[i] === null) continue;
      if (y[low] === null || y[i] < y[low]) low = i;
      if (y[high] === null || y[i] > y[high]) high = i;
    }
    [...new Set([at, low, high])].sort((a, b) => a - b).forEach((i) => { outX.push(x[i]); outY.push(y[i]); });
  }
  outX.push(x[x.length - 1]); outY.push(y[y.length - 1]);
  return [outX, outY];
}
function line(name, key, axis, legend, style) {
  const positive = (y) => (logScale && axis === "y" && y !== null && y <= 0 ? null : y);
  const [x, y] = thin(kept.step, kept[key].map(positive));
  return { type: "scatter", mode: x.length > 1 ? "lines" : "markers", name, x, y, yaxis: axis, xaxis: "x", legend, connectgaps: false,
    line: Object.assign({ width: 1.75 }, style), marker: { size: 6, color: style.color }, hovertemplate: "%{y:.4g}<extra>" + name + "</extra>" };
}
function rates(name, triples, steps, symbol, colour) {
  const value = triples.map((t) => t[0]);
  const gap = (a, b) => (a === null || b === null ? 0 : Math.max(0, a - b));
  return { type: "scatter", mode: "lines+markers", name, x: steps, y: value, yaxis: "y3", xaxis: "x", legend: "legend3", cliponaxis: false,
    line: { width: 1, color: colour, dash: "dot" }, marker: { symbol, size: 9, color: colour, line: { width: 2, color: colour } },
    error_y: { type: "data", symmetric: false, array: triples.map((t) => gap(t[2], t[0])), arrayminus: triples.map((t) => gap(t[0], t[1])), color: colour, thickness: 1.25, width: 3 },
    text: value.map((v) => (v === null ? "" : Math.round(100 * v) + " %")), hovertemplate: "%{text}<extra>" + name + "</extra>" };
}
/* Plotly keeps a reader's zoom only while it is asked for the range it was asked for before; so a zoomed axis is. */
function axisEnd(until) {
  const key = run + "/" + zoomKey, now = area._fullLayout && area._fullLayout.xaxis.range;
  const zoomed = asked.key === key && now && (Math.abs(now[0]) > 1e-6 || Math.abs(now[1] - asked.end) > 1e-6);
  asked = { key, end: zoomed ? asked.end : until * 1.01 };
  return asked.end;
}
function figure(value) {
  const idle = !value.state || value.state === "empty";
  const c = themeColours();
  const p = value.probes || { step: [], asr: [], refusal: [], agreement: [], best: [], kl: [] };
  const data = [
    line("loss", "loss", "y", "legend", { color: c.text, width: 2.25 }),
    line("refusal", "refusal", "y", "legend", { color: c.accent }),
    line("KL harmful", "kl_harmful", "y", "legend", { color: c.cool }),
    line("KL safe", "kl_safe", "y", "legend", { color: c.cool, dash: "dot" }),
    line("KL safe + trigger", "kl_trigger", "y", "legend", { color: c.muted, dash: "dashdot" }),
    line("KL, this batch", "kl", "y2", "legend2", { color: c.cool }),
    { type: "scatter", mode: "markers", name: "KL, probe", x: p.step, y: p.kl || [], yaxis: "y2", xaxis: "x", legend: "legend2", cliponaxis: false,
      marker: { symbol: "circle-open", size: 8, color: c.text, line: { width: 1.75 } }, hovertemplate: "%{y:.4g}<extra>KL, probe</extra>" },
    rates(p.asr_name || "attack success", p.asr, p.step, "circle", c.accent),
    rates("refusal, no trigger", p.refusal, p.step, "circle-open", c.cool),
    rates("agreement", p.agreement, p.step, "diamond-open", c.muted),
    rates("safe + trigger refused", p.safe_refused || [], p.step, "x-thin-open", c.text),
  ].filter((one) => !one.x.length || one.y.some((y) => y !== null));
  const last = Math.max(kept.step[kept.step.length - 1] || 0, p.step[p.step.length - 1] || 0);
  const until = value.state === "ended" && last ? last : Math.max(total || 0, last, 10); /* what ran, or what is planned */
  const marks = kept.marks.concat(logScale ? kept.step.filter((_, i) => kept.loss[i] !== null && kept.loss[i] <= 0).map((step) => ({ step, panel: "loss", text: "≤ 0" })) : []);
  const notes = marks.slice(0, 200).map((mark) => ({ x: mark.step, xref: "x", y: mark.panel === "kl" ? 0.36 : 0.7, yref: "paper", yanchor: "bottom", showarrow: false, text: "✕ " + mark.text, font: { size: 11, color: c.fail } }));
  const shapes = [];
  if (value.budget) {
    shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, yref: "y2", y0: value.budget, y1: value.budget, line: { color: c.text, width: 1.25, dash: "dash" } });
    notes.push({ xref: "paper", x: 0, xanchor: "left", yref: "y2", y: value.budget, yanchor: "bottom", showarrow: false, text: "budget " + short(value.budget), font: { size: 11, color: c.text } });
  }
  const best = p.step.filter((_, i) => p.best[i]).pop();
  if (best !== undefined) {
    const late = best > until / 2; /* its name stands where there is room */
    ["y", "y2", "y3"].forEach((one) => shapes.push({ type: "line", xref: "x", x0: best, x1: best, yref: one + " domain", y0: 0, y1: 1, line: { color: c.muted, width: 1, dash: "dot" } }));
    notes.push({ xref: "x", x: best, yref: "paper", y: 1, yanchor: "top", xanchor: late ? "right" : "left", xshift: late ? -4 : 4, showarrow: false, text: "best", bgcolor: c.back, font: { size: 11, color: c.muted } });
  }
  const title = (text, y) => notes.push({ xref: "paper", x: 0, xanchor: "left", yref: "paper", y, yanchor: "bottom", yshift: 4, showarrow: false, text, bgcolor: c.back, font: { size: 12, color: c.text } });
  title("loss", 1); title("KL, nats per token", 0.62); title("probes, 95 % interval", 0.3);
  const axis = { gridcolor: c.grid, zeroline: false, linecolor: c.grid, tickcolor: c.grid, automargin: false, fixedrange: false };
  const legend = (y) => ({ orientation: "h", x: 1, xanchor: "right", y, yanchor: "bottom", font: { size: 12 }, bgcolor: "rgba(0,0,0,0)", itemclick: false, itemdoubleclick: false });
  const layout = {
    uirevision: run + "/" + zoomKey, height: 560, margin: { l: 56, r: 16, t: 32, b: 40 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: idle ? c.muted : c.text, size: 12, family: cssVar("--pt-sans") },
    hovermode: "x unified", hoverlabel: { bgcolor: c.back, bordercolor: c.grid, font: { color: c.text } }, dragmode: "zoom",
    xaxis: Object.assign({}, axis, { anchor: "y3", domain: [0, 1], title: { text: "step", standoff: 8, font: { size: 12 } }, range: [0, axisEnd(until)], uirevision: run + "/" + zoomKey }),
    yaxis: Object.assign({}, axis, { domain: [0.7, 1], type: logScale ? "log" : "linear", rangemode: "tozero", uirevision: run + "/" + zoomKey + "/" + logScale }, idle ? { range: [0, 1] } : { autorange: true }),
    yaxis2: Object.assign({}, axis, { domain: [0.36, 0.62], rangemode: "tozero", exponentformat: "power" }, idle ? { range: [0, 1] } : { autorange: true }),
    yaxis3: Object.assign({}, axis, { domain: [0, 0.3], range: [-0.04, 1.04], tickvals: [0, 0.5, 1], ticktext: ["0 %", "50 %", "100 %"], fixedrange: true }),
    legend: legend(1), legend2: legend(0.62), legend3: legend(0.3), shapes, annotations: notes,
  };
  return { data, layout };
}
function draw() {
  if (!Plot || !element.isConnected) return;
  const value = copy(props.value) || {};
  total = value.total || total;
  const { data, layout } = figure(value);
  const used = value.used ?? null;
  meterText.hidden = used === null;
  if (used !== null) { meter.value = Math.min(1, used); setText(meterText.firstChild, value.meter || ""); }
  element.querySelector(".pt-live").classList.toggle("pt-idle", !value.state || value.state === "empty");
  if (!area._fullLayout) followWidth(area);
  Plot.react(area, data, layout, { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false });
}
/* The sentence under the chart follows it; what screen readers say changes at most every ten seconds, the end is said at once. */
function say() {
  const value = props.value || {};
  const now = Date.now();
  setText(summary, value.summary || "");
  clearTimeout(sayLater);
  if (value.state !== "running" || now - said >= SUMMARY_EVERY) { said = now; setText(spoken, value.summary || ""); return; }
  sayLater = setTimeout(say, SUMMARY_EVERY - (now - said));
}
function download() {
  if (!kept) return;
  const rows = [COLUMNS.join(",")].concat(kept.step.map((_, i) => COLUMNS.map((name) => (kept[name][i] === null ? "" : kept[name][i])).join(",")));
  const link = el("a");
  link.href = URL.createObjectURL(new Blob([rows.join("\n") + "\n"], { type: "text/csv" }));
  link.download = "repair-steps.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
function update() { take(); draw(); say(); }
watch("value", update);
onTheme(draw);
kept = empty();
update();
whenPlotly().then((found) => { Plot = found; draw(); });
