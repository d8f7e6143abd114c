#!/usr/bin/env python3
"""Parity of the small shipped model: diffusers' WanTransformer3DModel and UniPC with transformers' UMT5 against
`lacuna generate`, same noise.

f32: relative L2 of the latents <= 1e-3. bf16 in lacuna against f32 in torch: PSNR of the frames >= 35 dB.

Needs Python packages that the build never does: torch, diffusers, transformers, pillow.
Usage: tools/parity/shapes.py [--model assets/lacuna-shapes] [--lacuna build/release/lacuna] [--work out/parity]
"""
import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from PIL import Image
from safetensors.numpy import load_file
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

PROMPT = "a big red circle moves left over a striped brown and navy background"
SEED = 7


def embed(model, tokenizer, prompt, length):
    """[1, length, text_dim], zero past the prompt."""
    ids = torch.tensor([tokenizer.encode(prompt)[:length]])
    context = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return torch.nn.functional.pad(context, (0, 0, 0, length - ids.shape[1]))


@torch.no_grad()
def reference(folder, defaults, steps):
    """Latents [1, C, T, h, w] the way WanPipeline makes them."""
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32).eval()
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer" / "tokenizer.json"))
    scheduler = UniPCMultistepScheduler.from_pretrained(folder / "scheduler")
    length = json.loads((folder / "transformer" / "config.json").read_text())["text_len"]
    given, free = (embed(encoder, tokenizer, text, length) for text in (PROMPT, defaults.get("negative_prompt", "")))
    shape = (1, transformer.config.in_channels, defaults["frames"], defaults["height"] // 8, defaults["width"] // 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        run = lambda context: transformer(latents, t[None], context, return_dict=False)[0]
        base = run(free)
        velocity = base + defaults["guidance"] * (run(given) - base)
        latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
    return latents.numpy()


def decode(folder, latents):
    """Frames [T, H, W, 3] in [0, 255] by the linear autoencoder's definition."""
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    z = latents[0].transpose(1, 2, 3, 0) * vae["scale"]
    patches = z @ vae["basis"] + vae["mean"]
    t, h, w, _ = patches.shape
    frames = patches.reshape(t, h, w, 3, 8, 8).transpose(0, 1, 4, 2, 5, 3).reshape(t, h * 8, w * 8, 3)
    return (frames.clip(-1, 1) + 1) * 127.5


def ours(args, dtype, steps):
    """(latents, frames) of `lacuna generate`."""
    latents_file = args.work / f"shapes-{dtype}.latents.safetensors"
    pattern = args.work / f"shapes-{dtype}-%04d.png"
    subprocess.run([args.lacuna, "generate", "--model", str(args.model), "--prompt", PROMPT, "--seed", str(SEED),
                    "--steps", str(steps), "--dtype", dtype, "--no-prompt-cache", "--latents", str(latents_file),
                    "-o", str(pattern)], check=True)
    frames = []
    while (file := pathlib.Path(str(pattern) % (len(frames) + 1))).exists():
        frames.append(np.asarray(Image.open(file), dtype=np.float64))
    return load_file(latents_file)["latents"], np.stack(frames)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="assets/lacuna-shapes", type=pathlib.Path)
    parser.add_argument("--lacuna", default="build/release/lacuna")
    parser.add_argument("--work", default="out/parity", type=pathlib.Path)
    parser.add_argument("--steps", default=None, type=int, help="sampling steps (default: the model's)")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    defaults = json.loads((args.model / "model_index.json").read_text())["lacuna_defaults"]
    steps = args.steps or defaults["steps"]
    expected = reference(args.model, defaults, steps)
    latents, _ = ours(args, "f32", steps)
    error = float(np.linalg.norm(latents.reshape(expected.shape) - expected) / np.linalg.norm(expected))
    frames = decode(args.model, expected)
    _, rounded = ours(args, "bf16", steps)
    psnr = float(10 * np.log10(255 ** 2 / np.mean((rounded - frames) ** 2)))
    ok = error <= 1e-3 and psnr >= 35
    print(json.dumps({"steps": steps, "latents_rel_l2_f32": error, "frames_psnr_bf16": psnr, "ok": ok}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
