// Draws the figures in the page's colours and for its width; tables sort at a click on a head.
(() => {
  "use strict";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)").matches;
  const drawn = new Map();

  const colours = () => dark.matches
    ? {font: "#a7afbd", grid: "rgba(255,255,255,.075)", line: "rgba(255,255,255,.2)", box: "#20252f", ink: "#e8eaf0"}
    : {font: "#5d6675", grid: "rgba(20,30,60,.075)", line: "rgba(20,30,60,.2)", box: "#ffffff", ink: "#1b2030"};

  // The figure's own layout, with the colours of the theme and panels for this width.
  function fitted(element, spec) {
    const c = colours(), base = spec.layout.template.layout, meta = spec.layout.meta || {};
    base.font.color = c.font;
    for (const axis of [base.xaxis, base.yaxis]) { axis.gridcolor = c.grid; axis.linecolor = c.line; }
    base.hoverlabel = {...base.hoverlabel, bgcolor: c.box, bordercolor: c.line, font: {...base.hoverlabel.font, color: c.ink}};
    base.modebar = {bgcolor: "rgba(0,0,0,0)", color: c.font, activecolor: c.ink};
    if (coarse) spec.layout.dragmode = false;
    if (meta.panels) arrange(element.clientWidth, spec.layout, meta);
    for (const trace of spec.data) if (trace.type === "parcoords") tune(element, trace, meta);
  }

  function arrange(width, layout, meta) {
    const columns = Math.min(meta.panels, width < 560 ? 1 : width < 860 ? 2 : 3);
    const rows = Math.ceil(meta.panels / columns);
    const part = (k, parts, gap) => { const size = (1 - gap * (parts - 1)) / parts; return [k * (size + gap), Math.min(1, k * (size + gap) + size)]; };
    for (let k = 0; k < meta.panels; k++) {
      const suffix = k ? k + 1 : "";
      layout["xaxis" + suffix].domain = part(k % columns, columns, 0.07);
      layout["yaxis" + suffix].domain = part(rows - 1 - Math.floor(k / columns), rows, rows > 1 ? 0.3 / rows : 0);
    }
    layout.height = rows * meta.row_px + 60;
  }

  function tune(element, trace, meta) {
    element.style.minWidth = meta.least_px * trace.dimensions.length + "px";
    const scale = meta[dark.matches ? "dark" : "light"];
    trace.line.colorscale = scale;
    trace.unselected = {line: {color: scale[0][1], opacity: 0.25}};
  }

  const config = {responsive: true, displaylogo: false, displayModeBar: coarse ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};

  async function draw(element) {
    const spec = drawn.get(element) || JSON.parse(document.getElementById("spec-" + element.dataset.figure).textContent);
    if (!drawn.has(element)) element.replaceChildren();
    drawn.set(element, spec);
    fitted(element, spec);
    await Plotly.react(element, spec.data, spec.layout, config);
    element.dataset.drawn = "yes";
  }

  async function drawAll() {
    for (const element of document.querySelectorAll(".figure")) {
      await draw(element);
      await new Promise((next) => setTimeout(next));  // the page stays usable meanwhile
    }
    document.documentElement.dataset.drawn = "yes";
  }

  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    for (const [element, spec] of drawn) if ((spec.layout.meta || {}).panels) draw(element);
  });
  dark.addEventListener("change", () => { for (const element of drawn.keys()) draw(element); });

  function sort(head) {
    const table = head.closest("table"), place = [...head.parentNode.children].indexOf(head);
    const up = head.getAttribute("aria-sort") !== "ascending", rows = [...table.tBodies[0].rows];
    const key = (row) => { const cell = row.cells[place], value = cell.dataset.value; return value === undefined ? cell.textContent : Number(value); };
    const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : typeof a === typeof b ? a.localeCompare(b) : typeof a === "number" ? -1 : 1;
    rows.sort((a, b) => order(key(a), key(b)) * (up ? 1 : -1));
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  }
  document.addEventListener("click", (event) => { const head = event.target.closest(".sortable thead th"); if (head) sort(head); });

  drawAll();
})();
