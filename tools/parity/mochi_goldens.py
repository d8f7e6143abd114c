#!/usr/bin/env python3
"""The goldens of the Mochi transformer: diffusers' own class in fp32 on hash weights, as JSON cases.

Needs torch, numpy and diffusers. Usage: python3 -m tools.parity.mochi_goldens > cases.json
"""
import json

import torch
from diffusers import MochiTransformer3DModel

from tools.parity import hash_tensors

CONFIG = {"patch_size": 2, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3,
          "pooled_projection_dim": 24, "in_channels": 12, "out_channels": None, "qk_norm": "rms_norm",
          "text_embed_dim": 32, "time_embed_dim": 64, "activation_fn": "swiglu", "max_sequence_length": 16}

# name -> inputs; valid: text rows that the mask keeps, of each sample.
CASES = {
    "mochi": {"x": [2, 12, 3, 8, 12], "valid": [11, 3], "timestep": 300},
    "mochi-wide": {"x": [1, 12, 2, 4, 22], "valid": [16], "timestep": 937},
    "mochi-one-word": {"x": [1, 12, 4, 10, 6], "valid": [1], "timestep": 4},
    # More tokens than the feed-forward takes at one time.
    "mochi-rows": {"x": [1, 12, 2, 66, 64], "valid": [7], "timestep": 500},
    "mochi-no-words": {"x": [1, 12, 1, 4, 6], "valid": [0], "timestep": 620},
}


def case(name, spec):
    network = hash_tensors.fill(MochiTransformer3DModel(**CONFIG))
    input_tag = name.removeprefix("mochi").lstrip("-") or "mochi"
    x_name, text_name = f"x:{input_tag}", f"ctx:{input_tag}"
    batch, rows = spec["x"][0], CONFIG["max_sequence_length"]
    text_shape = [batch, rows, CONFIG["text_embed_dim"]]
    mask = torch.tensor([[row < valid for row in range(rows)] for valid in spec["valid"]])
    with torch.no_grad():
        result = network(hash_tensors.tensor(x_name, spec["x"]), hash_tensors.tensor(text_name, text_shape),
                         torch.full([batch], spec["timestep"]), mask, return_dict=False)[0]
    return {"name": name, "module": "mochi_dit", "config": CONFIG, "weights": "w:",
            "inputs": {"x": {"hash": x_name, "shape": spec["x"]},
                       "context": {"hash": text_name, "shape": text_shape, "valid_rows": spec["valid"]},
                       "timestep": spec["timestep"]},
            "expect": hash_tensors.numbers(result, name, [0, 1, 2, 3, result.numel() // 2, -1])}


if __name__ == "__main__":
    print(json.dumps({"schema": "lacuna-goldens", "version": 1,
                      "source": "upstream modules (diffusers) run in fp32 on hash weights",
                      "cases": [case(name, spec) for name, spec in CASES.items()]}, indent=1))
