// SPDX-License-Identifier: Apache-2.0
// Tables: sorted by their headers, numbers as numbers, rows of the noise floor apart.

const collator = new Intl.Collator("en", {numeric: true});

// Numbers, then text, then what was not measured.
function compareCells(a, b, sign) {
  const kind = (v) => typeof v === "number" ? 0 : typeof v === "string" ? 1 : 2;
  if (kind(a) !== kind(b)) return kind(a) - kind(b);
  if (kind(a) === 0) return sign * (a - b);
  return kind(a) === 1 ? sign * collator.compare(a, b) : 0;
}

function cell(row, column, numeric, first) {
  const value = own(row, column.key) ?? null;
  const node = element(
      first && typeof value === "string" ? "th" : "td",
      {class: numeric ? "number" : null, scope: first && typeof value === "string" ? "row" : null});
  if (typeof value === "number")
    node.append(element("data", {value}, format(value, column.digits)));
  else if (value === null)
    node.append(element("span", {class: "absent", title: "not measured"}, format(null)));
  else
    node.append(element("span", {class: "words"}, String(value)));
  if (first && row.floor === true) node.append(" ", element("span", {class: "tag"}, "noise floor"));
  return node;
}

function header(column, numeric, sort) {
  const name = [element("span", {class: column.help ? "words helped" : "words"}, column.name)];
  if (column.unit) name.push(" ", element("span", {class: "unit"}, column.unit));
  const button = element("button", {type: "button", click: sort}, ...name);
  const node = element("th", {scope: "col", class: numeric ? "number" : null}, button);
  if (column.help) {
    const id = newId();
    node.append(element("span", {id, class: "unseen"}, column.help));
    button.setAttribute("aria-describedby", id);
    const show = () => {
      const frame = button.getBoundingClientRect();
      tip.show(frame.left - 16, frame.bottom - 10, null, [{mark: null, name: column.help}]);
    };
    for (const event of ["pointerenter", "focus"]) button.addEventListener(event, show);
    for (const event of ["pointerleave", "blur"]) button.addEventListener(event, tip.hide);
  }
  return node;
}

// A table in a box of its own that scrolls sideways.
function table(columns, rows, label) {
  const numeric =
      columns.map((column) => rows.some((row) => typeof own(row, column.key) === "number"));
  const body = element("tbody"), floor = element("tbody", {class: "floor"});
  const lines = rows.map(
      (row) => ({
        row,
        node:
            element("tr", {}, ...columns.map((column, i) => cell(row, column, numeric[i], i === 0)))
      }));
  const heads = columns.map((column, i) => header(column, numeric[i], () => sort(i)));
  function sort(i) {
    const down = heads[i].getAttribute("aria-sort") === "ascending";
    heads.forEach(
        (head, j) => j === i ? head.setAttribute("aria-sort", down ? "descending" : "ascending") :
                               head.removeAttribute("aria-sort"));
    const key = columns[i].key;
    lines.sort(
        (a, b) => compareCells(own(a.row, key) ?? null, own(b.row, key) ?? null, down ? -1 : 1));
    place();
    say(`sorted by ${columns[i].name}, ${down ? "descending" : "ascending"}`);
  }
  function place() {
    for (const {row, node} of lines) (row.floor === true ? floor : body).append(node);
  }
  place();
  return element(
      "div", {class: "scroll"},
      element(
          "table", {"aria-label": label}, element("thead", {}, element("tr", {}, ...heads)), body,
          floor.childElementCount ? floor : null));
}

// The numbers of a figure, made when asked for. build() -> {columns, rows}
function numbersOf(build, label) {
  const details = element("details", {class: "numbers"}, element("summary", {}, "Numbers"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.childElementCount > 1) return;
    const {columns, rows} = build();
    details.append(table(columns, rows, `${label}: numbers`));
  });
  return details;
}

kinds.table = (section) => {
  const {columns, rows} = section;
  need(Array.isArray(columns) && columns.length > 0, "columns must be a list");
  need(Array.isArray(rows), "rows must be a list");
  for (const column of columns) {
    need(isObject(column), "a column must be an object");
    needText(column.key, "columns.key");
    needText(column.name, "columns.name");
  }
  need(rows.every(isObject), "a row must be an object");
  return [
    table(columns, rows, section.title),
    rows.length ? null : element("p", {class: "note"}, "No rows.")
  ];
};
