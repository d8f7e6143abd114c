#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""lacuna.attention beside torch's scaled_dot_product_attention on this machine's CPU, and calls of both in turns.

Each row: median of the calls (fastest..slowest), all kinds taking turns; error is the relative L2 distance from torch in
float32. q and k have the structure of a video in miniature (tokens near each other attend to each other), and the sparse
rows keep the blocks with the largest mean q and k products, which is no published method: what time density buys is
the question here, what it costs is docs/results.md's.

Usage: against_sdpa.py [--tokens 8192] [--heads 4] [--channels 128] [--threads 2] [--repeats 7] [--density 0.25] [--json]
"""
import argparse
import json
import statistics
import time

import lacuna
import torch
from torch.nn.functional import scaled_dot_product_attention

BLOCK = 128


def inputs(heads, tokens, channels):
    """Unit noise on a slow walk through the channels: neighbours are alike, as in a video."""
    make = torch.Generator().manual_seed(0)
    walk = torch.randn((heads, tokens // BLOCK + 1, channels), generator=make).repeat_interleave(BLOCK, 1)[:, :tokens]
    return [(base + torch.randn((heads, tokens, channels), generator=make))[None] for base in (walk, walk, 0 * walk)]


def mask_of(q, k, density):
    """The block pairs of each row with the largest product of block means, `density` of them."""
    def means(x):
        short = -x.shape[2] % BLOCK
        padded = torch.nn.functional.pad(x[0].float(), (0, 0, 0, short))
        return padded.unflatten(1, (-1, BLOCK)).mean(2)

    scores = means(q) @ means(k).transpose(1, 2)
    kept = scores.topk(max(1, round(density * scores.shape[2])), dim=2).indices
    bits = torch.zeros(scores.shape, dtype=torch.bool).scatter_(2, kept, True).numpy()
    return lacuna.Mask.from_numpy(bits, q.shape[2], k.shape[2], BLOCK, BLOCK)


def turns(calls, repeats):
    """Milliseconds of each call, in turns, after one turn that is not counted; outputs of the last turn."""
    times, outs = {name: [] for name in calls}, {}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            outs[name] = call()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return times, outs


def row(name, times, **more):
    return {"what": name, "ms": statistics.median(times), "fastest": min(times), "slowest": max(times), **more}


def attention_rows(options):
    rows, exact = [], None
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (x.to(dtype) for x in inputs(options.heads, options.tokens, options.channels))
        mask = mask_of(q, k, options.density)
        times, outs = turns({"torch": lambda: scaled_dot_product_attention(q, k, v),
                             "lacuna": lambda: lacuna.attention(q, k, v),
                             "lacuna sparse": lambda: lacuna.attention(q, k, v, mask)}, options.repeats)
        exact = outs["torch"].float() if exact is None else exact
        for name, out in outs.items():
            rows.append(row(f"{name} {str(dtype)[6:]}", times[name],
                            density=mask.density if name == "lacuna sparse" else 1.0,
                            against_torch=statistics.median(times["torch"]) / statistics.median(times[name]),
                            rel_l2=float(torch.linalg.norm(out.float() - exact) / torch.linalg.norm(exact))))
    return rows


def pool_rows(options):
    """A matrix product of torch and one of our calls, alone and in turns: idle threads of one must not slow the other."""
    a = torch.randn((1024, 1024), generator=torch.Generator().manual_seed(1))
    q, k, v = (x[:, :, :2048] for x in inputs(options.heads, 2048, options.channels))
    calls = {"torch matmul": lambda: a @ a, "lacuna 2048 tokens": lambda: lacuna.attention(q, k, v)}
    rows = []
    for name, call in calls.items():
        rows.append(row(f"{name}, alone", turns({name: call}, 5 * options.repeats)[0][name]))
    for name, times in turns(calls, 5 * options.repeats)[0].items():
        rows.append(row(f"{name}, in turns", times))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"tokens": 8192, "heads": 4, "channels": 128, "threads": 2, "repeats": 7}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lacuna.set_threads(options.threads)
    with torch.inference_mode():
        result = {"torch": torch.__version__, **lacuna.describe(), "heads": options.heads,
                  "tokens": options.tokens, "channels": options.channels,
                  "attention": attention_rows(options), "threads_in_turns": pool_rows(options)}
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"torch {result['torch']}, lacuna {result['version']} on {result['backend']}, 1 x {options.heads} x "
          f"{options.tokens} x {options.channels}; OpenMP: {', '.join(result['openmp'])}")
    print(f"{'':<26} {'ms':>8} {'fastest..slowest':>18} {'density':>8} {'of torch':>9} {'rel L2':>8}")
    for r in result["attention"] + result["threads_in_turns"]:
        spread = f"{r['fastest']:.1f}..{r['slowest']:.1f}"
        more = f" {r['density']:>8.3f} {r['against_torch']:>8.2f}x {r['rel_l2']:>8.1e}" if "density" in r else ""
        print(f"{r['what']:<26} {r['ms']:>8.1f} {spread:>18}{more}")


if __name__ == "__main__":
    main()
