#!/usr/bin/env python3
"""Golden numbers of the video decoders of Mochi 1 and HunyuanVideo: diffusers' classes in fp32 on weights and latents
that are functions of their names (docs/formats.md, "Hash"). Writes the cases of module `vae` into
assets/goldens/joint.json and leaves the others there, TAEHV's too, as they are.

Needs Python packages that the build never does: torch, diffusers.
Usage: tools/parity/vae_goldens.py [--goldens assets/goldens/joint.json]
"""
import argparse
import json
import pathlib

import numpy as np
import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLMochi

SOURCE = "upstream modules (diffusers, transformers) run in fp32 on hash weights"
MOCHI = {"_class_name": "AutoencoderKLMochi", "latent_channels": 4, "out_channels": 3,
         "encoder_block_out_channels": [32, 32, 32, 32], "decoder_block_out_channels": [32, 32, 64, 64],
         "layers_per_block": [1, 1, 2, 1, 2], "temporal_expansions": [1, 2, 3], "spatial_expansions": [2, 2, 2],
         "latents_mean": [0.1, -0.2, 0.3, -0.4], "latents_std": [1.5, 0.5, 2.0, 1.0], "scaling_factor": 1.0}
HUNYUAN = {"_class_name": "AutoencoderKLHunyuanVideo", "latent_channels": 4, "out_channels": 3,
           "block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4,
           "up_block_types": ["HunyuanVideoUpBlock3D"] * 4, "scaling_factor": 0.476986,
           "spatial_compression_ratio": 8, "temporal_compression_ratio": 4, "mid_block_add_attention": True}
CLASSES = {"AutoencoderKLMochi": AutoencoderKLMochi, "AutoencoderKLHunyuanVideo": AutoencoderKLHunyuanVideo}
LATENTS = {"mochi": {"hash": "z:mochi", "shape": [1, 4, 3, 4, 5]},
           "hunyuan": {"hash": "z:hunyuan", "shape": [1, 4, 8, 4, 5]}}
TILING = {"tile": 24, "stride": 16}
CASES = [  # name, config, latents, latent frames decoded, tiling
    ("mochi-vae-decode", MOCHI, "mochi", 3, None),
    ("mochi-vae-decode-1frame", MOCHI, "mochi", 1, None),
    ("mochi-vae-tiled", MOCHI, "mochi", 2, TILING),
    ("hunyuan-vae-decode", HUNYUAN, "hunyuan", 4, None),  # as long as diffusers decodes in one piece
    ("hunyuan-vae-decode-1frame", HUNYUAN, "hunyuan", 1, None),
    ("hunyuan-vae-framewise", HUNYUAN, "hunyuan", 8, None),
    ("hunyuan-vae-framewise-last-empty", HUNYUAN, "hunyuan", 7, None),  # the third piece gives no frame
    ("hunyuan-vae-tiled", HUNYUAN, "hunyuan", 6, TILING),
]


def uniform(name, count):
    """u of docs/formats.md for elements 0 .. count - 1, f64."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(h) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return 2.0 * ((z >> np.uint64(40)).astype(np.float64) / 2**24) - 1.0


def weight(name, shape):
    last = name.rsplit(".", 1)[-1]
    if last == "bias":
        offset, scale = 0.0, 0.1
    elif len(shape) == 1:
        offset, scale = 1.0, 0.1
    else:
        offset, scale = 0.0, (3.0 / np.prod(shape[1:])) ** 0.5
    values = offset + scale * uniform("w:" + name, int(np.prod(shape)))
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def autoencoder(config):
    model = CLASSES[config["_class_name"]](**{k: v for k, v in config.items() if k != "_class_name"}).eval()
    model.load_state_dict({name: weight(name, tuple(t.shape)) for name, t in model.state_dict().items()})
    return model


@torch.no_grad()
def decode(config, latents, frames, tiling):
    """[1, 3, F, H, W], clamped as upstream's video processor does."""
    model = autoencoder(config)
    if tiling is not None:
        model.enable_tiling(tile_sample_min_height=tiling["tile"], tile_sample_min_width=tiling["tile"],
                            tile_sample_stride_height=tiling["stride"], tile_sample_stride_width=tiling["stride"])
    shape = latents["shape"]
    z = (3.0**0.5 * uniform(latents["hash"], int(np.prod(shape)))).astype(np.float32).reshape(shape)
    video = model.decode(torch.from_numpy(z[:, :, :frames]).contiguous(), return_dict=False)[0]
    clamped = (video.abs() > 1).double().mean().item()
    return video.clamp(-1, 1).double().numpy(), clamped


def golden(name, config, latents, frames, tiling):
    y, clamped = decode(config, LATENTS[latents], frames, tiling)
    flat = y.reshape(-1)
    rms = float(np.sqrt(np.mean(flat**2)))
    print(f"{name}: {list(y.shape)}, rms {rms:.9g}, {clamped:.2%} clamped")
    case = {"name": name, "module": "vae", "config": config, "weights": "w:", "mode": "decode",
            "inputs": {"latents": LATENTS[latents]}}
    if frames != LATENTS[latents]["shape"][2]:
        case["latent_frames"] = frames
    if tiling is not None:
        case["tiling"] = tiling
    places = [0, 1, 2, 3, flat.size // 3, flat.size // 2, flat.size - 1]
    case["expect"] = {"shape": list(y.shape), "tag": name, "rms": float(f"{rms:.9g}"),
                      "probe": float(f"{np.dot(flat, uniform('probe:' + name, flat.size)):.9g}"),
                      "values": {str(i): float(f"{flat[i]:.7g}") for i in places}}
    return case


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goldens", default="assets/goldens/joint.json", type=pathlib.Path)
    path = parser.parse_args().goldens
    file = {"schema": "lacuna-goldens", "version": 1, "source": SOURCE, "cases": []}
    if path.exists():
        file = json.loads(path.read_text())
    file["cases"] = [case for case in file["cases"]
                     if case["module"] != "vae" or case["config"]["_class_name"] not in CLASSES]
    file["cases"] += [golden(*case) for case in CASES]
    path.write_text(json.dumps(file, indent=1) + "\n")


if __name__ == "__main__":
    main()
