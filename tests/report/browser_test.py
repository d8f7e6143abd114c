#!/usr/bin/env python3
"""The report page as a reader meets it: opened from a file in Chromium, driven by keys and mouse.

Leaves screenshots and a printed page in --artefacts. Exit status 77 = no Chromium here.
"""
import argparse
import base64
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

from chromium import NAMES, Browser, Page, find_chromium

SKIP = 77
ARGS = None
BROWSER = None


def data_of(path):
    html = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="report-data">(.*?)</script>', html, re.S).group(1))


# Text whose contrast with what is painted behind it is under WCAG AA.
LOW_CONTRAST = """(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const c = parse(getComputedStyle(node).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const node of document.querySelectorAll("body *")) {
    const shown = node.checkVisibility() && !node.closest(".mask-state, dialog, .unseen, .skip, #tip");
    if (!shown || ![...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim())) continue;
    const style = getComputedStyle(node), svg = node instanceof SVGElement;
    const a = light(parse(svg ? style.fill : style.color)), b = light(behind(node));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) low.push(`${node.tagName}.${node.className} ${ratio.toFixed(2)} ${node.textContent.slice(0, 20)}`);
  }
  return low;
})()"""

# Places that Tab must reach: roving groups count once.
REACHABLE = """[...document.querySelectorAll("a[href], button, input, summary, [tabindex='0']")].filter((node) =>
  node.tabIndex >= 0 && !node.disabled && node.checkVisibility() && !node.closest("dialog"))"""


class SampleTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.path = ARGS.artefacts / "sample.html"
        cls.data = data_of(cls.path)
        cls.page = Page(BROWSER, cls.path)

    @classmethod
    def tearDownClass(cls):
        cls.page.close()

    def section(self, kind):
        index = next(i for i, s in enumerate(self.data["sections"]) if s["kind"] == kind)
        return f"#section-{index + 1}", self.data["sections"][index]

    def tearDown(self):
        self.assertEqual(self.page.problems(), [])
        self.assertEqual([u for u in self.page.requests() if not u.startswith(("file:", "data:"))], [])

    def test_every_section_is_there(self):
        titles = self.page("[...document.querySelectorAll('section > h2')].map((n) => n.textContent)")
        self.assertEqual(titles, [s["title"] for s in self.data["sections"]])
        self.assertEqual(self.page("document.querySelectorAll('.problem').length"), 0)
        self.assertEqual(self.page.text("h1"), self.data["title"])
        self.assertEqual(self.page("document.title"), self.data["title"])
        self.assertEqual(self.page.text(".summary"), self.data["summary"])
        self.assertEqual(self.page.text(".command"), self.data["command"])
        facts = self.page("[...document.querySelectorAll('dt')].map((n) => [n.textContent, n.nextSibling.textContent])")
        self.assertEqual(facts, [[k, f"{v:g}" if isinstance(v, float) else str(v)] for part in ("settings", "machine")
                                 for k, v in self.data[part].items()])
        self.assertEqual(self.page("[...document.querySelectorAll('nav a')].map((n) => n.textContent)"), titles)

    @staticmethod
    def formatted(value, digits):
        if value is None:
            return "\u2013"
        text = f"{value:.{digits}f}"
        return text if value == 0 or float(text) != 0 else re.sub("e-0?", "e\u2212", f"{value:.1e}")

    def test_table_shows_the_numbers_of_the_data(self):
        at, section = self.section("table")
        shown = self.page(f"""[...document.querySelectorAll("{at} tbody tr")].map((row) => [...row.cells].map((c) => {{
            const d = c.querySelector("data"); return d ? [Number(d.value), d.textContent] : [null, c.textContent]; }}))""")
        self.assertEqual(len(shown), len(section["rows"]))
        for cells, row in zip(shown, section["rows"]):
            for (value, text), column in zip(cells, section["columns"]):
                expected = row[column["key"]]
                if isinstance(expected, str):
                    self.assertTrue(text.startswith(expected), text)
                else:
                    self.assertEqual(value, expected)
                    self.assertEqual(text, self.formatted(expected, column["digits"]))

    def test_figures_show_the_numbers_of_the_data(self):
        for kind, expected in (
                ("lines", lambda s: [list(v) for v in zip(s["x"]["values"], *(one["values"] for one in s["series"]),
                                                          s["floor"]["values"])]),
                ("bars", lambda s: [list(v) for v in zip(*(one["values"] for one in s["series"]))]),
                ("heatmap", lambda s: s["values"]), ("front", lambda s: [[p["x"], p["y"]] for p in s["points"]])):
            at, section = self.section(kind)
            self.page.click(f"{at} summary")
            self.page.wait(f"document.querySelector('{at} table') !== null", 5)
            shown = self.page(f"""[...document.querySelectorAll("{at} tbody tr")].map((row) => [...row.querySelectorAll(
                "data, .absent")].map((d) => d.tagName === "DATA" ? Number(d.value) : null))""")
            self.assertEqual(shown, expected(section), kind)
            self.page.click(f"{at} summary")

    def test_table_sorts_by_mouse_and_key(self):
        at, section = self.section("table")
        names = f"[...document.querySelectorAll('{at} tbody tr')].map((r) => r.cells[0].querySelector('.words').textContent)"
        sort_state = f"[...document.querySelectorAll('{at} th[scope=col]')].map((n) => n.getAttribute('aria-sort'))"
        body = [r for r in section["rows"] if not r.get("floor")]
        floor = [r["method"] for r in section["rows"] if r.get("floor")]
        self.page.click(f"{at} th:nth-child(4) button")  # PSNR, where dense has none
        rows = sorted(body, key=lambda r: (r["psnr"] is None, r["psnr"]))
        self.assertEqual(self.page(names), [r["method"] for r in rows] + floor)
        self.assertEqual(self.page(sort_state)[3], "ascending")
        self.page.key("Enter")
        rows = sorted(body, key=lambda r: (r["psnr"] is None, -(r["psnr"] or 0)))
        self.assertEqual(self.page(names), [r["method"] for r in rows] + floor)
        self.assertEqual(self.page(sort_state), [None] * 3 + ["descending"] + [None] * 4)
        self.page.click(f"{at} th:nth-child(3) button")  # rel L1: as text, 0.02774 would come before 0.015512
        rows = sorted(body, key=lambda r: r["rel_l1"])
        self.assertEqual(self.page(names), [r["method"] for r in rows] + floor)
        self.page.click(f"{at} th:nth-child(1) button")
        self.assertEqual(self.page(names), sorted(r["method"] for r in body) + floor)

    def test_help_appears_on_focus(self):
        at, section = self.section("table")
        self.page.focus(f"{at} th:nth-child(2) button")
        self.assertEqual(self.page.text("#tip"), section["columns"][1]["help"])
        self.assertTrue(self.page("document.querySelector('#tip').checkVisibility()"))
        # The focus may scroll the page: the help stays with its column.
        gap = (f"document.querySelector('#tip').getBoundingClientRect().top - "
               f"document.querySelector('{at} th:nth-child(2) button').getBoundingClientRect().top")
        before = self.page(gap)
        self.page("window.scrollBy({top: 40, behavior: 'instant'})")
        self.page.settle()
        self.assertTrue(self.page("document.querySelector('#tip').checkVisibility()"))
        self.assertAlmostEqual(self.page(gap), before, delta=1)
        self.page.focus(f"{at} th:nth-child(1) button")
        self.assertFalse(self.page("document.querySelector('#tip').checkVisibility()"))

    def test_charts_read_out(self):
        for kind, keys, expected in (("lines", ["Home", "ArrowRight"], "frame 1"), ("bars", ["Home", "ArrowDown"], "layer 1"),
                                     ("heatmap", ["Home", "ArrowDown", "ArrowRight"], "layer 1, step 1"),
                                     ("front", ["Home"], "window 0.1 (on the front)")):
            at, _ = self.section(kind)
            self.page.hover(f"{at} svg.chart")
            self.page.wait("!document.querySelector('#tip').hidden", 3) if kind in ("lines", "heatmap") else None
            self.page.focus(f"{at} svg.chart")
            for key in keys:
                self.page.key(key)
            self.assertEqual(self.page.text("#tip .tip-title"), expected)
            self.assertTrue(self.page.text("#live").startswith(expected))
            self.page.key("Escape")
            self.assertTrue(self.page("document.querySelector('#tip').hidden"))

    def alphas(self, canvas):
        return self.page(f"""(() => {{ const c = document.querySelector({json.dumps(canvas)});
            const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            return [c.width, c.height, ...d.filter((_, i) => i % 4 === 3)]; }})()""")

    def test_heatmap_cells_are_one_canvas(self):
        at, section = self.section("heatmap")
        values, canvas = sum(section["values"], []), f"{at} canvas.cells"
        size = [len(section["columns"]["labels"]), len(section["rows"]["labels"])]
        self.assertEqual(self.alphas(canvas), size + [0 if v is None else int(255 * v + .5) for v in values])
        # Nothing per cell but where one is missing, and the canvas keeps its place at every width.
        nodes = f"document.querySelectorAll('{at} svg.chart *').length"
        outline = f"""(() => {{ const r = document.querySelector("{at} .outline").getBoundingClientRect(),
            c = document.querySelector("{canvas}").getBoundingClientRect(); return [r.left - c.left, r.top - c.top]; }})()"""
        for width in (900, 1280):
            self.page.resize(width)
            self.assertLess(self.page(nodes), len(values) / 2)
            self.page.focus(f"{at} svg.chart")
            self.page.key("Home")
            for there in self.page(outline):
                self.assertAlmostEqual(there, -1, delta=1.5)
            self.page.key("Escape")

    def test_masks_follow_the_slider(self):
        at, section = self.section("masks")
        canvas = f"{at} .layer:nth-child(3) .mask:nth-child(2) canvas"
        size = [section["columns"], section["rows"]]
        dense = size + [255] * size[0] * size[1]
        self.page.focus(f"{at} input[type=range]")
        self.page.key("Home")
        self.assertEqual(self.alphas(canvas), dense)
        self.assertEqual(self.page.text(f"{at} .layer:nth-child(3) .mask:nth-child(2) .mask-state"), "dense")
        self.page.key("ArrowRight", 5)
        self.assertEqual(self.page.text(f"{at} output"), "step 5 (6 of 20)")
        self.assertEqual(self.alphas(canvas), size + list(base64.b64decode(section["images"]["5/2/1"])))
        self.assertEqual(self.page.text(f"{at} .layer:nth-child(3) .note"), section["notes"]["5/2"])
        self.assertEqual(self.alphas(f"{at} .layer:nth-child(6) .mask:nth-child(2) canvas"), dense)
        self.page.click(f"{at} button[aria-label='Next step']")
        self.assertEqual(self.alphas(canvas), size + list(base64.b64decode(section["images"]["6/2/1"])))

    def test_masks_enlarge(self):
        at, section = self.section("masks")
        self.page.focus(f"{at} .mask-box > .transport input")
        self.page.key("Home")
        self.page.focus(f"{at} .layer:nth-child(1) .mask")
        self.page.key("ArrowRight")
        self.page.key("ArrowDown")
        self.assertEqual(self.page("document.activeElement.getAttribute('aria-label')"), "Layer 1, head 1, dense: enlarge")
        self.page.key("Enter")
        self.assertTrue(self.page(f"document.querySelector('{at} dialog').open"))
        self.page.key("ArrowRight", 4)
        self.assertEqual(self.page.text(f"{at} dialog h3"), "Layer 1, head 1, step 4")
        self.assertEqual(self.alphas(f"{at} dialog canvas")[2:], list(base64.b64decode(section["images"]["4/1/1"])))
        self.page.hover(f"{at} dialog canvas")
        self.assertRegex(self.page.text(f"{at} .reading"), r"query block 18, key block 18: \d+ % kept")
        self.page.screenshot(ARGS.artefacts / "mask-dialog.png", full=False)
        self.page.key("Escape")
        self.assertFalse(self.page(f"document.querySelector('{at} dialog').open"))
        self.assertEqual(self.page("document.activeElement.className"), "mask")

    def shows(self, at, clip, frame):
        """Whether the clip's canvas is this frame of its sprite sheet."""
        return self.page(f"""(async () => {{
            const section = JSON.parse(document.getElementById("report-data").textContent).sections.find((s) => s.kind === "player");
            const sheet = new Image(), {{width, height}} = section, {{columns, image}} = section.clips[{clip}];
            sheet.src = image;
            await sheet.decode();
            const context = new OffscreenCanvas(width, height).getContext("2d");
            context.drawImage(sheet, -({frame} % columns) * width, -Math.floor({frame} / columns) * height);
            const other = document.querySelectorAll("{at} canvas")[{clip}].getContext("2d").getImageData(0, 0, width, height).data;
            return context.getImageData(0, 0, width, height).data.every((v, i) => v === other[i]);
        }})()""")

    def test_player_moves_all_clips(self):
        at, section = self.section("player")
        sums = f"""[...document.querySelectorAll("{at} canvas")].map((c) => c.getContext("2d").getImageData(0, 0, c.width,
            c.height).data.reduce((h, v) => (h * 31 + v) % 1000000007, 7))"""
        self.page.focus(f"{at} input[type=range]")
        self.page.key("Home")
        first = self.page(sums)
        self.page.click(f"{at} button[aria-label='Next frame']")
        self.assertEqual(self.page.text(f"{at} output"), "frame 1 (2 of 32)")
        second = self.page(sums)
        self.assertTrue(all(a != b for a, b in zip(first, second)))
        self.page.key("ArrowLeft")  # on the button
        self.assertEqual(self.page(sums), first)
        self.page.focus(f"{at} input[type=range]")
        self.page.key("End")
        self.assertEqual(self.page.text(f"{at} output"), "frame 31 (32 of 32)")
        for i in range(len(section["clips"])):
            self.assertTrue(self.shows(at, i, 31))
        self.page.key("ArrowLeft", 12)
        self.assertTrue(self.shows(at, 1, 19))
        self.assertFalse(self.shows(at, 1, 18))
        self.page.key("Home")
        self.page.click(f"{at} button[aria-label=Play]")
        self.page.wait(f"Number(document.querySelector('{at} input[type=range]').value) >= 3", 5)
        self.page.click(f"{at} button[aria-label=Pause]")
        stopped = self.page.text(f"{at} output")
        time.sleep(0.15)
        self.assertEqual(self.page.text(f"{at} output"), stopped)

    def test_player_shows_differences(self):
        at, section = self.section("player")
        mean = f"""[...document.querySelectorAll("{at} canvas")].map((c) => c.getContext("2d").getImageData(0, 0, c.width,
            c.height).data.filter((_, i) => i % 4 < 3).reduce((a, b) => a + b) / c.width / c.height / 3)"""
        before = self.page(mean)
        self.page.click(f"{at} .check input")
        after = self.page(mean)
        self.assertEqual(after[0], before[0])
        self.assertTrue(after[1] < after[2] < before[2], (before, after))
        self.page.click(f"{at} .check")
        self.assertEqual(self.page(mean), before)

    def test_tab_reaches_everything(self):
        self.page("window.scrollTo(0, 0); document.activeElement.blur(); window.reached = new Set()")
        expected = self.page(f"{REACHABLE}.length")
        self.assertGreater(expected, 30)
        for _ in range(expected + 3):
            self.page.key("Tab")
            self.page("window.reached.add(document.activeElement)")
        missing = self.page(f"{REACHABLE}.filter((n) => !window.reached.has(n)).map((n) => n.outerHTML.slice(0, 120))")
        self.assertEqual(missing, [])
        self.page.focus("nav a")
        self.page.key("Tab")
        outline = self.page("getComputedStyle(document.activeElement).outlineStyle")
        self.assertEqual(outline, "solid")

    def test_everything_has_a_name(self):
        nodes = self.page.call("Accessibility.getFullAXTree")["nodes"]
        nameless = []
        for node in nodes:
            focusable = any(p["name"] == "focusable" and p["value"].get("value") for p in node.get("properties", []))
            role = node.get("role", {}).get("value")
            if focusable and not node.get("ignored") and role not in ("RootWebArea", "main", "Main"):
                if not node.get("name", {}).get("value"):
                    nameless.append(role)
        self.assertEqual(nameless, [])


