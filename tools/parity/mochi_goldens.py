#!/usr/bin/env python3
"""Golden numbers of the Mochi transformer: diffusers' own class in fp32 on hash weights (docs/formats.md, "Hash").

Writes the cases of module `mochi_dit` into a file of goldens (docs/formats.md), in place of those it has. The numbers of
`mochi` are the published ones; they are checked against this run.
Usage: python3 -m tools.parity.mochi_goldens [FILE]; default assets/goldens/joint.json. Needs torch and diffusers.
"""
import json
import os
import sys

import torch
from diffusers import MochiTransformer3DModel

from tools.parity import hash_tensors

CONFIG = {"patch_size": 2, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3,
          "pooled_projection_dim": 24, "in_channels": 12, "out_channels": None, "qk_norm": "rms_norm",
          "text_embed_dim": 32, "time_embed_dim": 64, "activation_fn": "swiglu", "max_sequence_length": 16}

# name -> inputs; valid: text rows that the mask keeps, of each sample; config: what differs.
CASES = {
    "mochi": {"x": [2, 12, 3, 8, 12], "valid": [11, 3], "timestep": 300},
    "mochi-wide": {"x": [1, 12, 2, 4, 22], "valid": [16], "timestep": 937},
    "mochi-one-word": {"x": [1, 12, 4, 10, 6], "valid": [1], "timestep": 4},
    # More tokens than the feed-forward takes at one time.
    "mochi-rows": {"x": [1, 12, 2, 66, 64], "valid": [7], "timestep": 500},
    # The head of the released network; patches of another size, and channels.
    "mochi-head128": {"x": [1, 5, 3, 12, 9], "valid": [13], "timestep": 820,
                      "config": {"num_attention_heads": 1, "attention_head_dim": 128, "num_layers": 2,
                                 "pooled_projection_dim": 80, "in_channels": 5, "patch_size": 3}},
    "mochi-no-words": {"x": [1, 12, 1, 4, 6], "valid": [0], "timestep": 620},
}
PUBLISHED = {"shape": [2, 12, 3, 8, 12], "tag": "mochi", "rms": 1.09705500, "probe": 14.0975980,
             "values": {"0": 1.436056, "1": -0.776941, "2": -1.232627, "3": -0.3704069, "6911": 1.882782}}


def check_published(expect):
    for at, value in PUBLISHED["values"].items():
        assert abs(expect["values"][at] - value) <= 2e-5 * (1 + abs(value)), at


def case(name, spec):
    config = CONFIG | spec.get("config", {})
    network = hash_tensors.fill(MochiTransformer3DModel(**config))
    input_tag = name.removeprefix("mochi").lstrip("-") or "mochi"
    x_name, text_name = f"x:{input_tag}", f"ctx:{input_tag}"
    batch, rows = spec["x"][0], CONFIG["max_sequence_length"]
    text_shape = [batch, rows, CONFIG["text_embed_dim"]]
    mask = torch.tensor([[row < valid for row in range(rows)] for valid in spec["valid"]])
    with torch.no_grad():
        result = network(hash_tensors.tensor(x_name, spec["x"]), hash_tensors.tensor(text_name, text_shape),
                         torch.full([batch], spec["timestep"]), mask, return_dict=False)[0]
    expect = hash_tensors.numbers(result, name, [0, 1, 2, 3, result.numel() // 2, -1])
    if name == PUBLISHED["tag"]:
        check_published(expect)
        expect = PUBLISHED
    return {"name": name, "module": "mochi_dit", "config": config, "weights": "w:",
            "inputs": {"x": {"hash": x_name, "shape": spec["x"]},
                       "context": {"hash": text_name, "shape": text_shape, "valid_rows": spec["valid"]},
                       "timestep": spec["timestep"]},
            "expect": expect}


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "assets/goldens/joint.json"
    file = {"schema": "lacuna-goldens", "version": 1,
            "source": "upstream modules (diffusers, transformers) run in fp32 on hash weights", "cases": []}
    if os.path.exists(path):
        with open(path) as f:
            file = json.load(f)
    file["cases"] = [c for c in file["cases"] if c["module"] != "mochi_dit"] + [case(*item) for item in CASES.items()]
    with open(path, "w") as f:
        json.dump(file, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    sys.exit(main())
