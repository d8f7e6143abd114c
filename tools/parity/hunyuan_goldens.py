#!/usr/bin/env python3
"""Golden numbers of the HunyuanVideo transformer: upstream's class in fp32 on hash weights (docs/formats.md, "Hash").

Writes the cases of module `hunyuan_dit` into a file of goldens (docs/formats.md), in place of those it has. Sinusoids of
timesteps are made in double, as the library makes them: upstream's f32 angle of the guidance, 6000 radians, is off by up
to 4e-4, and otherwise so in every version of torch. The numbers of `hunyuan` are the published ones, which have that in
them; they are checked against this run.
Usage: python3 -m tools.parity.hunyuan_goldens [FILE]; default assets/goldens/joint.json. Needs torch and diffusers.
"""
import json
import os
import sys

import numpy as np
import torch
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models import embeddings

from tools.parity.hash_tensors import fill, numbers, tensor

TINY = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2,
        "num_single_layers": 2, "num_refiner_layers": 1, "mlp_ratio": 4.0, "patch_size": 2, "patch_size_t": 1,
        "qk_norm": "rms_norm", "guidance_embeds": True, "text_embed_dim": 32, "pooled_projection_dim": 24,
        "rope_theta": 256.0, "rope_axes_dim": [4, 6, 6]}
# name, changes of the config, latent [frames, height, width], valid text rows of each prompt, timestep
CASES = [
    ("hunyuan", {}, (3, 8, 12), (11, 3), 500.0),
    ("hunyuan-wide", {}, (2, 6, 20), (7,), 937.5),
    ("hunyuan-one-word", {}, (1, 10, 4), (1,), 20.0),
    ("hunyuan-no-guidance", {"guidance_embeds": False}, (2, 4, 6), (5,), 300.0),
    # The head of the released network.
    ("hunyuan-head128", {"num_attention_heads": 1, "attention_head_dim": 128, "rope_axes_dim": [16, 56, 56],
                         "num_layers": 1, "num_single_layers": 1}, (3, 12, 20), (13,), 642.0),
    # No width equals another, two refiner blocks, patches over frames.
    ("hunyuan-odd", {"mlp_ratio": 2.5, "num_refiner_layers": 2, "num_layers": 1, "num_single_layers": 3,
                     "patch_size_t": 2, "rope_axes_dim": [8, 2, 6]}, (4, 6, 8), (16,), 811.0),
]
SHOWN = (0, 1, 2, 3, -1)
PUBLISHED = {"shape": [2, 4, 3, 8, 12], "tag": "hunyuan", "rms": 1.41262211, "probe": -0.0749911917,
             "values": {"0": 1.289156, "1": -0.9931998, "2": 0.8616091, "3": 1.454986, "2303": 0.1780896}}


def sinusoid(timesteps, embedding_dim, **_):
    half = embedding_dim // 2
    angles = timesteps.double()[:, None] * torch.from_numpy(10000.0 ** (-np.arange(half) / half))
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def check_published(expect):
    for at, value in PUBLISHED["values"].items():
        assert abs(expect["values"][at] - value) <= 2e-5 * (1 + abs(value)), at


def run(name, changes, latent, valid, timestep):
    config = {**TINY, **changes}
    model = fill(HunyuanVideoTransformer3DModel(**config))
    batch, rows, guidance = len(valid), 16, 6.0
    x = [batch, config["in_channels"], *latent]
    context, pooled = [batch, rows, config["text_embed_dim"]], [batch, config["pooled_projection_dim"]]
    mask = torch.zeros(batch, rows, dtype=torch.long)
    for row, count in zip(mask, valid):
        row[:count] = 1
    with torch.no_grad():
        y = model(tensor("x:hy", x), torch.full((batch,), timestep), tensor("ctx:hy", context), mask,
                  tensor("pool:hy", pooled), torch.full((batch,), 1000.0 * guidance), return_dict=False)[0]
    expect = numbers(y, name, SHOWN)
    if name == PUBLISHED["tag"]:
        check_published(expect)
        expect = PUBLISHED
    return {"name": name, "module": "hunyuan_dit", "config": config, "weights": "w:",
            "inputs": {"x": {"hash": "x:hy", "shape": x},
                       "context": {"hash": "ctx:hy", "shape": context, "valid_rows": list(valid)},
                       "pooled": {"hash": "pool:hy", "shape": pooled}, "timestep": timestep, "guidance": guidance},
            "expect": expect}


def main():
    embeddings.get_timestep_embedding = sinusoid
    path = sys.argv[1] if len(sys.argv) > 1 else "assets/goldens/joint.json"
    file = {"schema": "lacuna-goldens", "version": 1,
            "source": "upstream modules (diffusers, transformers) run in fp32 on hash weights", "cases": []}
    if os.path.exists(path):
        with open(path) as f:
            file = json.load(f)
    file["cases"] = [c for c in file["cases"] if c["module"] != "hunyuan_dit"] + [run(*case) for case in CASES]
    with open(path, "w") as f:
        json.dump(file, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    sys.exit(main())
