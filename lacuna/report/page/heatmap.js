// SPDX-License-Identifier: Apache-2.0
// A matrix as colours.

// Every how manieth label fits when each needs `size` pixels and they stand `pitch` apart.
function stride(size, pitch) {
  return Math.max(1, Math.ceil(size / pitch));
}

// One pixel per cell, as opaque as its share of the range: 40 layers of 40 heads in 50 steps are
// too many cells for elements that every width makes anew.
function paintCells(canvas, values, [low, high]) {
  const shares = values.flat().map((v) => v === null ? 0 : clamp((v - low) / (high - low), 0, 1));
  const bytes = Uint8Array.from(shares, (share) => Math.round(255 * share));
  const size = {columns: values[0].length, rows: values.length};
  paintMask(canvas, size, bytes, getComputedStyle(canvas).color);
}

// Lays the canvas of the cells behind the svg, and over it what keeps them apart.
function placeCells(svg, canvas, values, {left, top, pitch, tall, gap, frame, width, height}) {
  const right = left + values[0].length * pitch, bottom = top + values.length * tall;
  const part = (pixels, whole) => `${100 * pixels / whole}%`;
  Object.assign(canvas.style, {
    left: part(left, width),
    top: part(top, height),
    width: part(right - left, width),
    height: part(bottom - top, height),
    clipPath: `inset(0 ${part(gap, right - left)} ${part(gap, bottom - top)} 0)`
  });
  if (gap > 0) {
    const down = values[0].map((_, c) => `M${left + (c + 1) * pitch - gap / 2} ${top}V${bottom}`);
    const across = values.map((_, r) => `M${left} ${top + (r + 1) * tall - gap / 2}H${right}`);
    svg.append(
        shape("path", {class: "gap", "stroke-width": gap, d: [...down, ...across].join("")}));
  }
  const box = (r, c) => {
    const [x, y] = [left + c * pitch, top + r * tall];
    return `M${x} ${y}h${frame.width}v${frame.height}H${x}z`;
  };
  const absent =
      values.flatMap((line, r) => line.flatMap((value, c) => value === null ? [box(r, c)] : []));
  if (absent.length) svg.append(shape("path", {class: "unknown", d: absent.join("")}));
}

function drawHeatmap(svg, width, section, canvas, digits) {
  const {rows, columns, values} = section, unit = section.unit || "value";
  const left = Math.ceil(Math.min(width * 0.3, widest(rows.labels))) + 10;
  const name = widest(columns.labels);
  const pitch = Math.min(clamp(name + 12, 48, 140), (width - left - 2) / columns.labels.length);
  const tall = clamp(pitch * 0.75, 16, 30), top = 24, gap = pitch > 8 ? 1.5 : 0;
  const bottom = top + rows.labels.length * tall, height = bottom + 44;
  const frame = {width: Math.max(0.5, pitch - gap), height: tall - gap};
  placeCells(svg, canvas, values, {left, top, pitch, tall, gap, frame, width, height});
  const down = stride(14, tall);
  rows.labels.forEach((label, r) => {
    if (r % down === 0) {
      svg.append(text(
          left - 8, top + (r + 0.5) * tall + 3, shorten(label, left - 10), {"text-anchor": "end"}));
    }
  });
  const across = stride(Math.min(name, 90) + 8, pitch);
  columns.labels.forEach((label, c) => {
    if (c % across !== 0) return;
    const shown = shorten(label, across * pitch - 6);
    svg.append(text(left + (c + 0.5) * pitch, bottom + 16, shown, {"text-anchor": "middle"}));
  });
  svg.append(text(0, 12, rows.name, {class: "axis-title"}));
  svg.append(text(
      left + columns.labels.length * pitch, bottom + 36, columns.name,
      {class: "axis-title", "text-anchor": "end"}));

  const count = columns.labels.length;
  const stop = (i) => {
    const [r, c] = [Math.floor(i / count), i % count];
    const [x, y] = [left + c * pitch, top + r * tall];
    return {
      x: x + pitch / 2,
      y: y + tall / 2,
      title: `${rows.name} ${rows.labels[r]}, ${columns.name} ${columns.labels[c]}`,
      rows: [{
        mark: null,
        name: unit,
        value: values[r][c] === null ? "not measured" : format(values[r][c], digits)
      }],
      overlay: [shape(
          "rect",
          {class: "outline", x: x - 1, y: y - 1, width: frame.width + 2, height: frame.height + 2})]
    };
  };
  const nearest = (px, py) => {
    const [r, c] = [Math.floor((py - top) / tall), Math.floor((px - left) / pitch)];
    return r >= 0 && r < rows.labels.length && c >= 0 && c < count ? r * count + c : -1;
  };
  return {height, count: rows.labels.length * count, columns: count, stop, nearest};
}

kinds.heatmap = (section) => {
  for (const side of ["rows", "columns"]) {
    needAxis(section[side], side);
    const labels = section[side].labels;
    need(Array.isArray(labels) && labels.length > 0, `${side}.labels must be a list`);
    need(
        labels.every((v) => typeof v === "string" || typeof v === "number"),
        `${side}.labels must be text or numbers`);
  }
  const rows = {...section.rows, labels: section.rows.labels.map(String)};
  const columns = {...section.columns, labels: section.columns.labels.map(String)};
  const values = section.values;
  need(
      Array.isArray(values) && values.length === rows.labels.length,
      "values must have one list per row");
  values.forEach((line, r) => needNumbers(line, columns.labels.length, `values of row ${r}`));
  const all = values.flat(), digits = digitsFor(all), [least, most] = bounds(all);
  let low = typeof section.min === "number" ? section.min : least;
  let high = typeof section.max === "number" ? section.max : most;
  if (!(high > low)) high = low + 1;
  const absent = all.includes(null) ?
      element(
          "span", {class: "ramp-absent"}, element("i", {class: "unknown-swatch"}), "not measured") :
      null;
  const canvas = element("canvas", {class: "cells", "aria-hidden": "true"});
  onTheme(() => paintCells(canvas, values, [low, high]));
  return [
    rampLegend(section.unit || "value", format(low), format(high), absent),
    figure(
        `${section.title}: ${section.unit || "value"} by ${rows.name} and ${columns.name}`,
        (svg, width) => drawHeatmap(svg, width, {...section, rows, columns}, canvas, digits),
        canvas),
    numbersOf(
        () => ({
          columns: [
            {key: "row", name: rows.name},
            ...columns.labels.map((name, c) => ({key: `c${c}`, name, digits}))
          ],
          rows: rows.labels.map(
              (name, r) => Object.fromEntries(
                  [["row", name], ...values[r].map((value, c) => [`c${c}`, value])])),
        }),
        section.title),
  ];
};
