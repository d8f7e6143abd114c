#!/usr/bin/env python3
"""lacuna generate with pictures: a first one on a model made of the small one that ships, and made-up image-to-video."""
import json
import pathlib
import shlex
import struct
import sys
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from harness import CliTest, lacuna, main

SHAPES = pathlib.Path(__file__).resolve().parents[2] / "assets" / "lacuna-shapes"


def write_picture(path, levels, width=24, height=16):
    """One grey in each of three columns."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    row = b"\0" + b"".join(bytes([level] * (width // 3)) for level in levels)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) +
                     chunk(b"IDAT", zlib.compress(row * height)) + chunk(b"IEND", b""))


def write_model(folder):
    """Its video means nothing: the network's patches of two frames are cut to one, as a first picture needs them."""
    (folder / "transformer").mkdir(parents=True)
    for part in ("scheduler", "text_encoder", "tokenizer", "vae"):
        (folder / part).symlink_to(SHAPES / part)
    index = json.loads((SHAPES / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "expand_timesteps": True}))
    config = json.loads((SHAPES / "transformer/config.json").read_text())
    (folder / "transformer/config.json").write_text(json.dumps({**config, "patch_size": [1, 1, 1]}))
    name = "transformer/diffusion_pytorch_model.safetensors"
    data = (SHAPES / name).read_bytes()
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8:begin]), b""
    header.pop("__metadata__")
    for key, entry in header.items():
        of_tensor = data[begin + entry["data_offsets"][0]:begin + entry["data_offsets"][1]]
        if key == "patch_embedding.weight":
            entry["shape"][2] = 1
            of_tensor = b"".join(of_tensor[i:i + 2] for i in range(0, len(of_tensor), 4))
        elif key.startswith("proj_out."):
            entry["shape"][0] //= 2
            of_tensor = of_tensor[:len(of_tensor) // 2]
        entry["data_offsets"] = [len(body), len(body) + len(of_tensor)]
        body += of_tensor
    text = json.dumps(header).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + body)


