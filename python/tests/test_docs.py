# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/python.md, run as they stand; the one for diffusers is run by test_diffusers.py."""
import pathlib
import re

TEXT = (pathlib.Path(__file__).parents[2] / "docs/python.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def test_examples_run(capsys):
    assert len(EXAMPLES) == 5
    names = {}
    for example in EXAMPLES[:4]:
        exec(example, names)
    printed = capsys.readouterr().out
    assert "'version'" in printed and "density" in printed and "dense-steps" in printed
