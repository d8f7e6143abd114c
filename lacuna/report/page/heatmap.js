// SPDX-License-Identifier: Apache-2.0
// A matrix as colours.

// Every how manieth label fits when each needs `size` pixels and they stand `pitch` apart.
function stride(size, pitch) {
  return Math.max(1, Math.ceil(size / pitch));
}

function drawHeatmap(svg, width, section, [low, high]) {
  const {rows, columns, values} = section, unit = section.unit || "value",
                        digits = digitsFor(values.flat());
  const left = Math.ceil(Math.min(width * 0.3, widest(rows.labels))) + 10;
  const name = widest(columns.labels);
  const pitch = Math.min(clamp(name + 12, 48, 140), (width - left - 2) / columns.labels.length);
  const tall = clamp(pitch * 0.75, 16, 30), top = 24, gap = pitch > 8 ? 1.5 : 0;
  const bottom = top + rows.labels.length * tall, height = bottom + 44;
  const frame = {width: Math.max(0.5, pitch - gap), height: tall - Math.min(gap, 1.5)};
  values.forEach((line, r) => line.forEach((value, c) => {
    const place = {x: left + c * pitch, y: top + r * tall, ...frame};
    svg.append(shape("rect", {class: value === null ? "unknown" : "ramp-low", ...place}));
    if (value !== null) {
      const share = clamp((value - low) / (high - low), 0, 1);
      svg.append(shape("rect", {class: "ramp-high", ...place, "fill-opacity": share.toFixed(4)}));
    }
  }));
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
  const [least, most] = bounds(values.flat());
  let low = typeof section.min === "number" ? section.min : least;
  let high = typeof section.max === "number" ? section.max : most;
  if (!(high > low)) high = low + 1;
  const absent = values.flat().includes(null) ?
      element(
          "span", {class: "ramp-absent"}, element("i", {class: "unknown-swatch"}), "not measured") :
      null;
  return [
    rampLegend(section.unit || "value", format(low), format(high), absent),
    figure(
        `${section.title}: ${section.unit || "value"} by ${rows.name} and ${columns.name}`,
        (svg, width) => drawHeatmap(svg, width, {...section, rows, columns}, [low, high])),
    numbersOf(
        () => ({
          columns: [
            {key: "row", name: rows.name},
            ...columns.labels.map(
                (name, c) => ({key: `c${c}`, name, digits: digitsFor(values.flat())}))
          ],
          rows: rows.labels.map(
              (name, r) => Object.fromEntries(
                  [["row", name], ...values[r].map((value, c) => [`c${c}`, value])])),
        }),
        section.title),
  ];
};
