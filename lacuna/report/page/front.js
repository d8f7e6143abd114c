// SPDX-License-Identifier: Apache-2.0
// A scatter of points with the line of those that no other point beats.

function overlaps(a, b) {
  return a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
}

// Puts each label at the first place near its point that covers no point, no label and no line;
// points of the front choose first. A point whose label fits nowhere keeps it for the tooltip.
function placeLabels(spots, edge, box) {
  const taken = spots.map(({x, y}) => ({x: x - 6, y: y - 6, width: 12, height: 12}));
  for (let i = 1; i < edge.length; ++i) {
    const [[x0, y0], [x1, y1]] = [edge[i - 1], edge[i]];
    taken.push({
      x: Math.min(x0, x1) - 1,
      y: Math.min(y0, y1) - 1,
      width: Math.abs(x1 - x0) + 2,
      height: Math.abs(y1 - y0) + 2
    });
  }
  const order = [...spots].sort((a, b) => (b.front === true) - (a.front === true));
  const labels = [];
  for (const spot of order) {
    const width = measure(spot.name, spot.front === true ? 600 : 400), height = 15;
    for (const far of [9, 22]) {
      const slant = far * 0.7;
      const places = [
        [far, -height / 2], [-width / 2, -far - height], [-far - width, -height / 2],
        [-width / 2, far], [slant, -slant - height], [slant, slant],
        [-slant - width, -slant - height], [-slant - width, slant]
      ];
      const found = places.map(([dx, dy]) => ({x: spot.x + dx, y: spot.y + dy, width, height}))
                        .find(
                            (place) => place.x >= box.left && place.x + width <= box.right &&
                                place.y >= box.top && place.y + height <= box.bottom &&
                                !taken.some((other) => overlaps(place, other)));
      if (!found) continue;
      taken.push(found);
      labels.push({spot, ...found, far: far > 9});
      break;
    }
  }
  return labels;
}

function drawFront(svg, width, section) {
  const height = width < 560 ? 340 : width < 800 ? 370 : 420;
  const points = section.points.filter((p) => p.x !== null && p.y !== null);
  const y = makeScale(section.y, points.map((p) => p.y), [height - 48, 28], 5);
  const box = {left: gutter(y.ticks), right: width - 14, top: 20, bottom: height - 48};
  const x = makeScale(section.x, points.map((p) => p.x), [box.left, box.right], width / 64);
  const good = section.better === "high" ? "higher is better" :
      section.better === "low"           ? "lower is better" :
                                           null;
  drawAxes(
      svg, box, x, y,
      {x: axisTitle(section.x), y: axisTitle(section.y) + (good ? ` (${good})` : "")});
  const spots = points.map((p) => ({...p, px: p.x, py: p.y, x: x.map(p.x), y: y.map(p.y)}))
                    .sort((a, b) => a.x - b.x);

  // Between two points of the front only what the left one reached is known to be possible: a
  // staircase.
  const edge = [];
  for (const spot of spots.filter((s) => s.front === true)) {
    if (edge.length) edge.push([spot.x, edge[edge.length - 1][1]]);
    edge.push([spot.x, spot.y]);
  }
  if (edge.length > 1) svg.append(shape("path", {class: "front-line", d: path(edge)}));
  for (const {x: cx, y: cy, front} of spots) {
    svg.append(shape(
        "circle",
        {class: front === true ? "point front" : "point", cx, cy, r: front === true ? 5 : 4.5}));
  }
  for (const label of placeLabels(spots, edge, box)) {
    const {spot} = label, left = label.x + label.width / 2 < spot.x - 8, right = label.x > spot.x;
    const end = {
      x: right ? label.x - 2 :
          left ? label.x + label.width + 2 :
                 label.x + label.width / 2,
      y: label.y > spot.y                 ? label.y + 2 :
          label.y + label.height < spot.y ? label.y + label.height :
                                            label.y + 8
    };
    if (label.far)
      svg.append(shape("line", {class: "leader", x1: spot.x, y1: spot.y, x2: end.x, y2: end.y}));
    svg.append(text(
        label.x, label.y + 12, spot.name, {class: spot.front === true ? "label strong" : "label"}));
  }

  const row = (axis, value) => ({mark: null, name: axis.name, value: withUnit(value, axis.unit)});
  const stop = (i) => ({
    x: spots[i].x,
    y: spots[i].y,
    title: spots[i].name + (spots[i].front === true ? " (on the front)" : ""),
    rows: [row(section.x, spots[i].px), row(section.y, spots[i].py)],
    overlay: [shape("circle", {class: "outline", cx: spots[i].x, cy: spots[i].y, r: 9})],
  });
  const nearest = (px, py) => {
    let best = -1, least = 40 ** 2;
    spots.forEach((spot, i) => {
      const far = (spot.x - px) ** 2 + (spot.y - py) ** 2;
      if (far < least) [best, least] = [i, far];
    });
    return best;
  };
  return {height, count: spots.length, stop, nearest};
}

kinds.front = (section) => {
  needAxis(section.x, "x");
  needAxis(section.y, "y");
  need(Array.isArray(section.points) && section.points.length > 0, "points must be a list");
  for (const point of section.points) {
    need(isObject(point), "a point must be an object");
    needText(point.name, "points.name");
    needNumbers([point.x, point.y], 2, `point "${point.name}"`);
  }
  const lost = section.points.filter((p) => p.x === null || p.y === null).map((p) => p.name);
  const keys = element("ul", {class: "legend"});
  for (const [name, style] of [["on the front", "point front"], ["beaten by another", "point"]]) {
    keys.append(element(
        "li", {},
        shape(
            "svg", {width: 12, height: 12, "aria-hidden": "true"},
            shape("circle", {class: style, cx: 6, cy: 6, r: 4.75})),
        name));
  }
  return [
    keys,
    figure(
        `${section.title}: ${section.y.name} against ${section.x.name}`,
        (svg, width) => drawFront(svg, width, section)),
    lost.length ? element("p", {class: "note"}, `Not measured: ${lost.join(", ")}.`) : null,
    numbersOf(
        () => ({
          columns: [
            {key: "name", name: "point"}, {key: "x", ...section.x, log: undefined},
            {key: "y", ...section.y}, {key: "front", name: "front"}
          ].map(({key, name, unit}) => ({key, name, unit})),
          rows: section.points.map(
              (p) => ({name: p.name, x: p.x, y: p.y, front: p.front === true ? "yes" : "no"})),
        }),
        section.title),
  ];
};
