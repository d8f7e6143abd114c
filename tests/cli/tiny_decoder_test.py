#!/usr/bin/env python3
"""A tiny decoder (--tae) on the small model that ships: its pictures mean nothing here, what is said about them does."""
import json
import pathlib
import random
import shlex
import struct
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from harness import CliTest, lacuna, main


def write_tiny_decoder(path, latent_channels, width=8):
    """As published ones are written, but for the sizes: one frame of one latent frame, encoder's tensors beside."""
    shapes = {"decoder.1": (width, latent_channels, 3, 3), "decoder.22": (3, width, 3, 3), "encoder.0": (4, 3, 3, 3)}
    for first in (3, 9, 15):
        for block in range(first, first + 3):
            for layer in (0, 2, 4):
                shapes[f"decoder.{block}.conv.{layer}"] = (width, width * (2 if layer == 0 else 1), 3, 3)
    names = {f"{layer}.{what}": shape if what == "weight" else shape[:1]
             for layer, shape in shapes.items() for what in ("weight", "bias")}
    for first in (7, 13, 19):
        names |= {f"decoder.{first}.conv.weight": (width, width, 1, 1), f"decoder.{first + 1}.weight": (width, width, 3, 3)}
    header, body, some = {}, b"", random.Random(0)
    for name, shape in names.items():
        count, fan = 1, 1
        for axis, size in enumerate(shape):
            count, fan = count * size, fan * (size if axis else 1)
        data = struct.pack(f"<{count}f", *(some.uniform(-1, 1) * (1.5 / fan) ** 0.5 for _ in range(count)))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


class TinyDecoderTest(CliTest):
    def setUp(self):
        super().setUp()
        self.tae = self.dir / "tae w.safetensors"
        write_tiny_decoder(self.tae, 32)
        self.words = ["-W", 64, "-H", 48, "--frames", 4, "--steps", 2, "--no-prompt-cache", "-p", "a big red circle"]

    def test_it_makes_the_picture_and_the_clip_says_so(self):
        made = lacuna("generate", *self.words, "--tae", self.tae, "--latents", self.dir / "l.st", "-o", self.dir / "a.png")
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertIn(f"decoder: {self.tae}, fast and less exact", made.stderr)
        told = json.loads(lacuna("info", self.dir / "a-0001.png", "--json").stdout)
        self.assertEqual(told["request"]["tae"], str(self.tae))
        again = [*shlex.split(told["command"])[1:], "--no-prompt-cache", "-o", self.dir / "b.png"]
        self.assertEqual(lacuna(*again).returncode, 0)
        # Latents do not depend on it: the other decoder takes them as well, and says nothing of this one.
        self.assertEqual(lacuna("decode", self.dir / "l.st", "-o", self.dir / "c.png").returncode, 0)
        fast = lacuna("decode", self.dir / "l.st", "--taesd", self.tae, "-o", self.dir / "d.png")
        self.assertEqual(fast.returncode, 0, fast.stderr)
        frames = [(self.dir / f"{name}-0003.png").read_bytes() for name in "abcd"]
        self.assertEqual(frames[0], frames[1])
        self.assertEqual(frames[0], frames[3])
        self.assertNotEqual(frames[0], frames[2])
        self.assertNotIn("tae", json.loads(lacuna("info", self.dir / "c-0001.png", "--json").stdout)["request"])

    def test_info_names_it_with_its_licence(self):
        text = lacuna("info", self.tae)
        self.assertEqual(text.returncode, 0, text.stderr)
        self.assertIn("TAEHV, 32 latent channels, 1 frames of 8 x 8 pixels", text.stdout)
        self.assertIn("MIT", text.stdout)
        self.assertIn("no released model", text.stdout)
        other = self.dir / "taew.safetensors"
        write_tiny_decoder(other, 16)
        told = json.loads(lacuna("info", other, "--json").stdout)
        self.assertEqual(told["latent_channels"], 16)
        self.assertIn("wan2.1-1.3b", told["fits"])
        self.assertIn("hunyuanvideo", told["fits"])
        beside = lacuna("info", "--tae", self.tae)
        self.assertIn(f"decoder      {self.tae}, TAEHV", beside.stdout)

    def test_refusals(self):
        names = [self.tae.name]
        out = ["-o", self.dir / "x.png"]
        self.fails(2, "generate", "--synthetic", "tiny", *self.words, "--tae", self.tae, *out, says="--synthetic", leaves=names)
        vae = pathlib.Path(__file__).resolve().parents[2] / "assets/lacuna-shapes/vae/diffusion_pytorch_model.safetensors"
        self.fails(2, "generate", *self.words, "--tae", vae, *out, says="--tae: .* holds none, expected a TAEHV", leaves=names)
        other = self.dir / "other.safetensors"
        write_tiny_decoder(other, 16)
        names.append(other.name)
        self.fails(1, "generate", *self.words, "--tae", other, *out, says="the decoder has 16 latent channels, the transformer 32",
                   leaves=names)
        pickle = self.dir / "taew2_1.pth"
        pickle.write_bytes(b"PK")
        names.append(pickle.name)
        self.fails(1, "generate", *self.words, "--tae", pickle, *out, says="pickled PyTorch file.*torch.load", leaves=names)
        self.fails(1, "generate", *self.words, "--tae", self.tae, "--vae-tile", "exact", "--vae-tile-size", 32, *out,
                   says="exact for TAEHV, expected off or blend", leaves=names)


if __name__ == "__main__":
    main()
