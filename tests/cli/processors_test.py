#!/usr/bin/env python3
"""The command on processors that this machine is not, by emulation: one without AVX-512 and AMX runs it, one without AVX2 is
told so in one line. Exit 77 (skipped) where qemu-user is missing."""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
SKIP = 77


def run(*words):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LACUNA_", "QEMU_"))}
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=240,
                          env=dict(env, LACUNA_THREADS="1", OMP_NUM_THREADS="1"))


def lacuna_on(processor, *args):
    return run(QEMU, "-cpu", processor, LACUNA, *args)


class Processors(unittest.TestCase):
    def test_avx2_is_enough(self):
        # One recorded call: the emulator needs a minute for the matrix products of a generation.
        with tempfile.TemporaryDirectory() as folder:
            record = os.path.join(folder, "qkv.safetensors")
            made = run(LACUNA, "generate", "--synthetic", "tiny", "-W", 96, "-H", 64, "--frames", 9, "--steps", 1, "-p", "x",
                       "--no-prompt-cache", "--record", record, "--record-sites", "steps=0;layers=0", "--no-decode",
                       "--latents", os.path.join(folder, "l.safetensors"))
            self.assertEqual(made.returncode, 0, made.stderr)
            replay = ("replay", record, "-a", "xattention:block=16,stride=4,top_p=0.5", "--repeats", 1, "--json")
            here, there = run(LACUNA, *replay), lacuna_on("Haswell", *replay)
            self.assertEqual((here.returncode, there.returncode), (0, 0), here.stderr + there.stderr)
            here, there = json.loads(here.stdout), json.loads(there.stdout)
            self.assertRegex(there["backend"], "^cpu avx2,")
            for a, b in zip(here["tables"][0]["rows"], there["tables"][0]["rows"], strict=True):
                for key in ("qk_density", "recall", "rel_l1"):
                    self.assertAlmostEqual(a[key], b[key], delta=0.01, msg=key)

    def test_older_ones_are_told_in_one_line(self):
        for processor in ("SandyBridge", "Nehalem"):
            for args in (("--version",), ("generate", "-p", "x")):
                result = lacuna_on(processor, *args)
                self.assertEqual((result.returncode, result.stdout), (1, ""), (processor, result.stderr))
                lines = [line for line in result.stderr.splitlines() if not line.startswith("qemu")]
                self.assertEqual(len(lines), 1, lines)
                self.assertRegex(lines[0], "^lacuna: this processor lacks AVX2")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--lacuna", required=True)
    args, rest = parser.parse_known_args()
    LACUNA = args.lacuna
    if QEMU is None:
        print("skipped: qemu-x86_64 is not installed")
        sys.exit(SKIP)
    unittest.main(argv=[sys.argv[0], *rest], verbosity=1)
