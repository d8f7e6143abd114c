"""Several processes that make one video, started as a user starts them. Exit 77 (skipped) without MPI."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import harness
from harness import LACUNA, TINY, lacuna

MPIRUN = shutil.which("mpirun")
# As many as are asked for, on any machine, and in a container, where the user is root.
ENV = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_WAIT_POLICY": "passive"}


def command(count, *args):
    return [MPIRUN, "--oversubscribe", "--bind-to", "none", "-n", str(count), LACUNA, *map(str, args)]


def together(count, *args):
    return subprocess.run(command(count, *args), capture_output=True, text=True, timeout=120, env=ENV)


def ours(text):
    """What lacuna says, without what the launcher adds."""
    return [line for line in text.splitlines() if line.startswith("lacuna:")]


class Processes(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def test_the_video_of_one_process(self):
        run = [*TINY, "-t", "1", "-a", "xattention:block=16,stride=4,top_p=0.6,refresh=drift"]
        alone = lacuna("generate", *run, "-o", self.folder / "alone.y4m", "--trace", self.folder / "alone.json")
        self.assertEqual(alone.returncode, 0, alone.stderr)
        four = together(4, "generate", *run, "-o", self.folder / "four.y4m", "--trace", self.folder / "four.json")
        self.assertEqual(four.returncode, 0, four.stderr)
        self.assertEqual((self.folder / "four.y4m").read_bytes(), (self.folder / "alone.y4m").read_bytes())
        self.assertIn("4 processes, 2 for each branch of guidance", four.stderr)
        self.assertEqual(four.stdout.count("tokens, attention"), 1)
        calls = [[(c["step"], c["layer"], c["branch"], c["num_heads"], c["heads_refreshed"], round(c["qk_density"], 9))
                  for c in json.loads((self.folder / name).read_text())["calls"]] for name in ("alone.json", "four.json")]
        self.assertEqual(*calls)

    def test_what_was_stopped_goes_on(self):
        # Some seconds of work, so that the signal comes before its end.
        run = [*TINY, "--frames", "33", "--steps", "1000", "-t", "1"]
        latents = self.folder / "v.mp4.latents.safetensors"
        process = subprocess.Popen(command(2, "generate", *run, "-o", self.folder / "v.mp4"), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True, env=ENV)
        deadline = time.monotonic() + 60
        while not latents.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        self.assertNotEqual(process.returncode, 0)
        self.assertFalse((self.folder / "v.mp4").exists())
        self.assertTrue(latents.exists(), said)
        # Dense attention carries nothing, so any number of processes goes on from it.
        rest = lacuna("generate", "--synthetic", "tiny", "--no-prompt-cache", "--resume", latents, "--no-decode", "-q", "-t", "1")
        self.assertEqual(rest.returncode, 0, rest.stderr)

    def test_an_error_of_all_is_told_once(self):
        for args, status, told in [
                (["generate", *TINY, "-o", self.folder / "none" / "v.mp4"], 1, "does not exist"),
                (["generate", *TINY, "--attention", "nothing"], 1, "nothing"),
                (["info"], 2, "start it without mpirun"),
                (["generate", "--nonsense"], 2, "not expected: --nonsense"),
                (["generate", *TINY, "--record", self.folder / "q.safetensors"], 1, "expected one process")]:
            run = together(2, *args)
            self.assertEqual(run.returncode, status, run.stderr)
            self.assertEqual(len(ours(run.stderr)), 1, run.stderr)
            self.assertIn(told, ours(run.stderr)[0])

    def test_help_is_given_once(self):
        run = together(2, "generate", "--help")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(run.stdout.count("Usage:"), 1)

    def test_bench(self):
        run = together(2, "bench", "generate", "--synthetic", "tiny", "-W", "96", "-H", "64", "--frames", "9", "--steps", "1",
                       "-a", "dense", "-a", "radial", "--json")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual([json.loads(line)["attention"] for line in run.stdout.splitlines()], ["dense", "radial"])


if __name__ == "__main__":
    if MPIRUN is None or "has no MPI" in together(2, "generate", *TINY, "--dry-run").stderr:
        print("skipped: no MPI")
        raise SystemExit(77)
    harness.main()
