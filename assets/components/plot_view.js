/* A still figure that follows the theme; a click on a point tells its token position. */
const area = element.querySelector(".pt-plot-area");
const note = element.querySelector(".pt-plot-empty");
let Plot = null;
let wired = false;

function ring(data, highlight, c) {
  const wanted = new Set(highlight || []);
  const x = [], y = [];
  if (wanted.size) {
    data.forEach((trace) => (trace.customdata || []).forEach((position, i) => { if (wanted.has(position)) { x.push(trace.x[i]); y.push(trace.y[i]); } }));
  }
  return { type: "scatter", mode: "markers", x, y, hoverinfo: "skip", showlegend: false, cliponaxis: false,
    marker: { symbol: "circle-open", size: 17, color: c.text, line: { width: 2, color: c.text } } };
}
function draw() {
  const value = copy(props.value) || {};
  const height = value.height || fixed.plot_height || 240;
  const nothing = !(value.data && value.data.length);
  element.querySelector(".pt-plot").style.minHeight = height + "px";
  note.hidden = !nothing;
  setText(note, nothing ? value.summary || "" : "");
  area.style.visibility = nothing ? "hidden" : "visible";
  area.setAttribute("role", "img");
  area.setAttribute("aria-label", value.summary || "");
  if (!Plot || !element.isConnected || nothing) return;
  const c = themeColours();
  const data = dress(value.data, c).concat([ring(value.data, value.highlight, c)]);
  const layout = dress(value.layout || {}, c);
  const axis = (given) => {
    const made = Object.assign({ gridcolor: c.grid, zerolinecolor: c.muted, linecolor: c.grid }, given || {});
    if (made.title) made.title = Object.assign({ standoff: 8, font: { size: 12, color: c.muted } }, made.title);
    return made;
  };
  Object.assign(layout, { height, uirevision: value.key || "k", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: c.text, size: 12, family: cssVar("--pt-sans") }, hoverlabel: { bgcolor: c.back, bordercolor: c.muted, font: { color: c.text, family: cssVar("--pt-mono") } },
    xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis) });
  if (!area._fullLayout) followWidth(area);
  Plot.react(area, data, layout, { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false, doubleClick: "reset" }).then(() => {
    if (wired) return;
    wired = true;
    area.on("plotly_click", (event) => {
      const point = event.points.find((item) => item.customdata !== undefined && item.customdata !== null);
      if (point) trigger("select", { position: point.customdata });
    });
  });
}
watch("value", draw);
onTheme(draw);
draw();
whenPlotly().then((found) => { Plot = found; draw(); });
