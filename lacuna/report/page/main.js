// SPDX-License-Identifier: Apache-2.0
// Reads the data, builds the page around it.

kinds.text = (section) => {
  need(
      Array.isArray(section.paragraphs) && section.paragraphs.every((p) => typeof p === "string"),
      "paragraphs must be a list of text");
  return section.paragraphs.map((paragraph) => element("p", {class: "prose"}, paragraph));
};

function facts(title, object) {
  if (!isObject(object) || Object.keys(object).length === 0) return null;
  const list = element("dl");
  for (const [key, value] of Object.entries(object)) {
    const shown =
        value !== null && typeof value === "object" ? JSON.stringify(value) : format(value);
    list.append(element("dt", {}, key), element("dd", {}, shown));
  }
  return element("div", {class: "facts"}, element("h2", {}, title), list);
}

function head(report) {
  const title = typeof report.title === "string" && report.title ? report.title : "Lacuna report";
  document.title = title;
  return element(
      "header", {}, element("h1", {}, title),
      typeof report.summary === "string" ? element("p", {class: "summary"}, report.summary) : null,
      typeof report.command === "string" ?
          element("pre", {class: "command"}, element("code", {}, report.command)) :
          null,
      element(
          "div", {class: "facts-row"}, facts("Settings", report.settings),
          facts("Machine", report.machine)));
}

// One section; a malformed one is one line, the rest of the page stays.
function sectionNode(section, index) {
  const titled = isObject(section) && typeof section.title === "string";
  const id = `section-${index + 1}`, title = titled ? section.title : `Section ${index + 1}`;
  const node = element(
      "section", {id, "aria-labelledby": `${id}-title`}, element("h2", {id: `${id}-title`}, title));
  try {
    need(isObject(section), "it is not an object");
    const build = typeof section.kind === "string" ? own(kinds, section.kind) : undefined;
    need(build, `unknown kind ${JSON.stringify(section.kind) ?? "(none)"}`);
    const parts = build({...section, title});
    if (typeof section.note === "string") node.append(element("p", {class: "note"}, section.note));
    node.append(...parts.filter((part) => part !== null));
    node.dataset.kind = section.kind;
  } catch (error) {
    if (!(error instanceof Malformed)) console.error(error);
    node.append(
        element("p", {class: "problem"}, `This section cannot be shown: ${error.message}.`));
  }
  return {id, title, node};
}

function themeButton() {
  const root = document.documentElement, button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const update = () => {
    button.textContent = dark() ? "Light theme" : "Dark theme";
    for (const paint of repaints) paint();
  };
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    update();
  });
  system.addEventListener("change", update);
  // Paper is light; canvases must be painted before the sheet is made.
  let before;
  window.addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    root.dataset.theme = "light";
    update();
  });
  window.addEventListener("afterprint", () => {
    if (before === undefined)
      delete root.dataset.theme;
    else
      root.dataset.theme = before;
    update();
  });
  update();
}

function main() {
  const content = document.getElementById("content");
  let report = null;
  try {
    report = JSON.parse(document.getElementById("report-data").textContent);
    need(isObject(report) && report.lacuna_report === 1, "it is not version 1 of a Lacuna report");
    need(Array.isArray(report.sections), "it has no list of sections");
  } catch (error) {
    content.append(element(
        "p", {class: "problem"}, `The data of this page cannot be shown: ${error.message}.`));
    report = null;
  }
  if (report) {
    const sections = report.sections.map(sectionNode);
    content.append(head(report), ...sections.map((section) => section.node));
    document.getElementById("contents")
        .append(element(
            "ol", {},
            ...sections.map(
                ({id, title}) => element("li", {}, element("a", {href: `#${id}`}, title)))));
  }
  themeButton();
}

main();
