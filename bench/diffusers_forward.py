#!/usr/bin/env python3
"""One forward of diffusers' transformers, random weights: the time to hold `lacuna bench generate --synthetic MODEL`
against. Needs torch and diffusers.

  wan2.1-1.3b   WanTransformer3DModel at the sizes of Wan2.1-T2V-1.3B, 512 text rows
  mochi-1       MochiTransformer3DModel, 12 valid text rows of 256
  hunyuanvideo  HunyuanVideoTransformer3DModel, as many single as dual blocks, 12 valid text rows of 256

Usage: diffusers_forward.py [--model wan2.1-1.3b] [--layers N] [--frames 17] [--height 480] [--width 832] [--dtype bf16]
                            [--threads 2] [--repeats 2]
--layers runs the first N layers (HunyuanVideo: N of each kind) where the whole network does not fit into memory.
"""
import argparse
import json
import time

import diffusers
import torch

TEXT, VALID = 256, 12


def wan(layers, frames, height, width, dtype):
    # Its defaults are those of the 14B model.
    model = diffusers.WanTransformer3DModel(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960,
                                            num_layers=layers or 30)
    return model, dict(hidden_states=torch.randn(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8, dtype=dtype),
                       timestep=torch.tensor([900]), encoder_hidden_states=torch.randn(1, 512, 4096, dtype=dtype))


def joint(x, dtype):
    mask = torch.zeros(1, TEXT, dtype=torch.bool)
    mask[:, :VALID] = True
    return dict(hidden_states=x, timestep=torch.tensor([900.0]).to(dtype), encoder_attention_mask=mask,
                encoder_hidden_states=torch.randn(1, TEXT, 4096, dtype=dtype))


def mochi(layers, frames, height, width, dtype):
    model = diffusers.MochiTransformer3DModel(num_layers=layers or 48)
    return model, joint(torch.randn(1, 12, (frames - 1) // 6 + 1, height // 8, width // 8, dtype=dtype), dtype)


def hunyuan(layers, frames, height, width, dtype):
    model = diffusers.HunyuanVideoTransformer3DModel(num_layers=layers or 20, num_single_layers=layers or 40)
    inputs = joint(torch.randn(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8, dtype=dtype), dtype)
    return model, inputs | dict(pooled_projections=torch.randn(1, 768, dtype=dtype),
                                guidance=torch.tensor([6000.0]).to(dtype))


MODELS = {"wan2.1-1.3b": wan, "mochi-1": mochi, "hunyuanvideo": hunyuan}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("frames", 17), ("height", 480), ("width", 832), ("threads", 2), ("repeats", 2), ("layers", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", choices=MODELS, default="wan2.1-1.3b")
    parser.add_argument("--dtype", choices=("bf16", "f32"), default="bf16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    torch.set_default_dtype(dtype)  # 10 billion parameters in f32 would not fit beside themselves in bf16
    model, inputs = MODELS[args.model](args.layers, args.frames, args.height, args.width, dtype)
    model = model.to(dtype).eval()
    x = inputs["hidden_states"]
    seconds = []
    with torch.no_grad():
        for _ in range(args.repeats):
            begin = time.perf_counter()
            model(**inputs, return_dict=False)
            seconds.append(round(time.perf_counter() - begin, 2))
    print(json.dumps({"torch": torch.__version__, "diffusers": diffusers.__version__, "model": args.model,
                      "layers": args.layers or "all", "dtype": args.dtype, "tokens": x[0, 0].numel() // 4,
                      "threads": args.threads, "forward_s": seconds}))


if __name__ == "__main__":
    main()
