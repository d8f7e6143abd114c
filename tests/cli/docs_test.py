#!/usr/bin/env python3
"""The documents against the program and the repository: options of commands they show, files they name."""
import os
import pathlib
import re
import shlex
import unittest

from harness import lacuna, main

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("assets/*/README.md")]
PAIRS = ("bench", )  # commands with commands of their own


class DocsTest(unittest.TestCase):
    def test_shown_options_exist(self):
        helps, seen = {}, 0
        for document in DOCUMENTS:
            for number, line in enumerate(document.read_text(encoding="utf-8").split("\n"), 1):
                if not (found := re.match(r" {4}(?:build/release/)?lacuna (.*)", line)):
                    continue
                words = shlex.split(found[1], comments=True)
                command = words[:2] if words[0] in PAIRS else words[:1]
                key = " ".join(command)
                if key not in helps:
                    helps[key] = lacuna(*command, "--help")
                    self.assertEqual(helps[key].returncode, 0, f"{document}:{number}: {key}")
                for word in (w for w in words if re.fullmatch(r"--?[A-Za-z][\w-]*", w)):
                    seen += 1
                    self.assertRegex(helps[key].stdout, rf"(?<![\w-]){word}(?![\w-])", f"{document}:{number}: {key} {word}")
        self.assertGreater(seen, 40)

    def test_links_lead_somewhere(self):
        for document in DOCUMENTS:
            for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
                self.assertTrue(os.path.exists(document.parent / target), f"{document}: {target}")

    def test_named_documents_are_here(self):
        """Comments name no document that the repository lacks."""
        here = {path.name for path in DOCUMENTS}
        for folder in ("lacuna", "bench", "cli", "tests", "tools", "scripts", "cmake"):
            for path in filter(pathlib.Path.is_file, (ROOT / folder).rglob("*")):
                if path.suffix in (".h", ".cc", ".cu", ".cuh", ".py", ".cmake", ".txt", "") and "corpus" not in path.parts:
                    text = re.sub(r"https?://\S+", "", path.read_text(encoding="utf-8", errors="replace"))
                    for name in re.findall(r"\b(\w+\.md)\b", text):
                        self.assertIn(name, here, path)


if __name__ == "__main__":
    main()