class LooksTest(unittest.TestCase):
    def test_widths_and_themes(self):
        for width in (1280, 1024, 400):
            page = Page(BROWSER, ARGS.artefacts / "sample.html", width)
            # Only on smaller screens do tables scroll sideways; their first column leaves room for the others.
            for box in page("[...document.querySelectorAll('.scroll > table')].map((t) => [t.scrollWidth, t.parentElement.clientWidth, "
                            "t.tBodies[0].rows[0].cells[0].offsetWidth])"):
                self.assertLessEqual(box[2] if width == 400 else box[0], 0.5 * width if width == 400 else box[1])
            page.focus(".mask-box > .transport input")
            page.key("ArrowRight", 6)
            page.focus(".player-box input")
            page.key("ArrowRight", 9)
            page("document.activeElement.blur()")
            for dark in (False, True):
                page.theme(dark)
                page.settle()
                name = f"{width}-{'dark' if dark else 'light'}"
                with self.subTest(name):
                    self.assertLessEqual(page("document.scrollingElement.scrollWidth"), width)
                    self.assertEqual(page(LOW_CONTRAST), [])
                    page.screenshot(ARGS.artefacts / f"{name}.png")
            self.assertEqual(page.problems(), [])
            page.close()

    def test_theme_toggle(self):
        page = Page(BROWSER, ARGS.artefacts / "sample.html")
        paper = "getComputedStyle(document.body).backgroundColor"
        ink = """(() => { const d = document.querySelector(".mask canvas").getContext("2d").getImageData(0, 0, 1, 1).data;
            return [...d]; })()"""
        light, dark_ink = page(paper), page(ink)
        self.assertEqual(page.text("#theme"), "Dark theme")
        page.click("#theme")
        self.assertEqual(page.text("#theme"), "Light theme")
        self.assertNotEqual(page(paper), light)
        self.assertNotEqual(page(ink), dark_ink)
        page.focus(".mask-box > .transport input")
        page.key("ArrowRight", 6)
        page.focus(".player-box input")
        page.key("ArrowRight", 9)
        pdf = base64.b64decode(page.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])
        self.assertTrue(pdf.startswith(b"%PDF"))
        (ARGS.artefacts / "print.pdf").write_bytes(pdf)
        self.assertNotEqual(page(paper), light)  # printing leaves the theme as it was
        page.focus("#theme")
        page.key("Enter")
        self.assertEqual(page(paper), light)
        page.close()

    def test_nothing_leaves_the_page(self):
        page = Page(BROWSER, ARGS.artefacts / "sample.html")
        for attempt in ("fetch('http://127.0.0.1:9/a').catch(() => 0)", "new Image().src = 'http://127.0.0.1:9/b'",
                        "document.body.append(Object.assign(document.createElement('iframe'), {src: 'http://127.0.0.1:9/c'}))"):
            refused = page(f"""new Promise((done) => {{
                document.addEventListener("securitypolicyviolation", () => done(true), {{once: true}});
                setTimeout(() => done(false), 3000); {attempt}; }})""")
            self.assertTrue(refused, attempt)
        page.close()

    def test_without_javascript(self):
        page = Page(BROWSER, ARGS.artefacts / "sample.html")
        page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.call("Page.reload")
        page.wait("document.querySelector('noscript p')?.checkVisibility() === true")
        self.assertIn("JavaScript", page.text("noscript"))
        page.close()

    def test_hostile_data(self):
        path = ARGS.artefacts / "hostile.html"
        data = data_of(path)
        for width in (1280, 400):
            page = Page(BROWSER, path, width)
            self.assertEqual(page.problems(), [])
            self.assertIsNone(page("window.broken"))
            self.assertEqual(page("document.querySelectorAll('main script, main img, main iframe').length"), 0)
            self.assertEqual(page.text("h1"), data["title"])
            self.assertEqual(page.text(".command"), data["command"])
            self.assertLessEqual(page("document.scrollingElement.scrollWidth"), width)
            lines = page("[...document.querySelectorAll('.problem')].map((n) => n.textContent)")
            broken = [s for s in data["sections"] if not isinstance(s, dict) or s.get("title", "").startswith("broken")]
            self.assertEqual(len(lines), len(broken))
            self.assertTrue(all(re.fullmatch(r"This section cannot be shown: [^\n]{10,120}\.", l) for l in lines), lines)
            self.assertEqual(page("document.querySelectorAll('section').length"), len(data["sections"]))
            self.assertEqual(page.text(".layer:nth-child(2) .mask:nth-child(1) .mask-state"), "unreadable")
            self.assertIn("cannot be read", page.text(".clip:nth-child(2) figcaption"))
            page.screenshot(ARGS.artefacts / f"hostile-{width}.png")
            page.close()


def main():
    global ARGS, BROWSER
    parser = argparse.ArgumentParser()
    parser.add_argument("--report-sample", required=True, help="the program that writes the pages")
    parser.add_argument("--artefacts", required=True, type=lambda p: pathlib.Path(p).resolve())
    parser.add_argument("--browser", help="a Chromium (default: the first one installed)")
    ARGS, rest = parser.parse_known_args()
    binary = ARGS.browser or find_chromium()
    if not binary:
        print(f"skipped: none of {', '.join(NAMES)} is installed")
        return SKIP
    shutil.rmtree(ARGS.artefacts, ignore_errors=True)
    subprocess.run([ARGS.report_sample, ARGS.artefacts], check=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        BROWSER = Browser(binary, home)
        try:
            return 0 if unittest.main(argv=sys.argv[:1] + rest, exit=False).result.wasSuccessful() else 1
        finally:
            BROWSER.close()


if __name__ == "__main__":
    sys.exit(main())
