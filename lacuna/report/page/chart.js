// SPDX-License-Identifier: Apache-2.0
// Scales, axes, legends, and the frame that draws an SVG figure and reads it out by pointer and
// keyboard.

const PAPER = 690;  // width of a printed A4 page inside its margins
const COLOURS = 6;  // .s0 to .s5 in page.css
// From the fifth series on a line is told apart by its dashes too.
const DASHES = ["", "", "", "", "7 3", "2 3", "9 3 2 3", "5 2", "8 2", "12 4", "3 3 8 3", "6 6"];

function colourOf(index) {
  return `s${index % COLOURS}`;
}

function dashOf(index) {
  return DASHES[index % DASHES.length] || null;
}

const measure = (() => {
  const context = document.createElement("canvas").getContext("2d");
  return (text, weight = 400) => {
    context.font = `${weight} 12px ${getComputedStyle(document.body).fontFamily}`;
    return context.measureText(text).width;
  };
})();

function widest(texts) {
  return Math.max(0, ...texts.map((text) => measure(text)));
}

function shorten(text, width) {
  if (measure(text) <= width) return text;
  let length = text.length;
  while (length > 1 && measure(`${text.slice(0, length)}\u2026`) > width) --length;
  return `${text.slice(0, length)}\u2026`;
}

function bounds(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) {
    if (v === null) continue;
    low = Math.min(low, v);
    high = Math.max(high, v);
  }
  return low <= high && Number.isFinite(high - low) ? [low, high] : [0, 1];
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  const lead = rough / power;
  return (lead <= 1 ? 1 : lead <= 2 ? 2 : lead <= 5 ? 5 : 10) * power;
}

