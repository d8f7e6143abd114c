"""What the tests of the command line share."""
import argparse
import json
import os
import pathlib
import pty
import struct
import subprocess
import sys
import tempfile
import threading
import unittest
import zlib

_parser = argparse.ArgumentParser()
_parser.add_argument("--lacuna", required=True, help="the program to test")
_args, _rest = _parser.parse_known_args()
LACUNA = _args.lacuna
TINY = ["--synthetic", "tiny", "-W", "96", "-H", "64", "--frames", "9", "--steps", "3", "--no-prompt-cache",
        "-p", "a red ball"]


def lacuna(*args, **kwargs):
    return subprocess.run([LACUNA, *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs)


def write_png(path, comment):
    """A picture of one pixel that says so."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)) +
                     chunk(b"tEXt", b"Comment\0" + comment.encode()) + chunk(b"IDAT", zlib.compress(bytes(4))) + chunk(b"IEND", b""))


def _read(terminal):
    """What was written to it since; nothing once nobody can write to it any more."""
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux says so
        return b""


def stopped(args, draws, sent, **kwargs):
    """lacuna() on a terminal, with the signal `sent` once its progress bar was drawn so many times: that meets neither the start
    nor, where much is left to do, the end. stderr is what the terminal showed. None for `sent` takes the terminal away."""
    ours, theirs = pty.openpty()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([LACUNA, *map(str, args)], stdout=out, stderr=theirs, **kwargs)
        os.close(theirs)
        limit = threading.Timer(300, process.kill)
        limit.start()
        shown, told = b"", False
        while data := _read(ours):
            shown += data
            if not told and shown.count(b"\033[K") >= draws:  # the end of a line that is drawn over
                if sent is None:
                    break
                process.send_signal(sent)
                told = True
        os.close(ours)
        status = process.wait()
        limit.cancel()
        out.seek(0)
        return subprocess.CompletedProcess(args, status, out.read(), shown.decode())


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

    def lora(self, name, width=256, rank=4, scale=0.05, extra=()):
        """LoRA in f32 of the first layer's q of the tiny model."""
        stem = "diffusion_model.blocks.0.self_attn.q"
        tensors = {f"{stem}.lora_down.weight": (rank, width), f"{stem}.lora_up.weight": (width, rank), **dict(extra)}
        header, data = {}, b""
        for tensor, shape in tensors.items():
            count = shape[0] * shape[-1] if len(shape) > 1 else shape[0]
            values = struct.pack(f"<{count}f", *(scale * (i * 7919 % 13 - 6) for i in range(count)))
            header[tensor] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
            data += values
        text = json.dumps(header).encode()
        path = self.dir / name
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        return path


def main():
    unittest.main(argv=[sys.argv[0], *_rest], verbosity=1)
