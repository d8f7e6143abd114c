// SPDX-License-Identifier: Apache-2.0
// What every section kind shares: elements, numbers, checks, the tooltip. The files of this folder
// are joined into one script, so their functions see each other. Strings of the data reach the page
// through text nodes and setAttribute only: never as markup.

const kinds = {};  // section kind -> (section) => array of nodes; throws Malformed

class Malformed extends Error {}

function need(condition, what) {
  if (!condition) throw new Malformed(what);
}

function isObject(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

// Data may hold a key such as "constructor": only what is really there counts.
function own(object, key) {
  return Object.hasOwn(object, key) ? object[key] : undefined;
}

function needCount(value, most, what) {
  need(
      Number.isInteger(value) && value >= 1 && value <= most,
      `${what} must be a whole number from 1`);
}

function needText(value, what) {
  need(typeof value === "string", `${what} must be text`);
}

// An array of `length` numbers; null = not measured.
function needNumbers(values, length, what) {
  need(Array.isArray(values), `${what} must be a list of numbers`);
  need(values.length === length, `${what} has ${values.length} numbers, expected ${length}`);
  need(
      values.every((v) => v === null || typeof v === "number"),
      `${what} must hold numbers or null`);
}

function needAxis(axis, what) {
  need(isObject(axis), `${what} is missing`);
  needText(axis.name, `${what}.name`);
}

// Attributes that are functions become event listeners, false and null are left out.
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function")
      node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function shape(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// A number as text: `digits` behind the point unless that would show it as zero, else four
// significant ones.
function format(value, digits) {
  if (value === null || value === undefined) return "\u2013";
  if (typeof value !== "number") return String(value);
  let text;
  if (Number.isInteger(digits) && digits >= 0 && digits <= 20) {
    text = value.toFixed(digits);
    if (value !== 0 && Number(text) === 0) text = value.toExponential(1);
  } else if (Number.isInteger(value) && Math.abs(value) < 1e9) {
    text = String(value);
  } else {
    const size = Math.abs(value);
    text = size > 0 && (size < 1e-4 || size >= 1e7) ? value.toExponential(2) :
                                                      String(Number(value.toPrecision(4)));
  }
  return text.replace(/^-(?=[0.]*$)/, "").replace("-", "\u2212");
}

// Digits behind the point that suit all of `values`.
function digitsFor(values) {
  const most = values.reduce((size, v) => Math.max(size, Math.abs(v)), 0);
  if (most === 0 || values.every((v) => v === null || Number.isInteger(v))) return 0;
  return clamp(3 - Math.floor(Math.log10(most)), 0, 6);
}

function withUnit(value, unit, digits) {
  if (value === null || value === undefined) return "not measured";
  return unit ? `${format(value, digits)}\u00a0${unit}` : format(value, digits);
}

function axisTitle(axis) {
  return axis.unit ? `${axis.name}, ${axis.unit}` : axis.name;
}

// One tooltip for the page, at client coordinates. rows: [{mark, name, value}], mark a class of the
// palette or null.
const tip = {
  show(x, y, title, rows) {
    const box = document.getElementById("tip");
    box.replaceChildren();
    if (title) box.append(element("p", {class: "tip-title"}, title));
    for (const {mark, name, value} of rows) {
      box.append(element(
          "p", {class: "tip-row"}, mark ? element("i", {class: `mark ${mark}`}) : null,
          element("span", {}, name), value === undefined ? null : element("b", {}, value)));
    }
    box.hidden = false;
    const width = box.offsetWidth, height = box.offsetHeight,
          room = document.documentElement.clientWidth;
    const left = x + 16 + width > room - 8 ? x - 16 - width : x + 16;
    const top = y + 16 + height > window.innerHeight - 8 ? y - 16 - height : y + 16;
    // In page coordinates: a key that moves the focus scrolls, and the tooltip goes along.
    box.style.left = `${window.scrollX + clamp(left, 8, Math.max(8, room - width - 8))}px`;
    box.style.top = `${window.scrollY + Math.max(8, top)}px`;
  },
  hide() {
    document.getElementById("tip").hidden = true;
  },
};

// What a screen reader says after a key press.
function say(text) {
  document.getElementById("live").textContent = text;
}

let ids = 0;
function newId() {
  return `id-${++ids}`;
}

// Canvases hold colours, so they are painted again when the theme changes.
const repaints = [];
function onTheme(paint) {
  repaints.push(paint);
}

function icon(path) {
  return shape(
      "svg", {class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true"},
      shape("path", {d: path}));
}

const ICONS = {
  play: "M4 2.5v11l9-5.5z",
  pause: "M4 2.5h3v11H4zM9 2.5h3v11H9z",
  previous: "M3 2.5h2v11H3zM13 2.5v11L6 8z",
  next: "M11 2.5h2v11h-2zM3 2.5v11L10 8z",
  close:
      "M3.5 2.4 8 6.9l4.5-4.5 1.1 1.1L9.1 8l4.5 4.5-1.1 1.1L8 9.1l-4.5 4.5-1.1-1.1L6.9 8 2.4 3.5z",
};