class ImageTest(CliTest):
    def setUp(self):
        super().setUp()
        self.model = self.dir / "model"
        write_model(self.model)
        self.picture = self.dir / "first.png"
        write_picture(self.picture, (30, 120, 220))
        self.small = ["-W", 48, "-H", 32, "--frames", 4, "--steps", 2, "--no-prompt-cache"]
        self.words = ["--model", self.model, *self.small, "-p", "a big red circle"]

    def test_the_clip_begins_with_it_and_says_so(self):
        for name, option in (("a.png", "-i"), ("b.png", "--image"), ("c.png", "--init-img")):
            made = lacuna("generate", *self.words, option, self.picture, "--latents", self.dir / "l.st", "-o", self.dir / name)
            self.assertEqual(made.returncode, 0, made.stderr)
            self.assertIn("encoder", made.stderr)
        frames = [(self.dir / f"{name}-0001.png").read_bytes() for name in "abc"]
        self.assertEqual(frames, frames[:1] * 3)
        told = json.loads(lacuna("info", self.dir / "a-0001.png", "--json").stdout)
        self.assertEqual(told["request"]["image"], str(self.picture))
        self.assertRegex(told["request"]["image_content"], "^[0-9a-f]{16}$")
        self.assertIn(f" -i {shlex.quote(str(self.picture))} ", told["command"])
        again = [*shlex.split(told["command"])[1:], "--model", self.model, "-o", self.dir / "d.png"]
        self.assertEqual(lacuna(*again).returncode, 0)
        for frame in ("0001", "0004"):
            self.assertEqual((self.dir / f"d-{frame}.png").read_bytes(), (self.dir / f"a-{frame}.png").read_bytes())
        without = lacuna("generate", *self.words, "-o", self.dir / "e.png")
        self.assertEqual(without.returncode, 0, without.stderr)
        self.assertNotIn("encoder", without.stderr)
        self.assertNotEqual((self.dir / "e-0004.png").read_bytes(), (self.dir / "a-0004.png").read_bytes())

    def test_resume_notices_another_picture(self):
        latents, other = self.dir / "l.st", self.dir / "other.png"
        write_picture(other, (200, 10, 90))
        made = lacuna("generate", *self.words, "-i", self.picture, "--no-decode", "--latents", latents)
        self.assertEqual(made.returncode, 0, made.stderr)
        left = ["first.png", "l.st", "model", "other.png"]
        resume = ["generate", "--model", self.model, "--resume", latents, "-o", self.dir / "a.y4m"]
        self.fails(2, *resume, "-i", other, says="was made with image \".*first.png\", this command says \".*other.png\"",
                   leaves=left)
        other.replace(self.picture)
        left.remove("other.png")
        for words in ([], ["-i", self.picture]):
            self.fails(1, *resume, *words, says="content", leaves=left)
        self.picture.unlink()
        made = lacuna(*resume)
        self.assertEqual(made.returncode, 0, made.stderr)

    def test_refusals(self):
        left, out = ["first.png", "model", "words.png"], ["-o", self.dir / "a.y4m"]
        (self.dir / "words.png").write_text("a big red circle")
        self.fails(1, "generate", *self.small, "-p", "x", "-i", self.picture, *out, leaves=left,
                   says="image: .* makes videos of text only, expected a model that takes a first picture")
        self.fails(1, "generate", *self.words, "-i", self.dir / "words.png", *out, says="words.png is no picture", leaves=left)
        self.fails(1, "generate", *self.words, "-i", self.dir / "none.png", *out, says="none.png", leaves=left)
        self.fails(1, "generate", *self.words, "-i", self.dir / "none.png", "--dry-run", *out, says="none.png", leaves=left)
        self.fails(1, "generate", *self.words, "--frames", 1, "-i", self.picture, *out, says="1 frames, expected more", leaves=left)
        self.fails(2, "generate", *self.words, "-i", "", *out, says="empty, expected the name of a file", leaves=left)
        self.fails(2, "generate", *self.words, "-i", self.picture, "--latents", self.picture, *out, says="--image", leaves=left)
        calibrate = ["calibrate", "--method", "haste", "--prompts", SHAPES / "README.md", "-o", self.dir / "p.json"]
        for command in (["compare", "-a", "radial", "-p", "x"], calibrate, ["tournament", "-p", "x"], ["doctor"]):
            self.fails(1, *command, "-i", self.picture, says="makes videos of text only", leaves=left)
            self.fails(1, *command, "--synthetic", "tiny-i2v", says="image: none, .*expected one .--image", leaves=left)
        self.fails(1, "tournament", "-p", "x", "--model", self.model, *self.small, "-i", self.picture,
                   says="takes no first picture", leaves=left)
        made_up = ["generate", "--synthetic", "tiny-i2v", "-p", "x", *out]
        self.fails(1, *made_up, says="image: none", leaves=left)
        self.fails(1, *made_up, "-i", self.picture, "--end-img", self.picture, says="takes a first picture only", leaves=left)

    def test_image_to_video(self):
        words = ["--synthetic", "tiny-i2v", "-W", 64, "-H", 32, "--frames", 5, "--steps", 2, "-p", "x", "--no-prompt-cache"]
        latents = self.dir / "l.st"
        made = lacuna("generate", *words, "--first_frame", self.picture, "--latents", latents, "-o", self.dir / "a.png")
        self.assertEqual(made.returncode, 0, made.stderr)
        told = json.loads(lacuna("info", latents, "--json").stdout)
        self.assertEqual(told["request"]["image"], str(self.picture))
        self.assertNotIn("last_image", told["request"])
        self.assertEqual(lacuna("decode", latents, "--synthetic", "tiny-i2v", "-o", self.dir / "b.png").returncode, 0)
        self.assertEqual((self.dir / "b-0005.png").read_bytes(), (self.dir / "a-0005.png").read_bytes())
        compared = lacuna("compare", *words, "-i", self.picture, "-a", "radial", "--no-floor", "--json")
        self.assertEqual(compared.returncode, 0, compared.stderr)


if __name__ == "__main__":
    main()
