// SPDX-License-Identifier: Apache-2.0
// Which blocks each head of each layer keeps, step by step.

const READABLE = /^[A-Za-z0-9+/]*={0,2}$/;

// The bytes of one mask; null when there is none (dense), undefined when it cannot be read.
function maskBytes(section, step, layer, head) {
  const coded = own(section.images, `${step}/${layer}/${head}`);
  if (coded === undefined || coded === null) return null;
  if (typeof coded !== "string" || !READABLE.test(coded)) return undefined;
  try {
    const bytes = Uint8Array.from(atob(coded), (c) => c.charCodeAt(0));
    return bytes.length === section.rows * section.columns ? bytes : undefined;
  } catch {
    return undefined;
  }
}

// One pixel per block, as opaque as its share of kept pairs, in the canvas's text colour.
function paintMask(canvas, section, bytes, colour) {
  canvas.width = section.columns;
  canvas.height = section.rows;
  if (bytes === undefined) return;
  const context = canvas.getContext("2d"),
        image = context.createImageData(section.columns, section.rows);
  for (let i = 0; i < section.rows * section.columns; ++i)
    image.data[4 * i + 3] = bytes ? bytes[i] : 255;
  context.putImageData(image, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = colour;
  context.fillRect(0, 0, section.columns, section.rows);
}

function stateOf(bytes) {
  return bytes === null ? "dense" : bytes === undefined ? "unreadable" : "";
}

// One mask, enlarged. Returns {node, open(layer, head)}.
function maskDialog(section, position, control) {
  const canvas = element("canvas"), title = element("h3"), note = element("p", {class: "note"});
  const state = element("span", {class: "mask-state"}),
        reading = element("p", {class: "reading number"}, "\u00a0");
  const close = element(
      "button", {type: "button", class: "tool", "aria-label": "Close", click: () => node.close()},
      icon(ICONS.close));
  const ratio = section.columns / section.rows;
  const view = element(
      "div", {class: "mask-large"}, element("span", {class: "axis-across"}, "keys \u2192"),
      element("span", {class: "axis-down"}, "queries \u2192"),
      element("div", {class: "mask-frame"}, canvas, state));
  view.style.setProperty("--ratio", ratio);
  const node = element(
      "dialog", {"aria-label": "One mask", class: "mask-dialog"},
      element("div", {class: "dialog-head"}, title, close), note, view, reading, control.node);
  let shown = null, bytes = null;

  function paint() {
    if (!shown) return;
    const step = section.steps[position.index];
    bytes = maskBytes(section, step, shown.layer, shown.head);
    paintMask(canvas, section, bytes, getComputedStyle(canvas).color);
    state.textContent = stateOf(bytes);
    title.textContent = `Layer ${shown.layer}, head ${shown.head}, step ${step}`;
    note.textContent = own(section.notes ?? {}, `${step}/${shown.layer}`) ?? "\u00a0";
    reading.textContent = "\u00a0";
  }
  canvas.addEventListener("pointermove", (event) => {
    const frame = canvas.getBoundingClientRect();
    const c = clamp(
        Math.floor((event.clientX - frame.left) / frame.width * section.columns), 0,
        section.columns - 1);
    const r = clamp(
        Math.floor((event.clientY - frame.top) / frame.height * section.rows), 0, section.rows - 1);
    const share = bytes === undefined ?
        "unreadable" :
        `${format((bytes ? bytes[r * section.columns + c] : 255) / 2.55, 0)} % ${
            section.unit ? `of the ${section.unit}` : "kept"}`;
    reading.textContent = `query block ${r}, key block ${c}: ${share}`;
  });
  node.addEventListener("click", (event) => {
    if (event.target === node) node.close();
  });
  node.addEventListener("close", () => {
    shown = null;
    control.stop();
  });
  position.onChange(paint);
  onTheme(paint);
  return {
    node,
    open(layer, head) {
      shown = {layer, head};
      node.showModal();
      paint();
    }
  };
}

// The grid is one stop of the tab key; arrow keys move inside it.
function roving(buttons, perLine) {
  buttons.forEach((button, i) => {
    button.tabIndex = i === 0 ? 0 : -1;
    button.addEventListener("keydown", (event) => {
      const move = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perLine, ArrowDown: perLine}[event.key];
      const next = move === undefined ? undefined : buttons[i + move];
      if (move !== undefined) event.preventDefault();
      next?.focus();
    });
    button.addEventListener("focus", () => buttons.forEach((other) => {
      other.tabIndex = other === button ? 0 : -1;
    }));
  });
}

