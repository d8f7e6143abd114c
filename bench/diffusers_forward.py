#!/usr/bin/env python3
"""One forward of diffusers' WanTransformer3DModel at the sizes of Wan2.1-T2V-1.3B, random weights: the time to
hold `lacuna bench generate --synthetic wan2.1-1.3b` against. Needs torch and diffusers.

Usage: diffusers_forward.py [--frames 17] [--height 480] [--width 832] [--dtype bf16] [--threads 2] [--repeats 2]
"""
import argparse
import json
import time

import diffusers
import torch


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("frames", 17), ("height", 480), ("width", 832), ("threads", 2), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=("bf16", "f32"), default="bf16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    # Its defaults are those of the 14B model.
    model = diffusers.WanTransformer3DModel(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960,
                                            num_layers=30).to(dtype).eval()
    x = torch.randn(1, 16, (args.frames - 1) // 4 + 1, args.height // 8, args.width // 8, dtype=dtype)
    text = torch.randn(1, 512, 4096, dtype=dtype)
    seconds = []
    with torch.no_grad():
        for _ in range(args.repeats):
            begin = time.perf_counter()
            model(x, torch.tensor([900]), text, return_dict=False)
            seconds.append(round(time.perf_counter() - begin, 2))
    print(json.dumps({"torch": torch.__version__, "diffusers": diffusers.__version__, "dtype": args.dtype,
                      "tokens": x[0, 0].numel() // 4, "threads": args.threads, "forward_s": seconds}))


if __name__ == "__main__":
    main()