// {map: value -> pixel, ticks: [{value, text}]}. `exact` keeps the ends at the data, else they go
// out to a tick.
function linearScale(values, [from, to], count, exact = false) {
  let [low, high] = bounds(values);
  if (low === 0 && high === 0) high = 1;
  if (low === high) [low, high] = [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
  let step = niceStep((high - low) / Math.max(1, count));
  if (exact && values.every(Number.isInteger)) step = Math.max(1, step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const first = exact ? Math.ceil(low / step - 1e-9) : Math.floor(low / step + 1e-9);
  const last = exact ? Math.floor(high / step + 1e-9) : Math.ceil(high / step - 1e-9);
  const ticks = [];
  for (let i = first; i <= last && ticks.length < 100; ++i)
    ticks.push({value: i * step, text: format(i * step, digits > 6 ? undefined : digits)});
  if (!exact) [low, high] = [first * step, last * step];
  return {ticks, map: (v) => from + (v - low) / (high - low) * (to - from)};
}

// Zero has no place on a logarithmic axis: it gets a strip of its own at the low end.
function logScale(values, [from, to]) {
  const positive = values.filter((v) => v > 0);
  const zero = values.some((v) => v !== null && v <= 0);
  let [low, high] = positive.length ? bounds(positive) : [0.1, 1];
  if (low === high) [low, high] = [low / 2, high * 2];
  const room = (Math.log10(high) - Math.log10(low)) * 0.06;
  const [start, end] = [Math.log10(low) - room, Math.log10(high) + room];
  const base = zero ? from + Math.sign(to - from) * 26 : from;
  const map = (v) => v > 0 ? base + (Math.log10(v) - start) / (end - start) * (to - base) : from;
  const leads = end - start > 2.5 ? [1] : end - start > 1.2 ? [1, 3] : [1, 2, 5];
  const ticks = zero ? [{value: 0, text: "0"}] : [];
  const stride = Math.max(1, Math.ceil((end - start) / 8));
  for (let power = Math.floor(start); power <= end; ++power) {
    for (const lead of power % stride === 0 ? leads : []) {
      const value = Number(`${lead}e${power}`);
      if (Math.log10(value) >= start && Math.log10(value) <= end)
        ticks.push({value, text: format(value)});
    }
  }
  return {ticks, map};
}

function makeScale(axis, values, pixels, count) {
  return axis.log === true ? logScale(values, pixels) : linearScale(values, pixels, count);
}

function text(x, y, content, attributes = {}) {
  return shape("text", {x, y, ...attributes}, content);
}

// Grid lines and labels of a y scale, labels of an x scale, both titles. box: {left, right, top,
// bottom}.
function drawAxes(svg, box, x, y, titles) {
  for (const tick of y.ticks) {
    const at = y.map(tick.value);
    svg.append(shape("line", {class: "grid", x1: box.left, x2: box.right, y1: at, y2: at}));
    svg.append(text(box.left - 8, at + 4, tick.text, {"text-anchor": "end"}));
  }
  svg.append(
      shape("line", {class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom}));
  let free = -Infinity;
  for (const tick of x.ticks) {
    const at = x.map(tick.value), half = measure(tick.text) / 2;
    if (at - half < free) continue;
    free = at + half + 10;
    svg.append(shape("line", {class: "axis", x1: at, x2: at, y1: box.bottom, y2: box.bottom + 4}));
    const middle = Math.min(at, box.right + 12 - half);
    svg.append(text(middle, box.bottom + 18, tick.text, {"text-anchor": "middle"}));
  }
  const room = box.right - box.left;
  svg.append(text(0, 12, shorten(titles.y, box.right), {class: "axis-title"}));
  svg.append(text(
      box.right, box.bottom + 38, shorten(titles.x, room),
      {class: "axis-title", "text-anchor": "end"}));
}

function gutter(ticks) {
  return Math.ceil(Math.max(12, widest(ticks.map((tick) => tick.text)))) + 8;
}

// entries: [{name, colour, dash?, line?, area?}]
function legend(entries) {
  const list = element("ul", {class: "legend"});
  for (const {name, colour, dash, line} of entries) {
    const sample = shape(
        "svg", {width: line ? 20 : 12, height: 10, "aria-hidden": "true"},
        line ?
            shape(
                "line",
                {class: `line ${colour}`, x1: 0, x2: 19, y1: 5, y2: 5, "stroke-dasharray": dash}) :
            shape("rect", {class: `area ${colour}`, width: 12, height: 10, rx: 1.5}));
    list.append(element("li", {}, sample, name));
  }
  return list;
}

// The colour scale of heatmaps and masks.
function rampLegend(name, low, high, note) {
  return element(
      "p", {class: "ramp"}, element("span", {}, name), element("span", {class: "number"}, low),
      element("i", {class: "ramp-bar"}), element("span", {class: "number"}, high), note ?? null);
}

// A figure that is drawn again at every width. draw(svg, width) fills the svg and returns {height,
// count, stop, nearest, columns}: `count` places to read, stop(i) -> {x, y, title, rows, overlay:
// [nodes]}, nearest(x, y) -> i or -1; `columns` makes the up and down keys move by a row. `under`,
// a node, lies behind the svg.
function figure(label, draw, under = null) {
  const svg = shape("svg", {
    class: "chart",
    tabindex: 0,
    role: "application",
    "aria-roledescription": "chart",
    "aria-label": `${label}. Arrow keys read the values.`
  });
  const host = element("div", {class: "chart-box"}, under, svg);
  let plot = null, width = 0, cursor = -1, overlay = null;

  function clear() {
    overlay?.remove();
    overlay = null;
    tip.hide();
  }
  function show(index) {
    clear();
    cursor = index;
    const stop = plot.stop(index);
    overlay = shape("g", {class: "overlay"}, ...stop.overlay);
    svg.append(overlay);
    const frame = svg.getBoundingClientRect(), scale = frame.width / width;
    tip.show(frame.left + stop.x * scale, frame.top + stop.y * scale, stop.title, stop.rows);
    return [stop.title, ...stop.rows.map((row) => `${row.name} ${row.value}`)].join(", ");
  }
  function point(event) {
    const frame = svg.getBoundingClientRect(), scale = width / frame.width;
    const index =
        plot.nearest((event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale);
    if (index < 0)
      clear();
    else if (index !== cursor || !overlay)
      show(index);
  }
  function key(event) {
    const row = plot.columns ?? 1;
    const moves = {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -row,
      ArrowDown: row,
      Home: -plot.count,
      End: plot.count
    };
    if (event.key === "Escape") clear();
    const move = moves[event.key];
    if (move === undefined || event.ctrlKey || event.altKey || event.metaKey || plot.count === 0)
      return;
    event.preventDefault();
    if (cursor < 0) return void say(show(0));
    const next = clamp(cursor + move, 0, plot.count - 1);
    const leaves = Math.abs(move) === row && next !== cursor + move;  // a row up from the first row
    say(show(leaves ? cursor : next));
  }
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", clear);
  svg.addEventListener("blur", clear);
  svg.addEventListener("keydown", key);

  function redraw(now) {
    if (now === width || now < 40) return;
    width = now;
    clear();
    svg.replaceChildren();
    plot = draw(svg, width);
    svg.setAttribute("viewBox", `0 0 ${width} ${plot.height}`);
  }
  new ResizeObserver(() => redraw(Math.floor(host.clientWidth))).observe(host);
  window.addEventListener("beforeprint", () => redraw(PAPER));
  window.addEventListener("afterprint", () => redraw(Math.floor(host.clientWidth)));
  return host;
}