function gallery(section, position, dialog) {
  const cells = [], notes = [];
  const size = section.columns * Math.max(1, Math.round(108 / section.columns));
  const cards = section.layers.map((layer) => {
    const note = section.notes ? element("p", {class: "note"}) : null;
    if (note) notes.push({layer, note});
    const heads = Array.from({length: section.heads}, (_, head) => {
      const canvas = element("canvas"), state = element("span", {class: "mask-state"});
      const button = element(
          "button", {type: "button", class: "mask", click: () => dialog.open(layer, head)},
          element("span", {class: "mask-frame"}, canvas, state),
          element("span", {class: "mask-name"}, `head ${head}`));
      cells.push({layer, head, canvas, state, button});
      return button;
    });
    return element(
        "div", {class: "layer", role: "group", "aria-label": `layer ${layer}`},
        element("h3", {}, `Layer ${layer}`), note, element("div", {class: "heads"}, ...heads));
  });
  roving(cells.map((one) => one.button), section.heads);
  // Pixels stay sharp where each has room enough; a fine mask would turn into stripes.
  const box = element("div", {class: section.columns > 48 ? "layers fine" : "layers"}, ...cards);
  box.style.setProperty("--mask", `${size}px`);
  box.style.setProperty("--heads", section.heads);
  box.style.setProperty("--ratio", section.columns / section.rows);
  function paint() {
    const step = section.steps[position.index],
          colour = getComputedStyle(box).getPropertyValue("color");
    for (const {layer, head, canvas, state, button} of cells) {
      const bytes = maskBytes(section, step, layer, head);
      paintMask(canvas, section, bytes, colour);
      state.textContent = stateOf(bytes);
      button.setAttribute(
          "aria-label", `Layer ${layer}, head ${head}${bytes === null ? ", dense" : ""}: enlarge`);
    }
    for (const {layer, note} of notes)
      note.textContent = own(section.notes, `${step}/${layer}`) ?? "\u00a0";
  }
  position.onChange(paint);
  onTheme(paint);
  return element("div", {class: "scroll"}, box);
}

kinds.masks = (section) => {
  for (const list of ["steps", "layers"]) {
    need(
        Array.isArray(section[list]) && section[list].length > 0 &&
            section[list].every(Number.isInteger),
        `${list} must be a list of whole numbers`);
  }
  needCount(section.heads, 1024, "heads");
  needCount(section.rows, 1024, "rows");
  needCount(section.columns, 1024, "columns");
  need(isObject(section.images), "images must be an object");
  need(section.notes === undefined || isObject(section.notes), "notes must be an object");
  if (section.unit !== undefined) needText(section.unit, "unit");
  const position = sequence(section.steps.length);
  const options = {
    name: "step",
    rate: 3,
    describe: (i) => `step ${section.steps[i]} (${i + 1} of ${section.steps.length})`
  };
  const control = transport(position, options), inner = transport(position, options);
  const dialog = maskDialog(section, position, inner);
  arrowKeys(dialog.node, inner, position.count);
  const box = element(
      "div", {class: "mask-box"}, control.node,
      section.unit ? rampLegend(section.unit, "0 %", "100 %") :
                     rampLegend("kept pairs", "none", "all"),
      gallery(section, position, dialog), dialog.node);
  position.set(0);
  return [box];
};
