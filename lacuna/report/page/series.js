// SPDX-License-Identifier: Apache-2.0
// Figures made of series: lines with bands and a floor, stacked horizontal bars.

function needSeries(series, length) {
  need(Array.isArray(series) && series.length > 0, "series must be a list");
  for (const one of series) {
    need(isObject(one), "a series must be an object");
    needText(one.name, "series.name");
    needNumbers(one.values, length, `series "${one.name}"`);
    for (const side of ["low", "high"]) {
      if (one[side] !== undefined)
        needNumbers(one[side], length, `${side} of series "${one.name}"`);
    }
  }
}

// Runs of neighbouring places where every list has a number.
function runs(...lists) {
  const found = [];
  let open = null;
  for (let i = 0; i < lists[0].length; ++i) {
    if (lists.some((list) => list[i] === null))
      open = null;
    else if (open)
      open.push(i);
    else
      found.push(open = [i]);
  }
  return found;
}

function path(points) {
  return points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function drawLine(svg, one, at, y) {
  const place = (i, list) => [at(i), y.map(list[i])];
  if (one.low && one.high) {
    for (const run of runs(one.low, one.high)) {
      const edge =
          [...run.map((i) => place(i, one.high)), ...run.reverse().map((i) => place(i, one.low))];
      svg.append(shape("path", {class: `band ${one.colour}`, d: `${path(edge)}Z`}));
    }
  }
  for (const run of runs(one.values)) {
    const points = run.map((i) => place(i, one.values));
    if (run.length > 1) {
      svg.append(shape(
          "path", {class: `line ${one.colour}`, d: path(points), "stroke-dasharray": one.dash}));
    } else {
      svg.append(
          shape("circle", {class: `area ${one.colour}`, cx: points[0][0], cy: points[0][1], r: 3}));
    }
  }
}

function drawLines(svg, width, section, lines) {
  const labels = section.x.values, numeric = labels.every((v) => typeof v === "number");
  const places = numeric ? labels : labels.map((_, i) => i);
  const height = width < 800 ? 280 : 340;
  const all = lines.flatMap((one) => [...one.values, ...(one.low ?? []), ...(one.high ?? [])]);
  const y = makeScale(section.y, all, [height - 48, 28], 5);
  const box = {left: gutter(y.ticks), right: width - 12, top: 28, bottom: height - 48};
  const x = linearScale(places, [box.left, box.right], width / 90, true);
  if (!numeric) x.ticks = places.map((value) => ({value, text: String(labels[value])}));
  drawAxes(svg, box, x, y, {x: axisTitle(section.x), y: axisTitle(section.y)});
  const at = (i) => x.map(places[i]);
  for (const one of lines) drawLine(svg, one, at, y);

  const digits = digitsFor(all), unit = section.y.unit;
  const value = (one, i) => {
    const band = one.low && one.high && one.low[i] !== null && one.high[i] !== null;
    const range = band ? ` (${format(one.low[i], digits)} to ${format(one.high[i], digits)})` : "";
    return withUnit(one.values[i], unit, digits) + range;
  };
  const stop = (i) => ({
    x: at(i),
    y: box.top,
    title: `${section.x.name} ${format(labels[i])}`,
    rows: lines.map((one) => ({mark: one.colour, name: one.name, value: value(one, i)})),
    overlay: [
      shape("line", {class: "cursor", x1: at(i), x2: at(i), y1: box.top, y2: box.bottom}),
      ...lines.filter((one) => one.values[i] !== null)
          .map(
              (one) => shape(
                  "circle",
                  {class: `dot ${one.colour}`, cx: at(i), cy: y.map(one.values[i]), r: 4}))
    ],
  });
  const nearest = (px) =>
      places.reduce((best, _, i) => Math.abs(at(i) - px) < Math.abs(at(best) - px) ? i : best, 0);
  return {height, count: places.length, stop, nearest};
}

kinds.lines = (section) => {
  needAxis(section.x, "x");
  needAxis(section.y, "y");
  need(Array.isArray(section.x.values) && section.x.values.length > 0, "x.values must be a list");
  need(
      section.x.values.every((v) => typeof v === "number" || typeof v === "string"),
      "x.values must be numbers or text");
  needSeries(section.series, section.x.values.length);
  const lines = section.series.map((one, i) => ({...one, colour: colourOf(i), dash: dashOf(i)}));
  if (section.floor !== undefined && section.floor !== null) {
    needSeries([section.floor], section.x.values.length);
    lines.push({...section.floor, colour: "floor", dash: "4 3"});
  }
  const label = `${section.title}: ${section.y.name} by ${section.x.name}`;
  return [
    legend(lines.map((one) => ({...one, line: true}))),
    figure(label, (svg, width) => drawLines(svg, width, section, lines)),
    numbersOf(
        () => ({
          columns: [
            {key: "x", name: section.x.name, unit: section.x.unit},
            ...lines.map((one, i) => ({
                           key: `y${i}`,
                           name: one.name,
                           unit: section.y.unit,
                           digits: digitsFor(one.values)
                         }))
          ],
          rows: section.x.values.map(
              (x, i) => Object.fromEntries(
                  [["x", x], ...lines.map((one, j) => [`y${j}`, one.values[i]])])),
        }),
        section.title),
  ];
};

function drawBars(svg, width, section, totals) {
  const {categories, series, unit} = section, digits = digitsFor(totals);
  const value = (number) => withUnit(number, unit, digits);
  const pitch = 28, thick = 18, height = categories.length * pitch + 44;
  const left = Math.ceil(Math.min(width * 0.34, widest(categories))) + 10;
  const right = width - Math.ceil(widest(totals.map(value))) - 14;
  const x = linearScale([0, ...totals], [left, right], (right - left) / 90);
  const box = {left, right, top: 0, bottom: height - 40};
  for (const tick of x.ticks) {
    const at = x.map(tick.value);
    svg.append(shape(
        "line",
        {class: tick.value === 0 ? "axis" : "grid", x1: at, x2: at, y1: 0, y2: box.bottom}));
    svg.append(text(at, box.bottom + 17, tick.text, {"text-anchor": "middle"}));
  }
  svg.append(text(right, height - 6, unit || "", {class: "axis-title", "text-anchor": "end"}));
  categories.forEach((category, row) => {
    const top = row * pitch + (pitch - thick) / 2;
    svg.append(text(
        left - 10, top + thick / 2 + 4, shorten(category, left - 10),
        {class: "label", "text-anchor": "end"}));
    let sum = 0;
    series.forEach((one, i) => {
      const part = one.values[row];
      if (part === null || part <= 0) return;
      const [from, to] = [x.map(sum), x.map(sum += part)];
      svg.append(shape("rect", {
        class: `area ${colourOf(i)}`,
        x: from,
        y: top,
        width: Math.max(0.5, to - from - 1),
        height: thick
      }));
    });
    svg.append(text(x.map(sum) + 8, top + thick / 2 + 4, value(totals[row]), {class: "number"}));
  });
  const stop = (row) => ({
    x: x.map(totals[row] ?? 0) / 2 + left / 2,
    y: (row + 1) * pitch,
    title: categories[row],
    rows: [
      ...series.map(
          (one, i) => ({mark: colourOf(i), name: one.name, value: value(one.values[row])})),
      {mark: null, name: "total", value: value(totals[row])}
    ],
    overlay: [shape("rect", {
      class: "outline",
      x: left - 4,
      y: row * pitch + 1,
      width: width - left + 2,
      height: pitch - 2,
      rx: 3
    })],
  });
  const nearest = (_, py) =>
      py < categories.length * pitch ? Math.floor(Math.max(0, py) / pitch) : -1;
  return {height, count: categories.length, stop, nearest};
}

kinds.bars = (section) => {
  const {categories, series, unit} = section;
  need(
      Array.isArray(categories) && categories.length > 0 &&
          categories.every((c) => typeof c === "string"),
      "categories must be a list of text");
  needSeries(series, categories.length);
  const totals = categories.map(
      (_, row) => series.every((one) => one.values[row] === null) ?
          null :
          series.reduce((sum, one) => sum + (one.values[row] ?? 0), 0));
  return [
    legend(series.map((one, i) => ({name: one.name, colour: colourOf(i)}))),
    figure(`${section.title}: stacked bars`, (svg, width) => drawBars(svg, width, section, totals)),
    numbersOf(
        () => ({
          columns: [
            {key: "c", name: ""},
            ...series.map(
                (one, i) => ({key: `v${i}`, name: one.name, unit, digits: digitsFor(one.values)}))
          ],
          rows: categories.map(
              (category, row) => Object.fromEntries(
                  [["c", category], ...series.map((one, i) => [`v${i}`, one.values[row]])])),
        }),
        section.title),
  ];
};
