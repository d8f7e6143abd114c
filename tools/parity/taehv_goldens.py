#!/usr/bin/env python3
"""Golden numbers of TAEHV decoders (tiny autoencoders: taew2_1, taew2_2, taehv, taem1) in fp32 on hash weights
(docs/formats.md, "Hash"). Writes the cases of class TAEHV into a file of goldens, in place of those it has.

The network is stated here again, in torch, so that widths can be small. --upstream FOLDER compares that with the modules
themselves first, at their own widths: taehv.py and taem1.py of the repositories madebyollin/taehv and madebyollin/taem1.
Usage: python3 -m tools.parity.taehv_goldens [--upstream FOLDER] [FILE]; default assets/goldens/joint.json. Needs torch.
"""
import argparse
import importlib
import json
import sys

import torch
import torch.nn.functional as F

from tools.parity import hash_tensors

WIDTHS = [256, 128, 64, 64]
TAEW21 = {"_class_name": "TAEHV", "latent_channels": 16, "patch_size": 1, "channels": WIDTHS, "time_factors": [1, 2, 2]}
VARIANTS = {"taew2_1": TAEW21, "taew2_2": TAEW21 | {"latent_channels": 48, "patch_size": 2}, "taehv": TAEW21,
            "taem1": TAEW21 | {"latent_channels": 12, "time_factors": [1, 2, 3]}}
SMALL = {"channels": [24, 20, 16, 12]}
CASES = {  # config, latents [T, h, w]
    "taehv-taew2_1": (VARIANTS["taew2_1"] | SMALL, [3, 4, 5]),
    "taehv-taew2_2": (VARIANTS["taew2_2"] | SMALL, [2, 3, 4]),
    "taehv-taehv": (VARIANTS["taehv"] | {"channels": [8, 16, 8, 20]}, [2, 5, 1]),
    "taehv-taem1": (VARIANTS["taem1"] | SMALL, [3, 3, 2]),
    "taehv-1frame": (VARIANTS["taew2_1"] | SMALL, [1, 4, 5]),
    "taehv-own-width": (VARIANTS["taew2_1"], [2, 1, 2]),
}
AMPLITUDE = 1.0


def weight(name, *shape):
    return hash_tensors.tensor(f"w:{name}", shape, *hash_tensors.weight_rule(name, shape))


def conv(x, name, c_out, bias=True, size=3):
    taps = weight(f"{name}.weight", c_out, x.shape[1], size, size)
    return F.conv2d(x, taps, weight(f"{name}.bias", c_out) if bias else None, padding=size // 2)


def block(x, name):
    """x [T, C, h, w]: each frame sees itself and the one before, of which there is none at first."""
    before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    y = torch.cat([x, before], 1)
    for layer in (0, 2, 4):
        y = conv(y, f"{name}.conv.{layer}", x.shape[1])
        y = y + x if layer == 4 else y
        y = y.relu()
    return y


@torch.no_grad()
def decode(config, latents):
    """latents [T, z, h, w] as a transformer has them -> frames [F, 3, H, W] from 0 to 1, before clamp."""
    widths = config["channels"]
    x = conv(torch.tanh(latents / 3) * 3, "decoder.1", widths[0]).relu()
    layer = 3
    for level, frames in enumerate(config["time_factors"]):
        for _ in range(3):
            x = block(x, f"decoder.{layer}")
            layer += 1
        x = F.interpolate(x, scale_factor=2)
        x = conv(x, f"decoder.{layer + 1}.conv", widths[level] * frames, bias=False, size=1)
        x = x.reshape(-1, widths[level], *x.shape[2:])
        x = conv(x, f"decoder.{layer + 2}", widths[level + 1], bias=False)
        layer += 3
    x = conv(x.relu(), "decoder.22", 3 * config["patch_size"] ** 2)
    x = F.pixel_shuffle(x, config["patch_size"])
    first = 1
    for frames in config["time_factors"]:
        first *= frames
    return x[first - 1:]


def latents_of(name, config, shape):
    z, (t, h, w) = config["latent_channels"], shape
    return hash_tensors.tensor(name, [z, t, h, w], amplitude=AMPLITUDE).transpose(0, 1)


def golden(name, config, shape):
    video = decode(config, latents_of(f"z:{name}", config, shape)).transpose(0, 1)[None] * 2 - 1
    print(f"{name}: {list(video.shape)}, {(video.abs() > 1).double().mean().item():.1%} clamped")
    video = video.clamp(-1, 1)
    return {"name": name, "module": "vae", "config": config, "weights": "w:", "mode": "decode",
            "inputs": {"latents": {"hash": f"z:{name}", "shape": [1, config["latent_channels"], *shape],
                                   "amplitude": AMPLITUDE}},
            "expect": hash_tensors.numbers(video, name, [0, 1, 2, 3, video.numel() // 3, video.numel() // 2, -1])}


@torch.no_grad()
def compare_with_upstream(folder):
    sys.path.insert(0, folder)
    for name, config in VARIANTS.items():
        if name == "taem1":
            module = importlib.import_module("taem1").TAEM1(checkpoint_path=None)
        else:
            module = importlib.import_module("taehv").TAEHV(
                checkpoint_path=None, patch_size=config["patch_size"], latent_channels=config["latent_channels"])
        hash_tensors.fill(module)
        latents = latents_of(f"z:{name}", config, [3, 3, 4])
        ours = decode(config, latents).clamp(0, 1)
        for parallel in (True, False):
            theirs = module.decode_video(latents[None], parallel=parallel, show_progress_bar=False)[0].clamp(0, 1)
            error = ((ours - theirs).norm() / theirs.norm()).item()
            print(f"{name}: {list(theirs.shape)}, relative error {error:.1e}, parallel={parallel}")
            assert ours.shape == theirs.shape and error < 1e-6, name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream")
    parser.add_argument("file", nargs="?", default="assets/goldens/joint.json")
    options = parser.parse_args()
    if options.upstream:
        compare_with_upstream(options.upstream)
    with open(options.file) as f:
        file = json.load(f)
    file["cases"] = [c for c in file["cases"] if c["module"] != "vae" or c["config"]["_class_name"] != "TAEHV"]
    file["cases"] += [golden(name, *case) for name, case in CASES.items()]
    with open(options.file, "w") as f:
        json.dump(file, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
