"""What the tests of the command line share."""
import argparse
import pathlib
import subprocess
import sys
import tempfile
import unittest

_parser = argparse.ArgumentParser()
_parser.add_argument("--lacuna", required=True, help="the program to test")
_args, _rest = _parser.parse_known_args()
LACUNA = _args.lacuna
TINY = ["--synthetic", "tiny", "-W", "96", "-H", "64", "--frames", "9", "--steps", "3", "--no-prompt-cache",
        "-p", "a red ball"]


def lacuna(*args, **kwargs):
    return subprocess.run([LACUNA, *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs)


class CliTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.dir = pathlib.Path(self.folder.name)

    def tearDown(self):
        self.folder.cleanup()

    def fails(self, status, *args, says=None, leaves=(), **kwargs):
        """Exit status, exactly one line on stderr behind any notes, nothing new in the folder."""
        result = lacuna(*args, **kwargs)
        self.assertEqual(result.returncode, status, result.stderr)
        errors = [l for l in result.stderr.splitlines() if l.startswith("lacuna:")]
        self.assertEqual(len(errors), 1, result.stderr)
        self.assertNotIn("terminate", result.stderr)
        if says:
            self.assertRegex(errors[0], says)
        self.assertEqual(sorted(p.name for p in self.dir.iterdir()), sorted(leaves))


def main():
    unittest.main(argv=[sys.argv[0], *_rest], verbosity=1)
